"""Pictures of finished or running runs; each is drawn from the numbers that are recorded beside it."""

import contextlib
import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowrl.errors import UserError
from flowrl.machine.files import replacing
from flowrl.reports import comparisons, drawing, learning_curves
from flowrl.reports.curves import Group, bounds, record
from flowrl.reports.drawing import COLOURS, CROSS, LABELS
from flowrl.reports.published import Curve
from flowrl.run_folder import logs
from flowrl.run_folder.summary import scale
from flowrl.run_folder.texts import shown

FORMATS = ("png", "pdf", "svg")
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


def make(
    kind: str, groups: Sequence[Group], x: str = "updates", released: Mapping[str, Sequence[Curve]] | None = None
) -> Picture:
    """Makes a picture.

    Args:
        kind: A key of `KINDS`.
        groups: What to show.
        x: What learning curves run over: `updates` or `minutes`.
        released: By environment others' curves to draw behind learning curves over updates.

    Raises:
        UserError: matplotlib is missing, or the groups do not suffice.
    """
    with _plain_text():
        if kind == "curves":
            numbers = {"kind": kind, "x": x, "groups": record(groups)}
            numbers |= {"released": _released(released)} if released else {}
            return Picture(learning_curves.draw(groups, x, released), numbers)
        compare, draw = KINDS[kind]
        found = compare(groups)
        return Picture(draw(found, groups), {"kind": kind, "panels": found, "groups": record(groups)})


def _released(found: Mapping[str, Sequence[Curve]]) -> list[dict[str, Any]]:
    return [
        {
            "environment": environment,
            "label": curve.name,
            "updates": curve.updates,
            "mean": [interval.mean for interval in curve.intervals],
            "interval_95": [bounds(interval) for interval in curve.intervals],
        }
        for environment, curves in found.items()
        for curve in curves
    ]


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


# ------------------------------------------------------------------------------------------------- comparisons


def _stack(heights: Sequence[float]) -> tuple[Any, Sequence[Any]]:
    """Returns a figure and its axes, one above the other."""
    figure = drawing.figure(10, sum(heights) + 0.9)
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
    drawing.bare(axes, "x")


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
            axes.barh([index], [factor * row["mean"]], height=0.6, color=drawing.style(index)["color"], alpha=0.45)
            _bar_between(axes, row["mean_interval_95"], factor, index, color="black", linewidth=2)
            axes.plot([factor * row["iqm"]], [index], "D", color="black", markerfacecolor="white", markersize=5)
            seeds = factor * np.array([*row["per_seed"].values()])
            axes.plot(seeds, np.full(len(seeds), index + 0.2), ".", color="black", markersize=5, alpha=0.6)
            broken = [factor * row["per_seed"][seed] for seed in row["diverged"]]
            axes.plot(broken, np.full(len(broken), index + 0.2), **CROSS)
        _rows(axes, names, panel["panel"])
        axes.set_xlabel(f"Final: {LABELS[panel['metric']]}")
        if panel["metric"] == "success":
            axes.set_xlim(-2, 102)
    drawing.explain(
        figure,
        "Bar: mean over seeds. Line: its 95 % percentile bootstrap interval over seeds; none for one seed. Diamond: "
        f"interquartile mean. Dots: single seeds, crossed out where one diverged. {drawing.caption(groups)}",
    )
    return figure


def _profile(found: Sequence[dict[str, Any]], groups: Sequence[Group]) -> Any:
    """Draws the share of runs above each score."""
    named = [[drawing.legend_text(_profile_name(row)) for row in panel["configurations"]] for panel in found]
    figure, several = _stack([3.4 + drawing.legend_height(texts) for texts in named])
    for axes, panel, texts in zip(several, found, named, strict=True):
        along = scale(panel["metric"]) * np.array(panel["thresholds"])
        for index, (row, text) in enumerate(zip(panel["configurations"], texts, strict=True)):
            colour = drawing.style(index)["color"]
            style = {"linestyle": ("-", "--", "-.", ":")[index % 4], "drawstyle": "steps-post"}
            axes.plot(along, row["share"], color=colour, linewidth=2, label=text, **style)
            if row["low"] is not None and len(panel["configurations"]) <= BANDS:
                axes.fill_between(along, row["low"], row["high"], step="post", color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel=f"Score τ: {LABELS[panel['metric']]}", ylabel="Share of runs above τ", ylim=(-0.03, 1.03))
        axes.set_title(panel["panel"], loc="left", fontsize=10)
        drawing.bare(axes, "y")
        drawing.legend_below(axes)
    drawing.explain(
        figure,
        "Higher is better. Band: pointwise 95 % percentile bootstrap interval, runs resampled within each environment, "
        f"none for one seed or among more than {BANDS} configurations. {drawing.caption(groups)}",
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
    drawing.explain(
        figure,
        "Dot: how probably a run of the first has a higher final score than one of the second; ties count half. "
        f"Band: 95 % percentile bootstrap interval over seeds; none for one seed. {drawing.caption(groups)}",
    )
    return figure


# ------------------------------------------------------------------------------------------------- sensitivity


def _sensitivity(found: Sequence[dict[str, Any]], groups: Sequence[Group]) -> Any:
    """Draws final scores against the value of a setting, one panel per setting."""
    columns = min(3, len(found))
    count = -(-len(found) // columns)
    figure = drawing.figure(max(6.0, 3.8 * columns), 4.0 * count + 0.9)
    several = figure.subplots(count, columns, squeeze=False).ravel()
    for axes, panel in zip(several, found, strict=False):
        places = _places(axes, panel)
        for index, line in enumerate(panel["lines"]):
            _draw_line(axes, line, [places[shown(value)] for value in line["values"]], panel["metric"], index)
        axes.set(xlabel=panel["field"].removeprefix("agent."), ylabel=f"Final: {LABELS[panel['metric']]}")
        axes.set_title(textwrap.fill(panel["panel"], 38), loc="left", fontsize=9)
        drawing.bare(axes, "y")
        if len(panel["lines"]) > 1:
            axes.legend(frameon=False, fontsize=8)
    for axes in several[len(found) :]:
        axes.set_visible(False)
    drawing.explain(
        figure,
        "All other settings are the same along a line. Line: mean over seeds. Bar: its 95 % percentile bootstrap "
        f"interval; none for one seed. Dots: single seeds, crossed out where one diverged. {drawing.caption(groups)}",
        width=105 if columns == 1 else 150,
    )
    return figure


def _draw_line(axes: Any, line: dict[str, Any], along: list[float], metric: str, index: int) -> None:
    style, factor = drawing.style(index), scale(metric)
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
