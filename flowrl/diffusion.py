"""Denoising diffusion in discrete time (https://arxiv.org/abs/2006.11239): noising, ancestral sampling in any steps.

A schedule is a numpy array ᾱ `[T]`, the share of the data's variance that is left at each of T noise levels, falling.
Level 0 is the least noisy. Points are `[..., A]`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

NoiseModel = Callable[[jax.Array, jax.Array], jax.Array]
"""`(points [..., A], levels [..., 1]) -> the noise that is in them [..., A]`."""


def linear_schedule(levels: int, scale: float, first: float = 1e-4, last: float = 0.999) -> np.ndarray:
    """ᾱ `[levels]` of noise whose variance grows linearly, β = `scale` × `first` … `last`."""
    return np.cumprod(1 - scale * np.linspace(first, last, levels))


def cosine_schedule(levels: int, scale: float) -> np.ndarray:
    """ᾱ `[levels]` along a squared cosine (https://arxiv.org/abs/2102.09672, eq. 17), β ≤ 0.999 and times `scale`."""
    angles = (np.linspace(0, 1, levels + 1) + 0.008) / 1.008 * np.pi / 2
    left = np.cos(angles) ** 2
    return np.cumprod(1 - scale * np.clip(1 - left[1:] / left[:-1], 0, 0.999))


SCHEDULES = {"linear": linear_schedule, "cosine": cosine_schedule}
"""Schedules by name: `(levels, scale) -> ᾱ [levels]`."""


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
        noise = model(points, jnp.full((*starts.shape[:-1], 1), level))
        data = jnp.clip((points - math.sqrt(1 - left) * noise) / math.sqrt(left), -1.0, 1.0)
        beta = 1 - left / before
        mean = (math.sqrt(before) * beta * data + math.sqrt(left / before) * (1 - before) * points) / (1 - left)
        std = math.sqrt(beta * (1 - before) / (1 - left))
        points = mean + std * draws[i]
    return points
