"""The folder of a run or a sweep: what its files are called, and which process it belongs to."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from flowrl.errors import UserError
from flowrl.machine.files import make_folder

LOCK = ".lock"
"""The file in a run folder by which one process claims it."""

CONFIG = "config.json"
"""The file in a run folder by which a run is told apart, repeated and continued."""

SUMMARY = "summary.json"
"""The file in a run folder, or in that of a sweep, that is written when all is done."""

CHECKPOINTS = "checkpoints"
"""The folder in a run folder that holds its checkpoints."""

DIVERGED = "diverged.json"
"""The file in a run folder that says where its runs diverged."""

SWEEP = "sweep.json"
"""The file in the folder of a sweep that says what it consists of."""


@contextlib.contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing to the same run folder; the claim ends with the process.

    Temporary files that a killed process has left are removed.

    Raises:
        UserError: Another process has it.
    """
    with open(folder / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK)):
                raise BlockingIOError  # its owner has just taken the folder away
        except (BlockingIOError, FileNotFoundError) as error:
            raise UserError(f"another process is running in {folder}; wait for it, or choose another folder") from error
        for left in folder.glob(".*.tmp"):
            if left.is_file():
                left.unlink()
        yield


@contextlib.contextmanager
def claiming(folder: Path) -> Iterator[None]:
    """Makes a run folder and owns it; what nothing was written to is taken away again, with folders made for it.

    Raises:
        UserError: It cannot be written to, or another process has it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    with sole_owner(folder):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if made and unused(folder):
                    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
                    (folder / LOCK).unlink()
                    for path in made:
                        path.rmdir()


def unused(folder: Path) -> bool:
    """Whether a folder holds nothing but what a program leaves that is killed before it has written anything down."""
    others = {path.name for path in folder.iterdir()} - {LOCK}
    return not others or (others == {CHECKPOINTS} and not any((folder / CHECKPOINTS).glob("*")))
