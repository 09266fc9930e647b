"""SAC: off-policy maximum-entropy learning with a squashed Gaussian (https://arxiv.org/abs/1812.05905)."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl import config as configs
from flowrl import losses
from flowrl.agent import Agent, Needs, Spec
from flowrl.gaussian import SquashedGaussian, draw, squash
from flowrl.losses import temperature
from flowrl.networks import Network, Value, ensemble
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Metrics, Mode, Params, TrainState, new_state


@dataclasses.dataclass(frozen=True)
class Config(configs.Online):
    """The paper's settings."""

    target_entropy: float = configs.sweepable(
        -1.0, "Entropy that the temperature aims at, per dimension of actions.", low=float("-inf")
    )
    initial_temperature: float = configs.sweepable(1.0, "Temperature before the first update.", 1e-8)


class Networks(NamedTuple):
    """The actor and twin critics."""

    actor: Network  # [B, D] -> ([B, A], [B, A])
    critic: Network  # [B, D], [B, A] -> [2, B]


def sample_actions(
    networks: Networks, actor_params: Any, observations: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draws actions `[B, A]` with their log densities `[B]`."""
    means, log_stds = networks.actor.apply(actor_params, observations)
    return squash(means, log_stds, jax.random.normal(key, means.shape))


def critic_loss(
    networks: Networks, params: Params, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """TD error against r + γ m (min Q̄(s', a') − α log π(a' | s')), a' from the current policy (eq. 5 and 7)."""
    next_actions, log_probs = sample_actions(networks, state.params["actor"], batch["next_observations"], key)
    next_values = networks.critic.apply(state.target_params["critic"], batch["next_observations"], next_actions)
    soft_values = next_values.min(axis=0) - temperature(state.params) * log_probs
    return losses.critic_loss(networks.critic, params, state, batch, soft_values)


def actor_loss(
    networks: Networks, spec: Spec, params: Params, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """E[α log π(a | s) − min Q(s, a)] (eq. 9), and for α: E[−α log π(a | s) − α H̄] (eq. 18)."""
    actions, log_probs = sample_actions(networks, params["actor"], batch["observations"], key)
    values = networks.critic.apply(state.params["critic"], batch["observations"], actions).min(axis=0)
    actor = jnp.mean(temperature(state.params) * log_probs - values)
    target_entropy = state.hyper["target_entropy"] * spec.action_dim
    entropy_gap = jax.lax.stop_gradient(-log_probs.mean() - target_entropy)
    return actor + temperature(params) * entropy_gap, {
        "actor/loss": actor,
        "actor/entropy": -log_probs.mean(),
        "actor/temperature": temperature(params),
    }


def update(
    networks: Networks, spec: Spec, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, Metrics]:
    """One joint step of all losses at the same parameters, then the target critics."""
    critic_key, actor_key = jax.random.split(key)

    def loss_fn(params: Params) -> tuple[jax.Array, Metrics]:
        critic, critic_metrics = critic_loss(networks, params, state, batch, critic_key)
        actor, actor_metrics = actor_loss(networks, spec, params, state, batch, actor_key)
        return critic + actor, critic_metrics | actor_metrics

    state, metrics = descend(state, loss_fn, ("actor", "critic", "temperature"))
    state = polyak(state, {"critic": state.hyper["critic_target_rate"]})
    return state.replace(step=state.step + 1), metrics


def act(
    networks: Networks, policy: Params, observations: jax.Array, goals: jax.Array, key: jax.Array, *, mode: Mode
) -> jax.Array:
    """The policy's mode, or with `explore` a sample."""
    del goals
    means, log_stds = networks.actor.apply(policy["actor"], observations)
    return draw(means, log_stds, key, mode)


def init(
    networks: Networks, config: Config, spec: Spec, key: jax.Array, hyper: Mapping[str, Any] | None = None
) -> TrainState:
    """Returns the state before the first update."""
    actor_key, critic_key = jax.random.split(key)
    observations, actions = jnp.zeros((1, spec.observation_dim)), jnp.zeros((1, spec.action_dim))
    values = configs.hyper(config, hyper)
    params = {
        "actor": networks.actor.init(actor_key, observations),
        "critic": networks.critic.init(critic_key, observations, actions),
        "temperature": {"log": jnp.log(values["initial_temperature"])},
    }
    return new_state(params, ("critic",), values)


def make(config: Config, spec: Spec) -> Agent:
    """Builds the agent."""
    critic = ensemble(Value)(config.hidden_dims, activation=nn.relu, layer_norm=config.critic_layer_norm)
    networks = Networks(SquashedGaussian(config.hidden_dims, spec.action_dim), critic)
    return Agent(
        init=partial(init, networks, config, spec),
        update=partial(update, networks, spec),
        policy=lambda state: {"actor": state.params["actor"]},
        act=partial(act, networks),
        needs=Needs(("observations", "actions", "rewards", "masks", "next_observations")),
    )
