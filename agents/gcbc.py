"""GCBC: goal-conditioned behaviour cloning (Ghosh et al., https://arxiv.org/abs/1912.06088), as in OGBench."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowrl import config as configs
from flowrl.agent import Agent, Needs, Spec
from flowrl.losses import unit_gaussian_log_prob
from flowrl.networks import MLP, Network, gaussian_draw
from flowrl.optim import descend
from flowrl.train_state import Batch, Metrics, Mode, Params, TrainState, new_state


@dataclasses.dataclass(frozen=True)
class Config(configs.GoalConditioned):
    """OGBench's defaults."""


class Networks(NamedTuple):
    """The mean of a Gaussian policy of unit standard deviation."""

    actor: Network  # [B, D], [B, G] -> [B, A]


def actor_loss(networks: Networks, params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
    """−E log π(a | s, g)."""
    means = networks.actor.apply(params["actor"], batch["observations"], batch["actor_goals"])
    loss = -unit_gaussian_log_prob(batch["actions"], means).mean()
    return loss, {"actor/loss": loss, "actor/mse": jnp.mean((means - batch["actions"]) ** 2)}


def update(networks: Networks, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
    """One gradient step."""
    del key
    state, metrics = descend(state, lambda params: actor_loss(networks, params, batch), ("actor",))
    return state.replace(step=state.step + 1), metrics


def act(
    networks: Networks, policy: Params, observations: jax.Array, goals: jax.Array, key: jax.Array, *, mode: Mode
) -> jax.Array:
    """The Gaussian's mode, or with `explore` a sample; clipped to [−1, 1]."""
    return jnp.clip(gaussian_draw(networks.actor.apply(policy["actor"], observations, goals), key, mode), -1.0, 1.0)


def init(
    networks: Networks, config: Config, spec: Spec, key: jax.Array, hyper: Mapping[str, Any] | None = None
) -> TrainState:
    """Returns the state before the first update."""
    params = {"actor": networks.actor.init(key, jnp.zeros((1, spec.observation_dim)), jnp.zeros((1, spec.goal_dim)))}
    return new_state(params, (), configs.hyper(config, hyper))


def make(config: Config, spec: Spec) -> Agent:
    """Builds the agent."""
    networks = Networks(MLP(config.hidden_dims, spec.action_dim, final_scale=1e-2))
    return Agent(
        init=partial(init, networks, config, spec),
        update=partial(update, networks),
        policy=lambda state: {"actor": state.params["actor"]},
        act=partial(act, networks),
        needs=Needs(("observations", "actions", "actor_goals")),
    )
