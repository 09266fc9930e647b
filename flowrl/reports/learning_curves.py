"""Learning curves: scores over updates or time, and final numbers beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowrl.reports import drawing
from flowrl.reports.curves import Group, data_name, final_text, label, panels
from flowrl.reports.drawing import COLOURS, CROSS, LABELS
from flowrl.reports.published import Curve
from flowrl.run_folder.evaluations import RunDir
from flowrl.run_folder.summary import scale

AXES = {"updates": "Updates", "minutes": "Training time of the run directory in minutes, without evaluation"}


def draw(groups: Sequence[Group], x: str, released: Mapping[str, Sequence[Curve]] | None = None) -> Any:
    """Draws one row per environment: learning curves, and final numbers beside them.

    Args:
        groups: What to show.
        x: A key of `AXES`.
        released: By environment others' curves to draw behind them, over updates.
    """
    rows, behind = panels(groups), released or {}
    named = [[_name(group, row) for group in row] for row in rows.values()]
    others = [[curve.name for curve in behind.get(environment, ())] for environment in rows]
    heights = [3.6 + drawing.legend_height([*ours, *theirs]) for ours, theirs in zip(named, others, strict=True)]
    figure = drawing.figure(10, sum(heights) + 0.9)
    axes = figure.subplots(len(rows), 2, squeeze=False, sharey="row", width_ratios=(4, 1), height_ratios=heights)
    for (environment, row), texts, (curves, finals) in zip(rows.items(), named, axes, strict=True):
        origins = dict.fromkeys(data_name(run.config) for group in row for run in group.runs)
        curves.set_title(f"{environment}\ndata: {'; '.join(origins)}", loc="left", fontsize=10)
        finals.set_title("Final", fontsize=10)
        styles = drawing.styles([group.final_interval[0] for group in row])
        for index, (group, text, style) in enumerate(zip(row, texts, styles, strict=True)):
            _draw_curves(curves, group, x, text, style)
            _draw_final(finals, group, index, style)
        for index, curve in enumerate(behind.get(environment, ()), len(row)):
            _draw_released(curves, curve, index)
        _dress(curves, finals, row, x)
    many = max(map(len, rows.values())) > len(drawing.MARKERS)
    grey = f"Grey: all but the best {len(drawing.MARKERS)}, without their seeds. " if many else ""
    theirs = "Dashed with a band: curves that other authors have released, as the legend says. " if any(others) else ""
    drawing.explain(
        figure,
        "Thick line: mean over seeds. Band, bar and [brackets]: 95 % percentile bootstrap interval of that mean over "
        f"seeds; none for one seed. Thin lines and dots: single seeds, those that diverged crossed out. "
        f"{grey}{theirs}{drawing.caption(groups)}",
    )
    return figure


def _name(group: Group, row: Sequence[Group]) -> str:
    final = final_text(group.metric, group.final_interval)
    return drawing.legend_text(f"{label(group, row)}; final {final}")


def _draw_curves(axes: Any, group: Group, x: str, text: str, style: dict[str, Any]) -> None:
    def positions(steps: Sequence[int], runs: Sequence[RunDir]) -> list[float]:
        return [float(np.mean([run.minutes[step] for run in runs])) if x == "minutes" else step for step in steps]

    along = positions(group.steps, group.runs)
    means, lows, highs = scale(group.metric) * np.array(group.intervals).T
    axes.plot(along, means, label=text, **{"linewidth": 2, "markersize": 5, "zorder": 3, **style})
    if len(group.curves) == 1 or style == drawing.FAINT:
        return
    axes.fill_between(along, lows, highs, color=style["color"], alpha=0.18, linewidth=0, zorder=1)
    for run in group.runs:
        for curve in run.curves.values():
            values = scale(group.metric) * np.array([*curve.values()])
            axes.plot(positions([*curve], [run]), values, color=style["color"], linewidth=0.7, alpha=0.5, zorder=2)


def _draw_released(axes: Any, curve: Curve, index: int) -> None:
    """Draws what others have reached as a band behind our own curves; a single number as a bar."""
    colour = COLOURS[index % len(COLOURS)]
    means, lows, highs = scale("success") * np.array(curve.intervals).T
    axes.plot(curve.updates, means, "--", color=colour, linewidth=1.2, label=curve.name, zorder=1)
    axes.fill_between(curve.updates, lows, highs, color=colour, alpha=0.12, linewidth=0, zorder=0)
    if len(curve.updates) == 1:
        axes.errorbar(curve.updates, means, [means - lows, highs - means], color=colour, capsize=4, zorder=1)


def _draw_final(axes: Any, group: Group, index: int, style: dict[str, Any]) -> None:
    mean, low, high = scale(group.metric) * np.array(group.final_interval)
    if len(group.final) > 1:
        axes.errorbar([index], [mean], [[mean - low], [high - mean]], color=style["color"], capsize=4, linewidth=1.5)
        seeds = scale(group.metric) * np.array([*group.final.values()])
        axes.plot(np.full(len(seeds), index + 0.25), seeds, ".", color=style["color"], markersize=4, alpha=0.6)
    broken = [scale(group.metric) * group.final[seed] for seed in group.diverged if seed in group.final]
    axes.plot(np.full(len(broken), index + 0.25), broken, **CROSS)
    axes.plot([index], [mean], **{"markersize": 7, "zorder": 3, **style, "marker": style["marker"] or "."})


def _dress(curves: Any, finals: Any, row: Sequence[Group], x: str) -> None:
    online = x == "updates" and any(group.unit == "steps" for group in row)
    text = "Steps: updates on data, then environment steps" if online else AXES[x]
    for switch in {group.identity["steps"] for group in row if online and group.unit == "steps"} - {0}:
        curves.axvline(switch, color="0.5", linestyle=":", linewidth=1, zorder=0)  # from data to own experience
    curves.set(xlabel=text, ylabel=LABELS[row[0].metric])
    curves.set_xlim(left=0)
    if row[0].metric == "success":
        curves.set_ylim(-2, 102)
        curves.set_yticks(range(0, 101, 20))
    curves.xaxis.set_major_formatter("{x:,.0f}" if curves.get_xlim()[1] > 10 else "{x:g}")
    finals.set(xlim=(-0.6, len(row) - 0.4), xticks=[], xlabel="groups as in the legend")
    for axes in (curves, finals):
        drawing.bare(axes, "y")
    drawing.legend_below(curves)
