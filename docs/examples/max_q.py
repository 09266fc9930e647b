"""A new agent in one file: a deterministic policy that maximises Q and stays near the data, in the spirit of TD3+BC.

Copied into agents/, it is `--agent=max_q`, with flags, presets `quick` and `none`, seeds, resuming and plots.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowrl import config as configs
from flowrl import losses
from flowrl.agent import Agent, Needs, Spec
from flowrl.networks import MLP, Network, Value, ensemble
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Metrics, Mode, Params, TrainState, new_state


@dataclasses.dataclass(frozen=True)
class Config(configs.Offline):
    """Fields become flags; sweepable ones are traced scalars in `state.hyper`."""

    discount: float = configs.sweepable(0.99, "Discount per environment step.", 0, 1)
    target_rate: float = configs.sweepable(0.005, "Polyak rate of actor and critics.", 0, 1)
    alpha: float = configs.sweepable(2.5, "Weight of Q against behaviour cloning.")


class Networks(NamedTuple):
    """The policy and twin critics."""

    actor: Network  # [B, D] -> [B, A]
    critic: Network  # [B, D], [B, A] -> [2, B]


def loss(networks: Networks, params: Params, state: TrainState, batch: Batch) -> tuple[jax.Array, Metrics]:
    """TD error plus behaviour cloning minus normalised Q, each with gradients for its own network only."""
    observations, next_observations = batch["observations"], batch["next_observations"]
    next_actions = jnp.tanh(networks.actor.apply(state.target_params["actor"], next_observations))
    next_values = networks.critic.apply(state.target_params["critic"], next_observations, next_actions)
    critic_loss, metrics = losses.critic_loss(networks.critic, params, state, batch, next_values.min(axis=0))
    actions = jnp.tanh(networks.actor.apply(params["actor"], observations))
    values = networks.critic.apply(state.params["critic"], observations, actions)  # constants, not `params`
    bc_loss = jnp.mean((actions - batch["actions"]) ** 2)
    actor_loss = bc_loss + state.hyper["alpha"] * losses.normalized_q_loss(values, values)
    return critic_loss + actor_loss, metrics | {"actor/loss": actor_loss, "actor/bc_loss": bc_loss}


def update(networks: Networks, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
    """One joint step, then the targets."""
    del key
    state, metrics = descend(state, lambda params: loss(networks, params, state, batch), ("actor", "critic"))
    state = polyak(state, dict.fromkeys(("actor", "critic"), state.hyper["target_rate"]))
    return state.replace(step=state.step + 1), metrics


def act(
    networks: Networks, policy: Params, observations: jax.Array, goals: jax.Array, key: jax.Array, *, mode: Mode
) -> jax.Array:
    """The policy's action."""
    del goals, key, mode
    return jnp.tanh(networks.actor.apply(policy["actor"], observations))


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
    networks = Networks(MLP(config.hidden_dims, spec.action_dim), ensemble(Value)(config.hidden_dims))
    return Agent(
        init=partial(init, networks, config, spec),
        update=partial(update, networks),
        policy=lambda state: {"actor": state.params["actor"]},
        act=partial(act, networks),
        needs=Needs(("observations", "actions", "rewards", "masks", "next_observations")),
    )
