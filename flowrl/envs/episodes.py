"""An environment as flowrl meets it: in vectors, every episode fixed by its seed, and all that it says looked at."""

import contextlib
import os
import random
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from tqdm import tqdm

from flowrl.envs.spaces import Actions, observation_size, shown, vector
from flowrl.errors import UserError

LARGEST = 1e30
"""The largest reward; sums of larger ones would leave float32."""
SUCCESS = ("success", "is_success")
"""What says in an info that the goal is reached."""
_NOT_TOLD = float("nan")
_MAPPINGS = (dict, Mapping)  # in this order, for the other takes long to ask
_PLAIN = (bool, int, float, np.bool_, np.floating)
_twin = random.Random()
"""Gives the same numbers as Python's global generator, until somebody draws from that."""
_next_of_all, _next_of_twin = random.getrandbits, _twin.getrandbits
_set_bit_generator: Any = np.random.set_bit_generator  # type: ignore[attr-defined]
_API = "Gymnasium's form is reset(*, seed=None, options=None) -> (observation, info) and step(action) -> (observation, \
reward, terminated, truncated, info)"
_FOLDERS = (Path(__file__).parents[1], Path(str(gymnasium.__file__)).parent, Path(np.__file__).parent)
_OURS = tuple(f"{folder}{os.sep}" for folder in _FOLDERS)
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")})


class EnvironmentFailed(UserError):
    """An environment raised an exception, or returned what it must not."""


class NotFinite(EnvironmentFailed):
    """A number that an environment returned is not finite.

    Attributes:
        slot: Which one of several environments it was.
    """

    slot = 0


def success(info: Mapping[str, Any]) -> float:
    """Returns whether an info says that the goal is reached, 1 or 0; NaN where it does not say.

    Raises:
        ValueError: What it says is not one number.
    """
    found = _NOT_TOLD
    for name in SUCCESS:
        if name in info and (value := info[name]) is not None and found != 1:
            found = float(value) if isinstance(value, _PLAIN) else _number(value)
    return found


class SeededEpisodes(gymnasium.Wrapper):
    """Shows vectors, plays actions in [-1, 1], and makes each episode a function of its seed alone.

    Environments draw from the global generators of numpy and of Python's `random`; OGBench from numpy's in `reset` and,
    for teleport mazes, in `step`. This wrapper gives every environment global generators of its own for the length of
    each call, so that episodes stepped side by side in one process do not disturb each other. Belongs in a worker
    process: it owns their states there. Putting back Python's generator would take as long as many a step, so that is
    done for environments that draw from it in steps only: at the first such step the episode is played anew, with the
    same actions and a generator of its own.

    What `reset` and `step` return is checked; rewards are floats, flags are booleans, and infos stay as they are.

    Attributes:
        name: How messages call the environment.
        actions: How actions in [-1, 1] become the environment's own.
    """

    def __init__(self, env: gymnasium.Env, name: str = ""):
        """Looks at its spaces, those that are seen from outside of all wrappers.

        Raises:
            UserError: They are none that flowrl supports; the message names them.
        """
        super().__init__(env)
        with quiet():
            self.name = name or (env.spec.id if env.spec else type(_innermost(env)).__name__)
            seen = env.observation_space
            self.actions = Actions(env.action_space, self.name)
            self._shape = (observation_size(seen, self.name),)
            self._seen, self._plain = seen, isinstance(seen, gymnasium.spaces.Box) and seen.shape == self._shape
            if not self._plain:
                self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, self._shape, np.float32)
            if not self.actions.unit or env.action_space.shape != self.actions.low.shape:
                self.action_space = gymnasium.spaces.Box(-1.0, 1.0, self.actions.low.shape, np.float32)
            spaces = [space for layer in _layers(env) for space in (layer.action_space, layer.observation_space)]
        self._spaces = [*{id(space): space for space in spaces}.values()]  # for environments that sample from them
        self._generator = np.random.MT19937(0)
        self._begun: tuple[int, dict[str, Any] | None] = (0, None)
        self._played: list[np.ndarray] = []
        self._draws = False  # whether it draws from Python's generator in steps
        self._random: Any = None
        self._steps = 0

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:  # type: ignore[override]
        """Starts the episode that `seed` (uint32) fixes.

        Raises:
            EnvironmentFailed: The environment raised an exception, or returned what it must not.
        """
        self._steps, self._begun, self._played = 0, (int(seed), options), []
        found = self._reset()
        if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], Mapping):
            raise self._wrong("reset", f"returned {_kind(found)}; {_API}")
        return self._vector("reset", found[0]), found[1]  # type: ignore[return-value]

    def _reset(self) -> Any:
        seed, options = self._begun
        self._generator = np.random.MT19937(seed)
        _set_bit_generator(self._generator)
        random.seed(seed)
        with quiet():
            for space in self._spaces:
                space.seed(seed)
            try:
                found = self.env.reset(seed=seed, options=options)
            except Exception as error:
                raise self._failure("reset", error) from error
        self._random = random.getstate() if self._draws else None
        return found

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Plays an action in [-1, 1] with this environment's own global generators in place.

        Raises:
            NotFinite: An observation, the reward or the success is not finite.
            EnvironmentFailed: The environment raised an exception, or returned what it must not.
        """
        self._steps += 1
        found = self._step(action)
        if type(found) is not tuple or len(found) != 5 or not isinstance(found[4], _MAPPINGS):
            raise self._wrong("step", f"returned {_kind(found)}; {_API}")
        observation, reward, terminated, truncated, info = found
        try:
            earned = float(reward) if isinstance(reward, _PLAIN) else _number(reward)
            over = bool(terminated) if isinstance(terminated, _PLAIN) else bool(_number(terminated))
            cut = bool(truncated) if isinstance(truncated, _PLAIN) else bool(_number(truncated))
            reached = success(info)
        except (TypeError, ValueError, OverflowError) as error:
            raise self._wrong("step", f"reward, terminated, truncated or success: {error}") from error
        if not -LARGEST <= earned <= LARGEST:
            raise self._not_finite("the reward", earned)
        if reached is not _NOT_TOLD and reached != 0.0 and reached != 1.0:
            self._refuse_success(reached, info)
        if not (self._plain and type(observation) is np.ndarray and observation.shape == self._shape) or (
            observation.dtype.kind != "f" or not observation.dot(observation) < LARGEST
        ):
            observation = self._vector("step", observation)  # which looks at it closely
        return observation, earned, over, cut, info

    def _step(self, action: Any) -> Any:
        """Plays an action, and once the whole episode anew, where it shows that the environment draws in steps."""
        played = self.actions.played(action)
        _set_bit_generator(self._generator)
        if self._draws:
            random.setstate(self._random)
        else:
            if _next_of_all(32) != _next_of_twin(32):
                _twin.setstate(random.getstate())
            self._played.append(action)
        try:
            found = self.env.step(played)
        except Exception as error:
            raise self._failure("step", error) from error
        if self._draws:
            self._random = random.getstate()
        elif _next_of_all(32) != _next_of_twin(32):
            self._draws = True
            self._reset()
            for before in self._played:
                found = self._step(before)
        return found

    def _vector(self, call: str, observation: Any) -> np.ndarray:
        """Returns an observation as a vector `[D]`, once it is what the space says and finite."""
        try:
            row = np.asarray(observation) if self._plain else vector(self._seen, observation)
            if row.shape != self._shape or row.dtype.kind not in "biuf":
                raise ValueError(f"an observation is {row.dtype} of shape {row.shape}, not of {shown(self._seen)}")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            text = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise self._wrong(call, f"returned another observation than its space says: {shown(text)}") from error
        if row.dtype.kind == "f":
            with np.errstate(over="ignore"):
                bad = ~np.isfinite(row.astype(np.float32))
            if bad.any():
                i = int(np.argmax(bad))
                raise self._not_finite(f"number {i} of the observation", row[i])
        return row

    def _refuse_success(self, reached: float, info: Mapping[str, Any]) -> None:
        """Refuses a success that is told but is neither true nor false."""
        name, value = next((name, info[name]) for name in SUCCESS if info.get(name) is not None)
        if not np.isfinite(reached):
            raise self._not_finite(f"{name!r} in the info", reached)
        raise self._wrong("step", f"{name!r} in the info is {shown(value)}, neither true nor false")

    def _not_finite(self, what: str, value: Any) -> NotFinite:
        when = f"in step {self._steps}" if self._steps else "at the reset"
        return NotFinite(f"{self.name}: {what} is {value}, not a finite number, {when}")

    def _wrong(self, call: str, problem: str) -> EnvironmentFailed:
        return EnvironmentFailed(f"{self.name}: its {call} {problem} ({_definition(self.env, call)})")

    def _failure(self, call: str, error: Exception) -> UserError:
        if isinstance(error, UserError):
            return error
        where = place(error) or _definition(self.env, call)
        when = f"in step {self._steps}" if self._steps else "in reset"
        hint = f"; {_API}" if isinstance(error, TypeError | ValueError) and place(error) is None else ""
        return EnvironmentFailed(f"{self.name} failed {when}: {explained(error)} ({where}){hint}")


def explained(error: BaseException) -> str:
    """Returns an exception in one line."""
    text = shown(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place(error: BaseException | None) -> str | None:
    """Returns `file:line` of the innermost line that is neither flowrl's, Gymnasium's nor NumPy's; the user's own.

    It is sought in what the exception followed from, too. Where all others are installed packages, it is one of theirs.
    """
    fallback = None
    while error is not None:
        lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SyntaxError) and error.filename:
            lines.append((error.filename, error.lineno))
        others = [line for line in lines if not line[0].startswith((*_OURS, "<"))]
        own = [line for line in others if not line[0].startswith(_INSTALLED)]
        if own:
            return "{}:{}".format(*own[-1])
        fallback = fallback or ("{}:{}".format(*others[-1]) if others else None)
        error = error.__cause__ or error.__context__
    return fallback


def _layers(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
    """Yields an environment and all that it wraps."""
    yield env
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        yield env


def has_limit(env: gymnasium.Env) -> bool:
    """Whether one of an environment's wrappers limits the steps of an episode, as Gymnasium's own does."""
    return any(isinstance(layer, gymnasium.wrappers.TimeLimit) for layer in _layers(env))


def _innermost(env: gymnasium.Env) -> gymnasium.Env:
    return [*_layers(env)][-1]


def _definition(env: gymnasium.Env, call: str) -> str:
    """Returns where `reset` or `step` is written, of the outermost layer that is not Gymnasium's."""
    for layer in _layers(env):
        code = getattr(getattr(type(layer), call), "__code__", None)
        if code is not None and not code.co_filename.startswith(_OURS):
            return f"{code.co_filename}:{code.co_firstlineno}"
    return type(_innermost(env)).__qualname__


def _number(value: Any) -> float:
    """Returns one number; arrays of one element hold one too.

    Raises:
        ValueError: There is not exactly one, or something else.
    """
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise ValueError(f"{shown(value)} is not one number")
    return float(array.item())


def _kind(found: Any) -> str:
    if isinstance(found, tuple):
        return f"{len(found)} values, {', '.join(type(value).__name__ for value in found)}"
    return f"{type(found).__name__}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings of float64 bounds, a missing display or newer versions: nothing that a user can act on.

    OGBench's manipulation environments make their spaces, and with them such warnings, anew whenever they are asked.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


_told_of_mujoco: list[str] = []


def tame_mujoco() -> None:
    """Keeps MuJoCo's warnings out of the file MUJOCO_LOG.TXT in the user's folder, where MuJoCo has been imported.

    The first of a process that says a simulation is unstable is told, since MuJoCo then begins it anew.
    """
    mujoco = sys.modules.get("mujoco")
    if mujoco is not None and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_mujoco_warning)


def _mujoco_warning(message: str) -> None:
    if "unstable" in message and not _told_of_mujoco:
        _told_of_mujoco.append(message)
        tqdm.write(f"warning: MuJoCo: {shown(message)}; it begins that simulation anew", file=sys.stderr)
