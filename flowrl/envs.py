"""Environment names, and the environments that they stand for, as `flowrl.episodes` presents them."""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import os
import pickle
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

from flowrl import presets
from flowrl.data import d4rl
from flowrl.envs.episodes import SeededEpisodes, explained, has_limit, place, quiet, tame_mujoco
from flowrl.envs.spaces import shown
from flowrl.errors import UserError, suggestion
from flowrl.machine import packages


class EnvName(NamedTuple):
    """What a name given as `--env` stands for: an environment, and the dataset that belongs to it.

    Attributes:
        name: The canonical name: `pointmaze-medium-navigate`, `cube-single-play-singletask-task2`,
            `halfcheetah-medium-v2`, `minari:mujoco/hopper/medium-v0`, `collected:hopper-medium`, `Pendulum-v1`,
            `own_maze:Own-v0`.
        family: Whose name it is, which decides how its data is found and read: `ogbench`, `d4rl`, `minari`,
            `collected` (by flowrl in Gymnasium's MuJoCo tasks) or `gymnasium` (any registered environment, with the
            user's own file).
        dataset: OGBench's file stem `cube-single-play-v0`, D4RL's name, Minari's id, the name after `collected:`; empty
            for `gymnasium`.
        env_id: The environment registered with Gymnasium in which policies are evaluated, or None where there is none.
        behaviour: How OGBench's data or our own was collected, `navigate`, `play`, `medium`; empty for other families.
        goals: What a policy is told to reach: `state` (an observation), `oracle` (OGBench's compact goal), or `none`
            (a single task that the rewards define).
        kwargs: What `make` is called with besides, as pairs.
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
    if ":" in name:
        return _of_module(name)
    if name in gymnasium.registry:
        return _registered(name, name)
    data, single, _ = stem.partition("-singletask-")
    if single and data in presets.ogbench_datasets():
        raise UserError(f"unknown environment {name!r}; its tasks are {data}-singletask-task1 to -task5")
    known_names = [*presets.ogbench_datasets(), *d4rl.SETS, *collected_names(), *LOCOMOTION, *gymnasium.registry]
    raise UserError(
        f"unknown environment {name!r}{suggestion(stem, known_names)}; one of your own is named module:Name-v0, after "
        "the module that registers it (docs/data.md)"
    )


def limited(env: EnvName, steps: int | None) -> EnvName:
    """Returns an environment whose episodes are cut off after so many steps; with None it is as it was."""
    return env if steps is None else env._replace(kwargs=(*env.kwargs, ("max_episode_steps", steps)))


def _of_module(name: str) -> EnvName:
    """Resolves `module:Name-v0`, an environment that importing the module registers."""
    module, _, env_id = name.partition(":")
    try:
        _imported(module)
    except ImportError as error:
        raise UserError(
            f"--env={name}: cannot import {module!r} ({error}); start in its folder, or name that in PYTHONPATH"
        ) from error
    if env_id not in gymnasium.registry:
        near = suggestion(env_id, gymnasium.registry)
        raise UserError(f"--env={name}: importing {module} registers no {env_id!r}{near}; see gymnasium.register")
    return _registered(name, env_id, module)


def _registered(name: str, env_id: str, module: str = "") -> EnvName:
    """Returns an environment of Gymnasium's registry, with what is registered there where others have done that.

    So worker processes need not know the name, for nothing may register it there.
    """
    spec = gymnasium.registry[env_id]
    entry = spec.entry_point
    maker = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
    kwargs: tuple[tuple[str, Any], ...] = (("spec", spec),)
    with contextlib.suppress(Exception):  # whatever cannot be sent to another process must be registered there
        pickle.dumps(spec)
        if maker.partition(".")[0] not in ("gymnasium", "ogbench"):
            return EnvName(name, "gymnasium", "", env_id, goals="none", kwargs=kwargs, module=module)
    return EnvName(name, "gymnasium", "", env_id, goals="none", module=module)


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


def make(env_id: str, *, module: str = "", spec: EnvSpec | None = None, **kwargs: Any) -> SeededEpisodes:
    """Makes a registered environment with a vector of observations and actions in [−1, 1].

    All is read from what `gymnasium.make` returns, with all of its wrappers; `flowrl.spaces` says which spaces become
    vectors, and how.

    Args:
        env_id: Its name.
        module: Imported before, where it is not empty, to register the name.
        spec: What Gymnasium has registered under the name, or a dataset says of it, wrappers included; it is made of
            this where it is given, and the name need not be registered.
        **kwargs: Go to `gymnasium.make`.

    Raises:
        UserError: Its actions are not continuous and bounded, its observations no numbers, its episodes have no limit,
            it needs a package that is missing, or it raised an exception.
    """
    with _no_leftover_files(), quiet():
        if "render_mode" not in kwargs:
            _import_without_opengl()
        _register(env_id, module, known=spec is not None)
        try:
            if spec is None:
                spec = gymnasium.spec(env_id)
            if isinstance(spec.entry_point, str):
                load_env_creator(spec.entry_point)  # before MuJoCo has anything to warn of
            tame_mujoco()
            plain = dataclasses.replace(spec, order_enforce=False)  # flowrl resets before it steps
            made = gymnasium.make(plain, disable_env_checker=True, **kwargs)
            tame_mujoco()
            limited, fitted = has_limit(made), SeededEpisodes(made, env_id)
        except UserError:
            raise
        except Exception as error:
            raise _unmade(env_id, error) from error
    if not limited:
        raise UserError(
            f"{env_id} has no limit of steps, so its episodes may never end; give --max_episode_steps=N, or register "
            "it with max_episode_steps"
        )
    return fitted


def _unmade(env_id: str, error: Exception) -> UserError:
    """Returns the error that says why an environment cannot be made."""
    known = isinstance(error, gymnasium.error.Error | ImportError)
    reason = shown(error) if known else explained(error)
    where = place(error)
    line = f" at {where}" if where and not known else ""
    return UserError(
        f"{env_id} cannot be made here ({reason}{line}); {extras.remedy(error)}, mend it or choose another"
    )


def _register(env_id: str, module: str, *, known: bool) -> None:
    """Imports what registers a name."""
    if env_id in gymnasium.registry or (known and not module):
        return
    try:
        _imported(module or "ogbench")
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


def _imported(module: str) -> None:
    """Imports a module, also one that lies in the current folder, which is then found in worker processes too.

    Raises:
        ImportError: It, or what it needs, is not there.
        UserError: It raised another exception.
    """
    root = module.partition(".")[0]
    if not root:
        raise ImportError("it is no name of a module")
    try:
        if root not in sys.modules and importlib.util.find_spec(root) is None and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        importlib.import_module(module)
    except ImportError:
        raise
    except Exception as error:
        raise UserError(f"importing {module} failed: {explained(error)} ({place(error)}); mend it") from error


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
    (observation_dim,) = made.observation_space.shape or (0,)
    goal_dim = tasks = 0
    if env.goals != "none":
        tasks = int(made.unwrapped.num_tasks)  # type: ignore[attr-defined]
        _, info = made.reset(seed=0, options={"task_id": 1})
        goal_dim = len(info["goal"])
    if env.family != "ogbench":  # whatever others return that they must not, they shall before the training
        made.reset(seed=0)
        made.step([0.0] * len(made.actions.low))
    low, high = made.actions.low.tolist(), made.actions.high.tolist()
    return Sizes(observation_dim, len(low), goal_dim, tasks, tuple(low), tuple(high))
