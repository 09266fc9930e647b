"""DPMD: mirror descent with a diffusion policy, many steps in training and deployment
(https://arxiv.org/abs/2502.00361)."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flowrl import config as configs
from flowrl import diffusion, mirror_descent
from flowrl.agent import Agent, Spec
from flowrl.errors import UserError
from flowrl.losses import mse
from flowrl.networks import Network, TimedMLP

NOISE_SCALE = 0.3
"""Factor of the linear schedule, in the authors' code."""


@dataclasses.dataclass(frozen=True)
class Config(mirror_descent.Config):
    """The settings of the authors' code."""

    target_entropy: float = configs.sweepable(-0.9, "Entropy that α aims at, per dimension.", low=float("-inf"))
    diffusion_steps: int = configs.static(20, "Noise levels, and steps per action in training.")
    eval_steps: int = configs.static(20, "Steps per action in evaluation, at most diffusion_steps.")


def sample(
    actor: Network, config: Config, params: Any, observations: jax.Array, key: jax.Array, start_scale: Any,
    evaluation: bool,
) -> jax.Array:  # fmt: skip
    """Denoises from noise to an action: `[..., D]` to `[..., A]` in [−1, 1]."""
    start_key, steps_key = jax.random.split(key)
    starts = start_scale * jax.random.normal(start_key, (*observations.shape[:-1], actor.out_dim))
    steps = config.eval_steps if evaluation else config.diffusion_steps
    model = partial(actor.apply, params, observations)
    return diffusion.ancestral(model, starts, steps_key, _schedule(config), steps)


def errors(
    actor: Network, config: Config, params: Any, observations: jax.Array, actions: jax.Array, key: jax.Array
) -> jax.Array:
    """Squared error of the noise at uniform levels, averaged over dimensions: `[B]`."""
    noise_key, level_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, actions.shape)
    levels = jax.random.randint(level_key, (len(actions), 1), 0, config.diffusion_steps)
    points = diffusion.noised(_schedule(config), actions, noise, levels)
    return mse(actor.apply(params, observations, points, levels), noise)


def _schedule(config: Config) -> Any:
    return diffusion.linear_schedule(config.diffusion_steps, NOISE_SCALE)


def make(config: Config, spec: Spec) -> Agent:
    """Builds the agent.

    Raises:
        UserError: There are more steps than noise levels, or too few levels.
    """
    if config.diffusion_steps < 2:
        raise UserError("--agent.diffusion_steps=1 leaves one level without noise; the least is 2")
    if config.eval_steps > config.diffusion_steps:
        raise UserError(
            f"--agent.eval_steps={config.eval_steps} is more than the {config.diffusion_steps} noise levels; give "
            "fewer, or train with a larger --agent.diffusion_steps"
        )
    actor = TimedMLP(config.hidden_dims, spec.action_dim, ("level",))

    def initial(key: jax.Array, observations: jax.Array, actions: jax.Array) -> Any:
        return actor.init(key, observations, actions, jnp.zeros((1, 1)))

    generator = mirror_descent.Generator(partial(sample, actor, config), partial(errors, actor, config), initial)
    return mirror_descent.make(config, spec, actor, generator)
