"""Draws learning curves: python experiments/plot.py RUN_DIR... [--out=curves.png] [--x=updates|minutes].

Runs with the same configuration but for their seeds form a group, in one run directory or in several. The plotted
numbers go to <out>.json beside the picture, with the configurations, commits and hardware they come from.
"""

import dataclasses
import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags as absl_flags

from flowrl import config as configs
from flowrl import flags, loggers, stats
from flowrl.errors import UserError
from flowrl.files import replacing
from flowrl.settings import command
from flowrl.summary import HEADLINE_EVALUATIONS

FORMATS = ("png", "pdf", "svg")
AXES = {"updates": "Updates", "minutes": "Training time of the run directory in minutes, without evaluation"}
# Settings that do not change what a seed learns or how it is evaluated.
INCIDENTAL = ("run_dir", "resume", "workers", "map", "data", "log_interval", "checkpoint_interval", "seed", "num_seeds")
# Okabe and Ito's palette, told apart with any colour vision; markers tell the lines apart without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of this program."""

    out: str = configs.setting("curves.png", "The picture: .png, .pdf or .svg.")
    x: str = configs.setting("updates", "Horizontal axis: updates or minutes.")


class RunDir(NamedTuple):
    """What one run directory holds.

    Attributes:
        folder: The directory.
        config: Its `config.json`.
        curves: For each seed, the success (mean over tasks) after each evaluated update.
        minutes: For each evaluated update, the training time so far.
        episodes: Episodes per task and evaluation.
        tasks: Number of tasks.
    """

    folder: Path
    config: dict[str, Any]
    curves: dict[int, dict[int, float]]
    minutes: dict[int, float]
    episodes: int
    tasks: int


class Group(NamedTuple):
    """Seeds of one configuration.

    Attributes:
        identity: What the seeds have in common.
        runs: The run directories they come from.
        curves: For each seed, the success after each evaluated update.
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
    def headline_steps(self) -> list[int]:
        """The evaluations that the final numbers average."""
        return self.steps[-HEADLINE_EVALUATIONS:]

    def minutes(self, step: int) -> float:
        """Returns the training time to an update, averaged over run directories."""
        return float(np.mean([run.minutes[step] for run in self.runs]))


# ----------------------------------------------------------------------------------------------------- reading


def read_run(folder: Path, *, with_minutes: bool) -> RunDir:
    """Reads one run directory.

    Raises:
        UserError: It is none, or nothing was evaluated in it yet.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the --run_dir of a run")
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} holds no run (no config.json); give the --run_dir of a run")
    config = loggers.read_json(folder / "config.json")
    lines = loggers.read_lines(folder / "eval.jsonl")
    if not lines:
        raise UserError(f"{folder} has no evaluations in eval.jsonl; wait for its first, or train with --eval_episodes")
    try:
        curves, tasks = _curves(lines)
        _identity(config), data_name(config)  # ask for all that is needed
    except (KeyError, TypeError) as error:
        raise UserError(f"the files in {folder} are not those of a run ({error!r}); leave this folder out") from error
    steps = sorted({step for curve in curves.values() for step in curve})
    minutes = _minutes(folder, steps) if with_minutes else {}
    return RunDir(folder, config, curves, minutes, lines[-1]["episodes"], tasks)


def _curves(lines: list[dict[str, Any]]) -> tuple[dict[int, dict[int, float]], int]:
    """Returns each seed's success by update, and the number of tasks; an evaluation that lacks a task is left out."""
    cells: dict[tuple[int, int], dict[int, float]] = {}
    for line in lines:
        cells.setdefault((line["seed"], line["step"]), {})[line["task"]] = line["success"]
    tasks = max(len(cell) for cell in cells.values())
    curves: dict[int, dict[int, float]] = {}
    for (seed, step), cell in sorted(cells.items()):
        if len(cell) == tasks:
            curves.setdefault(seed, {})[step] = float(np.mean(list(cell.values())))
    return curves, tasks


def _minutes(folder: Path, steps: list[int]) -> dict[int, float]:
    """Returns the training time to each update, from the rates between log lines."""
    lines = [line for line in loggers.read_lines(folder / "time.jsonl") if line["updates_per_second"] > 0]
    if not lines:
        raise UserError(f"{folder} has no times in time.jsonl; use --x=updates")
    ends = np.array([0] + [line["step"] for line in lines])
    rates = np.array([line["updates_per_second"] for line in lines])
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
    unfinished = f", unfinished: {group.steps[-1]:,} of {own['steps']:,} updates"
    parts.append(f"{count} seed{'s' * (count > 1)}{unfinished if group.steps[-1] < own['steps'] else ''}")
    return ", ".join(parts)


def final_text(interval: stats.Interval) -> str:
    """Writes a mean with its interval in per cent."""
    mean = f"{100 * interval.mean:.1f} %"
    return mean if math.isnan(interval.low) else f"{mean} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


# ----------------------------------------------------------------------------------------------------- output


def record(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Returns all plotted numbers with what makes them traceable."""
    return [
        {
            "label": label(group, panel),
            "environment": group.identity["env"],
            "configuration": group.identity,
            "runs": [_traces(run) for run in group.runs],
            "updates": group.steps,
            "minutes": [group.minutes(step) for step in group.steps] if group.runs[0].minutes else None,
            "mean": [interval.mean for interval in group.intervals],
            "interval_95": [_bounds(interval) for interval in group.intervals],
            "per_seed": {
                seed: {"updates": [*curve], "success": [*curve.values()]} for seed, curve in group.curves.items()
            },
            "final": {
                "rule": f"mean over tasks and the evaluations after updates {group.headline_steps}",
                "per_seed": group.final,
                "mean": group.final_interval.mean,
                "interval_95": _bounds(group.final_interval),
            },
        }
        for panel in panels(groups).values()
        for group in panel
    ]


def _traces(run: RunDir) -> dict[str, Any]:
    config = run.config
    return {
        "run_dir": run.folder.resolve().name,
        "command": command(config),
        "seeds": [*run.curves],
        "episodes_per_task": run.episodes,
        "data": {"from": data_name(config), "sha256": config["data"]["sha256"]},
        **{name: config.get(name) for name in ("git_commit", "hardware", "versions", "preset")},
    }


def _bounds(interval: stats.Interval) -> list[float] | None:
    return None if math.isnan(interval.low) else [interval.low, interval.high]


def panels(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Returns the groups of each environment."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.identity["env"], []).append(group)
    return found


def draw(groups: Sequence[Group], out: Path, x: str) -> None:
    """Draws one row per environment: learning curves, and final numbers beside them.

    Raises:
        UserError: matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("plots need matplotlib; install it with: pip install -e .[plot]") from error
    rows = panels(groups)
    heights = [3.6 + 0.22 * len(row) for row in rows.values()]
    figure = Figure(figsize=(10, sum(heights) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), 2, squeeze=False, sharey=True, width_ratios=(4, 1), height_ratios=heights)
    for (environment, row), (curves, finals) in zip(rows.items(), axes, strict=True):
        origins = dict.fromkeys(data_name(run.config) for group in row for run in group.runs)
        curves.set_title(f"{environment}\ndata: {'; '.join(origins)}", loc="left", fontsize=10)
        finals.set_title("Final", fontsize=10)
        for index, group in enumerate(row):
            name = f"{label(group, row)}; final {final_text(group.final_interval)}"
            style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
            _draw_curves(curves, group, x, name, style)
            _draw_final(finals, group, index, style)
        _dress(curves, finals, len(row), x)
    figure.supxlabel(caption(groups), fontsize=8, x=0.02, ha="left")
    with replacing(out) as temporary:
        figure.savefig(temporary, format=out.suffix[1:], dpi=150)


def _draw_curves(axes: Any, group: Group, x: str, name: str, style: dict[str, Any]) -> None:
    def positions(steps: Sequence[int], runs: Sequence[RunDir]) -> list[float]:
        return [float(np.mean([run.minutes[step] for run in runs])) if x == "minutes" else step for step in steps]

    along = positions(group.steps, group.runs)
    means, lows, highs = 100 * np.array(group.intervals).T
    axes.plot(along, means, label=name, linewidth=2, markersize=5, zorder=3, **style)
    if len(group.curves) == 1:
        return
    axes.fill_between(along, lows, highs, color=style["color"], alpha=0.18, linewidth=0, zorder=1)
    for run in group.runs:
        for curve in run.curves.values():
            successes = 100 * np.array([*curve.values()])
            axes.plot(positions([*curve], [run]), successes, color=style["color"], linewidth=0.7, alpha=0.5, zorder=2)


def _draw_final(axes: Any, group: Group, index: int, style: dict[str, Any]) -> None:
    mean, low, high = 100 * np.array(group.final_interval)
    if len(group.final) > 1:
        axes.errorbar([index], [mean], [[mean - low], [high - mean]], color=style["color"], capsize=4, linewidth=1.5)
        seeds = 100 * np.array([*group.final.values()])
        axes.plot(np.full(len(seeds), index + 0.25), seeds, ".", color=style["color"], markersize=4, alpha=0.6)
    axes.plot([index], [mean], markersize=7, zorder=3, **style)


def _dress(curves: Any, finals: Any, count: int, x: str) -> None:
    curves.set(xlabel=AXES[x], ylabel="Success in %", ylim=(-2, 102))
    curves.set_xlim(left=0)
    curves.set_yticks(range(0, 101, 20))
    curves.xaxis.set_major_formatter("{x:,.0f}" if curves.get_xlim()[1] > 10 else "{x:g}")
    finals.set(xlim=(-0.6, count - 0.4), xticks=[], xlabel="groups as in the legend")
    for axes in (curves, finals):
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    curves.legend(loc="upper left", bbox_to_anchor=(0, -0.16), borderaxespad=0, frameon=False, fontsize=9)


def caption(groups: Sequence[Group]) -> str:
    """Explains the picture."""
    runs = [run for group in groups for run in group.runs]

    def several(values: Sequence[Any]) -> str:
        return " or ".join(str(value) for value in dict.fromkeys(values))

    commits = [re.sub(r"(?<=^.{9})[0-9a-f]*", "", run.config.get("git_commit") or "unknown") for run in runs]
    last = several([len(group.headline_steps) for group in groups])
    text = (
        f"Each evaluation runs {several([run.episodes for run in runs])} episodes on each of "
        f"{several([run.tasks for run in runs])} tasks for every seed; success is the mean over tasks. "
        "Thick line: mean over seeds. Band, bar and [brackets]: 95 % percentile bootstrap interval of that mean over "
        "seeds; none for one seed. Thin lines and dots: single seeds. "
        f"Final: mean of the last {last} evaluations. "
        f"Trained on {several([run.config.get('hardware') for run in runs])}; commit {several(commits)}."
    )
    return textwrap.fill(text, 150)


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    values = absl_flags.FlagValues()
    flags.define(values, Options)
    if flags.wants_help(arguments):
        print(f"{__doc__}\n{flags.help_text(Options)}")
        return 0
    folders = flags.parse(values, arguments, positional=True)
    if not folders:
        raise UserError("which runs? give one or more run directories: python experiments/plot.py runs/A runs/B")
    if values.x not in AXES:
        raise UserError(f"--x={values.x} is unknown; choose {' or '.join(AXES)}")
    out = Path(values.out).expanduser()
    if out.suffix[1:] not in FORMATS:
        raise UserError(f"--out={values.out} is no picture; end it in .{', .'.join(FORMATS)}")
    runs = [read_run(Path(folder).expanduser(), with_minutes=values.x == "minutes") for folder in folders]
    groups = group_runs(runs)
    draw(groups, out, values.x)
    loggers.write_json(out.with_name(f"{out.name}.json"), {"x": values.x, "groups": record(groups)})
    print(f"wrote {out} and {out.name}.json")
    for row in panels(groups).values():
        for group in row:
            print(f"{row[0].identity['env']}: {label(group, row)}: {final_text(group.final_interval)}")
    return 0


if __name__ == "__main__":
    flags.run(main)
