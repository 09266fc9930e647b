"""What a name given as `--env` stands for: an environment, and the dataset that belongs to it."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, NamedTuple, Self

import gymnasium
import numpy as np

from flowrl.collection.recipes import Recipe
from flowrl.envs import making
from flowrl.envs.episodes import SeededEpisodes
from flowrl.errors import UserError
from flowrl.networks import Spec
from flowrl.tasks import description, sources, transitions
from flowrl.tasks.fields import Arrays, Expected, Reading, told
from flowrl.tasks.sources import Source

NOTHING_KNOWN = Expected()
Goals = Literal["state", "oracle", "none"]


class Facts(NamedTuple):
    """What an environment asks of a policy.

    Attributes:
        spec: Shapes of its observations, actions and goals.
        tasks: Number of evaluation tasks; 0 if the environment has no more than one.
        action_low: Lower bounds of its own actions, `[A]`; data in its units are rescaled to [−1, 1].
        action_high: Upper bounds, `[A]`.
    """

    spec: Spec
    tasks: int = 0
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> "Facts":
        """Returns what data say where no environment does."""
        return cls(Spec.of_sizes(arrays["observations"].shape[1], arrays["actions"].shape[1]))

    def told(self, goals: Goals) -> dict[str, Any]:
        """Returns what a policy must know to act without the environment, for a run's folder."""
        goal = None if self.spec.goal is None else [*self.spec.goal.shape]
        return {
            "observation": [*self.spec.observation.shape],
            "action": [*self.spec.action.shape],
            "goal": goal,
            "goals_are_states": goals == "state",
            "action_low": [*self.action_low],
            "action_high": [*self.action_high],
        }

    @property
    def expected(self) -> Expected:
        """What a file must fit that is made for the environment."""
        (observation,), (action,) = self.spec.observation.shape, self.spec.action.shape
        return Expected(observation, action, self.action_low, self.action_high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """An environment and its dataset; each family of names is a class of its own.

    Attributes:
        name: The canonical name: `pointmaze-medium-navigate`, `cube-single-play-singletask-task2`,
            `halfcheetah-medium-v2`, `minari:mujoco/hopper/medium-v0`, `collected:hopper-medium`, `Pendulum-v1`,
            `own_maze:Own-v0`.
        env_id: The environment registered with Gymnasium in which policies are evaluated, or None where there is none,
            or only the data say which.
        dataset: What the family calls the dataset; empty where there is none of its own.
        goals: What a policy is told to reach: `state` (an observation), `oracle` (OGBench's compact goal), or `none`
            (a single task that the rewards define).
        kwargs: What the environment is made with besides, as pairs.
        module: Module whose import registers the environment, such as `gymnasium_robotics`; or empty.
        note: What people must know about the environment, such as that its version is not the data's; or empty.
    """

    name: str
    env_id: str | None
    dataset: str = ""
    goals: Goals = "none"
    kwargs: tuple[tuple[str, Any], ...] = ()
    module: str = ""
    note: str = ""

    has_data: ClassVar[bool] = True
    """Whether there is a dataset of its own; without one users give files."""
    bounded: ClassVar[bool] = False
    """Whether data hold actions in the environment's own bounds."""
    cameras: ClassVar[tuple[str | None, ...]] = ("track", None)
    """Cameras to film it with, in the order to try; Gymnasium's own lets walkers leave the picture."""

    # ------------------------------------------------------------------------------------------------------ names

    @classmethod
    @abc.abstractmethod
    def parse(cls, name: str) -> Self | None:
        """Returns what a name stands for, or None where it is none of this family.

        Raises:
            UserError: It is one of this family that flowrl cannot train on, or nearly one.
        """

    @classmethod
    @abc.abstractmethod
    def names(cls) -> Iterable[str]:
        """Returns the names that are known, for suggestions."""

    @property
    def published(self) -> str:
        """The name under which papers publish settings for it."""
        return self.name

    # ------------------------------------------------------------------------------------------------------- data

    def locate(self, data: str, *, workers: int | None = None) -> Source:
        """Finds the training data, downloading or collecting them where needed.

        Args:
            data: `none`, `official` (cache or download), `collected` (cache or collection here), `auto` (what is in the
                cache, else a download, else a collection), or the path of a file or of a folder that holds it.
            workers: Processes of a collection.

        Raises:
            UserError: There is no such file, or it can be had in none of these ways.
        """
        if data == "none":
            return sources.NONE
        if not data:
            raise UserError(f"--data= is empty; give a file, a folder, or one of {', '.join(sources.WORDS)}")
        if data in sources.WORDS:
            return self._own(data, workers)
        return self._given(data)

    @abc.abstractmethod
    def _own(self, data: str, workers: int | None) -> Source:
        """Finds the dataset of its own by one of the words `auto`, `official` and `collected`."""

    def _given(self, data: str) -> Source:
        """Returns the file, or the dataset's file in the folder, that the user names."""
        return sources.given(data, self._file_names())

    def _file_names(self) -> tuple[str, ...]:
        """Returns what the dataset's file may be called in a folder."""
        return ("main_data.hdf5", "data.npz", "data.hdf5")

    def recipe(self) -> Recipe:
        """Returns how the dataset is collected here.

        Raises:
            UserError: flowrl cannot do that.
        """
        example = f", for example a download of {self._file_names()[0]}" if self.dataset else ""
        raise UserError(
            f"flowrl cannot collect {self.name} yet, only the sets of pointmaze and antmaze, the play and noisy sets "
            f"of cube, scene and puzzle, and MuJoCo's such as collected:hopper-medium; give a file with "
            f"--data=PATH{example}"
        )

    def examine(self, source: Source, expected: Expected = NOTHING_KNOWN) -> Reading:
        """Reads and checks the fields that training needs, and no others.

        Args:
            source: A dataset on disk.
            expected: Sizes of the environment's observations and actions, where known, and the bounds of its own
                actions, in which a user's own file holds them; those of other files are in [-1, 1] or carry their
                bounds.

        Returns:
            `observations` float32 `[N, D]`; `actions` float32 `[N, A]`, clipped to ±(1 - 1e-5); `terminals` bool `[N]`,
            true on the last row of each episode, which has no transition. For a single task `rewards` and `masks`
            float32 `[N]` besides; for compact goals `oracle_reps` float32 `[N, G]`. The notes also say what is
            implausible.

        Raises:
            UserError: The file is missing, damaged, or not such a dataset.
        """
        reading = self._examined(source, expected, sources.REMEDIES.get(source.origin, transitions.REMEDY))
        doubts = description.doubts(reading.arrays, limit=self._limit(), bounds=self.bounded)
        return reading._replace(notes=(*reading.notes, *doubts))

    def _examined(self, source: Source, expected: Expected, remedy: str) -> Reading:
        """Reads the file; messages advise `remedy` where they know nothing better."""
        return transitions.examine(source.path, expected, remedy)

    def _limit(self) -> int | None:
        """Returns the steps after which episodes in the data end, where that is known."""
        return None

    def read(self, source: Source, expected: Expected = NOTHING_KNOWN) -> Arrays:
        """Returns the arrays that `examine` does, and prints what there is to note."""
        return told(self.examine(source, expected)).arrays

    # ------------------------------------------------------------------------------------------------ environment

    def evaluated(self, source: Source) -> Self:
        """Returns the task with the environment in which policies are evaluated, where the data say which that is.

        Raises:
            UserError: They do not.
        """
        return self

    @property
    def unevaluated(self) -> str:
        """Why policies cannot be evaluated here, whatever the data say; or empty."""
        return ""

    def limited(self, steps: int | None) -> Self:
        """Returns the task with episodes cut off after so many steps; with None it is as it was."""
        if steps is None:
            return self
        return dataclasses.replace(self, kwargs=(*self.kwargs, ("max_episode_steps", steps)))

    @property
    def made_with(self) -> dict[str, Any]:
        """What `flowrl.envs.making.make` is called with."""
        assert self.env_id is not None
        return {"env_id": self.env_id, "module": self.module, **dict(self.kwargs)}

    def factory(self) -> Callable[[], SeededEpisodes]:
        """Returns a picklable function that makes the environment in which policies are evaluated."""
        return functools.partial(making.make, **self.made_with)

    def make(self) -> SeededEpisodes:
        """Makes that environment.

        Raises:
            UserError: flowrl cannot act in it.
        """
        return self.factory()()

    @property
    def most(self) -> int:
        """How many copies of the environment may exist at a time."""
        return 160

    def facts(self) -> Facts:
        """Returns what the environment in which policies are evaluated asks of them.

        Raises:
            UserError: flowrl cannot act in it.
        """
        made = self.make()
        (observation_dim,) = made.observation_space.shape or (0,)
        goal_dim = tasks = 0
        if self.goals != "none":
            tasks = int(made.unwrapped.num_tasks)  # type: ignore[attr-defined]
            _, info = made.reset(seed=0, options={"task_id": 1})
            goal_dim = len(info["goal"])
        self._try(made)
        low, high = made.actions.low.tolist(), made.actions.high.tolist()
        return Facts(Spec.of_sizes(observation_dim, len(low), goal_dim), tasks, tuple(low), tuple(high))

    def _try(self, made: SeededEpisodes) -> None:
        """Plays a step: whatever an environment returns that it must not, it shall before the training."""
        made.reset(seed=0)
        made.step([0.0] * len(made.actions.low))

    def score(self, returns: np.ndarray) -> np.ndarray | None:
        """Returns the normalised scores of returns `[...]`, 0 for a random policy and 100 for an expert; or None."""
        return None


def registered_limit(task: Task) -> int | None:
    """Returns the steps after which Gymnasium ends an episode of a task's environment, where it is registered so."""
    given = dict(task.kwargs)
    spec = given.get("spec") or gymnasium.registry.get(task.env_id or "")
    return given.get("max_episode_steps") or getattr(spec, "max_episode_steps", None)
