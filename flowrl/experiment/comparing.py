"""Comparisons: what is missing of their cells is trained one after another, then the tables of them all are written."""

import gc
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowrl.errors import SharedError, UserError
from flowrl.experiment import run, speed
from flowrl.experiment.build import build_agent
from flowrl.experiment.cells import Cell, Comparison, cells, require_rows
from flowrl.experiment.loading import stored_spec
from flowrl.experiment.settings import Plan
from flowrl.experiment.stored import read_config, resumed_plan
from flowrl.machine import progress, schema
from flowrl.machine.provenance import hardware
from flowrl.machine.signals import Signals
from flowrl.reports import figures, score_tables, suites
from flowrl.reports.curves import panels
from flowrl.reports.score_tables import Entry
from flowrl.run_folder import formats, logs
from flowrl.run_folder.layout import CONFIG, SUMMARY
from flowrl.tasks.task import registered_limit

SPEED, TABLE = "speed.json", "comparison"
"""The file of a run folder with the time of its actions, and what the tables are called."""
MEASURED = 2.0
"""Seconds of a measurement."""
LIMIT = 1000
"""Steps of an episode whose environment names no limit."""


def execute(comparison: Comparison) -> int:
    """Trains what is missing, and writes the tables and pictures of it all.

    Returns:
        An exit status: 0, or 128 + the signal that stopped it.

    Raises:
        UserError: Something cannot be, or a run cannot be trained.
    """
    found = cells(comparison)
    if comparison.options.suite:
        require_rows(comparison, found)
    if comparison.options.list:
        return show(found)
    with run.claimed(comparison.folder):
        signals, notes = Signals(), list[str]()
        status = _train_all(comparison, found, signals, notes)
        if status:
            print("the same command continues the comparison")
            return status
        _write(comparison, found, notes)
    return 0


def _train_all(comparison: Comparison, found: Sequence[Cell], signals: Signals, notes: list[str]) -> int:
    """Trains what is not finished; a run that diverges is noted, and left out of the tables where it has no numbers."""
    missing = [cell for cell in found if not cell.finished]
    print(f"{len(found)} trainings, {len(found) - len(missing)} of them finished before")
    began = time.perf_counter()
    for index, cell in enumerate(missing):
        each = (time.perf_counter() - began) / index if index else 0.0
        left = f", about {progress.duration(each * (len(missing) - index))} to go" if index else ""
        seeds = len(cell.plan.runs)
        of_all = f"[{len(found) - len(missing) + index + 1}/{len(found)}]"
        print(f"{of_all} {cell.name}: {seeds} seed{'s' * (seeds > 1)}{left}", flush=True)
        try:
            status = _train(cell, comparison.free, signals)
        except SharedError as error:
            notes.append(f"{cell.name}: {str(error).replace(str(cell.folder), cell.folder.name)}")
            print(f"warning: {cell.name}: {error}", flush=True)
            continue
        if status or signals.received:
            return status or 128 + int(signals.received or 0)
    return 0


def _train(cell: Cell, free: Mapping[str, Any], signals: Signals) -> int:
    if not (cell.folder / CONFIG).exists():
        status = run.execute(cell.plan, None, signals)
    else:
        changed, stored = resumed_plan({**free, "run_dir": str(cell.folder), "resume": True}, {})
        status = run.execute(changed, stored, signals)
    gc.collect()  # the device's memory is for the next run
    return status


def _write(comparison: Comparison, found: Sequence[Cell], notes: Sequence[str]) -> None:
    """Writes tables and pictures, and the rows of a suite."""
    for cell in found:
        if cell.finished:
            schema.read(cell.folder / SUMMARY, formats.SUMMARY)
    speeds = {cell.folder: _speed(cell) for cell in found if cell.finished}
    entries, left_out = score_tables.read([cell.folder for cell in found if (cell.folder / CONFIG).exists()], speeds)
    if not entries:
        print(f"no run has evaluations: no tables ({'; '.join([*notes, *left_out])})")
        return
    text = score_tables.markdown(entries, comparison.command, [*notes, *left_out])
    logs.write_text(comparison.folder / f"{TABLE}.md", text)
    logs.write_text(comparison.folder / f"{TABLE}.csv", score_tables.comma_separated(entries))
    print(text)
    pictures = _draw(comparison.folder, entries)
    print(f"wrote {', '.join([f'{TABLE}.md', f'{TABLE}.csv', *pictures])} in {comparison.folder}")
    if comparison.options.suite:
        rows = [suites.row(entry) for entry in entries if not entry.group.unfinished]
        suites.add(comparison.results, rows)
        print(f"{len(rows)} rows in {comparison.results / suites.ROWS}")


def _draw(folder: Path, entries: Sequence[Entry]) -> list[str]:
    """Writes the learning curves of each environment, and returns the names of the files."""
    released, _ = score_tables.released(entries)
    names = []
    for environment, row in panels([entry.group for entry in entries]).items():
        name = f"{re.sub('[:/]', '-', environment)}.png"
        try:
            figures.save(figures.make("curves", row, released={environment: released[environment]}), folder / name)
        except UserError as error:  # without matplotlib there are tables all the same
            print(f"warning: not drawn: {error}")
            break
        names.append(name)
    return names


def _speed(cell: Cell) -> dict[str, float]:
    """Returns the milliseconds of an action, measured once, and of an update, from the log of the training."""
    path, rates = cell.folder / SPEED, logs.read_lines(cell.folder / "time.jsonl")
    told = [line["steps_per_second"] for line in rates if line["steps_per_second"] > 0]
    found = {"per_update": 1e3 / (sorted(told)[len(told) // 2] * len(cell.plan.runs))} if told else {}
    if not path.exists():
        each = 1e3 * speed.action_seconds(cell.plan, stored_spec(read_config(cell.folder)), MEASURED / 4)
        logs.write_json(path, {"milliseconds_per_action": each, "hardware": hardware()})
    stored = schema.read(path, schema.record({"milliseconds_per_action": schema.number(0)}))
    return found | {"per_action": stored["milliseconds_per_action"]}


# ----------------------------------------------------------------------------------------------------- listing


def show(found: Sequence[Cell]) -> int:
    """Prints what would be trained, and how long that takes on this machine."""
    training = evaluation = 0.0
    paces: dict[Any, tuple[speed.Pace, int, int]] = {}
    for cell in found:
        if cell.finished:
            print(f"{cell.name}: finished, in {cell.folder}")
            continue
        if cell.plan.env.env_id is None:
            print(f"{cell.name}: to be trained; its data must be read to know how long that takes")
            continue
        pace, tasks_of, modes = _measured(cell.plan, paces)
        limit = registered_limit(cell.plan.env) or LIMIT
        own = speed.training_seconds(cell.plan, pace, cell.reached)
        evaluations = speed.evaluation_seconds(cell.plan, pace, limit, tasks_of, modes, cell.reached)
        training, evaluation = training + own, evaluation + evaluations
        settings, seeds = cell.plan.settings, len(cell.plan.runs)
        begun = f"goes on from {settings.unit} {cell.reached:,}, " if cell.reached else ""
        later = f", {pace.later:.1f}/s after update {pace.turn:,}" if pace.turn else ""
        print(
            f"{cell.name}: {begun}{seeds} seed{'s' * (seeds > 1)} × {settings.total:,} {settings.unit}s at "
            f"{pace.updates:.1f}/s{later}: about {progress.duration(own)}, evaluations at most "
            f"{progress.duration(evaluations)} more",
            flush=True,
        )
    print(f"in all about {progress.duration(training)} of training, and at most {progress.duration(evaluation)} more")
    return 0


def _measured(plan: Plan, known: dict[Any, tuple[speed.Pace, int, int]]) -> tuple[speed.Pace, int, int]:
    """Returns the pace of a plan, the tasks and the modes of its evaluations; tasks of one dataset have the same."""
    key = repr((plan.settings.agent, plan.config, plan.env.dataset or plan.env.name, plan.env.goals, len(plan.runs)))
    if key not in known:
        facts = plan.env.facts()
        modes = len(build_agent(plan, facts).evaluations(plan.config))
        known[key] = (speed.pace(plan, MEASURED), max(1, facts.tasks), modes)
    return known[key]
