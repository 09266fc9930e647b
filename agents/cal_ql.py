"""Cal-QL: conservative Q-learning that never sinks below observed returns (https://arxiv.org/abs/2303.05479)."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Transitions
from flowrl.losses import multiplier
from flowrl.networks import MLP, Network, Spec, named, orthogonal
from flowrl.optim import descend, polyak
from flowrl.policies import act_squashed, squashed
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState

LOG_STD_RANGE = (-20.0, 2.0)
HIDDEN_INIT, FINAL_INIT = orthogonal(2**0.5), orthogonal(0.01)
MULTIPLIERS = (0.0, 1e6)
"""Bounds of the multiplier in the Lagrangian form."""


@config
class Config:
    """The settings of the authors' code, with the networks of its AntMaze runs."""

    critic: Critic = nested(Critic(hidden_dims=(256, 256, 256, 256), activation="relu", layer_norm=False))
    hidden_dims: tuple[int, ...] = static((256, 256), "Hidden layers of the policy.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for the critics.")
    actor_learning_rate: float = traced(1e-4, "Adam's step size, for the policy and the temperature.")
    # Static, because the returns in the data are computed with it before training. At 1 those of an endless episode
    # would be infinite.
    discount: float = static(0.99, "Discount per environment step.", low=0.0, high=0.99999)
    target_entropy: float = traced(
        -1.0, "Entropy that the temperature aims at, per dimension of actions.", low=float("-inf")
    )
    initial_temperature: float = traced(1.0, "Temperature before the first update.", low=1e-8)
    one_draw: bool = static(
        False, "All losses of an update see the same random actions, not each its own as in the released code."
    )
    conservative_weight: float = traced(5.0, "Weight of the conservative term beside the TD error.")
    proposals: int = static(10, "Actions of each kind in the conservative term, and in the target's maximum.")
    max_target_backup: bool = static(
        True, "The target takes the best of `proposals` next actions by the slow critics, instead of one action."
    )
    lagrange: bool = static(
        False,
        "The conservative term gets a multiplier, learnt so that the gap is target_gap (on in their AntMaze runs).",
    )
    target_gap: float = traced(1.0, "Gap that the multiplier aims at.", low=float("-inf"))


State = TrainState[Config]


class Actor(nn.Module):
    """Means and log standard deviations of actions before tanh, the latter scaled and shifted by learnt scalars.

    Attributes:
        hidden_dims: Sizes of the hidden layers.
        action_dim: Number of actions A.
    """

    hidden_dims: Sequence[int]
    action_dim: int

    @nn.compact
    def __call__(self, s: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps `[..., D]` to means and log standard deviations `[..., A]`, the latter clipped to [−20, 2]."""
        mlp = partial(MLP, activation=nn.relu, kernel_init=HIDDEN_INIT, final_init=FINAL_INIT)
        means, log_stds = jnp.split(mlp(self.hidden_dims, 2 * self.action_dim)(s), 2, axis=-1)
        scale = self.param("log_std_multiplier", nn.initializers.constant(1.0), ())
        offset = self.param("log_std_offset", nn.initializers.constant(-1.0), ())
        return means, jnp.clip(scale * log_stds + offset, *LOG_STD_RANGE)


class Networks(NamedTuple):
    """The actor and the critics, at the same actions or each at its own."""

    spec: Spec
    actor: Network  # s [B, D] -> μ [B, A], log σ [B, A]
    critic: Network  # s [B, D], a [B, A] -> [heads, B]
    apart: Network  # s [B, D], a [heads, B, A] -> [heads, B], with the same parameters


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    s, a, _, _ = spec.inputs()
    module = partial(critics.module, config.critic, config.hidden_dims, kernel_init=HIDDEN_INIT, final_init=FINAL_INIT)
    own = named(actor=(Actor(config.hidden_dims, spec.action_dim), s), critic=(module(), s, a))
    return Networks(spec, **own, apart=Network("critic", module(in_axes=(None, 0)), ()))


def conservative_gap(
    proposal_values: jax.Array, log_densities: jax.Array, data_values: jax.Array, returns: jax.Array, uniform: int
) -> jax.Array:
    """How far a soft maximum of Q over proposed actions lies above Q of the data's actions (eq. 5.1).

    That is log Σ exp(Q(s, aₙ) − log p(aₙ)) − Q(s, a). Q of the policy's actions counts as max(Q, G), so that none is
    pushed below a return that was observed; where G is −∞ this is CQL (https://arxiv.org/abs/2006.04779).

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


def propose(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws N uniform actions, N of the policy in s' and N in s: `[3N, B, A]`, with their log densities `[3N, B]`."""
    uniform_key, next_key, now_key = jax.random.split(key, 3)
    sizes = (state.config.proposals,)
    uniform = jax.random.uniform(uniform_key, (*sizes, *batch["actions"].shape), minval=-1.0, maxval=1.0)
    log_uniform = jnp.full(uniform.shape[:-1], -uniform.shape[-1] * jnp.log(2.0))
    after, log_after = squashed(nets.actor(state.params, batch["next_observations"]), next_key, sizes)
    now, log_now = squashed(nets.actor(state.params, batch["observations"]), now_key, sizes)
    return jnp.concatenate([uniform, after, now]), jnp.concatenate([log_uniform, log_after, log_now])


def gaps_of(
    nets: Networks, params: Params, state: State, batch: Batch, keys: jax.Array
) -> tuple[jax.Array, Metrics]:  # fmt: skip
    """Each critic's mean gap `[heads]`, at proposals of its own key in `keys` `[heads]`.

    Actions and densities are of `state.params`, so that only the critics receive gradients.
    """
    s, returns, uniform = batch["observations"], batch["returns"], state.config.proposals
    a, log_densities = jax.vmap(partial(propose, nets, state, batch))(keys)
    values = jax.vmap(partial(nets.apart, params, s), in_axes=1, out_axes=1)(a)
    data_values = nets.critic(params, s, batch["actions"])
    gaps = conservative_gap(values, log_densities, data_values, returns, uniform).mean(axis=-1)
    calibrated = jnp.mean(values[:, uniform:] < returns, dtype=jnp.float32)
    metrics = {"gap": gaps.mean(), "q_policy": values[:, uniform:].mean(), "calibrated": calibrated}
    return gaps, {f"critic/{name}": value for name, value in metrics.items()}


def td_losses(
    nets: Networks, params: Params, state: State, batch: Batch, keys: jax.Array
) -> tuple[jax.Array, Metrics]:  # fmt: skip
    """Each critic's squared error `[heads]` against r + γ m max Q̄(s', a'), a' of its own key in `keys` `[heads]`."""
    config, next_s = state.config, batch["next_observations"]
    sizes = (config.proposals if config.max_target_backup else 1,)

    def targets(key: jax.Array) -> jax.Array:
        next_a, _ = squashed(nets.actor(state.params, next_s), key, sizes)
        next_q = jax.vmap(lambda a: critics.combine(config.critic, nets.critic(state.target_params, next_s, a)))(next_a)
        return batch["rewards"] + batch["discounts"] * next_q.max(axis=0)

    q = nets.critic(params, batch["observations"], batch["actions"])
    errors, metrics = critics.td_errors(q, jax.vmap(targets)(keys), batch)
    return errors.mean(axis=-1), metrics


def lagrangian(params: Params) -> jax.Array:
    """The multiplier of the conservative term `[]`."""
    return jnp.clip(multiplier(params, "multiplier"), *MULTIPLIERS)


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, keys: jax.Array) -> Loss:
    """Sum over critics of the TD error and the weighted conservative term, each at draws of its own key in `keys`."""
    config = state.config
    target_keys, gap_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    td, metrics = td_losses(nets, params, state, batch, target_keys)
    gaps, more = gaps_of(nets, params, state, batch, gap_keys)
    excess = gaps
    if config.lagrange:
        excess = lagrangian(state.params) * (gaps - config.target_gap)
    loss = jnp.sum(td + config.conservative_weight * excess)
    return loss, metrics | more | {"critic/loss": loss, "critic/td_loss": td.sum()}


def multiplier_loss(nets: Networks, params: Params, state: State, batch: Batch, keys: jax.Array) -> Loss:
    """−α' · weight · (gap − its target), the mean over critics, by which the multiplier α' rises with the gaps."""
    _, gap_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    gaps, _ = gaps_of(nets, state.params, state, batch, gap_keys)
    excess = jax.lax.stop_gradient(gaps) - state.config.target_gap
    loss = -jnp.mean(lagrangian(params) * state.config.conservative_weight * excess)
    return loss, {"critic/multiplier": lagrangian(state.params), "critic/multiplier_loss": loss}


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E[α log π(a | s) − Q(s, a)], Q of all heads."""
    s = batch["observations"]
    a, log_probs = squashed(nets.actor(params, s), key)
    q = critics.combine(state.config.critic, nets.critic(state.params, s, a))
    loss = jnp.mean(multiplier(state.params) * log_probs - q)
    return loss, {"actor/loss": loss, "actor/entropy": -log_probs.mean()}


def temperature_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E[−log α (log π(a | s) + H̄)]."""
    _, log_probs = squashed(nets.actor(state.params, batch["observations"]), key)
    gap = -log_probs.mean() - state.config.target_entropy * nets.spec.action_dim
    loss = params["temperature"]["log"] * gap
    return loss, {"actor/temperature": multiplier(params), "actor/temperature_loss": loss}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """A step of all losses at the same parameters, at two step sizes, then the target critics."""
    config, heads = state.config, state.config.critic.heads
    # Of actor, temperature, each critic, multiplier.
    keys = jnp.stack([key] * (3 + heads)) if config.one_draw else jax.random.split(key, 3 + heads)
    losses, own = [critic_loss, actor_loss, temperature_loss], [keys[2:-1], keys[0], keys[1]]
    rates = dict.fromkeys(("actor", "temperature"), config.actor_learning_rate) | {"critic": config.learning_rate}
    if config.lagrange:
        losses, own = [critic_loss, multiplier_loss, *losses[1:]], [own[0], jnp.stack([keys[-1]] * heads), *own[1:]]
        rates |= {"multiplier": config.learning_rate}
    moved, metrics = descend(nets, state, batch, own, losses, rates)
    return polyak(moved, moved.params, critic=config.critic.target_rate), metrics


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """The policy's mode, or with `explore` a sample."""
    return act_squashed(nets.actor(policy.params, inputs["observations"]), key, explore)


def multipliers(config: Config) -> dict[str, jax.Array]:
    """The logarithms that multipliers begin with."""
    temperature = {"temperature": jnp.log(config.initial_temperature)}
    return temperature | ({"multiplier": jnp.ones(())} if config.lagrange else {})


make = Maker(
    networks, update, act, batch=lambda config: Transitions(config.discount, returns=True), targets=("critic",),
    multipliers=multipliers,
)  # fmt: skip
