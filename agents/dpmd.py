"""DPMD: mirror descent with a diffusion policy, many steps in training and deployment
(https://arxiv.org/abs/2502.00361)."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowrl import config as configs
from flowrl import diffusion, mirror_descent
from flowrl.agent import Agent, Spec
from flowrl.errors import UserError
from flowrl.losses import mse
from flowrl.networks import Network


@dataclasses.dataclass(frozen=True)
class Config(mirror_descent.Config):
    """The settings of the newest scripts of the authors' code; docs/online.md has the older ones."""

    candidates: int = configs.static(4, "Particles: actions drawn per state, of which the best by Q is taken.")
    target_entropy: float = configs.sweepable(-0.9, "Entropy that α aims at, per dimension.", low=float("-inf"))
    diffusion_steps: int = configs.static(20, "Noise levels, and steps per action in training.")
    schedule: str = configs.static("linear", "How the variance of noise grows.", tuple(diffusion.SCHEDULES))
    schedule_scale: float = configs.static(0.8, "Factor of that variance's growth.", low=0.001, high=1.0)
    start: str = configs.static(
        "noised",
        "Deviation that sampling starts from: noised data's share of noise, or start_scale.",
        ("noised", "scaled"),
    )


def sample(
    actor: Network, config: Config, params: Any, observations: jax.Array, key: jax.Array, start_scale: Any,
    evaluation: bool,
) -> jax.Array:  # fmt: skip
    """Denoises from noise to an action: `[..., D]` to `[..., A]` in [−1, 1]."""
    start_key, steps_key = jax.random.split(key)
    schedule = schedule_of(config)
    scale = start_scale if config.start == "scaled" else math.sqrt(1 - schedule[-1])
    starts = scale * jax.random.normal(start_key, (*observations.shape[:-1], actor.out_dim))
    steps = mirror_descent.steps_of(config, config.diffusion_steps, evaluation)
    model = partial(actor.apply, params, observations)
    return diffusion.ancestral(model, starts, steps_key, schedule, steps)


def errors(
    actor: Network, config: Config, params: Any, observations: jax.Array, actions: jax.Array, key: jax.Array
) -> jax.Array:
    """Squared error of the noise at uniform levels, averaged over dimensions: `[B]`."""
    noise_key, level_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, actions.shape)
    levels = jax.random.randint(level_key, (len(actions), 1), 0, config.diffusion_steps)
    points = diffusion.noised(schedule_of(config), actions, noise, levels)
    return mse(actor.apply(params, observations, points, levels), noise)


def schedule_of(config: Config) -> np.ndarray:
    """Returns ᾱ of each level `[diffusion_steps]`, the share of the data's variance that is left."""
    return diffusion.SCHEDULES[config.schedule](config.diffusion_steps, config.schedule_scale)


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
    actor = mirror_descent.actor_network(config, spec, ("level",))

    def initial(key: jax.Array, observations: jax.Array, actions: jax.Array) -> Any:
        return actor.init(key, observations, actions, jnp.zeros((1, 1)))

    generator = mirror_descent.Generator(partial(sample, actor, config), partial(errors, actor, config), initial)
    return mirror_descent.make(config, spec, actor, generator)
