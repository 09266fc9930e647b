"""Statistics of few runs with bootstrap intervals, by the definitions of https://arxiv.org/abs/2108.13264 (rliable).

Scores are `[..., runs, tasks]`: one score per independent training and task. A statistic maps them to `[...]` (a
profile to `[..., thresholds]`), so that all resamples are computed at once.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Statistic = Callable[..., np.ndarray]


class Interval(NamedTuple):
    """A mean, or another statistic, and its 95 % interval; the bounds are NaN for fewer than two runs."""

    mean: float
    low: float
    high: float


# -------------------------------------------------------------------------------------------------- statistics


def mean(scores: np.ndarray) -> np.ndarray:
    """Returns the mean over runs and tasks of `scores` `[..., runs, tasks]`."""
    return scores.mean(axis=(-2, -1))


def median(scores: np.ndarray) -> np.ndarray:
    """Returns the median over tasks of the means over runs of `scores` `[..., runs, tasks]`."""
    return np.median(scores.mean(axis=-2), axis=-1)


def iqm(scores: np.ndarray) -> np.ndarray:
    """Returns the interquartile mean of `scores` `[..., runs, tasks]`: without the lowest and the highest quarter.

    The quarters are of all runs × tasks together; a quarter that is no whole number of scores is rounded down, so that
    of three scores none is left out.
    """
    import scipy.stats  # here, for it takes two seconds

    return scipy.stats.trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1)


def optimality_gap(scores: np.ndarray, target: float = 1.0) -> np.ndarray:
    """Returns by how much `scores` `[..., runs, tasks]` miss `target` on average; what exceeds it does not count."""
    return target - mean(np.minimum(scores, target))


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Returns the share `[..., thresholds]` of `scores` `[..., runs, tasks]` above each of `thresholds`."""
    return np.stack([mean(scores > threshold) for threshold in thresholds], axis=-1)


def probability_of_improvement(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Returns P(X > Y) for a run X of ours and a run Y of theirs on the same task, averaged over tasks; ties count ½.

    This is the Mann-Whitney U statistic as a share of all pairs.

    Args:
        ours: Scores `[..., runs, tasks]`.
        theirs: Scores `[..., other runs, tasks]`.
    """
    ours, theirs = ours[..., :, None, :], theirs[..., None, :, :]
    return ((ours > theirs) + 0.5 * (ours == theirs)).mean(axis=(-3, -2, -1))


# --------------------------------------------------------------------------------------------------- intervals


def bootstrap(statistic: Statistic, *scores: np.ndarray, resamples: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bounds of a statistic's 95 % stratified percentile bootstrap interval, resampled from a fixed seed.

    Runs are drawn with replacement, apart for every task and every argument. It says how the statistic would vary with
    other runs on these tasks, not with other tasks.

    Args:
        statistic: Function of arrays like `scores`.
        *scores: What it is computed of, each `[runs, tasks]`.
        resamples: Number of resamples.

    Returns:
        Lower and upper bounds, shaped like the statistic; NaN where there are fewer than two runs.

    Raises:
        ValueError: Scores are no matrices, differ in tasks, or are not finite.
    """
    _check(scores)
    if any(len(matrix) < 2 for matrix in scores):
        unknown = np.full_like(statistic(*scores), np.nan, dtype=np.float64)
        return unknown, unknown
    rng = np.random.default_rng(0)
    drawn = [
        np.take_along_axis(matrix[None], rng.integers(0, len(matrix), (resamples, *matrix.shape)), axis=1)
        for matrix in scores
    ]
    low, high = np.percentile(statistic(*drawn), (2.5, 97.5), axis=0)
    return low, high


def _check(scores: tuple[np.ndarray, ...]) -> None:
    shapes = [np.shape(matrix) for matrix in scores]
    if any(len(shape) != 2 or 0 in shape for shape in shapes) or len({shape[1] for shape in shapes}) != 1:
        raise ValueError(f"scores must be [runs, tasks] with the same tasks, not {shapes}")
    if not all(np.isfinite(matrix).all() for matrix in scores):
        raise ValueError("scores must be finite; leave out runs that diverged, and say so")


def interval(statistic: Statistic, *scores: np.ndarray, resamples: int = 10_000) -> Interval:
    """Returns a statistic of `scores`, each `[runs, tasks]`, with its interval (see `bootstrap`)."""
    scores = tuple(np.asarray(matrix, np.float64) for matrix in scores)
    low, high = bootstrap(statistic, *scores, resamples=resamples)
    return Interval(float(statistic(*scores)), float(low), float(high))


def mean_interval(values: np.ndarray, *, resamples: int = 10_000) -> Interval:
    """Returns the mean of `values` `[n]` with its interval: runs of a single task."""
    return interval(mean, np.asarray(values, np.float64)[:, None], resamples=resamples)
