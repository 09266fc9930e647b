"""How well a goal-conditioned run's values know its maze: python experiments/evidence/maze_values.py --run_dir=DIR.

For each checkpoint, of a state in each cell and a goal in each other one: how often the neighbouring cell with the
highest value is really one step nearer to the goal (`nearer`; a cell is as wide as a corridor), and from how many cells
one arrives by always going to that neighbour (`arrives`). Values that leak through walls have local maxima, before
which policies dither: this tells them from policies that cannot walk. Of agents with two levels also how often the
cell whose representation is most like the proposed subgoal is really nearer (`subgoals`). Neither data nor episodes are
needed.

The numbers go to --out, FILE.json, with the run's own success at the same steps, and the newest checkpoint's values of
the five tasks' goals beside it as a picture.
"""

if __name__ == "__main__":
    import flowrl.cli.start  # noqa: F401 - before the other imports, which take seconds

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowrl import agents
from flowrl.agents import gc_sscp, gcivl, hiql, lavl
from flowrl.cli import flags
from flowrl.collection.mazes import Cell, free_cells
from flowrl.config import record, stacked, static
from flowrl.encoders import length_normalize, represented, represented_value
from flowrl.envs.episodes import SeededEpisodes
from flowrl.errors import UserError
from flowrl.experiment.loading import load_states, stored_spec
from flowrl.experiment.settings import Plan
from flowrl.experiment.stored import read_plan
from flowrl.losses import value_params
from flowrl.machine.files import replacing
from flowrl.machine.provenance import git_commit, hardware, versions
from flowrl.networks import Spec
from flowrl.normalize import Normalizer
from flowrl.run_folder import logs
from flowrl.run_folder.layout import CHECKPOINTS
from flowrl.run_folder.summary import SINGLE
from flowrl.training.checkpoint import Checkpoints

VALUES: dict[str, tuple[Any, Any]] = {
    "gc_sscp": (gc_sscp, represented_value), "hiql": (hiql, represented_value), "gcivl": (gcivl, gcivl.v),
    "lavl": (lavl, lavl.v),
}  # fmt: skip
"""For each agent its module, and its values V(s, g), `(nets, params, s, g) -> [heads, B]`."""


def proposed_hop(nets: Any, params: Any, s: jax.Array, g: jax.Array) -> jax.Array:
    """Returns the representation of GC-SSCP's subgoal `[B, R]`, from one draw of noise."""
    noise = gc_sscp.noise(nets, s, jax.random.key(0))
    return gc_sscp.jump(nets, params, s, represented(nets, params, s, g), noise, 0, 1).bounded().rep


SUBGOALS: dict[str, Any] = {
    "gc_sscp": proposed_hop,
    "hiql": lambda nets, params, s, g: length_normalize(nets.high_actor(params, s, g)),
}
"""For each agent with two levels the subgoal's representation, `(nets, params, s, g) -> [B, R]`, to compare with φ."""


@record
class Settings:
    """Which run, and where the numbers go."""

    run_dir: str = static("", "Folder of the run.")
    states: int = static(8, "States in each cell.", low=1, high=1000)
    out: str = static("", "JSON file for the numbers, with a picture beside it.")


def distances(maze: np.ndarray) -> tuple[list[Cell], np.ndarray, list[list[int]]]:
    """Returns the open cells (row, column) of a maze, the steps between them `[cells, cells]`, and their neighbours.

    Args:
        maze: 0 where it is open, 1 where there is a wall, `[rows, columns]`.
    """
    cells = free_cells(maze)
    known = {cell: index for index, cell in enumerate(cells)}
    around = [
        [known[near] for near in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)) if near in known] for i, j in cells
    ]
    steps = np.full((len(cells), len(cells)), np.inf)
    for start in range(len(cells)):
        steps[start, start], reached = 0, [start]
        for cell in reached:
            new = [near for near in around[cell] if np.isinf(steps[start, near])]
            steps[start, new] = steps[start, cell] + 1
            reached += new
    return cells, steps, around


def measure(found: np.ndarray, steps: np.ndarray, around: Sequence[Sequence[int]]) -> dict[str, float]:
    """Returns how well values `[goals, cells]` rank neighbours, over all pairs of a cell and a goal elsewhere.

    Args:
        found: V(s, g) for a goal in each cell and a state in each cell.
        steps: Between cells `[cells, cells]`.
        around: The neighbours of each cell.
    """
    nearer, arrives = list[bool](), list[bool]()
    for goal, own in enumerate(found):
        best = [max(near, key=own.__getitem__, default=cell) for cell, near in enumerate(around)]
        for start in range(len(steps)):
            if start == goal or np.isinf(steps[start, goal]):
                continue
            nearer.append(bool(steps[best[start], goal] < steps[start, goal]))
            cell = start
            for _ in range(len(steps)):
                cell = best[cell] if cell != goal else cell
            arrives.append(cell == goal)
    return {"nearer": float(np.mean(nearer)), "arrives": float(np.mean(arrives))}


def pointed(
    subgoal: Callable[..., jax.Array], rep: Callable[..., jax.Array], s: jax.Array, goals: jax.Array
) -> np.ndarray:
    """Returns the cells that subgoals are most like, of states `[number, cells, D]`: int `[number, cells, goals]`."""
    flat = s.reshape(-1, s.shape[-1])

    def of_state(x: jax.Array) -> jax.Array:
        found = subgoal(jnp.broadcast_to(x, (len(goals), len(x))), goals)
        return jnp.argmax(found @ rep(jnp.broadcast_to(x, flat.shape), flat).T, axis=-1) % s.shape[1]

    return np.asarray(jax.lax.map(of_state, flat)).reshape(*s.shape[:2], len(goals))


def lead(points: np.ndarray, steps: np.ndarray) -> float:
    """Returns how often a subgoal's cell `[number, cells, goals]` is nearer to the goal, from all cells but its own."""
    goal = np.arange(len(steps))
    counts = np.isfinite(steps) & (steps > 0)
    return float((steps[points, goal] < steps)[:, counts].mean())


def states_and_goals(env: SeededEpisodes, cells: Sequence[Cell], number: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns states `[number, cells, D]` and goals `[cells, D]`, as the environment begins in and asks for cells."""
    states, goals = [], []
    for seed in range(number):
        for cell in cells:
            s, info = env.reset(seed=seed, options={"task_info": {"init_ij": cell, "goal_ij": cell}})
            states.append(s)
            goals.append(info["goal"])
    return np.reshape(states, (number, len(cells), -1)), np.stack(goals[: len(cells)])


def maps(value: Callable[[jax.Array, jax.Array], jax.Array], s: jax.Array, goals: jax.Array) -> np.ndarray:
    """Returns the mean value `[goals, cells]` of states `[number, cells, D]` for each of some goals `[goals, D]`."""

    def of_goal(g: jax.Array) -> jax.Array:
        flat = s.reshape(-1, s.shape[-1])
        return value(flat, jnp.broadcast_to(g, (len(flat), *g.shape))).mean(axis=0).reshape(s.shape[:2]).mean(0)

    return np.asarray(jax.lax.map(of_goal, goals))


def draw(found: np.ndarray, goals: Sequence[Cell], cells: Sequence[Cell], shape: tuple[int, ...], path: Path) -> None:
    """Draws values `[goals, cells]` over the maze, with the goals as stars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(goals), 2.8), layout="constrained")
    for panel, own, goal in zip(figure.subplots(1, len(goals), squeeze=False)[0], found, goals, strict=True):
        picture = np.full(shape, np.nan)
        picture[tuple(zip(*cells, strict=True))] = own
        figure.colorbar(panel.imshow(picture, cmap="viridis"), ax=panel, shrink=0.7)
        panel.plot(goal[1], goal[0], "*", color="red", markersize=12)
        panel.set(xticks=[], yticks=[], facecolor="#dddddd")
    figure.suptitle("V(s, g) of states in each cell, to the goal of each task")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def readable(settings: Settings) -> tuple[Plan, dict[str, Any]]:
    """Returns the plan of the run, and its `config.json`.

    Raises:
        UserError: There is none, or its values or its maze are of a kind that this program does not know.
    """
    if not settings.run_dir:
        raise UserError("which run? give --run_dir=DIR")
    plan, stored = read_plan(Path(settings.run_dir).expanduser())
    name, env = plan.settings.agent, plan.env
    if name not in VALUES:
        raise UserError(f"{name} has no values that this program knows; choose a run of {', '.join(VALUES)}")
    if env.goals != "state" or "maze" not in env.name or "teleport" in env.name:
        raise UserError(f"{env.name} is no maze with states as goals whose cells touch only their neighbours")
    return plan, stored


def checkpoints(plan: Plan, spec: Spec) -> Iterator[tuple[int, Any, dict[str, Callable[..., jax.Array]]]]:
    """Yields of each checkpoint its step, and functions of what envs show, with parameters `[R, ...]` of runs for each.

    They are `(params, s, g)`: the `value`, and where there are subgoals their representation, and `rep`, a goal's.
    """
    name = plan.settings.agent
    (module, v), agent = VALUES[name], agents.build(name, plan.config, spec)
    nets, configs = module.networks(plan.config, spec), stacked(plan.config, [run.values for run in plan.runs])

    @partial(jax.jit, static_argnums=0)
    def seen(f: Any, normalizer: Normalizer | None, params: Any, s: jax.Array, g: jax.Array) -> jax.Array:
        shown = {"observations": s, "goals": g}
        inputs = shown if normalizer is None else normalizer.inputs(shown)
        return jnp.asarray(f(nets, params, inputs["observations"], inputs["goals"]))

    levels = {"subgoal": SUBGOALS[name], "rep": represented} if name in SUBGOALS else {}
    for step in Checkpoints(plan.folder / CHECKPOINTS, read_only=True).steps():
        _, states, normalizer = load_states(
            plan.folder, name, agent, configs, len(plan.runs), goals_are_states=True, step=step
        )
        valued = value_params(states) if module is gc_sscp else states.params  # its policy may read goals otherwise
        params = {"value": valued, "rep": valued, "subgoal": states.params}
        yield step, params, {key: partial(seen, f, normalizer) for key, f in {"value": v, **levels}.items()}


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    settings = flags.read(Settings(), arguments, __doc__ or "")
    if settings is None:
        return 0
    plan, stored = readable(settings)
    env = plan.env.make()
    maze: Any = env.unwrapped
    cells, steps, around = distances(maze.maze_map)
    s, goals = (jnp.asarray(x, jnp.float32) for x in states_and_goals(env, cells, settings.states))
    lines = [line for line in logs.read_lines(plan.folder / "eval.jsonl") if line["mode"] == SINGLE]
    results = list[dict[str, Any]]()
    for step, params, told_by in checkpoints(plan, stored_spec(stored)):
        for index, run in enumerate(plan.runs):
            own = jax.tree.map(lambda x, index=index: x[index], params)
            functions = {key: partial(f, own[key]) for key, f in told_by.items()}
            found = maps(functions["value"], s, goals)
            scores = [line["success"] for line in lines if (line["step"], line["run"]) == (step, index)]
            told = {"step": step, **run.labels, **measure(found, steps, around), "lowest": float(found.min())}
            if "subgoal" in told_by:
                told["subgoals"] = lead(pointed(functions["subgoal"], functions["rep"], s, goals), steps)
            results.append(told | ({"success": float(np.mean(scores))} if scores else {}))
            print(
                "  ".join(f"{key} {x:.3f}" if isinstance(x, float) else f"{key} {x}" for key, x in results[-1].items())
            )
    if settings.out:
        out = Path(settings.out)
        logs.write_json(out, {
            "command": " ".join(["python", "experiments/evidence/maze_values.py", *arguments[1:]]),
            "git_commit": git_commit(), "hardware": hardware(), "versions": versions("jax", "jaxlib", "ogbench"),
            "run": {key: stored["settings"][key] for key in ("agent", "env", "preset", "steps")},
            "data": {key: stored["data"][key] for key in ("origin", "sha256")},
            "agent_config": stored["agent_config"], "results": results,
        })  # fmt: skip
        places = (maze.xy_to_ij(info["goal_xy"]) for info in maze.task_infos)
        aims = [cells.index((int(i), int(j))) for i, j in places]
        draw(found[aims], [cells[aim] for aim in aims], cells, np.shape(maze.maze_map), out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    flags.run(main)
