"""Means and bootstrap intervals."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from flowrl.run_folder import statistics


def test_two_values_give_the_interval_of_their_resampled_means() -> None:
    # Means of resamples of (0, 1): 0 and 1 with probability 1/4 each, so that both tails beyond 2.5 % are theirs.
    assert statistics.mean_interval(np.array([0.0, 1.0])) == (0.5, 0.0, 1.0)


def test_three_values_by_hand() -> None:
    # Of the 27 resamples of (0, 0, 3) the share with mean 0 is 8/27 and with mean 3 is 1/27 = 3.7 %, above 2.5 %.
    assert statistics.mean_interval(np.array([0.0, 0.0, 3.0])) == (1.0, 0.0, 3.0)


def test_one_value_has_no_interval() -> None:
    mean, low, high = statistics.mean_interval(np.array([0.3]))
    assert mean == 0.3
    assert math.isnan(low)
    assert math.isnan(high)


def test_constant_values_have_an_interval_without_width() -> None:
    assert statistics.mean_interval(np.full(5, 0.25)) == (0.25, 0.25, 0.25)


def test_the_same_values_give_the_same_interval() -> None:
    values = np.random.default_rng(1).normal(size=8)
    assert statistics.mean_interval(values) == statistics.mean_interval(values)


def test_many_normal_values_give_the_classical_interval() -> None:
    values = np.random.default_rng(2).normal(size=400)
    mean, low, high = statistics.mean_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(mean - half, abs=0.01)
    assert high == pytest.approx(mean + half, abs=0.01)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    intervals = [statistics.mean_interval(rng.normal(size=20), resamples=1000) for _ in range(300)]
    covered = np.mean([low <= 0 <= high for _, low, high in intervals])
    assert 0.88 <= covered <= 0.98  # the percentile bootstrap is a little narrow at n = 20: about 93 %


def test_coverage_of_few_runs_is_as_documented() -> None:
    # docs/reports.md: 75 % with three runs, 83 % with five; three normal values lie on both sides of their mean with
    # probability 3/4, and their interval runs from the lowest to the highest.
    rng = np.random.default_rng(4)
    for runs, share in ((3, 0.75), (5, 0.83)):
        intervals = [statistics.mean_interval(rng.normal(size=runs), resamples=500) for _ in range(1000)]
        assert np.mean([low <= 0 <= high for _, low, high in intervals]) == pytest.approx(share, abs=0.04)


def test_intervals_of_the_interquartile_mean_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    offsets = np.linspace(0, 1, 5)  # tasks of different difficulty: only runs may be drawn anew, within their task
    truth = float(statistics.iqm(rng.normal(scale=0.3, size=(100_000, 5)) + offsets))
    intervals = [
        statistics.interval(statistics.iqm, rng.normal(scale=0.3, size=(10, 5)) + offsets, resamples=500)
        for _ in range(300)
    ]
    assert 0.87 <= np.mean([low <= truth <= high for _, low, high in intervals]) <= 0.98


# ---------------------------------------------------------------------------------------------- by hand, rliable


SCORES = np.array([[0.0, 1.0], [0.2, 1.2], [0.4, 1.4], [1.6, 5.0]])
"""Four runs on two tasks; the task means are 0.55 and 2.15."""


def test_statistics_by_hand() -> None:
    assert statistics.mean(SCORES) == pytest.approx(1.35)
    assert statistics.median(SCORES[:, [0, 1, 1]]) == pytest.approx(2.15)
    # In order 0, .2, .4, 1, 1.2, 1.4, 1.6, 5: two fall out at either end.
    assert statistics.iqm(SCORES) == pytest.approx((0.4 + 1.0 + 1.2 + 1.4) / 4)
    # Cut at 1: 0, .2, .4, 1 and four times 1.
    assert statistics.optimality_gap(SCORES) == pytest.approx(1 - 5.6 / 8)
    assert statistics.optimality_gap(SCORES, target=2.0) == pytest.approx(2 - 7.8 / 8)


def test_three_scores_have_no_quarter_to_leave_out_and_five_have_one() -> None:
    assert statistics.iqm(np.array([[0.0], [0.0], [3.0]])) == 1.0
    assert statistics.iqm(np.array([[0.0], [1.0], [2.0], [3.0], [100.0]])) == 2.0


def test_profiles_count_scores_strictly_above() -> None:
    profile = statistics.performance_profile(SCORES, np.array([-1.0, 0.4, 1.4, 5.0]))
    np.testing.assert_allclose(profile, [1, 5 / 8, 2 / 8, 0])


def test_probability_of_improvement_by_hand() -> None:
    # Task 1: of (1, 2) against (0, 1, 3), pairs won 1 + 2, one tie, of 6. Task 2: all lost.
    ours, theirs = np.array([[1.0, 0], [2, 0]]), np.array([[0.0, 1], [1, 1], [3, 1]])
    assert statistics.probability_of_improvement(ours, theirs) == pytest.approx((3.5 / 6 + 0) / 2)
    assert statistics.probability_of_improvement(theirs, ours) == pytest.approx((2.5 / 6 + 1) / 2)


def test_runs_are_drawn_within_their_task() -> None:
    # Both tasks are constant: across tasks the mean would vary, within them it cannot.
    assert statistics.interval(statistics.mean, np.array([[0.0, 1.0]] * 5)) == (0.5, 0.5, 0.5)
    # Task means of (0, 1) vary apart from each other: both are 0 in 1 of 16 resamples, more than 2.5 %; three tasks'
    # in 1 of 64, less, and the next mean is that with one run of 1.
    assert statistics.interval(statistics.mean, np.array([[0.0, 0.0], [1.0, 1.0]])) == (0.5, 0.0, 1.0)
    three = statistics.interval(statistics.mean, np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    np.testing.assert_allclose(three, (0.5, 1 / 6, 5 / 6))


@pytest.mark.parametrize(
    "scores", [np.array([1.0, 2.0]), np.zeros((0, 2)), np.array([[1.0, np.nan], [0.0, 1.0]]), np.zeros((2, 0))]
)
def test_what_is_no_table_of_finite_scores_is_refused(scores: np.ndarray) -> None:
    with pytest.raises(ValueError, match="scores must be"):
        statistics.interval(statistics.mean, scores)
    with pytest.raises(ValueError, match="same tasks"):
        statistics.interval(statistics.probability_of_improvement, np.zeros((2, 2)), np.zeros((2, 3)))


TABLE = json.loads(Path(__file__).with_name("rliable_values.json").read_text())


@pytest.mark.parametrize("case", TABLE["cases"], ids=["many", "ties", "unequal"])
def test_values_are_those_of_rliable(case: dict[str, dict]) -> None:
    ours, theirs = np.array(case["x"]), np.array(case["y"])
    for name in ("mean", "median", "iqm", "optimality_gap"):
        found = statistics.interval(getattr(statistics, name), ours)
        assert found.mean == pytest.approx(case[name]["value"], abs=1e-12)
        np.testing.assert_allclose(found[1:], case[name]["interval"], atol=0.006)  # both are resampled
    thresholds = np.array(case["profile"]["thresholds"])
    profile = functools.partial(statistics.performance_profile, thresholds=thresholds)
    np.testing.assert_allclose(profile(ours), case["profile"]["value"], atol=1e-12)
    # Shares are multiples of 1 / scores, so that bounds may differ by one.
    np.testing.assert_allclose(statistics.bootstrap(profile, ours), case["profile"]["interval"], atol=1.01 / ours.size)
    found = statistics.interval(statistics.probability_of_improvement, ours, theirs)
    assert found.mean == pytest.approx(case["improvement"]["value"], abs=1e-12)
    np.testing.assert_allclose(found[1:], case["improvement"]["interval"], atol=0.02)


FAULTS = {
    "flowrl/run_folder/statistics.py": [
        (
            "-1), 0.25, axis=-1)",
            "-1), 0.2, axis=-1)",
            "test_probability_of_improvement_by_hand or test_statistics_by_hand or test_three_values_by_hand",
        ),
        ("mean(scores > threshold)", "mean(scores >= threshold)", "test_profiles_count_scores_strictly_above"),
        (" + 0.5 * (ours == theirs)", "", "test_probability_of_improvement_by_hand"),
        (
            "rng.integers(0, len(matrix), (resamples, *matrix.shape))",
            "rng.integers(0, len(matrix), (resamples, len(matrix), 1)).repeat(matrix.shape[1], axis=2)",
            "test_runs_are_drawn_within_their_task or test_values_are_those_of_rliable",
        ),
    ],
}
