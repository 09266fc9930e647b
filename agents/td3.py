"""TD3: deterministic policy gradients with twin critics and delayed policy updates (https://arxiv.org/abs/1802.09477).

DDPG (https://arxiv.org/abs/1509.02971) is its setting `critics=1, policy_delay=1, target_noise=0`.
"""

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
from flowrl.networks import MLP, Network, Value, ensemble
from flowrl.optim import descend, every, polyak
from flowrl.train_state import Batch, Metrics, Mode, Params, TrainState, new_state


@dataclasses.dataclass(frozen=True)
class Config(configs.Online):
    """The settings of the authors' code."""

    critics: int = configs.static(2, "Number of critics; the target takes their minimum.")
    policy_delay: int = configs.static(2, "Updates of the critics for each one of the policy and the targets.")
    target_noise: float = configs.sweepable(0.2, "Deviation of the noise in the target's action.")
    noise_clip: float = configs.sweepable(0.5, "Bound of that noise.")
    explore_noise: float = configs.sweepable(0.1, "Deviation of the noise in actions that gather experience.")


class Networks(NamedTuple):
    """The policy before tanh, and the critics."""

    actor: Network  # [B, D] -> [B, A]
    critic: Network  # [B, D], [B, A] -> [C, B]


def actions_of(networks: Networks, actor_params: Any, observations: jax.Array) -> jax.Array:
    """The policy's actions: `[..., D]` to `[..., A]` in [−1, 1]."""
    return jnp.tanh(networks.actor.apply(actor_params, observations))


def critic_loss(
    networks: Networks, params: Params, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """TD error against r + γ m min Q̄(s', clip(π̄(s') + clip(noise))) (algorithm 1)."""
    hyper, targets = state.hyper, state.target_params
    noise = hyper["target_noise"] * jax.random.normal(key, batch["actions"].shape)
    noise = jnp.clip(noise, -hyper["noise_clip"], hyper["noise_clip"])
    next_actions = jnp.clip(actions_of(networks, targets["actor"], batch["next_observations"]) + noise, -1.0, 1.0)
    next_values = networks.critic.apply(targets["critic"], batch["next_observations"], next_actions)
    return losses.critic_loss(networks.critic, params, state, batch, next_values.min(axis=0))


def actor_loss(networks: Networks, params: Params, state: TrainState, batch: Batch) -> tuple[jax.Array, Metrics]:
    """−E Q₁(s, π(s)), with constant critics."""
    actions = actions_of(networks, params["actor"], batch["observations"])
    loss = -networks.critic.apply(state.params["critic"], batch["observations"], actions)[0].mean()
    return loss, {"actor/loss": loss}


def update(
    networks: Networks, config: Config, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, Metrics]:
    """A step of the critics; at some updates also one of the policy on the moved critics, and of the targets."""
    state, critic_metrics = descend(state, lambda params: critic_loss(networks, params, state, batch, key), ("critic",))

    def delayed(moved: TrainState) -> tuple[TrainState, Metrics]:
        after, metrics = descend(moved, lambda params: actor_loss(networks, params, moved, batch), ("actor",))
        rate = after.hyper["critic_target_rate"]
        return polyak(after, {"critic": rate, "actor": rate}), metrics

    state, actor_metrics = every(config.policy_delay, state, delayed)
    return state.replace(step=state.step + 1), critic_metrics | actor_metrics


def act(
    networks: Networks, policy: Params, observations: jax.Array, goals: jax.Array, key: jax.Array, *, mode: Mode
) -> jax.Array:
    """The policy's action, with `explore` plus clipped Gaussian noise."""
    del goals
    actions = actions_of(networks, policy["actor"], observations)
    if mode != "explore":
        return actions
    return jnp.clip(actions + policy["noise"] * jax.random.normal(key, actions.shape), -1.0, 1.0)


def init(
    networks: Networks, config: Config, spec: Spec, key: jax.Array, hyper: Mapping[str, Any] | None = None
) -> TrainState:
    """Returns the state before the first update."""
    actor_key, critic_key = jax.random.split(key)
    observations, actions = jnp.zeros((1, spec.observation_dim)), jnp.zeros((1, spec.action_dim))
    params = {
        "actor": networks.actor.init(actor_key, observations),
        "critic": networks.critic.init(critic_key, observations, actions),
    }
    return new_state(params, ("actor", "critic"), configs.hyper(config, hyper))


def make(config: Config, spec: Spec) -> Agent:
    """Builds the agent."""
    critic = ensemble(Value, config.critics)(
        config.hidden_dims, activation=nn.relu, layer_norm=config.critic_layer_norm
    )
    networks = Networks(MLP(config.hidden_dims, spec.action_dim, activation=nn.relu, final_scale=1e-2), critic)
    return Agent(
        init=partial(init, networks, config, spec),
        update=partial(update, networks, config),
        policy=lambda state: {"actor": state.params["actor"], "noise": state.hyper["explore_noise"]},
        act=partial(act, networks),
        needs=Needs(("observations", "actions", "rewards", "masks", "next_observations")),
    )
