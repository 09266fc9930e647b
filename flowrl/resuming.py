"""What a run that goes on finds in its folder: each line up to its checkpoint once, and others, which are put aside."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowrl import loggers, loop, run_files
from flowrl.errors import UserError
from flowrl.machine.files import CHECKPOINTS, DIVERGED, SUMMARY
from flowrl.settings import Plan

KINDS = {"metrics": "log", "eval": "eval", "time": "log"}
"""The logs, and what each is written at."""
DROPPED = ".dropped"
"""What is added to the name of a log for the file that keeps what was taken out of it."""


class Reached(NamedTuple):
    """How far the checkpoint goes from which a run continues.

    Attributes:
        step: Its step.
        evaluated: Whether the evaluation due there was done.
        modes: Of the agent's evaluations, in their order.
        tasks: On which it is evaluated, at least 1.
        others: Steps of all checkpoints.
    """

    step: int
    evaluated: bool
    modes: Sequence[str]
    tasks: int
    others: Sequence[int]


def due(settings: Mapping[str, Any], what: str, last: int) -> list[int]:
    """Returns the steps up to `last` at which a run with these settings logs (`log`) or evaluates (`eval`)."""
    switch, end = settings["steps"], settings["steps"] + settings["online_steps"]
    intervals = [settings[f"{name}_interval"] for name in ("log", "eval", "checkpoint")]
    parts = [loop.Schedule(part, *intervals) for part in (switch, end)]
    steps = {*range(settings[f"{what}_interval"], last + 1, settings[f"{what}_interval"]), switch, end}
    return [step for step in sorted(steps) if step <= last and parts[step > switch].due(what, step)]


def expected(plan: Plan, kind: str, reached: Reached) -> Iterator[dict[str, Any]]:
    """Yields what each line of a log that a checkpoint covers must say, in their order."""
    settings: Any = plan.settings
    last = reached.step if kind != "eval" or reached.evaluated else reached.step - 1
    for step in due(vars(settings), KINDS[kind], last):
        runs = [{"step": step, "run": run, **trial.labels} for run, trial in enumerate(plan.trials)]
        if kind == "time":
            yield {"step": step}
        elif kind == "metrics":
            yield from runs
        elif settings.eval_episodes:
            for mode, run, task in itertools.product(reached.modes, runs, range(1, reached.tasks + 1)):
                yield {**run, "mode": mode, "task": task, "episodes": settings.eval_episodes}


def require_unbegun(folder: Path) -> None:
    """Checks that a run without a checkpoint has recorded nothing, as the first is written before anything else.

    Raises:
        UserError: It has, and would train from the start into these records.
    """
    names = [*(f"{kind}.jsonl" for kind in KINDS), SUMMARY, DIVERGED]
    if found := [name for name in names if (folder / name).exists() and (folder / name).stat().st_size]:
        raise UserError(
            f"{folder} has {', '.join(found)} but no checkpoint to go on from; put its folder {CHECKPOINTS} back, or "
            "start a new run in another --run_dir"
        )


class Cut(NamedTuple):
    """What becomes of a log.

    Attributes:
        path: The file.
        kept: What stays.
        dropped: What is taken out: lines that will be written again, or are not due any more, and a torn one.
    """

    path: Path
    kept: str
    dropped: str


def cuts(plan: Plan, reached: Reached) -> list[Cut]:
    """Checks that the logs hold each line that the checkpoint covers, once and in order, and says what to cut.

    Raises:
        UserError: A line is damaged, missing, there twice, or another run's.
    """
    total = int(plan.settings.steps or 0) + plan.settings.online_steps
    if reached.step > total:
        raise UserError(
            f"the checkpoint in {plan.folder} is at {plan.unit} {reached.step}, but its config.json is of {total} "
            f"{plan.unit}s; put the right config.json back"
        )
    return [_cut(plan, kind, reached) for kind in KINDS]


def _cut(plan: Plan, kind: str, reached: Reached) -> Cut:
    path = plan.folder / f"{kind}.jsonl"
    log, wanted = run_files.read_log(path), [*expected(plan, kind, reached)]
    steps = {line["step"] for line in wanted}
    # Later lines will be written again. At the checkpoint itself lie those of an end that has since been moved on.
    kept = [
        *itertools.takewhile(lambda line: line.record["step"] in steps or line.record["step"] < reached.step, log.lines)
    ]
    for line, want in itertools.zip_longest(kept, wanted):
        if line is None or not want or not want.items() <= line.record.items():
            raise UserError(_mismatch(path, line, want, reached))
    dropped = log.lines[len(kept) :]
    texts = ["".join(f"{line.text}\n" for line in lines) for lines in (kept, dropped)]
    return Cut(path, texts[0], texts[1] + (f"{log.torn}\n" if log.torn else ""))


def _mismatch(path: Path, line: run_files.Line | None, want: Mapping[str, Any] | None, reached: Reached) -> str:
    """Says what is wrong with a line and how to go on: from a checkpoint that lies before it, if there is one."""
    said = ", ".join(f"{name} {value}" for name, value in (want or {}).items())
    if line is None:
        problem = f"{path} lacks the line of {said}"
    elif want is None:
        problem = f"{path}, line {line.number}: nothing was due at step {line.record['step']}"
    else:
        problem = f"{path}, line {line.number}: the line of {said} is missing, or another"
    step = want["step"] if want else 0
    before = [other for other in reached.others if other < step]
    later = [str(other) for other in reached.others if other >= step]
    way = "start a new run in another --run_dir"
    if before and later:
        way = f"delete {' and '.join(later)} in {path.parent / CHECKPOINTS} to go on from {max(before)}"
    return f"{problem}; put the right file back, or {way}"


def apply(cuts: Sequence[Cut]) -> None:
    """Cuts logs, of which nothing is lost: what goes is first added to a file beside."""
    for cut in cuts:
        if not cut.path.exists() or cut.path.read_bytes() == cut.kept.encode():
            continue
        if cut.dropped:
            loggers.append_text(cut.path.with_name(cut.path.name + DROPPED), cut.dropped)
        loggers.write_text(cut.path, cut.kept)
