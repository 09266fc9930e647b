"""D4RL's datasets: where they are, how their HDF5 files are read, and their normalised scores."""

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from flowrl.collection import mujoco_sets
from flowrl.errors import UserError
from flowrl.tasks import download, sources
from flowrl.tasks import ends as marks
from flowrl.tasks.fields import ACTION_TOLERANCE, Arrays, Expected, Fields, Reading, told
from flowrl.tasks.sources import Source
from flowrl.tasks.storage import Hdf5, h5py, opened
from flowrl.tasks.task import Task
from flowrl.tasks.transitions import OPTIONAL, REMEDY, lay_out

FIELDS = ("observations", "actions", "rewards", "terminals")
MIRROR = "https://huggingface.co/datasets/imone/D4RL/resolve/main"
_HOST = "https://rail.eecs.berkeley.edu/datasets/offline_rl"
_OWN_CLIPPING = 1.0  # tolerance where the environment itself clips actions to ±1, so that clipping changes nothing


class Set(NamedTuple):
    """One D4RL dataset.

    Attributes:
        url: Where its HDF5 file was published.
        env_id: The Gymnasium environment that its policies are evaluated in, or None where none is known to be equal.
        note: What people must know about that environment, or empty.
        observation_dim: Size of an observation as it is read.
        action_dim: Size of an action.
        random_return: Mean return of a random policy, score 0.
        expert_return: Mean return of an expert, score 100.
        limit: Steps after which D4RL's environment ends an episode, where a file does not mark timeouts.
        minari: Minari's set for the same task, with an environment of its own, or empty. D4RL's names mean D4RL's data
            replayed there, the others data collected anew.
        unused: Observed numbers that the file holds beyond `observation_dim` and nothing reads.
        tolerance: How far beyond ±1 actions may reach and are clipped.
    """

    url: str
    env_id: str | None
    note: str
    observation_dim: int
    action_dim: int
    random_return: float
    expert_return: float
    limit: int
    minari: str = ""
    unused: int = 0
    tolerance: float = ACTION_TOLERANCE


def _gym() -> dict[str, Set]:
    """Gym-MuJoCo, version 2 of the data."""
    bodies = {  # environment, observation, action, unused, random return, expert return
        "halfcheetah": ("HalfCheetah", 17, 6, 0, -280.178953, 12135.0),
        "hopper": ("Hopper", 11, 3, 0, -20.272305, 3234.3),
        "walker2d": ("Walker2d", 17, 6, 0, 1.629008, 4592.3),
        "ant": ("Ant", 27, 8, 84, -325.6, 3879.7),
    }
    sets = {}
    for body, (env, observation_dim, action_dim, unused, low, high) in bodies.items():
        note = f"the data are of {env}-v2, evaluated on Gymnasium's {env}-v4"
        if unused:
            note += ", which does not observe contact forces; they are left out"
        for kind in ("random", "medium", "expert", "medium-replay", "medium-expert", "full-replay"):
            sets[f"{body}-{kind}-v2"] = Set(
                url=f"{_HOST}/gym_mujoco_v2/{body}_{kind.replace('-', '_')}-v2.hdf5",
                env_id=f"{env}-v4",
                note=note,
                observation_dim=observation_dim,
                action_dim=action_dim,
                random_return=low,
                expert_return=high,
                limit=1000,
                minari=f"mujoco/{body}/{kind}-v0" if kind in ("medium", "expert") else "",
                unused=unused,
            )
    return sets


def _antmaze() -> dict[str, Set]:
    """AntMaze, version 2 of the data: what the mazes and their starts and goals are called in file names."""
    kinds = {
        "umaze": ("u-maze", False, False),
        "umaze-diverse": ("u-maze", True, True),
        "medium-play": ("big-maze", True, False),
        "medium-diverse": ("big-maze", True, True),
        "large-play": ("hardest-maze", True, False),
        "large-diverse": ("hardest-maze", True, True),
    }
    sets = {}
    for kind, (maze, starts, goals) in kinds.items():
        file = f"Ant_maze_{maze}_noisy_multistart_{starts}_multigoal_{goals}_sparse_fixed.hdf5"
        limit, minari = 700 if maze == "u-maze" else 1000, f"D4RL/antmaze/{kind}-v1"
        url, note = f"{_HOST}/ant_maze_v2/{file}", _no_environment(minari)
        sets[f"antmaze-{kind}-v2"] = Set(url, None, note, 29, 8, 0.0, 1.0, limit, minari)
    return sets


def _kitchen() -> dict[str, Set]:
    """Franka kitchen."""
    files = {
        "complete": "mini_kitchen_microwave_kettle_light_slider",
        "partial": "kitchen_microwave_kettle_light_slider",
        "mixed": "kitchen_microwave_kettle_bottomburner_light",
    }
    sets = {}
    for kind, file in files.items():
        url, minari = f"{_HOST}/kitchen/{file}-v0.hdf5", f"D4RL/kitchen/{kind}-v2"
        note = _no_environment(minari)
        sets[f"kitchen-{kind}-v0"] = Set(url, None, note, 60, 9, 0.0, 4.0, 280, minari, tolerance=_OWN_CLIPPING)
    return sets


def _adroit() -> dict[str, Set]:
    """Adroit hand, version 1 of the data."""
    tasks = {  # observation, action, random return, expert return, limit
        "pen": (45, 24, 96.262799, 3076.8331017826877, 100),
        "door": (39, 28, -56.512833, 2880.5693087298737, 200),
        "hammer": (46, 26, -274.856578, 12794.134825156867, 200),
        "relocate": (39, 30, -6.425911, 4233.877797728884, 200),
    }
    sets = {}
    for task, facts in tasks.items():
        for kind in ("human", "cloned", "expert"):
            name, minari = f"{task}-{kind}-v1", f"D4RL/{task}/{kind}-v2"
            url, note = f"{_HOST}/hand_dapg_v1/{name}.hdf5", _no_environment(minari)
            sets[name] = Set(url, None, note, *facts, minari=minari, tolerance=_OWN_CLIPPING)
    return sets


def _no_environment(minari: str) -> str:
    return f"flowrl has no environment for D4RL's own data; minari:{minari} is the task with one"


SETS: dict[str, Set] = {**_gym(), **_antmaze(), **_kitchen(), **_adroit()}


def urls(name: str) -> list[str]:
    """Returns where a dataset's file may be had, in the order to try: D4RL's own server, then a mirror."""
    url = SETS[name].url
    return [url, f"{MIRROR}/{url.rsplit('/', 1)[-1]}"]


def normalized_score(name: str, returns: np.ndarray) -> np.ndarray:
    """Returns D4RL's score of returns `[...]`: 0 for a random policy, 100 for an expert.

    Raises:
        UserError: D4RL has no such dataset.
    """
    if name not in SETS:
        raise UserError(f"D4RL has no dataset {name!r}, so it has no normalised score; name one as `hopper-medium-v2`")
    known = SETS[name]
    return 100.0 * (np.asarray(returns) - known.random_return) / (known.expert_return - known.random_return)


@dataclasses.dataclass(frozen=True, kw_only=True)
class D4RL(Task):
    """One of D4RL's datasets."""

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Resolves the name of a set."""
        if name not in SETS:
            return None
        return cls(name=name, env_id=SETS[name].env_id, dataset=name, note=SETS[name].note)

    @classmethod
    def names(cls) -> Iterable[str]:
        """Returns the names of the sets."""
        return SETS

    def _own(self, data: str, workers: int | None) -> Source:
        if data == "collected":
            raise sources.uncollectable(self.name, f"{self._ours_instead()}use --data=auto, or ")
        path = sources.cache_root() / "d4rl" / f"{self.dataset}.hdf5"
        if not path.exists():
            h5py()  # before a download that could not be read
            check = functools.partial(download.check_hdf5, fields=FIELDS)
            sources.fetch(path, urls(self.dataset), check, f"{self._ours_instead()}use ")
        return sources.of_file(path, "official", f"official download, {path}")

    def _ours_instead(self) -> str:
        """Names the set of our own that is made after this one, for messages."""
        ours = self.dataset.removesuffix("-v2")
        return f"train on flowrl's own set with --env={mujoco_sets.PREFIX}{ours}, " if ours in mujoco_sets.NAMES else ""

    def _file_names(self) -> tuple[str, ...]:
        return (f"{self.dataset}.hdf5", SETS[self.dataset].url.rsplit("/", 1)[-1])

    def _examined(self, source: Source, expected: Expected, remedy: str) -> Reading:
        if source.path.suffix == ".npz":  # a file of the user's own
            return super()._examined(source, expected, remedy)
        return examine(source.path, self.dataset, remedy)

    @property
    def unevaluated(self) -> str:
        """Why policies cannot be evaluated here, or empty."""
        return self.note if self.env_id is None else ""

    def score(self, returns: np.ndarray) -> np.ndarray:
        """Returns D4RL's scores of returns `[...]`."""
        return normalized_score(self.dataset, returns)


def read(path: Path, name: str) -> Arrays:
    """Returns the arrays that `examine` does, and prints what there is to note."""
    return told(examine(path, name)).arrays


def examine(path: Path, name: str, remedy: str = REMEDY) -> Reading:
    """Reads a D4RL file: the transitions of D4RL's own Q-learning dataset, apart from those that cross episodes.

    Timeouts are no terminations: the transition at one is dropped, and so is the file's last. Where a file does not
    mark timeouts, episodes end at the environment's limit; steps count from each episode's start (D4RL counts one too
    many after a termination, which would let a transition cross episodes). An episode also ends where
    `next_observations` are not the next row's; that transition leads to them. Actions are clipped to ±(1 - 1e-5).

    Args:
        path: An HDF5 file.
        name: The dataset's name.
        remedy: What messages advise where they know nothing better.

    Returns:
        `observations`, `actions`, `rewards`, `masks` float32 and `terminals` bool, `[N, ...]`, in the layout that
        `flowrl.tasks.transitions` describes; `masks` are 0 where the episode truly ended.

    Raises:
        UserError: The file is missing, damaged, or not this dataset.
    """
    known = SETS[name]
    with opened(path, remedy) as file:
        if not isinstance(file, Hdf5):
            raise file.error("not an HDF5 file")
        terminated = marks.terminations(file)
        rows, like = len(terminated), "as many as 'terminals' has"
        if rows == 0:
            raise file.error("'terminals' leaves no transition, since there are no rows")
        expected = Expected(known.observation_dim + known.unused, known.action_dim)
        observations = file.matrix("observations", rows, like, expected.observation_dim)
        timeouts = _timeouts(file, terminated, known)
        kept, ends = ~timeouts, timeouts | terminated
        if "next_observations" in file:
            unmarked, finals = marks.successors(file, observations, ends, wanted=kept & ends)
            ends |= unmarked
        else:
            finals = observations[kept & ends]
            marks.note_jumps(file, observations, ends)
        marks.check_other_names(file, ends)
        arrays = {
            "observations": observations[:, : known.observation_dim],
            "actions": file.actions("actions", rows, like, expected, known.tolerance),
            "rewards": file.vector("rewards", rows, like),
            "masks": 1 - terminated.astype(np.float32),
        }
        laid = lay_out(file, arrays, kept, ends, finals[:, : known.observation_dim])
        return file.reading(laid, rows, OPTIONAL[:2])


def _timeouts(file: Fields, terminated: np.ndarray, known: Set) -> np.ndarray:
    """Returns which rows are the last before a timeout, as the file marks them or else by the limit of steps."""
    marked = marks.truncations(file, len(terminated))
    if marked is None:
        file.notes.append(f"'timeouts' are missing: an episode ends after {known.limit:,} steps")
        marked = limits(terminated, known.limit)
    elif known.env_id is not None and "next_observations" not in file:  # other sets go beyond the limit
        over = limits(terminated | marked, known.limit) & ~terminated & ~marked
        if over.any():
            row, count = int(np.argmax(over)), int(np.count_nonzero(over))
            file.notes.append(f"an episode is ended in row {row} and {count - 1:,} more, after {known.limit:,} steps")
        marked = marked | over
    marked[-1] = True
    return marked


def limits(terminated: np.ndarray, limit: int) -> np.ndarray:
    """Returns which rows are the last that a limit of steps allows, given where episodes `terminated`: bool `[N]`."""
    firsts = np.concatenate([[0], np.flatnonzero(terminated) + 1])
    rows = np.arange(len(terminated))
    steps = rows - firsts[np.searchsorted(firsts, rows, side="right") - 1]
    return steps % limit == limit - 1
