"""The table of a sweep, its plots and reports."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import load
from run_dirs import make_run

from flowrl.experiment import grids, sweep_table
from flowrl.reports import curves
from flowrl.run_folder import evaluations, logs

# --------------------------------------------------------------------------------------------------------- table

SCORES = {
    0.1: {0: [0.9, 0.1, 0.2, 0.3], 1: [0.1, 0.3, 0.4, 0.5], 2: [0.1, 0.2, 0.2, 0.2], 3: [0.1, 0.6, 0.6, 0.6]},
    0.5: {0: [0.1, 0.1, 0.1, 0.7], 1: [0.1, 0.1, 0.1, 0.4], 2: [0.1, 0.1, 0.1, 0.4], 3: [0.1, 0.1, 0.1, 0.4]},
}


def write_evaluations(part: Path, lines: list[dict[str, Any]]) -> None:
    """Writes the evaluations of a part of a sweep, and that its runs are theirs."""
    (part / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    labels = {line["run"]: {name: line[name] for name in ("seed", "agent.alpha")} for line in lines}
    config = logs.read_json(part / "config.json")
    command = config["command"].replace("--agent.alpha=9.0", "--agent.alpha=0.1,0.5")
    logs.write_json(part / "config.json", config | {"grid": [*labels.values()], "command": command})


@pytest.fixture
def made_up(tmp_path: Path) -> grids.Sweep:
    """A finished sweep of made-up scores: four seeds of two values in one part."""
    parts = [make_run(tmp_path / f"of {value}", scores, alpha=9.0) for value, scores in SCORES.items()]
    found = []
    for (value, _), part in zip(SCORES.items(), parts, strict=True):
        for line in logs.read_lines(part / "eval.jsonl"):
            found.append(line | {"agent.alpha": value, "run": line["run"] + 4 * (value == 0.5), "mode": "eval"})
    folder = tmp_path / "sweep"
    folder.mkdir()
    make_run(folder / "group1", SCORES[0.1], alpha=9.0)
    write_evaluations(folder / "group1", found)
    given = {"agent": "gcbc", "env": "pointmaze-medium-navigate", "num_seeds": 4, "run_dir": str(folder)}
    swept = grids.Sweep(given, {"alpha": [0.1, 0.5]}, grids.SweepSettings())
    parts_of = {"folder": "group1", "fixed": {}, "runs": [{"seed": 0}]}
    settings = {name: given[name] for name in ("agent", "env")}
    logs.write_json(
        folder / "sweep.json", {"command": "python ...", "settings": settings, "grid": {}, "parts": [parts_of]}
    )
    return swept


def test_the_table_by_hand(made_up: grids.Sweep) -> None:
    by_rule = {
        "final": ({0: 0.2, 1: 0.4, 2: 0.2, 3: 0.6}, {0: 0.3, 1: 0.2, 2: 0.2, 3: 0.2}, 0.1),
        "last": ({0: 0.3, 1: 0.5, 2: 0.2, 3: 0.6}, {0: 0.7, 1: 0.4, 2: 0.4, 3: 0.4}, 0.5),
        "best": ({0: 0.9, 1: 0.5, 2: 0.2, 3: 0.6}, {0: 0.7, 1: 0.4, 2: 0.4, 3: 0.4}, 0.1),
    }
    for rule, (*expected, best) in by_rule.items():
        summary = sweep_table.summarize(made_up._replace(options=grids.SweepSettings(select=rule)))
        assert summary["best"] == {"alpha": best}
        assert summary["metric"] == "success"
        for row, scores in zip(summary["configurations"], expected, strict=True):
            assert row["per_seed"] == pytest.approx(scores)
            assert row["mean"] == pytest.approx(np.mean([*scores.values()]))
            assert row["iqm"] == pytest.approx(np.mean(sorted(scores.values())[1:3]))  # the middle half of four
            low, high = row["mean_interval_95"]
            assert min(scores.values()) <= low < row["mean"] < high <= max(scores.values())
    text = sweep_table.markdown(sweep_table.summarize(made_up))
    assert re.search(
        r"\| \*\*0.1\*\* \| \*\*35.0 % \[.*\]\*\* \| \*\*30.0 % \[.*\]\*\* \| \*\*0: 20.0, 1: 40.0, ", text
    )
    assert "| 0.5 | 22.5 %" in text
    assert "last three evaluations (after updates 200, 300, 400)" in text


def test_no_value_is_called_best_from_one_seed(made_up: grids.Sweep) -> None:
    part = made_up.folder / "group1"
    write_evaluations(part, [line for line in logs.read_lines(part / "eval.jsonl") if line["seed"] == 0])
    summary = sweep_table.summarize(made_up)
    assert summary["best"] is None
    text = sweep_table.markdown(summary)
    assert "**" not in text
    assert "No best: of the two highest one has a single seed" in text
    assert text.startswith("| `alpha` | success, mean |")


def test_plots_and_reports_see_the_grid_points(made_up: grids.Sweep, tmp_path: Path) -> None:
    folders = evaluations.expand([made_up.folder])
    assert folders == [made_up.folder / "group1"]
    record = logs.read_json(made_up.folder / "sweep.json")
    logs.write_json(
        made_up.folder / "sweep.json", record | {"parts": [*record["parts"], record["parts"][0] | {"folder": "group2"}]}
    )
    assert evaluations.expand([made_up.folder]) == folders
    assert evaluations.waiting([made_up.folder, folders[0]]) == ["sweep/group2 has not begun"]
    groups = curves.group_runs(evaluations.read_runs(folders[0], with_minutes=True))
    assert [(group.identity["agent.alpha"], len(group.curves)) for group in groups] == [(0.1, 4), (0.5, 4)]
    assert "--agent.alpha=0.5" in curves.traces(groups[1].runs[0])["command"]
    picture = tmp_path / "picture.png"
    assert load("experiments/plot.py").main(["p", str(made_up.folder), "--kind=sensitivity", f"--out={picture}"]) == 0
    (panel,) = logs.read_json(Path(f"{picture}.json"))["panels"]
    assert panel["field"] == "agent.alpha"
    assert panel["lines"][0]["mean"] == pytest.approx([0.35, 0.225])


FAULTS = {
    "flowrl/experiment/sweep_table.py": [
        ("curve[group.steps[-1]]", "max(curve.values())", "test_the_table_by_hand"),
        (
            "if (first := best(rows)) is None",
            "if (first := rows[0]) is None",
            "test_no_value_is_called_best_from_one_seed",
        ),
    ],
}
