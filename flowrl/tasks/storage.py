""".npz and HDF5 files; what they claim is compared with what they hold before memory is asked for."""

import contextlib
import functools
import math
import tokenize
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from flowrl.errors import UserError
from flowrl.tasks.columns import BLOCK
from flowrl.tasks.fields import DAMAGE, Fields, Header

_DEFLATION = 1100  # bytes that one of a compressed file can become; what deflates cannot become more than 1032
_SPARSE = 1 << 26  # bytes that an HDF5 array may claim without having them stored


class Npz(Fields):
    """An .npz file; each read opens it anew."""

    @functools.cached_property
    def _members(self) -> frozenset[str]:
        try:
            with zipfile.ZipFile(str(self.name)) as archive:
                return frozenset(name for name in archive.namelist() if name.endswith(".npy"))
        except DAMAGE as error:
            raise self.error(f"damaged ({error})") from error

    def names(self, prefix: str = "") -> list[str]:
        """Returns the names of the arrays."""
        found = (name.removesuffix(".npy") for name in self._members)
        return sorted(name.removeprefix(prefix) for name in found if name.startswith(prefix))

    def __contains__(self, field: str) -> bool:
        return f"{field}.npy" in self._members

    @contextlib.contextmanager
    def _opened(self, field: str) -> Iterator[tuple[IO[bytes], zipfile.ZipInfo]]:
        with open(str(self.name), "rb") as file, zipfile.ZipFile(file) as archive:
            info = archive.getinfo(f"{field}.npy")
            with archive.open(info) as member:
                yield member, info

    def _header(self, field: str) -> Header:
        with self._opened(field) as (member, info):
            shape, _, dtype = _described(member)
            claimed = math.prod(shape) * dtype.itemsize
            held = info.file_size - member.tell()
            if info.compress_type == zipfile.ZIP_DEFLATED:
                held = min(held, _DEFLATION * info.compress_size)
            if claimed > held and not dtype.hasobject:  # which are pickled, and never read
                raise OSError(f"it claims to be {shape}, {claimed:,} bytes, and holds {max(0, held):,} at most")
            return Header(shape, dtype)

    def _load(self, field: str) -> Any:
        with self._opened(field) as (member, _):
            return np.lib.format.read_array(member, allow_pickle=False)

    def _blocks(self, field: str) -> Iterator[np.ndarray]:
        with self._opened(field) as (member, _):
            shape, by_columns, dtype = _described(member)
            if not by_columns:
                size = math.prod(shape[1:]) * dtype.itemsize
                for first in range(0, shape[0], BLOCK):
                    rows = min(BLOCK, shape[0] - first)
                    data = member.read(rows * size)
                    if len(data) < rows * size:
                        raise EOFError("it ends early")
                    yield np.frombuffer(data, dtype).reshape(rows, *shape[1:])
                return
        yield from super()._blocks(field)


def _described(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns shape, order (whether columns lie together) and type of an array, and stops where its numbers begin."""
    version = np.lib.format.read_magic(member)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the format is not for numbers")
    try:
        shape, by_columns, dtype = readers[version](member)
    except (SyntaxError, tokenize.TokenError) as error:
        raise ValueError(str(error)) from error
    if any(size < 0 for size in shape):
        raise ValueError(f"it claims to be {shape}")
    return shape, by_columns, dtype


class Hdf5(Fields):
    """An open HDF5 file; fields may lie in groups, `group/field`."""

    def __init__(self, name: object, remedy: str, file: Any):
        super().__init__(name, remedy)
        self.file = file

    def names(self, prefix: str = "") -> list[str]:
        """Returns the names of arrays and groups."""
        group = self.file.get(prefix.rstrip("/") or "/")
        return list(group) if hasattr(group, "keys") else []

    def __contains__(self, field: str) -> bool:
        return field in self.file

    def _array(self, field: str) -> Any:
        stored = self.file[field]
        if not hasattr(stored, "shape"):
            raise ValueError("a group of fields")
        if stored.shape is None:
            raise ValueError("nothing is stored")
        return stored

    def _header(self, field: str) -> Header:
        stored = self._array(field)
        check_stored(stored, Path(str(self.name)))
        return Header(tuple(int(size) for size in stored.shape), stored.dtype)

    def _load(self, field: str) -> Any:
        return self._array(field)[()]

    def _blocks(self, field: str) -> Iterator[np.ndarray]:
        stored = self._array(field)
        for first in range(0, len(stored), BLOCK):
            yield stored[first : first + BLOCK]


def check_stored(stored: Any, path: Path) -> None:
    """Checks that an array of an HDF5 file does not claim far more than the file holds.

    Raises:
        OSError: It does; reading it would fill memory with what was never written.
    """
    if stored.is_virtual or stored.external:
        return  # its numbers lie in other files
    claimed, held = math.prod(stored.shape) * stored.dtype.itemsize, path.stat().st_size
    if claimed > max(_SPARSE, 2 * _DEFLATION * held):
        raise OSError(f"it claims to be {stored.shape}, {claimed:,} bytes, in a file of {held:,}")


class Loaded(Fields):
    """Arrays that are in memory already."""

    def __init__(self, name: object, remedy: str, arrays: Mapping[str, Any]):
        super().__init__(name, remedy)
        self._arrays = arrays

    def names(self, prefix: str = "") -> list[str]:
        """Returns the names of the arrays."""
        return [name.removeprefix(prefix) for name in self._arrays if name.startswith(prefix)]

    def __contains__(self, field: str) -> bool:
        return field in self._arrays

    def _header(self, field: str) -> Header:
        array = np.asarray(self._arrays[field])
        return Header(array.shape, array.dtype)

    def _load(self, field: str) -> Any:
        return self._arrays[field]


@contextlib.contextmanager
def opened(path: Path, remedy: str) -> Iterator[Fields]:
    """Opens an .npz or, by its first bytes or its name, an HDF5 file.

    Raises:
        UserError: There is no such file, it is damaged, or h5py is missing.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; name another with --data=PATH")
    try:
        kind = "hdf5" if is_hdf5(path) else "npz" if zipfile.is_zipfile(path) else ""
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from error
    if not kind:
        raise UserError(f"{path}: damaged or cannot be read: neither a whole .npz nor an HDF5 file; {remedy}")
    if kind == "npz":
        yield Npz(path, remedy)
        return
    library = h5py()
    try:
        file = library.File(path, "r")
    except DAMAGE as error:
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
