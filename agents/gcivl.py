"""GCIVL: goal-conditioned implicit V-learning (IQL without Q, https://arxiv.org/abs/2110.06169), as in OGBench."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowrl import config as configs
from flowrl.agent import Agent, Needs, Spec
from flowrl.losses import awr_weight, goal_value_loss, unit_gaussian_log_prob
from flowrl.networks import MLP, Network, Value, ensemble, gaussian_draw
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Metrics, Mode, Params, TrainState, new_state


@dataclasses.dataclass(frozen=True)
class Config(configs.GoalValue):
    """OGBench's defaults."""

    expectile: float = configs.sweepable(0.9, "Expectile of the value loss; 0.5 is the mean.", 0, 1)
    alpha: float = configs.sweepable(10.0, "Inverse temperature of the policy's advantage weights.")


class Networks(NamedTuple):
    """Twin values, and the mean of a Gaussian policy of unit standard deviation."""

    value: Network  # [B, D], [B, G] -> [2, B]
    actor: Network  # [B, D], [B, G] -> [B, A]


def v(networks: Networks, params: Params, observations: jax.Array, goals: jax.Array) -> jax.Array:
    """Returns the twin values V(s, g) `[2, B]`."""
    return networks.value.apply(params["value"], observations, goals)


def actor_loss(networks: Networks, params: Params, state: TrainState, batch: Batch) -> tuple[jax.Array, Metrics]:
    """Advantage-weighted regression: −E min(exp(α (V(s', g) − V(s, g))), 100) log π(a | s, g)."""
    goals = batch["actor_goals"]
    values = v(networks, state.params, batch["observations"], goals).mean(axis=0)
    next_values = v(networks, state.params, batch["next_observations"], goals).mean(axis=0)
    weights = awr_weight(next_values - values, state.hyper["alpha"])
    means = networks.actor.apply(params["actor"], batch["observations"], goals)
    loss = -(weights * unit_gaussian_log_prob(batch["actions"], means)).mean()
    return loss, {
        "actor/loss": loss,
        "actor/weight": weights.mean(),
        "actor/mse": jnp.mean((means - batch["actions"]) ** 2),
    }


def update(
    networks: Networks, config: Config, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, Metrics]:
    """One joint step of value and actor at the same parameters, then the target value."""
    del key

    def loss_fn(params: Params) -> tuple[jax.Array, Metrics]:
        value_loss, value_metrics = goal_value_loss(partial(v, networks), params, state, batch)
        policy_loss, policy_metrics = actor_loss(networks, params, state, batch)
        return value_loss + policy_loss, value_metrics | policy_metrics

    moved, metrics = descend(state, loss_fn, ("value", "actor"))
    toward = state.params if config.lagging_targets else moved.params
    moved = polyak(moved, {"value": state.hyper["value_target_rate"]}, toward)
    return moved.replace(step=state.step + 1), metrics


def act(
    networks: Networks, policy: Params, observations: jax.Array, goals: jax.Array, key: jax.Array, *, mode: Mode
) -> jax.Array:
    """The Gaussian's mode, or with `explore` a sample; clipped to [−1, 1]."""
    return jnp.clip(gaussian_draw(networks.actor.apply(policy["actor"], observations, goals), key, mode), -1.0, 1.0)


def init(
    networks: Networks, config: Config, spec: Spec, key: jax.Array, hyper: Mapping[str, Any] | None = None
) -> TrainState:
    """Returns the state before the first update."""
    value_key, actor_key = jax.random.split(key)
    inputs = jnp.zeros((1, spec.observation_dim)), jnp.zeros((1, spec.goal_dim))
    params = {"value": networks.value.init(value_key, *inputs), "actor": networks.actor.init(actor_key, *inputs)}
    return new_state(params, ("value",), configs.hyper(config, hyper))


def make(config: Config, spec: Spec) -> Agent:
    """Builds the agent."""
    networks = Networks(
        value=ensemble(Value)(config.hidden_dims),
        actor=MLP(config.hidden_dims, spec.action_dim, final_scale=1e-2),
    )
    return Agent(
        init=partial(init, networks, config, spec),
        update=partial(update, networks, config),
        policy=lambda state: {"actor": state.params["actor"]},
        act=partial(act, networks),
        needs=Needs(
            ("observations", "actions", "next_observations", "rewards", "masks", "value_goals", "actor_goals"),
            geometric=("value_goals",),
        ),
    )
