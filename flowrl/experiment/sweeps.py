"""Sweeps: the parts of a grid are trained one after another, each from where it was broken off."""

import contextlib
import gc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from flowrl import config as configs
from flowrl.errors import UserError
from flowrl.experiment import run, runs_at_once, sweep_table, videos
from flowrl.experiment.grids import Group, Sweep, at_once, check, command, group_plan, groups, recorded, waves
from flowrl.experiment.settings import Plan
from flowrl.experiment.stored import resumed_plan
from flowrl.machine import hosts, schema
from flowrl.machine.provenance import git_commit, hardware, versions
from flowrl.machine.signals import Signals
from flowrl.run_folder import formats, logs, texts
from flowrl.run_folder.layout import CONFIG, SUMMARY, SWEEP, unused


def begin(sweep: Sweep) -> None:
    """Splits a sweep into parts and records them in its folder, unless that was done before.

    Raises:
        UserError: The folder holds something else, or a grid point cannot be trained.
    """
    if (sweep.folder / SWEEP).exists():
        return
    if not unused(sweep.folder):
        raise UserError(f"{sweep.folder} is not empty and holds no sweep; choose another --run_dir")
    parts = [
        part
        for group in groups(sweep)
        for part in waves(group, sweep.options.runs_at_once or _at_once(group_plan(sweep, group)))
    ]
    record = {
        "command": command(sweep),
        "settings": {name: value for name, value in sweep.given.items() if name not in ("run_dir", "resume")},
        "grid": sweep.grid,
        "seeds": sweep.seeds,
        "parts": [
            {"folder": part.folder, "fixed": part.fixed, "runs": [run.labels for run in part.runs]} for part in parts
        ],
        "git_commit": git_commit(),
        "hardware": hardware(),
        "versions": versions("jax", "jaxlib", "flax", "optax", "numpy"),
    }
    logs.write_json(sweep.folder / SWEEP, record)


def _at_once(plan: Plan) -> int:
    return at_once(plan.settings, len(plan.runs), runs_at_once.runs_that_fit(plan))


def execute(sweep: Sweep) -> int:
    """Trains all parts to their end, those that were broken off from their newest checkpoints, and writes the table.

    Returns:
        An exit status: 0, or 128 + the signal that stopped it.

    Raises:
        UserError: The folder holds another sweep, or a part cannot be trained.
    """
    check(sweep)
    told = {f"--{name}": value for name, value in configs.values(sweep.options).items()}
    hosts.require_same(told | {"the sweep": command(sweep), "--run_dir": str(sweep.folder.absolute())})
    with run.claimed(sweep.folder), _forgotten_unless_begun(sweep.folder):
        hosts.on_first(partial(begin, sweep))
        parts, signals = hosts.agreed(lambda: recorded(sweep)), Signals()
        total = sum(len(part.runs) for part in parts)
        print(f"sweep of {total} runs in {len(parts)} programs, in {sweep.folder}")
        for index, part in enumerate(parts, 1):
            values = ", ".join(f"{name}={texts.shown(part.fixed[name])}" for name in sweep.swept if name in part.fixed)
            print(f"[{index}/{len(parts)}] {part.folder}: {len(part.runs)} runs{values and f', {values}'}", flush=True)
            status = _train(sweep, part, signals)
            stopped = max(hosts.gather(signals.received or 0))
            if status or stopped:  # by a signal that may have come when there was nothing left to stop in the part
                print(f"the same command, or --resume --run_dir={sweep.folder}, continues the sweep")
                return status or 128 + stopped
        if hosts.first():
            summary = sweep_table.summarize(sweep)
            logs.write_json(sweep.folder / SUMMARY, summary)
            logs.write_text(sweep.folder / "summary.md", sweep_table.markdown(summary))
            print(sweep_table.markdown(summary))
            print(f"wrote {sweep.folder}/summary.json and summary.md")
    return 0


@contextlib.contextmanager
def _forgotten_unless_begun(folder: Path) -> Iterator[None]:
    """Takes the record of a new sweep back where an error keeps its first part from beginning."""
    new = not (folder / SWEEP).exists()
    try:
        yield
    except UserError:
        if new and hosts.first() and not any(folder.glob(f"*/{CONFIG}")):
            (folder / SWEEP).unlink(missing_ok=True)
        raise


def _train(sweep: Sweep, part: Group, signals: Signals) -> int:
    """Trains a part to its end and returns an exit status; a finished part is left as it is, unless it lacks videos."""
    folder = sweep.folder / part.folder
    if hosts.gather(_finished(sweep, folder))[0]:
        print("finished before")
        return 0
    if not hosts.gather((folder / CONFIG).exists())[0]:
        return _run(signals, group_plan(sweep, part))
    plan, stored = resumed_plan(sweep.free | {"run_dir": str(folder), "resume": True}, {})
    if plan.runs != tuple(part.runs):
        raise UserError(f"{folder / CONFIG} is not of the runs that {sweep.folder / SWEEP} has there; {schema.REMEDY}")
    return _run(signals, plan, stored)


def _finished(sweep: Sweep, folder: Path) -> bool:
    """Whether a part has come to its end, with the videos that are asked for now."""
    asked = sweep.given.get("log.video_episodes")
    lacks_videos = asked and videos.index(folder).get("episodes") != asked
    if lacks_videos or not (folder / SUMMARY).exists():
        return False
    schema.read(folder / SUMMARY, formats.SUMMARY)
    return True


def _run(signals: Signals, plan: Plan, stored: dict[str, Any] | None = None) -> int:
    status = run.execute(plan, stored, signals)
    gc.collect()  # the device's memory is for the next part
    return status
