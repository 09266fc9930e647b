"""Videos of a run's final policy: the first episodes of its evaluation, played again and drawn.

Drawing happens in a process of its own, so that neither the choice of OpenGL's platform, which MuJoCo reads when it is
imported, nor a driver that crashes touches the training.
"""

import functools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from flowrl import envs, loggers
from flowrl.envs import EnvName
from flowrl.errors import UserError
from flowrl.evaluate import Evaluator
from flowrl.files import make_folder
from flowrl.settings import Plan

FOLDER = "videos"
"""Where in a run directory they lie."""
INDEX = "videos.json"
"""The file in that folder that says what they show; it is written when all are there."""
SIZE = 256
"""Height and width in pixels, where the environment can be asked for one."""
FPS = 15
MOST_FRAMES = 150
"""Of longer episodes every second step is shown, every third, …: without a GPU a frame takes tenths of a second."""
REMEDY = (
    "MuJoCo draws with OpenGL: install EGL or OSMesa (apt-get install libegl1 or libosmesa6) and leave MUJOCO_GL "
    "unset; Gymnasium's classic control needs pygame. Then --resume makes the videos"
)
_TRIAL = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 16, 16).render()"


class NotDrawn(Exception):
    """There is no video, for the reason that the message names."""


def record(
    plan: Plan,
    evaluator: Evaluator,
    policies: Any,
    step: int,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Films the first episodes per task of the first run, unless that was done before.

    Args:
        plan: Of the runs.
        evaluator: Who evaluated them.
        policies: Of all runs, with a leading axis `[R, ...]`.
        step: After which they are what they are.
        on_step: Called after every environment step with the numbers of finished and of all episodes; may raise to
            break off.

    Raises:
        NotDrawn: Nothing can be drawn here.
    """
    folder, episodes = plan.folder / FOLDER, int(plan.settings.video_episodes)
    asked = {"step": step, "unit": plan.unit, **plan.trials[0].labels, "episodes": episodes}
    if asked.items() <= index(plan.folder).items():
        return
    make_folder(folder)
    for old in (folder / INDEX, *folder.glob("*.mp4")):
        old.unlink(missing_ok=True)
    try:
        make_env = functools.partial(_make, plan.env, opengl(), folder.absolute())
        outcome = evaluator.first_run(policies, make_env, episodes, on_step)
    except (UserError, RuntimeError) as error:  # a worker that has died, or says how it failed in its last line
        raise NotDrawn(f"no videos ({str(error).strip().splitlines()[-1]}). {REMEDY}") from error
    films = [
        {"file": file_name(task + 1, number), "task": task + 1, "episode": number}
        | (
            {}
            if np.isnan(outcome.successes[0, task, number])
            else {"success": float(outcome.successes[0, task, number])}
        )
        | {"return": float(outcome.returns[0, task, number]), "length": int(outcome.lengths[0, task, number])}
        for task in range(outcome.lengths.shape[1])
        for number in range(episodes)
    ]
    loggers.write_json(folder / INDEX, asked | {"videos": films})


def index(run_dir: Path) -> dict[str, Any]:
    """Returns what the videos of a run directory show; empty where there are none."""
    path = run_dir / FOLDER / INDEX
    return loggers.read_json(path) if path.exists() else {}


def file_name(task: int, episode: int) -> str:
    """Returns the name of the file that shows an episode; tasks count from 1, episodes from 0."""
    return f"task{task}_episode{episode}.mp4"


def opengl() -> str | None:
    """Returns a value of MUJOCO_GL with which MuJoCo can draw here, the one that is set if one is; None if it cannot.

    Each is tried in a process of its own; a driver may crash.
    """
    window = ["glfw"] if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") else []
    given = os.environ.get("MUJOCO_GL")
    return next((name for name in ([given] if given else [*window, "egl", "osmesa"]) if _draws(name)), None)


def _draws(platform: str) -> bool:
    try:
        trial = subprocess.run(
            [sys.executable, "-c", _TRIAL],
            env=os.environ | {"MUJOCO_GL": platform},
            capture_output=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return trial.returncode == 0


def _make(env: EnvName, platform: str | None, folder: Path) -> "Camera":
    """Makes an environment that films its episodes, in a process that has not imported MuJoCo yet."""
    if platform is not None:
        os.environ["MUJOCO_GL"] = platform
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame needs no window
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    assert env.env_id is not None
    make = functools.partial(envs.make, env.env_id, module=env.module, render_mode="rgb_array", **dict(env.kwargs))
    try:
        made = make(width=SIZE, height=SIZE)
    except TypeError:  # its frames have a size of their own
        made = make()
    return Camera(made, folder)


class Camera(gymnasium.Wrapper):
    """Writes each episode of an environment to a file, as it is played."""

    def __init__(self, env: envs.SeededEpisodes, folder: Path):
        super().__init__(env)
        self._folder = folder
        longest = env.spec.max_episode_steps if env.spec else None
        self._every = math.ceil((longest or 5 * MOST_FRAMES) / MOST_FRAMES)
        self._begun: dict[int, int] = {}
        self._steps = 0
        self._film: Any = None

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:  # type: ignore[override]
        """Starts an episode and its file."""
        found = self.env.reset(seed=seed, options=options)
        task = (options or {}).get("task_id", 1)
        number = self._begun.get(task, 0)
        self._begun[task], self._steps = number + 1, 0
        frame = self._frame()
        self._film = _film(self._folder / file_name(task, number), frame.shape)
        self._film.send(frame)
        return found

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps; the first and the last state of an episode are always shown."""
        found: Any = self.env.step(action)
        self._steps += 1
        over = found[2] or found[3]
        if over or self._steps % self._every == 0:
            self._film.send(self._frame())
        if over:
            self._film.close()
        return found

    def _frame(self) -> np.ndarray:
        model: Any = getattr(self.unwrapped, "model", None)
        if hasattr(model, "light_castshadow"):
            model.light_castshadow[:] = False  # without a GPU shadows take most of the time
        with envs.quiet():
            drawn: Any = self.env.render()
        return np.ascontiguousarray(drawn)


def _film(path: Path, shape: tuple[int, ...]) -> Any:
    """Returns what takes frames uint8 `[H, W, 3]` of a video in H.264 with yuv420p, which browsers play."""
    import imageio_ffmpeg

    writer = imageio_ffmpeg.write_frames(
        str(path),
        (shape[1], shape[0]),
        fps=FPS,
        codec="libx264",
        pix_fmt_out="yuv420p",
        macro_block_size=2,
        quality=None,
        output_params=["-crf", "27", "-movflags", "+faststart"],
        ffmpeg_log_level="error",
    )
    writer.send(None)
    return writer
