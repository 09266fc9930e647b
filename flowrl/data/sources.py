"""Where a dataset comes from (a download, a collection here, a file) and how it is read."""

import os
import sys
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowrl import envs, files
from flowrl.data import behaviours, collect, download
from flowrl.errors import UserError, suggestion

# Tried in this order; OGBench's own server, then a mirror.
HOSTS = (
    "https://rail.eecs.berkeley.edu/datasets/ogbench",
    "https://huggingface.co/datasets/zhouzypaul/ogbench_datasets/resolve/main",
)
FIELDS = ("observations", "actions", "terminals")
ACTION_LIMIT = 1.0 - 1e-5  # OGBench's clipping, which keeps log-densities of squashed policies finite
_REMEDY = "mend the file, or delete it and run again to download or collect it anew"


class Source(NamedTuple):
    """A dataset on disk.

    Attributes:
        path: The .npz file.
        origin: `official` (downloaded), `collected` (by flowrl) or `file` (given by the user).
        detail: One line for people.
        sha256: Of the file, in hexadecimal.
    """

    path: Path
    origin: str
    detail: str
    sha256: str


def cache_root() -> Path:
    """Returns the folder of datasets: the environment variable FLOWRL_DATA, or `~/.cache/flowrl`."""
    return Path(os.environ.get("FLOWRL_DATA") or "~/.cache/flowrl").expanduser()


def locate(env: envs.EnvName, data: str, *, workers: int | None = None) -> Source:
    """Finds the training file of a dataset, downloading or collecting it where needed.

    Args:
        env: Which dataset.
        data: `official` (cache or download), `collected` (cache or collection here), `auto` (what is in the cache, else
            a download, else a collection), or the path of a file or of a folder that holds `<dataset>.npz`.
        workers: Processes of a collection.

    Raises:
        UserError: There is no such file, or it can be had in none of these ways.
    """
    if data not in ("auto", "official", "collected"):
        return _given(env, data)
    official = cache_root() / "official" / f"{env.dataset}.npz"
    collected = cache_root() / "collected" / f"{env.dataset}.npz"
    if data == "official" or (data == "auto" and official.exists()):
        _download(env, official)
        return _source(official, "official", f"official download, {official}")
    if data == "auto" and not collected.exists():
        try:
            _download(env, official)
            return _source(official, "official", f"official download, {official}")
        except UserError as error:
            if not _collectable(env):
                raise
            print(f"{error}\ncollecting {env.name} here instead", file=sys.stderr, flush=True)
    if not collected.exists():
        collect.collect(env.name, collected.parent, workers=workers)
    hint = "; --data=official downloads the official set" if data == "auto" else ""
    return _source(collected, "collected", f"{_collected_detail(collected)}{hint}")


def _given(env: envs.EnvName, data: str) -> Source:
    """Returns the file, or the dataset's file in the folder, that the user names."""
    path = Path(data).expanduser()
    if path.is_dir():
        path = path / f"{env.dataset}.npz"
    if not path.is_file():
        near = suggestion(data, ("auto", "official", "collected"))
        raise UserError(f"--data={data}: there is no file {path}{near}, or the path of a file or folder that exists")
    ours = collect.provenance(path) is not None
    return _source(path, "file", _collected_detail(path) if ours else f"file {path}")


def _source(path: Path, origin: str, detail: str) -> Source:
    return Source(path, origin, detail, collect.sha256(path))


def _collected_detail(path: Path) -> str:
    """Returns the line on a collected file; it never claims more than the record beside it proves."""
    made = collect.provenance(path)
    if made is None:
        return f"collected by flowrl (not the official download), but changed since or without its record, {path}"
    episodes = f"{made['train']} of {made['published_episodes']} episodes, seed {made['seed']}"
    return f"collected by flowrl (not the official download), {episodes}, {path}"


def _collectable(env: envs.EnvName) -> bool:
    try:
        behaviours.recipe(env)
    except UserError:
        return False
    return True


def _download(env: envs.EnvName, target: Path) -> None:
    """Downloads the official file unless it is there.

    Raises:
        UserError: No host could deliver it.
    """
    if target.exists():
        return
    with files.exclusive(target.with_name(f".{target.name}.lock"), f"another download of {target.name}"):
        if target.exists():
            return
        reasons = []
        for host in HOSTS:
            try:
                download.fetch_npz(f"{host}/{target.name}", target, FIELDS)
                break
            except download.DownloadError as error:
                reasons.append(str(error))
        else:
            ours = "use --data=collected to make it here, or " if _collectable(env) else "use "
            raise UserError(
                f"cannot download {target.name} ({'; '.join(reasons)}); {ours}--data=PATH for a file you have"
            )
        for leftover in target.parent.glob(f".{target.name}.*.part*"):
            leftover.unlink()


# ----------------------------------------------------------------------------------------------------- reading


def read(path: Path, *, observation_dim: int | None = None, action_dim: int | None = None) -> dict[str, np.ndarray]:
    """Reads and checks the fields that training needs, and no others.

    Args:
        path: An .npz file in OGBench's format: one row per step, the last of each episode marked in `terminals`.
        observation_dim: Size D that the environment's observations have, where known.
        action_dim: Size A that its actions have, where known.

    Returns:
        `observations` float32 [N, D]; `actions` float32 [N, A], clipped to ±(1 - 1e-5); `terminals` bool [N].

    Raises:
        UserError: The file is missing, damaged, or not such a dataset.
    """
    observations, actions, marks = (_field(path, field) for field in FIELDS)
    terminals = _flags(path, marks)
    for field, array in (("observations", observations), ("actions", actions)):
        if array.ndim != 2 or len(array) != len(terminals):
            raise UserError(
                f"{path}: {field!r} has shape {array.shape}, but {len(terminals)} rows of numbers are needed, "
                f"as many as 'terminals' has; {_REMEDY}"
            )
    _check_width(path, "observations", observations, observation_dim)
    _check_width(path, "actions", actions, action_dim)
    if terminals.all():
        raise UserError(f"{path}: 'terminals' leaves no transition, since every row ends an episode; {_REMEDY}")
    if not terminals[-1]:
        raise UserError(f"{path}: 'terminals' is not set on the last row; mark the last row of the last episode")
    _check_finite(path, "observations", observations)
    _check_finite(path, "actions", actions)
    largest = max(float(actions.max()), -float(actions.min()))
    if largest > 1.0 + 1e-3:
        raise UserError(f"{path}: 'actions' reach {largest:.4g}, outside [-1, 1]; rescale them by the action bounds")
    np.clip(actions, -ACTION_LIMIT, ACTION_LIMIT, out=actions)
    return {"observations": observations, "actions": actions, "terminals": terminals}


def _field(path: Path, field: str) -> np.ndarray:
    """Reads one field; numbers become float32, in the array they were read into where they are float32 already."""
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive, archive.open(f"{field}.npy") as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name another with --data=PATH, or use --data=auto") from None
    except KeyError:
        raise UserError(f"{path}: the field {field!r} is missing; {_REMEDY}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise UserError(f"{path}: {field!r} is damaged or cannot be read ({error}); {_REMEDY}") from error
    except ValueError as error:
        raise UserError(f"{path}: {field!r} is not a plain array ({error}); {_REMEDY}") from error
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "b" and field != "terminals"):
        raise UserError(f"{path}: {field!r} holds {array.dtype}, not numbers; {_REMEDY}")
    if field == "terminals":
        return array
    with np.errstate(over="ignore"):  # what does not fit becomes infinite and is refused for that
        return np.ascontiguousarray(array, dtype=np.float32)


def _flags(path: Path, marks: np.ndarray) -> np.ndarray:
    """Returns `terminals` as booleans [N]."""
    if marks.ndim != 1:
        raise UserError(f"{path}: 'terminals' has shape {marks.shape}, but one flag per row is needed; {_REMEDY}")
    if not ((marks == 0) | (marks == 1)).all():
        row = int(np.argmin((marks == 0) | (marks == 1)))
        raise UserError(f"{path}: 'terminals' is {marks[row]} in row {row}, but only 0 and 1 are allowed; {_REMEDY}")
    return marks.astype(bool)


def _check_width(path: Path, field: str, array: np.ndarray, expected: int | None) -> None:
    if array.shape[1] == 0 or (expected is not None and array.shape[1] != expected):
        needs = "at least 1" if expected is None else expected
        raise UserError(
            f"{path}: {field!r} have size {array.shape[1]}, but the environment's have {needs}; "
            "choose the environment that the file was made for, or another file"
        )


def _check_finite(path: Path, field: str, array: np.ndarray) -> None:
    good = np.isfinite(array).all(axis=1)
    if not good.all():
        raise UserError(f"{path}: {field!r} has NaN or infinite values, first in row {int(np.argmin(good))}; {_REMEDY}")
