"""Runs grouped by configuration: learning curves over seeds, final scores, names, and what makes numbers traceable."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowrl.errors import UserError
from flowrl.run_folder import statistics
from flowrl.run_folder.evaluations import RunDir, identity
from flowrl.run_folder.layout import SWEEP
from flowrl.run_folder.summary import HEADLINE_EVALUATIONS, scale
from flowrl.run_folder.texts import shown


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
    intervals: list[statistics.Interval]
    final: dict[int, float]
    final_interval: statistics.Interval

    @property
    def metric(self) -> str:
        """What the curves show."""
        return self.runs[0].metric

    @property
    def unit(self) -> str:
        """What the curves run over."""
        return "steps" if self.identity["online.steps"] else "updates"

    @property
    def total(self) -> int:
        """The updates, or online the steps, that were asked for."""
        return self.identity["steps"] + self.identity["online.steps"]

    @property
    def sparse(self) -> bool:
        """Whether rewards were made sparse, which is another problem."""
        return self.identity.get("normalize.sparse", False)

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
        members.setdefault(repr(sorted(identity(run.config).items())), []).append(run)
    return [_group(group) for group in members.values()]


def _sweeps_alike(runs: Sequence[RunDir]) -> list[RunDir]:
    """Returns runs with success 0 where other parts of their sweep were told one: none of theirs has reached it."""
    told = {run.folder.parent for run in runs if run.metric == "success" and (run.folder.parent / SWEEP).exists()}
    return [unsuccessful(run) if run.folder.parent in told and run.metric != "success" else run for run in runs]


def unsuccessful(run: RunDir) -> RunDir:
    """Returns a run with success 0, where its environment tells success only where it is reached."""
    curves = {seed: dict.fromkeys(curve, 0.0) for seed, curve in run.curves.items()}
    return run._replace(metric="success", curves=curves)


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
    intervals = [statistics.mean_interval(np.array([curve[step] for curve in curves.values()])) for step in steps]
    last = steps[-HEADLINE_EVALUATIONS:]
    final = {seed: float(np.mean([curve[step] for step in last])) for seed, curve in curves.items()}
    final_interval = statistics.mean_interval(np.array(list(final.values())))
    return Group(identity(runs[0].config), runs, curves, steps, intervals, final, final_interval)


def panels(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Returns the groups of each environment."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.identity["env"], []).append(group)
    return found


def data_name(config: dict[str, Any]) -> str:
    """Says where a run's data came from, without paths of the machine it ran on."""
    data = config["data"]
    if data["origin"] == "none":
        return "none, learnt online"
    if "not the official download" in data["detail"]:
        extent = re.search(r"\d+ of \d+ episodes, seed \d+", data["detail"])
        return "collected by flowrl, not the official download" + (f", {extent[0]}" if extent else "")
    return "official download" if data["origin"] == "official" else f"file {Path(data['path']).name}"


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
            text = f"{data_name(group.runs[0].config)} ({value[:8]})" if field == "data" else shown(value)
            parts.append(f"{field}={text}")
    if seeds := sorted(group.diverged):
        parts.append(f"diverged: seed{'s' * (len(seeds) > 1)} {' '.join(map(str, seeds))}")
    return ", ".join(parts)


def label(group: Group, others: Sequence[Group]) -> str:
    """Names a group, with its number of seeds and how far they have come."""
    count = len(group.curves)
    parts = [name(group, others), f"{count} seed{'s' * (count > 1)}", group.unfinished]
    return ", ".join(part for part in parts if part)


def final_text(metric: str, interval: statistics.Interval) -> str:
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
        "command": config["command"],
        "seeds": [*run.curves],
        "diverged": [*run.diverged.values()],
        "episodes_per_task": run.episodes,
        "data": {"from": data_name(config), "sha256": config["data"]["sha256"]},
        **{key: config.get(key) for key in ("git_commit", "hardware", "versions", "preset")},
    }


def bounds(interval: statistics.Interval) -> list[float] | None:
    """Returns an interval's bounds for a JSON file."""
    return None if math.isnan(interval.low) else [interval.low, interval.high]
