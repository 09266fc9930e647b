"""Environment names, and environments whose every episode is fixed by one seed."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from flowrl import presets
from flowrl.errors import UserError, suggestion


class EnvName(NamedTuple):
    """What a name such as `pointmaze-medium-navigate` stands for.

    Attributes:
        name: The name without its version, `pointmaze-medium-navigate`.
        dataset: Stem of OGBench's dataset files, `pointmaze-medium-navigate-v0`.
        env_id: The environment registered with Gymnasium, `pointmaze-medium-v0`.
        behaviour: How the data was collected, `navigate`.
    """

    name: str
    dataset: str
    env_id: str
    behaviour: str


def parse(name: str) -> EnvName:
    """Resolves an OGBench dataset name, with or without `-v0`.

    Raises:
        UserError: The name is unknown, or names something flowrl cannot train on yet.
    """
    stem = name.removesuffix("-v0")
    known = presets.ogbench_datasets()
    if "singletask" in stem or "oraclerep" in stem:
        raise UserError(f"environment {name!r}: single-task and oracle-representation sets are not supported yet")
    if stem not in known:
        raise UserError(f"unknown environment {name!r}{suggestion(stem, known)}")
    if stem.startswith(("visual-", "powderworld-")):
        raise UserError(f"environment {name!r}: pixel observations are not supported yet; use a state-based set")
    body, behaviour = stem.rsplit("-", 1)
    return EnvName(stem, f"{stem}-v0", f"{body}-v0", behaviour)


class SeededEpisodes(gymnasium.Wrapper):
    """Makes each episode a function of its seed alone.

    OGBench draws from numpy's global generator in `reset` and, for teleport mazes, in `step`. This wrapper gives every
    environment a global generator of its own for the length of each call, so that episodes stepped side by side in one
    process do not disturb each other. Belongs in a worker process: it owns numpy's global state there.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self._generator = np.random.MT19937(0)

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:  # type: ignore[override]
        """Starts the episode that `seed` (uint32) fixes."""
        self._generator = np.random.MT19937(seed)
        np.random.set_bit_generator(self._generator)  # type: ignore[attr-defined]
        self.env.action_space.seed(seed)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps with this environment's own global generator in place."""
        np.random.set_bit_generator(self._generator)  # type: ignore[attr-defined]
        return self.env.step(action)


def make(env_id: str, **kwargs: Any) -> SeededEpisodes:
    """Makes a registered environment; keyword arguments go to `gymnasium.make`."""
    import ogbench  # noqa: F401  (registers its environments)

    with _no_leftover_files():
        return SeededEpisodes(gymnasium.make(env_id, disable_env_checker=True, **kwargs))


@contextlib.contextmanager
def _no_leftover_files() -> Iterator[None]:
    """Closes and removes the temporary XML file that each of OGBench's mazes leaves open behind it."""
    made: list[tuple[int, str]] = []
    original = tempfile.mkstemp

    def recording(*args: Any, **kwargs: Any) -> tuple[int, str]:
        made.append(original(*args, **kwargs))
        return made[-1]

    tempfile.mkstemp = recording  # type: ignore[assignment]
    try:
        yield
    finally:
        tempfile.mkstemp = original
        for handle, path in made:
            os.close(handle)
            os.unlink(path)


class Sizes(NamedTuple):
    """What an environment asks of a policy: sizes of its observations and actions, and its number of tasks."""

    observation_dim: int
    action_dim: int
    tasks: int


def sizes(env_id: str) -> Sizes:
    """Returns the sizes of a registered environment with actions in [−1, 1].

    Raises:
        UserError: Its actions are discrete or have other bounds.
    """
    env = make(env_id)
    space = env.action_space
    if not isinstance(space, gymnasium.spaces.Box):
        raise UserError(f"{env_id} has actions of kind {type(space).__name__}; flowrl needs continuous ones")
    if not (np.allclose(space.low, -1) and np.allclose(space.high, 1)):
        raise UserError(f"{env_id} has actions in [{space.low.min()}, {space.high.max()}]; flowrl needs [-1, 1]")
    (observation_dim,) = env.observation_space.shape or (0,)
    return Sizes(observation_dim, space.shape[0], int(env.unwrapped.num_tasks))  # type: ignore[attr-defined]
