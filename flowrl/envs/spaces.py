"""Gymnasium's spaces as vectors of numbers: what a policy is shown, and how its actions in [-1, 1] are played.

**Observations.** Numbers and vectors are taken as they are, matrices row by row, `Discrete` and `MultiDiscrete` as ones
among zeros, `MultiBinary` as 0 and 1. Dictionaries become their entries in sorted order of the keys, but `observation`
and `desired_goal` alone where both are there (the goal already achieved is a function of the observation); tuples
become their parts in order. Images, texts, graphs and sequences are refused.

**Actions** are boxes of fractions with finite bounds, of any shape: a policy's action is its numbers row by row.
"""

import math
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from flowrl.errors import UserError

LARGEST = 100_000
"""The most numbers of an observation; one with more is an image or a large `Discrete`."""


def shown(value: Any) -> str:
    """Returns a space or a value in one short line."""
    text = " ".join(str(value).split())
    return text if len(text) <= 160 else f"{text[:157]}..."


# ---------------------------------------------------------------------------------------------------- observations


def observation_size(space: gymnasium.Space[Any], name: str) -> int:
    """Returns how many numbers an observation has as a vector.

    Args:
        space: Of the observations.
        name: Whose they are, for messages.

    Raises:
        UserError: The space is none of those that can be a vector; the message names it.
    """
    size = 0
    for where, part in _parts(space):
        if (problem := _problem(part)) is not None:
            inside = f" with {where} of {shown(part)}" if where else ""
            raise UserError(f"{name} has observations {shown(space)}{inside}; {problem}")
        size += _size(part)
    if not 0 < size <= LARGEST:
        raise UserError(
            f"{name} has observations {shown(space)}, {size:,} numbers; flowrl needs a vector of at least one and at "
            f"most {LARGEST:,}"
        )
    return size


def vector(space: gymnasium.Space[Any], observation: Any) -> np.ndarray:
    """Returns an observation, or a batch of them with leading axes `[..., *shape]`, as one vector `[..., D]`.

    Raises:
        ValueError: It is not of the space.
        KeyError: It lacks an entry of the space.
    """
    if isinstance(space, Dict):
        return np.concatenate([vector(space[key], observation[key]) for key in _keys(space)], axis=-1)
    if isinstance(space, Tuple):
        return np.concatenate([vector(*pair) for pair in zip(space.spaces, observation, strict=True)], axis=-1)
    array, shape = np.asarray(observation), space.shape or ()
    lead = array.shape[: array.ndim - len(shape)]
    if array.shape != (*lead, *shape) or array.dtype.kind not in "biuf":
        raise ValueError(f"an observation is {array.dtype} of shape {array.shape}, not of {shown(space)}")
    if isinstance(space, Discrete):
        return _ones(array - space.start, int(space.n))
    if isinstance(space, MultiDiscrete):
        rows, limits = (array - space.start).reshape(*lead, -1), space.nvec.reshape(-1)
        return np.concatenate([_ones(rows[..., i], int(limit)) for i, limit in enumerate(limits)], axis=-1)
    return array.reshape(*lead, math.prod(shape))


def _keys(space: Dict) -> list[Any]:
    keys = sorted(space.spaces, key=str)
    return ["observation", "desired_goal"] if {"observation", "desired_goal"} <= set(keys) else keys


def _parts(space: gymnasium.Space[Any], where: str = "") -> Iterator[tuple[str, gymnasium.Space[Any]]]:
    """Yields the spaces that a space is made of, with what stands in brackets to reach each."""
    if isinstance(space, Dict):
        for key in _keys(space):
            yield from _parts(space[key], f"{where}[{key!r}]")
    elif isinstance(space, Tuple):
        for i, part in enumerate(space.spaces):
            yield from _parts(part, f"{where}[{i}]")
    else:
        yield where, space


def _problem(space: Any) -> str | None:
    """Says why a simple space cannot be a vector of numbers, or nothing."""
    if isinstance(space, Box):
        if space.dtype.kind not in "biuf":
            return f"flowrl needs numbers, not {space.dtype}"
        if len(space.shape) > 2 or (len(space.shape) == 2 and space.dtype == np.uint8):
            return "pixels are not supported yet; flowrl needs a vector of numbers"
        return None
    if isinstance(space, Discrete | MultiDiscrete | MultiBinary):
        return None
    return "flowrl needs a vector of numbers; wrap the environment where it is registered"


def _size(space: Any) -> int:
    if isinstance(space, Discrete):
        return int(space.n)
    if isinstance(space, MultiDiscrete):
        return int(space.nvec.sum())
    return math.prod(space.shape)


def _ones(places: np.ndarray, count: int) -> np.ndarray:
    """Returns rows `[..., count]` with a one at each place `[...]`."""
    if ((places < 0) | (places >= count)).any():
        raise ValueError(f"an observation is {shown(places)}, outside its {count} values")
    return (np.arange(count) == places[..., None]).astype(np.float32)


# --------------------------------------------------------------------------------------------------------- actions


def require_box(space: Any, name: str) -> None:
    """Checks that actions are fractions, and that bounds which are finite leave each of their numbers some room.

    Raises:
        UserError: They are not; the message names the space.
    """
    has = f"{name} has actions {shown(space)}"
    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):
        raise UserError(f"{has}; flowrl needs continuous, bounded ones, a Box of fractions")
    if not 0 < math.prod(space.shape) <= LARGEST:
        raise UserError(f"{has}; flowrl needs at least one number and at most {LARGEST:,}")
    with np.errstate(all="ignore"):
        room = np.float32(space.high.reshape(-1).astype(np.float64) - space.low.reshape(-1))
        flat = np.isfinite(room) & ~((room > 0) & np.isfinite(2 / room))
    if flat.any():
        i = int(np.argmax(flat))
        bounds = f"the bounds {space.low.flat[i]} and {space.high.flat[i]}"
        raise UserError(f"{has}, whose number {i} has {bounds}, so nothing to choose; leave it out by a wrapper")


class Actions:
    """Plays vectors in [-1, 1] in a box of bounded actions.

    Attributes:
        low: Lower bounds `[A]`.
        high: Upper bounds `[A]`.
    """

    def __init__(self, space: Any, name: str):
        """Looks at the space.

        Raises:
            UserError: The actions are not continuous and bounded; the message names the space.
        """
        require_box(space, name)
        self.low, self.high = space.low.reshape(-1), space.high.reshape(-1)
        room = np.float32(self.high.astype(np.float64) - self.low)
        if not np.isfinite(room).all():
            i = int(np.argmin(np.isfinite(room)))
            raise UserError(
                f"{name} has actions {shown(space)}, whose number {i} has no finite bounds; flowrl needs continuous, "
                "bounded ones: give it bounds by a wrapper"
            )
        self._shape, self._dtype = space.shape, space.dtype
        self._wide = self.low.astype(np.float64), self.high.astype(np.float64)
        self.unit = bool((self.low == -1).all() and (self.high == 1).all())
        self._even = bool((self.low == -self.high).all())

    def played(self, action: Any) -> np.ndarray:
        """Returns what is played for an action `[A]` in [-1, 1]: inside the bounds to the last bit, ends on ends."""
        if self.unit:
            pass
        elif self._even:
            action = self.high * np.asarray(action, self._dtype)
        else:
            low, high = self._wide
            share = 0.5 * (np.asarray(action, np.float64) + 1.0)
            action = (low * (1.0 - share) + high * share).astype(self._dtype)
        played: np.ndarray = np.minimum(np.maximum(action, self.low), self.high)
        return played if played.shape == self._shape else played.reshape(self._shape)
