"""Files that are either whole or absent: written under a temporary name, then renamed."""

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flowrl.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` on success and removes it on failure.

    Raises:
        UserError: The disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def require_space(folder: Path, needed: int) -> None:
    """Checks that `needed` bytes are free where `folder` lies.

    Raises:
        UserError: They are not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"no disk space in {folder}: {needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free; "
            "free space or choose another folder"
        )


@contextlib.contextmanager
def exclusive(lock: Path, holder: str) -> Iterator[None]:
    """Lets one process at a time into the block; others say that they wait for `holder`.

    The lock ends with the process, however that ends. The empty file stays: to remove it would be a race.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for {holder} to finish", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
