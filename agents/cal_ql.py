"""Cal-QL: conservative Q-learning that never sinks below observed returns (https://arxiv.org/abs/2303.05479)."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl import config as configs
from flowrl import losses, maximum_entropy
from flowrl.agent import Agent, Needs, Spec
from flowrl.gaussian import SquashedGaussian
from flowrl.maximum_entropy import Networks, actor_loss, initial_state, sample_actions
from flowrl.networks import Network, Value, ensemble
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Metrics, Params, TrainState


@dataclasses.dataclass(frozen=True)
class Config(maximum_entropy.Config):
    """The settings of the authors' code for AntMaze, with a fixed weight of the conservative term."""

    hidden_dims: tuple[int, ...] = configs.static((256, 256, 256, 256), "Hidden layers of the critics.")
    actor_hidden_dims: tuple[int, ...] = configs.static((256, 256), "Hidden layers of the policy.")
    learning_rate: float = configs.sweepable(3e-4, "Adam's step size, for the critics.")
    actor_learning_rate: float = configs.sweepable(1e-4, "Adam's step size, for the policy and the temperature.")
    # Static, because the returns in the data are computed with it before training. At 1 those of an endless episode
    # would be infinite.
    discount: float = configs.static(0.99, "Discount per environment step.", low=0.0, high=0.99999)
    conservative_weight: float = configs.sweepable(5.0, "Weight of the conservative term beside the TD error.")
    proposals: int = configs.static(10, "Actions of each kind in the conservative term, and in the target's maximum.")
    max_target_backup: bool = configs.static(
        True, "The target takes the best of `proposals` next actions by the smaller slow critic, instead of one action."
    )


def values_of(critic: Network, critic_params: Any, observations: jax.Array, actions: jax.Array) -> jax.Array:
    """Q of N actions in each state: `[B, D]` and `[N, B, A]` to `[2, N, B]`."""
    return jax.vmap(partial(critic.apply, critic_params, observations), out_axes=1)(actions)


def conservative_gap(
    proposal_values: jax.Array, log_densities: jax.Array, data_values: jax.Array, returns: jax.Array, uniform: int
) -> jax.Array:
    """How far a soft maximum of Q over proposed actions lies above Q of the data's actions (eq. 5.1).

    That is log Σ exp(Q(s, aₙ) − log p(aₙ)) − Q(s, a). Q of the policy's actions counts as max(Q, G), so that none is
    pushed below a return that was observed; where G is −∞ this is CQL (https://arxiv.org/abs/2006.04779).

    Args:
        proposal_values: Q(s, aₙ) `[2, N, B]`, those of uniform actions first.
        log_densities: log p(aₙ) `[N, B]`.
        data_values: Q(s, a) `[2, B]`.
        returns: G, the return from the data's row on `[B]`.
        uniform: How many of the N actions are uniform.

    Returns:
        `[2, B]`.
    """
    calibrated = jnp.maximum(proposal_values[:, uniform:], returns)
    values = jnp.concatenate([proposal_values[:, :uniform], calibrated], axis=1)
    return jax.nn.logsumexp(values - log_densities, axis=1) - data_values


def conservative_loss(
    networks: Networks, config: Config, params: Params, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Mean gap over critics and batch, with uniform actions and those of the policy in s and in s'.

    Actions and densities are of `state.params`, so that only the critics receive gradients.
    """
    observations, actions = batch["observations"], batch["actions"]
    uniform_key, next_key, now_key = jax.random.split(key, 3)
    uniform = jax.random.uniform(uniform_key, (config.proposals, *actions.shape), minval=-1.0, maxval=1.0)
    log_uniform = jnp.full(uniform.shape[:-1], -actions.shape[-1] * jnp.log(2.0))
    sizes, actor = (config.proposals,), state.params["actor"]
    after, log_after = sample_actions(networks, actor, batch["next_observations"], next_key, sizes)
    now, log_now = sample_actions(networks, actor, observations, now_key, sizes)

    proposals = jnp.concatenate([uniform, after, now])
    proposal_values = values_of(networks.critic, params["critic"], observations, proposals)
    data_values = networks.critic.apply(params["critic"], observations, actions)
    log_densities = jnp.concatenate([log_uniform, log_after, log_now])
    gap = conservative_gap(proposal_values, log_densities, data_values, batch["returns"], config.proposals)
    policy_values = proposal_values[:, config.proposals :]
    return gap.mean(), {
        "critic/gap": gap.mean(),
        "critic/q_policy": policy_values.mean(),
        "critic/calibrated": jnp.mean(policy_values < batch["returns"], dtype=jnp.float32),
    }


def critic_loss(
    networks: Networks, config: Config, params: Params, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """TD error against r + γ m max min Q̄(s', a'), without entropy, plus the weighted conservative term."""
    target_key, gap_key = jax.random.split(key)
    next_observations, sizes = batch["next_observations"], (config.proposals if config.max_target_backup else 1,)
    next_actions, _ = sample_actions(networks, state.params["actor"], next_observations, target_key, sizes)
    next_values = values_of(networks.critic, state.target_params["critic"], next_observations, next_actions)
    best = next_values.min(axis=0).max(axis=0)
    td_loss, metrics = losses.critic_loss(networks.critic, params, state, batch, best)
    gap, gap_metrics = conservative_loss(networks, config, params, state, batch, gap_key)
    loss = td_loss + state.hyper["conservative_weight"] * gap
    return loss, metrics | gap_metrics | {"critic/loss": loss, "critic/td_loss": td_loss}


def update(
    networks: Networks, config: Config, spec: Spec, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, Metrics]:
    """A step of all losses at the same parameters, at two step sizes, then the target critics."""
    critic_key, actor_key = jax.random.split(key)
    before = state
    state, critic_metrics = descend(
        state, lambda params: critic_loss(networks, config, params, before, batch, critic_key), ("critic",)
    )
    state, actor_metrics = descend(
        state,
        lambda params: actor_loss(networks, spec, params, before, batch, actor_key),
        ("actor", "temperature"),
        state.hyper["actor_learning_rate"],
    )
    state = polyak(state, {"critic": state.hyper["critic_target_rate"]})
    return state.replace(step=state.step + 1), critic_metrics | actor_metrics


def init(
    networks: Networks, config: Config, spec: Spec, key: jax.Array, hyper: Mapping[str, Any] | None = None
) -> TrainState:
    """Returns the state before the first update."""
    values = configs.hyper(config, hyper) | {"discount": jnp.asarray(config.discount, jnp.float32)}
    return initial_state(networks, spec, key, values)


def make(config: Config, spec: Spec) -> Agent:
    """Builds the agent."""
    critic = ensemble(Value)(config.hidden_dims, activation=nn.relu, layer_norm=config.critic_layer_norm)
    networks = Networks(SquashedGaussian(config.actor_hidden_dims, spec.action_dim), critic)
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
