"""What says how a dataset is collected: who acts, toward which goals, for how long.

A behaviour is a Python generator that plays one episode: it first yields the options for `reset`, then an action for
every `(observation, info)` that it is sent. New kinds of data (a learnt actor, random exploration, scripted
manipulation) need another behaviour or another actor beside those of mazes and manipulation; nothing in `collect`
changes.
"""

from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import numpy as np

from flowrl.envs.episodes import SeededEpisodes

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
Actor = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (observation, unit direction) -> action before noise
Episode = Generator[Any, tuple[np.ndarray, dict[str, Any]], None]


class Recipe(NamedTuple):
    """How one dataset is collected.

    Attributes:
        name: Of the dataset, as it is given to programs: `pointmaze-medium-navigate`, `collected:hopper-medium`.
        dataset: What its files are called: `pointmaze-medium-navigate-v0`, `hopper-medium`.
        env_id: The environment in which it is collected, registered with Gymnasium.
        kind: Of the dataset, in a word: `navigate`, `play`, `medium`.
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

    name: str
    dataset: str
    env_id: str
    kind: str
    play: Callable[[SeededEpisodes, "Recipe", list[int]], dict[str, np.ndarray]]
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


def follow(env: SeededEpisodes, recipe: Recipe, entropy: list[int]) -> dict[str, np.ndarray]:
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
