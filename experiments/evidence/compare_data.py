"""Compares a collected maze dataset with a reference set made by the same procedure.

python experiments/evidence/compare_data.py --collected=PATH --reference=PATH --out=FOLDER

Each quantity (action norm, cells visited, …) becomes one histogram per episode. The distance between the two sets is
then the largest difference of their distribution functions (Kolmogorov-Smirnov) or, for the cells of the maze, the
total variation. How large such a distance is by chance is found by dealing the same episodes to two sets at random:
rows of one episode are no independent draws, so episodes are dealt, not rows. Writes comparison.json, comparison.md
and comparison.png.
"""

if __name__ == "__main__":
    import flowrl.cli.start  # noqa: F401 - before the other imports, which take seconds

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np

from flowrl import tasks
from flowrl.cli import flags
from flowrl.collection import collect, mazes
from flowrl.config import record, static
from flowrl.envs import making
from flowrl.errors import UserError
from flowrl.machine import files, provenance
from flowrl.tasks import Task

COMMAND = "experiments/evidence/compare_data.py"
_BINS = 200
_DEALS = 500
_REFERENCE = "reference set made by OGBench's published procedure"
_ACTION_EDGE = 0.9999  # actions beyond were clipped


class Data(NamedTuple):
    """One dataset with its episodes made explicit; N rows, E episodes.

    Attributes:
        xy: Positions [N, 2] in maze units of length.
        actions: [N, A].
        episode: Index of the episode of each row [N].
        lengths: Rows of each episode [E].
        cells: Cell of each row [N], row · width + column of the maze's map.
    """

    xy: np.ndarray
    actions: np.ndarray
    episode: np.ndarray
    lengths: np.ndarray
    cells: np.ndarray


class Maze(NamedTuple):
    """The map of a maze (1 = wall) and how positions fall into its cells."""

    map: np.ndarray
    unit: float
    offset: tuple[float, float]


def maze_of(name: str) -> Maze:
    """Returns the maze that a dataset was made in."""
    env = making.make(tasks.parse(name).env_id).unwrapped
    return Maze(env.maze_map, env._maze_unit, (env._offset_x, env._offset_y))


def load(path: Path, env: Task, maze: Maze) -> Data:
    """Reads a dataset; the first two observations must be the position, as in OGBench's mazes."""
    data = env.read(env.locate(str(path)))
    xy = data["observations"][:, :2]
    ends = np.flatnonzero(data["terminals"])
    lengths = np.diff(ends, prepend=-1)
    column, row = (((xy + maze.offset) / maze.unit + 0.5).astype(int)).T
    episode = np.repeat(np.arange(len(lengths)), lengths)
    return Data(xy, data["actions"], episode, lengths, row * maze.map.shape[1] + column)


# ------------------------------------------------------------------------------------------------- quantities


def row_quantities(data: Data) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the quantities that each row, or each step within an episode, has: their values and episodes."""
    inside = data.episode[1:] == data.episode[:-1]
    steps = np.linalg.norm(np.diff(data.xy, axis=0), axis=1)
    agreement = (data.actions[1:] * data.actions[:-1]).sum(1)
    actions = {f"action {i}": (values, data.episode) for i, values in enumerate(data.actions.T)}
    return actions | {
        "action norm": (np.linalg.norm(data.actions, axis=1), data.episode),
        "product of consecutive actions": (agreement[inside], data.episode[1:][inside]),
        "distance per step": (steps[inside], data.episode[1:][inside]),
    }


def episode_quantities(data: Data, maze: Maze) -> dict[str, np.ndarray]:
    """Returns the quantities that each episode has [E]."""
    inside = data.episode[1:] == data.episode[:-1]
    steps = np.linalg.norm(np.diff(data.xy, axis=0), axis=1) * inside
    entries = (data.cells[1:] != data.cells[:-1]) & inside
    turning = np.array([i * maze.map.shape[1] + j for i, j in mazes.turning_cells(maze.map)])
    into_turning = entries & np.isin(data.cells[1:], turning)
    firsts = np.cumsum(data.lengths) - data.lengths
    visited = np.zeros((len(data.lengths), maze.map.size), bool)
    visited[data.episode, data.cells] = True

    def per_episode(values: np.ndarray) -> np.ndarray:
        return np.bincount(data.episode[1:], values, len(data.lengths))

    return {
        "path length per episode": per_episode(steps),
        "cells entered per episode": per_episode(entries),
        "turning cells entered per episode": per_episode(into_turning),
        "different cells per episode": visited.sum(1).astype(float),
        "start x": data.xy[firsts, 0].astype(float),
        "start y": data.xy[firsts, 1].astype(float),
    }


def histograms(one: Data, two: Data, maze: Maze) -> dict[str, np.ndarray]:
    """Returns, per quantity, the histogram of each episode of both sets [E1 + E2, bins]; the bins hold equal shares."""
    found = {}
    first, second = row_quantities(one), row_quantities(two)
    for name in first:
        values = np.concatenate([first[name][0], second[name][0]])
        episodes = np.concatenate([first[name][1], second[name][1] + len(one.lengths)])
        found[name] = _counts(values, episodes)
    first_scalars, second_scalars = episode_quantities(one, maze), episode_quantities(two, maze)
    for name in first_scalars:
        values = np.concatenate([first_scalars[name], second_scalars[name]])
        found[name] = _counts(values, np.arange(len(values)))
    return found


def _counts(values: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1]))
    return _table(np.searchsorted(edges, values), episodes, len(edges) + 1)


def _table(bins: np.ndarray, episodes: np.ndarray, count: int) -> np.ndarray:
    total = int(episodes.max()) + 1
    return np.bincount(episodes * count + bins, minlength=total * count).reshape(total, count).astype(float)


# -------------------------------------------------------------------------------------------------- distances


def distances(table: np.ndarray, sides: np.ndarray, kind: str) -> np.ndarray:
    """Returns the distance between the two sets of episodes, for each way of dealing them.

    Args:
        table: Histogram of each episode [E, bins].
        sides: 1 where an episode is of the first set, 0 where of the second [deals, E].
        kind: `ks` or `total variation`.

    Returns:
        [deals].
    """
    first = sides @ table
    second = table.sum(0) - first
    gap = first / first.sum(1, keepdims=True) - second / second.sum(1, keepdims=True)
    return np.abs(np.cumsum(gap, 1)).max(1) if kind == "ks" else np.abs(gap).sum(1) / 2


def compare(one: Data, two: Data, maze: Maze) -> dict[str, dict[str, Any]]:
    """Returns each quantity's distance, what chance gives, and how often chance gives as much."""
    tables = {"cell of the maze": ("total variation", _both_cells(one, two, maze))}
    tables |= {name: ("ks", table) for name, table in histograms(one, two, maze).items()}
    generator = np.random.default_rng(0)
    actual = np.repeat([1.0, 0.0], [len(one.lengths), len(two.lengths)])
    dealt = np.stack([generator.permutation(actual) for _ in range(_DEALS)])
    halves = generator.permutation(len(two.lengths)) % 2
    results = {}
    for name, (kind, table) in tables.items():
        measured = float(distances(table, actual[None], kind)[0])
        chance = distances(table, dealt, kind)
        results[name] = {
            "distance": kind,
            "collected to reference": measured,
            "by chance, median": float(np.median(chance)),
            "by chance, 95 %": float(np.quantile(chance, 0.95)),
            "p value": float((1 + (chance >= measured).sum()) / (1 + _DEALS)),
            "between halves of the reference": float(
                distances(table[len(one.lengths) :], halves[None].astype(float), kind)[0]
            ),
        }
    return results


def _both_cells(one: Data, two: Data, maze: Maze) -> np.ndarray:
    return np.concatenate([_table(data.cells, data.episode, maze.map.size) for data in (one, two)])


def summary(path: Path, data: Data, maze: Maze) -> dict[str, Any]:
    """Returns the numbers of one dataset, from the raw file where shapes and types matter."""
    with np.load(path) as file:
        fields = {field: [list(file[field].shape), str(file[field].dtype)] for field in file.files}
    rows, episodes = row_quantities(data), episode_quantities(data, maze)
    described = {name: values for name, (values, _) in rows.items()} | episodes
    return {
        "file": path.name,
        "sha256": files.sha256(path),
        "fields": fields,
        "episodes": len(data.lengths),
        "episode length": sorted({int(length) for length in data.lengths}),
        "share of clipped actions": np.mean(np.abs(data.actions) > _ACTION_EDGE, axis=0).tolist(),
        "share of cells visited": float(len(np.unique(data.cells)) / (maze.map == 0).sum()),
        "quantities": {
            name: {
                "mean": float(values.mean(dtype=np.float64)),
                "std": float(values.std(dtype=np.float64)),
                "quantiles 10, 50, 90 %": np.quantile(values, [0.1, 0.5, 0.9]).tolist(),
            }
            for name, values in described.items()
        },
    }


# ----------------------------------------------------------------------------------------------------- output


def markdown(result: dict[str, Any]) -> str:
    """Returns the comparison as a page."""
    ours, theirs = result["collected"], result["reference"]
    same = "the same fields, shapes and types" if ours["fields"] == theirs["fields"] else "DIFFERENT fields"
    clipped = [f"{np.mean(one['share of clipped actions']):.4f}" for one in (ours, theirs)]
    lines = [
        f"# {result['env']}: collected by flowrl against a {_REFERENCE}",
        "",
        f"{ours['episodes']} and {theirs['episodes']} episodes of {ours['episode length']} and "
        f"{theirs['episode length']} rows; {same}. Clipped action coordinates: {clipped[0]} and {clipped[1]}.",
        "",
        "| quantity | collected | reference | distance | by chance: median, 95 % | halves of the reference | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in result["comparison"].items():
        means = [
            f"{one['quantities'][name]['mean']:.4g} ± {one['quantities'][name]['std']:.3g}"
            if name in one["quantities"]
            else f"{100 * one['share of cells visited']:.0f} % visited"
            for one in (ours, theirs)
        ]
        lines.append(
            f"| {name} | {means[0]} | {means[1]} | {row['collected to reference']:.4f} | "
            f"{row['by chance, median']:.4f}, {row['by chance, 95 %']:.4f} | "
            f"{row['between halves of the reference']:.4f} | {row['p value']:.2f} |"
        )
    lines += [
        "",
        "Columns two and three: mean ± standard deviation. Distance: Kolmogorov-Smirnov over 200 bins; total variation "
        f"for the cells. By chance: the same episodes dealt to two sets at random, {_DEALS} times; p is how often that "
        "gives at least the measured distance, so a small p is a sign of disagreement. Halves hold half as many "
        "episodes each, so their distance is larger by about √2.",
        "",
        f"Made by `{result['command']}` at commit {result['git_commit']}.",
        "",
    ]
    return "\n".join(lines)


def draw(path: Path, collected: Data, reference: Data, maze: Maze, title: str) -> None:
    """Draws where both sets go and how their quantities are distributed."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(17, 8.5), layout="constrained")
    pair = (("collected", collected, "tab:blue"), ("reference", reference, "tab:orange"))
    shares = [np.bincount(data.cells, minlength=maze.map.size) / len(data.cells) for _, data, _ in pair]
    for axis, share, (label, _, _) in zip(axes[0], shares, pair, strict=False):
        shown = np.ma.masked_array(100 * share.reshape(maze.map.shape), maze.map == 1)
        image = axis.imshow(shown, origin="lower", cmap="viridis", vmin=0, vmax=100 * max(map(np.max, shares)))
        axis.set(title=f"time in each cell, {label} (white: wall)", xlabel="column", ylabel="row")
        figure.colorbar(image, ax=axis, label="% of rows", shrink=0.8)
    for axis, (label, data, _) in zip(axes[0, 2:], pair, strict=True):
        for episode in range(3):
            axis.plot(*data.xy[data.episode == episode].T, linewidth=0.7)
        walls = np.argwhere(maze.map == 1)[:, ::-1] * maze.unit - maze.offset
        for x, y in walls - maze.unit / 2:
            axis.add_patch(plt.Rectangle((x, y), maze.unit, maze.unit, color="0.8"))
        axis.set(title=f"first three episodes, {label}", xlabel="x", ylabel="y", aspect="equal")
    _draw_distributions(axes[1], pair, maze)
    figure.suptitle(title)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
    plt.close(figure)


def _draw_distributions(axes: np.ndarray, pair: Any, maze: Maze) -> None:
    """Draws four histograms of both sets, one over the other."""
    names = ("action norm", "distance per step", "path length per episode", "cells entered per episode")
    for axis, name in zip(axes, names, strict=True):
        found = []
        for _, data, _ in pair:
            scalars = episode_quantities(data, maze)
            found.append(scalars[name] if name in scalars else row_quantities(data)[name][0])
        edges = np.linspace(min(map(np.min, found)), max(map(np.max, found)), 41 if "episode" in name else 81)
        for values, (label, _, color), style in zip(found, pair, ("step", "stepfilled"), strict=True):
            opaque = 1.0 if style == "step" else 0.4
            axis.hist(values, edges, density=True, histtype=style, color=color, label=label, alpha=opaque)
        axis.set(title=name, xlabel=name, ylabel="density")
        axis.margins(y=0.25)  # room for the legend
        axis.legend(loc="upper left")


@record
class Settings:
    """What to compare."""

    collected: str = static("", "File collected by flowrl, named <dataset>.npz.")
    reference: str = static("", "File to compare with.")
    out: str = static("", "Folder for comparison.json, comparison.md and comparison.png.")


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    if (settings := flags.read(Settings(), arguments, __doc__ or "")) is None:
        return 0
    if not (settings.collected and settings.reference and settings.out):
        raise UserError("usage: compare_data.py --collected=PATH --reference=PATH --out=FOLDER")
    run(Path(settings.collected), Path(settings.reference), Path(settings.out))
    return 0


def run(collected: Path, reference: Path, out: Path) -> None:
    """Compares two files and writes the results."""
    env = tasks.parse(collected.stem)
    name, maze = env.name, maze_of(env.name)
    ours, theirs = load(collected, env, maze), load(reference, env, maze)
    result = {
        "env": name,
        # Names only: the folders are this machine's affair.
        "command": f"python {COMMAND} --collected={collected.name} --reference={reference.name} --out={out.name}",
        "git_commit": provenance.git_commit(),
        "hardware": provenance.hardware(),
        "collected": summary(collected, ours, maze) | {"made": collect.provenance(collected)},
        "reference": summary(reference, theirs, maze) | {"made": _REFERENCE},
        "comparison": compare(ours, theirs, maze),
    }
    with files.replacing(out / "comparison.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    with files.replacing(out / "comparison.md") as temporary:
        temporary.write_text(markdown(result))
    draw(out / "comparison.png", ours, theirs, maze, f"{name}: collected by flowrl against a {_REFERENCE}")
    print(markdown(result))


if __name__ == "__main__":
    flags.run(main)
