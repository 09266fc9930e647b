"""Cal-QL: conservative Q-learning that never sinks below observed returns (https://arxiv.org/abs/2303.05479)."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl import config as configs
from flowrl import losses, maximum_entropy
from flowrl.agent import Agent, Needs, Spec
from flowrl.losses import temperature
from flowrl.maximum_entropy import Networks, initial_state, sample_actions
from flowrl.networks import MLP, Value, ensemble
from flowrl.optim import descend, polyak
from flowrl.train_state import ADAM, Batch, Metrics, Params, TrainState

LOG_STD_RANGE = (-20.0, 2.0)
HIDDEN_INIT, FINAL_INIT = nn.initializers.orthogonal(2**0.5), nn.initializers.orthogonal(0.01)
MULTIPLIERS = (0.0, 1e6)
"""Bounds of the multiplier in the Lagrangian form."""


@dataclasses.dataclass(frozen=True)
class Config(maximum_entropy.Config):
    """The settings of the authors' code, with the networks of its AntMaze runs."""

    hidden_dims: tuple[int, ...] = configs.static((256, 256, 256, 256), "Hidden layers of the critics.")
    actor_hidden_dims: tuple[int, ...] = configs.static((256, 256), "Hidden layers of the policy.")
    learning_rate: float = configs.sweepable(3e-4, "Adam's step size, for the critics.")
    actor_learning_rate: float = configs.sweepable(1e-4, "Adam's step size, for the policy and the temperature.")
    # Static, because the returns in the data are computed with it before training. At 1 those of an endless episode
    # would be infinite.
    discount: float = configs.static(0.99, "Discount per environment step.", low=0.0, high=0.99999)
    one_draw: bool = configs.static(
        False, "All losses of an update see the same random actions, not each its own as in the released code."
    )
    lagrange: bool = configs.static(
        False,
        "The conservative term gets a multiplier, learnt so that the gap is target_gap (on in their AntMaze runs).",
    )
    target_gap: float = configs.sweepable(1.0, "Gap that the multiplier aims at.", low=float("-inf"))
    conservative_weight: float = configs.sweepable(5.0, "Weight of the conservative term beside the TD error.")
    proposals: int = configs.static(10, "Actions of each kind in the conservative term, and in the target's maximum.")
    max_target_backup: bool = configs.static(
        True, "The target takes the best of `proposals` next actions by the smaller slow critic, instead of one action."
    )


class Policy(nn.Module):
    """Means and log standard deviations of actions before tanh, the latter scaled and shifted by learnt scalars.

    Attributes:
        hidden_dims: Sizes of the hidden layers.
        action_dim: Number of actions A.
    """

    hidden_dims: Sequence[int]
    action_dim: int

    @nn.compact
    def __call__(self, observations: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps `[..., D]` to means and log standard deviations `[..., A]`, the latter clipped to [−20, 2]."""
        mlp = partial(MLP, activation=nn.relu, kernel_init=HIDDEN_INIT, final_init=FINAL_INIT)
        outputs = mlp(self.hidden_dims, 2 * self.action_dim)(observations)
        means, log_stds = jnp.split(outputs, 2, axis=-1)
        multiplier = self.param("log_std_multiplier", nn.initializers.constant(1.0), ())
        offset = self.param("log_std_offset", nn.initializers.constant(-1.0), ())
        return means, jnp.clip(multiplier * log_stds + offset, *LOG_STD_RANGE)


def conservative_gap(
    proposal_values: jax.Array, log_densities: jax.Array, data_values: jax.Array, returns: jax.Array, uniform: int
) -> jax.Array:
    """How far a soft maximum of Q over proposed actions lies above Q of the data's actions (eq. 5.1).

    That is log Σ exp(Q(s, aₙ) − log p(aₙ)) − Q(s, a). Q of the policy's actions counts as max(Q, G), so that none is
    pushed below a return that was observed; where G is −∞ this is CQL (https://arxiv.org/abs/2006.04779).

    Args:
        proposal_values: Q(s, aₙ) `[2, N, B]`, those of uniform actions first.
        log_densities: log p(aₙ) `[N, B]`, or `[2, N, B]` where each critic has proposals of its own.
        data_values: Q(s, a) `[2, B]`.
        returns: G, the return from the data's row on `[B]`.
        uniform: How many of the N actions are uniform.

    Returns:
        `[2, B]`.
    """
    calibrated = jnp.maximum(proposal_values[:, uniform:], returns)
    values = jnp.concatenate([proposal_values[:, :uniform], calibrated], axis=1)
    return jax.nn.logsumexp(values - log_densities, axis=1) - data_values


def propose(
    networks: Networks, config: Config, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draws N uniform actions, N of the policy in s' and N in s: `[3N, B, A]`, with their log densities `[3N, B]`."""
    uniform_key, next_key, now_key = jax.random.split(key, 3)
    uniform = jax.random.uniform(uniform_key, (config.proposals, *batch["actions"].shape), minval=-1.0, maxval=1.0)
    log_uniform = jnp.full(uniform.shape[:-1], -uniform.shape[-1] * jnp.log(2.0))
    sizes, actor = (config.proposals,), state.params["actor"]
    after, log_after = sample_actions(networks, actor, batch["next_observations"], next_key, sizes)
    now, log_now = sample_actions(networks, actor, batch["observations"], now_key, sizes)
    return jnp.concatenate([uniform, after, now]), jnp.concatenate([log_uniform, log_after, log_now])


def gaps_of(
    networks: Networks, config: Config, params: Params, state: TrainState, batch: Batch, keys: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Each critic's mean gap `[2]`, at proposals of its own key in `keys` `[2]`.

    Actions and densities are of `state.params`, so that only the critics receive gradients.
    """
    observations, returns = batch["observations"], batch["returns"]
    actions, log_densities = jax.vmap(partial(propose, networks, config, state, batch))(keys)
    critics = partial(networks.apart.apply, params["critic"], observations)
    values = jax.vmap(critics, in_axes=1, out_axes=1)(actions)
    data_values = networks.critic.apply(params["critic"], observations, batch["actions"])
    gaps = conservative_gap(values, log_densities, data_values, returns, config.proposals).mean(axis=-1)
    of_policy = values[:, config.proposals :]
    return gaps, {
        "critic/gap": gaps.mean(),
        "critic/q_policy": of_policy.mean(),
        "critic/calibrated": jnp.mean(of_policy < returns, dtype=jnp.float32),
    }


def td_losses(
    networks: Networks, config: Config, params: Params, state: TrainState, batch: Batch, keys: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Each critic's squared error `[2]` against r + γ m max min Q̄(s', a'), a' of its own key in `keys` `[2]`."""
    next_observations, sizes = batch["next_observations"], (config.proposals if config.max_target_backup else 1,)
    slow = partial(networks.critic.apply, state.target_params["critic"], next_observations)

    def targets(key: jax.Array) -> jax.Array:
        actions, _ = sample_actions(networks, state.params["actor"], next_observations, key, sizes)
        best = jax.vmap(slow)(actions).min(axis=1).max(axis=0)
        return losses.td_target(batch, best, state.hyper["discount"])

    values = networks.critic.apply(params["critic"], batch["observations"], batch["actions"])
    errors = jnp.mean((values - jax.vmap(targets)(keys)) ** 2, axis=-1)
    return errors, {"critic/q_mean": values.mean(), "critic/q_max": values.max(), "critic/q_min": values.min()}


def multiplier(params: Params) -> jax.Array:
    """The Lagrangian multiplier of the conservative term `[]`; 1 where it is not learnt."""
    return jnp.clip(jnp.exp(params["multiplier"]["log"]), *MULTIPLIERS) if "multiplier" in params else jnp.ones(())


def critic_loss(
    networks: Networks, config: Config, params: Params, state: TrainState, batch: Batch, keys: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Sum over critics of the TD error and the weighted conservative term, each at draws of its own key in `keys`."""
    target_keys, gap_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    td, td_metrics = td_losses(networks, config, params, state, batch, target_keys)
    gaps, gap_metrics = gaps_of(networks, config, params, state, batch, gap_keys)
    excess = gaps - state.hyper["target_gap"] if config.lagrange else gaps
    loss = jnp.sum(td + multiplier(state.params) * state.hyper["conservative_weight"] * excess)
    return loss, td_metrics | gap_metrics | {"critic/loss": loss, "critic/td_loss": td.sum()}


def multiplier_loss(
    networks: Networks, config: Config, params: Params, state: TrainState, batch: Batch, keys: jax.Array
) -> tuple[jax.Array, Metrics]:
    """−α' · weight · (gap − its target), the mean over critics, by which the multiplier α' rises with the gaps."""
    _, gap_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    gaps, _ = gaps_of(networks, config, state.params, state, batch, gap_keys)
    excess = jax.lax.stop_gradient(gaps) - state.hyper["target_gap"]
    loss = -jnp.mean(multiplier(params) * state.hyper["conservative_weight"] * excess)
    return loss, {"critic/multiplier": multiplier(state.params), "critic/multiplier_loss": loss}


def actor_losses(
    networks: Networks, spec: Spec, params: Params, state: TrainState, batch: Batch, keys: jax.Array
) -> tuple[jax.Array, Metrics]:
    """E[α log π(a | s) − min Q(s, a)], and for log α: E[−log α (log π(a | s) + H̄)], draws of one key in `keys` each."""
    actor_key, temperature_key = keys
    observations = batch["observations"]
    actions, log_probs = sample_actions(networks, params["actor"], observations, actor_key)
    values = networks.critic.apply(state.params["critic"], observations, actions).min(axis=0)
    actor = jnp.mean(temperature(state.params) * log_probs - values)
    _, others = sample_actions(networks, state.params["actor"], observations, temperature_key)
    gap = -others.mean() - state.hyper["target_entropy"] * spec.action_dim
    entropy = params["temperature"]["log"] * gap
    return actor + entropy, {
        "actor/loss": actor,
        "actor/entropy": -log_probs.mean(),
        "actor/temperature": temperature(params),
        "actor/temperature_loss": entropy,
    }


def update(
    networks: Networks, config: Config, spec: Spec, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, Metrics]:
    """A step of all losses at the same parameters, at two step sizes, then the target critics."""
    # Actor, temperature, either critic, multiplier.
    keys = jnp.stack([key] * 5) if config.one_draw else jax.random.split(key, 5)
    before = state
    state, metrics = descend(
        state, lambda params: critic_loss(networks, config, params, before, batch, keys[2:4]), ("critic",)
    )
    if config.lagrange:
        own = jnp.stack([keys[4]] * 2)
        state, more = descend(
            state, lambda params: multiplier_loss(networks, config, params, before, batch, own), ("multiplier",)
        )
        metrics |= more
    state, actor_metrics = descend(
        state,
        lambda params: actor_losses(networks, spec, params, before, batch, keys[:2]),
        ("actor", "temperature"),
        state.hyper["actor_learning_rate"],
    )
    state = polyak(state, {"critic": state.hyper["critic_target_rate"]})
    return state.replace(step=state.step + 1), metrics | actor_metrics


def init(
    networks: Networks, config: Config, spec: Spec, key: jax.Array, hyper: Mapping[str, Any] | None = None
) -> TrainState:
    """Returns the state before the first update."""
    values = configs.hyper(config, hyper) | {"discount": jnp.asarray(config.discount, jnp.float32)}
    state = initial_state(networks, spec, key, values)
    if not config.lagrange:
        return state
    own = {"log": jnp.ones(())}
    params, moments = {**state.params, "multiplier": own}, {**state.opt_state, "multiplier": ADAM.init(own)}
    return state.replace(params=params, opt_state=moments)


def make(config: Config, spec: Spec) -> Agent:
    """Builds the agent."""
    shape = (config.hidden_dims, nn.relu, config.critic_layer_norm, HIDDEN_INIT, FINAL_INIT)
    critic, apart = ensemble(Value)(*shape), ensemble(Value, in_axes=(None, 0))(*shape)
    networks = Networks(Policy(config.actor_hidden_dims, spec.action_dim), critic, apart)
    return Agent(
        init=partial(init, networks, config, spec),
        update=partial(update, networks, config, spec),
        policy=lambda state: {"actor": state.params["actor"]},
        act=partial(maximum_entropy.act, networks),
        needs=Needs(
            ("observations", "actions", "rewards", "masks", "next_observations", "returns", "horizons"),
            returns_discount=config.discount,
        ),
    )
