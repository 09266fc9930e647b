"""What a run that goes on finds in its folder: each line up to its checkpoint once, and others, which are put aside."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowrl.errors import UserError
from flowrl.experiment.settings import Settings
from flowrl.run_folder import formats, logs
from flowrl.run_folder.evaluations import due
from flowrl.run_folder.layout import CHECKPOINTS, DIVERGED, SUMMARY
from flowrl.run_folder.runs import Run

KINDS = ("metrics", "eval", "time")
"""The logs."""
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


def expected(settings: Settings, runs: Sequence[Run], kind: str, reached: Reached) -> Iterator[dict[str, Any]]:
    """Yields what each line of a log that a checkpoint covers must say, in their order."""
    episodes, online_steps = settings.eval.episodes, settings.online.steps
    if kind == "eval":
        last = reached.step if reached.evaluated else reached.step - 1
        steps = due(settings.eval.interval, settings.steps, online_steps, last) if episodes else []
    else:
        steps = due(settings.log.interval, settings.steps, online_steps, reached.step)
    for step in steps:
        lines = [{"step": step, "run": index, **run.labels} for index, run in enumerate(runs)]
        if kind == "time":
            yield {"step": step}
        elif kind == "metrics":
            yield from lines
        else:
            for mode, line, task in itertools.product(reached.modes, lines, range(1, reached.tasks + 1)):
                yield {**line, "mode": mode, "task": task, "episodes": episodes}


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


def cuts(folder: Path, settings: Settings, runs: Sequence[Run], reached: Reached) -> list[Cut]:
    """Checks that the logs hold each line that the checkpoint covers, once and in order, and says what to cut.

    Raises:
        UserError: A line is damaged, missing, there twice, or another run's.
    """
    if reached.step > settings.total:
        unit = settings.unit
        raise UserError(
            f"the checkpoint in {folder} is at {unit} {reached.step}, but its config.json is of {settings.total} "
            f"{unit}s; put the right config.json back"
        )
    return [_cut(folder / f"{kind}.jsonl", [*expected(settings, runs, kind, reached)], reached) for kind in KINDS]


def _cut(path: Path, wanted: Sequence[Mapping[str, Any]], reached: Reached) -> Cut:
    log = formats.read_log(path)
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


def _mismatch(path: Path, line: formats.Line | None, want: Mapping[str, Any] | None, reached: Reached) -> str:
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
            logs.append_text(cut.path.with_name(cut.path.name + DROPPED), cut.dropped)
        logs.write_text(cut.path, cut.kept)
