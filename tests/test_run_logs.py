"""Logs of a run that a person or a crash has changed: right, or one line with file, place and remedy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from altered_files import RUN, SCHEDULE, TINY, assert_refused, contents, reached
from commands import main, sweep

from flowrl.errors import UserError
from flowrl.experiment import resuming, runner
from flowrl.experiment.resuming import Reached
from flowrl.experiment.stored import read_plan
from flowrl.run_folder import layout, logs

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
LOGS = [f"{kind}.jsonl" for kind in resuming.KINDS]


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
            "test_a_log_that_was_changed_is_named_with_its_line",
        ),
        (" and not isinstance(value, bool)", "", "test_a_log_that_was_changed_is_named_with_its_line"),
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
