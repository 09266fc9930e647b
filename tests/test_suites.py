"""Suites: rows that comparisons add to a table, what the table refuses, and the tasks that a suite is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import load, save_walks
from run_dirs import TASK, TEN, official

from flowrl.errors import UserError
from flowrl.experiment import cells, comparing, presets
from flowrl.reports import score_tables, suites
from flowrl.run_folder import logs

program = load("experiments/compare.py")


def compare(*arguments: object) -> int:
    return program.main(["compare.py", *map(str, arguments)])


# --------------------------------------------------------------------------------------------------------- rows


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


# -------------------------------------------------------------------------------------------- one command to fill


@pytest.fixture
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A quick preset of a few updates, of which no more is measured than must be."""
    monkeypatch.setattr(comparing, "MEASURED", 0.001)
    row = {"dataset": "", "setting": "", "source": "tiny", "steps": "20", "log.interval": "10", "eval.interval": "10"}
    row |= {"eval.episodes": "1", "checkpoint.interval": "10", "agent.hidden_dims": "4", "agent.batch_size": "4"}
    monkeypatch.setattr(presets, "table", lambda name, agent: (row,) if name == "quick" else ())
    return row


@pytest.mark.slow
def test_a_suite_adds_its_rows_once(tmp_path: Path, tiny_preset: dict[str, str]) -> None:
    data = save_walks(tmp_path / "walks.npz")
    given = ("--agents=bc", "--suite=ogbench-singletask", "--envs=pointmaze-medium-navigate-singletask")
    given = (*given, "--preset=quick", f"--data={data}", "--workers=1", f"--results={tmp_path / 'results'}")
    assert compare(*given, f"--run_dir={tmp_path / 'a'}") == 0
    page = tmp_path / "results" / "ogbench_singletask" / "README.md"
    (row,) = map(logs.schema.parsed, (page.parent / "rows.jsonl").read_text().splitlines())
    assert (row["task"], row["agent"], row["preset"]) == ("pointmaze-medium-navigate-singletask-task1", "bc", "quick")
    assert row["size"]["updates"] == 20
    assert row["speed"].keys() == {"per_action", "per_update"}
    assert "## Preset quick: 20 updates" in page.read_text()
    assert str(tmp_path) not in page.read_text()
    before = page.read_bytes()
    assert compare(*given, f"--run_dir={tmp_path / 'a'}") == 0  # the same run
    assert page.read_bytes() == before
    with pytest.raises(UserError, match=r"^[^\n]*has a row of bc on .* already, of another run"):
        compare(*given, f"--run_dir={tmp_path / 'b'}")
    assert not (tmp_path / "b").exists()


def test_a_suite_refuses_other_sizes_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comparing, "_train_all", None)
    given = ("--suite=ogbench-goals", "--preset=quick", "--results=results", "--run_dir=run")
    held = {"task": "antmaze-large-navigate", "agent": "hiql", "preset": "quick", "size": {"updates": 20_000}}
    held |= {"command": "compare.py", "git_commit": None, "run": "0"}
    monkeypatch.setattr(suites, "read", lambda path: [held])
    sizes = "gc_sscp on antmaze-large-navigate has 60,000 updates, hiql 20,000"
    envs = "--envs=antmaze-medium-navigate,antmaze-large-navigate"
    refusal = f"^{sizes}; the table of --preset=quick in results.* does not mix sizes"
    with pytest.raises(UserError, match=refusal):
        compare("--agents=gc_sscp", envs, *given)
    assert [*tmp_path.iterdir()] == []


def test_a_suite_leaves_out_what_has_no_published_settings(capsys: pytest.CaptureFixture[str]) -> None:
    def found(agents: str, envs: str) -> list[str]:
        options = cells.CompareSettings(agents=agents, envs=envs, suite="ogbench-singletask")
        return [cell.name for cell in cells.cells(cells.Comparison({}, {}, options, ""))]

    cube, soccer = "cube-double-play-singletask-task1", "antsoccer-arena-navigate-singletask-task1"
    assert found("qam,fql", f"{cube},{soccer}") == [f"qam on {cube}", f"fql on {cube}", f"fql on {soccer}"]
    assert capsys.readouterr().out == f"no published settings of qam, which is left out there: {soccer}\n"
    with pytest.raises(UserError, match="none of these agents has published settings for any of these tasks"):
        found("qam", soccer)


def test_a_suite_is_fifty_tasks() -> None:
    names = cells.SUITES["ogbench-singletask"].names
    assert len(set(names)) == 50
    assert set(names) <= presets.datasets("fql")


def test_the_suite_of_goals_is_all_published_sets_of_states() -> None:
    names = cells.SUITES["ogbench-goals"].names
    published = {name for name in presets.datasets("hiql") if not name.startswith(("visual", "powderworld"))}
    assert sorted(names) == sorted(published)


FAULTS = {
    "flowrl/experiment/cells.py": [
        ("    suites.require(comp", "    print(comp", "test_a_suite_adds_its_rows_once"),
        (
            "settings.preset, settings.total,",
            "settings.preset, 20,",
            "test_a_suite_refuses_other_sizes_before_it_trains",
        ),
        (
            'if not {"", env.published} & presets.datasets(name)]',
            "if False]",
            "test_a_suite_leaves_out_what_has_no_published_settings",
        ),
        ('("play", "noisy"): (', '("play", "loud"): (', "test_the_suite_of_goals_is_all_published_sets_of_states"),
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
