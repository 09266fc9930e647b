"""Pictures of finished or running runs; each is drawn from the numbers that are recorded beside it."""

import contextlib
import io
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowrl.errors import UserError
from flowrl.machine.files import replacing
from flowrl.reports import comparisons
from flowrl.reports.curves import Group, data_name, final_text, label, panels, record
from flowrl.run_folder import logs
from flowrl.run_folder.evaluations import RunDir
from flowrl.run_folder.summary import scale
from flowrl.run_folder.texts import shown

FORMATS = ("png", "pdf", "svg")
AXES = {"updates": "Updates", "minutes": "Training time of the run directory in minutes, without evaluation"}
METRICS = {"success": "Success in %", "normalized_score": "Normalised score", "return": "Return"}
# Okabe and Ito's palette, told apart with any colour vision; markers tell the lines apart without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
CROSS: dict[str, Any] = {"marker": "x", "linestyle": "", "color": "red", "markersize": 8, "zorder": 4}
"""How the score of a seed is drawn that diverged."""
BANDS = 4
"""Of how many profiles the bands can be told apart."""


class Picture(NamedTuple):
    """A picture and its numbers.

    Attributes:
        figure: matplotlib's figure.
        numbers: What it shows, ready for a JSON file.
    """

    figure: Any
    numbers: dict[str, Any]


def make(kind: str, groups: Sequence[Group], x: str = "updates") -> Picture:
    """Makes a picture.

    Args:
        kind: A key of `KINDS`.
        groups: What to show.
        x: What learning curves run over: `updates` or `minutes`.

    Raises:
        UserError: matplotlib is missing, or the groups do not suffice.
    """
    with _plain_text():
        if kind == "curves":
            return Picture(_curves(groups, x), {"kind": kind, "x": x, "groups": record(groups)})
        compare, draw = KINDS[kind]
        found = compare(groups)
        return Picture(draw(found, groups), {"kind": kind, "panels": found, "groups": record(groups)})


def save(picture: Picture, out: Path) -> None:
    """Writes a picture, and its numbers to <out>.json beside it."""
    with replacing(out) as temporary, _plain_text():
        picture.figure.savefig(temporary, format=out.suffix[1:], dpi=150)
    logs.write_json(out.with_name(f"{out.name}.json"), picture.numbers)


def png(picture: Picture) -> bytes:
    """Returns a picture as the bytes of a PNG file."""
    file = io.BytesIO()
    with _plain_text():
        picture.figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


@contextlib.contextmanager
def _plain_text() -> Iterator[None]:
    """Keeps dollar signs in names from being read as formulas.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise UserError("plots need matplotlib; install it with: pip install -e '.[plot]'") from error
    with matplotlib.rc_context({"text.parse_math": False}):
        yield


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _bare(axes: Any, grid: str) -> None:
    axes.grid(axis=grid, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _explain(figure: Any, text: str, width: int = 150) -> None:
    figure.supxlabel(textwrap.fill(text, width), fontsize=8, x=0.02, ha="left")


def caption(groups: Sequence[Group]) -> str:
    """Says what the numbers of any picture come from."""
    runs = [run for group in groups for run in group.runs]
    commits = [re.sub(r"(?<=^.{9})[0-9a-f]*", "", run.config.get("git_commit") or "unknown") for run in runs]
    return (
        f"Each evaluation runs {_several([run.episodes for run in runs])} episodes on each of "
        f"{_several([run.tasks for run in runs])} task(s) for every seed; scores are means over tasks. "
        f"Final: mean of the last {_several([len(group.headline_steps) for group in groups])} evaluations. "
        f"Trained on {_several([run.config.get('hardware') for run in runs])}; commit {_several(commits)}."
    )


def _several(values: Sequence[Any]) -> str:
    return " or ".join(str(value) for value in dict.fromkeys(values))


# ---------------------------------------------------------------------------------------------- learning curves


def _curves(groups: Sequence[Group], x: str) -> Any:
    """Draws one row per environment: learning curves, and final numbers beside them."""
    rows = panels(groups)
    named = [
        [_legend_text(f"{label(group, row)}; final {_final_text(group)}") for group in row] for row in rows.values()
    ]
    heights = [3.6 + _legend_height(texts) for texts in named]
    figure = _figure(10, sum(heights) + 0.9)
    axes = figure.subplots(len(rows), 2, squeeze=False, sharey="row", width_ratios=(4, 1), height_ratios=heights)
    for (environment, row), texts, (curves, finals) in zip(rows.items(), named, axes, strict=True):
        origins = dict.fromkeys(data_name(run.config) for group in row for run in group.runs)
        curves.set_title(f"{environment}\ndata: {'; '.join(origins)}", loc="left", fontsize=10)
        finals.set_title("Final", fontsize=10)
        for index, (group, text) in enumerate(zip(row, texts, strict=True)):
            _draw_curves(curves, group, x, text, _style(index))
            _draw_final(finals, group, index)
        _dress(curves, finals, row, x)
    _explain(
        figure,
        "Thick line: mean over seeds. Band, bar and [brackets]: 95 % percentile bootstrap interval of that mean over "
        f"seeds; none for one seed. Thin lines and dots: single seeds, those that diverged crossed out. "
        f"{caption(groups)}",
    )
    return figure


def _final_text(group: Group) -> str:
    return final_text(group.metric, group.final_interval)


def _legend_text(text: str) -> str:
    return textwrap.fill(text, 88)


def _legend_height(texts: Sequence[str]) -> float:
    """Returns the room that a legend needs."""
    return 0.22 * len(texts) + 0.15 * sum(text.count("\n") for text in texts)


def _draw_curves(axes: Any, group: Group, x: str, text: str, style: dict[str, Any]) -> None:
    def positions(steps: Sequence[int], runs: Sequence[RunDir]) -> list[float]:
        return [float(np.mean([run.minutes[step] for run in runs])) if x == "minutes" else step for step in steps]

    along = positions(group.steps, group.runs)
    means, lows, highs = scale(group.metric) * np.array(group.intervals).T
    axes.plot(along, means, label=text, linewidth=2, markersize=5, zorder=3, **style)
    if len(group.curves) == 1:
        return
    axes.fill_between(along, lows, highs, color=style["color"], alpha=0.18, linewidth=0, zorder=1)
    for run in group.runs:
        for curve in run.curves.values():
            values = scale(group.metric) * np.array([*curve.values()])
            axes.plot(positions([*curve], [run]), values, color=style["color"], linewidth=0.7, alpha=0.5, zorder=2)


def _draw_final(axes: Any, group: Group, index: int) -> None:
    style = _style(index)
    mean, low, high = scale(group.metric) * np.array(group.final_interval)
    if len(group.final) > 1:
        axes.errorbar([index], [mean], [[mean - low], [high - mean]], color=style["color"], capsize=4, linewidth=1.5)
        seeds = scale(group.metric) * np.array([*group.final.values()])
        axes.plot(np.full(len(seeds), index + 0.25), seeds, ".", color=style["color"], markersize=4, alpha=0.6)
    broken = [scale(group.metric) * group.final[seed] for seed in group.diverged if seed in group.final]
    axes.plot(np.full(len(broken), index + 0.25), broken, **CROSS)
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
        _bare(axes, "y")
    _legend_below(curves)


def _legend_below(axes: Any) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), borderaxespad=0, frameon=False, fontsize=9)


# ------------------------------------------------------------------------------------------------- comparisons


def _stack(heights: Sequence[float]) -> tuple[Any, Sequence[Any]]:
    """Returns a figure and its axes, one above the other."""
    figure = _figure(10, sum(heights) + 0.9)
    return figure, figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]


def _wrapped(*parts: str) -> str:
    return "\n".join(textwrap.fill(part, 56) for part in parts)


def _height(names: Sequence[str]) -> float:
    """Returns the height of a panel with a row for each name."""
    return 1.1 + len(names) * max(0.5, 0.1 + 0.18 * max(text.count("\n") + 1 for text in names))


def _rows(axes: Any, names: Sequence[str], title: str) -> None:
    """Names the rows of a picture, from the top."""
    axes.set(yticks=range(len(names)), yticklabels=names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", labelsize=9)
    axes.set_title(title, loc="left", fontsize=10)
    _bare(axes, "x")


def _bar_between(axes: Any, interval: Sequence[float] | None, factor: float, height: float, **style: Any) -> None:
    if interval:
        axes.plot(factor * np.array(interval), [height, height], **style)


def _final(found: Sequence[dict[str, Any]], groups: Sequence[Group]) -> Any:
    """Draws one bar per configuration."""
    named = [[_wrapped(row["label"]) for row in panel["configurations"]] for panel in found]
    figure, several = _stack([_height(names) for names in named])
    for axes, panel, names in zip(several, found, named, strict=True):
        factor = scale(panel["metric"])
        for index, row in enumerate(panel["configurations"]):
            axes.barh([index], [factor * row["mean"]], height=0.6, color=_style(index)["color"], alpha=0.45)
            _bar_between(axes, row["mean_interval_95"], factor, index, color="black", linewidth=2)
            axes.plot([factor * row["iqm"]], [index], "D", color="black", markerfacecolor="white", markersize=5)
            seeds = factor * np.array([*row["per_seed"].values()])
            axes.plot(seeds, np.full(len(seeds), index + 0.2), ".", color="black", markersize=5, alpha=0.6)
            broken = [factor * row["per_seed"][seed] for seed in row["diverged"]]
            axes.plot(broken, np.full(len(broken), index + 0.2), **CROSS)
        _rows(axes, names, panel["panel"])
        axes.set_xlabel(f"Final: {METRICS[panel['metric']]}")
        if panel["metric"] == "success":
            axes.set_xlim(-2, 102)
    _explain(
        figure,
        "Bar: mean over seeds. Line: its 95 % percentile bootstrap interval over seeds; none for one seed. Diamond: "
        f"interquartile mean. Dots: single seeds, crossed out where one diverged. {caption(groups)}",
    )
    return figure


def _profile(found: Sequence[dict[str, Any]], groups: Sequence[Group]) -> Any:
    """Draws the share of runs above each score."""
    named = [[_legend_text(_profile_name(row)) for row in panel["configurations"]] for panel in found]
    figure, several = _stack([3.4 + _legend_height(texts) for texts in named])
    for axes, panel, texts in zip(several, found, named, strict=True):
        along = scale(panel["metric"]) * np.array(panel["thresholds"])
        for index, (row, text) in enumerate(zip(panel["configurations"], texts, strict=True)):
            colour = _style(index)["color"]
            style = {"linestyle": ("-", "--", "-.", ":")[index % 4], "drawstyle": "steps-post"}
            axes.plot(along, row["share"], color=colour, linewidth=2, label=text, **style)
            if row["low"] is not None and len(panel["configurations"]) <= BANDS:
                axes.fill_between(along, row["low"], row["high"], step="post", color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel=f"Score τ: {METRICS[panel['metric']]}", ylabel="Share of runs above τ", ylim=(-0.03, 1.03))
        axes.set_title(panel["panel"], loc="left", fontsize=10)
        _bare(axes, "y")
        _legend_below(axes)
    _explain(
        figure,
        "Higher is better. Band: pointwise 95 % percentile bootstrap interval, runs resampled within each environment, "
        f"none for one seed or among more than {BANDS} configurations. {caption(groups)}",
    )
    return figure


def _profile_name(row: dict[str, Any]) -> str:
    seeds, environments = row["shape"]
    return f"{row['name']}, {seeds} seed{'s' * (seeds > 1)}" + f" × {environments} environments" * (environments > 1)


def _improvement(found: Sequence[dict[str, Any]], groups: Sequence[Group]) -> Any:
    """Draws how probably one configuration beats another."""
    named = [[_wrapped(pair["better"], f"over {pair['than']}") for pair in panel["pairs"]] for panel in found]
    figure, several = _stack([_height(names) for names in named])
    for axes, panel, names in zip(several, found, named, strict=True):
        axes.axvline(0.5, color="0.5", linestyle=":", linewidth=1)
        for index, pair in enumerate(panel["pairs"]):
            interval = pair["probability_interval_95"]
            _bar_between(axes, interval, 1.0, index, color=COLOURS[0], linewidth=6, alpha=0.35, solid_capstyle="butt")
            axes.plot([pair["probability"]], [index], "o", color=COLOURS[0], markersize=6)
        _rows(axes, names, panel["panel"])
        axes.set(xlim=(-0.03, 1.03), xlabel="Probability of improvement")
    _explain(
        figure,
        "Dot: how probably a run of the first has a higher final score than one of the second; ties count half. "
        f"Band: 95 % percentile bootstrap interval over seeds; none for one seed. {caption(groups)}",
    )
    return figure


# ------------------------------------------------------------------------------------------------- sensitivity


def _sensitivity(found: Sequence[dict[str, Any]], groups: Sequence[Group]) -> Any:
    """Draws final scores against the value of a setting, one panel per setting."""
    columns = min(3, len(found))
    count = -(-len(found) // columns)
    figure = _figure(max(6.0, 3.8 * columns), 4.0 * count + 0.9)
    several = figure.subplots(count, columns, squeeze=False).ravel()
    for axes, panel in zip(several, found, strict=False):
        places = _places(axes, panel)
        for index, line in enumerate(panel["lines"]):
            _draw_line(axes, line, [places[shown(value)] for value in line["values"]], panel["metric"], index)
        axes.set(xlabel=panel["field"].removeprefix("agent."), ylabel=f"Final: {METRICS[panel['metric']]}")
        axes.set_title(textwrap.fill(panel["panel"], 38), loc="left", fontsize=9)
        _bare(axes, "y")
        if len(panel["lines"]) > 1:
            axes.legend(frameon=False, fontsize=8)
    for axes in several[len(found) :]:
        axes.set_visible(False)
    _explain(
        figure,
        "All other settings are the same along a line. Line: mean over seeds. Bar: its 95 % percentile bootstrap "
        f"interval; none for one seed. Dots: single seeds, crossed out where one diverged. {caption(groups)}",
        width=105 if columns == 1 else 150,
    )
    return figure


def _draw_line(axes: Any, line: dict[str, Any], along: list[float], metric: str, index: int) -> None:
    style, factor = _style(index), scale(metric)
    text = ", ".join(f"{key.removeprefix('agent.')}={value}" for key, value in line["fixed"].items())
    axes.plot(along, factor * np.array(line["mean"]), label=text or None, linewidth=1.5, markersize=6, **style)
    rows = zip(along, line["interval_95"], line["per_seed"], line["diverged"], strict=True)
    for place, interval, seeds, diverged in rows:
        if interval:
            axes.plot([place, place], factor * np.array(interval), color=style["color"], linewidth=3, alpha=0.4)
        axes.plot([place] * len(seeds), factor * np.array([*seeds.values()]), ".", color=style["color"], alpha=0.6)
        axes.plot([place] * len(diverged), [factor * seeds[seed] for seed in diverged], **CROSS)


def _places(axes: Any, panel: dict[str, Any]) -> dict[str, float]:
    """Returns where values lie, by their text: numbers by size, logarithmic over a decade; others in turn."""
    values = {shown(value): value for line in panel["lines"] for value in line["values"]}
    if not all(comparisons.numeric(value) for value in values.values()):
        axes.set_xticks(range(len(values)), [*values])
        axes.set_xlim(-0.5, len(values) - 0.5)
        return {text: float(index) for index, text in enumerate(values)}
    positive = [value for value in values.values() if value > 0]
    if min(values.values()) >= 0 and max(positive) >= 10 * min(positive):
        if len(positive) == len(values):
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)  # zero has no logarithm
        axes.minorticks_off()
    ordered = sorted(values.items(), key=lambda pair: pair[1])
    axes.set_xticks([value for _, value in ordered], [f"{value:g}" for _, value in ordered])
    return {text: float(value) for text, value in values.items()}


KINDS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "final": (comparisons.final, _final),
    "profile": (comparisons.profile, _profile),
    "improvement": (comparisons.improvement, _improvement),
    "sensitivity": (comparisons.sensitivity, _sensitivity),
}
"""For each kind of picture but learning curves: what gives its numbers, and what draws them."""
