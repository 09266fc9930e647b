"""Where a dataset comes from (a download, a collection here, a file) and how it is read."""

import difflib
import functools
import hashlib
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import gymnasium

from flowrl import envs
from flowrl.data import behaviours, collect, d4rl, description, download, transitions
from flowrl.data.fields import Arrays, Expected, Reading, told
from flowrl.data.storage import h5py
from flowrl.errors import UserError
from flowrl.machine import files

# Tried in this order; OGBench's own server, then a mirror.
HOSTS = (
    "https://rail.eecs.berkeley.edu/datasets/ogbench",
    "https://huggingface.co/datasets/zhouzypaul/ogbench_datasets/resolve/main",
)
FIELDS = ("observations", "actions", "terminals")
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


def cache_root() -> Path:
    """Returns the folder of datasets: the environment variable FLOWRL_DATA, or `~/.cache/flowrl`."""
    return Path(os.environ.get("FLOWRL_DATA") or "~/.cache/flowrl").expanduser()


def _cache(kind: str) -> Path:
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


def locate(env: envs.EnvName, data: str, *, workers: int | None = None) -> Source:
    """Finds the training data of a name, downloading or collecting it where needed.

    Args:
        env: Which dataset.
        data: `none`, `official` (cache or download), `collected` (cache or collection here), `auto` (what
            is in the cache, else a download, else a collection), or the path of a file or of a folder that holds it.
        workers: Processes of a collection.

    Raises:
        UserError: There is no such file, or it can be had in none of these ways.
    """
    if data == "none":
        return NONE
    if not data:
        raise UserError(f"--data= is empty; give a file, a folder, or one of {', '.join(WORDS)}")
    if data not in ("auto", "official", "collected"):
        return _given(env, data)
    if env.family == "ogbench":
        return _locate_ogbench(env, data, workers)
    if env.family == "collected":
        return _locate_collected(env, data, workers)
    if data == "collected":
        raise UserError(
            f"flowrl cannot collect data for {env.name}; {_ours_instead(env)}{_others(env)}--data=PATH for a file "
            "you have"
        )
    if env.family == "d4rl":
        return _locate_d4rl(env)
    if env.family == "minari":
        from flowrl.data import minari_sets

        folder = minari_sets.folder(env.dataset)
        return Source(folder, "official", f"Minari dataset {env.dataset}, {folder}", _hash(folder))
    raise UserError(
        f"{env.name} has no dataset of its own; give a file with --data=PATH (docs/data.md says which fields it needs)"
    )


def _others(env: envs.EnvName) -> str:
    return "use " if env.family == "gymnasium" else "use --data=auto, or "


def _ours_instead(env: envs.EnvName) -> str:
    """Names the set of our own that is made after a set of D4RL, for messages."""
    name = f"collected:{env.dataset.removesuffix('-v2')}"
    return f"train on flowrl's own set with --env={name}, " if name in envs.collected_names() else ""


def _locate_ogbench(env: envs.EnvName, data: str, workers: int | None) -> Source:
    official = cache_root() / "official" / f"{env.dataset}.npz"
    collected = cache_root() / "collected" / f"{env.dataset}.npz"
    if data == "official" or (data == "auto" and official.exists()):
        _download_ogbench(env, official)
        return _source(official, "official", f"official download, {official}")
    if data == "auto" and not collected.exists():
        try:
            _download_ogbench(env, official)
            return _source(official, "official", f"official download, {official}")
        except UserError as error:
            if not _collectable(env):
                raise
            print(f"{error}\ncollecting {_base(env).name} here instead", file=sys.stderr, flush=True)
    if not collected.exists():
        collect.collect(_base(env).name, _cache("collected"), workers=workers)
    hint = "; --data=official downloads the official set" if data == "auto" else ""
    return _source(collected, "collected", f"{_collected_detail(collected)}{hint}")


def _locate_collected(env: envs.EnvName, data: str, workers: int | None) -> Source:
    if data == "official":
        raise UserError(f"{env.name} is flowrl's own, with no official file; use --data=collected")
    path = cache_root() / "collected" / f"{env.dataset}.npz"
    if not path.exists():
        collect.collect(env.name, _cache("collected"), workers=workers)
    return _source(path, "collected", _collected_detail(path))


def _base(env: envs.EnvName) -> envs.EnvName:
    """Returns the goal-conditioned dataset that a single task or another form of goals is made from."""
    return envs.parse(env.dataset)


def _locate_d4rl(env: envs.EnvName) -> Source:
    path = cache_root() / "d4rl" / f"{env.dataset}.hdf5"
    if not path.exists():
        h5py()  # before a download that could not be read
        check = functools.partial(download.check_hdf5, fields=d4rl.FIELDS)
        _download(path, d4rl.urls(env.dataset), check, f"{_ours_instead(env)}use ")
    return _source(path, "official", f"official download, {path}")


def _given(env: envs.EnvName, data: str) -> Source:
    """Returns the file, or the dataset's file in the folder, that the user names."""
    path = Path(data).expanduser()
    if env.family == "minari":
        return _given_minari(env, path)
    if path.is_dir():
        candidates = [path / name for name in _file_names(env)]
        path = next((candidate for candidate in candidates if candidate.is_file()), candidates[0])
    if not path.is_file():
        raise UserError(f"--data={data}: there is no file {path}; {_meant(data, path)}")
    ours = collect.provenance(path) is not None
    return _source(path, "file", _collected_detail(path) if ours else f"file {path}")


def _meant(data: str, path: Path) -> str:
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


def _given_minari(env: envs.EnvName, path: Path) -> Source:
    """Returns the Minari dataset in a folder: the dataset's own, one that holds it, or anything inside of it."""
    given, path = path, path.absolute()
    for candidate in (path, path / env.dataset, *path.parents[:2]):
        if (candidate / "data" / "metadata.json").is_file():
            return Source(candidate, "file", f"Minari dataset {candidate}", _hash(candidate))
    near = "" if path.exists() else f"; {_meant(str(given), given)}"
    raise UserError(
        f"--data={given}: there is no Minari dataset; give its folder, the one with data/metadata.json{near}"
    )


def _file_names(env: envs.EnvName) -> list[str]:
    """Returns what the dataset's file may be called in a folder."""
    if env.family in ("ogbench", "collected"):
        return [f"{env.dataset}.npz"]
    if env.family == "d4rl":
        return [f"{env.dataset}.hdf5", d4rl.SETS[env.dataset].url.rsplit("/", 1)[-1]]
    return ["main_data.hdf5", "data.npz", "data.hdf5"]


def _source(path: Path, origin: str, detail: str) -> Source:
    try:
        return Source(path, origin, detail, collect.sha256(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; see who may read it") from error


def _hash(folder: Path) -> str:
    """Returns one hash of all files of a folder, their names included."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()} {collect.sha256(path)}\n".encode())
    return total.hexdigest()


def _collected_detail(path: Path) -> str:
    """Returns the line on a collected file; it never claims more than the record beside it proves."""
    made = collect.provenance(path)
    if made is None:
        return f"collected by flowrl (not the official download), but changed since or without its record, {path}"
    episodes = f"{made['train']} of {made['published_episodes']} {made.get('unit', 'episodes')}, seed {made['seed']}"
    return f"collected by flowrl (not the official download), {episodes}, {path}"


def _collectable(env: envs.EnvName) -> bool:
    try:
        behaviours.recipe(_base(env))
    except UserError:
        return False
    return True


def _download_ogbench(env: envs.EnvName, target: Path) -> None:
    ours = "use --data=collected to make it here, or " if _collectable(env) else "use "
    urls = [f"{host}/{target.name}" for host in HOSTS]
    _download(target, urls, functools.partial(download.check_npz, fields=FIELDS), ours)


def _download(target: Path, urls: Sequence[str], check: Callable[[Path], None], others: str) -> None:
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
    _cache(target.parent.name)
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


# ----------------------------------------------------------------------------------------------------- reading


def read(
    source: Source,
    env: envs.EnvName,
    *,
    observation_dim: int | None = None,
    action_dim: int | None = None,
    action_low: Sequence[float] = (),
    action_high: Sequence[float] = (),
) -> Arrays:
    """Returns the arrays that `examine` does, and prints what there is to note."""
    expected = Expected(observation_dim, action_dim, tuple(action_low), tuple(action_high))
    return told(examine(source, env, expected)).arrays


def examine(source: Source, env: envs.EnvName, expected: Expected) -> Reading:
    """Reads and checks the fields that training needs, and no others.

    Args:
        source: A dataset on disk.
        env: What it is read for.
        expected: Sizes of the environment's observations and actions, where known, and the bounds of its own actions,
            in which a user's own file holds them; those of other files are in [-1, 1] or carry their bounds.

    Returns:
        `observations` float32 `[N, D]`; `actions` float32 `[N, A]`, clipped to ±(1 - 1e-5); `terminals` bool `[N]`,
        true on the last row of each episode, which has no transition. For a single task `rewards` and `masks` float32
        `[N]` besides; for compact goals `oracle_reps` float32 `[N, G]`. The notes also say what is implausible.

    Raises:
        UserError: The file is missing, damaged, or not such a dataset.
    """
    reading = _examined(source, env, expected)
    doubts = description.doubts(reading.arrays, limit=_limit(env), bounds=env.family in ("gymnasium", "minari"))
    return reading._replace(notes=(*reading.notes, *doubts))


def _examined(source: Source, env: envs.EnvName, expected: Expected) -> Reading:
    remedy = REMEDIES.get(source.origin, transitions.REMEDY)
    if env.family == "ogbench":
        from flowrl.data import ogbench_sets

        return ogbench_sets.examine(source.path, env, expected, remedy, doubtful=source.origin == "file")
    if env.family == "minari":
        from flowrl.data import minari_sets

        return minari_sets.examine(source.path, expected)
    if env.family == "d4rl" and source.path.suffix != ".npz":
        return d4rl.examine(source.path, env.dataset, remedy)
    return transitions.examine(source.path, expected, remedy)


def _limit(env: envs.EnvName) -> int | None:
    """Returns the steps after which an environment that is registered with Gymnasium ends an episode, where known."""
    if env.family not in ("gymnasium", "collected"):
        return None
    given = dict(env.kwargs)
    spec = given.get("spec") or gymnasium.registry.get(env.env_id or "")
    return given.get("max_episode_steps") or getattr(spec, "max_episode_steps", None)
