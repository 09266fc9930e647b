"""Reads single arrays out of a file and checks them; messages name file, field, row and remedy."""

import contextlib
import difflib
import math
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from flowrl.errors import UserError
from flowrl.machine.limits import available_memory
from flowrl.tasks.columns import BLOCK, extent, float32, vector

Arrays = dict[str, np.ndarray]
ACTION_LIMIT = 1.0 - 1e-5  # OGBench's clipping, which keeps log-densities of squashed policies finite
ACTION_TOLERANCE = 1e-3  # how far beyond ±1 actions may reach and are clipped
_SMALL = 1 << 24  # bytes of an array that is read without asking for the machine's memory
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)
_SHORT = {
    "observations": ("obs", "states", "state"),
    "next_observations": ("next_obs", "next_states", "next_state"),
    "actions": ("act", "acts"),
    "rewards": ("rew", "rews"),
    "terminals": ("dones", "done"),
}
"""What fields are called elsewhere, where spelling alone does not show it."""


class Expected(NamedTuple):
    """What the environment says about a file that is made for it; empty where nothing is known.

    Attributes:
        observation_dim: Size of its observations.
        action_dim: Size of its actions.
        action_low: Lower bounds `[A]` in which the file holds actions; [-1, 1] where empty.
        action_high: Upper bounds `[A]`.
    """

    observation_dim: int | None = None
    action_dim: int | None = None
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()


class Header(NamedTuple):
    """What a file says of an array before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Reading(NamedTuple):
    """A dataset as it was read.

    Attributes:
        arrays: What training needs, in the layout that `flowrl.tasks.transitions` describes.
        rows: Rows of the file.
        unread: Names of the fields that were not read.
        notes: What people should know about the file, one line each.
    """

    arrays: Arrays
    rows: int
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def told(reading: Reading) -> Reading:
    """Prints what there is to note about a file, and returns what was read."""
    for note in reading.notes:
        print(f"note: {note}", file=sys.stderr, flush=True)
    return reading


class Fields:
    """Named arrays of one file, read and checked one at a time.

    Attributes:
        name: How messages call the file.
        remedy: What messages advise where they know nothing better.
        used: Names of the fields that were read.
        notes: What people should know about the file, one line each.
    """

    def __init__(self, name: object, remedy: str):
        self.name, self.remedy = name, remedy
        self.used: set[str] = set()
        self.notes: list[str] = []

    def names(self, prefix: str = "") -> list[str]:
        """Returns the names of fields, or of those in a group; its name and a slash are the prefix."""
        raise NotImplementedError

    def __contains__(self, field: str) -> bool:
        raise NotImplementedError

    def _header(self, field: str) -> Header:
        """Returns what the file says of an array; raises as `_load` does, also where it says what cannot be."""
        raise NotImplementedError

    def _load(self, field: str) -> Any:
        """Returns an array; raises KeyError where it is missing, ValueError or one of `DAMAGE` where unreadable."""
        raise NotImplementedError

    def _blocks(self, field: str) -> Iterator[np.ndarray]:
        """Yields an array in blocks of `BLOCK` rows; raises as `_load` does."""
        array = np.asarray(self._load(field))
        for first in range(0, len(array), BLOCK):
            yield array[first : first + BLOCK]

    def reading(self, arrays: Arrays, rows: int, optional: Iterable[str] = ()) -> Reading:
        """Returns what has been read, with what has been noted and what has not been read.

        Args:
            arrays: What has been read.
            rows: Rows of the file.
            optional: Fields that would have been read too; a name that is spelt nearly so is noted.
        """
        unread = [name for name in self.names() if name not in self.used]
        for field in optional:
            if field not in self.used and (near := like(field, unread, 0.85)):
                self.notes.append(f"{near!r} is not read; did you mean {field!r}?")
        return Reading(arrays, rows, tuple(unread), tuple(self.notes))

    def error(self, problem: str, remedy: str | None = None) -> UserError:
        """Returns the error that says what is wrong and what to do."""
        return UserError(f"{self.name}: {problem}; {remedy or self.remedy}")

    def missing(self, field: str, remedy: str | None = None) -> UserError:
        """Returns the error that a field is missing, which names the one that may have been meant."""
        group, _, last = field.rpartition("/")
        prefix = f"{group}/" if group else ""
        names = self.names(prefix)
        if remedy is None and (near := like(last, names)):
            remedy = f"did you mean its {prefix + near!r}? rename that to {last!r}"
        elif remedy is None and 0 < len(names) <= 30:
            remedy = f"it has {', '.join(names)}; {self.remedy}"
        return self.error(f"the field {field!r} is missing", remedy)

    @contextlib.contextmanager
    def _explained(self, field: str) -> Iterator[None]:
        """Turns what reading an array raises into a `UserError`."""
        self.used.add(field.partition("/")[0])
        try:
            yield
        except KeyError:
            raise self.missing(field) from None
        except MemoryError as error:
            raise self.error(f"{field!r} does not fit into memory", "use a smaller set") from error
        except DAMAGE as error:
            raise self.error(f"{field!r} is damaged or cannot be read ({error})") from error
        except (ValueError, TypeError) as error:
            raise self.error(f"{field!r} is not a plain array ({error})") from error

    def header(self, field: str) -> Header:
        """Returns shape and type of an array of numbers or flags, which is not read yet.

        Raises:
            UserError: It is missing or damaged, holds something else, or needs more memory than there is.
        """
        header = self.claim(field)
        if header.dtype.hasobject:
            raise self.error(f"{field!r} is not a plain array: it holds Python objects, such as rows of unequal length")
        if header.dtype.kind not in "biuf":
            raise self.error(f"{field!r} holds {header.dtype}, not numbers")
        return header

    def claim(self, field: str) -> Header:
        """Returns shape and type of an array, whatever it holds.

        Raises:
            UserError: It is missing or damaged, or needs more memory than there is.
        """
        with self._explained(field):
            header = self._header(field)
        count = math.prod(header.shape)
        needed = count * header.dtype.itemsize + (0 if header.dtype == np.float32 else 4 * count)
        free = available_memory() if needed > _SMALL else None
        if free is not None and needed > free:
            problem = f"{field!r} has shape {header.shape}: reading it takes {needed / 1e9:,.1f} GB of memory"
            raise self.error(f"{problem}, and {free / 1e9:,.1f} GB are free", "use a smaller set")
        return header

    def raw(self, field: str) -> np.ndarray:
        """Reads an array of numbers or flags as it is; what pickles hold is never read.

        Raises:
            UserError: It is missing, damaged, too large, or holds something else.
        """
        self.header(field)
        with self._explained(field):
            return np.asarray(self._load(field))

    def numbers(self, field: str) -> np.ndarray:
        """Reads numbers as float32, in the array they were read into where they are float32 already."""
        array = self.raw(field)
        if array.dtype.kind == "b":
            raise self.error(f"{field!r} holds {array.dtype}, not numbers")
        with self._explained(field):
            return float32(array)

    def flags(self, field: str, rows: int | None = None) -> np.ndarray:
        """Reads flags as booleans `[N]`; a column `[N, 1]` is one too."""
        marks = vector(self.raw(field))
        if marks.ndim != 1 or (rows is not None and len(marks) != rows):
            needed = "one flag per row is" if rows is None else f"{rows} flags, one per row, are"
            raise self.error(f"{field!r} has shape {marks.shape}, but {needed} needed")
        wrong = ~((marks == 0) | (marks == 1))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise self.error(f"{field!r} is {marks[row]} in row {row}, but only 0 and 1 are allowed")
        return marks.astype(bool)

    def matrix(self, field: str, rows: int, like: str, width: int | None = None) -> np.ndarray:
        """Reads finite numbers, float32 `[rows, width]`.

        Args:
            field: Its name.
            rows: How many rows it must have.
            like: Which field says so, in words.
            width: How many columns it must have, where known; rows of that many numbers in another shape are
                flattened.
        """
        array = self.numbers(field)
        if array.ndim != 2 and width and array.shape[:1] == (rows,) and array.size == rows * width:
            array = array.reshape(rows, width)
        if array.ndim != 2 or len(array) != rows:
            turned = "transpose it" if array.ndim == 2 and array.shape[1] == rows else None
            raise self.error(
                f"{field!r} has shape {array.shape}, but {rows} rows of numbers are needed, {like}", turned
            )
        if array.shape[1] == 0 or (width is not None and array.shape[1] != width):
            raise self.error(
                f"{field!r} have size {array.shape[1]}, but the environment's have {width or 'at least 1'}",
                "choose the environment that the file was made for, or another file",
            )
        if not np.isfinite(extent(array)).all():
            raise self.not_finite(field, int(np.argmin(np.isfinite(array).all(axis=1))))
        return array

    def vector(self, field: str, rows: int, like: str) -> np.ndarray:
        """Reads finite numbers, float32 `[rows]`; a column `[rows, 1]` is one too."""
        array = vector(self.numbers(field))
        if array.ndim != 1 or len(array) != rows:
            raise self.error(f"{field!r} has shape {array.shape}, but {rows} numbers are needed, {like}")
        good = np.isfinite(array)
        if not good.all():
            raise self.not_finite(field, int(np.argmin(good)))
        return array

    def not_finite(self, field: str, row: int) -> UserError:
        """Returns the error that a row, the first of its kind, is not finite as float32."""
        if np.isfinite(self.raw(field)[row]).all():
            return self.error(
                f"{field!r} holds numbers too large for 32-bit floats, first in row {row}", "rescale them"
            )
        return self.error(f"{field!r} has NaN or infinite values, first in row {row}")

    def actions(
        self, field: str, rows: int, like: str, expected: Expected, tolerance: float = ACTION_TOLERANCE
    ) -> np.ndarray:
        """Reads actions `[rows, A]`, brings them from the expected bounds to [-1, 1] and clips them to ±(1 - 1e-5).

        Raises:
            UserError: They reach further beyond ±1 than `tolerance`, besides what `matrix` refuses.
        """
        array = self.matrix(field, rows, like, expected.action_dim or len(expected.action_low) or None)
        self._rescale(field, array, expected)
        low, high = extent(array)
        largest = float(np.maximum(high, -low).max()) if rows else 0.0
        if not largest <= 1.0 + tolerance:
            row = int(np.argmax(np.abs(array).max(axis=1)))
            if expected.action_low:
                problem = f"reach {largest:.4g} times as far as the environment's action bounds in row {row}"
                raise self.error(f"{field!r} {problem}", "choose the environment that the file was made for")
            problem = f"reach {largest:.4g} in row {row}, outside [-1, 1]"
            raise self.error(f"{field!r} {problem}", "rescale them by the action bounds")
        if largest > 1.0 + ACTION_TOLERANCE:
            beyond = int(np.count_nonzero(np.abs(array) > 1.0))
            self.notes.append(f"{beyond:,} of {array.size:,} numbers of {field!r} lie beyond ±1 and were clipped")
        return np.clip(array, -ACTION_LIMIT, ACTION_LIMIT, out=array)

    def _rescale(self, field: str, array: np.ndarray, expected: Expected) -> None:
        """Brings actions `[N, A]` in place from bounds to [-1, 1]; a component that its bounds fix becomes 0.

        Raises:
            UserError: Some bounds, but not all, are infinite, or a fixed component has another value.
        """
        low, high = np.array(expected.action_low, np.float64), np.array(expected.action_high, np.float64)
        finite = np.isfinite(low) & np.isfinite(high)
        if not finite.any() or ((low == -1).all() and (high == 1).all()):
            return
        bad = ~finite | (high < low)
        if bad.any():
            c = int(np.argmax(bad))
            problem = f"{field!r} cannot be brought to [-1, 1]: component {c} has the bounds {low[c]} and {high[c]}"
            raise self.error(problem, "wrap the environment so that every component has finite bounds")
        half, centre = high / 2 - low / 2, high / 2 + low / 2
        fixed, width = half == 0, np.where(half == 0, np.maximum(1.0, np.abs(low)), half)
        for first in range(0, len(array), BLOCK):
            block = array[first : first + BLOCK]
            scaled = (block - centre) / width
            moved = np.abs(scaled * fixed) > ACTION_TOLERANCE
            if moved.any():
                row, c = (int(i) for i in np.argwhere(moved)[0])
                problem = f"{field!r} has {block[row, c]:g} as component {c} in row {first + row}"
                fix = f"but the environment's bounds fix it at {low[c]:g}"
                raise self.error(f"{problem}, {fix}", "choose the environment that the file was made for")
            block[:] = np.where(fixed, 0.0, scaled)

    def blocks(self, field: str, shape: tuple[int, int]) -> Iterator[np.ndarray]:
        """Yields numbers of this shape as float32, some rows `[n, D]` at a time; they may be infinite or NaN.

        Raises:
            UserError: They are missing, damaged, or of another shape.
        """
        header = self.header(field)
        if header.shape[:1] != shape[:1] or math.prod(header.shape) != math.prod(shape):
            raise self.error(f"{field!r} has shape {header.shape}, but {shape} is needed, as 'observations' have")
        found = self._blocks(field)
        while True:
            with self._explained(field):
                block = next(found, None)
                if block is None:
                    return
                block = float32(block.reshape(-1, shape[1]))
            yield block


def like(word: str, names: list[str], cutoff: float = 0.6) -> str | None:
    """Returns which of a file's names may mean a field, as they are spelt or called elsewhere."""
    lower = {name.lower(): name for name in names if name not in _SHORT}
    short = [name for name in _SHORT.get(word, ()) if name in lower]
    near = short or difflib.get_close_matches(word, lower, n=1, cutoff=cutoff)
    return lower[near[0]] if near else None
