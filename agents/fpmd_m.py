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
from flowrl.networks import Network


@dataclasses.dataclass(frozen=True)
class Config(mirror_descent.Config):
    """The settings of the authors' code."""

    flow_steps: int = configs.static(1, "Steps per action in training.")
    divide_steps: bool = configs.static(
        True, "Each of several steps takes its share of the path, not all of it, as in the code released for one step."
    )


def sample(
    actor: Network, config: Config, params: Any, observations: jax.Array, key: jax.Array, start_scale: Any,
    evaluation: bool,
) -> jax.Array:  # fmt: skip
    """Goes from noise at time 1 to an action at time 0 by average velocities: `[..., D]` to `[..., A]`.

    Each of several steps takes its share of the path, 1/steps; without `divide_steps` the released code's whole path.
    """
    points = start_scale * jax.random.normal(key, (*observations.shape[:-1], actor.out_dim))
    steps = mirror_descent.steps_of(config, config.flow_steps, evaluation)
    share = steps if config.divide_steps else 1
    for i in range(steps):
        time = jnp.full((*observations.shape[:-1], 1), 1 - i / steps)
        points = points - actor.apply(params, observations, points, time - 1 / steps, time) / share
    return points


def errors(actor: Network, params: Any, observations: jax.Array, actions: jax.Array, key: jax.Array) -> jax.Array:
    """Squared error against the MeanFlow target at two uniform times in order, averaged over dimensions: `[B]`."""
    noise_key, time_key = jax.random.split(key)
    begins, times = flow.interval_times(time_key, len(actions), jnp.zeros(()), flow.uniform_times)
    path = flow.straight(actions, jax.random.normal(noise_key, actions.shape), times)
    average = partial(actor.apply, params, observations)
    return mse(*flow.average_velocity_target(average, path, begins, times))


def make(config: Config, spec: Spec) -> Agent:
    """Builds the agent."""
    actor = mirror_descent.actor_network(config, spec, ("begin", "time"))

    def initial(key: jax.Array, observations: jax.Array, actions: jax.Array) -> Any:
        return actor.init(key, observations, actions, jnp.zeros((1, 1)), jnp.ones((1, 1)))

    generator = mirror_descent.Generator(partial(sample, actor, config), partial(errors, actor), initial)
    return mirror_descent.make(config, spec, actor, generator)
