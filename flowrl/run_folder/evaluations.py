"""Evaluations of finished or running runs, read from run directories."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowrl.errors import UserError
from flowrl.machine import schema
from flowrl.run_folder import formats, logs
from flowrl.run_folder.layout import CONFIG, DIVERGED, SWEEP
from flowrl.run_folder.runs import Run
from flowrl.run_folder.summary import BEST, SINGLE, judged
from flowrl.run_folder.texts import shown


class LeftOut(UserError):
    """A folder that has nothing to show, and may be left out where others have."""


class NotEvaluated(LeftOut):
    """A run without evaluations so far."""


class RunDir(NamedTuple):
    """What one run directory holds of one configuration.

    Attributes:
        folder: The directory.
        config: Its `config.json`, for these runs alone where they are a part of a sweep.
        metric: What the curves show: `success`, `normalized_score` or `return`.
        curves: For each seed, the metric (mean over tasks) after each evaluated update.
        minutes: For each evaluated update, the training time so far.
        episodes: Episodes per task and evaluation.
        tasks: Number of tasks.
        diverged: For each seed that diverged, what was not finite, and when.
    """

    folder: Path
    config: dict[str, Any]
    metric: str
    curves: dict[int, dict[int, float]]
    minutes: dict[int, float]
    episodes: int
    tasks: int
    diverged: dict[int, str]


def read_all(
    folders: Sequence[Path], *, with_minutes: bool = False, mode: str = SINGLE
) -> tuple[list[RunDir], list[str]]:
    """Reads run directories, with the folder of a sweep for all its runs, and leaves out what has nothing to show.

    Returns:
        The runs, and why others are left out.

    Raises:
        UserError: A file of a run is damaged, or nothing has anything to show.
    """
    runs, left_out = list[RunDir](), list[LeftOut]()
    for folder in folders:
        try:
            parts = expand([folder])
        except LeftOut as error:
            parts = []
            left_out.append(error)
        left_out += [LeftOut(f"{text}; wait for it") for text in waiting([folder])] if parts else []
        for part in parts:
            try:
                runs += read_runs(part, with_minutes=with_minutes, mode=mode)
            except LeftOut as error:
                left_out.append(error)
    for run, other in _superseded(runs):
        runs.remove(run)
        left_out.append(LeftOut(f"{run.folder} has seeds of which {other.folder} has come further; leave one out"))
    if runs:
        return runs, [str(error) for error in left_out]
    if len(left_out) == 1:
        raise left_out[0]
    raise UserError(f"none of the {len(left_out)} runs has evaluations of mode {mode}; the first: {left_out[0]}")


def _superseded(runs: Sequence[RunDir]) -> list[tuple[RunDir, RunDir]]:
    """Returns runs all of whose seeds another of the same configuration has as well, and further, as one begun anew."""

    def end(run: RunDir) -> int:
        return max(step for curve in run.curves.values() for step in curve)

    found = []
    for run in runs:
        rivals = [other for other in runs if run.curves.keys() <= other.curves.keys() and end(run) < end(other)]
        rivals = [other for other in rivals if identity(other.config) == identity(run.config)]
        found += [(run, rivals[0])] if rivals else []
    return found


def expand(folders: Sequence[Path]) -> list[Path]:
    """Returns run directories, with the folder of a sweep replaced by those of its parts that have begun.

    Raises:
        LeftOut: No part of a sweep has begun.
    """
    found = []
    for folder in folders:
        parts = [part for part in _parts(folder) if (part / CONFIG).exists()]
        if (folder / SWEEP).exists() and not parts:
            raise LeftOut(f"no part of the sweep in {folder} has begun; wait for its first evaluation")
        found += parts or [folder]
    return found


def waiting(folders: Sequence[Path]) -> list[str]:
    """Says which parts of sweeps have not begun."""
    parts = [part for folder in folders for part in _parts(folder) if not (part / CONFIG).exists()]
    return [f"{part.parent.resolve().name}/{part.name} has not begun" for part in parts]


def _parts(folder: Path) -> list[Path]:
    """Returns the run directories of a sweep; none of another folder."""
    if not (folder / SWEEP).exists():
        return []
    return [folder / part["folder"] for part in schema.read(folder / SWEEP, formats.SWEEP)["parts"]]


def read_runs(folder: Path, *, with_minutes: bool, mode: str = SINGLE) -> list[RunDir]:
    """Reads one run directory: one entry, or one per configuration where it is a part of a sweep.

    Args:
        folder: The directory.
        with_minutes: Whether to read the training times.
        mode: Which evaluations: `eval`, of the agent as it acts by itself, or another, such as `best_of_n`.

    Raises:
        LeftOut: It is none, or nothing was evaluated in it yet.
        UserError: A file in it is damaged.
    """
    if not folder.is_dir():
        raise LeftOut(f"{folder} is not a folder; give the --run_dir of a run")
    if not (folder / CONFIG).exists():
        raise LeftOut(f"{folder} holds no run (no {CONFIG}); give the --run_dir of a run")
    config, every = formats.read_config(folder), logs.read_lines(folder / "eval.jsonl")
    lines = [line for line in every if line["mode"] == mode]
    events = _events(folder, lines)
    if not lines and events:
        texts = "; ".join(text for _, text in events)
        raise NotEvaluated(f"{folder} diverged before its first evaluation ({texts}); leave this folder out")
    if not lines and every:
        known = " or ".join(dict.fromkeys(line["mode"] for line in every))
        raise NotEvaluated(f"{folder} has no evaluations of mode {mode}; choose --mode={known}")
    if not lines:
        raise NotEvaluated(
            f"{folder} has no evaluations in eval.jsonl; wait for its first, or train with --eval.episodes"
        )
    _require_whole(folder, config, lines)
    metric, told = judged(lines)
    if metric is None:
        raise NotEvaluated(f"{folder} has no evaluation with finite numbers; leave this folder out")
    if sum("not_finite" not in line for line in told) < sum("not_finite" not in line for line in lines):
        raise UserError(f"{folder / 'eval.jsonl'}: not all lines have {metric}; {schema.REMEDY}")
    lines = told
    found = [_read(folder, config, metric, own, values, events) for values, own in _configurations(lines)]
    if not with_minutes:
        return found
    steps = sorted({line["step"] for line in lines})
    minutes = _minutes(folder, steps)
    return [run._replace(minutes=minutes) for run in found]


def configured_among(modes: Collection[str]) -> str:
    """Returns which evaluations are of an agent as it is configured to act: by the best of several, or by one draw."""
    return BEST if BEST in modes else SINGLE


def configured_mode(folder: Path) -> str:
    """Returns which evaluations of a run are of its agent as it is configured to act."""
    return configured_among({line["mode"] for line in logs.read_lines(folder / "eval.jsonl")})


def due(interval: int, steps: int, online_steps: int, last: int) -> list[int]:
    """Returns the steps up to `last` at which something happens.

    Args:
        interval: Between which it happens; it also does at the end of either part.
        steps: Updates on data.
        online_steps: Online steps, which are counted on from them.
        last: Where to end.
    """
    ends = {steps, steps + online_steps} - {0}
    return sorted(step for step in {*range(interval, last + 1, interval), *ends} if step <= last)


def _require_whole(folder: Path, config: dict[str, Any], lines: Sequence[dict[str, Any]]) -> None:
    """Checks that no evaluation but the newest, which may be under way, lacks a line.

    Raises:
        UserError: One does; a mean over others would pass for the one that was asked for.
    """
    settings = config["settings"]
    counts, newest = Counter(line["step"] for line in lines), max(line["step"] for line in lines)
    each = len(config.get("grid", config["seeds"])) * len({line["task"] for line in lines})
    parts = (settings["steps"], settings["online.steps"])
    for step in due(settings["eval.interval"], *parts, newest - 1):
        if counts[step] != each:
            raise UserError(
                f"{folder / 'eval.jsonl'} has {counts[step]} of the {each} lines of step {step}; {schema.REMEDY}"
            )


def _configurations(lines: list[dict[str, Any]]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Returns the lines of each configuration with its values of what a sweep varies, none in other runs."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        values = tuple((name, value) for name, value in line.items() if name.startswith("agent."))
        found.setdefault(values, []).append(line)
    return [(dict(values), own) for values, own in found.items()]


def _read(
    folder: Path,
    config: dict[str, Any],
    metric: str,
    lines: list[dict[str, Any]],
    values: dict[str, Any],
    events: Sequence[tuple[dict[str, Any], str]],
) -> RunDir:
    """Returns one configuration of a run directory, without its times."""
    curves, tasks = _curves(lines, metric)
    own = dict(Run.of({"seed": 0, **values}).values)
    config = {name: value for name, value in config.items() if name != "grid"}
    config |= {"agent_config": config["agent_config"] | own, "command": _told(config["command"], values)}
    diverged = {event["seed"]: text for event, text in events if values.items() <= event.items()}
    return RunDir(folder, config, metric, curves, {}, lines[-1]["episodes"], tasks, diverged)


def _told(command: str, values: Mapping[str, Any]) -> str:
    """Returns the command line of a sweep with one value of each setting, where these are its own."""
    found = []
    for flag in command.split(" "):
        name = flag.removeprefix("--").partition("=")[0]
        found.append(f"--{name}={shown(values[name])}" if name in values else flag)
    return " ".join(found)


def divergences(folder: Path) -> list[dict[str, Any]]:
    """Returns what `diverged.json` of a run directory says, nothing where there is none."""
    return schema.read(folder / DIVERGED, formats.DIVERGED) if (folder / DIVERGED).exists() else []


def _events(folder: Path, lines: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """Returns the runs that diverged, as `diverged.json` or their lines mark them, with what is to be said of each."""
    marked = {
        line["run"]: line | {"step": line["diverged"], "metric": "a metric"} for line in lines if "diverged" in line
    }
    marked |= {event["run"]: event for event in divergences(folder)}
    return [
        (event, f"{event['metric']} of seed {event['seed']} was not finite after {event['step']:,}")
        for _, event in sorted(marked.items())
    ]


def _curves(lines: list[dict[str, Any]], metric: str) -> tuple[dict[int, dict[int, float]], int]:
    """Returns each seed's metric by update, and the number of tasks; an evaluation that lacks a task is left out."""
    cells: dict[tuple[int, int], dict[int, float]] = {}
    for line in lines:
        cells.setdefault((line["seed"], line["step"]), {})[line["task"]] = line[metric]
    tasks = max(len(cell) for cell in cells.values())
    curves: dict[int, dict[int, float]] = {}
    for (seed, step), cell in sorted(cells.items()):
        if len(cell) == tasks:
            curves.setdefault(seed, {})[step] = float(np.mean(list(cell.values())))
    return curves, tasks


def _minutes(folder: Path, steps: list[int]) -> dict[int, float]:
    """Returns the training time to each update, from the rates between log lines."""
    lines = [line for line in logs.read_lines(folder / "time.jsonl") if line["steps_per_second"] > 0]
    if not lines:
        raise UserError(f"{folder} has no times in time.jsonl; use --x=updates")
    ends = np.array([0] + [line["step"] for line in lines])
    rates = np.array([line["steps_per_second"] for line in lines])
    times = np.concatenate([[0.0], np.cumsum(np.diff(ends) / rates / 60)])
    # An evaluation after the last log line: that line's rate is the best guess.
    beyond = np.maximum(np.array(steps) - ends[-1], 0) / rates[-1] / 60
    return dict(zip(steps, (np.interp(steps, ends, times) + beyond).tolist(), strict=True))


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what two runs must share to differ in seeds only."""
    settings = {name: value for name, value in config["settings"].items() if name not in config["incidental"]}
    settings |= {f"agent.{name}": value for name, value in config["agent_config"].items()}
    return settings | {"data": config["data"]["sha256"]}
