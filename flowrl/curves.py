"""Evaluations of finished or running runs: read from run directories and grouped by configuration."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowrl import loggers, stats
from flowrl.errors import UserError
from flowrl.files import DIVERGED, SWEEP
from flowrl.settings import OUTPUTS, command
from flowrl.summary import HEADLINE_EVALUATIONS, judged, scale

# Settings that do not change what a seed learns or how it is evaluated.
INCIDENTAL = (
    *("run_dir", "resume", "workers", "vectorization", "map", "data"),
    *("log_interval", "checkpoint_interval", "keep_checkpoints", "seed", "num_seeds"),
    *OUTPUTS,
)


class NotEvaluated(UserError):
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
        diverged: What was not finite, and when, in runs that diverged; else nothing.
    """

    folder: Path
    config: dict[str, Any]
    metric: str
    curves: dict[int, dict[int, float]]
    minutes: dict[int, float]
    episodes: int
    tasks: int
    diverged: str


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
    def total(self) -> int:
        """The updates, or online the steps, that were asked for."""
        return self.identity["steps"] + self.identity.get("online_steps", 0)

    @property
    def unfinished(self) -> str:
        """Says how far the seeds have come where that is not to the end, else nothing."""
        done = self.steps[-1]
        return "" if done >= self.total else f"unfinished: {done:,} of {self.total:,} {self.unit}"

    @property
    def rule(self) -> str:
        """Says what a final number is."""
        return f"mean over tasks and the evaluations after {self.unit} {self.headline_steps}"

    @property
    def headline_steps(self) -> list[int]:
        """The evaluations that the final numbers average."""
        return self.steps[-HEADLINE_EVALUATIONS:]

    def minutes(self, step: int) -> float:
        """Returns the training time to an update, averaged over run directories."""
        return float(np.mean([run.minutes[step] for run in self.runs]))


# ----------------------------------------------------------------------------------------------------- reading


def expand(folders: Sequence[Path]) -> list[Path]:
    """Returns run directories, with the folder of a sweep replaced by those of its parts that have begun.

    Raises:
        UserError: No part of a sweep has begun.
    """
    found = []
    for folder in folders:
        parts = [part for part in _parts(folder) if (part / "config.json").exists()]
        if (folder / SWEEP).exists() and not parts:
            raise UserError(f"no part of the sweep in {folder} has begun; wait for its first evaluation")
        found += parts or [folder]
    return found


def waiting(folders: Sequence[Path]) -> list[str]:
    """Says which parts of sweeps have not begun."""
    parts = [part for folder in folders for part in _parts(folder) if not (part / "config.json").exists()]
    return [f"{part.parent.resolve().name}/{part.name} has not begun" for part in parts]


def _parts(folder: Path) -> list[Path]:
    """Returns the run directories of a sweep; none of another folder."""
    record = loggers.read_json(folder / SWEEP) if (folder / SWEEP).exists() else {"parts": []}
    return [folder / part["folder"] for part in record["parts"]]


def read_runs(folder: Path, *, with_minutes: bool, mode: str = "eval") -> list[RunDir]:
    """Reads one run directory: one entry, or one per configuration where it is a part of a sweep.

    Args:
        folder: The directory.
        with_minutes: Whether to read the training times.
        mode: Which evaluations: `eval`, of single actions, or `best_of_n`.

    Raises:
        UserError: It is none.
        NotEvaluated: Nothing was evaluated in it yet.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the --run_dir of a run")
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} holds no run (no config.json); give the --run_dir of a run")
    config = loggers.read_json(folder / "config.json")
    lines = [line for line in loggers.read_lines(folder / "eval.jsonl") if line.get("mode", "eval") == mode]
    diverged = _divergence(folder, {})
    if not lines and diverged:
        raise NotEvaluated(f"{folder} diverged before its first evaluation ({diverged}); leave this folder out")
    if not lines and mode != "eval":
        raise NotEvaluated(f"{folder} has no evaluations of mode {mode}; train with --agent.candidates=N for best_of_n")
    if not lines:
        raise NotEvaluated(
            f"{folder} has no evaluations in eval.jsonl; wait for its first, or train with --eval_episodes"
        )
    try:
        metric, lines = judged(lines)
        if metric is None:
            raise NotEvaluated(f"{folder} has no evaluation with finite numbers; leave this folder out")
        _identity(config), data_name(config)  # ask for all that is needed
        found = [_read(folder, config, metric, own, values) for values, own in _configurations(lines)]
    except (KeyError, TypeError) as error:
        raise UserError(f"the files in {folder} are not those of a run ({error!r}); leave this folder out") from error
    if not with_minutes:
        return found
    steps = sorted({line["step"] for line in lines})
    minutes = _minutes(folder, steps)
    return [run._replace(minutes=minutes) for run in found]


def _configurations(lines: list[dict[str, Any]]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Returns the lines of each configuration with its values of what a sweep varies, none in other runs."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        values = tuple((name, value) for name, value in line.items() if name.startswith("agent."))
        found.setdefault(values, []).append(line)
    return [(dict(values), own) for values, own in found.items()]


def _read(
    folder: Path, config: dict[str, Any], metric: str, lines: list[dict[str, Any]], values: dict[str, Any]
) -> RunDir:
    """Returns one configuration of a run directory, without its times."""
    curves, tasks = _curves(lines, metric)
    own = {name.removeprefix("agent."): value for name, value in values.items()}
    config = {name: value for name, value in config.items() if name != "grid"}
    config["agent_config"] = config["agent_config"] | own
    return RunDir(folder, config, metric, curves, {}, lines[-1]["episodes"], tasks, _divergence(folder, values))


def _divergence(folder: Path, values: dict[str, Any]) -> str:
    """Says what was not finite in runs with these values that diverged, else nothing."""
    if not (folder / DIVERGED).exists():
        return ""
    events = [event for event in loggers.read_json(folder / DIVERGED) if values.items() <= event.items()]
    return "; ".join(
        f"{event['metric']} of seed {event['seed']} was not finite after {event['step']:,}" for event in events
    )


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
        UserError: A seed occurs twice in a group, its seeds were never evaluated at the same update, or the runs of an
            environment are judged by different metrics.
    """
    runs = _sweeps_alike(runs)
    first: dict[str, RunDir] = {}
    for run in runs:
        other = first.setdefault(run.config["settings"]["env"], run)
        if other.metric != run.metric:
            raise UserError(
                f"{other.folder} is judged by {other.metric}, {run.folder} by {run.metric}, in the same environment; "
                "these cannot be compared, leave one out"
            )
    members: dict[str, list[RunDir]] = {}
    for run in runs:
        members.setdefault(repr(sorted(_identity(run.config).items())), []).append(run)
    return [_group(group) for group in members.values()]


def _sweeps_alike(runs: Sequence[RunDir]) -> list[RunDir]:
    """Returns runs with success 0 where other parts of their sweep were told one: none of theirs has reached it."""
    told = {run.folder.parent for run in runs if run.metric == "success" and (run.folder.parent / SWEEP).exists()}
    return [
        run._replace(metric="success", curves={seed: dict.fromkeys(curve, 0.0) for seed, curve in run.curves.items()})
        if run.folder.parent in told and run.metric != "success"
        else run
        for run in runs
    ]


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


def panels(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Returns the groups of each environment."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.identity["env"], []).append(group)
    return found


def name(group: Group, others: Sequence[Group]) -> str:
    """Names a group: its agent, and what sets it apart from the others of this agent.

    A preset stands for all the values that come with it.
    """
    own = group.identity
    rivals = [other.identity for other in others if other.identity["agent"] == own["agent"]]
    parts = [own["agent"]]
    if any(rival["preset"] != own["preset"] for rival in rivals):
        parts.append(f"preset={own['preset']}")
    rivals = [rival for rival in rivals if rival["preset"] == own["preset"]]
    for field, value in own.items():
        if field != "preset" and any(rival.get(field) != value for rival in rivals):
            shown = f"{data_name(group.runs[0].config)} ({value[:8]})" if field == "data" else value_text(value)
            parts.append(f"{field}={shown}")
    return ", ".join(parts)


def value_text(value: Any) -> str:
    """Returns a setting's value as on the command line."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def label(group: Group, others: Sequence[Group]) -> str:
    """Names a group, with its number of seeds and how far they have come."""
    count = len(group.curves)
    parts = [name(group, others), f"{count} seed{'s' * (count > 1)}", group.unfinished]
    return ", ".join(part for part in parts if part)


def final_text(metric: str, interval: stats.Interval) -> str:
    """Writes a mean with its interval; success in per cent."""
    mean, low, high = (scale(metric) * x for x in interval)
    text = f"{mean:.1f}{' %' if metric == 'success' else ''}"
    return text if math.isnan(low) else f"{text} [{low:.1f}, {high:.1f}]"


# ------------------------------------------------------------------------------------------------------ records


def record(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Returns all numbers of the groups with what makes them traceable."""
    return [
        {
            "label": label(group, panel),
            "environment": group.identity["env"],
            "metric": group.metric,
            "configuration": group.identity,
            "runs": [traces(run) for run in group.runs],
            "updates": group.steps,
            "minutes": [group.minutes(step) for step in group.steps] if group.runs[0].minutes else None,
            "mean": [interval.mean for interval in group.intervals],
            "interval_95": [bounds(interval) for interval in group.intervals],
            "per_seed": {
                seed: {"updates": [*curve], group.metric: [*curve.values()]} for seed, curve in group.curves.items()
            },
            "final": {
                "rule": group.rule,
                "per_seed": group.final,
                "mean": group.final_interval.mean,
                "interval_95": bounds(group.final_interval),
            },
        }
        for panel in panels(groups).values()
        for group in panel
    ]


def traces(run: RunDir) -> dict[str, Any]:
    """Returns what a run's numbers can be traced by, without paths of the machine it ran on."""
    config = run.config
    return {
        "run_dir": run.folder.resolve().name,
        "command": command(config),
        "seeds": [*run.curves],
        "episodes_per_task": run.episodes,
        "data": {"from": data_name(config), "sha256": config["data"]["sha256"]},
        **{key: config.get(key) for key in ("git_commit", "hardware", "versions", "preset")},
    }


def bounds(interval: stats.Interval) -> list[float] | None:
    """Returns an interval's bounds for a JSON file."""
    return None if math.isnan(interval.low) else [interval.low, interval.high]
