"""A camera for environments, for a process that draws: each episode becomes a video.

Whoever plays the episodes stays apart from it, so that neither the choice of OpenGL's platform, which MuJoCo reads when
it is imported, nor a driver that crashes touches a training. Nothing here needs JAX.
"""

import contextlib
import functools
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from flowrl.envs import making
from flowrl.envs.episodes import SeededEpisodes, quiet
from flowrl.errors import UserError

SIZE = 256
"""Height and width in pixels, where the environment can be asked for one."""
FPS = 15
MOST_FRAMES = 150
"""Of longer episodes every second step is shown, every third, …: without a GPU a frame takes tenths of a second."""
_TRIAL = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 16, 16).render()"


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


def filming(kwargs: Mapping[str, Any], cameras: Sequence[str | None], platform: str | None, folder: Path) -> "Camera":
    """Makes an environment that films its episodes, in a process that has not imported MuJoCo yet.

    Args:
        kwargs: What it is made with, as `making.make` takes it.
        cameras: Names of cameras to try in this order; None is the environment's own.
        platform: The value of MUJOCO_GL, as `opengl` finds it.
        folder: Where the videos go.
    """
    if platform is not None:
        os.environ["MUJOCO_GL"] = platform
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame needs no window
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    drawn = functools.partial(making.make, **kwargs, render_mode="rgb_array")
    for name in cameras:
        view: dict[str, Any] = {} if name is None else {"camera_name": name}
        with contextlib.suppress(UserError):  # not every environment can be asked
            return Camera(drawn(width=SIZE, height=SIZE, **view), folder)
    return Camera(drawn(), folder)


class Camera(gymnasium.Wrapper):
    """Writes each episode of an environment to a file, as it is played."""

    def __init__(self, env: SeededEpisodes, folder: Path):
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
        with quiet():
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
