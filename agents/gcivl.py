"""GCIVL: goal-conditioned implicit V-learning (IQL without Q, https://arxiv.org/abs/2110.06169), as in OGBench."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.data.goals import GoalMix
from flowrl.data.samplers import Goals
from flowrl.losses import GoalValue, goal_advantage, goal_value_loss
from flowrl.networks import MLP, Network, Spec, Value, ensemble, named
from flowrl.optim import Stage, in_stages, polyak
from flowrl.policies import awr_loss, unit_gaussian
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState


@config
class Config:
    """OGBench's defaults."""

    value: GoalValue = nested(GoalValue(expectile=0.9))
    value_goals: GoalMix = nested(GoalMix(p_trajectory=0.5, p_random=0.3, geometric=True))
    actor_goals: GoalMix = nested(GoalMix())
    hidden_dims: tuple[int, ...] = static((512, 512, 512), "Hidden layers of every network.")
    batch_size: int = static(1024, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    lagging_targets: bool = static(True, "Targets move toward the parameters before each step, as the authors' do.")
    alpha: float = traced(10.0, "Inverse temperature of the policy's advantage weights.")


State = TrainState[Config]


class Networks(NamedTuple):
    """Twin values, and the mean of a Gaussian policy of unit standard deviation."""

    value: Network  # s [B, D], g [B, G] -> [2, B]
    actor: Network  # s [B, D], g [B, G] -> [B, A]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    s, _, g, _ = spec.inputs()
    value, actor = ensemble(Value)(config.hidden_dims), MLP(config.hidden_dims, spec.action_dim, final_scale=1e-2)
    return Networks(**named(value=(value, s, g), actor=(actor, s, g)))


def v(nets: Networks, params: Params, s: jax.Array, g: jax.Array) -> jax.Array:
    """The twin values V(s, g) `[2, B]`."""
    return nets.value(params, s, g)


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """Advantage-weighted regression: −E min(exp(α (V(s', g) − V(s, g))), 100) log π(a | s, g)."""
    s, a, g = batch["observations"], batch["actions"], batch["actor_goals"]
    advantages = goal_advantage(v, nets, state.params, s, batch["next_observations"], g)
    means = nets.actor(params, s, g)
    return awr_loss((means, jnp.zeros_like(means)), a, advantages, state.config.alpha)


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of value and actor, or a stage's, at the same parameters, then the target value."""
    config, rates = state.config, dict.fromkeys(nets._fields, state.config.learning_rate)
    stages = Stage([partial(goal_value_loss, v)], ("value",)), Stage([actor_loss], ("actor",))
    moved, metrics = in_stages(config.value.steps, nets, state, batch, key, stages, rates)
    toward = state if config.lagging_targets else moved
    return polyak(moved, toward.params, value=config.value.target_rate), metrics


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """The Gaussian's mode, or with `explore` a sample; clipped to [−1, 1]."""
    means = nets.actor(policy.params, inputs["observations"], inputs["goals"])
    return jnp.clip(unit_gaussian(means, key, explore), -1.0, 1.0)


make = Maker(
    networks, update, act, targets=("value",),
    batch=lambda config: Goals.of(config)._replace(horizon=config.value.horizon),
)  # fmt: skip
