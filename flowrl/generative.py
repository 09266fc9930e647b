"""Generative models of actions: each a record of its choices with the errors of its rows, and its samples.

A model is used through a field, the network with everything else given: `field = partial(nets.actor, params, s)`. Its
points are `[..., A]` and its times `[..., 1]`, one for each name in the model's `times`. `errors(field, a, key, valid)`
says how far the field is from the data on each row, `[B, A]` to `[B]`, or whole segments `[B, H, A]`, each at one time;
where `valid`, of the shape of the data, is 0, there is no error. `sample(field, z, key)` makes actions of unit noise,
which may leave [−1, 1].
"""

import math
from collections.abc import Callable
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from flowrl.config import config, static, traced
from flowrl.losses import mse
from flowrl.paths import (
    TIME_SAMPLERS,
    AverageVelocity,
    Velocity,
    average_velocity_target,
    euler,
    interval_times,
    one_each,
    straight,
    uniform_times,
)
from flowrl.train_state import Scalar

Field = Callable[..., jax.Array]
"""`(points [..., A], times [..., 1], ...) -> [..., A]`."""
NoiseModel = Callable[[jax.Array, jax.Array], jax.Array]
"""`(points [..., A], levels [..., 1]) -> the noise that is in them [..., A]`."""


class Model(Protocol):
    """What all models here have."""

    times: ClassVar[tuple[str, ...]]

    def deviation(self) -> float:
        """Deviation of the noise that data are mixed with where most of it is."""

    def errors(self, field: Field, a: jax.Array, key: jax.Array, valid: Scalar = 1.0) -> jax.Array:
        """Errors of data `[B, A]`: `[B]`."""

    def sample(self, field: Field, z: jax.Array, key: jax.Array) -> jax.Array:
        """Actions `[..., A]` of noise `[..., A]`, with further noise from the key if the model needs some."""


@config
class Flow:
    """Flow matching on straight paths, noise at time 0 and data at time 1 (https://arxiv.org/abs/2209.03003)."""

    times: ClassVar[tuple[str, ...]] = ("time",)

    steps: int = static(10, "Euler steps per action.")

    def deviation(self) -> float:
        """Unit noise is one end of every path."""
        return 1.0

    def errors(self, field: Velocity, a: jax.Array, key: jax.Array, valid: Scalar = 1.0) -> jax.Array:
        """‖v(x_t, t) − (a − z)‖² at unit noise z and uniform t, averaged over dimensions: `[B, A]` to `[B]`."""
        noise_key, time_key = jax.random.split(key)
        t = uniform_times(time_key, one_each(a))
        path = straight(jax.random.normal(noise_key, a.shape), a, t)
        return mse(field(path.points, t), path.velocities, valid)

    def sample(self, field: Velocity, z: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Carries noise `[..., A]` to time 1."""
        return euler(field, z, self.steps)

    def actions(self, field: Velocity, z: jax.Array) -> jax.Array:
        """The same, clipped to [−1, 1]."""
        return jnp.clip(self.sample(field, z), -1.0, 1.0)


@config
class MeanFlow:
    """Average velocities between two times, data at time 0 and noise at time 1 (https://arxiv.org/abs/2505.13447)."""

    times: ClassVar[tuple[str, ...]] = ("begin", "time")

    steps: int = static(1, "Steps per action.")
    divide_steps: bool = static(
        True, "Each of several steps takes its share of the path, not all of it, as in FPMD's code for one step."
    )
    time_sampler: str = static("logit_normal", "Distribution of the two times.", choices=("logit_normal", "uniform"))
    flow_ratio: float = traced(0.5, "Share of rows with equal times; 1 is plain flow matching.", high=1.0)
    adaptive_power: float = traced(0.0, "p of the weight 1/(error + c)^p of each row; 0 is off.")
    adaptive_constant: float = traced(1e-3, "c of that weight.", low=1e-12)

    def deviation(self) -> float:
        """Unit noise is one end of every path."""
        return 1.0

    def errors(self, field: AverageVelocity, a: jax.Array, key: jax.Array, valid: Scalar = 1.0) -> jax.Array:
        """Errors against the MeanFlow target, each weighted by sg(1 / (error + c)^p): `[B, A]` to `[B]`."""
        noise_key, time_key = jax.random.split(key)
        begins, times = interval_times(time_key, one_each(a), self.flow_ratio, TIME_SAMPLERS[self.time_sampler])
        path = straight(a, jax.random.normal(noise_key, a.shape), times)
        errors = mse(*average_velocity_target(field, path, begins, times), valid)
        return errors * (jax.lax.stop_gradient(errors) + self.adaptive_constant) ** -self.adaptive_power

    def sample(self, field: AverageVelocity, z: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Carries noise `[..., A]` to time 0."""
        x, share = z, self.steps if self.divide_steps else 1
        for i in range(self.steps):
            t = jnp.full(one_each(z), 1 - i / self.steps)
            x = x - field(x, t - 1 / self.steps, t) / share
        return x


@config
class Diffusion:
    """Denoising diffusion in discrete time (DDPM, https://arxiv.org/abs/2006.11239)."""

    times: ClassVar[tuple[str, ...]] = ("level",)

    levels: int = static(20, "Noise levels.", low=2)
    steps: int = static(0, "Denoising steps per action; 0 takes every level.", low=0)
    schedule: str = static("linear", "How the variance of noise grows.", choices=("linear", "cosine"))
    schedule_scale: float = static(0.8, "Factor of that variance's growth.", low=0.001, high=1.0)

    def problem(self, prefix: str) -> str:
        """Says that there cannot be more steps than levels."""
        told = f"{prefix}steps={self.steps} is more than the {self.levels} noise levels"
        return f"{told}; give fewer, or more {prefix}levels" if self.steps > self.levels else ""

    def variance_left(self) -> np.ndarray:
        """Returns ᾱ of each level `[levels]`, the share of the data's variance that is left; level 0 is the last."""
        return SCHEDULES[self.schedule](self.levels, self.schedule_scale)

    def deviation(self) -> float:
        """Share of noise at the last level, √(1 − ᾱ)."""
        return math.sqrt(1 - self.variance_left()[-1])

    def errors(self, field: NoiseModel, a: jax.Array, key: jax.Array, valid: Scalar = 1.0) -> jax.Array:
        """Squared error of the noise at uniform levels, averaged over dimensions: `[B, A]` to `[B]` (eq. 14)."""
        noise_key, level_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, a.shape)
        levels = jax.random.randint(level_key, one_each(a), 0, self.levels)
        return mse(field(noised(self.variance_left(), a, noise, levels), levels), noise, valid)

    def sample(self, field: NoiseModel, z: jax.Array, key: jax.Array) -> jax.Array:
        """Denoises `[..., A]` into actions in [−1, 1]."""
        return ancestral(field, z, key, self.variance_left(), self.steps or self.levels)


# ------------------------------------------------------------------------------------------------------- diffusion


def linear_schedule(levels: int, scale: float, first: float = 1e-4, last: float = 0.999) -> np.ndarray:
    """ᾱ `[levels]` of noise whose variance grows linearly, β = `scale` × `first` … `last`."""
    return np.cumprod(1 - scale * np.linspace(first, last, levels))


def cosine_schedule(levels: int, scale: float) -> np.ndarray:
    """ᾱ `[levels]` along a squared cosine (https://arxiv.org/abs/2102.09672, eq. 17), β ≤ 0.999 and times `scale`."""
    angles = (np.linspace(0, 1, levels + 1) + 0.008) / 1.008 * np.pi / 2
    left = np.cos(angles) ** 2
    return np.cumprod(1 - scale * np.clip(1 - left[1:] / left[:-1], 0, 0.999))


SCHEDULES: dict[str, Callable[[int, float], np.ndarray]] = {"linear": linear_schedule, "cosine": cosine_schedule}
"""Schedules by name: `(levels, scale) -> ᾱ [levels]`, the share of variance left at each level, falling."""


def noised(schedule: np.ndarray, data: jax.Array, noise: jax.Array, levels: jax.Array) -> jax.Array:
    """√ᾱ x + √(1 − ᾱ) ε, equation 4.

    Args:
        schedule: ᾱ `[T]`.
        data: x `[..., A]`.
        noise: ε `[..., A]`, standard normal.
        levels: Whole numbers from 0 `[..., 1]`.
    """
    left = jnp.asarray(schedule)[levels]
    return jnp.sqrt(left) * data + jnp.sqrt(1 - left) * noise


def sampled_levels(levels: int, steps: int) -> np.ndarray:
    """The levels that `steps` ≤ `levels` steps visit, from the last one to the first, evenly spaced: `[steps]`."""
    return np.round(np.linspace(levels - 1, 0, steps)).astype(int)


def ancestral(model: NoiseModel, starts: jax.Array, key: jax.Array, schedule: np.ndarray, steps: int) -> jax.Array:
    """Samples by ancestral steps, each toward the data that the model sees, cut to [−1, 1] (algorithm 2).

    With fewer steps than levels the process is that of the visited levels alone (https://arxiv.org/abs/2102.09672,
    section 4).

    Args:
        model: Predicts the noise.
        starts: Points at the last level `[..., A]`.
        key: Random key.
        schedule: ᾱ `[T]`.
        steps: Evaluations of the model, 1 … T.

    Returns:
        `[..., A]` in [−1, 1].
    """
    points = starts
    levels = sampled_levels(len(schedule), steps)
    draws = jax.random.normal(key, (len(levels), *starts.shape))
    for i, level in enumerate(levels):
        left = float(schedule[level])
        before = float(schedule[levels[i + 1]]) if i + 1 < len(levels) else 1.0  # at the level that this step leads to
        noise = model(points, jnp.full(one_each(starts), level))
        data = jnp.clip((points - math.sqrt(1 - left) * noise) / math.sqrt(left), -1.0, 1.0)
        beta = 1 - left / before
        mean = (math.sqrt(before) * beta * data + math.sqrt(left / before) * (1 - before) * points) / (1 - left)
        std = math.sqrt(beta * (1 - before) / (1 - left))
        points = mean + std * draws[i]
    return points
