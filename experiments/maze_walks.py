"""Shows how collected maze episodes go: python experiments/maze_walks.py --env=antmaze-large-navigate --out=DIR.

Plays whole episodes exactly as collection does, and counts goals reached, speed and falls of each; writes
<out>/<env>.json and a picture with their distributions and some paths.
"""

if __name__ == "__main__":
    import flowrl.start  # noqa: F401 - before the other imports, which take seconds

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flowrl import envs, flags, loggers
from flowrl.config import MOST_EPISODES, setting
from flowrl.data import behaviours, collect, experts, manipulation
from flowrl.errors import UserError
from flowrl.files import make_folder, replacing
from flowrl.provenance import git_commit, hardware, versions
from flowrl.stats import mean_interval

PATHS = 6
"""Episodes whose paths are drawn."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to show."""

    env: str = setting("antmaze-large-navigate", "A maze set that flowrl collects.")
    episodes: int = setting(40, "Episodes.", low=1, high=MOST_EPISODES)
    seed: int = setting(0, "Seed of the collection.", low=0)
    out: str = setting("maze_walks", "Folder for the numbers and the picture.")


class Counted:
    """An environment that counts the goals reached in each episode."""

    def __init__(self, env: envs.SeededEpisodes):
        self.unwrapped: Any = env.unwrapped
        self._env = env
        self.reached: list[int] = []

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        self.reached.append(0)
        self._counted: Any = None
        return self._env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps; each goal counts once."""
        observation, reward, terminated, truncated, info = self._env.step(action)
        goal = tuple(self.unwrapped.cur_goal_xy)
        if info["success"] and goal != self._counted:
            self.reached[-1] += 1
            self._counted = goal
        return observation, reward, terminated, truncated, info


def upside_down(qpos: np.ndarray) -> np.ndarray:
    """Whether the torso's own up points down, from its quaternion in `qpos` `[T, 15]`: bool `[T]`."""
    _, x, y, _ = qpos[:, 3:7].T
    return 1 - 2 * (x**2 + y**2) < 0


def play(name: str, episodes: int, seed: int) -> tuple[dict[str, Any], list[np.ndarray], Any]:
    """Plays episodes and returns what each came to, some paths `[T, 2]` and the maze.

    Raises:
        UserError: It is no maze set that flowrl collects.
    """
    known = envs.parse(name)
    recipe = behaviours.recipe(known)
    if manipulation.recipe(known) is not None:
        raise UserError(f"{name} has no maze; choose a set of pointmaze or antmaze")
    counted = Counted(envs.make(str(known.env_id), terminate_at_goal=False, max_episode_steps=recipe.length))
    maze, began = counted.unwrapped, time.perf_counter()
    speeds, down, falls, paths = [], [], [], []
    for episode in tqdm(range(episodes), desc=name, unit="episode", disable=None):
        fields = collect.play(counted, recipe, seed, episode)  # type: ignore[arg-type]
        path = fields["qpos"][:, :2]
        speeds.append(float(np.linalg.norm(np.diff(path, axis=0), axis=1).mean() / maze.dt))
        fallen = upside_down(fields["qpos"]) if recipe.expert else np.zeros(len(path), bool)
        down.append(float(fallen.mean()))
        falls.append(int((fallen[1:] & ~fallen[:-1]).sum()))
        if episode < PATHS:
            paths.append(path)
    steps = recipe.length * episodes
    measured = {
        "goals_reached_per_episode": counted.reached,
        "speed_m_per_s": [round(speed, 3) for speed in speeds],
        "falls_per_episode": falls,
        "share_of_steps_upside_down": [round(share, 4) for share in down],
    }
    numbers = {"steps_per_episode": recipe.length, "steps_per_second": round(steps / (time.perf_counter() - began))}
    return numbers | {name: _spread(values) for name, values in measured.items()}, paths, maze


def _spread(values: Sequence[float]) -> dict[str, Any]:
    interval = mean_interval(np.array(values))
    return {"mean": interval.mean, "interval_95": [interval.low, interval.high], "episodes": list(values)}


def draw(numbers: dict[str, Any], paths: Sequence[np.ndarray], maze: Any, title: str, path: Path) -> None:
    """Draws the distributions, and paths over the maze's walls."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise UserError("pictures need matplotlib; install it with: pip install -e '.[plot]'") from error
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    *histograms, map_axes = figure.subplots(1, 4, width_ratios=(2, 2, 2, 4))
    names = ("goals_reached_per_episode", "speed_m_per_s", "falls_per_episode")
    for axes, name in zip(histograms, names, strict=True):
        values = numbers[name]["episodes"]
        whole = all(isinstance(value, int) for value in values)
        axes.hist(values, bins=np.arange(min(values), max(values) + 2) - 0.5 if whole else 10, color="#0072B2")
        axes.set(xlabel=name.replace("_", " "), ylabel="episodes", title=f"mean {numbers[name]['mean']:.2f}")
    unit = float(maze._maze_unit)
    for i, j in np.argwhere(maze.maze_map == 1):
        x, y = maze.ij_to_xy((int(i), int(j)))
        map_axes.add_patch(Rectangle((x - unit / 2, y - unit / 2), unit, unit, color="0.8"))
    for index, one in enumerate(paths):
        map_axes.plot(*one.T, color=f"C{index}", linewidth=1)
        map_axes.plot(*one[0], "o", color=f"C{index}", markersize=5)
    map_axes.set(aspect="equal", xlabel="x in m", ylabel="y in m", title=f"{len(paths)} episodes, dots at starts")
    figure.suptitle(title)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        figure.savefig(file, format="png", dpi=100)


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    settings = flags.read(Settings, arguments, __doc__ or "")
    if settings is None:
        return 0
    numbers, paths, maze = play(settings.env, settings.episodes, settings.seed)
    expert = behaviours.recipe(envs.parse(settings.env)).expert
    report = {
        "command": " ".join(["python", "experiments/maze_walks.py", *arguments[1:]]),
        "git_commit": git_commit(),
        "hardware": hardware(),
        "versions": versions("ogbench", "mujoco", "gymnasium", "numpy"),
        "seed": settings.seed,
        "expert_sha256": collect.sha256(experts.path(expert)) if expert else None,
        **numbers,
    }
    out = Path(settings.out)
    make_folder(out)
    loggers.write_json(out / f"{settings.env}.json", report)
    draw(numbers, paths, maze, settings.env, out / f"{settings.env}.png")
    for name, value in numbers.items():
        print(f"{name:>28}  {value['mean']:.3f}" if isinstance(value, dict) else f"{name:>28}  {value}")
    return 0


if __name__ == "__main__":
    flags.run(main)
