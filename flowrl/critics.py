"""Ensembles of critics Q(s, a): what can be chosen about them, and the functions that read it."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl.config import config, static, traced
from flowrl.networks import ACTIVATIONS, Value, ensemble
from flowrl.train_state import Batch, Metrics


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
