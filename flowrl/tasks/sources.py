"""Where datasets lie on this machine: the cache, files that users name, and downloads."""

import difflib
import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from flowrl.collection import collect
from flowrl.errors import UserError
from flowrl.machine import files
from flowrl.tasks import download

WORDS = ("auto", "official", "collected", "none")
REMEDIES = {
    "official": "delete the file, and run again to download it anew",
    "collected": "delete the file, and run again to collect it anew",
}
"""What messages on a file of the cache advise; a file of the user's own is never to be deleted."""


class Source(NamedTuple):
    """A dataset on disk.

    Attributes:
        path: The file, or the folder of a Minari dataset.
        origin: `official` (downloaded), `collected` (by flowrl), `file` (given by the user) or `none`.
        detail: One line for people.
        sha256: Of the file or of the folder's files, in hexadecimal.
    """

    path: Path
    origin: str
    detail: str
    sha256: str


NONE = Source(Path("none"), "none", "none; the agent learns from its own experience alone", "")


def of_file(path: Path, origin: str, detail: str) -> Source:
    """Returns a file as a source.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return Source(path, origin, detail, files.sha256(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; see who may read it") from error


def of_folder(folder: Path, origin: str, detail: str) -> Source:
    """Returns a folder as a source, with one hash of all its files, their names included."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()} {files.sha256(path)}\n".encode())
    return Source(folder, origin, detail, total.hexdigest())


def cache_root() -> Path:
    """Returns the folder of datasets: the environment variable FLOWRL_DATA, or `~/.cache/flowrl`."""
    return Path(os.environ.get("FLOWRL_DATA") or "~/.cache/flowrl").expanduser()


def cache(kind: str) -> Path:
    """Returns a folder of the cache into which something is about to be written.

    Raises:
        UserError: It cannot be.
    """
    try:
        files.make_folder(cache_root())
    except UserError as error:
        problem = f"datasets cannot be kept in {cache_root()}: {error.__cause__}"
        raise UserError(f"{problem}; set FLOWRL_DATA to a folder that can be written to") from error
    return cache_root() / kind


def given(data: str, names: Sequence[str]) -> Source:
    """Returns the file, or the dataset's file in the folder, that the user names.

    Args:
        data: The path.
        names: What the file may be called in a folder.

    Raises:
        UserError: There is none; the message names what may have been meant.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        candidates = [path / name for name in names]
        path = next((candidate for candidate in candidates if candidate.is_file()), candidates[0])
    if not path.is_file():
        raise UserError(f"--data={data}: there is no file {path}; {meant(data, path)}")
    ours = collect.provenance(path) is not None
    return of_file(path, "file", collected_detail(path) if ours else f"file {path}")


def meant(data: str, path: Path) -> str:
    """Returns the remedy where there is no such file: the word, file or folder that may have been meant."""
    if os.sep not in data and (near := difflib.get_close_matches(data.lower(), WORDS, n=1)):
        return f"did you mean {near[0]}?"
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    wrong = path.absolute().relative_to(folder).parts[0]
    try:
        names = sorted(found.name for found in itertools.islice(folder.iterdir(), 10_000))
    except OSError:
        names = []
    near = difflib.get_close_matches(wrong, names, n=1)
    if near:
        return f"did you mean {folder / near[0]}?"
    files_there = [name for name in names if name.endswith((".npz", ".hdf5", ".h5"))] if data else []
    if 0 < len(files_there) <= 10:
        return f"{folder} has {', '.join(files_there)}"
    return f"give the path of a file or folder that exists, or one of {', '.join(WORDS)}"


def collected_detail(path: Path) -> str:
    """Returns the line on a collected file; it never claims more than the record beside it proves."""
    made = collect.provenance(path)
    if made is None:
        return f"collected by flowrl (not the official download), but changed since or without its record, {path}"
    episodes = f"{made['train']} of {made['published_episodes']} {made.get('unit', 'episodes')}, seed {made['seed']}"
    return f"collected by flowrl (not the official download), {episodes}, {path}"


def uncollectable(name: str, others: str) -> UserError:
    """Returns the error that flowrl cannot collect data of its own; `others` is offered before `--data=PATH`."""
    return UserError(f"flowrl cannot collect data for {name}; {others}--data=PATH for a file you have")


def fetch(target: Path, urls: Sequence[str], check: Callable[[Path], None], others: str) -> None:
    """Downloads a file from the first host that delivers it, unless it is there.

    Args:
        target: Where it is to be.
        urls: Where it may be had.
        check: Raises DownloadError where a file is not what was wanted.
        others: What a message offers before `--data=PATH`.

    Raises:
        UserError: No host could deliver it.
    """
    if target.exists():
        return
    cache(target.parent.name)
    with files.exclusive(target.with_name(f".{target.name}.lock"), f"another download of {target.name}"):
        if target.exists():
            return
        reasons = []
        for url in urls:
            try:
                download.fetch(url, target, check)
                break
            except download.DownloadError as error:
                reasons.append(str(error))
        else:
            raise UserError(
                f"cannot download {target.name} ({'; '.join(reasons)}); {others}--data=PATH for a file you have"
            )
        for leftover in target.parent.glob(f".{target.name}.*.part*"):
            leftover.unlink()
