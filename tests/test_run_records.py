"""Configurations and records of a run that a person has changed: one line with file, field and remedy."""

import json
from pathlib import Path
from typing import Any

import pytest
from altered_files import SCHEDULE, TINY, assert_refused, contents, reached
from commands import sweep

from flowrl.experiment import grids, resuming
from flowrl.experiment.stored import read_plan, resumed_plan
from flowrl.machine import schema
from flowrl.run_folder import formats, logs

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


# --------------------------------------------------------------------------------------------------------- config.json


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("settings", [], r"settings is \[\], not an object"),
        ("settings.agent", 3, "settings.agent is 3, not text"),
        ("settings.agent", "bcc", "settings.agent is 'bcc'; did you mean bc"),
        ("settings.env", None, "settings.env is null"),
        ("settings.env", "Pendulun-v9", "holds what no run can have"),
        ("settings.env", "pointmaze-medium-navigate", "bc learns a single task"),
        ("settings.steps", "20", 'settings.steps is "20", not a whole number'),
        ("settings.steps", 1e99, "settings.steps is 1e[+]99"),
        ("settings.steps", 0, "--steps=0 is too small"),
        ("settings.log.interval", None, "settings.log.interval is null"),
        ("settings.log.interval", 0, "settings.log.interval is 0, not a whole number of at least 1"),
        ("settings.num_seeds", 1.5, "settings.num_seeds is 1.5"),
        ("settings.num_seeds", 1, r"seeds are \[0, 1\], but those of its runs are \[0\]"),
        ("settings.seed", -1, "--seed=-1 is too small"),
        ("settings.log.csv", "yes", 'settings.log.csv is "yes", not true or false'),
        ("settings.online.updates_per_step", "1", "settings.online.updates_per_step is"),
        ("settings.map", "other", "--map=other is unknown"),
        ("settings.workers", [], r"settings.workers is \[\]"),
        ("settings.speed", 3, "settings.speed is no setting"),
        ("settings.normalize.reward_scale", ..., "settings.normalize.reward_scale is missing"),
        ("agent_config.hidden_dims", 4, "agent_config.hidden_dims is 4, not a list"),
        ("agent_config.hidden_dims", [4, "x"], r'agent_config.hidden_dims\[1\] is "x"'),
        ("agent_config.hidden_dims", [], r"agent_config.hidden_dims is \[\], not a list of at least 1"),
        ("agent_config.batch_size", -4, "--agent.batch_size=-4 is too small"),
        ("agent_config.batch_size", ..., "agent_config.batch_size is missing; put the right file back"),
        ("agent_config.learning_rate", "fast", 'agent_config.learning_rate is "fast", not a number'),
        ("agent_config.learning_rate", -1.0, "--agent.learning_rate=-1.0 is out of range"),
        ("agent_config.other", 1, "agent_config.other is no setting"),
        ("seeds", [0, 5], "but those of its runs"),
        ("seeds", 2, "seeds is 2, not a list"),
        ("preset", "paper", 'preset is "paper", not an object'),
        ("data.sha256", 7, "data.sha256 is 7"),
        ("data.path", None, "data.path is null"),
        ("data", ..., "data is missing"),
        ("grid", {}, "grid is {}, not a list"),
        ("grid", [{"seed": 0, "agent.batch_size": 2}], r"grid\[0\].agent.batch_size is no field that a sweep varies"),
        ("grid", [{"seed": 0, "agent.learning_rate": None}], r"grid\[0\].agent.learning_rate is null"),
        ("versions", 1, "versions is 1"),
    ],
)
def test_a_changed_config_is_named_with_its_field(run_dir: Path, place: str, value: Any, message: str) -> None:
    config = logs.read_json(run_dir / "config.json")
    outer, _, name = place.rpartition(".") if place.count(".") < 2 else place.partition(".")
    holder = config[outer] if outer else config
    if value is ...:
        del holder[name]
    else:
        holder[name] = value
    (run_dir / "config.json").write_text(json.dumps(config))
    assert_refused(f"{run_dir}/config.json.*{message}", lambda: resumed_plan({"run_dir": str(run_dir)}, {}))


@pytest.mark.parametrize(("commit", "rest"), [("0a1b2c3", ", or check out its commit 0a1b2c3"), (None, "")])
def test_the_commit_that_has_the_fields_is_named_where_it_is_known(
    run_dir: Path, commit: str | None, rest: str
) -> None:
    config = logs.read_json(run_dir / "config.json") | {"git_commit": commit}
    del config["agent_config"]["batch_size"]
    (run_dir / "config.json").write_text(json.dumps(config))
    told = f"agent_config.batch_size is missing; put the right file back{rest}$"
    assert_refused(told, lambda: resumed_plan({"run_dir": str(run_dir)}, {}))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\x80", b"[" * 10**5, b'{"settings": NaN}'])
def test_a_config_that_is_none(run_dir: Path, content: bytes) -> None:
    (run_dir / "config.json").write_bytes(content)
    assert_refused(f"{run_dir}/config.json.*put the right file back", lambda: read_plan(run_dir))


def test_a_folder_in_the_place_of_a_file(run_dir: Path) -> None:
    (run_dir / "config.json").unlink()
    (run_dir / "config.json").mkdir()
    assert_refused("cannot read .*config.json: Is a directory; put", lambda: read_plan(run_dir))


def test_fewer_steps_than_the_checkpoint_has(run_dir: Path) -> None:
    text = (run_dir / "config.json").read_text()
    (run_dir / "config.json").write_text(text.replace('"steps": 20', '"steps": 10'))
    there = reached(run_dir)
    assert_refused("at update 20, but its config.json is of 10 updates", lambda: resuming.cuts(*there))


# ---------------------------------------------------------------------------------------------------------- sweep.json


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """What a sweep of two rates and two sizes records."""
    settings = {"agent": "bc", "env": "Pendulum-v1", "preset": "none", "num_seeds": 1}
    grid = {"learning_rate": [0.1, 0.2], "hidden_dims": [[4], [2, 2]]}
    parts = [
        {
            "folder": f"group{index}",
            "fixed": {"hidden_dims": dims},
            "runs": [{"seed": 0, "agent.learning_rate": rate} for rate in grid["learning_rate"]],
        }
        for index, dims in enumerate(grid["hidden_dims"], 1)
    ]
    return {"command": "python experiments/sweep.py", "settings": settings, "grid": grid, "parts": parts}


def test_the_parts_of_a_sweep_are_read_as_they_were_written(record: dict[str, Any], tmp_path: Path) -> None:
    logs.write_json(tmp_path / "sweep.json", record)
    made = grids.resumed({"run_dir": str(tmp_path)}, {}, grids.SweepSettings())
    assert grids.recorded(made) == grids.groups(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": None}, "settings is null, not an object"),
        ({"settings": {"agent": "bc"}}, "settings.env is missing"),
        ({"settings": {"agent": "bcc", "env": "x"}}, "settings.agent is 'bcc'; did you mean bc"),
        ({"settings": {"agent": "bc", "env": "x", "steps": "9"}}, 'settings.steps is "9"'),
        ({"settings": {"agent": "bc", "env": "x", "stepz": 9}}, "settings.stepz is no setting"),
        ({"grid": []}, r"grid is \[\], not an object"),
        ({"grid": {"learning_rate": 0.1}}, "grid.learning_rate is 0.1, not a list"),
        ({"grid": {"learning_rate": ["fast"]}}, r'grid.learning_rate\[0\] is "fast"'),
        ({"grid": {"rate": [0.1]}}, "grid.rate is no setting"),
        ({"grid": {"learning_rate": [0.1]}}, "parts are not those of its grid and seeds"),
        ({"parts": {}}, "parts is {}, not a list"),
        ({"parts": []}, "parts is .*, not a list of at least 1"),
        ({"parts": [{"folder": "../other", "fixed": {}, "runs": [{"seed": 0}]}]}, "not the name of a part"),
        ({"parts": [{"folder": "group1", "fixed": {}}]}, r"parts\[0\].runs is missing"),
        ({"parts": [{"folder": "group1", "fixed": {}, "runs": [{"seed": "0"}]}]}, r'runs\[0\].seed is "0"'),
        ({"parts": [{"folder": "group1", "fixed": {}, "runs": [{"seed": 0}]}]}, "parts are not those of its grid"),
        ({"command": 1}, "command is 1, not text"),
    ],
)
def test_a_changed_sweep_is_named_with_its_field(
    record: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    logs.write_json(tmp_path / "sweep.json", record | change)

    def read() -> None:
        grids.recorded(grids.resumed({"run_dir": str(tmp_path)}, {}, grids.SweepSettings()))

    assert_refused(f"sweep.json: .*{message}", read)


def test_a_part_without_its_config_is_not_deleted(data: str, tmp_path: Path) -> None:
    command = (*TINY, *SCHEDULE, "--agent=bc", data, "--steps=10", "--agent.learning_rate=0.1,0.2")
    folder = tmp_path / "sweep" / "group1"
    assert sweep(*command, f"--run_dir={tmp_path / 'sweep'}") == 0
    for name in ("config.json", "summary.json"):
        (folder / name).unlink()
    before = contents(folder)
    assert_refused("group1 is not empty and holds no run", lambda: sweep(*command, f"--run_dir={tmp_path / 'sweep'}"))
    assert contents(folder) == before


# --------------------------------------------------------------------------------------------------------- other files


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (formats.DIVERGED, {}, "all of it is {}, not a list"),
        (formats.DIVERGED, [{"step": 3, "metric": "x", "run": 0}], r"\[0\].seed is missing"),
        (formats.SUMMARY, {"metric": 3}, "metric is 3, not text"),
        (formats.VIDEOS, {"step": 1}, "unit is missing"),
        (formats.WANDB, {"ids": [1]}, r"ids\[0\] is 1"),
    ],
)
def test_other_files_are_named_with_their_field(check: Any, value: Any, message: str, tmp_path: Path) -> None:
    logs.write_json(tmp_path / "file.json", value)
    assert_refused(
        f"file.json: {message}.*; put the right file back", lambda: schema.read(tmp_path / "file.json", check)
    )


FAULTS = {
    "flowrl/experiment/resuming.py": [
        ("reached.step > settings.total", "False", "test_fewer_steps_than_the_checkpoint_has"),
    ],
    "flowrl/machine/schema.py": [
        (
            "            elif name not in optional:\n",
            "            elif False:\n",
            "test_a_changed_config_is_named_with_its_field or test_a_changed_sweep_is_named_with_its_field",
        ),
        ('raise Mismatch(f"{place} is no setting")', "return", "test_a_changed_config_is_named_with_its_field"),
    ],
    "flowrl/experiment/stored.py": [
        ("        check(made)\n", "", "test_a_changed_config_is_named_with_its_field"),
        ('if seeds(runs) != stored["seeds"]:', "if False:", "test_a_changed_config_is_named_with_its_field"),
        ("        _require_traced(usual, grid)\n", "", "test_a_changed_config_is_named_with_its_field"),
        (' if stored["git_commit"] else ""', "", "test_the_commit_that_has_the_fields_is_named_where_it_is_known"),
        (
            "put the right file back{commit}",
            "put the right file back",
            "test_the_commit_that_has_the_fields_is_named_where_it_is_known",
        ),
    ],
    "flowrl/experiment/grids.py": [
        ("if _runs(parts) != _runs(groups(before)):", "if False:", "test_a_changed_sweep_is_named_with_its_field"),
    ],
}
