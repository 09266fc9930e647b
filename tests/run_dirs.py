"""Made-up run directories, for tests of what reads them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowrl.config import flatten
from flowrl.experiment.settings import Settings
from flowrl.run_folder import texts

TASK = "cube-double-play-singletask-task2"
TEN = [0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.5, 0.6]
"""A task with released curves, and a curve of ten evaluations."""


def make_run(
    folder: Path,
    curves: dict[int, list[float]],
    agent: str = "gcbc",
    env: str = "pointmaze-medium-navigate",
    preset: str = "paper",
    sha: str = "ab" * 32,
    steps: int = 0,
    **fields: Any,
) -> Path:
    """Writes a run: for each seed its success after updates 100, 200, …; tasks 1 and 2 lie 0.1 beside their mean.

    It was to have so many steps, or those that it has.
    """
    folder.mkdir()
    seeds, steps = list(curves), steps or 100 * max(len(curve) for curve in curves.values())
    settings = {"agent": agent, "env": env, "preset": preset, "steps": steps, "online.steps": 0, "seed": seeds[0]}
    settings |= {"num_seeds": len(seeds), "log.interval": 50, "eval.interval": 100, "eval.episodes": 10}
    of_agent = {"alpha": 3.0, "hidden_dims": [8, 8]} | fields
    told = "".join(f" --agent.{name}={texts.shown(value)}" for name, value in of_agent.items())
    config = {
        "command": f"python experiments/main.py --agent={agent} --env={env}{told}",
        "settings": settings | {"checkpoint.interval": 100},
        "agent_config": of_agent,
        "incidental": [entry.name for entry in flatten(Settings()) if not entry.field.metadata["learning"]],
        "seeds": seeds,
        "preset": {"name": preset, "source": "somewhere"},
        "data": {
            "path": f"/home/me/{env}-v0.npz",
            "origin": "collected",
            "detail": "collected by flowrl (not the official download), 5 of 9 episodes, seed 0, /home/me/x.npz",
            "sha256": sha,
        },
        "task": {
            "observation": [2],
            "action": [2],
            "goal": [2],
            "goals_are_states": True,
            "action_low": [-1.0, -1.0],
            "action_high": [1.0, 1.0],
        },
        "hardware": "an abacus, 2 cores",
        "versions": {"jax": "1"},
        "git_commit": "0123456789abcdef-dirty",
    }
    (folder / "config.json").write_text(json.dumps(config))
    lines = [
        dict(step=100 * (index + 1), run=run, seed=seed, mode="eval", task=task, success=mean + sign * 0.1)
        | dict(episodes=10, length=9.0)
        for run, (seed, curve) in enumerate(curves.items())
        for index, mean in enumerate(curve)
        for task, sign in ((1, -1), (2, 1))
    ]
    (folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    times = [dict(step=step, steps_per_second=rate) for step, rate in ((150, 2.5), (300, 5.0))]
    (folder / "time.jsonl").write_text("".join(json.dumps(line) + "\n" for line in times))
    return folder


def official(folder: Path, curve: Sequence[float] = TEN, each: int = 100_000, **given: Any) -> Path:
    """Writes a run of FQL with two seeds on OGBench's own data, evaluated every `each` updates."""
    changed = {name: given.pop(name) for name in [*given] if "." in name or name == "max_episode_steps"}
    origin = given.pop("origin", "official")
    make_run(folder, {0: [*curve], 1: [*curve]}, **{"agent": "fql", "env": TASK, "batch_size": 256, **given})
    config = json.loads((folder / "config.json").read_text())
    config["settings"] |= {"steps": each * len(curve), "eval.interval": each} | changed
    if origin == "official":
        config["data"] |= {"origin": origin, "detail": "official download"}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    lines = [line | {"step": line["step"] // 100 * each} for line in lines]
    (folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def make_sweep(folder: Path, *, begun: bool = True) -> Path:
    """Writes the record of a sweep with one part, and its folder if that has `begun`."""
    settings = {"agent": "gcbc", "env": "pointmaze-medium-navigate"}
    parts = [{"folder": "group1", "fixed": {}, "runs": [{"seed": 0}]}]
    folder.mkdir()
    record = {"command": "python ...", "settings": settings, "grid": {}, "parts": parts}
    (folder / "sweep.json").write_text(json.dumps(record))
    if begun:
        make_run(folder / "group1", {0: [0.5]})
    return folder
