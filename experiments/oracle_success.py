"""Measures how often scripted oracles reach their own targets: python experiments/oracle_success.py --envs=scene-play.

Plays whole episodes exactly as collection does and counts, whenever an oracle says that it is done, whether its target
was reached.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flowrl import envs, flags, loggers
from flowrl.config import setting
from flowrl.data import behaviours, collect, manipulation
from flowrl.errors import UserError
from flowrl.provenance import git_commit, hardware, versions


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure."""

    envs: str = setting("cube-single-play", "Manipulation sets, separated by commas.")
    episodes: int = setting(10, "Episodes of each.")
    seed: int = setting(0, "Seed of the collection.")
    out: str | None = setting(None, "JSON file for the numbers.")


def measure(name: str, episodes: int, seed: int) -> dict[str, Any]:
    """Plays episodes of one set and returns its counts."""
    known = envs.parse(name)
    recipe = behaviours.recipe(known)
    if manipulation.recipe(known) is None:
        raise UserError(f"{name} has no targets to count; choose a play or noisy set of cube, scene or puzzle")
    env = envs.make(
        str(known.env_id), terminate_at_goal=False, max_episode_steps=recipe.length, **dict(recipe.env_kwargs)
    )
    place: Any = env.unwrapped
    draw, reached = place.set_new_target, []

    def counting(**kwargs: Any) -> Any:
        reached.append(bool(place._success))
        return draw(**kwargs)

    place.set_new_target = counting
    began = time.perf_counter()
    for episode in tqdm(range(episodes), desc=name, unit="episode", disable=None):
        collect.play(env, recipe, seed, episode)
    return {
        "dataset": name,
        "episodes": episodes,
        "targets": len(reached),
        "reached": sum(reached),
        "share": sum(reached) / max(1, len(reached)),
        "steps_per_target": episodes * recipe.length / max(1, len(reached)),
        "seconds_per_episode": (time.perf_counter() - began) / episodes,
    }


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    settings = flags.read(Settings, arguments, __doc__ or "")
    if settings is None:
        return 0
    if settings.episodes < 1:
        raise UserError(f"--episodes={settings.episodes} is too small; the least is 1")
    report = {
        "command": " ".join(["python", "experiments/oracle_success.py", *arguments[1:]]),
        "git_commit": git_commit(),
        "hardware": hardware(),
        "versions": versions("ogbench", "mujoco", "gymnasium", "numpy"),
        "seed": settings.seed,
        "results": [measure(name, settings.episodes, settings.seed) for name in settings.envs.split(",")],
    }
    for result in report["results"]:
        print(f"{result['dataset']:>24}  {result['reached']} of {result['targets']} targets reached")
    if settings.out:
        Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
        loggers.write_json(Path(settings.out), report)
    else:
        print(json.dumps(report))
    return 0


if __name__ == "__main__":
    flags.run(main)
