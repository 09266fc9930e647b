"""OGBench's published collection of its maze sets: who walks, toward which cells."""

import functools
import math
from typing import Any

import numpy as np

from flowrl.collection import experts
from flowrl.collection.recipes import ENDLESS, FIELDS, Episode, Recipe, follow

EXPLORE_INTERVAL = 10
Cell = tuple[int, int]
_BODIES = {"pointmaze": ("", 0.5, 2 + 2 + 2 + 2), "antmaze": ("ant", 0.2, 29 + 8 + 15 + 14)}
"""Whose expert acts, the noise of its actions, and the numbers in a row: state, action, qpos, qvel."""
_BEHAVIOURS = ("navigate", "stitch", "explore")


def recipe(name: str) -> Recipe | None:
    """Returns how one of OGBench's maze sets, named without version, is collected; None where flowrl cannot.

    Raises:
        UserError: flowrl ships no expert for it.
    """
    place, _, kind = name.rpartition("-")
    body, _, size = place.partition("-")
    if body not in _BODIES or kind not in _BEHAVIOURS:
        return None
    expert, noise, numbers = _BODIES[body]
    maze = functools.partial(
        Recipe,
        name=name,
        dataset=f"{name}-v0",
        env_id=f"{place}-v0",
        kind=kind,
        play=follow,
        actor=functools.partial(experts.walk, expert) if expert else straight,
        noise=noise,
        row_bytes=4 * numbers + 1,  # float32 fields, and the terminals
        fields=FIELDS,
        env_kwargs=(ENDLESS,),
        expert=expert,
    )
    if kind == "stitch":
        return maze(behaviour=stitch, episodes=5000, length=201)
    if kind == "explore":
        return maze(behaviour=explore, noise=1.0, episodes=10_000, length=501)
    if size == "giant":
        return maze(behaviour=navigate, episodes=500, length=2001)
    return maze(behaviour=navigate, episodes=1000, length=1001)


def straight(observation: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The actor of a point mass: its action is the direction itself."""
    return direction


def navigate(maze: Any, generator: np.random.Generator, recipe: Recipe) -> Episode:
    """Walks from a random free cell to random cells that are not straight corridor, one after the other."""
    goals = turning_cells(maze.maze_map)
    start, goal = _pick(generator, free_cells(maze.maze_map)), _pick(generator, goals)
    observation, info = yield {"task_info": {"init_ij": start, "goal_ij": goal}}
    while True:
        observation, info = yield _act(recipe, generator, observation, _direction(maze))
        if info["success"]:
            # With a cell instead of a position, OGBench's set_goal would write None to the target's position.
            maze.set_goal(goal_xy=_noisy_centre(maze, generator, _pick(generator, goals)))


def stitch(maze: Any, generator: np.random.Generator, recipe: Recipe) -> Episode:
    """Walks from a random free cell to a cell four steps away and stays there."""
    start = _pick(generator, free_cells(maze.maze_map))
    goal = _pick(generator, cells_at(maze, start, 4) or [start])
    observation, _ = yield {"task_info": {"init_ij": start, "goal_ij": goal}}
    while True:
        observation, _ = yield _act(recipe, generator, observation, _direction(maze))


def explore(maze: Any, generator: np.random.Generator, recipe: Recipe) -> Episode:
    """Walks from a random free cell in random directions, a new one every ten steps."""
    cells = free_cells(maze.maze_map)
    observation, _ = yield {"task_info": {"init_ij": _pick(generator, cells), "goal_ij": _pick(generator, cells)}}
    while True:
        direction = generator.normal(size=2)
        direction /= np.linalg.norm(direction)
        for _ in range(EXPLORE_INTERVAL):
            observation, _ = yield _act(recipe, generator, observation, direction)


def free_cells(maze_map: np.ndarray) -> list[Cell]:
    """Returns the cells (row, column) without a wall."""
    return [(int(i), int(j)) for i, j in np.argwhere(maze_map == 0)]


def turning_cells(maze_map: np.ndarray) -> list[Cell]:
    """Returns the free cells but those of straight corridors: two opposite neighbours free, the other two walls."""

    def straight(i: int, j: int) -> bool:
        rows = (maze_map[i - 1, j], maze_map[i + 1, j])
        columns = (maze_map[i, j - 1], maze_map[i, j + 1])
        return (rows, columns) in (((0, 0), (1, 1)), ((1, 1), (0, 0)))

    return [cell for cell in free_cells(maze_map) if not straight(*cell)]


def cells_at(maze: Any, start: Cell, steps: int) -> list[Cell]:
    """Returns the cells whose shortest path from `start` has exactly `steps` steps."""
    centre = maze.ij_to_xy(start)
    _, distances = maze.get_oracle_subgoal(centre, centre)
    return [(int(i), int(j)) for i, j in np.argwhere(distances == steps)]


@functools.cache
def _subgoal(maze: Any, start: Cell, goal: Cell) -> tuple[float, float]:
    """Returns the position that OGBench's oracle walks to next; it depends on the two cells alone."""
    subgoal, _ = maze.get_oracle_subgoal(maze.ij_to_xy(start), maze.ij_to_xy(goal))
    return float(subgoal[0]), float(subgoal[1])


def _direction(maze: Any) -> np.ndarray:
    """Returns the unit direction from the agent to its subgoal."""
    x, y = maze.get_xy().tolist()
    subgoal_x, subgoal_y = _subgoal(maze, maze.xy_to_ij((x, y)), maze.xy_to_ij(maze.cur_goal_xy))
    dx, dy = subgoal_x - x, subgoal_y - y
    return np.array((dx, dy)) / (math.hypot(dx, dy) + 1e-6)


def _act(recipe: Recipe, generator: np.random.Generator, observation: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Returns the actor's action with noise, inside the bounds."""
    assert recipe.actor is not None
    action = recipe.actor(observation, direction)
    return np.clip(action + generator.normal(0.0, recipe.noise, action.shape), -1.0, 1.0)


def _noisy_centre(maze: Any, generator: np.random.Generator, cell: Cell) -> tuple[float, float]:
    """Returns a point uniform over the middle quarter of a cell, as OGBench's `add_noise` does for goals."""
    x, y = maze.ij_to_xy(cell)
    dx, dy = generator.uniform(-1.0, 1.0, 2) * maze._noise * maze._maze_unit / 4
    return float(x + dx), float(y + dy)


def _pick(generator: np.random.Generator, cells: list[Cell]) -> Cell:
    return cells[generator.integers(len(cells))]
