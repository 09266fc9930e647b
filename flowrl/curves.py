"""Learning curves of finished or running runs: read from run directories and grouped by configuration."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowrl import loggers, stats
from flowrl.errors import UserError
from flowrl.summary import HEADLINE_EVALUATIONS, metric_of, scale

# Settings that do not change what a seed learns or how it is evaluated.
INCIDENTAL = (
    *("run_dir", "resume", "workers", "vectorization", "map", "data"),
    *("log_interval", "checkpoint_interval", "keep_checkpoints", "seed", "num_seeds"),
)


class RunDir(NamedTuple):
    """What one run directory holds.

    Attributes:
        folder: The directory.
        config: Its `config.json`.
        metric: What the curves show: `success`, `normalized_score` or `return`.
        curves: For each seed, the metric (mean over tasks) after each evaluated update.
        minutes: For each evaluated update, the training time so far.
        episodes: Episodes per task and evaluation.
        tasks: Number of tasks.
    """

    folder: Path
    config: dict[str, Any]
    metric: str
    curves: dict[int, dict[int, float]]
    minutes: dict[int, float]
    episodes: int
    tasks: int


class Group(NamedTuple):
    """Seeds of one configuration.

    Attributes:
        identity: What the seeds have in common.
        runs: The run directories they come from.
        curves: For each seed, the metric after each evaluated update.
        steps: Updates at which every seed was evaluated.
        intervals: Mean and interval over seeds, one per entry of `steps`.
        final: Mean over the last evaluations of each seed.
        final_interval: Its mean and interval over seeds.
    """

    identity: dict[str, Any]
    runs: list[RunDir]
    curves: dict[int, dict[int, float]]
    steps: list[int]
    intervals: list[stats.Interval]
    final: dict[int, float]
    final_interval: stats.Interval

    @property
    def metric(self) -> str:
        """What the curves show."""
        return self.runs[0].metric

    @property
    def unit(self) -> str:
        """What the curves run over."""
        return "steps" if self.identity.get("online_steps") else "updates"

    @property
    def headline_steps(self) -> list[int]:
        """The evaluations that the final numbers average."""
        return self.steps[-HEADLINE_EVALUATIONS:]

    def minutes(self, step: int) -> float:
        """Returns the training time to an update, averaged over run directories."""
        return float(np.mean([run.minutes[step] for run in self.runs]))


# ----------------------------------------------------------------------------------------------------- reading


def read_run(folder: Path, *, with_minutes: bool, mode: str = "eval") -> RunDir:
    """Reads one run directory.

    Args:
        folder: The directory.
        with_minutes: Whether to read the training times.
        mode: Which evaluations: `eval`, of single actions, or `best_of_n`.

    Raises:
        UserError: It is none, or nothing was evaluated in it yet.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the --run_dir of a run")
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} holds no run (no config.json); give the --run_dir of a run")
    config = loggers.read_json(folder / "config.json")
    lines = [line for line in loggers.read_lines(folder / "eval.jsonl") if line.get("mode", "eval") == mode]
    if not lines and mode != "eval":
        raise UserError(f"{folder} has no evaluations of mode {mode}; train with --agent.candidates=N for best_of_n")
    if not lines:
        raise UserError(f"{folder} has no evaluations in eval.jsonl; wait for its first, or train with --eval_episodes")
    try:
        metric = metric_of(lines[-1])
        curves, tasks = _curves(lines, metric)
        _identity(config), data_name(config)  # ask for all that is needed
    except (KeyError, TypeError) as error:
        raise UserError(f"the files in {folder} are not those of a run ({error!r}); leave this folder out") from error
    steps = sorted({step for curve in curves.values() for step in curve})
    minutes = _minutes(folder, steps) if with_minutes else {}
    return RunDir(folder, config, metric, curves, minutes, lines[-1]["episodes"], tasks)


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
    lines = [line for line in loggers.read_lines(folder / "time.jsonl") if line["steps_per_second"] > 0]
    if not lines:
        raise UserError(f"{folder} has no times in time.jsonl; use --x=updates")
    ends = np.array([0] + [line["step"] for line in lines])
    rates = np.array([line["steps_per_second"] for line in lines])
    times = np.concatenate([[0.0], np.cumsum(np.diff(ends) / rates / 60)])
    # An evaluation after the last log line: that line's rate is the best guess.
    beyond = np.maximum(np.array(steps) - ends[-1], 0) / rates[-1] / 60
    return dict(zip(steps, (np.interp(steps, ends, times) + beyond).tolist(), strict=True))


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what two runs must share to differ in seeds only."""
    settings = {name: value for name, value in config["settings"].items() if name not in INCIDENTAL}
    settings |= {f"agent.{name}": value for name, value in config["agent_config"].items()}
    return settings | {"data": config["data"]["sha256"]}


def data_name(config: dict[str, Any]) -> str:
    """Says where a run's data came from, without paths of the machine it ran on."""
    data = config["data"]
    if data["origin"] == "none":
        return "none, learnt online"
    if "not the official download" in data["detail"]:
        extent = re.search(r"\d+ of \d+ episodes, seed \d+", data["detail"])
        return "collected by flowrl, not the official download" + (f", {extent[0]}" if extent else "")
    return "official download" if data["origin"] == "official" else f"file {Path(data['path']).name}"


# ----------------------------------------------------------------------------------------------------- grouping


def group_runs(runs: Sequence[RunDir]) -> list[Group]:
    """Groups seeds by configuration, in the order given.

    Raises:
        UserError: A seed occurs twice in a group, or its seeds were never evaluated at the same update.
    """
    members: dict[str, list[RunDir]] = {}
    for run in runs:
        members.setdefault(repr(sorted(_identity(run.config).items())), []).append(run)
    return [_group(group) for group in members.values()]


def _group(runs: list[RunDir]) -> Group:
    curves: dict[int, dict[int, float]] = {}
    origin: dict[int, Path] = {}
    for run in runs:
        for seed, curve in run.curves.items():
            if seed in curves:
                raise UserError(
                    f"{origin[seed]} and {run.folder} hold the same seed {seed} of one configuration; leave one out"
                )
            curves[seed], origin[seed] = curve, run.folder
    steps = sorted(set.intersection(*(set(curve) for curve in curves.values())))
    if not steps:
        folders = ", ".join(str(run.folder) for run in runs)
        raise UserError(f"the seeds in {folders} share no evaluated update; plot them apart with several --out")
    intervals = [stats.mean_interval(np.array([curve[step] for curve in curves.values()])) for step in steps]
    last = steps[-HEADLINE_EVALUATIONS:]
    final = {seed: float(np.mean([curve[step] for step in last])) for seed, curve in curves.items()}
    final_interval = stats.mean_interval(np.array(list(final.values())))
    return Group(_identity(runs[0].config), runs, curves, steps, intervals, final, final_interval)


def label(group: Group, others: Sequence[Group]) -> str:
    """Names a group: its agent, what sets it apart from the others of this agent, and its number of seeds.

    A preset stands for all the values that come with it.
    """
    own = group.identity
    rivals = [other.identity for other in others if other.identity["agent"] == own["agent"]]
    parts = [own["agent"]]
    if any(rival["preset"] != own["preset"] for rival in rivals):
        parts.append(f"preset={own['preset']}")
    rivals = [rival for rival in rivals if rival["preset"] == own["preset"]]
    for name, value in own.items():
        if name != "preset" and any(rival.get(name) != value for rival in rivals):
            shown = f"{data_name(group.runs[0].config)} ({value[:8]})" if name == "data" else value
            parts.append(f"{name}={','.join(map(str, shown)) if isinstance(shown, list) else shown}")
    count = len(group.curves)
    total = own["steps"] + own.get("online_steps", 0)
    unfinished = f", unfinished: {group.steps[-1]:,} of {total:,} {group.unit}"
    parts.append(f"{count} seed{'s' * (count > 1)}{unfinished if group.steps[-1] < total else ''}")
    return ", ".join(parts)


def final_text(metric: str, interval: stats.Interval) -> str:
    """Writes a mean with its interval; success in per cent."""
    mean, low, high = (scale(metric) * x for x in interval)
    text = f"{mean:.1f}{' %' if metric == 'success' else ''}"
    return text if math.isnan(low) else f"{text} [{low:.1f}, {high:.1f}]"
