"""GC-SSCP: one flat goal-conditioned policy that skips the hierarchy in one step (https://arxiv.org/abs/2506.21427).

One actor jumps from noise to an action and the goal representation below, from level `t` (0: the goal, 1: a subgoal) by
depth `d`. Jumps of depth 1 are regressed on data; that of depth 2, which acts, on two hops of the slow actor.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.data.goals import GoalMix
from flowrl.data.samplers import Goals
from flowrl.encoders import GoalRep, JumpMLP, Pair, represented_value
from flowrl.losses import GoalValue, awr_weight, goal_advantage, goal_value_loss, mse, value_params
from flowrl.networks import Network, Spec, Value, ensemble, named, vector
from flowrl.optim import CosineDecay, Stage, in_stages, polyak, stage
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState


@config
class Config:
    """The settings of the released code."""

    value: GoalValue = nested(GoalValue())
    value_goals: GoalMix = nested(GoalMix(p_trajectory=0.5, p_random=0.3, geometric=True))
    actor_goals: GoalMix = nested(GoalMix())
    hidden_dims: tuple[int, ...] = static((512, 512, 512), "Hidden layers of every network.")
    rep_dim: int = static(10, "Size of the goal representation.")
    time_dim: int = static(128, "Size of the embedding of levels and depths.")
    batch_size: int = static(1024, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    decay: CosineDecay = nested(CosineDecay(final=0.0, warmup=0.0, steps=0), "The step size, in each stage.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    lagging_targets: bool = static(True, "Targets move toward the parameters before each step, as the authors' do.")
    hops: int = static(1, "Calls of the actor per action; 2 go by a subgoal.", choices=(1, 2), acting=True)
    subgoal_steps: int = traced(25, "Environment steps to a subgoal.", low=1)
    low_alpha: float = traced(5.0, "Inverse temperature of the advantage weights at the subgoal.")
    high_alpha: float = traced(5.0, "Inverse temperature of the advantage weights at the goal.")
    actor_target_rate: float = traced(0.001, "Polyak rate of the acting copy of the actor.", high=1.0)


State = TrainState[Config]
Pairs = tuple[Pair, Pair]


class Networks(NamedTuple):
    """Shared goal representation, twin values and the actor."""

    spec: Spec
    rep_dim: int
    goal_rep: Network  # s [B, D], g [B, G] -> [B, R]
    value: Network  # s [B, D], φ [B, R] -> [2, B]
    actor: Network  # s [B, D], ψ [B, R], x_a [B, A], x_φ [B, R], t [1], d [1] -> [B, A + R]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    (s, a, g, _), rep, layers = spec.inputs(), vector(1, config.rep_dim), config.hidden_dims
    actor = JumpMLP(layers, spec.action_dim + config.rep_dim, config.time_dim, layer_norm=True)
    return Networks(spec, config.rep_dim, **named(
        goal_rep=(GoalRep(layers, config.rep_dim), s, g),
        value=(ensemble(Value)(layers), s, rep),
        actor=(actor, s, rep, a, rep, vector(1), vector(1)),
    ))  # fmt: skip


def noise(nets: Networks, s: jax.Array, key: jax.Array) -> Pair:
    """Unit Gaussian noise for each observation of `s` `[..., D]`."""
    a_key, rep_key = jax.random.split(key)
    a = nets.spec.noise(a_key, s)
    return Pair(a, jax.random.normal(rep_key, (*a.shape[:-1], nets.rep_dim)))


def jump(nets: Networks, params: Params, s: jax.Array, goal_rep: jax.Array, x: Pair, t: int, d: int) -> Pair:
    """f(s, ψ, x_a, x_φ, t, d): from noise x, the action and the goal representation `d` levels below level `t`."""
    out = nets.actor(params, s, goal_rep, *x, *(jnp.full((1,), n, float) for n in (t, d)))
    return Pair(x.a + out[..., : -nets.rep_dim], x.rep + out[..., -nets.rep_dim :])


def two_hops(nets: Networks, params: Params, s: jax.Array, goal_rep: jax.Array, noises: Pairs) -> Pair:
    """Goes from the goal to a subgoal and from there to an action, each hop from its own noise; bounded."""
    subgoal = jump(nets, params, s, goal_rep, noises[0], 0, 1).bounded()
    return jump(nets, params, s, subgoal.rep, noises[1], 1, 1).bounded()


def low_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array, *, x: Pair) -> Loss:
    """A hop (t=1, d=1) from the subgoal w to the action and φ([s; s']), weighted by V(s', w) − V(s, w)."""
    s, next_s, w, own = batch["observations"], batch["next_observations"], batch["low_actor_goals"], value_params(state)
    weights = awr_weight(goal_advantage(represented_value, nets, own, s, next_s, w), state.config.low_alpha)
    hop = jump(nets, params, s, nets.goal_rep(own, s, w), x, 1, 1)
    a_errors = mse(hop.a, batch["actions"])
    loss = (weights * (a_errors + mse(hop.rep, nets.goal_rep(own, s, next_s)))).mean()
    return loss, {"low/loss": loss, "low/weight": weights.mean(), "low/action_mse": a_errors.mean()}


def high_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array, *, x: Pair) -> Loss:
    """A hop (t=0, d=1) from the goal g to the action and φ([s; w]), weighted by V(w, g) − V(s, g)."""
    s, g, w, own = batch["observations"], batch["high_actor_goals"], batch["high_actor_targets"], value_params(state)
    weights = awr_weight(goal_advantage(represented_value, nets, own, s, w, g), state.config.high_alpha)
    hop = jump(nets, params, s, nets.goal_rep(params, s, g), x, 0, 1)
    rep_errors = mse(hop.rep, nets.goal_rep(own, s, w))
    loss = (weights * (mse(hop.a, batch["actions"]) + rep_errors)).mean()
    return loss, {"high/loss": loss, "high/weight": weights.mean(), "high/rep_mse": rep_errors.mean()}


def shortcut_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array, *, x: Pairs) -> Loss:
    """The jump (t=0, d=2) from the first hop's noise, regressed on two hops of the slow actor."""
    s, g = batch["observations"], batch["high_actor_goals"]
    target = two_hops(nets, state.target_params, s, nets.goal_rep(state.params, s, g), x)
    leap = jump(nets, params, s, nets.goal_rep(params, s, g), x[0], 0, 2).bounded()
    a_errors = mse(leap.a, target.a)
    loss = (a_errors + mse(leap.rep, target.rep)).mean()
    return loss, {"shortcut/loss": loss, "shortcut/action_mse": a_errors.mean()}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of all losses at the same parameters, then the slow copies; values' φ is no slower."""
    config, (values_learn, done) = state.config, stage(state.config.value.steps, state.step)
    hop, first, second = (noise(nets, batch["observations"], k) for k in jax.random.split(key, 3))
    low, high, leap = partial(low_loss, x=hop), partial(high_loss, x=hop), partial(shortcut_loss, x=(first, second))
    values = Stage([partial(goal_value_loss, represented_value)], ("goal_rep", "value"))
    stages = values, Stage([low, high, leap], ("goal_rep", "actor"))
    rates = dict.fromkeys(state.params, config.decay(config.learning_rate, done))
    moved, metrics = in_stages(config.value.steps, nets, state, batch, key, stages, rates)
    toward = state if config.lagging_targets else moved
    moved = polyak(moved, toward.params, value=config.value.target_rate, actor=config.actor_target_rate)
    return polyak(moved, moved.params, goal_rep=values_learn), metrics


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """One draw of noise, which explores by itself, in one jump of the slow actor or (`hops=2`) by the subgoal."""
    s, keys = inputs["observations"], jax.random.split(key)
    goal_rep, first = nets.goal_rep(policy.params, s, inputs["goals"]), noise(nets, s, keys[0])
    if policy.config.hops == 2:
        return two_hops(nets, policy.params, s, goal_rep, (first, noise(nets, s, keys[1]))).a
    return jump(nets, policy.params, s, goal_rep, first, 0, 2).bounded().a


make = Maker(
    networks, update, act, targets=("goal_rep", "value", "actor"),
    acting=lambda state: {  # the shortcut is the slow actor's, two hops are the trained one's, as in the authors' code
        "goal_rep": state.params["goal_rep"],
        "actor": (state.params if state.config.hops == 2 else state.target_params)["actor"],
    },
    batch=lambda c: Goals(c.actor_goals, c.value_goals, c.discount, c.subgoal_steps, c.value.horizon),
)  # fmt: skip
