"""Means and bootstrap intervals."""

import math

import numpy as np
import pytest

from flowrl import stats


def test_two_values_give_the_interval_of_their_resampled_means() -> None:
    # Means of resamples of (0, 1): 0 and 1 with probability 1/4 each, so that both tails beyond 2.5 % are theirs.
    assert stats.mean_interval(np.array([0.0, 1.0])) == (0.5, 0.0, 1.0)


def test_three_values_by_hand() -> None:
    # Of the 27 resamples of (0, 0, 3) the share with mean 0 is 8/27 and with mean 3 is 1/27 = 3.7 %, above 2.5 %.
    assert stats.mean_interval(np.array([0.0, 0.0, 3.0])) == (1.0, 0.0, 3.0)


def test_one_value_has_no_interval() -> None:
    mean, low, high = stats.mean_interval(np.array([0.3]))
    assert mean == 0.3
    assert math.isnan(low)
    assert math.isnan(high)


def test_constant_values_have_an_interval_without_width() -> None:
    assert stats.mean_interval(np.full(5, 0.25)) == (0.25, 0.25, 0.25)


def test_the_same_values_give_the_same_interval() -> None:
    values = np.random.default_rng(1).normal(size=8)
    assert stats.mean_interval(values) == stats.mean_interval(values)


def test_many_normal_values_give_the_classical_interval() -> None:
    values = np.random.default_rng(2).normal(size=400)
    mean, low, high = stats.mean_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(mean - half, abs=0.01)
    assert high == pytest.approx(mean + half, abs=0.01)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    intervals = [stats.mean_interval(rng.normal(size=20), resamples=1000) for _ in range(300)]
    covered = np.mean([low <= 0 <= high for _, low, high in intervals])
    assert 0.88 <= covered <= 0.98  # the percentile bootstrap is a little narrow at n = 20: about 93 %
