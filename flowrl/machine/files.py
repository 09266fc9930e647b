"""Files that are either whole or absent: written under a temporary name, then renamed."""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from flowrl.errors import UserError, remedy


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` on success and removes it on failure.

    Raises:
        UserError: The disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {remedy(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Makes a folder that can be written to.

    Raises:
        UserError: It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {remedy(error)}") from error


def require_space(folder: Path, needed: int) -> None:
    """Checks that `needed` bytes are free where `folder` lies.

    Raises:
        UserError: They are not, or the folder cannot be written to.
    """
    make_folder(folder)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"no disk space in {folder}: {needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free; free space"
        )


@contextlib.contextmanager
def exclusive(lock: Path, holder: str) -> Iterator[None]:
    """Lets one process at a time into the block; others say that they wait for `holder`.

    The lock ends with the process, however that ends. The empty file stays: to remove it would be a race.
    """
    make_folder(lock.parent)
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for {holder} to finish", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
