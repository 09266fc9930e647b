"""Makes environments that are registered with Gymnasium, as `flowrl.envs.episodes` presents them."""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

from flowrl.envs.episodes import SeededEpisodes, explained, has_limit, place, quiet, tame_mujoco
from flowrl.envs.spaces import shown
from flowrl.errors import UserError
from flowrl.machine import packages


def make(env_id: str, *, module: str = "", spec: EnvSpec | None = None, **kwargs: Any) -> SeededEpisodes:
    """Makes a registered environment with a vector of observations and actions in [−1, 1].

    All is read from what `gymnasium.make` returns, with all of its wrappers; `flowrl.envs.spaces` says which spaces
    become vectors, and how.

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
        f"{env_id} cannot be made here ({reason}{line}); {packages.remedy(error)}, mend it or choose another"
    )


def _register(env_id: str, module: str, *, known: bool) -> None:
    """Imports what registers a name."""
    if env_id in gymnasium.registry or (known and not module):
        return
    try:
        imported(module or "ogbench")
    except ImportError as error:
        raise UserError(
            f"{env_id} needs the package {module or 'ogbench'} ({error}); {packages.remedy(error)}, or train only with "
            "--eval.episodes=0"
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


def imported(module: str) -> None:
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
