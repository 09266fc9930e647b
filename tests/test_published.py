"""Released curves of others: what they say, when they may stand beside ours, and rows of a suite."""

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import load
from run_dirs import make_run

from flowrl.errors import UserError
from flowrl.experiment.presets import datasets
from flowrl.reports import curves, figures, published, score_tables, suites
from flowrl.reports.curves import Group
from flowrl.run_folder import evaluations, statistics

plot = load("experiments/plot.py")
TASK = "cube-double-play-singletask-task2"
TEN = [0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.5, 0.6]


def official(folder: Path, curve: Sequence[float] = TEN, each: int = 100_000, **given: Any) -> Path:
    """Writes a run of FQL with two seeds on OGBench's own data, evaluated every `each` updates."""
    changed = {name: given.pop(name) for name in [*given] if "." in name or name == "max_episode_steps"}
    origin = given.pop("origin", "official")
    make_run(folder, {0: [*curve], 1: [*curve]}, **{"agent": "fql", "env": TASK, "batch_size": 256, **given})
    config = json.loads((folder / "config.json").read_text())
    config["settings"] |= {"steps": each * len(curve), "eval.interval": each} | changed
    if origin == "official":
        config["data"] |= {"origin": origin, "detail": "official download"}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    lines = [line | {"step": line["step"] // 100 * each} for line in lines]
    (folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


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


# ------------------------------------------------------------------------------------------------------- suites


def line_of(folder: Path) -> dict[str, Any]:
    entries, _ = score_tables.read([folder], {folder: {"per_action": 0.5}})
    return suites.row(entries[0])


def test_a_row_is_a_run_with_all_that_it_can_be_traced_by(tmp_path: Path) -> None:
    row = line_of(official(tmp_path / "a", env="cube-double-play-singletask", preset="quick"))
    assert [row[name] for name in suites.KEY] == [TASK, "fql", "quick"]
    assert row["command"].startswith("python experiments/main.py --agent=fql")
    assert (row["git_commit"], row["hardware"]) == ("0123456789abcdef-dirty", "an abacus, 2 cores")
    assert row["data"] == {"from": "official download", "sha256": "ab" * 32}
    assert row["per_seed"] == pytest.approx({"0": 0.5, "1": 0.5})
    assert row["curve"]["updates"] == [*range(100_000, 1_000_001, 100_000)]
    np.testing.assert_allclose(row["curve"]["per_seed"]["1"], TEN, atol=1e-12)
    assert row["size"] == {"updates": 1_000_000, "batch_size": 256, "hidden_dims": [8, 8]}
    assert str(tmp_path) not in json.dumps(row)


def test_rows_of_presets_stand_apart_on_the_page(tmp_path: Path) -> None:
    paper = line_of(official(tmp_path / "a"))
    quick = line_of(official(tmp_path / "b", [0.1, 0.3], each=10_000, preset="quick"))
    suites.add(tmp_path / "suite", [paper])
    suites.add(tmp_path / "suite", [quick])
    assert [row["preset"] for row in suites.read(tmp_path / "suite" / "rows.jsonl")] == ["paper", "quick"]
    first, second = (tmp_path / "suite" / "README.md").read_text().split("## Preset ")[1:]
    assert first.startswith("paper: 1,000,000 updates\n")
    assert second.startswith("quick: 20,000 updates\n")
    assert "50.0 %" in first
    assert "20.0 %" in second
    assert "10 → 30" in second
    assert "`python experiments/main.py --agent=fql" in second


def test_tasks_of_another_size_stand_apart_on_the_page(tmp_path: Path) -> None:
    row = line_of(official(tmp_path / "a"))
    other = row | {"task": "scene-play-singletask-task2", "size": row["size"] | {"updates": 500_000}}
    suites.add(tmp_path / "suite", [row, other])
    shorter, longer = (tmp_path / "suite" / "README.md").read_text().split("## Preset ")[1:]
    assert shorter.startswith("paper: 500,000 updates\n")
    assert ("scene-play" in shorter, "scene-play" in longer) == (True, False)
    assert longer.startswith("paper: 1,000,000 updates\n")


def test_sparse_rewards_are_another_task(tmp_path: Path) -> None:
    folders = official(tmp_path / "a"), official(tmp_path / "b", agent="bc", **{"normalize.sparse": True})
    entries, _ = score_tables.read(folders, {})
    text = score_tables.markdown(entries, "a command", [])
    assert f"- {TASK}: rewards differ, those of bc are sparse\n" in text
    suites.add(tmp_path / "suite", [suites.row(entry) for entry in entries])
    head, dense, sparse = [line for line in (tmp_path / "suite" / "README.md").read_text().split("\n") if "| " in line][
        :3
    ]
    assert head == "| task | `bc` | `fql` |"
    assert dense.startswith(f"| {TASK} |  | 50.0 %")
    assert sparse.startswith(f"| {TASK}, sparse rewards | 50.0 %")


def test_the_same_run_replaces_its_row_and_another_is_refused(tmp_path: Path) -> None:
    row = line_of(official(tmp_path / "a"))
    suites.add(tmp_path / "suite", [row])
    suites.add(tmp_path / "suite", [line_of(tmp_path / "a") | {"one_draw": 0.25}])
    (kept,) = suites.read(tmp_path / "suite" / "rows.jsonl")
    assert kept["one_draw"] == 0.25
    other = line_of(official(tmp_path / "b", alpha=1.0))
    with pytest.raises(UserError, match=f"has a row of fql on {TASK} with --preset=paper already, of another run"):
        suites.add(tmp_path / "suite", [other])
    assert suites.read(tmp_path / "suite" / "rows.jsonl") == [kept]


def test_a_table_does_not_mix_sizes(tmp_path: Path) -> None:
    suites.add(tmp_path / "suite", [line_of(official(tmp_path / "a"))])
    other = line_of(official(tmp_path / "b", TEN[:5], agent="sscp"))
    with pytest.raises(UserError, match=r"sscp on .* has 500,000 updates, fql 1,000,000; .* not mix"):
        suites.add(tmp_path / "suite", [other])
    longest = suites.Claim.of(other)._replace(updates=2_000_000)
    with pytest.raises(UserError, match=r"sscp on .* has 2,000,000 updates, sscp 500,000"):
        suites.require(tmp_path / "new", [suites.Claim.of(other), longest])


def test_an_unfinished_run_and_a_damaged_row_are_errors(tmp_path: Path) -> None:
    folder = official(tmp_path / "a", steps=2000)
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["steps"] = 2_000_000
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="unfinished: 1,000,000 of 2,000,000 updates; only finished runs"):
        line_of(folder)
    path = tmp_path / "rows.jsonl"
    row = line_of(official(tmp_path / "b"))
    path.write_text(json.dumps(row | {"mean": None}))
    with pytest.raises(UserError, match=r"rows.jsonl, line 1: mean is null, not a number; put the right file back"):
        suites.read(path)
    path.write_text(f"{json.dumps(row)}\n{json.dumps(row)}\n")
    with pytest.raises(UserError, match=r"line 2: .* is there twice"):
        suites.read(path)


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
    "flowrl/reports/score_tables.py": [
        ("rewards differ, those", "rewards, those", "test_sparse_rewards_are_another_task"),
    ],
    "flowrl/reports/suites.py": [
        ('", sparse rewards" * row["sparse"]', '""', "test_sparse_rewards_are_another_task"),
        ("(*held, *claims[:count])", "held", "test_a_table_does_not_mix_sizes"),
        ("and other.run != claim.run:", "and False:", "test_the_same_run_replaces_its_row_and_another_is_refused"),
        (
            "(other.preset, other.task) == (claim.preset, claim.task)",
            "other.task == claim.task",
            "test_rows_of_presets_stand_apart_on_the_page",
        ),
        (
            "(other.preset, other.task) == (claim.preset, claim.task)",
            "other.preset == claim.preset",
            "test_tasks_of_another_size_stand_apart_on_the_page",
        ),
        (
            '(row["preset"], row["size"]["updates"]) == (preset, updates)',
            'row["preset"] == preset',
            "test_tasks_of_another_size_stand_apart_on_the_page",
        ),
        (
            "other.updates != claim.updates",
            "other.updates > 9 * claim.updates",
            "test_a_table_does_not_mix_sizes",
        ),
        (
            '"task": canonical(entry.environment)',
            '"task": entry.environment',
            "test_a_row_is_a_run_with_all_that_it_can_be_traced_by",
        ),
    ],
}
