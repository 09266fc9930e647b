"""Videos of a run's final policy: the first episodes of its evaluation, played again and drawn."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowrl.envs import camera
from flowrl.envs.workers import WorkerDied
from flowrl.errors import UserError
from flowrl.machine import schema
from flowrl.machine.files import make_folder
from flowrl.run_folder import formats, logs
from flowrl.run_folder.summary import Outcome
from flowrl.tasks import Task
from flowrl.training.evaluation import Evaluator

FOLDER = "videos"
"""Where in a run directory they lie."""
INDEX = "videos.json"
"""The file in that folder that says what they show; it is written when all are there."""
REMEDY = (
    "MuJoCo draws with OpenGL: install EGL or OSMesa (apt-get install libegl1 or libosmesa6) and leave MUJOCO_GL "
    "unset; Gymnasium's classic control needs pygame. Then --resume makes the videos"
)


class NotDrawn(Exception):
    """There is no video, for the reason that the message names."""


def record(
    run_dir: Path,
    env: Task,
    asked: Mapping[str, Any],
    evaluator: Evaluator,
    policies: Any,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Films the first episodes per task of the first run, unless that was done before.

    Args:
        run_dir: Of the runs.
        env: Where they act.
        asked: What the videos will show: `step`, `unit`, `seed`, other labels of the first run, and `episodes`.
        evaluator: Who evaluated them.
        policies: Of all runs, with a leading axis `[R, ...]`.
        on_step: Called after every environment step with the numbers of finished and of all episodes; may raise to
            break off.

    Raises:
        NotDrawn: Nothing can be drawn here.
    """
    if asked.items() <= index(run_dir).items():
        return
    folder = run_dir / FOLDER
    make_folder(folder)
    for old in (folder / INDEX, *folder.glob("*.mp4")):
        old.unlink(missing_ok=True)
    try:
        make_env = functools.partial(camera.filming, env.made_with, env.cameras, camera.opengl(), folder.absolute())
        outcome = evaluator.play_first_run(policies, make_env, asked["episodes"], on_step)
    except (UserError, RuntimeError) as error:
        raise NotDrawn(f"no videos ({_reason(error)}). {REMEDY}") from error
    logs.write_json(folder / INDEX, {**asked, "videos": _shown(outcome)})


def _reason(error: Exception) -> str:
    if isinstance(error, WorkerDied):
        return "the process that draws died"
    return str(error).strip().splitlines()[-1]  # of a traceback


def _shown(outcome: Outcome) -> list[dict[str, Any]]:
    """Returns for each video of the first run its file and what happens in it."""
    found = []
    for task, episode in np.ndindex(outcome.lengths.shape[1:]):
        success = float(outcome.successes[0, task, episode])
        film = {"file": camera.file_name(task + 1, episode), "task": task + 1, "episode": episode}
        film["length"] = int(outcome.lengths[0, task, episode])
        numbers = {"return": float(outcome.returns[0, task, episode]), "success": success}
        found.append(film | {name: value for name, value in numbers.items() if np.isfinite(value)})
    return found


def index(run_dir: Path) -> dict[str, Any]:
    """Returns what the videos of a run directory show; empty where there are none."""
    path = run_dir / FOLDER / INDEX
    return schema.read(path, formats.VIDEOS) if path.exists() else {}
