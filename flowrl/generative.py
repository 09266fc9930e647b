"""Generative models of actions: each a record of its choices with the errors of its rows, and its samples.

A model is used through a field, the network with everything else given: `field = partial(nets.actor, params, s)`. Its
points are `[..., A]` and its times `[..., 1]`, one for each name in the model's `times`. `errors(field, a, key, valid)`
says how far the field is from the data on each row, `[B, A]` to `[B]`, or whole segments `[B, H, A]`, each at one time;
where `valid`, of the shape of the data, is 0, there is no error. `sample(field, z, key)` makes actions of unit noise,
which may leave [−1, 1].
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from flowrl.config import config, static, traced
from flowrl.losses import adaptive, mse
from flowrl.paths import (
    TIME_SAMPLERS,
    AverageVelocity,
    Jumps,
    Velocity,
    average_velocity_target,
    euler,
    interval_times,
    lagrangian_target,
    one_each,
    progressive_target,
    shrunk,
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
        return adaptive(errors, self.adaptive_power, self.adaptive_constant)

    def sample(self, field: AverageVelocity, z: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Carries noise `[..., A]` to time 0."""
        x, share = z, self.steps if self.divide_steps else 1
        for i in range(self.steps):
            t = jnp.full(one_each(z), 1 - i / self.steps)
            x = x - field(x, t - 1 / self.steps, t) / share
        return x


@config
class FlowMap:
    """Mean velocities from any time to any later one, noise at time 0 and data at time 1 (https://arxiv.org/abs/2605.12416).

    Velocities are learnt first; intervals then grow from nothing to any length.
    """

    times: ClassVar[tuple[str, ...]] = ("begin", "end")

    steps: int = static(1, "Steps per action.")
    distillation: str = static(
        "eulerian", "How longer intervals are learnt from shorter ones.",
        choices=("eulerian", "lagrangian", "progressive"),
    )  # fmt: skip
    warmup: int = traced(5000, "Updates in which velocities alone are learnt.")
    grown: int = traced(50_000, "Updates after which intervals have any length.", low=1)

    def deviation(self) -> float:
        """Unit noise is one end of every path."""
        return 1.0

    def errors(self, field: Jumps, a: jax.Array, key: jax.Array, valid: Scalar = 1.0) -> jax.Array:
        """‖u(x_t, t, t) − (a − z)‖², flow matching where the two times are one: `[B, A]` to `[B]` (eq. 3)."""
        return Flow().errors(lambda x, t: field(x, t, t), a, key, valid)

    def share(self, done: Scalar) -> jax.Array:
        """The share of their length that intervals have at update `done`, the first being 1: `[]` in [0, 1]."""
        return jnp.clip((done - self.warmup) / jnp.maximum(self.grown - self.warmup, 1), 0.0, 1.0)

    def consistency(
        self, field: Jumps, a: jax.Array, key: jax.Array, done: Scalar, valid: Scalar = 1.0
    ) -> jax.Array:  # fmt: skip
        """Errors of intervals against what shorter ones say at update `done`: `[B, A]` to `[B]` (eqs. 4 to 6)."""
        noise_key, time_key, middle_key = jax.random.split(key, 3)
        drawn = interval_times(time_key, one_each(a), 0.0, uniform_times)
        begins, ends = shrunk(*drawn, self.share(done))
        path = straight(jax.random.normal(noise_key, a.shape), a, begins)
        if self.distillation == "lagrangian":
            return mse(*lagrangian_target(field, path.points, begins, ends), valid)
        if self.distillation == "progressive":
            shares = uniform_times(middle_key, one_each(a))
            return mse(*progressive_target(field, path.points, begins, ends, shares), valid)
        # MeanFlow's identity with time the other way round: points are where an interval begins
        return mse(*average_velocity_target(lambda x, t, r: field(x, r, t), path, ends, begins), valid)

    def sample(self, field: Jumps, z: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Carries noise `[..., A]` to time 1."""
        x = z
        for i in range(self.steps):
            begins = jnp.full(one_each(z), i / self.steps)
            x = x + field(x, begins, begins + 1 / self.steps) / self.steps
        return x


@config
class Diffusion:
    """Denoising diffusion in discrete time (DDPM, https://arxiv.org/abs/2006.11239)."""

    times: ClassVar[tuple[str, ...]] = ("level",)

    levels: int = static(20, "Noise levels.", low=2)
    steps: int = static(0, "Denoising steps per action; 0 takes every level.", low=0)
    schedule: str = static("linear", "How the variance of noise grows.", choices=("linear", "cosine", "ddpm", "vp"))
    schedule_scale: float = static(0.8, "Factor of that variance's growth.", low=0.001, high=1.0)
    sampler: str = static("ancestral", "Steps with fresh noise, or without (DDIM).", choices=("ancestral", "ddim"))
    clip: str = static(
        "data",
        "What each denoising step cuts to [-1, 1]: the data that it sees; or the points that it leads to, whose noise "
        "then has the variance of the step, not of the posterior, as in IDQL's code.",
        choices=("data", "points"),
    )

    def problem(self, prefix: str) -> str:
        """Says that there cannot be more steps than levels, and that DDPM's are many."""
        least = math.floor(20 * self.schedule_scale) + 1
        if self.schedule == "ddpm" and self.levels < least:
            return f"{prefix}schedule=ddpm needs {least} noise levels; give more {prefix}levels, or another schedule"
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
        return self.errors_and_actions(field, a, key, valid)[0]

    def errors_and_actions(
        self, field: NoiseModel, a: jax.Array, key: jax.Array, valid: Scalar = 1.0
    ) -> tuple[jax.Array, jax.Array]:
        """The same errors, and the actions `[B, A]` that are seen in the points by the predicted noise (EDP)."""
        noise_key, level_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, a.shape)
        levels = jax.random.randint(level_key, one_each(a), 0, self.levels)
        schedule = self.variance_left()
        points, left = noised(schedule, a, noise, levels), jnp.asarray(schedule)[levels]
        predicted = field(points, levels)
        return mse(predicted, noise, valid), jnp.clip(
            denoised(points, predicted, jnp.sqrt(left), jnp.sqrt(1 - left)), -1.0, 1.0
        )

    def sample(self, field: NoiseModel, z: jax.Array, key: jax.Array) -> jax.Array:
        """Denoises `[..., A]` into actions in [−1, 1]."""
        return denoise(field, z, key, self.variance_left(), self.steps or self.levels, self.sampler, self.clip)


# ------------------------------------------------------------------------------------------------------- diffusion

WRITTEN_OUT = 20
"""The most steps that a program holds one after another."""


def linear_schedule(levels: int, scale: float, first: float = 1e-4, last: float = 0.999) -> np.ndarray:
    """ᾱ `[levels]` of noise whose variance grows linearly, β = `scale` × `first` … `last`."""
    return np.cumprod(1 - scale * np.linspace(first, last, levels))


def cosine_schedule(levels: int, scale: float) -> np.ndarray:
    """ᾱ `[levels]` along a squared cosine (https://arxiv.org/abs/2102.09672, eq. 17), β ≤ 0.999 and times `scale`."""
    angles = (np.linspace(0, 1, levels + 1) + 0.008) / 1.008 * np.pi / 2
    left = np.cos(angles) ** 2
    return np.cumprod(1 - scale * np.clip(1 - left[1:] / left[:-1], 0, 0.999))


def ddpm_schedule(levels: int, scale: float) -> np.ndarray:
    """ᾱ `[levels]` of β = 0.1/T … 20/T, times `scale`: what DDPM has for 1,000 levels, for any number T of them."""
    return linear_schedule(levels, scale, 0.1 / levels, 20 / levels)


def vp_schedule(levels: int, scale: float) -> np.ndarray:
    """ᾱ `[levels]` of β_t = 1 − exp(−0.1/T − 4.95 (2t − 1)/T²), t = 1 … T, times `scale` (DQL's code)."""
    t = np.arange(1, levels + 1)
    return np.cumprod(1 - scale * (1 - np.exp(-0.1 / levels - 4.95 * (2 * t - 1) / levels**2)))


SCHEDULES: dict[str, Callable[[int, float], np.ndarray]] = {
    "linear": linear_schedule,
    "cosine": cosine_schedule,
    "ddpm": ddpm_schedule,
    "vp": vp_schedule,
}
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


def denoised(points: jax.Array, noise: jax.Array, kept: Scalar, added: Scalar) -> jax.Array:
    """The data in points of which the noise is known, (x_t − √(1 − ᾱ) ε)/√ᾱ.

    Where little of the data is kept, errors in the noise are magnified by √(1 − ᾱ)/√ᾱ.

    Args:
        points: x_t `[..., A]`.
        noise: ε `[..., A]`.
        kept: √ᾱ.
        added: √(1 − ᾱ).
    """
    return (points - added * noise) / kept


def step_sizes(schedule: np.ndarray, steps: int, sampler: str, clip: str) -> tuple[np.ndarray, np.ndarray]:
    """Which levels steps are taken at, and what their parts count.

    A step leads from x to (c₁ data + c₂ x)/(1 − ᾱ) + std · noise: an ancestral one (DDPM, eq. 7), or one without noise
    along the path that the model sees (DDIM, https://arxiv.org/abs/2010.02502, eq. 12 with σ = 0). With `clip` of
    points its noise has the variance of the step, β, not of the posterior.

    Returns:
        Levels `[steps]`, and of each √ᾱ, √(1 − ᾱ), c₁, c₂, 1 − ᾱ and std `[steps, 6]`.
    """
    levels = sampled_levels(len(schedule), steps)
    left, before = schedule[levels], np.append(schedule[levels[1:]], 1.0)  # before: where the step leads to
    if sampler == "ddim":
        rest = np.sqrt((1 - before) * (1 - left))
        parts = ((1 - left) * np.sqrt(before) - np.sqrt(left) * rest, rest, 1 - left, 0 * left)
    else:
        beta = 1 - left / before
        std = np.sqrt(beta * (1 - before) / (1 - left) if clip == "data" else beta * (before < 1))
        parts = (np.sqrt(before) * beta, np.sqrt(left / before) * (1 - before), 1 - left, std)
    return levels, np.stack([np.sqrt(left), np.sqrt(1 - left), *parts], axis=1)


def denoise(
    model: NoiseModel, starts: jax.Array, key: jax.Array, schedule: np.ndarray, steps: int, sampler: str = "ancestral",
    clip: str = "data",
) -> jax.Array:  # fmt: skip
    """Samples by steps toward the data that the model sees (algorithm 2).

    With fewer steps than levels the process is that of the visited levels alone (https://arxiv.org/abs/2102.09672,
    section 4); one step gives the data seen in `starts`, whatever the sampler.

    Args:
        model: Predicts the noise.
        starts: Points at the last level `[..., A]`.
        key: Random key.
        schedule: ᾱ `[T]`.
        steps: Evaluations of the model, 1 … T; many are one loop in the program, few are written out.
        sampler: Kind of the steps, as for `step_sizes`.
        clip: What is cut to [−1, 1] in each step: the `data` that the model sees, where the noise has the variance of
            the posterior; or the `points`, where it has that of the step, β.

    Returns:
        `[..., A]` in [−1, 1].
    """
    levels, sizes = step_sizes(schedule, steps, sampler, clip)
    draws = jax.random.normal(key, (steps, *starts.shape))

    def step(points: jax.Array, level: Any, size: Any, draw: jax.Array) -> jax.Array:
        kept, added, to_data, to_points, whole, std = size
        data = denoised(points, model(points, jnp.full(one_each(starts), level)), kept, added)
        data = jnp.clip(data, -1.0, 1.0) if clip == "data" else data
        points = (to_data * data + to_points * points) / whole + std * draw
        return points if clip == "data" else jnp.clip(points, -1.0, 1.0)

    if steps > WRITTEN_OUT:
        rows = jnp.asarray(levels), jnp.asarray(sizes, starts.dtype), draws
        return jax.lax.scan(lambda points, row: (step(points, *row), None), starts, rows)[0]
    points = starts
    for i in range(steps):
        points = step(points, levels[i], sizes[i].tolist(), draws[i])
    return points
