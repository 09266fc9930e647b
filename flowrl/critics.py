"""Ensembles of critics Q(s, a), and IQL's value V(s): what can be chosen about them, and the functions that read it."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl.config import config, static, traced
from flowrl.losses import expectile_errors, exponential_errors, quantile_errors
from flowrl.networks import ACTIVATIONS, Value, ensemble
from flowrl.train_state import Batch, Loss, Metrics, Params, TrainState


@config
class Critic:
    """Choices about the critics."""

    heads: int = static(2, "Independent critics.")
    aggregate: str = static("min", "How the heads are combined in TD targets.", choices=("min", "mean"))
    rho: float = traced(0.0, "Deviations between heads that their mean is lowered by in TD targets.")
    hidden_dims: tuple[int, ...] = static((), "Hidden layers; by default those of the policy.")
    activation: str = static("gelu", "Nonlinearity.", choices=tuple(ACTIVATIONS))
    layer_norm: bool = static(True, "LayerNorm after each hidden layer.")
    target_rate: float = traced(0.005, "Polyak rate of the target critics.", high=1.0)

    def problem(self, prefix: str) -> str:
        """Says that heads deviate from each other where there are several, and that their minimum is not lowered."""
        told = f"{prefix}rho={self.rho} lowers the mean of several critics"
        if self.rho and self.heads == 1:
            return f"{told}, and there is one; give {prefix}heads=10, say, or leave it out"
        return f"{told}; add {prefix}aggregate=mean, or leave it out" if self.rho and self.aggregate == "min" else ""


def need_two(choices: Critic, prefix: str) -> str:
    """Says that a coin chooses between two critics, where there are more or fewer."""
    told = f"{prefix}critic.heads={choices.heads} must be 2: a coin chooses between two; leave it out"
    return "" if choices.heads == 2 else told


def module(choices: Critic, hidden_dims: tuple[int, ...], **options: Any) -> nn.Module:
    """Returns the network, `[B, D]`, `[B, A]` to `[heads, B]`.

    Args:
        choices: What it is to be.
        hidden_dims: Its hidden layers where the choices name none.
        options: Further ones of `Value`, such as initialisations, and `in_axes` of `ensemble`.
    """
    in_axes = options.pop("in_axes", None)
    layers, activation = choices.hidden_dims or hidden_dims, ACTIVATIONS[choices.activation]
    return ensemble(Value, choices.heads, in_axes)(layers, activation, choices.layer_norm, **options)


def combine(choices: Critic, q: jax.Array) -> jax.Array:
    """Combines the values of heads for a TD target, min Q or mean Q − ρ · std Q: `[heads, ...]` to `[...]`."""
    if choices.aggregate == "min":
        return q.min(axis=0)
    variance = q.var(axis=0)
    deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)  # with a slope at 0
    return q.mean(axis=0) - choices.rho * deviation


def td_errors(q: jax.Array, targets: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    """Squared errors of critics against constant targets, such as `r + batch["discounts"] * next_q`.

    Args:
        q: Q(s, a) `[heads, B]`.
        targets: `[B]`, or of each head `[heads, B]`.
        batch: Its `valid` `[B]` says which rows count.

    Returns:
        `[heads, B]`, 0 in rows that do not count, and metrics.
    """
    chex.assert_equal_shape_suffix([q, targets, batch["valid"]], 1)
    errors = batch["valid"] * (q - jax.lax.stop_gradient(targets)) ** 2
    return errors, {
        "critic/loss": errors.mean(),
        "critic/q_mean": q.mean(),
        "critic/q_max": q.max(),
        "critic/q_min": q.min(),
    }


def td_sum(q: jax.Array, targets: jax.Array, batch: Batch) -> Loss:
    """Σ_i E (Q_i − y)², the sum over critics to which gradient norms of DQL's family belong; arguments as above."""
    errors, metrics = td_errors(q, targets, batch)
    loss = errors.mean(axis=-1).sum()
    return loss, metrics | {"critic/loss": loss}


# -------------------------------------------------------------------------------------------------------- IQL's value


@config
class ImplicitValue:
    """Choices about V(s), which stands for the better ones of the data's actions (https://arxiv.org/abs/2110.06169)."""

    expectile: float = traced(
        0.7, "Expectile, or quantile, of Q over the data's actions that V is; 0.5 is the middle.", high=1.0
    )
    objective: str = static(
        "expectile", "What V minimises (the others are IDQL's).", choices=("expectile", "quantile", "exponential")
    )
    temperature: float = traced(1.0, "Inverse temperature of the exponential objective.")

    def errors(self, u: jax.Array) -> jax.Array:
        """Errors of V where Q − V is u: `[B]` to `[B]`."""
        if self.objective == "exponential":
            return exponential_errors(u, self.temperature)
        return {"expectile": expectile_errors, "quantile": quantile_errors}[self.objective](u, self.expectile)


class HasValue(Protocol):
    """A configuration of an agent with such a value."""

    @property
    def critic(self) -> Critic:
        """The choices about critics."""

    @property
    def value(self) -> ImplicitValue:
        """The choices about V."""


V = TypeVar("V", bound=HasValue)


def value_module(choices: Critic, hidden_dims: tuple[int, ...], **options: Any) -> nn.Module:
    """Returns the network of V, `[B, D]` to `[B]`, like one of the critics; arguments as for `module`."""
    return Value(choices.hidden_dims or hidden_dims, ACTIVATIONS[choices.activation], choices.layer_norm, **options)


def implicit_value_loss(
    nets: Any, params: Params, state: TrainState[V], batch: Batch, key: jax.Array, *, goals: Sequence[str] = ()
) -> Loss:
    """E L(min Q̄(s, a) − V(s)), L that of the configuration's `value` (IQL, eq. 5); Q and V also read the `goals`."""
    s, g, config = batch["observations"], [batch[name] for name in goals], state.config
    q = combine(config.critic, nets.critic(state.target_params, s, *g, batch["actions"]))
    v = nets.value(params, s, *g)
    chex.assert_equal_shape([q, v, batch["valid"]])
    loss = (batch["valid"] * config.value.errors(q - v)).mean()
    return loss, {"value/loss": loss, "value/v_mean": v.mean(), "value/v_max": v.max(), "value/v_min": v.min()}


def implicit_critic_loss(
    nets: Any, params: Params, state: TrainState[V], batch: Batch, key: jax.Array, *, goals: Sequence[str] = ()
) -> Loss:
    """Σᵢ E (Qᵢ(s, a) − r − γ m V(s'))² (IQL, eq. 6); Q and V also read the `goals`."""
    g = [batch[name] for name in goals]
    targets = batch["rewards"] + batch["discounts"] * nets.value(state.params, batch["next_observations"], *g)
    return td_sum(nets.critic(params, batch["observations"], *g, batch["actions"]), targets, batch)


def conservative_gap(
    proposal_values: jax.Array, log_densities: jax.Array, data_values: jax.Array, returns: jax.Array, uniform: int
) -> jax.Array:
    """How far a soft maximum of Q over proposed actions lies above Q of the data's actions (Cal-QL, eq. 5.1).

    That is log Σ exp(Q(s, aₙ) − log p(aₙ)) − Q(s, a). Q of the policy's actions counts as max(Q, G), so that none is
    pushed below a return that was observed (https://arxiv.org/abs/2303.05479); where G is −∞ this is CQL
    (https://arxiv.org/abs/2006.04779).

    Args:
        proposal_values: Q(s, aₙ) `[heads, N, B]`, those of uniform actions first.
        log_densities: log p(aₙ) `[N, B]`, or `[heads, N, B]` where each critic has proposals of its own.
        data_values: Q(s, a) `[heads, B]`.
        returns: G, the return from the data's row on `[B]`.
        uniform: How many of the N actions are uniform.

    Returns:
        `[heads, B]`.
    """
    calibrated = jnp.maximum(proposal_values[:, uniform:], returns)
    values = jnp.concatenate([proposal_values[:, :uniform], calibrated], axis=1)
    return jax.nn.logsumexp(values - log_densities, axis=1) - data_values
