"""GC-SSCP: one flat goal-conditioned policy that skips the hierarchy in one step (https://arxiv.org/abs/2506.21427).

One actor jumps down a two-level hierarchy. The level `t` says where a jump starts (0: at the goal, 1: at a subgoal),
the depth `d` how many levels it takes (1 or 2). From noise it predicts an action and the goal representation one hop
below. Jumps of depth 1 are regressed on data; the jump of depth 2 from the goal is regressed on two hops of the slow
actor, and is what acts.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl import config as configs
from flowrl.agent import Agent, Needs, Spec
from flowrl.losses import awr_weight, goal_value_loss, mse
from flowrl.networks import (
    MLP,
    GoalRep,
    Network,
    TimePairEmbedding,
    Value,
    ensemble,
    length_normalize,
    mish,
    represent,
    represented_value,
)
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Metrics, Mode, Params, TrainState, new_state


@dataclasses.dataclass(frozen=True)
class Config(configs.GoalValue):
    """The settings of the released code."""

    rep_dim: int = configs.static(10, "Size of the goal representation.")
    hops: int = configs.static(1, "Calls of the actor per action: 1 is the shortcut, 2 goes by a subgoal.", (1, 2))
    low_alpha: float = configs.sweepable(5.0, "Inverse temperature of the advantage weights at the subgoal.")
    high_alpha: float = configs.sweepable(5.0, "Inverse temperature of the advantage weights at the goal.")
    actor_target_rate: float = configs.sweepable(0.001, "Polyak rate of the acting copy of the actor.", 0, 1)
    subgoal_steps: int = configs.sweepable(25, "Environment steps to a subgoal.", 1)
    time_dim: int = configs.static(128, "Size of the embedding of levels and depths.")


class Pair(NamedTuple):
    """An action `[B, A]` and a goal representation `[B, R]`: the actor's noise, its prediction or their target."""

    actions: jax.Array
    reps: jax.Array


class Actor(nn.Module):
    """f(s, ψ, x_a, x_φ, t, d): from noise, the action and the goal representation `d` levels below level `t`."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    rep_dim: int
    time_dim: int = 128

    @nn.compact
    def __call__(self, observations: jax.Array, goal_reps: jax.Array, noise: Pair, t: int, d: int) -> Pair:
        """Maps `[..., D]`, `[..., R]` and noise to a prediction; `t` and `d` are the same for all rows."""
        jump = TimePairEmbedding(layer_norm=True, size=self.time_dim)(*(jnp.full((1,), x, float) for x in (t, d)))
        out = MLP(self.hidden_dims, self.action_dim + self.rep_dim, activation=mish, layer_norm=True)(
            observations, goal_reps, *noise, jump
        )
        return Pair(noise.actions + out[..., : self.action_dim], noise.reps + out[..., self.action_dim :])


class Networks(NamedTuple):
    """Shared goal representation, twin values and the actor."""

    goal_rep: Network  # [B, D], [B, G] -> [B, R]
    value: Network  # [B, D], [B, R] -> [2, B]
    actor: Network  # Actor


def bounded(pair: Pair) -> Pair:
    """Clips actions to [−1, 1] and scales representations to length √R."""
    return Pair(jnp.clip(pair.actions, -1.0, 1.0), length_normalize(pair.reps))


def draw_noise(key: jax.Array, like: Pair) -> Pair:
    """Returns unit Gaussian noise of the shapes of `like`."""
    action_key, rep_key = jax.random.split(key)
    return Pair(jax.random.normal(action_key, like.actions.shape), jax.random.normal(rep_key, like.reps.shape))


def two_hops(
    networks: Networks, actor_params: Any, observations: jax.Array, goal_reps: jax.Array, noises: tuple[Pair, Pair]
) -> Pair:
    """Goes from the goal to a subgoal and from there to an action, each hop from its own noise; bounded."""
    subgoal = networks.actor.apply(actor_params, observations, goal_reps, noises[0], 0, 1)
    return bounded(networks.actor.apply(actor_params, observations, bounded(subgoal).reps, noises[1], 1, 1))


def low_loss(
    networks: Networks, params: Params, state: TrainState, batch: Batch, noise: Pair
) -> tuple[jax.Array, Metrics]:
    """A hop (t=1, d=1) from the subgoal w to the action and φ([s; s']), weighted by V(s', w) − V(s, w)."""
    observations, next_observations, subgoals = (
        batch[name] for name in ("observations", "next_observations", "low_actor_goals")
    )
    values = represented_value(networks, state.params, observations, subgoals).mean(axis=0)
    next_values = represented_value(networks, state.params, next_observations, subgoals).mean(axis=0)
    weights = awr_weight(next_values - values, state.hyper["low_alpha"])
    subgoal_reps = represent(networks, state.params, observations, subgoals)
    target_reps = represent(networks, state.params, observations, next_observations)
    hop = networks.actor.apply(params["actor"], observations, subgoal_reps, noise, 1, 1)
    action_errors = mse(hop.actions, batch["actions"])
    loss = (weights * (action_errors + mse(hop.reps, target_reps))).mean()
    return loss, {"low/loss": loss, "low/weight": weights.mean(), "low/action_mse": action_errors.mean()}


def high_loss(
    networks: Networks, params: Params, state: TrainState, batch: Batch, noise: Pair
) -> tuple[jax.Array, Metrics]:
    """A hop (t=0, d=1) from the goal g to the action and φ([s; w]), weighted by V(w, g) − V(s, g)."""
    observations, goals, targets = (batch[name] for name in ("observations", "high_actor_goals", "high_actor_targets"))
    values = represented_value(networks, state.params, observations, goals).mean(axis=0)
    target_values = represented_value(networks, state.params, targets, goals).mean(axis=0)
    weights = awr_weight(target_values - values, state.hyper["high_alpha"])
    target_reps = represent(networks, state.params, observations, targets)
    hop = networks.actor.apply(
        params["actor"], observations, represent(networks, params, observations, goals), noise, 0, 1
    )
    rep_errors = mse(hop.reps, target_reps)
    loss = (weights * (mse(hop.actions, batch["actions"]) + rep_errors)).mean()
    return loss, {"high/loss": loss, "high/weight": weights.mean(), "high/rep_mse": rep_errors.mean()}


def shortcut_loss(
    networks: Networks, params: Params, state: TrainState, batch: Batch, noises: tuple[Pair, Pair]
) -> tuple[jax.Array, Metrics]:
    """The jump (t=0, d=2) from the first hop's noise, regressed on two hops of the slow actor."""
    observations, goals = batch["observations"], batch["high_actor_goals"]
    constant_reps = represent(networks, state.params, observations, goals)
    target = two_hops(networks, state.target_params["actor"], observations, constant_reps, noises)
    goal_reps = represent(networks, params, observations, goals)
    jump = bounded(networks.actor.apply(params["actor"], observations, goal_reps, noises[0], 0, 2))
    action_errors = mse(jump.actions, target.actions)
    loss = (action_errors + mse(jump.reps, target.reps)).mean()
    return loss, {"shortcut/loss": loss, "shortcut/action_mse": action_errors.mean()}


def update(
    networks: Networks, config: Config, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, Metrics]:
    """One joint step of all losses at the same parameters, then the target value and the slow actor."""
    like = Pair(batch["actions"], jnp.zeros((len(batch["actions"]), networks.actor.rep_dim)))
    hop_noise, first_noise, second_noise = (draw_noise(k, like) for k in jax.random.split(key, 3))

    def loss_fn(params: Params) -> tuple[jax.Array, Metrics]:
        value, value_metrics = goal_value_loss(partial(represented_value, networks), params, state, batch)
        low, low_metrics = low_loss(networks, params, state, batch, hop_noise)
        high, high_metrics = high_loss(networks, params, state, batch, hop_noise)
        shortcut, shortcut_metrics = shortcut_loss(networks, params, state, batch, (first_noise, second_noise))
        metrics = value_metrics | low_metrics | high_metrics | shortcut_metrics
        return value + low + high + shortcut, metrics

    moved, metrics = descend(state, loss_fn, ("goal_rep", "value", "actor"))
    rates = {"value": state.hyper["value_target_rate"], "actor": state.hyper["actor_target_rate"]}
    moved = polyak(moved, rates, state.params if config.lagging_targets else moved.params)
    return moved.replace(step=state.step + 1), metrics


def act(
    networks: Networks,
    config: Config,
    policy: Params,
    observations: jax.Array,
    goals: jax.Array,
    key: jax.Array,
    *,
    mode: Mode,
) -> jax.Array:
    """One draw of noise, in one jump of the slow actor or (`hops=2`) by the subgoal; both modes alike."""
    del mode  # exploration is the policy's own noise
    goal_reps = represent(networks, policy, observations, goals)
    like = Pair(jnp.zeros((*observations.shape[:-1], networks.actor.action_dim)), goal_reps)
    first_key, second_key = jax.random.split(key)
    noise = draw_noise(first_key, like)
    if config.hops == 2:
        noises = noise, draw_noise(second_key, like)
        return two_hops(networks, policy["actor"], observations, goal_reps, noises).actions
    return bounded(networks.actor.apply(policy["actor"], observations, goal_reps, noise, 0, 2)).actions


def policy(config: Config, state: TrainState) -> dict[str, Any]:
    """What acting needs: the shortcut is the slow actor's, two hops are the trained one's, as in the authors' code."""
    actors = state.params if config.hops == 2 else state.target_params
    return {"goal_rep": state.params["goal_rep"], "actor": actors["actor"]}


def init(
    networks: Networks, config: Config, spec: Spec, key: jax.Array, hyper: Mapping[str, Any] | None = None
) -> TrainState:
    """Returns the state before the first update."""
    rep_key, value_key, actor_key = jax.random.split(key, 3)
    observations, reps = jnp.zeros((1, spec.observation_dim)), jnp.zeros((1, config.rep_dim))
    noise = Pair(jnp.zeros((1, spec.action_dim)), reps)
    params = {
        "goal_rep": networks.goal_rep.init(rep_key, observations, jnp.zeros((1, spec.goal_dim))),
        "value": networks.value.init(value_key, observations, reps),
        "actor": networks.actor.init(actor_key, observations, reps, noise, 0, 2),
    }
    return new_state(params, ("value", "actor"), configs.hyper(config, hyper))


def make(config: Config, spec: Spec) -> Agent:
    """Builds the agent."""
    networks = Networks(
        goal_rep=GoalRep(config.hidden_dims, config.rep_dim),
        value=ensemble(Value)(config.hidden_dims),
        actor=Actor(config.hidden_dims, spec.action_dim, config.rep_dim, config.time_dim),
    )
    fields = ("observations", "actions", "next_observations", "rewards", "masks")
    goals = ("value_goals", "low_actor_goals", "high_actor_goals", "high_actor_targets")
    return Agent(
        init=partial(init, networks, config, spec),
        update=partial(update, networks, config),
        policy=partial(policy, config),
        act=partial(act, networks, config),
        needs=Needs(fields + goals, geometric=("value_goals",)),
    )
