"""HIQL: hierarchical implicit Q-learning (Park et al. 2023, https://arxiv.org/abs/2307.11949), as in OGBench."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowrl import config as configs
from flowrl.agent import Agent, Needs, Spec
from flowrl.losses import awr_weight, goal_value_loss, unit_gaussian_log_prob
from flowrl.networks import (
    MLP,
    GoalRep,
    Network,
    Value,
    ensemble,
    gaussian_draw,
    length_normalize,
    represent,
    represented_value,
)
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Metrics, Mode, Params, TrainState, new_state


@dataclasses.dataclass(frozen=True)
class Config(configs.GoalValue):
    """OGBench's defaults."""

    rep_dim: int = configs.static(10, "Size of the goal representation.")
    low_actor_rep_grad: bool = configs.static(False, "Whether the low-level policy also trains the representation.")
    low_alpha: float = configs.sweepable(3.0, "Inverse temperature of the low-level policy's advantage weights.")
    high_alpha: float = configs.sweepable(3.0, "Inverse temperature of the high-level policy's advantage weights.")
    subgoal_steps: int = configs.sweepable(25, "Environment steps to a subgoal.", 1)


class Networks(NamedTuple):
    """Shared goal representation, twin values, and the means of two Gaussian policies of unit standard deviation."""

    goal_rep: Network  # [B, D], [B, G] -> [B, R]
    value: Network  # [B, D], [B, R] -> [2, B]
    low_actor: Network  # [B, D], [B, R] -> [B, A]
    high_actor: Network  # [B, D], [B, G] -> [B, R]


def low_actor_loss(
    networks: Networks, config: Config, params: Params, state: TrainState, batch: Batch
) -> tuple[jax.Array, Metrics]:
    """−E exp(α (V(s', w) − V(s, w))) log π_low(a | s, φ([s; w])) for the subgoal w (paper, eq. 7)."""
    goals = batch["low_actor_goals"]
    values = represented_value(networks, state.params, batch["observations"], goals).mean(axis=0)
    next_values = represented_value(networks, state.params, batch["next_observations"], goals).mean(axis=0)
    weights = awr_weight(next_values - values, state.hyper["low_alpha"])
    rep_params = params if config.low_actor_rep_grad else state.params
    reps = represent(networks, rep_params, batch["observations"], goals)
    means = networks.low_actor.apply(params["low_actor"], batch["observations"], reps)
    loss = -(weights * unit_gaussian_log_prob(batch["actions"], means)).mean()
    return loss, {
        "low_actor/loss": loss,
        "low_actor/weight": weights.mean(),
        "low_actor/mse": jnp.mean((means - batch["actions"]) ** 2),
    }


def high_actor_loss(networks: Networks, params: Params, state: TrainState, batch: Batch) -> tuple[jax.Array, Metrics]:
    """−E exp(α (V(w, g) − V(s, g))) log π_high(φ([s; w]) | s, g) (paper, eq. 6)."""
    goals, targets = batch["high_actor_goals"], batch["high_actor_targets"]
    values = represented_value(networks, state.params, batch["observations"], goals).mean(axis=0)
    target_values = represented_value(networks, state.params, targets, goals).mean(axis=0)
    weights = awr_weight(target_values - values, state.hyper["high_alpha"])
    target_reps = represent(networks, state.params, batch["observations"], targets)
    means = networks.high_actor.apply(params["high_actor"], batch["observations"], goals)
    loss = -(weights * unit_gaussian_log_prob(target_reps, means)).mean()
    return loss, {
        "high_actor/loss": loss,
        "high_actor/weight": weights.mean(),
        "high_actor/mse": jnp.mean((means - target_reps) ** 2),
    }


def update(
    networks: Networks, config: Config, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, Metrics]:
    """One joint step of all losses at the same parameters, then the target value."""
    del key

    def loss_fn(params: Params) -> tuple[jax.Array, Metrics]:
        value, value_metrics = goal_value_loss(partial(represented_value, networks), params, state, batch)
        low, low_metrics = low_actor_loss(networks, config, params, state, batch)
        high, high_metrics = high_actor_loss(networks, params, state, batch)
        return value + low + high, value_metrics | low_metrics | high_metrics

    moved, metrics = descend(state, loss_fn, ("goal_rep", "value", "low_actor", "high_actor"))
    toward = state.params if config.lagging_targets else moved.params
    moved = polyak(moved, {"value": state.hyper["value_target_rate"]}, toward)
    return moved.replace(step=state.step + 1), metrics


def act(
    networks: Networks, policy: Params, observations: jax.Array, goals: jax.Array, key: jax.Array, *, mode: Mode
) -> jax.Array:
    """High level proposes a subgoal's representation, low level an action; modes, or with `explore` samples."""
    high_key, low_key = jax.random.split(key)
    reps = gaussian_draw(networks.high_actor.apply(policy["high_actor"], observations, goals), high_key, mode)
    means = networks.low_actor.apply(policy["low_actor"], observations, length_normalize(reps))
    return jnp.clip(gaussian_draw(means, low_key, mode), -1.0, 1.0)


def init(
    networks: Networks, config: Config, spec: Spec, key: jax.Array, hyper: Mapping[str, Any] | None = None
) -> TrainState:
    """Returns the state before the first update."""
    rep_key, value_key, low_key, high_key = jax.random.split(key, 4)
    observations, goals = jnp.zeros((1, spec.observation_dim)), jnp.zeros((1, spec.goal_dim))
    reps = jnp.zeros((1, config.rep_dim))
    params = {
        "goal_rep": networks.goal_rep.init(rep_key, observations, goals),
        "value": networks.value.init(value_key, observations, reps),
        "low_actor": networks.low_actor.init(low_key, observations, reps),
        "high_actor": networks.high_actor.init(high_key, observations, goals),
    }
    return new_state(params, ("value",), configs.hyper(config, hyper))


def make(config: Config, spec: Spec) -> Agent:
    """Builds the agent."""
    networks = Networks(
        goal_rep=GoalRep(config.hidden_dims, config.rep_dim),
        value=ensemble(Value)(config.hidden_dims),
        low_actor=MLP(config.hidden_dims, spec.action_dim, final_scale=1e-2),
        high_actor=MLP(config.hidden_dims, config.rep_dim, final_scale=1e-2),
    )
    fields = ("observations", "actions", "next_observations", "rewards", "masks")
    goals = ("value_goals", "low_actor_goals", "high_actor_goals", "high_actor_targets")
    return Agent(
        init=partial(init, networks, config, spec),
        update=partial(update, networks, config),
        policy=lambda state: {name: state.params[name] for name in ("low_actor", "high_actor")},
        act=partial(act, networks),
        needs=Needs(fields + goals, geometric=("value_goals",)),
    )
