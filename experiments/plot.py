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
from typing import Any

import numpy as np
from absl import flags as absl_flags

from flowrl import config as configs
from flowrl import flags, loggers, stats
from flowrl.curves import Group, RunDir, data_name, final_text, group_runs, label, read_run
from flowrl.errors import UserError
from flowrl.files import replacing
from flowrl.settings import command
from flowrl.summary import scale

FORMATS = ("png", "pdf", "svg")
AXES = {"updates": "Updates", "minutes": "Training time of the run directory in minutes, without evaluation"}
METRICS = {"success": "Success in %", "normalized_score": "Normalised score", "return": "Return"}
# Okabe and Ito's palette, told apart with any colour vision; markers tell the lines apart without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of this program."""

    out: str = configs.setting("curves.png", "The picture: .png, .pdf or .svg.")
    x: str = configs.setting("updates", "Horizontal axis: updates or minutes.")
    mode: str = configs.setting("eval", "Evaluations: eval, of single actions, or best_of_n, of choices by Q.")


# ----------------------------------------------------------------------------------------------------- output


def record(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Returns all plotted numbers with what makes them traceable."""
    return [
        {
            "label": label(group, panel),
            "environment": group.identity["env"],
            "metric": group.metric,
            "configuration": group.identity,
            "runs": [_traces(run) for run in group.runs],
            "updates": group.steps,
            "minutes": [group.minutes(step) for step in group.steps] if group.runs[0].minutes else None,
            "mean": [interval.mean for interval in group.intervals],
            "interval_95": [_bounds(interval) for interval in group.intervals],
            "per_seed": {
                seed: {"updates": [*curve], group.metric: [*curve.values()]} for seed, curve in group.curves.items()
            },
            "final": {
                "rule": f"mean over tasks and the evaluations after {group.unit} {group.headline_steps}",
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
    axes = figure.subplots(len(rows), 2, squeeze=False, sharey="row", width_ratios=(4, 1), height_ratios=heights)
    for (environment, row), (curves, finals) in zip(rows.items(), axes, strict=True):
        origins = dict.fromkeys(data_name(run.config) for group in row for run in group.runs)
        curves.set_title(f"{environment}\ndata: {'; '.join(origins)}", loc="left", fontsize=10)
        finals.set_title("Final", fontsize=10)
        for index, group in enumerate(row):
            name = f"{label(group, row)}; final {final_text(group.metric, group.final_interval)}"
            style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
            _draw_curves(curves, group, x, name, style)
            _draw_final(finals, group, index, style)
        _dress(curves, finals, row, x)
    figure.supxlabel(caption(groups), fontsize=8, x=0.02, ha="left")
    with replacing(out) as temporary:
        figure.savefig(temporary, format=out.suffix[1:], dpi=150)


def _draw_curves(axes: Any, group: Group, x: str, name: str, style: dict[str, Any]) -> None:
    def positions(steps: Sequence[int], runs: Sequence[RunDir]) -> list[float]:
        return [float(np.mean([run.minutes[step] for run in runs])) if x == "minutes" else step for step in steps]

    along = positions(group.steps, group.runs)
    means, lows, highs = scale(group.metric) * np.array(group.intervals).T
    axes.plot(along, means, label=name, linewidth=2, markersize=5, zorder=3, **style)
    if len(group.curves) == 1:
        return
    axes.fill_between(along, lows, highs, color=style["color"], alpha=0.18, linewidth=0, zorder=1)
    for run in group.runs:
        for curve in run.curves.values():
            values = scale(group.metric) * np.array([*curve.values()])
            axes.plot(positions([*curve], [run]), values, color=style["color"], linewidth=0.7, alpha=0.5, zorder=2)


def _draw_final(axes: Any, group: Group, index: int, style: dict[str, Any]) -> None:
    mean, low, high = scale(group.metric) * np.array(group.final_interval)
    if len(group.final) > 1:
        axes.errorbar([index], [mean], [[mean - low], [high - mean]], color=style["color"], capsize=4, linewidth=1.5)
        seeds = scale(group.metric) * np.array([*group.final.values()])
        axes.plot(np.full(len(seeds), index + 0.25), seeds, ".", color=style["color"], markersize=4, alpha=0.6)
    axes.plot([index], [mean], markersize=7, zorder=3, **style)


def _dress(curves: Any, finals: Any, row: Sequence[Group], x: str) -> None:
    online = x == "updates" and any(group.unit == "steps" for group in row)
    text = "Steps: updates on data, then environment steps" if online else AXES[x]
    for switch in {group.identity["steps"] for group in row if online and group.unit == "steps"} - {0}:
        curves.axvline(switch, color="0.5", linestyle=":", linewidth=1, zorder=0)  # from data to own experience
    curves.set(xlabel=text, ylabel=METRICS[row[0].metric])
    curves.set_xlim(left=0)
    if row[0].metric == "success":
        curves.set_ylim(-2, 102)
        curves.set_yticks(range(0, 101, 20))
    curves.xaxis.set_major_formatter("{x:,.0f}" if curves.get_xlim()[1] > 10 else "{x:g}")
    finals.set(xlim=(-0.6, len(row) - 0.4), xticks=[], xlabel="groups as in the legend")
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
        f"{several([run.tasks for run in runs])} task(s) for every seed; shown is the mean over tasks. "
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
    runs = [
        read_run(Path(folder).expanduser(), with_minutes=values.x == "minutes", mode=values.mode) for folder in folders
    ]
    groups = group_runs(runs)
    draw(groups, out, values.x)
    loggers.write_json(out.with_name(f"{out.name}.json"), {"x": values.x, "groups": record(groups)})
    print(f"wrote {out} and {out.name}.json")
    for row in panels(groups).values():
        for group in row:
            print(f"{row[0].identity['env']}: {label(group, row)}: {final_text(group.metric, group.final_interval)}")
    return 0


if __name__ == "__main__":
    flags.run(main)
