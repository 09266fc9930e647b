"""Denoising diffusion in discrete time, as a generative model of actions or plans, and its parts."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flowrl import dpm_solver
from flowrl.config import config, static
from flowrl.dpm_solver import NoiseModel
from flowrl.losses import mse
from flowrl.paths import one_each
from flowrl.train_state import Scalar

Nudge = Callable[[jax.Array, Any, Any], jax.Array]
"""`(points [..., A], level [], variance []) -> points [..., A]`: what is done before a step of that variance."""


@config
class Diffusion:
    """Denoising diffusion in discrete time (DDPM, https://arxiv.org/abs/2006.11239)."""

    times: ClassVar[tuple[str, ...]] = ("level",)

    levels: int = static(20, "Noise levels.", low=2)
    steps: int = static(0, "Denoising steps per action; 0 takes every level.", low=0)
    schedule: str = static("linear", "How the variance of noise grows.", choices=("linear", "cosine", "ddpm", "vp"))
    schedule_scale: float = static(0.8, "Factor of that variance's growth.", low=0.001, high=1.0)
    sampler: str = static(
        "ancestral",
        "Steps with fresh noise; or without (DDIM); or along DDIM's path by longer steps of three evaluations each "
        "(DPM-Solver), to the first level.",
        choices=("ancestral", "ddim", "dpm"),
    )
    clip: str = static(
        "data",
        "What each denoising step cuts to [-1, 1]: the data that it sees; or the points that it leads to, whose noise "
        "then has the variance of the step, not of the posterior, as in IDQL's code; or nothing.",
        choices=("data", "points", "nothing"),
    )
    bound: float = static(1.0, "Cuts to [-bound, bound] instead, where data are larger than actions.", low=0.001)
    predicts: str = static("noise", "What the network predicts.", choices=("noise", "data"))
    temperature: float = static(1.0, "Factor of the noise that steps add.", low=0.0)

    def problem(self, prefix: str) -> str:
        """Says that there cannot be more steps than levels, what schedules need, and what DPM-Solver does."""
        least, left = math.floor(20 * self.schedule_scale) + 1, self.variance_left()
        if self.schedule == "ddpm" and self.levels < least:
            return f"{prefix}schedule=ddpm needs {least} noise levels; give more {prefix}levels, or another schedule"
        if left[-1] < np.finfo(np.float32).tiny:
            told = f"{prefix}schedule={self.schedule} leaves nothing of the data at the last of {self.levels} levels"
            return f"{told}; give fewer {prefix}levels, or another schedule"
        if self.steps > self.levels:
            told = f"{prefix}steps={self.steps} is more than the {self.levels} noise levels"
            return f"{told}; give fewer, or more {prefix}levels"
        if self.sampler == "dpm" and self.clip == "points":
            return f"{prefix}clip=points cuts what DPM-Solver's path leads to; give {prefix}clip=data or nothing"
        return dpm_solver.refusal(left, self.steps or self.levels, prefix) if self.sampler == "dpm" else ""

    def noise_refusal(self, name: str, prefix: str) -> str:
        """Says that a setting needs noise that samples are not drawn with, if that is so; for `problem`."""
        told = f"{name} needs noise, which {prefix}sampler={self.sampler} adds none of; give {prefix}sampler=ancestral"
        return "" if self.sampler == "ancestral" else f"{told}, or {name}=0"

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
        points, noise, levels = self.noisy(a, key)
        predicted = field(points, levels)
        if self.predicts == "data":
            return mse(predicted, a, valid), jnp.clip(predicted, -self.bound, self.bound)
        left = jnp.asarray(self.variance_left())[levels]
        seen = denoised(points, predicted, jnp.sqrt(left), jnp.sqrt(1 - left))
        return mse(predicted, noise, valid), jnp.clip(seen, -self.bound, self.bound)

    def noisy(self, a: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Draws levels `[B, 1]`; returns points there, the noise in them `[B, A]` both, and the levels."""
        noise_key, level_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, a.shape)
        levels = jax.random.randint(level_key, one_each(a), 0, self.levels)
        return noised(self.variance_left(), a, noise, levels), noise, levels

    def sample(
        self, field: NoiseModel, z: jax.Array, key: jax.Array, nudge: Nudge = lambda points, level, variance: points,
        *, looped: bool = False,
    ) -> jax.Array:  # fmt: skip
        """Denoises `[..., A]`, into actions in [−1, 1] where these are cut; last arguments as for `denoise`.

        DPM-Solver takes no nudges, which are in units of a variance that its steps do not have.
        """
        schedule, steps = self.variance_left(), self.steps or self.levels
        if self.sampler == "dpm":
            return dpm_solver.solve(
                field, z, schedule, steps, self.clip, bound=self.bound,
                predicts=self.predicts, looped=looped or steps > WRITTEN_OUT,
            )  # fmt: skip
        return denoise(
            field, z, key, schedule, steps, self.sampler, self.clip, bound=self.bound,
            predicts=self.predicts, temperature=self.temperature, nudge=nudge, looped=looped,
        )  # fmt: skip


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
        std = np.sqrt(beta * (1 - before) / (1 - left) if clip != "points" else beta * (before < 1))
        parts = (np.sqrt(before) * beta, np.sqrt(left / before) * (1 - before), 1 - left, std)
    return levels, np.stack([np.sqrt(left), np.sqrt(1 - left), *parts], axis=1)


def denoise(
    model: NoiseModel, starts: jax.Array, key: jax.Array, schedule: np.ndarray, steps: int, sampler: str = "ancestral",
    clip: str = "data", *, bound: float = 1.0, predicts: str = "noise", temperature: float = 1.0,
    nudge: Nudge = lambda points, level, variance: points, looped: bool = False,
) -> jax.Array:  # fmt: skip
    """Samples by steps toward the data that the model sees (algorithm 2).

    With fewer steps than levels the process is that of the visited levels alone (https://arxiv.org/abs/2102.09672,
    section 4); one step gives the data seen in `starts`, whatever the sampler.

    Args:
        model: Predicts the noise, or the data.
        starts: Points at the last level `[..., A]`.
        key: Random key.
        schedule: ᾱ `[T]`.
        steps: Evaluations of the model, 1 … T; many are one loop in the program, few are written out.
        sampler: Kind of the steps, as for `step_sizes`.
        clip: What is cut to [−1, 1] in each step: the `data` that the model sees, where the noise has the variance of
            the posterior; or the `points`, where it has that of the step, β; or `nothing`.
        bound: Cuts to [−bound, bound] instead.
        predicts: What the model does, the `noise` or the `data`.
        temperature: Factor of the noise that steps add.
        nudge: What happens to points before each step.
        looped: Whether few steps are a loop too, where the model is large to compile.

    Returns:
        `[..., A]` in [−bound, bound] where it is cut.
    """
    levels, sizes = step_sizes(schedule, steps, sampler, clip)
    draws = jax.random.normal(key, (steps, *starts.shape))

    def step(points: jax.Array, level: Any, size: Any, draw: jax.Array) -> jax.Array:
        kept, added, to_data, to_points, whole, std = size
        points = nudge(points, level, std**2)
        found = model(points, jnp.full(one_each(starts), level))
        data = found if predicts == "data" else denoised(points, found, kept, added)
        data = jnp.clip(data, -bound, bound) if clip == "data" else data
        points = (to_data * data + to_points * points) / whole + temperature * std * draw
        return jnp.clip(points, -bound, bound) if clip == "points" else points

    if looped or steps > WRITTEN_OUT:
        rows = jnp.asarray(levels), jnp.asarray(sizes, starts.dtype), draws
        return jax.lax.scan(lambda points, row: (step(points, *row), None), starts, rows)[0]
    points = starts
    for i in range(steps):
        points = step(points, levels[i], sizes[i].tolist(), draws[i])
    return points
