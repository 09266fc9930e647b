"""What pictures have in common: colours, axes, legends, and what they say below."""

import re
import textwrap
from collections.abc import Sequence
from typing import Any

from flowrl.reports.curves import Group

LABELS = {"success": "Success in %", "normalized_score": "Normalised score", "return": "Return"}
# Okabe and Ito's palette, told apart with any colour vision; markers tell the lines apart without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
CROSS: dict[str, Any] = {"marker": "x", "linestyle": "", "color": "red", "markersize": 8, "zorder": 4}
"""How the score of a seed is drawn that diverged."""
FAINT: dict[str, Any] = {"color": "0.7", "marker": "", "linewidth": 0.8}
"""How groups are drawn beside those that are told apart."""


def figure(width: float, height: float) -> Any:
    """Returns an empty figure of that size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def style(index: int) -> dict[str, Any]:
    """Returns the colour and the marker of a group."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def styles(scores: Sequence[float]) -> list[dict[str, Any]]:
    """Returns the styles of groups with these scores; of more than can be told apart, the best have their own."""
    if len(scores) <= len(MARKERS):
        return [style(index) for index in range(len(scores))]
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[: len(MARKERS)]
    return [style(best.index(index)) if index in best else FAINT for index in range(len(scores))]


def bare(axes: Any, grid: str) -> None:
    """Leaves of axes two sides, and a grid along one of them."""
    axes.grid(axis=grid, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def explain(figure: Any, text: str, width: int = 150) -> None:
    """Writes what a figure shows below it, in lines of `width` letters."""
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


def legend_text(text: str) -> str:
    """Breaks a line of a legend where it is too long."""
    return textwrap.fill(text, 88)


def legend_height(texts: Sequence[str]) -> float:
    """Returns the room that a legend needs."""
    return 0.22 * len(texts) + 0.15 * sum(text.count("\n") for text in texts)


def legend_below(axes: Any) -> None:
    """Puts the legend below the axes."""
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), borderaxespad=0, frameon=False, fontsize=9)
