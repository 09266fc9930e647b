"""Reads single arrays out of .npz and HDF5 files and checks them; messages name file, field, row and remedy."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowrl.errors import UserError

Arrays = dict[str, np.ndarray]
ACTION_LIMIT = 1.0 - 1e-5  # OGBench's clipping, which keeps log-densities of squashed policies finite
ACTION_TOLERANCE = 1e-3  # how far beyond ±1 actions may reach and are clipped
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)


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


class Fields:
    """Named arrays of one file, read and checked one at a time.

    Attributes:
        name: How messages call the file.
        remedy: What messages advise where they know nothing better.
    """

    def __init__(self, name: object, remedy: str):
        self.name, self.remedy = name, remedy

    def __contains__(self, field: str) -> bool:
        raise NotImplementedError

    def _load(self, field: str) -> Any:
        """Returns an array; raises KeyError where it is missing, ValueError or one of `_DAMAGE` where unreadable."""
        raise NotImplementedError

    def error(self, problem: str, remedy: str | None = None) -> UserError:
        """Returns the error that says what is wrong and what to do."""
        return UserError(f"{self.name}: {problem}; {remedy or self.remedy}")

    def raw(self, field: str) -> np.ndarray:
        """Reads an array of numbers or flags as it is; what pickles hold is never read.

        Raises:
            UserError: It is missing, damaged or holds something else.
        """
        try:
            array = np.asarray(self._load(field))
        except KeyError:
            raise self.error(f"the field {field!r} is missing") from None
        except _DAMAGE as error:
            raise self.error(f"{field!r} is damaged or cannot be read ({error})") from error
        except ValueError as error:
            raise self.error(f"{field!r} is not a plain array ({error})") from error
        if array.dtype.kind not in "biuf":
            raise self.error(f"{field!r} holds {array.dtype}, not numbers")
        return array

    def numbers(self, field: str) -> np.ndarray:
        """Reads numbers as float32, in the array they were read into where they are float32 already."""
        array = self.raw(field)
        if array.dtype.kind == "b":
            raise self.error(f"{field!r} holds {array.dtype}, not numbers")
        with np.errstate(over="ignore"):  # what does not fit becomes infinite and is refused for that
            return np.ascontiguousarray(array, dtype=np.float32)

    def flags(self, field: str, rows: int | None = None) -> np.ndarray:
        """Reads flags as booleans `[N]`; a column `[N, 1]` is one too."""
        marks = _vector(self.raw(field))
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
            width: How many columns it must have, where known.
        """
        array = self.numbers(field)
        if array.ndim != 2 or len(array) != rows:
            raise self.error(f"{field!r} has shape {array.shape}, but {rows} rows of numbers are needed, {like}")
        if array.shape[1] == 0 or (width is not None and array.shape[1] != width):
            raise self.error(
                f"{field!r} have size {array.shape[1]}, but the environment's have {width or 'at least 1'}",
                "choose the environment that the file was made for, or another file",
            )
        self.check_finite(field, np.isfinite(array).all(axis=1))
        return array

    def vector(self, field: str, rows: int, like: str) -> np.ndarray:
        """Reads finite numbers, float32 `[rows]`; a column `[rows, 1]` is one too."""
        array = _vector(self.numbers(field))
        if array.ndim != 1 or len(array) != rows:
            raise self.error(f"{field!r} has shape {array.shape}, but {rows} numbers are needed, {like}")
        self.check_finite(field, np.isfinite(array))
        return array

    def check_finite(self, field: str, good: np.ndarray) -> None:
        """Refuses rows that are not `good`."""
        if not good.all():
            raise self.error(f"{field!r} has NaN or infinite values, first in row {int(np.argmin(good))}")

    def actions(
        self, field: str, rows: int, like: str, expected: Expected, tolerance: float = ACTION_TOLERANCE
    ) -> np.ndarray:
        """Reads actions `[rows, A]`, brings them from the expected bounds to [-1, 1] and clips them to ±(1 - 1e-5).

        Raises:
            UserError: They reach further beyond ±1 than `tolerance`, besides what `matrix` refuses.
        """
        array = _rescale(self.matrix(field, rows, like, expected.action_dim), expected)
        largest = max(float(array.max()), -float(array.min())) if array.size else 0.0
        if largest > 1.0 + tolerance:
            row = int(np.argmax(np.abs(array).max(axis=1)))
            if expected.action_low:
                problem = f"reach {largest:.4g} times as far as the environment's action bounds in row {row}"
                raise self.error(f"{field!r} {problem}", "choose the environment that the file was made for")
            problem = f"reach {largest:.4g} in row {row}, outside [-1, 1]"
            raise self.error(f"{field!r} {problem}", "rescale them by the action bounds")
        return np.clip(array, -ACTION_LIMIT, ACTION_LIMIT, out=array)


def _vector(array: np.ndarray) -> np.ndarray:
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


class Loaded(Fields):
    """Arrays that are in memory already."""

    def __init__(self, name: object, remedy: str, arrays: Mapping[str, Any]):
        super().__init__(name, remedy)
        self._arrays = arrays

    def __contains__(self, field: str) -> bool:
        return field in self._arrays

    def _load(self, field: str) -> Any:
        return self._arrays[field]


class Npz(Fields):
    """An .npz file; each read opens it anew."""

    def __contains__(self, field: str) -> bool:
        with contextlib.suppress(*_DAMAGE), zipfile.ZipFile(str(self.name)) as archive:
            return f"{field}.npy" in archive.namelist()
        return False

    def _load(self, field: str) -> Any:
        with (
            open(str(self.name), "rb") as file,
            zipfile.ZipFile(file) as archive,
            archive.open(f"{field}.npy") as member,
        ):
            return np.lib.format.read_array(member, allow_pickle=False)


class Hdf5(Fields):
    """An open HDF5 file; fields may lie in groups, `group/field`."""

    def __init__(self, name: object, remedy: str, file: Any):
        super().__init__(name, remedy)
        self.file = file

    def __contains__(self, field: str) -> bool:
        return field in self.file

    def _load(self, field: str) -> Any:
        if not hasattr(self.file[field], "shape"):
            raise ValueError("a group of fields")
        return self.file[field][()]

    def rows(self, field: str, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Reads some rows, in ascending order, of finite numbers that have this shape, without holding all of them."""
        stored, block, parts = self.file[field], 1 << 16, []
        if not hasattr(stored, "shape") or stored.dtype.kind not in "iuf":
            raise self.error(f"{field!r} holds no numbers")
        if stored.shape != shape:
            raise self.error(f"{field!r} has shape {stored.shape}, but {shape} is needed, as 'observations' have")
        for first in range(0, shape[0], block):
            inside = rows[(rows >= first) & (rows < first + block)]
            if len(inside):
                try:
                    parts.append(stored[first : first + block][inside - first].astype(np.float32))
                except _DAMAGE as error:
                    raise self.error(f"{field!r} is damaged or cannot be read ({error})") from error
        found = np.concatenate(parts) if parts else np.zeros((0, *shape[1:]), np.float32)
        good = np.isfinite(found).all(axis=1)
        if not good.all():
            raise self.error(f"{field!r} has NaN or infinite values, first in row {rows[int(np.argmin(good))]}")
        return found


@contextlib.contextmanager
def opened(path: Path, remedy: str) -> Iterator[Fields]:
    """Opens an .npz or, by its first bytes or its name, an HDF5 file.

    Raises:
        UserError: There is no such file, it is damaged, or h5py is missing.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; name another with --data=PATH, or use --data=auto")
    if not is_hdf5(path):
        yield Npz(path, remedy)
        return
    library = h5py()
    try:
        file = library.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: damaged or not an HDF5 file ({error}); {remedy}") from error
    with file:
        yield Hdf5(path, remedy, file)


def is_hdf5(path: Path) -> bool:
    """Returns whether a file is, or by its name should be, HDF5."""
    with open(path, "rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n" or path.suffix in (".hdf5", ".h5")


def h5py() -> Any:
    """Returns the module h5py.

    Raises:
        UserError: It is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError("HDF5 files need h5py; install it with: pip install -e '.[data]'") from error
    return h5py


def _rescale(actions: np.ndarray, expected: Expected) -> np.ndarray:
    """Brings actions `[N, A]` from finite bounds to [-1, 1], in place; other bounds leave them as they are."""
    low, high = np.array(expected.action_low, np.float32), np.array(expected.action_high, np.float32)
    if not np.isfinite([*low, *high]).all() or ((low == -1).all() and (high == 1).all()):
        return actions
    np.subtract(actions, low, out=actions)
    np.multiply(actions, 2.0 / (high - low), out=actions)
    return np.subtract(actions, np.float32(1.0), out=actions)
