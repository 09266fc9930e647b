"""Collects datasets here, OGBench's by their published procedure, with several processes and without losing work.

Every episode is a function of (seed, episode index) alone, so the result depends neither on the number of processes
nor on interruptions. Blocks of episodes are stored as they are finished; the same call continues where one stopped.
"""

import datetime
import functools
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowrl.collection import experts
from flowrl.collection.recipes import Recipe
from flowrl.envs import making
from flowrl.envs.episodes import SeededEpisodes
from flowrl.envs.processes import interrupts_held, leave_to_parent
from flowrl.errors import UserError
from flowrl.machine import files
from flowrl.machine.progress import Progress
from flowrl.machine.provenance import git_commit, usable_cores, versions

_BLOCK_ROWS = 5_000  # rows per stored block: well under a second of point maze


class Job(NamedTuple):
    """One collection: episodes 0 … train-1 make the training file, train … train+validation-1 the other."""

    env: str
    seed: int
    train: int
    validation: int


class Block(NamedTuple):
    """Consecutive episodes `first` … `stop`-1 that are stored together."""

    first: int
    stop: int


def collect(
    recipe: Recipe, out: Path, *, episodes: int | None = None, seed: int = 0, workers: int | None = None
) -> Path:
    """Collects a dataset into `out`/<dataset>.npz with <dataset>-val.npz and <dataset>.json beside it.

    Starts processes, so a script that calls this needs the usual `if __name__ == "__main__":`. Returns at once where
    the same collection is already there.

    Args:
        recipe: How, as a task's `recipe` says it.
        out: Folder, made if absent.
        episodes: Training episodes; the published number where None. A tenth (at least one) is added for validation.
        seed: Any number from 0.
        workers: Processes; one per available core where None. The result does not depend on it.

    Returns:
        The path of the training file.

    Raises:
        UserError: A number is out of range; another file has the name; the disk is full; a process died.
    """
    for label, value, least in (("episodes", episodes, 1), ("seed", seed, 0), ("workers", workers, 1)):
        if value is not None and value < least:
            raise UserError(f"{label} must be at least {least}, not {value}")
    train = recipe.episodes if episodes is None else episodes
    job = Job(recipe.name, seed, train, max(1, train // 10))
    with files.exclusive(out / f".{recipe.dataset}.lock", f"another collection of {recipe.name}"):
        target, parts = out / f"{recipe.dataset}.npz", out / f"{recipe.dataset}.parts"
        if not _finished(target, job, recipe):
            _prepare(parts, job, recipe)
            _run(parts, job, recipe, workers or usable_cores())
            _merge(parts, target, job, recipe)
        shutil.rmtree(parts, ignore_errors=True)
    return target


def blocks(job: Job, length: int) -> list[Block]:
    """Cuts a job into blocks; no block holds episodes of both files, and the cut depends on the job alone."""
    # At least sixteen blocks where there are as many episodes, so that several processes have work.
    size = max(1, min(_BLOCK_ROWS // length, (job.train + job.validation) // 16))
    ranges = ((0, job.train), (job.train, job.train + job.validation))
    return [Block(first, min(first + size, stop)) for start, stop in ranges for first in range(start, stop, size)]


def play(env: SeededEpisodes, recipe: Recipe, seed: int, episode: int) -> dict[str, np.ndarray]:
    """Plays one episode, which (seed, episode) fixes, and returns its fields, one row per step."""
    for attempt in itertools.count():
        fields = recipe.play(env, recipe, [seed, episode] + ([attempt] if attempt else []))
        if recipe.accept is None or recipe.accept(fields):
            return fields
    raise AssertionError


# ---------------------------------------------------------------------------------------------------- processes


def _run(parts: Path, job: Job, recipe: Recipe, workers: int) -> None:
    """Collects the blocks that are missing; on an interruption lets the blocks in flight finish."""
    todo = [block for block in blocks(job, recipe.length) if not _part(parts, block).exists()]
    total = (job.train + job.validation) * recipe.length
    missing = sum(block.stop - block.first for block in todo) * recipe.length
    if not todo:
        return
    pool = ProcessPoolExecutor(min(workers, len(todo)), multiprocessing.get_context("spawn"), _initialise)
    try:
        with Progress(f"collect {job.env}", "row", total, total - missing) as bar:
            with interrupts_held():  # the first ones start processes
                futures = [pool.submit(_collect_block, parts, job, recipe, block) for block in todo]
            for future in as_completed(futures):
                bar.advance(future.result())
    except BrokenProcessPool as error:
        raise UserError(
            "a collecting process died: memory may be short (try fewer --workers), or a script calls collect without "
            "`if __name__ == '__main__':`; the same call continues"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _initialise() -> None:
    """Leaves signals to stop to the parent, and makes this process end when the parent does, however that ends."""
    leave_to_parent((signal.SIGINT, signal.SIGTERM))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _collect_block(parts: Path, job: Job, recipe: Recipe, block: Block) -> int:
    """Plays and stores one block in a worker process; returns its number of rows."""
    env = _environment(recipe.env_id, recipe.length, recipe.env_kwargs)
    episodes = [play(env, recipe, job.seed, episode) for episode in range(block.first, block.stop)]
    merged = {field: np.concatenate([episode[field] for episode in episodes]) for field in episodes[0]}
    with files.replacing(_part(parts, block)) as temporary, open(temporary, "wb") as file:
        np.savez(file, **merged)  # type: ignore[arg-type]
    return len(merged["terminals"])


@functools.cache
def _environment(env_id: str, length: int, kwargs: tuple[tuple[str, Any], ...]) -> SeededEpisodes:
    return making.make(env_id, max_episode_steps=length, **dict(kwargs))


# -------------------------------------------------------------------------------------------------------- parts


def _part(parts: Path, block: Block) -> Path:
    return parts / f"{block.first:06d}-{block.stop:06d}.npz"


def _prepare(parts: Path, job: Job, recipe: Recipe) -> None:
    """Makes the folder of parts; throws away those that another seed, length or version has made."""
    identity = {"job": job._asdict(), "versions": versions("ogbench", "mujoco", "gymnasium", "numpy")}
    identity |= _expert(recipe)
    record = parts / "job.json"
    if not record.exists() or json.loads(record.read_text()) != identity:
        shutil.rmtree(parts, ignore_errors=True)
        with files.replacing(record) as temporary:
            temporary.write_text(json.dumps(identity, indent=1))
    # Parts and merged files lie side by side for a while; what the parts hold already need not be free any more.
    stored = sum(part.stat().st_size for part in parts.glob("*.npz"))
    rows = (job.train + job.validation) * recipe.length
    files.require_space(parts, 2 * rows * recipe.row_bytes - stored)


def _finished(target: Path, job: Job, recipe: Recipe) -> bool:
    """Returns whether `target` is this very collection.

    Raises:
        UserError: The file is there but is something else.
    """
    if not target.exists():
        return False
    made = provenance(target)
    wanted = job._asdict() | _expert(recipe)
    if made is not None and {key: made.get(key) for key in wanted} == wanted:
        return True
    what = "is no collection of flowrl"
    if made is not None:
        what = f"has {made.get('train')} episodes of seed {made.get('seed')}"
        what += f" by {made['expert']}" if made.get("expert") != wanted.get("expert") else ""
    raise UserError(f"{target} exists and {what}; move it, or choose another folder with --out")


def provenance(target: Path) -> dict[str, Any] | None:
    """Returns the record beside a file that flowrl has collected, or None where there is none for this very file."""
    record = target.with_suffix(".json")
    try:
        made = json.loads(record.read_text())
        return made if made["sha256"][target.name] == files.sha256(target) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _merge(parts: Path, target: Path, job: Job, recipe: Recipe) -> None:
    """Joins the parts into the two files; the training file appears last, so that where it is, all is."""
    members: dict[str, list[Path]] = {f"{target.stem}-val.npz": [], target.name: []}
    for block in blocks(job, recipe.length):
        members[target.name if block.first < job.train else f"{target.stem}-val.npz"].append(_part(parts, block))
    try:
        with Progress("compress", "part", len(recipe.fields) * sum(map(len, members.values()))) as bar:
            rows = {
                name: _write_npz(parts / f"{name}.tmp", members[name], recipe.fields, bar.advance) for name in members
            }
        hashes = {name: files.sha256(parts / f"{name}.tmp") for name in members}
        with files.replacing(target.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(_record(job, recipe, rows, hashes), indent=1) + "\n")
        for name in members:
            os.replace(parts / f"{name}.tmp", target.parent / name)
    except OSError as error:
        what = error.strerror or error
        raise UserError(f"cannot write {target}: {what}; free space, then the same call continues") from error


def _write_npz(target: Path, members: list[Path], fields: Mapping[str, type], advance: Callable[[int], None]) -> int:
    """Writes what `np.savez_compressed` would, one part at a time; returns the number of rows."""
    rows = 0
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for field, dtype in fields.items():
            shapes = [array.shape for array in _arrays(members, field)]
            rows = sum(shape[0] for shape in shapes)
            descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
            header = {"descr": descr, "fortran_order": False, "shape": (rows, *shapes[0][1:])}
            entry = zipfile.ZipInfo(f"{field}.npy")  # without the time of day: equal content, equal file
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for array in _arrays(members, field):
                    file.write(array.tobytes())
                    advance(1)
    return rows


def _arrays(members: list[Path], field: str) -> Iterator[np.ndarray]:
    for member in members:
        with np.load(member) as part:
            yield part[field]


# --------------------------------------------------------------------------------------------------- provenance


def _expert(recipe: Recipe) -> dict[str, Any]:
    """Returns which policies act, if shipped ones do."""
    if not recipe.expert:
        return {}
    expert = f"flowrl's own {recipe.expert}, {files.sha256(experts.path(recipe.expert))}"
    return {"expert": expert} | ({"policies": [*recipe.policies]} if recipe.policies else {})


def _record(job: Job, recipe: Recipe, rows: dict[str, int], hashes: dict[str, str]) -> dict[str, Any]:
    """Returns what the provenance file says."""
    return {
        "made": f"collected by flowrl, {recipe.procedure}, not the official download",
        **job._asdict(),
        "behaviour": recipe.kind,
        "noise": recipe.noise,
        "steps_per_episode": recipe.length,
        "published_episodes": recipe.episodes,
        "unit": recipe.unit,
        "rows": rows,
        "versions": versions("ogbench", "mujoco", "gymnasium", "numpy"),
        "git_commit": git_commit(),
        **_expert(recipe),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "sha256": hashes,
    }
