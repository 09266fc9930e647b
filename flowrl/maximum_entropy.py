"""Maximum-entropy actor-critic parts that agents share (SAC, https://arxiv.org/abs/1812.05905)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowrl import config as configs
from flowrl import losses
from flowrl.agent import Spec
from flowrl.gaussian import draw, squash
from flowrl.losses import temperature
from flowrl.networks import Network
from flowrl.train_state import Batch, Hyper, Metrics, Mode, Params, TrainState, new_state


@dataclasses.dataclass(frozen=True)
class Config(configs.Online):
    """Settings of agents with a squashed Gaussian and a temperature that is learnt."""

    target_entropy: float = configs.sweepable(
        -1.0, "Entropy that the temperature aims at, per dimension of actions.", low=float("-inf")
    )
    initial_temperature: float = configs.sweepable(1.0, "Temperature before the first update.", 1e-8)


class Networks(NamedTuple):
    """The actor and twin critics, at the same actions or, where an agent asks for that, each at its own."""

    actor: Network  # [B, D] -> ([B, A], [B, A])
    critic: Network  # [B, D], [B, A] -> [2, B]
    apart: Network = None  # [B, D], [2, B, A] -> [2, B], with the same parameters


def sample_actions(
    networks: Networks, actor_params: Any, observations: jax.Array, key: jax.Array, sizes: tuple[int, ...] = ()
) -> tuple[jax.Array, jax.Array]:
    """Draws actions `[*sizes, B, A]` in `observations` `[B, D]`, with their log densities `[*sizes, B]`."""
    means, log_stds = networks.actor.apply(actor_params, observations)
    return squash(means, log_stds, jax.random.normal(key, (*sizes, *means.shape)))


def actor_loss(
    networks: Networks, spec: Spec, params: Params, state: TrainState, batch: Batch, key: jax.Array, q_agg: str = "min"
) -> tuple[jax.Array, Metrics]:
    """E[α log π(a | s) − min Q(s, a)] (eq. 9), and for α: E[−α log π(a | s) − α H̄] (eq. 18); or with Q's mean."""
    actions, log_probs = sample_actions(networks, params["actor"], batch["observations"], key)
    values = networks.critic.apply(state.params["critic"], batch["observations"], actions)
    actor = jnp.mean(temperature(state.params) * log_probs - losses.aggregate(values, q_agg))
    target_entropy = state.hyper["target_entropy"] * spec.action_dim
    entropy_gap = jax.lax.stop_gradient(-log_probs.mean() - target_entropy)
    return actor + temperature(params) * entropy_gap, {
        "actor/loss": actor,
        "actor/entropy": -log_probs.mean(),
        "actor/temperature": temperature(params),
    }


def act(
    networks: Networks, policy: Params, observations: jax.Array, goals: jax.Array, key: jax.Array, *, mode: Mode
) -> jax.Array:
    """The policy's mode, or with `explore` a sample."""
    del goals
    means, log_stds = networks.actor.apply(policy["actor"], observations)
    return draw(means, log_stds, key, mode)


def initial_state(networks: Networks, spec: Spec, key: jax.Array, values: Hyper) -> TrainState:
    """Returns the state before the first update, with hyperparameters `values`."""
    actor_key, critic_key = jax.random.split(key)
    observations, actions = jnp.zeros((1, spec.observation_dim)), jnp.zeros((1, spec.action_dim))
    params = {
        "actor": networks.actor.init(actor_key, observations),
        "critic": networks.critic.init(critic_key, observations, actions),
        "temperature": {"log": jnp.log(values["initial_temperature"])},
    }
    return new_state(params, ("critic",), values)
