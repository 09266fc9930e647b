"""How datasets are collected, OGBench's by its published procedures: who acts, toward which goals, for how long.

A behaviour is a Python generator that plays one episode: it first yields the options for `reset`, then an action for
every `(observation, info)` that it is sent. New kinds of data (a learnt actor, random exploration, scripted
manipulation) need another behaviour or another actor here; nothing in `collect` changes.
"""

import functools
import math
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import numpy as np

from flowrl import envs
from flowrl.data import experts
from flowrl.errors import UserError

EXPLORE_INTERVAL = 10
FIELDS: dict[str, type] = {
    "observations": np.float32,
    "actions": np.float32,
    "terminals": np.bool_,
    "qpos": np.float32,
    "qvel": np.float32,
}
"""Of OGBench's files; the simulator's state comes after the first three."""
ENDLESS = ("terminate_at_goal", False)
"""What OGBench's environments are made with, so that episodes have their full length."""
Cell = tuple[int, int]
Actor = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (observation, unit direction) -> action before noise
Episode = Generator[Any, tuple[np.ndarray, dict[str, Any]], None]


class Recipe(NamedTuple):
    """How one dataset is collected.

    Attributes:
        play: Plays one episode; takes the environment, this recipe and the numbers that fix the episode (a seed, the
            episode's index, and for another attempt a third), and returns the fields, one row per step.
        episodes: Training episodes of the published set; a tenth more make its validation file.
        length: Environment steps per episode; one row each.
        row_bytes: Bytes of one row over all fields, for the check of disk space.
        fields: Names and types of the fields.
        env_kwargs: What the environment is made with, as pairs.
        procedure: Whose procedure this is, for the record beside the data.
        unit: What is counted as an episode here, in the plural.
        behaviour: What `follow` plays; takes the unwrapped environment, the episode's generator and this recipe.
        noise: Scale of the noise in the actions, which are then clipped to [-1, 1]; what exactly, the behaviour says.
        actor: In mazes, turns an observation and a unit direction into an action.
        expert: Body whose shipped policies act, or empty.
        policies: Which of the snapshots act in turn, None standing for uniform actions.
        accept: Whether an episode's fields will do; one that will not is thrown away and another played in its place.
    """

    play: Callable[[envs.SeededEpisodes, "Recipe", list[int]], dict[str, np.ndarray]]
    episodes: int
    length: int
    row_bytes: int
    fields: Mapping[str, type]
    env_kwargs: tuple[tuple[str, Any], ...] = ()
    procedure: str = "OGBench's published procedure"
    unit: str = "episodes"
    behaviour: Callable[[Any, np.random.Generator, "Recipe"], Episode] | None = None
    noise: float = 0.0
    actor: Actor | None = None
    expert: str = ""
    policies: tuple[int | None, ...] = ()
    accept: Callable[[Mapping[str, np.ndarray]], bool] | None = None


def recipe(name: envs.EnvName) -> Recipe:
    """Returns how the dataset of that name is collected.

    Raises:
        UserError: flowrl cannot collect it yet.
    """
    from flowrl.data import manipulation, mujoco_sets  # which need what is defined here

    if name.family == "collected":
        return mujoco_sets.recipe(name.dataset)
    if (found := manipulation.recipe(name)) is not None:
        return found
    body, _, size = str(name.env_id).removesuffix("-v0").partition("-")
    if body not in _BODIES or name.behaviour not in _MAZE_BEHAVIOURS:
        raise UserError(
            f"flowrl cannot collect {name.name} yet, only the sets of pointmaze and antmaze, the play and noisy sets "
            f"of cube, scene and puzzle, and MuJoCo's such as collected:hopper-medium; give a file with --data=PATH, "
            f"for example a download of {name.dataset}.npz"
        )
    expert, noise, numbers = _BODIES[body]
    actor = functools.partial(experts.walk, expert) if expert else straight
    # float32 fields, and the terminals
    row_bytes, kwargs = 4 * numbers + 1, (ENDLESS,)
    maze = functools.partial(
        Recipe, follow, actor=actor, noise=noise, row_bytes=row_bytes, fields=FIELDS, env_kwargs=kwargs, expert=expert
    )
    if name.behaviour == "stitch":
        return maze(behaviour=stitch, episodes=5000, length=201)
    if name.behaviour == "explore":
        return maze(behaviour=explore, noise=1.0, episodes=10_000, length=501)
    if size == "giant":
        return maze(behaviour=navigate, episodes=500, length=2001)
    return maze(behaviour=navigate, episodes=1000, length=1001)


def follow(env: envs.SeededEpisodes, recipe: Recipe, entropy: list[int]) -> dict[str, np.ndarray]:
    """Plays one episode by the recipe's behaviour and returns its fields, one row per step.

    As in OGBench's files, a row holds the observation that the environment returned before the step (in a teleport
    maze, the one at the entrance) and the simulator's state at the start of the step (there, at the exit).
    """
    procedure, simulator = np.random.SeedSequence(entropy).spawn(2)
    assert recipe.behaviour is not None
    moves = recipe.behaviour(env.unwrapped, np.random.default_rng(procedure), recipe)
    observation, info = env.reset(seed=int(simulator.generate_state(1)[0]), options=next(moves))
    rows: dict[str, list[Any]] = {field: [] for field in recipe.fields}
    done = False
    while not done:
        action = moves.send((observation, info))
        next_observation, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        row = [observation, action, done, *(info[f"prev_{field}"] for field in [*recipe.fields][3:])]
        for field, value in zip(recipe.fields, row, strict=True):
            rows[field].append(value)
        observation = next_observation
    return {field: np.array(rows[field], dtype) for field, dtype in recipe.fields.items()}


def straight(observation: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The actor of a point mass: its action is the direction itself."""
    return direction


_BODIES = {"pointmaze": ("", 0.5, 2 + 2 + 2 + 2), "antmaze": ("ant", 0.2, 29 + 8 + 15 + 14)}
"""Whose expert acts, the noise of its actions, and the numbers in a row: state, action, qpos, qvel."""
_MAZE_BEHAVIOURS = ("navigate", "stitch", "explore")


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
