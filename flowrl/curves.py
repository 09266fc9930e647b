"""Evaluations of finished or running runs: read from run directories and grouped by configuration."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowrl import loggers, resuming, run_files, schema, stats
from flowrl.errors import UserError
from flowrl.machine.files import CONFIG, DIVERGED, SWEEP
from flowrl.settings import OUTPUTS, command, read_config
from flowrl.summary import HEADLINE_EVALUATIONS, judged, scale

# Settings that do not change what a seed learns or how it is evaluated.
INCIDENTAL = (
    *("run_dir", "resume", "workers", "vectorization", "map", "data"),
    *("log_interval", "checkpoint_interval", "keep_checkpoints", "seed", "num_seeds"),
    *OUTPUTS,
)


MODES = ("eval", "best_of_n")
"""What evaluations are of: single actions, or choices among several by Q."""


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

    @property
    def diverged(self) -> dict[int, str]:
        """For each seed that diverged, what was not finite, and when."""
        return {seed: text for run in self.runs for seed, text in run.diverged.items()}

    def minutes(self, step: int) -> float:
        """Returns the training time to an update, averaged over run directories."""
        return float(np.mean([run.minutes[step] for run in self.runs]))


# ----------------------------------------------------------------------------------------------------- reading


def read_all(
    folders: Sequence[Path], *, with_minutes: bool = False, mode: str = "eval"
) -> tuple[list[RunDir], list[str]]:
    """Reads run directories, with the folder of a sweep for all its runs, and leaves out what has nothing to show.

    Returns:
        The runs, and why others are left out.

    Raises:
        UserError: A file of a run is damaged, or nothing has anything to show.
    """
    if mode not in MODES:
        raise UserError(f"--mode={mode} is unknown; choose {' or '.join(MODES)}")
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
        rivals = [other for other in rivals if _identity(other.config) == _identity(run.config)]
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
    return [folder / part["folder"] for part in schema.read(folder / SWEEP, run_files.SWEEP)["parts"]]


def read_runs(folder: Path, *, with_minutes: bool, mode: str = "eval") -> list[RunDir]:
    """Reads one run directory: one entry, or one per configuration where it is a part of a sweep.

    Args:
        folder: The directory.
        with_minutes: Whether to read the training times.
        mode: Which evaluations: `eval`, of single actions, or `best_of_n`.

    Raises:
        LeftOut: It is none, or nothing was evaluated in it yet.
        UserError: A file in it is damaged.
    """
    if not folder.is_dir():
        raise LeftOut(f"{folder} is not a folder; give the --run_dir of a run")
    if not (folder / CONFIG).exists():
        raise LeftOut(f"{folder} holds no run (no {CONFIG}); give the --run_dir of a run")
    config = _config(folder)
    lines = [line for line in loggers.read_lines(folder / "eval.jsonl") if line.get("mode", "eval") == mode]
    events = _events(folder, lines)
    if not lines and events:
        texts = "; ".join(text for _, text in events)
        raise NotEvaluated(f"{folder} diverged before its first evaluation ({texts}); leave this folder out")
    if not lines and mode != "eval":
        raise NotEvaluated(f"{folder} has no evaluations of mode {mode}; train with --agent.candidates=N for best_of_n")
    if not lines:
        raise NotEvaluated(
            f"{folder} has no evaluations in eval.jsonl; wait for its first, or train with --eval_episodes"
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


def _config(folder: Path) -> dict[str, Any]:
    """Returns a run's `config.json`, of which the command line can be told that made it."""
    config = read_config(folder)
    try:
        command(config)
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}; {schema.REMEDY}") from error
    return config


def _require_whole(folder: Path, config: dict[str, Any], lines: Sequence[dict[str, Any]]) -> None:
    """Checks that no evaluation but the newest, which may be under way, lacks a line.

    Raises:
        UserError: One does; a mean over others would pass for the one that was asked for.
    """
    settings = config["settings"]
    if not {"log_interval", "eval_interval", "checkpoint_interval", "online_steps"} <= settings.keys():
        return
    counts, newest = Counter(line["step"] for line in lines), max(line["step"] for line in lines)
    each = len(config.get("grid", config["seeds"])) * len({line["task"] for line in lines})
    for step in resuming.due(settings, "eval", newest - 1):
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
    own = {name.removeprefix("agent."): value for name, value in values.items()}
    config = {name: value for name, value in config.items() if name != "grid"}
    config["agent_config"] = config["agent_config"] | own
    diverged = {event["seed"]: text for event, text in events if values.items() <= event.items()}
    return RunDir(folder, config, metric, curves, {}, lines[-1]["episodes"], tasks, diverged)


def divergences(folder: Path) -> list[dict[str, Any]]:
    """Returns what `diverged.json` of a run directory says, nothing where there is none."""
    return schema.read(folder / DIVERGED, run_files.DIVERGED) if (folder / DIVERGED).exists() else []


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
    """Names a group: its agent, what sets it apart from the others of this agent, and which of its seeds diverged.

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
    if seeds := sorted(group.diverged):
        parts.append(f"diverged: seed{'s' * (len(seeds) > 1)} {' '.join(map(str, seeds))}")
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
        "diverged": [*run.diverged.values()],
        "episodes_per_task": run.episodes,
        "data": {"from": data_name(config), "sha256": config["data"]["sha256"]},
        **{key: config.get(key) for key in ("git_commit", "hardware", "versions", "preset")},
    }


def bounds(interval: stats.Interval) -> list[float] | None:
    """Returns an interval's bounds for a JSON file."""
    return None if math.isnan(interval.low) else [interval.low, interval.high]
