"""Means with intervals."""

from typing import NamedTuple

import numpy as np
import scipy.stats


class Interval(NamedTuple):
    """A mean and its 95 % interval; the bounds are NaN for fewer than two values."""

    mean: float
    low: float
    high: float


def mean_interval(values: np.ndarray, *, resamples: int = 10_000) -> Interval:
    """Returns the mean of `values` `[n]` with its 95 % percentile bootstrap interval, resampled from a fixed seed."""
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, float("nan"), float("nan"))
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    result = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=resamples, method="percentile", rng=np.random.default_rng(0)
    )
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))
