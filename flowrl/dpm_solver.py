"""DPM-Solver: long steps along the path on which a diffusion model leads noise to data.

DPM-Solver (https://arxiv.org/abs/2206.00927), the form "fast" that combines its three orders, as EDP samples by it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowrl.paths import one_each

NoiseModel = Callable[[jax.Array, jax.Array], jax.Array]
"""`(points [..., A], levels [..., 1]) -> the noise that is in them [..., A]`, or the data; levels need not be whole."""
MOST_LEFT = 0.1
"""The most noise that a first level may have, where the path ends."""
MOST_COUNTED = 10.0
"""How often a move may count what evaluations differ by, and with it their errors."""


def orders(steps: int) -> list[int]:
    """How many evaluations each step of the solver takes, `steps` in all: three as often as that goes."""
    threes, rest = divmod(steps, 3)
    return [3] * threes + [rest] if rest else [3] * (threes - 1) + [2, 1]


def moves_of(half_snr: np.ndarray, kept: np.ndarray, added: np.ndarray) -> np.ndarray:
    """What a step of one, two or three evaluations counts (appendix B, algorithms 1, 4 and 5).

    The j-th move leads from x and the noises ε₁ … ε_j seen so far to a x − b ε₁ − c (ε_j − ε₁), where the next
    evaluation is, or the step's end.

    Args:
        half_snr: λ = log √ᾱ/√(1 − ᾱ) where the step begins, at its further evaluations and at its end `[order + 1]`.
        kept: √ᾱ there.
        added: √(1 − ᾱ) there.

    Returns:
        a, b and c of each move `[order, 3]`.
    """
    h, order = half_snr[1:] - half_snr[0], len(half_snr) - 1
    grown = np.expm1(h)
    c = np.zeros(order)
    if order == 2:
        c[1] = grown[1] * h[1] / h[0] / 2
    if order == 3:
        c[1] = h[1] / h[0] * (grown[1] / h[1] - 1)
        c[2] = h[2] / h[1] * (grown[2] / h[2] - 1)
    return np.stack([kept[1:] / kept[0], added[1:] * grown, added[1:] * c], axis=1)


def table_of(schedule: np.ndarray, steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Where the solver evaluates the model, and what it makes of that.

    Evaluations are evenly spaced from the last level to the first, between levels too, where log ᾱ is linear. There the
    data are seen as at the level below, as in EDP's code.

    Returns:
        For each step the level, √ᾱ, √(1 − ᾱ), and both at the level below, of each evaluation `[order, 5]`; and its
        moves, as `moves_of` gives them.
    """
    levels = np.linspace(len(schedule) - 1, 0, steps + 1)
    log_kept = np.interp(levels, np.arange(len(schedule)), np.log(schedule) / 2)
    kept, added = np.exp(log_kept), np.sqrt(-np.expm1(2 * log_kept))
    below = schedule[np.floor(levels + 1e-9).astype(int)]
    places = np.stack([levels, kept, added, np.sqrt(below), np.sqrt(1 - below)], axis=1)
    table, first = [], 0
    for order in orders(steps):
        own = slice(first, first + order + 1)
        moves = moves_of(log_kept[own] - np.log(added[own]), kept[own], added[own])
        table.append((places[first : first + order], moves))
        first += order
    return table


def refusal(schedule: np.ndarray, steps: int, prefix: str) -> str:
    """Says that the path would end in noise, or that its steps are too long for what a model gets wrong; or nothing.

    Long steps are those of few evaluations, and of schedules that keep next to nothing of the data at their last
    levels, such as the cosine's.
    """
    if (noise := math.sqrt(1 - schedule[0])) > MOST_LEFT:
        return f"{prefix}sampler=dpm ends with the noise of the first level, {noise:.2f}; give more {prefix}levels"
    if (times := max(np.abs(moves[:, 2]).max() for _, moves in table_of(schedule, steps))) > MOST_COUNTED:
        told = f"{prefix}sampler=dpm with {steps} evaluations counts what they differ by {times:.0f} times"
        return f"{told}; give more {prefix}steps, or another {prefix}schedule"
    return ""


def solve(
    model: NoiseModel, starts: jax.Array, schedule: np.ndarray, steps: int, clip: str = "data", *, bound: float = 1.0,
    predicts: str = "noise", looped: bool = False,
) -> jax.Array:  # fmt: skip
    """Samples along DDIM's path by steps of third order (DPM-Solver, https://arxiv.org/abs/2206.00927, "fast").

    The path ends at the first level, whose little noise stays.

    Args:
        model: Predicts the noise, or the data.
        starts: Points at the last level `[..., A]`.
        schedule: ᾱ `[T]`.
        steps: Evaluations of the model, three for each step but the last ones.
        clip: Whether the `data` that the model sees are cut to [−bound, bound], and so the result, or `nothing`.
        bound: See above.
        predicts: What the model does, the `noise` or the `data`.
        looped: Whether steps of three evaluations are one loop in the program, not written out.

    Returns:
        `[..., A]`.
    """

    def noise_in(points: jax.Array, place: Any) -> jax.Array:
        level, kept, added, kept_below, added_below = place
        found = model(points, jnp.full(one_each(starts), level))
        if predicts == "data":
            return (points - kept * (jnp.clip(found, -bound, bound) if clip == "data" else found)) / added
        if clip == "data":
            ends = ((points + sign * kept_below * bound) / added_below for sign in (-1, 1))
            return jnp.clip(found, *ends)
        return found

    def step(points: jax.Array, places: Any, moves: Any) -> jax.Array:
        first = noise_in(points, places[0])
        reached = moves[0][0] * points - moves[0][1] * first
        for place, (a, b, c) in zip(places[1:], moves[1:], strict=True):
            reached = a * points - b * first - c * (noise_in(reached, place) - first)
        return reached

    table, points = table_of(schedule, steps), starts
    threes = [row for row in table if len(row[0]) == 3]
    if looped and threes:
        rows = [jnp.asarray(np.stack(part), starts.dtype) for part in zip(*threes, strict=True)]
        points = jax.lax.scan(lambda points, row: (step(points, *row), None), points, rows)[0]
        table = table[len(threes) :]
    for places, moves in table:
        points = step(points, places.tolist(), moves.tolist())
    return jnp.clip(points, -bound, bound) if clip == "data" else points
