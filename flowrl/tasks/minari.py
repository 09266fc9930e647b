"""Minari's datasets, read through the package `minari`, and the environments they belong to.

Observations become vectors as `flowrl.envs.spaces` says, as they do where policies are evaluated. Actions are brought
from the bounds of the dataset's action space to [-1, 1].
"""

import dataclasses
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import gymnasium
import numpy as np

from flowrl.envs import spaces
from flowrl.errors import UserError
from flowrl.tasks import sources
from flowrl.tasks.fields import DAMAGE, Arrays, Expected, Reading, told
from flowrl.tasks.sources import Source
from flowrl.tasks.storage import Hdf5, Loaded, opened
from flowrl.tasks.task import Task
from flowrl.tasks.transitions import EPISODE_FIELDS, ends_amid, episode, join, note_ends_amid

_ID = re.compile(r"(?:[-\w]+/)*[-\w]+?-v\d+")


class Environment(NamedTuple):
    """Where policies trained on a dataset are evaluated.

    Attributes:
        env_id: The id registered with Gymnasium.
        kwargs: What `flowrl.envs.making.make` is called with besides: the set's own specification, with all wrappers.
        module: The module whose import registers the id, such as `gymnasium_robotics`, or empty.
    """

    env_id: str
    kwargs: dict[str, Any]
    module: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Minari(Task):
    """A dataset of Minari's, which says itself in which environment policies are evaluated; the dataset is its id."""

    bounded: ClassVar[bool] = True

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Resolves `minari:` and the id of a dataset."""
        if not name.startswith("minari:"):
            return None
        return cls(name=name, env_id=None, dataset=name.removeprefix("minari:"))

    @classmethod
    def names(cls) -> Iterable[str]:
        """Returns nothing: what there is, is for Minari to say."""
        return ()

    def _own(self, data: str, workers: int | None) -> Source:
        if data == "collected":
            raise sources.uncollectable(self.name, "use --data=auto, or ")
        path = folder(self.dataset)
        return sources.of_folder(path, "official", f"Minari dataset {self.dataset}, {path}")

    def _given(self, data: str) -> Source:
        """Returns the dataset in a folder: the dataset's own, one that holds it, or anything inside of it."""
        given = Path(data).expanduser()
        path = given.absolute()
        for candidate in (path, path / self.dataset, *path.parents[:2]):
            if (candidate / "data" / "metadata.json").is_file():
                return sources.of_folder(candidate, "file", f"Minari dataset {candidate}")
        near = "" if path.exists() else f"; {sources.meant(str(given), path)}"
        raise UserError(
            f"--data={given}: there is no Minari dataset; give its folder, the one with data/metadata.json{near}"
        )

    def _examined(self, source: Source, expected: Expected, remedy: str) -> Reading:
        return examine(source.path, expected)

    def evaluated(self, source: Source) -> Self:
        """Returns the task with the environment that the dataset names.

        Raises:
            UserError: It names none.
        """
        found = environment(source.path)
        if found is None:
            raise UserError(f"{self.name} names no environment; train only, with --eval.episodes=0")
        kwargs = found.kwargs | dict(self.kwargs)
        return dataclasses.replace(self, env_id=found.env_id, kwargs=tuple(kwargs.items()), module=found.module)


def folder(dataset_id: str) -> Path:
    """Returns where a dataset lies on this machine: in MINARI_DATASETS_PATH, or `~/.minari/datasets`.

    Raises:
        UserError: Minari is not installed, the id is none, or the dataset is not there.
    """
    if not _ID.fullmatch(dataset_id):
        raise UserError(f"minari:{dataset_id} is no id of a Minari set; name one as minari:mujoco/hopper/medium-v0")
    _package()
    from minari.storage.datasets_root_dir import get_dataset_path

    found = Path(get_dataset_path(dataset_id))
    if not (found / "data").is_dir():
        raise UserError(f"there is no Minari dataset in {found}; get it with: minari download {dataset_id}")
    return found


def read(path: Path, expected: Expected | None = None) -> Arrays:
    """Returns the arrays that `examine` does, and prints what there is to note."""
    return told(examine(path, expected)).arrays


def examine(path: Path, expected: Expected | None = None) -> Reading:
    """Reads a Minari dataset.

    Args:
        path: Its folder, as `folder` returns it.
        expected: What the environment says about it; the dataset's own space says what bounds actions have.

    Returns:
        `observations`, `actions`, `rewards`, `masks` float32 and `terminals` bool, `[N, ...]`, in the layout that
        `flowrl.tasks.transitions` describes; `masks` are 0 where an episode terminated, not where it was truncated.

    Raises:
        UserError: Minari is not installed; the dataset is damaged or not of continuous observations and actions.
    """
    dataset = _load(path)
    space, seen, known = dataset.action_space, dataset.observation_space, expected or Expected()
    remedy = "flowrl needs vectors of numbers for observations and actions; choose another dataset"
    spaces.require_box(space, str(path))
    spaces.observation_size(seen, str(path))
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    if known.action_low and not (_equal(low, known.action_low) and _equal(high, known.action_high)):
        raise UserError(
            f"{path}: actions are of {spaces.shown(space)}, but its environment's from {list(known.action_low)} to "
            f"{list(known.action_high)}; train only, with --eval.episodes=0"
        )
    bounds = known._replace(action_low=tuple(low.tolist()), action_high=tuple(high.tolist()))
    _check_claims(path, dataset.id)
    parts, amid, unread = [], [], set()
    try:
        for found in dataset.iterate_episodes():
            fields = {name: getattr(found, name) for name in EPISODE_FIELDS}
            fields["observations"] = spaces.vector(seen, found.observations)
            fields["actions"] = np.reshape(found.actions, (-1, len(low)))
            unread |= {f"infos/{name}" for name in found.infos or {}}
            one = Loaded(f"{path}, episode {found.id}", remedy, fields)
            parts.append(episode(one, "", bounds))
            amid += [f"episode {found.id}: {end}" for end in ends_amid(one, "")]
    except (*DAMAGE, KeyError, AssertionError, ValueError, MemoryError) as error:
        raise UserError(f"{path}: an episode is damaged or cannot be read ({error}); {_anew(dataset.id)}") from error
    whole = Loaded(path, remedy, {})
    note_ends_amid(whole, amid)
    rows = sum(len(part["actions"]) for part in parts)
    return whole.reading(join(whole, parts), rows)._replace(unread=tuple(sorted(unread)))


def _anew(dataset_id: str) -> str:
    return f"a published set is got anew with: minari download --force {dataset_id}"


def _check_claims(path: Path, dataset_id: str) -> None:
    """Looks at what arrays of an HDF5 dataset claim to be, before Minari asks for their memory.

    Raises:
        UserError: One of them cannot be what it claims, or does not fit into memory.
    """
    stored = path / "data" / "main_data.hdf5"
    if not stored.is_file():
        return
    with opened(stored, _anew(dataset_id)) as file:
        assert isinstance(file, Hdf5)
        names: list[str] = []
        file.file.visititems(lambda name, found: names.append(name) if hasattr(found, "shape") else None)
        for name in names:
            file.claim(name)


def _equal(bounds: np.ndarray, others: tuple[float, ...]) -> bool:
    return bounds.shape == np.shape(others) and np.allclose(bounds, others)


def environment(path: Path) -> Environment | None:
    """Returns where policies are evaluated, or None where the dataset does not name an environment.

    Raises:
        UserError: Minari is not installed, or the dataset is damaged.
    """
    dataset = _load(path)
    spec = getattr(dataset, "_eval_env_spec", None) or dataset.env_spec  # what recover_environment(eval_env=True) reads
    if spec is None:
        return None
    module = str(spec.entry_point).split(".")[0].split(":")[0]
    return Environment(spec.id, {"spec": spec}, "" if spec.id in gymnasium.registry else module)


def _load(path: Path) -> Any:
    minari = _package()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on versions of packages that only the environment needs
            return minari.MinariDataset(path / "data")
    except ImportError as error:  # of what its format needs
        raise UserError(f"{path}: {str(error).strip()}") from error
    except (OSError, KeyError, AssertionError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: damaged, or not a Minari dataset ({type(error).__name__}: {error}); {_anew('ID')}"
        ) from error


def _package() -> Any:
    try:
        import minari
    except ImportError as error:
        raise UserError("Minari's datasets need minari; install it with: pip install -e '.[minari]'") from error
    return minari
