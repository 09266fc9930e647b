"""Released curves of others: what they say, and when they may stand beside ours."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from commands import load
from run_dirs import TASK, TEN, official

from flowrl.errors import UserError
from flowrl.experiment.presets import datasets
from flowrl.reports import curves, figures, published, score_tables
from flowrl.reports.curves import Group
from flowrl.run_folder import evaluations, statistics

plot = load("experiments/plot.py")


def group_of(folder: Path) -> Group:
    (group,) = curves.group_runs(evaluations.read_runs(folder, with_minutes=False))
    return group


# ----------------------------------------------------------------------------------------------------- numbers


def test_the_release_is_whole() -> None:
    """Means over all tasks and seeds after a million updates, as its authors tell them."""
    file = published._file("qam")
    means = {name: file[f"successes/{name}"][:, 19].mean() * 2 for name in ("FQL", "QAM", "ReBRAC")}
    assert means == pytest.approx({"FQL": 35.74, "QAM": 44.39, "ReBRAC": 39.99}, abs=5e-3)
    assert len(file["tasks"]) == 50


@pytest.mark.parametrize("name", ["qam", "gfp", "qc"])
def test_files_hold_no_objects_and_have_their_notices_beside_them(name: str) -> None:
    assert all(array.dtype != object for array in published._file(name).values())
    notice = (resources.files("flowrl.reports") / "released" / f"LICENSE.{name}").read_text()
    assert notice.startswith("The MIT License")


def test_a_curve_is_means_over_seeds_of_shares_of_episodes() -> None:
    raw = published._file("qam")
    row = [*raw["tasks"]].index(TASK)
    (curve,) = [one for one in published.of_task(TASK) if (one.method, one.source) == ("FQL", published.QAM)]
    assert curve.updates == (*range(50_000, 1_000_001, 50_000),)
    assert curve.agent == "fql"
    assert curve.name == "FQL of QAM's authors, 12 seeds"
    shares = raw["successes/FQL"][row, :20] / 50
    assert curve.intervals[3] == statistics.mean_interval(shares[3])
    last = statistics.mean_interval(shares[[15, 17, 19]].mean(axis=0))
    assert curve.final([800_000, 900_000, 1_000_000]) == last
    assert curve.final([800_000, 900_000, 999_000]) is None
    assert curve.upto(120_000).updates == (50_000, 100_000)


def test_final_scores_alone_stand_at_the_end_and_means_without_seeds_for_themselves() -> None:
    known = {(one.method, one.source): one for one in published.of_task(TASK)}
    gfp, qc = known["GFP", published.GFP], known["QC", published.QC]
    assert gfp.updates == (1_000_000,)
    assert gfp.final([800_000, 900_000, 1_000_000]) == gfp.intervals[0]
    assert gfp.final([300_000, 400_000, 500_000]) is None
    assert qc.scores is None
    assert qc.updates == (*range(100_000, 1_000_001, 100_000),)
    assert qc.final([800_000, 900_000, 1_000_000]) == qc.intervals[-1]
    assert ("RLPD", published.QAM) not in known  # online only
    assert ("RLPD", published.QC) not in known


def test_a_name_without_number_is_ogbenchs_default_task() -> None:
    names = {name: published.canonical(f"{name}-singletask") for name in ("antmaze-large-navigate", "cube-single-play")}
    assert names["antmaze-large-navigate"].endswith("task1")
    assert names["cube-single-play"].endswith("task2")
    assert published.canonical("antsoccer-arena-navigate-singletask-v0").endswith("task4")
    assert published.canonical("puzzle-4x4-play-singletask").endswith("task4")
    assert published.canonical("puzzle-4x5-play-singletask").endswith("task2")
    assert published.canonical("scene-play-singletask-task3-v0") == "scene-play-singletask-task3"
    assert published.canonical("hopper-medium-v2") == "hopper-medium-v2"
    assert {published.canonical(name) for name in datasets("fql") if name.endswith("singletask")} <= datasets("fql")


# --------------------------------------------------------------------------------------------------- obstacles


def test_curves_of_our_agents_stand_beside_runs_of_the_same_problem(tmp_path: Path) -> None:
    found, reasons = published.beside([group_of(official(tmp_path / "a"))])
    assert [curve.name for curve in found] == ["FQL of QAM's authors, 12 seeds", "FQL of QC's authors"]
    assert reasons == []
    found, _ = published.beside([group_of(official(tmp_path / "b", TEN[:5]))], ["QC", "qam-e"])
    assert [(curve.method, curve.updates[-1]) for curve in found] == [("QAM-E", 500_000), ("QC", 500_000)]


def test_curves_of_sparse_rewards_stand_beside_runs_of_sparse_rewards(tmp_path: Path) -> None:
    ours = group_of(official(tmp_path / "a", env="scene-play-singletask", **{"normalize.sparse": True}))
    found, reasons = published.beside([ours])
    assert [curve.name for curve in found] == ["FQL of QAM's authors, 12 seeds", "FQL of QC's authors"]
    assert reasons == []
    found, reasons = published.beside([ours], ["GFP"])
    assert (found, reasons[0].rpartition(": ")[2]) == ([], "our rewards are sparse")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"origin": "collected"}, "official download, our data are collected by flowrl", id="origin"),
        pytest.param({"env": "scene-play-singletask"}, "and FQL of QC's authors: its rewards are sparse", id="scene"),
        ({"env": "puzzle-4x4-play-singletask-task1"}, "rewards are sparse there, and its data have 100M rows"),
        ({"env": "cube-quadruple-play-singletask"}, "its data have 100M rows there"),
        ({"normalize.sparse": True}, "FQL of QAM's authors and FQL of QC's authors: our rewards are sparse"),
        (
            {"env": "puzzle-4x4-play-singletask-task1", "normalize.sparse": True},
            "authors: its data have 100M rows there",
        ),
        ({"online.steps": 1000}, "ours learns online"),
        ({"max_episode_steps": 10}, "our episodes are cut off"),
        pytest.param({"each": 2000}, "theirs are from 50,000 on, ours end at 20,000", id="updates"),
        ({"agent": "gcbc"}, "no released curves of gcbc"),
        ({"env": "hopper-medium-v2"}, "hopper-medium-v2: no released curves of fql"),
    ],
)
def test_what_is_not_comparable_is_said_in_one_line(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    found, reasons = published.beside([group_of(official(tmp_path / "a", **given))])
    assert found == []
    assert message in reasons[0]
    assert "\n" not in reasons[0]


def test_numbers_stand_beside_ours_at_the_same_updates_only(tmp_path: Path) -> None:
    (entry,), _ = score_tables.read([official(tmp_path / "a")], {})
    found, reasons = score_tables.released([entry])
    told = score_tables.theirs(entry, found[TASK])
    assert [name for name, _ in told] == ["FQL of QAM's authors, 12 seeds", "FQL of QC's authors"]
    assert told[0][1] == found[TASK][0].final([800_000, 900_000, 1_000_000])
    assert reasons == []
    text = score_tables.markdown([entry], "a command", [])
    assert f"FQL of QAM's authors, 12 seeds: {100 * told[0][1].mean:.1f} % [" in text
    assert "FQL of QAM's authors" in score_tables.comma_separated([entry])
    (entry,), _ = score_tables.read([official(tmp_path / "c", TEN, 90_000)], {})  # both have one after 900,000 alone
    found, reasons = score_tables.released([entry])
    assert score_tables.theirs(entry, found[TASK]) == []
    assert "no number for evaluations after updates [720000, 810000, 900000]" in reasons[0]


def test_one_run_that_cannot_be_compared_keeps_all_bands_away(tmp_path: Path) -> None:
    groups = [group_of(official(tmp_path / "a")), group_of(official(tmp_path / "b", origin="collected", alpha=1.0))]
    found, reasons = published.beside(groups)
    assert found == []
    assert len(reasons) == 1


# ----------------------------------------------------------------------------------------------------- pictures


def test_bands_are_drawn_with_their_numbers_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = official(tmp_path / "a"), official(tmp_path / "b", env="scene-play-singletask-task2")
    out = tmp_path / "c.png"
    assert plot.main(["plot.py", *map(str, ours), f"--out={out}", "--published", "--methods=FQL,GFP"]) == 0
    found = json.loads((tmp_path / "c.png.json").read_text())["released"]
    assert [one["label"] for one in found] == [
        "FQL of QAM's authors, 12 seeds",
        "GFP of GFP's authors, 8 seeds",
        "FQL of QC's authors",
        "GFP of GFP's authors, 8 seeds",
    ]
    assert found[0]["updates"][-1] == 1_000_000
    assert found[0]["mean"][-1] == pytest.approx(published.of_task(TASK)[9].intervals[-1].mean)
    assert "note: scene-play-singletask-task2: not comparable with FQL of QAM's authors" in capsys.readouterr().err


def test_bands_change_nothing_of_our_numbers(tmp_path: Path) -> None:
    group = group_of(official(tmp_path / "a"))
    plain, banded = (figures.make("curves", [group], released=found) for found in ({}, {TASK: published.of_task(TASK)}))
    assert banded.numbers["groups"] == plain.numbers["groups"]
    assert "released" not in plain.numbers


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--published", "--x=minutes"], "leave --kind and --x out"),
        (["--published", "--kind=final"], "leave --kind and --x out"),
        (["--methods=FQL"], "add --published"),
    ],
)
def test_bands_need_curves_over_updates(flags: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        plot.main(["plot.py", str(official(tmp_path / "a")), f"--out={tmp_path / 'c.png'}", *flags])


FAULTS = {
    "flowrl/reports/published.py": [
        ("[row, :20] / 50)", "[row, 10:30] / 50)", "test_a_curve_is_means_over_seeds_of_shares_of_episodes"),
        (
            "scores[rows].mean(axis=0)",
            "scores[rows].max(axis=0)",
            "test_a_curve_is_means_over_seeds_of_shares_of_episodes",
        ),
        ('r"antsoccer|puzzle-[34]x[34]", 4', 'r"antsoccer", 4', "test_a_name_without_number_is_ogbenchs_default_task"),
        ('!= "official" for run', '== "none" for run', "test_what_is_not_comparable_is_said_in_one_line and origin"),
        ('QAM: "scene|puzzle", ', "", "test_what_is_not_comparable_is_said_in_one_line and scene"),
        (
            "if sparse != group.sparse",
            "if sparse",
            "test_curves_of_sparse_rewards_stand_beside_runs_of_sparse_rewards",
        ),
        (
            "if not set(group.steps) & set(curve.updates)",
            "if not group.steps",
            "test_what_is_not_comparable_is_said_in_one_line and updates",
        ),
        (
            "for group in groups if (problem",
            "for group in groups[:1] if (problem",
            "test_one_run_that_cannot_be_compared_keeps_all_bands_away",
        ),
    ],
}
