"""Measures how often scripted oracles reach their own targets: python experiments/oracle_success.py --envs=scene-play.

Plays whole episodes exactly as collection does and looks, at every step, whether the oracle's target is reached. An
oracle's run that the end of an episode cuts off is not counted.
"""

if __name__ == "__main__":
    import flowrl.start  # noqa: F401 - before the other imports, which take seconds

import dataclasses
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flowrl import envs, flags, loggers
from flowrl.config import MOST_EPISODES, setting
from flowrl.data import behaviours, collect, manipulation
from flowrl.errors import UserError
from flowrl.provenance import git_commit, hardware, versions


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure."""

    envs: str = setting("cube-single-play", "Manipulation sets, separated by commas.")
    episodes: int = setting(10, "Episodes of each.", low=1, high=MOST_EPISODES)
    seed: int = setting(0, "Seed of the collection.", low=0)
    out: str | None = setting(None, "JSON file for the numbers.")


@dataclasses.dataclass
class Run:
    """One oracle's run, from the drawing of its target to that of the next."""

    task: str
    steps: int = 0
    ever: bool = False
    at_end: bool = False


def target(info: dict[str, Any]) -> str:
    """Returns what a target is for; a drawer or window that its button has locked is drawn too, and hardly moves."""
    task = str(info["privileged/target_task"])
    button = {"drawer": 0, "window": 1}.get(task)
    locked = button is not None and info["button_states"][button] == 0
    return f"{task}, locked" if locked else task


class Watched:
    """An environment that writes down how each target fares."""

    def __init__(self, env: envs.SeededEpisodes):
        place: Any = env.unwrapped
        self.unwrapped = place
        self.runs: list[Run] = []
        self.cut_off = 0
        self.resets = 0
        self._env = env
        self._draw = place.set_new_target
        self._current: Run | None = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; it draws its first target itself."""
        self.cut_off += self._current is not None
        self.unwrapped.set_new_target = self._draw
        observation, info = self._env.reset(**kwargs)
        self.unwrapped.set_new_target = self._next
        self._current = Run(target(info))
        self.resets += 1
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps, and looks whether the target is reached."""
        observation, reward, terminated, truncated, info = self._env.step(action)
        assert self._current is not None
        self._current.steps += 1
        self._current.at_end = bool(info["success"])
        self._current.ever |= self._current.at_end
        return observation, reward, terminated, truncated, info

    def _next(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        assert self._current is not None
        self.runs.append(self._current)
        observation, info = self._draw(**kwargs)
        self._current = Run(target(info))
        return observation, info


def measure(name: str, episodes: int, seed: int) -> dict[str, Any]:
    """Plays episodes of one set and returns its counts."""
    known = envs.parse(name)
    recipe = behaviours.recipe(known)
    if manipulation.recipe(known) is None:
        raise UserError(f"{name} has no targets to count; choose a play or noisy set of cube, scene or puzzle")
    watched = Watched(envs.make(str(known.env_id), max_episode_steps=recipe.length, **dict(recipe.env_kwargs)))
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of spaces made anew at each reset; nobody could act on them
        for episode in tqdm(range(episodes), desc=name, unit="episode", disable=None):
            collect.play(watched, recipe, seed, episode)  # type: ignore[arg-type]
    seconds = time.perf_counter() - began
    tasks = sorted({run.task for run in watched.runs})
    return {
        "dataset": name,
        "episodes": episodes,
        "episodes_thrown_away": watched.resets - episodes,
        "targets_cut_off_by_the_end": watched.cut_off + 1,
        **counts(watched.runs),
        "by_task": {task: counts([run for run in watched.runs if run.task == task]) for task in tasks},
        "seconds_per_episode": round(seconds / watched.resets, 2),
    }


def counts(runs: list[Run]) -> dict[str, Any]:
    """Returns how many targets were drawn, at what share of them the oracle arrived, and steps per target."""
    total = max(1, len(runs))
    return {
        "targets": len(runs),
        "reached_at_the_end": sum(run.at_end for run in runs),
        "reached_at_some_time": sum(run.ever for run in runs),
        "share_at_the_end": round(sum(run.at_end for run in runs) / total, 4),
        "share_at_some_time": round(sum(run.ever for run in runs) / total, 4),
        "steps_per_target": round(sum(run.steps for run in runs) / total, 1),
    }


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    settings = flags.read(Settings, arguments, __doc__ or "")
    if settings is None:
        return 0
    results = [measure(name, settings.episodes, settings.seed) for name in settings.envs.split(",")]
    report = {
        "command": " ".join(["python", "experiments/oracle_success.py", *arguments[1:]]),
        "git_commit": git_commit(),
        "hardware": hardware(),
        "versions": versions("ogbench", "mujoco", "gymnasium", "numpy"),
        "seed": settings.seed,
        "results": results,
    }
    for result in results:
        print(f"{result['dataset']:>24}  {result['reached_at_the_end']} of {result['targets']} targets reached")
    if settings.out:
        Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
        loggers.write_json(Path(settings.out), report)
    else:
        print(json.dumps(report))
    return 0


if __name__ == "__main__":
    flags.run(main)
