"""FPMD-R: mirror descent with a flow policy whose straight paths allow one step at deployment
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

    flow_steps: int = configs.static(20, "Euler steps per action in training.")


def sample(
    actor: Network, config: Config, params: Any, observations: jax.Array, key: jax.Array, start_scale: Any,
    evaluation: bool,
) -> jax.Array:  # fmt: skip
    """Integrates the flow from noise at time 0 to an action at time 1: `[..., D]` to `[..., A]`."""
    noise = start_scale * jax.random.normal(key, (*observations.shape[:-1], actor.out_dim))
    velocity = partial(actor.apply, params, observations)
    return flow.euler(velocity, noise, mirror_descent.steps_of(config, config.flow_steps, evaluation))


def errors(actor: Network, params: Any, observations: jax.Array, actions: jax.Array, key: jax.Array) -> jax.Array:
    """Flow matching's squared error at uniform times, averaged over dimensions: `[B]`."""
    noise_key, time_key = jax.random.split(key)
    times = flow.uniform_times(time_key, (len(actions), 1))
    path = flow.straight(jax.random.normal(noise_key, actions.shape), actions, times)
    return mse(actor.apply(params, observations, path.points, times), path.velocities)


def make(config: Config, spec: Spec) -> Agent:
    """Builds the agent."""
    actor = mirror_descent.actor_network(config, spec, ("time",))

    def initial(key: jax.Array, observations: jax.Array, actions: jax.Array) -> Any:
        return actor.init(key, observations, actions, jnp.zeros((1, 1)))

    generator = mirror_descent.Generator(partial(sample, actor, config), partial(errors, actor), initial)
    return mirror_descent.make(config, spec, actor, generator)
