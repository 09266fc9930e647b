"""Comparisons of configurations, on made-up run directories."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_dirs import make_run

from flowrl.reports import comparisons, curves
from flowrl.reports.curves import Group
from flowrl.run_folder import evaluations, statistics

LARGE = "pointmaze-large-navigate"


def groups_of(*folders: Path) -> list[Group]:
    return curves.group_runs([run for folder in folders for run in evaluations.read_runs(folder, with_minutes=False)])


@pytest.fixture
def sweep(tmp_path: Path) -> Sequence[Path]:
    """A weight swept at two sizes of networks, and the sizes at one weight; one evaluation each."""
    settings = [(0.1, 8), (10.0, 8), (1.0, 8), (0.1, 4), (10.0, 4)]
    return [
        make_run(
            tmp_path / f"{alpha}-{size}", {0: [0.01 * alpha], 1: [0.02 * alpha]}, alpha=alpha, hidden_dims=[size, 8]
        )
        for alpha, size in settings
    ]


def test_final_scores_average_the_last_three_evaluations_and_the_best_one_decides_nothing(tmp_path: Path) -> None:
    steady = make_run(tmp_path / "a", {0: [0.1, 0.5, 0.5, 0.5], 1: [0.1, 0.6, 0.6, 0.6], 2: [0.0, 0.1, 0.2, 0.3]})
    lucky = make_run(
        tmp_path / "b", {0: [0.9, 0.1, 0.1, 0.1], 1: [0.9, 0.9, 0.9, 0.6], 2: [0.9, 0.1, 0.1, 0.1]}, alpha=1.0
    )
    (panel,) = comparisons.final(groups_of(steady, lucky))
    first, second = panel["configurations"]
    np.testing.assert_allclose([*first["per_seed"].values()], [0.5, 0.6, 0.2])
    np.testing.assert_allclose([*second["per_seed"].values()], [0.1, 0.8, 0.1])
    assert first["mean"] == pytest.approx(1.3 / 3)
    assert first["mean_interval_95"] == pytest.approx([0.2, 0.6])
    assert first["rule"] == "mean over tasks and the evaluations after updates [200, 300, 400]"
    assert comparisons.best(panel["configurations"]) is first


def test_the_interquartile_mean_leaves_out_the_outer_quarters_of_the_seeds(tmp_path: Path) -> None:
    values = (0.2, 0.9, 0.3, 0.4)
    (panel,) = comparisons.final(groups_of(make_run(tmp_path / "a", {i: [x] for i, x in enumerate(values)})))
    assert panel["configurations"][0]["iqm"] == pytest.approx(0.35)


def test_pairs_name_the_better_one_first(tmp_path: Path) -> None:
    low = make_run(tmp_path / "a", {0: [0.1], 1: [0.3], 2: [0.5]})
    high = make_run(tmp_path / "b", {0: [0.2], 1: [0.5], 2: [0.6]}, alpha=1.0)
    (panel,) = comparisons.improvement(groups_of(low, high))
    (pair,) = panel["pairs"]
    assert (pair["better"], pair["than"]) == ("gcbc, agent.alpha=1.0", "gcbc, agent.alpha=3.0")
    assert pair["probability"] == pytest.approx((1 + 2.5 + 3) / 9)
    assert pair["seeds"] == [3, 3]


def test_none_is_best_where_one_of_the_two_highest_has_a_single_seed() -> None:
    high, middle, low = ({"mean": mean, "per_seed": {0: mean, 1: mean}} for mean in (0.9, 0.5, 0.1))

    def alone(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"per_seed": {0: row["mean"]}}

    assert comparisons.best([low, high, middle]) is high
    assert comparisons.best([alone(low), high, middle]) is high
    assert comparisons.best([low, alone(high), middle]) is None
    assert comparisons.best([low, high, alone(middle)]) is None
    assert comparisons.best([high]) is high
    assert comparisons.best([alone(high)]) is None


def test_many_configurations_are_compared_with_the_best_alone(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(i), {0: [0.1 * i]}, alpha=float(i)) for i in range(7)]
    (panel,) = comparisons.improvement(groups_of(*folders))
    assert [pair["better"] for pair in panel["pairs"]] == ["gcbc, agent.alpha=6.0"] * 6
    assert panel["pairs"][0]["probability_interval_95"] is None


def test_profiles_change_at_the_scores(tmp_path: Path) -> None:
    (panel,) = comparisons.profile(groups_of(make_run(tmp_path / "a", {0: [0.25], 1: [0.5]})))
    np.testing.assert_allclose(panel["thresholds"], [0, 0.25, 0.5, 1])
    (row,) = panel["configurations"]
    assert row["share"] == [1, 0.5, 0, 0]
    assert row["low"] == [1, 0, 0, 0]
    assert row["high"] == [1, 1, 0, 0]


def two_environments(tmp_path: Path, seeds: int = 3) -> list[Path]:
    rng = np.random.default_rng(0)
    return [
        make_run(
            tmp_path / f"{env}{alpha}",
            {seed: [float(rng.uniform(0.2, 0.8))] for seed in range(seeds if env == LARGE else 3)},
            env=env,
            alpha=alpha,
        )
        for env in ("pointmaze-medium-navigate", LARGE)
        for alpha in (1.0, 3.0)
    ]


def test_environments_are_the_tasks_of_pooled_statistics(tmp_path: Path) -> None:
    groups = groups_of(*two_environments(tmp_path))
    (panel,) = comparisons.pooled(groups)
    assert panel["panel"] == "all 2 environments"
    for row, members in zip(panel["configurations"], ((0, 2), (1, 3)), strict=True):
        scores = np.array([[*groups[index].final.values()] for index in members]).T
        for prefix in ("mean", "median", "iqm", "optimality_gap"):
            expected = statistics.interval(getattr(statistics, prefix), scores)
            assert row[prefix] == expected.mean
            assert row[f"{prefix}_interval_95"] == [expected.low, expected.high]
    assert [panel["panel"] for panel in comparisons.improvement(groups)][-1] == "all 2 environments"


def test_environments_with_other_numbers_of_seeds_are_not_pooled(tmp_path: Path) -> None:
    assert comparisons.pooled(groups_of(*two_environments(tmp_path, seeds=2))) == []


def test_sensitivity_varies_one_setting_with_all_others_the_same(sweep: Sequence[Path]) -> None:
    by_field = {panel["field"]: panel for panel in comparisons.sensitivity(groups_of(*sweep))}
    assert set(by_field) == {"agent.alpha", "agent.hidden_dims"}
    wide, narrow = by_field["agent.alpha"]["lines"]
    assert wide["values"] == [0.1, 1.0, 10.0]
    assert wide["fixed"] == {"agent.hidden_dims": "8,8"}
    np.testing.assert_allclose(wide["mean"], [0.0015, 0.015, 0.15])
    np.testing.assert_allclose(wide["interval_95"][1], [0.01, 0.02])
    assert narrow["values"] == [0.1, 10.0]
    sizes: list[dict[str, Any]] = by_field["agent.hidden_dims"]["lines"]
    assert [line["fixed"] for line in sizes] == [{"agent.alpha": "0.1"}, {"agent.alpha": "10.0"}]
    assert sizes[0]["values"] == [[8, 8], [4, 8]]


def test_two_settings_that_change_together_show_no_sensitivity(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(i), {0: [0.1]}, alpha=float(i), beta=i) for i in range(2)]
    with pytest.raises(comparisons.NothingToCompare, match="one setting only"):
        comparisons.sensitivity(groups_of(*folders))


FAULTS = {
    "flowrl/reports/comparisons.py": [
        (
            'key=lambda row: -row["mean"]',
            'key=lambda row: -max(row["per_seed"].values())',
            "test_final_scores_average_the_last_three_evaluations_and_the_best_one_decides_nothing",
        ),
        (
            "if key != field}",
            'if key not in (field, "agent.hidden_dims")}',
            (
                "test_sensitivity_varies_one_setting_with_all_others_the_same or "
                "test_two_settings_that_change_together_show_no_sensitivity"
            ),
        ),
        ("(first, *rest[:1])", "()", "test_none_is_best_where_one_of_the_two_highest_has_a_single_seed"),
        ("(first, *rest[:1])", "(first,)", "test_none_is_best_where_one_of_the_two_highest_has_a_single_seed"),
    ],
}
