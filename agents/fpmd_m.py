"""FPMD-M: mirror descent with the average velocity of MeanFlow, one step in training and deployment
(https://arxiv.org/abs/2507.23675)."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flowrl import config as configs
from flowrl import flow, mirror_descent
from flowrl.agent import Agent, Spec
from flowrl.losses import mse
from flowrl.networks import Network, TimedMLP


@dataclasses.dataclass(frozen=True)
class Config(mirror_descent.Config):
    """The settings of the authors' code."""

    flow_steps: int = configs.static(1, "Steps per action in training.")
    eval_steps: int = configs.static(1, "Steps per action in evaluation.")


def sample(
    actor: Network, config: Config, params: Any, observations: jax.Array, key: jax.Array, start_scale: Any,
    evaluation: bool,
) -> jax.Array:  # fmt: skip
    """Goes from noise at time 1 to an action at time 0 by average velocities and clips: `[..., D]` to `[..., A]`."""
    points = start_scale * jax.random.normal(key, (*observations.shape[:-1], actor.out_dim))
    steps = config.eval_steps if evaluation else config.flow_steps
    for i in range(steps):
        time = jnp.full((*observations.shape[:-1], 1), 1 - i / steps)
        points = points - actor.apply(params, observations, points, time - 1 / steps, time) / steps
    return jnp.clip(points, -1.0, 1.0)


def errors(actor: Network, params: Any, observations: jax.Array, actions: jax.Array, key: jax.Array) -> jax.Array:
    """Squared error against the MeanFlow target at two uniform times in order, averaged over dimensions: `[B]`."""
    noise_key, time_key = jax.random.split(key)
    begins, times = flow.interval_times(time_key, len(actions), jnp.zeros(()), flow.uniform_times)
    path = flow.straight(actions, jax.random.normal(noise_key, actions.shape), times)
    average = partial(actor.apply, params, observations)
    return mse(*flow.average_velocity_target(average, path, begins, times))


def make(config: Config, spec: Spec) -> Agent:
    """Builds the agent."""
    actor = TimedMLP(config.hidden_dims, spec.action_dim, ("begin", "time"))

    def initial(key: jax.Array, observations: jax.Array, actions: jax.Array) -> Any:
        return actor.init(key, observations, actions, jnp.zeros((1, 1)), jnp.ones((1, 1)))

    generator = mirror_descent.Generator(partial(sample, actor, config), partial(errors, actor), initial)
    return mirror_descent.make(config, spec, actor, generator)
