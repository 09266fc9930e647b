"""OGBench's datasets: their names, where their files are, and the goals or single task that a name asks for."""

import dataclasses
import functools
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Self

from flowrl.collection import collect, manipulation, mazes
from flowrl.collection.recipes import Recipe
from flowrl.envs.episodes import SeededEpisodes
from flowrl.errors import UserError
from flowrl.tasks import download, ogbench_sets, sources
from flowrl.tasks.fields import Expected, Reading
from flowrl.tasks.sources import Source
from flowrl.tasks.task import Task

# Tried in this order; OGBench's own server, then a mirror.
HOSTS = (
    "https://rail.eecs.berkeley.edu/datasets/ogbench",
    "https://huggingface.co/datasets/zhouzypaul/ogbench_datasets/resolve/main",
)
FIELDS = ("observations", "actions", "terminals")
_SETS = (
    ("pointmaze", ("medium", "large", "giant", "teleport"), ("navigate", "stitch")),
    ("antmaze", ("medium", "large", "giant", "teleport"), ("navigate", "stitch")),
    ("antmaze", ("medium", "large", "teleport"), ("explore",)),
    ("humanoidmaze", ("medium", "large", "giant"), ("navigate", "stitch")),
    ("antsoccer", ("arena", "medium"), ("navigate", "stitch")),
    ("cube", ("single", "double", "triple", "quadruple"), ("play", "noisy")),
    ("scene", ("",), ("play", "noisy")),
    ("puzzle", ("3x3", "4x4", "4x5", "4x6"), ("play", "noisy")),
)
"""Bodies, sizes and kinds of the sets of states."""
_UNSEEN = ("pointmaze", "antsoccer")
"""Bodies without sets of pixels."""
STATES = frozenset(
    "-".join(filter(None, (body, size, kind))) for body, sizes, kinds in _SETS for size in sizes for kind in kinds
)
"""Names of the sets of states, without versions."""
PIXELS = frozenset(f"visual-{name}" for name in STATES if not name.startswith(_UNSEEN))
PIXELS |= {f"powderworld-{size}-play" for size in ("easy", "medium", "hard")}
"""Names of the sets of pixels."""
_SINGLE_TASK = re.compile(r"(?P<stem>.+)-singletask(?P<task>-task[1-5])?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OGBench(Task):
    """A dataset of OGBench, for reaching goals or for one of its single tasks.

    The dataset is the stem of its file, `cube-single-play-v0`.
    """

    cameras: ClassVar[tuple[str | None, ...]] = (None,)  # which shows a whole maze

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Resolves the name of a dataset, with or without `-v0`, `-singletask…` and `-oraclerep`.

        Raises:
            UserError: It is a set of pixels, or of a task that there is not.
        """
        stem = name.removesuffix("-v0")
        single, oracle = _SINGLE_TASK.fullmatch(stem), stem.endswith("-oraclerep")
        data = single["stem"] if single else stem.removesuffix("-oraclerep")
        if data in PIXELS:
            raise UserError(f"environment {name!r}: pixel observations are not supported yet; use a state-based set")
        if data not in STATES:
            known, asked, _ = stem.partition("-singletask-")
            if asked and known in STATES | PIXELS:
                raise UserError(f"unknown environment {name!r}; its tasks are {known}-singletask-task1 to -task5")
            return None
        body = data.rpartition("-")[0]
        suffix = f"-singletask{single['task'] or ''}" if single else ""
        return cls(
            name=stem,
            env_id=f"{body}{suffix}-v0",
            dataset=f"{data}-v0",
            goals="none" if single else "oracle" if oracle else "state",
            kwargs=(("use_oracle_rep", True),) if oracle else (),
        )

    @classmethod
    def names(cls) -> Iterable[str]:
        """Returns the names of the datasets."""
        return STATES | PIXELS

    @property
    def data(self) -> str:
        """The dataset without its version; it is that of all its single tasks and forms of goals."""
        return self.dataset.removesuffix("-v0")

    @property
    def published(self) -> str:
        """The name without the form of the goals, on which settings do not depend."""
        return self.name.removesuffix("-oraclerep")

    def recipe(self) -> Recipe:
        """Returns how the dataset is collected here, by OGBench's published procedure.

        Raises:
            UserError: flowrl cannot do that, or ships no expert for it.
        """
        return manipulation.recipe(self.data) or mazes.recipe(self.data) or super().recipe()

    def _own(self, data: str, workers: int | None) -> Source:
        official = sources.cache_root() / "official" / f"{self.dataset}.npz"
        collected = sources.cache_root() / "collected" / f"{self.dataset}.npz"
        if data == "official" or (data == "auto" and official.exists()):
            return self._official(official)
        if data == "auto" and not collected.exists():
            try:
                return self._official(official)
            except UserError as error:
                if not self._collectable():
                    raise
                print(f"{error}\ncollecting {self.data} here instead", file=sys.stderr, flush=True)
        if not collected.exists():
            collect.collect(self.recipe(), sources.cache("collected"), workers=workers)
        hint = "; --data=official downloads the official set" if data == "auto" else ""
        return sources.of_file(collected, "collected", f"{sources.collected_detail(collected)}{hint}")

    def _official(self, path: Path) -> Source:
        """Returns the official file, which is downloaded unless it is there."""
        ours = "use --data=collected to make it here, or " if self._collectable() else "use "
        urls = [f"{host}/{path.name}" for host in HOSTS]
        sources.fetch(path, urls, functools.partial(download.check_npz, fields=FIELDS), ours)
        return sources.of_file(path, "official", f"official download, {path}")

    def _collectable(self) -> bool:
        try:
            self.recipe()
        except UserError:
            return False
        return True

    def _file_names(self) -> tuple[str, ...]:
        return (f"{self.dataset}.npz",)

    def _examined(self, source: Source, expected: Expected, remedy: str) -> Reading:
        return ogbench_sets.examine(source.path, self, expected, remedy, doubtful=source.origin == "file")

    @property
    def most(self) -> int:
        """How many copies of the environment may exist at a time; those of manipulation take 165 MB each."""
        return 16 if self.data.rpartition("-")[0] in manipulation.PLACES else super().most

    def _try(self, made: SeededEpisodes) -> None:
        """Does nothing: OGBench's environments return what they must."""
