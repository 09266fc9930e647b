"""Files of a run that a person or a crash has changed: right, or one line with file, place and remedy."""

import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from commands import main, sweep

from flowrl.errors import UserError
from flowrl.experiment import grids, resuming, runner
from flowrl.experiment.resuming import Reached
from flowrl.experiment.stored import read_plan, resumed_plan
from flowrl.machine import schema
from flowrl.run_folder import formats, layout, logs
from flowrl.training import checkpoint
from flowrl.training.checkpoint import Checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
TINY = ("--env=Pendulum-v1", "--preset=none", "--agent.hidden_dims=4", "--agent.batch_size=4", "--workers=1")
SCHEDULE = ("--log.interval=5", "--eval.interval=10", "--checkpoint.interval=10", "--eval.episodes=1")
RUN = (*TINY, *SCHEDULE, "--agent=bc", "--num_seeds=2")
LOGS = [f"{kind}.jsonl" for kind in resuming.KINDS]


@pytest.fixture(scope="module")
def finished(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of 20 updates, with checkpoints at 10 and 20."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(*RUN, data, "--steps=20", f"--run_dir={folder}") == 0
    return folder


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return shutil.copytree(finished, tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    """Returns all files of a folder but its lock."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != layout.LOCK}


def assert_refused(message: str, function: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=message) as caught:
        function()
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ logs


def reached(folder: Path, step: int = 20, *, evaluated: bool = True) -> tuple[Any, ...]:
    """Returns what `resuming.cuts` takes of a run whose checkpoint is at this step."""
    plan = read_plan(folder)[0]
    return folder, plan.settings, plan.runs, Reached(step, evaluated, ("eval",), 1, (10, 20))


def edit(change: Callable[[list[str]], Any]) -> Callable[[Path], None]:
    """Returns a damage that changes the list of a file's lines."""

    def damage(path: Path) -> None:
        lines = path.read_text().splitlines()
        change(lines)
        path.write_text("".join(f"{line}\n" for line in lines))

    return damage


def replaced(number: int, old: str, new: str) -> Callable[[Path], None]:
    return edit(lambda lines: lines.__setitem__(number - 1, lines[number - 1].replace(old, new)))


def swapped(lines: list[str]) -> None:
    lines[0], lines[2] = lines[2], lines[0]


METRICS, EVALUATIONS, TIMES = LOGS


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (METRICS, edit(lambda lines: lines.__setitem__(2, lines[2][:20])), "metrics.jsonl, line 3: it is damaged"),
        (METRICS, edit(lambda lines: lines.append("garbage")), "line 9: it is damaged"),
        (METRICS, lambda path: path.write_text(f"{path.read_text()}garbage"), "line 9: it is damaged"),
        (METRICS, edit(lambda lines: lines.insert(3, "")), "line 4: it is damaged"),
        (METRICS, edit(lambda lines: lines.insert(3, "[1]")), r"line 4: all of it is \[1\], not an object"),
        (METRICS, lambda path: path.write_bytes(b"\x80\x00\xff"), "line 1: it is damaged"),
        (METRICS, replaced(2, '"run": 1', '"run": 1, "train/x": NaN'), "line 2: .*NaN is no number"),
        (METRICS, replaced(2, '"run": 1', '"run": 1, "train/x": 1e999'), "line 2: train/x is Infinity"),
        (METRICS, replaced(2, '"run": 1', '"run": "1"'), 'line 2: run is "1", not a whole number of at least 0'),
        (METRICS, replaced(2, '"run": 1, ', ""), "line 2: run is missing"),
        (METRICS, replaced(2, '"step": 5', '"step": true'), "line 2: step is true, not a whole number"),
        (METRICS, edit(lambda lines: lines.insert(3, lines[3])), "line 5: step 10 of run 1 comes after step 10"),
        (METRICS, edit(swapped), "line 3: step 5 of run 0 comes after step 10"),
        (METRICS, edit(lambda lines: lines.pop(2)), "line 3: the line of step 10, run 0, seed 0 is missing"),
        (METRICS, edit(lambda lines: lines.pop()), "lacks the line of step 20, run 1, seed 1; put the right "
         "file back, or delete 20 in .*checkpoints to go on from 10"),
        (METRICS, lambda path: path.write_text(path.read_text()[:-9]), "lacks the line of step 20, run 1"),
        (METRICS, edit(lambda lines: lines.clear()), "lacks the line of step 5, .* start a new run in another"),
        (METRICS, replaced(4, '"seed": 1', '"seed": 7'), "line 4: the line of step 10, run 1, seed 1 is missing"),
        (METRICS, replaced(1, '"step": 5', '"step": 4'), "line 1: the line of step 5, run 0, seed 0 is missing"),
        (EVALUATIONS, Path.unlink, "eval.jsonl lacks the line of step 10, run 0, seed 0, mode eval, task 1, episodes"),
        (EVALUATIONS, edit(lambda lines: lines.pop(1)), "line 2: the line of step 10, run 1"),
        (EVALUATIONS, replaced(1, '"return"', '"reward"'), "line 1: success or normalized_score or return is missing"),
        (EVALUATIONS, replaced(1, '"mode": "eval"', '"mode": "best"'), 'line 1: the line of step 10'),
        (EVALUATIONS, replaced(1, '"episodes": 1', '"episodes": 2'), "line 1: the line of step 10"),
        (TIMES, edit(lambda lines: lines.pop(0)), "time.jsonl, line 1: the line of step 5 is missing"),
        (TIMES, replaced(1, "steps_per_second", "rate"), "time.jsonl, line 1: steps_per_second is missing"),
    ],
)  # fmt: skip
def test_a_log_that_was_changed_is_named_with_its_line(
    run_dir: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(run_dir / name)
    there = reached(run_dir)
    assert_refused(message, lambda: resuming.cuts(*there))


def test_a_refused_run_is_left_as_it_was(run_dir: Path) -> None:
    replaced(3, "{", "")(run_dir / "metrics.jsonl")
    before = contents(run_dir)
    assert_refused("metrics.jsonl, line 3", lambda: main("--resume", f"--run_dir={run_dir}", "--steps=30"))
    assert contents(run_dir) == before


def test_what_is_cut_is_kept_beside_and_written_again(run_dir: Path, finished: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints" / "20")
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 25, "ru')  # as a kill leaves it
    assert main("--resume", f"--run_dir={run_dir}") == 0
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert (run_dir / name).read_bytes() == (finished / name).read_bytes()
    after = (finished / "metrics.jsonl").read_text().splitlines()[4:]
    assert (run_dir / "metrics.jsonl.dropped").read_text().splitlines() == [*after, '{"step": 25, "ru']
    assert len(logs.read_lines(run_dir / "time.jsonl")) == 4
    assert main("--resume", f"--run_dir={run_dir}") == 0  # nothing is to be cut now
    assert len((run_dir / "eval.jsonl.dropped").read_text().splitlines()) == 2


def test_lines_are_kept_before_they_are_cut(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    there = reached(run_dir, 10)
    cuts = resuming.cuts(*there)
    monkeypatch.setattr(logs, "write_text", killed)
    with pytest.raises(RuntimeError):
        resuming.apply(cuts)
    assert (run_dir / "metrics.jsonl.dropped").read_text() == cuts[0].dropped
    assert len(logs.read_lines(run_dir / "metrics.jsonl")) == 8


def test_a_whole_last_line_without_its_end_gets_it(run_dir: Path, finished: Path) -> None:
    (run_dir / "metrics.jsonl").write_text((finished / "metrics.jsonl").read_text()[:-1])
    there = reached(run_dir)
    resuming.apply(resuming.cuts(*there))
    assert (run_dir / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    assert not list(run_dir.glob("*.dropped"))


def test_an_evaluation_that_was_to_come_is_written_again(run_dir: Path) -> None:
    """A kill between the lines of an evaluation and the checkpoint that covers it."""
    there = reached(run_dir, evaluated=False)
    assert ["".join(cut.dropped).count("\n") for cut in resuming.cuts(*there)] == [0, 2, 0]


@pytest.mark.parametrize("broken", ["record_changes", "apply"])
def test_a_kill_while_a_finished_run_is_given_more_steps(
    data: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """It ended between two log lines, whose last one averages a part; whatever was done of the change, it goes on."""
    folder = tmp_path / "run"
    assert main(*RUN, data, "--steps=12", f"--run_dir={folder}") == 0

    def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(*((runner, broken) if broken == "record_changes" else (resuming, broken)), killed)
    with pytest.raises(RuntimeError):
        main("--resume", f"--run_dir={folder}", "--steps=20")
    monkeypatch.undo()
    assert logs.read_json(folder / "config.json")["settings"]["steps"] == (12 if broken == "record_changes" else 20)
    assert main("--resume", f"--run_dir={folder}", "--steps=20") == 0
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()
    assert {json.loads(line)["step"] for line in (folder / "metrics.jsonl.dropped").read_text().splitlines()} == {12}


def test_the_lines_of_every_kind_of_run_are_those_that_are_expected(data: str, tmp_path: Path) -> None:
    """Offline updates, then online steps; a diverged run among others of a sweep."""
    folder = tmp_path / "both"
    arguments = (*TINY, *SCHEDULE, "--agent=td3", "--num_seeds=2", data, "--steps=12", "--online.steps=12")
    assert main(*arguments, f"--run_dir={folder}") == 0
    broken = (*TINY, *SCHEDULE, "--agent=bc", data, "--steps=12", "--agent.learning_rate=0.1,1e20")
    assert sweep(*broken, f"--run_dir={tmp_path / 'sweep'}") == 0
    for made, step in ((folder, 24), (tmp_path / "sweep" / "group1", 12)):
        plan = read_plan(made)[0]
        for cut in resuming.cuts(made, plan.settings, plan.runs, Reached(step, True, ("eval",), 1, (step,))):
            assert (cut.dropped, cut.kept) == ("", cut.path.read_text())
            assert {line["step"] for line in logs.read_lines(cut.path)} >= {10, 12}


def test_the_lines_of_an_evaluation_are_expected_in_their_order(finished: Path) -> None:
    plan = read_plan(finished)[0]
    reached = Reached(15, True, ("eval", "best_of_n"), 2, ())
    lines = resuming.expected(plan.settings, plan.runs, "eval", reached)
    assert [(line["step"], line["mode"], line["run"], line["task"]) for line in lines] == [
        (10, mode, run, task) for mode in ("eval", "best_of_n") for run in range(2) for task in (1, 2)
    ]
    before = resuming.expected(plan.settings, plan.runs, "eval", Reached(10, False, ("eval",), 1, ()))
    assert [*before] == []  # the checkpoint is from before that step's evaluation


@pytest.mark.parametrize("kept", ["metrics.jsonl", "eval.jsonl", "time.jsonl", "summary.json"])
def test_records_without_a_checkpoint_are_not_trained_into(run_dir: Path, kept: str) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    for name in ("metrics.jsonl", "eval.jsonl", "time.jsonl", "summary.json"):
        if name != kept:
            (run_dir / name).unlink()
    assert_refused(f"has {kept} but no checkpoint .* put its folder", lambda: resuming.require_unbegun(run_dir))


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    before = contents(run_dir)
    assert_refused("no checkpoint to go on from", lambda: main("--resume", f"--run_dir={run_dir}"))
    assert contents(run_dir) == before


# --------------------------------------------------------------------------------------------------------- config.json


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


# --------------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints at 10 and 20, large enough that their arrays lie in files of their own."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    arrays = ({"w": jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)))}, jnp.zeros(()))
    checkpoints = Checkpoints(folder)
    for step in (10, 20):
        checkpoints.save(step, arrays, {"agent": "bc", "evaluated": True})
    checkpoints.close()
    return folder


def as_file(place: Path) -> None:
    shutil.rmtree(place)
    place.touch()


def as_folder(place: Path) -> None:
    place.unlink()
    place.mkdir()


def damages(step: Path) -> Iterator[tuple[str, str, Callable[[Path], Any]]]:
    """Yields what may have become of each file and folder of a checkpoint."""
    for path in sorted(step.rglob("*")):
        name = str(path.relative_to(step))
        if path.is_dir():
            yield from ((name, "lost", shutil.rmtree), (name, "a file", as_file))
            continue
        yield from ((name, "lost", Path.unlink), (name, "a folder", as_folder))
        half = path.read_bytes()[: path.stat().st_size // 2]
        for kind, data in {"empty": b"", "cut": half, "garbled": b"\x80garbage", "a list": b"[1]"}.items():
            yield name, kind, lambda place, data=data: place.write_bytes(data)


def read(folder: Path) -> str:
    """Reads the newest checkpoint; returns the error, or nothing where all is there."""
    try:
        checkpoints = Checkpoints(folder)
        assert checkpoints.facts() == {"agent": "bc", "evaluated": True}
        values = checkpoints.raw()[0]["w"]
        checkpoints.close()
    except UserError as error:
        return str(error)
    np.testing.assert_array_equal(values, np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32))
    return ""


def test_any_part_of_a_checkpoint_may_be_damaged(
    saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line names the step and the way back; nothing else is said, and no garbage is taken for arrays."""
    refused = set()
    for index, (name, kind, damage) in enumerate(damages(saved / "20")):
        folder = shutil.copytree(saved, tmp_path / str(index))
        damage(folder / "20" / name)
        if said := read(folder):
            assert "\n" not in said
            assert "to fall back to the one before" in said
            refused.add(f"{name} {kind}")
    assert {"arrays lost", "facts lost", "facts/metadata empty", "facts/metadata a list"} <= refused
    assert {"arrays/_METADATA cut", "arrays/_METADATA a list", "_CHECKPOINT_METADATA a list"} <= refused
    assert any(name.startswith("arrays/") and name.endswith(" cut") and "/d/" in name for name in refused)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def asyncio_log() -> Iterator[logging.Logger]:
    """Asyncio's log, which shows errors."""
    log = logging.getLogger("asyncio")
    before = log.level
    log.setLevel(logging.ERROR)
    yield log
    log.setLevel(before)


def test_what_orbax_says_beside_its_error_is_not_heard(
    asyncio_log: logging.Logger, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says comes at any time, so a damaged checkpoint alone does not show that nothing is heard."""
    heard: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: heard.append(str(unraisable.exc_value)))

    async def read() -> None: ...

    def say(message: str) -> None:
        class Dying:
            def __del__(self) -> None:
                raise RuntimeError(message)

        Dying()
        asyncio_log.error(message)

    with warnings.catch_warnings(), checkpoint.quiet():
        warnings.simplefilter("error")
        read()  # Python complains of a coroutine that nobody awaited
        say("Event loop is closed")
        say("another")
    assert heard == ["another"]
    assert asyncio_log.level == logging.ERROR
    with pytest.raises(ZeroDivisionError), checkpoint.quiet():
        raise ZeroDivisionError
    say("Event loop is closed")  # after a failure the silence lasts
    assert heard == ["another"]
    assert capfd.readouterr() == ("", "")


def test_what_is_no_checkpoint_among_them(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    (folder / "30.orbax-checkpoint-tmp").mkdir()  # as a kill leaves it
    (folder / "notes.txt").touch()
    checkpoints = Checkpoints(folder, read_only=True)
    assert checkpoints.steps() == [10, 20]
    checkpoints.close()
    (folder / "30").mkdir()
    checkpoints = Checkpoints(folder)
    assert_refused("at step 30 in .* delete that step's folder", checkpoints.facts)
    checkpoints.close()
    (folder / "30").rmdir()
    (folder / "30").touch()
    assert_refused("checkpoints/30 is a file, not the folder of a checkpoint", lambda: Checkpoints(folder))
    assert_refused("notes.txt is a file", lambda: Checkpoints(folder / "notes.txt"))
    checkpoints = Checkpoints(tmp_path / "none")
    assert_refused("there is no checkpoint in", checkpoints.facts)
    checkpoints.close()


def test_the_last_checkpoint_has_none_to_fall_back_to(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    shutil.rmtree(folder / "10")
    (folder / "20" / "facts" / "metadata").unlink()
    checkpoints = Checkpoints(folder)
    assert_refused("put it back from a copy", checkpoints.facts)
    checkpoints.close()


@pytest.mark.parametrize(("error", "left"), [(SystemExit, 10), (RuntimeError, 20)])
def test_a_checkpoint_is_replaced_or_stays(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], left: int
) -> None:
    """A kill leaves the one before, and no part of either as the newest; an error puts it back."""
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    checkpoints = Checkpoints(folder)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(error):
        checkpoints.save(20, {"w": jnp.zeros(2)}, {"agent": "bc", "evaluated": True})
    assert checkpoints.latest() == left
    checkpoints.close()
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest() == left
    assert checkpoints.raw()[0]["w"].shape == (64, 64)
    checkpoints.save(20, {"w": jnp.zeros(2)}, {"agent": "bc", "evaluated": True})
    checkpoints.save(20, {"w": jnp.ones(2)}, {"agent": "bc", "evaluated": False})
    np.testing.assert_array_equal(checkpoints.raw()["w"], [1, 1])
    assert not checkpoints.facts()["evaluated"]
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["10", "20"]


def test_readers_leave_the_folder_as_it_is(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    for name in (".20.0a1b.tmp", "30.orbax-checkpoint-tmp"):
        (folder / name).mkdir()
    before = sorted(folder.rglob("*"))
    checkpoints = Checkpoints(folder, read_only=True)
    assert checkpoints.raw(10)[0]["w"].shape == (64, 64)
    checkpoints.close()
    assert sorted(folder.rglob("*")) == before


# ------------------------------------------------------------------------------------------------ what never began


@pytest.mark.parametrize(
    ("program", "extra"),
    [(main, ()), (sweep, ()), (sweep, ("--runs_at_once=2",))],
    ids=["a run", "a sweep", "a sweep whose parts are recorded before data are read"],
)
def test_a_run_that_never_began_leaves_no_folder(
    program: Callable[..., int], extra: tuple[str, ...], data: str, tmp_path: Path
) -> None:
    with np.load(data.removeprefix("--data=")) as whole:
        np.savez(tmp_path / "bad.npz", **{name: whole[name] for name in whole if name != "actions"})
    folder, command = tmp_path / "runs" / "new", (*RUN, *extra, "--steps=20", f"--data={tmp_path / 'bad.npz'}")
    assert_refused("'actions' is missing", lambda: program(*command, f"--run_dir={folder}"))
    assert not folder.parent.exists()
    folder.mkdir(parents=True)
    assert_refused("'actions' is missing", lambda: program(*command, f"--run_dir={folder}"))
    assert folder.exists()  # it was the user's


def test_a_folder_that_its_owner_takes_away_is_not_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has opened the lock just before it is removed."""
    folder, real = tmp_path / "run", layout.fcntl.flock

    def flock(file: Any, how: int) -> None:
        (folder / layout.LOCK).unlink()
        real(file, how)

    folder.mkdir()
    monkeypatch.setattr(layout.fcntl, "flock", flock)
    with pytest.raises(UserError, match="another process is running"), layout.sole_owner(folder):
        pass


FAULTS = {
    "flowrl/training/checkpoint.py": [
        ("    log.setLevel(logging.CRITICAL)\n", "    pass\n", "test_what_orbax_says_beside_its_error_is_not_heard"),
        ("inspect.iscoroutine(unraisable.object)", "False", "test_what_orbax_says_beside_its_error_is_not_heard"),
        (
            "    yield\n    sys.unraisablehook = previous\n",
            "    try:\n        yield\n    finally:\n        sys.unraisablehook = previous\n",
            "test_what_orbax_says_beside_its_error_is_not_heard",
        ),
        ("Exception as error:  # orbax", "OSError as error:  # orbax", "test_any_part_of_a_checkpoint_may_be_damaged"),
        ("            if not path.is_dir():", "            if False:", "test_what_is_no_checkpoint_among_them"),
        ("        if not read_only:\n", "        if True:\n", "test_readers_leave_the_folder_as_it_is"),
        ("os.rename(self.folder / str(step), aside)", "pass", "test_a_checkpoint_is_replaced_or_stays"),
        (
            "                os.rename(aside, self.folder / str(step))\n",
            "",
            "test_a_checkpoint_is_replaced_or_stays and RuntimeError",
        ),
    ],
    "flowrl/experiment/resuming.py": [
        ("want.items() <= line.record.items()", "True", "test_a_log_that_was_changed_is_named_with_its_line"),
        (
            "itertools.zip_longest(kept, wanted)",
            "zip(kept, wanted)",
            "test_a_log_that_was_changed_is_named_with_its_line",
        ),
        ('**line, "mode": mode,', "**line,", "test_the_lines_of_an_evaluation_are_expected_in_their_order"),
        (
            ' or line.record["step"] < reached.step, log.lines',
            ", log.lines",
            "test_a_log_that_was_changed_is_named_with_its_line",
        ),
        (
            "online_steps, reached.step)\n",
            "online_steps, reached.step - 1)\n",
            (
                "test_an_evaluation_that_was_to_come_is_written_again or "
                "test_what_is_cut_is_kept_beside_and_written_again"
            ),
        ),
        (
            "last = reached.step if reached.evaluated else reached.step - 1",
            "last = reached.step",
            (
                "test_a_log_that_was_changed_is_named_with_its_line or "
                "test_the_lines_of_an_evaluation_are_expected_in_their_order"
            ),
        ),
        ("        if cut.dropped:\n", "        if False:\n", "test_what_is_cut_is_kept_beside_and_written_again"),
        ('(f"{log.torn}\\n" if log.torn else "")', '""', "test_what_is_cut_is_kept_beside_and_written_again"),
        ("reached.step > settings.total", "False", "test_fewer_steps_than_the_checkpoint_has"),
    ],
    "flowrl/run_folder/evaluations.py": [
        (
            "{*range(interval, last + 1, interval), *ends}",
            "{*range(interval, last + 1, interval)}",
            "test_the_lines_of_every_kind_of_run_are_those_that_are_expected",
        ),
    ],
    "flowrl/experiment/runner.py": [
        (
            "        resuming.require_unbegun(self.parts.plan.folder)\n",
            "",
            "test_a_run_whose_checkpoints_are_gone_is_not_begun_anew",
        ),
        (
            "        record_changes(plan.folder, plan.settings)\n        resuming.apply(cuts)\n",
            "        resuming.apply(cuts)\n        record_changes(plan.folder, plan.settings)\n",
            "test_a_kill_while_a_finished_run_is_given_more_steps and apply",
        ),
    ],
    "flowrl/run_folder/formats.py": [
        ('last.startswith("{") and', "", "test_a_log_that_was_changed_is_named_with_its_line"),
        ("        torn = last\n", "        texts.append(last)\n", "test_what_is_cut_is_kept_beside_and_written_again"),
        ("<= newest.get(key, 0)", "< newest.get(key, 0)", "test_a_log_that_was_changed_is_named_with_its_line"),
        ("_all(_EVALUATION, _scored)", "_EVALUATION", "test_a_log_that_was_changed_is_named_with_its_line"),
    ],
    "flowrl/machine/schema.py": [
        (
            "parse_constant=refuse",
            "parse_constant=float",
            "test_a_log_that_was_changed_is_named_with_its_line or test_a_config_that_is_none",
        ),
        (" and not isinstance(value, bool)", "", "test_a_log_that_was_changed_is_named_with_its_line"),
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
    "flowrl/experiment/sweeps.py": [
        (
            "(folder / SWEEP).unlink(missing_ok=True)",
            "pass",
            "test_a_run_that_never_began_leaves_no_folder and recorded",
        ),
    ],
    "flowrl/run_folder/layout.py": [
        ("if made and unused(folder):", "if False:", "test_a_run_that_never_began_leaves_no_folder"),
        (
            "if not os.path.samestat(",
            "if False and os.path.samestat(",
            "test_a_folder_that_its_owner_takes_away_is_not_claimed",
        ),
    ],
}
