"""Environment names, and environments whose every episode is fixed by one seed."""

import contextlib
import functools
import importlib
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from flowrl import extras, presets
from flowrl.data import d4rl
from flowrl.errors import UserError, suggestion


class EnvName(NamedTuple):
    """What a name given as `--env` stands for: an environment, and the dataset that belongs to it.

    Attributes:
        name: The canonical name: `pointmaze-medium-navigate`, `cube-single-play-singletask-task2`,
            `halfcheetah-medium-v2`, `minari:mujoco/hopper/medium-v0`, `collected:hopper-medium`, `Pendulum-v1`.
        family: Whose name it is, which decides how its data is found and read: `ogbench`, `d4rl`, `minari`,
            `collected` (by flowrl in Gymnasium's MuJoCo tasks) or `gymnasium` (any registered environment, with the
            user's own file).
        dataset: OGBench's file stem `cube-single-play-v0`, D4RL's name, Minari's id, the name after `collected:`; empty
            for `gymnasium`.
        env_id: The environment registered with Gymnasium in which policies are evaluated, or None where there is none.
        behaviour: How OGBench's data or our own was collected, `navigate`, `play`, `medium`; empty for other families.
        goals: What a policy is told to reach: `state` (an observation), `oracle` (OGBench's compact goal), or `none`
            (a single task that the rewards define).
        kwargs: What `gymnasium.make` is called with besides, as pairs.
        module: Module whose import registers the environment, such as `gymnasium_robotics`; or empty.
        note: What people must know about the environment, such as that its version is not the data's; or empty.
    """

    name: str
    family: str
    dataset: str
    env_id: str | None
    behaviour: str = ""
    goals: str = "state"
    kwargs: tuple[tuple[str, Any], ...] = ()
    module: str = ""
    note: str = ""

    @property
    def d4rl(self) -> str:
        """D4RL's name of the set, or of the one that a collected set is made after; empty where there is none."""
        return {"d4rl": self.dataset, "collected": f"{self.dataset}-v2"}.get(self.family, "")


LOCOMOTION = ("online-ant-xy-v0", "online-humanoid-xy-v0", "online-antball-ends-v0")
"""OGBench's tasks for the experts of its mazes, registered by flowrl.locomotion."""
_SINGLE_TASK = re.compile(r"(?P<stem>.+)-singletask(?P<task>-task[1-5])?")


def parse(name: str) -> EnvName:
    """Resolves the name of an OGBench, D4RL or Minari dataset, or of a Gymnasium environment.

    OGBench's names come with or without `-v0`.

    Raises:
        UserError: The name is unknown, or names something flowrl cannot train on.
    """
    if name.startswith("minari:"):
        return EnvName(name, "minari", name.removeprefix("minari:"), None, goals="none")
    if name in d4rl.SETS:
        known = d4rl.SETS[name]
        return EnvName(name, "d4rl", name, known.env_id, goals="none", note=known.note)
    if name.startswith("collected:"):
        return _collected(name)
    stem = name.removesuffix("-v0")
    if (found := _ogbench(stem, name)) is not None:
        return found
    if name in LOCOMOTION:
        return EnvName(name, "gymnasium", "", name, goals="none", module="flowrl.locomotion")
    if name in gymnasium.registry:
        return EnvName(name, "gymnasium", "", name, goals="none")
    data, single, _ = stem.partition("-singletask-")
    if single and data in presets.ogbench_datasets():
        raise UserError(f"unknown environment {name!r}; its tasks are {data}-singletask-task1 to -task5")
    known_names = [*presets.ogbench_datasets(), *d4rl.SETS, *collected_names(), *LOCOMOTION, *gymnasium.registry]
    raise UserError(f"unknown environment {name!r}{suggestion(stem, known_names)}")


def collected_names() -> list[str]:
    """Returns the names of the MuJoCo sets of our own."""
    from flowrl.data import mujoco_sets  # which needs what is defined here

    return [f"collected:{dataset}" for dataset in mujoco_sets.NAMES]


def _collected(name: str) -> EnvName:
    """Resolves the name of a MuJoCo set of our own."""
    from flowrl.data import mujoco_sets  # which needs what is defined here

    dataset = name.removeprefix("collected:")
    if dataset not in mujoco_sets.NAMES:
        raise UserError(f"unknown dataset {name!r}{suggestion(name, collected_names())}")
    env_id = mujoco_sets.BODIES[mujoco_sets.NAMES[dataset].body]
    note = "scores by D4RL's reference returns, which are of version 2"
    kind = mujoco_sets.NAMES[dataset].kind
    return EnvName(name, "collected", dataset, env_id, kind, goals="none", note=note)


def _ogbench(stem: str, name: str) -> EnvName | None:
    """Resolves the name of an OGBench dataset without its version, or returns None if it is not one."""
    single = _SINGLE_TASK.fullmatch(stem)
    oracle = stem.endswith("-oraclerep")
    data = single["stem"] if single else stem.removesuffix("-oraclerep")
    if data not in presets.ogbench_datasets():
        return None
    if data.startswith(("visual-", "powderworld-")):
        raise UserError(f"environment {name!r}: pixel observations are not supported yet; use a state-based set")
    body, behaviour = data.rsplit("-", 1)
    suffix = f"-singletask{single['task'] or ''}" if single else ""
    goals = "none" if single else "oracle" if oracle else "state"
    kwargs = (("use_oracle_rep", True),) if oracle else ()
    return EnvName(stem, "ogbench", f"{data}-v0", f"{body}{suffix}-v0", behaviour, goals, kwargs)


class SeededEpisodes(gymnasium.Wrapper):
    """Makes each episode a function of its seed alone.

    OGBench draws from numpy's global generator in `reset` and, for teleport mazes, in `step`. This wrapper gives every
    environment a global generator of its own for the length of each call, so that episodes stepped side by side in one
    process do not disturb each other. Belongs in a worker process: it owns numpy's global state there.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self._generator = np.random.MT19937(0)

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:  # type: ignore[override]
        """Starts the episode that `seed` (uint32) fixes."""
        self._generator = np.random.MT19937(seed)
        np.random.set_bit_generator(self._generator)  # type: ignore[attr-defined]
        with quiet():
            self.env.action_space.seed(seed)
            return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps with this environment's own global generator in place."""
        np.random.set_bit_generator(self._generator)  # type: ignore[attr-defined]
        return self.env.step(action)


def make(env_id: str, *, module: str = "", **kwargs: Any) -> SeededEpisodes:
    """Makes a registered environment with a vector of observations and actions in [−1, 1].

    Dictionary observations become vectors as `flowrl.data.minari_sets.flat` says.

    Args:
        env_id: Its name.
        module: Imported before, where it is not empty, to register the name.
        **kwargs: Go to `gymnasium.make`.

    Raises:
        UserError: Its actions are not continuous and bounded, its observations no numbers, or it
            needs a package that is missing.
    """
    with _no_leftover_files(), quiet():
        if "render_mode" not in kwargs:
            _import_without_opengl()
        _register(env_id, module)
        try:
            made = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
        except (gymnasium.error.Error, ImportError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{env_id} cannot be made here ({reason}); {extras.remedy(error)}, or choose another"
            ) from error
        return SeededEpisodes(_fitting(made, env_id))


def _fitting(env: gymnasium.Env, env_id: str) -> gymnasium.Env:
    """Wraps an environment into vectors of observations and actions in [−1, 1]."""
    actions = env.action_space
    if not isinstance(actions, gymnasium.spaces.Box) or not actions.is_bounded():
        raise UserError(f"{env_id} has actions {actions}; flowrl needs continuous, bounded ones")
    if isinstance(env.observation_space, gymnasium.spaces.Dict):
        env = _flattened(env)
    observations = env.observation_space
    if not isinstance(observations, gymnasium.spaces.Box) or len(observations.shape) != 1:
        raise UserError(f"{env_id} has observations {observations}; flowrl needs a vector of numbers")
    if not (np.all(actions.low == -1) and np.all(actions.high == 1)):
        env = gymnasium.wrappers.RescaleAction(env, np.float32(-1.0), np.float32(1.0))
    return env


def _register(env_id: str, module: str) -> None:
    if env_id in gymnasium.registry:
        return
    try:
        importlib.import_module(module or "ogbench")
    except ImportError as error:
        raise UserError(
            f"{env_id} needs the package {module or 'ogbench'} ({error}); {extras.remedy(error)}, or train only with "
            "--eval_episodes=0"
        ) from error


@functools.cache
def _import_without_opengl() -> None:
    """Imports MuJoCo and dm_control without OpenGL where that of MUJOCO_GL is not there.

    Both look for it as they are imported and fail without; but only who draws needs it, in a process of its own.
    """
    given = os.environ.get("MUJOCO_GL")
    for name in ("mujoco", "dm_control._render") if given else ():
        try:
            importlib.import_module(name)
        except Exception:  # of any kind, where a library is there in part
            os.environ["MUJOCO_GL"] = "disable"
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
            os.environ["MUJOCO_GL"] = str(given)


def _flattened(env: gymnasium.Env) -> gymnasium.Env:
    from flowrl.data.minari_sets import flat

    shape = flat(env.observation_space.sample()).shape
    space = gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float32)
    return gymnasium.wrappers.TransformObservation(env, flat, space)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings of float64 bounds, a missing display or newer versions: nothing that a user can act on.

    OGBench's manipulation environments make their spaces, and with them such warnings, anew whenever they are asked.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _no_leftover_files() -> Iterator[None]:
    """Closes and removes the temporary XML file that each of OGBench's mazes leaves open behind it."""
    made: list[tuple[int, str]] = []
    original = tempfile.mkstemp

    def recording(*args: Any, **kwargs: Any) -> tuple[int, str]:
        made.append(original(*args, **kwargs))
        return made[-1]

    tempfile.mkstemp = recording  # type: ignore[assignment]
    try:
        yield
    finally:
        tempfile.mkstemp = original
        for handle, path in made:
            os.close(handle)
            os.unlink(path)


class Sizes(NamedTuple):
    """What an environment asks of a policy.

    Attributes:
        observation_dim: Size of an observation.
        action_dim: Size of an action.
        goal_dim: Size of a goal; 0 for a single task.
        tasks: Number of evaluation tasks; 0 if the environment has no more than one.
        action_low: Lower bounds of its own actions, `[A]`; data in its units are rescaled to [−1, 1].
        action_high: Upper bounds, `[A]`.
    """

    observation_dim: int
    action_dim: int
    goal_dim: int = 0
    tasks: int = 0
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()


def factory(env: EnvName) -> Callable[[], SeededEpisodes]:
    """Returns a picklable function that makes the environment in which policies are evaluated."""
    assert env.env_id is not None
    return functools.partial(make, env.env_id, module=env.module, **dict(env.kwargs))


def most(env: EnvName) -> int:
    """Returns how many copies of an environment may exist at a time; OGBench's manipulation ones take 165 MB each."""
    manipulation = env.family == "ogbench" and env.name.startswith(("cube-", "scene-", "puzzle-"))
    return 16 if manipulation else 160


def sizes(env: EnvName) -> Sizes:
    """Returns the sizes of the environment in which policies are evaluated.

    Raises:
        UserError: flowrl cannot act in it.
    """
    made = factory(env)()
    with quiet():
        space: Any = made.unwrapped.action_space
    (observation_dim,) = made.observation_space.shape or (0,)
    goal_dim = tasks = 0
    if env.goals != "none":
        tasks = int(made.unwrapped.num_tasks)  # type: ignore[attr-defined]
        _, info = made.reset(seed=0, options={"task_id": 1})
        goal_dim = len(info["goal"])
    bounds = (tuple(float(x) for x in bound) for bound in (space.low, space.high))
    return Sizes(observation_dim, space.shape[0], goal_dim, tasks, *bounds)
