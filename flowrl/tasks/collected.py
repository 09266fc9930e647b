"""flowrl's own datasets of Gymnasium's MuJoCo tasks, made after D4RL's: `collected:hopper-medium`."""

import dataclasses
from collections.abc import Iterable
from typing import Self

import numpy as np

from flowrl.collection import collect, mujoco_sets
from flowrl.collection.recipes import Recipe
from flowrl.errors import UserError, suggestion
from flowrl.tasks import d4rl, sources
from flowrl.tasks.sources import Source
from flowrl.tasks.task import Task, registered_limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collected(Task):
    """A set that flowrl collects in one of Gymnasium's MuJoCo tasks; the dataset is what stands after `collected:`."""

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Resolves the name of a MuJoCo set of our own.

        Raises:
            UserError: There is no set of that name.
        """
        if not name.startswith(mujoco_sets.PREFIX):
            return None
        dataset = name.removeprefix(mujoco_sets.PREFIX)
        if dataset not in mujoco_sets.NAMES:
            raise UserError(f"unknown dataset {name!r}{suggestion(name, cls.names())}")
        env_id = mujoco_sets.BODIES[mujoco_sets.NAMES[dataset].body]
        note = "scores by D4RL's reference returns, which are of version 2"
        return cls(name=name, env_id=env_id, dataset=dataset, note=note)

    @classmethod
    def names(cls) -> Iterable[str]:
        """Returns the names of the sets."""
        return [f"{mujoco_sets.PREFIX}{dataset}" for dataset in mujoco_sets.NAMES]

    @property
    def published(self) -> str:
        """The set of D4RL that it is made after."""
        return f"{self.dataset}-v2"

    def recipe(self) -> Recipe:
        """Returns how the set is collected.

        Raises:
            UserError: flowrl ships no policies of that body.
        """
        return mujoco_sets.recipe(self.dataset)

    def _own(self, data: str, workers: int | None) -> Source:
        if data == "official":
            raise UserError(f"{self.name} is flowrl's own, with no official file; use --data=collected")
        path = sources.cache_root() / "collected" / f"{self.dataset}.npz"
        if not path.exists():
            collect.collect(self.recipe(), sources.cache("collected"), workers=workers)
        return sources.of_file(path, "collected", sources.collected_detail(path))

    def _file_names(self) -> tuple[str, ...]:
        return (f"{self.dataset}.npz",)

    def _limit(self) -> int | None:
        return registered_limit(self)

    def score(self, returns: np.ndarray) -> np.ndarray:
        """Returns D4RL's scores of returns `[...]`."""
        return d4rl.normalized_score(self.published, returns)
