"""Small environments of a user's own, importing which registers them; each has one thing that others stumble over."""

import json
import random
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from flowrl.envs.episodes import SeededEpisodes

NUMBERS = spaces.Box(-np.inf, np.inf, (2,), np.float32)
UNIT = spaces.Box(-1, 1, (1,), np.float32)


class Own(gymnasium.Env):
    """Shows (steps, 0), pays the step, and keeps what was played."""

    observation_space, action_space = NUMBERS, UNIT

    def __init__(self, observation_space: Any = NUMBERS, action_space: Any = UNIT) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.played: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.shown(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.played.append(action)
        return self.shown(), self.paid(), False, False, self.told()

    def shown(self) -> Any:
        return np.array([self.steps, 0], np.float32)

    def paid(self) -> Any:
        return float(self.steps)

    def told(self) -> dict[str, Any]:
        return {}


class Sampling(Own):
    """Shows samples of its space, whatever that is."""

    def shown(self) -> Any:
        return self.observation_space.sample()


class Dice(Own):
    """Draws from both global generators."""

    def shown(self) -> Any:
        return np.array([random.random(), np.random.uniform()], np.float32)  # noqa: NPY002


class Passing(Own):
    """Reaches its goal at step 2 of 4, says so under one of two names, and leaves it; in some episodes only."""

    def __init__(self, name: str = "success", share: float = 1.0, silent: bool = False) -> None:
        super().__init__()
        self.name, self.share, self.silent = name, share, silent

    def told(self) -> dict[str, Any]:
        if self.steps == 1:
            self.solved = self.np_random.uniform() < self.share
        reached = self.steps == 2 and bool(self.solved)
        ragged = {"ragged": [[1], [2, 3]], "none": None, f"key{self.steps}": np.zeros((self.steps, 3))}
        return ragged if self.silent and not reached else ragged | {self.name: np.array([reached])}


class Columns(Own):
    """Returns numbers and flags as arrays of one element, its reward after the action's shape."""

    def step(self, action: Any) -> Any:
        observation, _, _, _, info = super().step(action)
        return observation, 1.5 + 0 * np.asarray(action), np.array([False]), np.array([self.steps == 2]), info


class Broken(Own):
    """Pays NaN in the third step of about half of its episodes; or shows it, or says it of success."""

    def __init__(self, where: str = "reward", share: float = 0.5) -> None:
        super().__init__()
        self.where, self.share, self.broken = where, share, False

    def reset(self, **arguments: Any) -> Any:
        found = super().reset(**arguments)
        self.broken = self.np_random.uniform() < self.share
        return found

    def value(self, where: str, value: float) -> float:
        return float("nan") if self.where == where and self.broken and self.steps == 3 else value

    def shown(self) -> Any:
        return np.array([self.steps, self.value("observation", 0.0)], np.float32)

    def paid(self) -> Any:
        return np.float64(self.value("reward", 1.0))

    def told(self) -> dict[str, Any]:
        return {"success": self.value("success", 0.0)} if self.where == "success" else {}


class Raising(Own):
    """Raises in its third step."""

    def step(self, action: Any) -> Any:
        if self.steps == 2:
            raise KeyError("a mistake\nof two lines")
        return super().step(action)


class Parsing(Own):
    """Raises in the standard library."""

    def told(self) -> dict[str, Any]:
        return json.loads("{")


class Unmade(Own):
    """Cannot be made."""

    def __init__(self) -> None:
        raise ValueError("no such map")


class FourValues(Own):
    """Its step returns what Gym's did."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, info


class NoInfo(Own):
    """Its reset returns an observation of two numbers alone."""

    def reset(self, **arguments: Any) -> Any:
        return super().reset(**arguments)[0]


class NoSeed(Own):
    """Its reset takes no seed."""

    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class OtherShape(Own):
    """Shows more numbers than its space has, from the second step on."""

    def shown(self) -> Any:
        return np.zeros(2 if self.steps < 2 else 3, np.float32)


class Counter(gymnasium.Env[np.ndarray, np.ndarray]):
    """Shows (steps, number / 1024), the number drawn at the reset; the reward is the step.

    Episodes end at 3, with an even number by the limit of time, with an odd one by termination.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps, self.number = 0, int(self.np_random.integers(1024))
        return self._view(), {}

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        over, odd = self.steps == 3, self.number % 2 == 1
        return self._view(), float(self.steps), over and odd, over and not odd, {}

    def _view(self) -> np.ndarray:
        return np.array([self.steps, self.number / 1024], np.float32)


def make_counter() -> SeededEpisodes:
    """Makes one; a process that is to make it imports nothing but this file, so no JAX."""
    return SeededEpisodes(Counter())


REGISTERED = {cls.__name__: cls for cls in (*Own.__subclasses__(), Own)}
for _name, _class in REGISTERED.items():
    gymnasium.register(f"own/{_name}-v0", entry_point=_class, max_episode_steps=4)
gymnasium.register("own/Endless-v0", entry_point=Own)
