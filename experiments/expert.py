"""Trains, exports and measures the expert that walks in collected mazes: python experiments/expert.py --body=ant.

Training is `experiments/main.py --agent=sac` in --run_dir on OGBench's task for that body: ant and humanoid walk in
directions, antball moves a ball to a goal and needs OpenGL (MUJOCO_GL=egl). Every other flag is passed on to it. The
same command continues a training that was broken off; a finished one is only exported and measured. The policy goes to
<out>/<body>.npz, what it does to <out>/<body>.json, and paths to <body>.png.
"""

if __name__ == "__main__":
    import flowrl.cli.start  # noqa: F401 - before the other imports, which take seconds

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowrl.cli import flags, shared
from flowrl.collection import experts
from flowrl.config import MOST_EPISODES, record, static
from flowrl.envs import locomotion, making
from flowrl.errors import UserError
from flowrl.experiment.stored import command, read_config
from flowrl.machine.files import make_folder, replacing
from flowrl.run_folder import logs
from flowrl.run_folder.statistics import mean_interval
from flowrl.training.checkpoint import Checkpoints

MAIN = Path(__file__).with_name("main.py")
RELU = ("--agent.activation=relu", "--agent.critic.activation=relu")
"""What exported policies are read with; OGBench's has GELU."""
# For the ant half of OGBench's updates, with three times its step size; for the others OGBench's settings.
DEFAULTS = {"ant": ("--online.updates_per_step=0.5", "--agent.learning_rate=3e-4")}
STEPS = 1000
"""Environment steps of a measured episode."""
COMPASS = 8
"""Fixed directions whose paths are drawn."""


@record
class Settings:
    """The flags of this program itself."""

    body: str = static("ant", "ant, humanoid or antball.")
    run_dir: str = static("", "Folder of the training; runs/expert-<body> if absent.")
    out: str = static("flowrl/collection/experts", "Folder for the expert.")
    episodes: int = static(20, "Episodes with changing directions that are measured.", high=MOST_EPISODES)


def export(body: str, folder: Path, out: Path) -> Path:
    """Writes the first run's policy and returns its path."""
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    arrays = experts.named(experts.of_actor(checkpoints.raw()["states"]["params"]["actor"]))
    checkpoints.close()
    path = out / f"{body}.npz"
    make_folder(out)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path


# -------------------------------------------------------------------------------------------------- measurement


def play(body: str, policy: experts.Layers, seed: int, direction: np.ndarray | None = None) -> dict[str, Any]:
    """Plays `STEPS` steps, from a new start after each fall, in one direction or in OGBench's changing ones."""
    interval = {"resample_interval": 100 if direction is None else 10 * STEPS}
    env = making.make(experts.BODIES[body], module=locomotion.__name__, **interval)
    observation, _ = env.reset(seed=seed)
    distance, falls, path = 0.0, 0, [[0.0, 0.0]]
    for _ in range(STEPS):
        if direction is not None:
            env.set_wrapper_attr("z", direction)
            observation[-2:] = direction
        action = experts.act(policy, np.concatenate([np.zeros(2), observation[:-2]]), observation[-2:])
        before, wanted = env.unwrapped.data.qpos[:2].copy(), observation[-2:].copy()  # type: ignore[attr-defined]
        observation, _, terminated, _, _ = env.step(action)
        moved = env.unwrapped.data.qpos[:2] - before  # type: ignore[attr-defined]
        distance += float(moved @ wanted)
        path.append((np.array(path[-1]) + moved).tolist())
        if terminated:
            falls += 1
            observation, _ = env.reset(seed=seed + falls)
    seconds = STEPS * env.unwrapped.dt  # type: ignore[attr-defined]
    return {"distance": distance, "velocity": distance / seconds, "falls": falls, "path": path}


def kick(policy: experts.Layers, seed: int) -> dict[str, float]:
    """Plays one episode with the ball; returns whether the ball was at its goal in the end, and the return."""
    env = making.make(experts.BODIES["antball"], module=locomotion.__name__)
    observation, _ = env.reset(seed=seed)
    total, done, info = 0.0, False, {"success": 0.0}
    while not done:
        observation, reward, done, _, info = env.step(experts.mode(policy, observation))
        total += float(reward)
    env.close()
    return {"success": info["success"], "return": total}


def measure_ball(policy: experts.Layers, episodes: int) -> dict[str, Any]:
    """Returns what the expert does with the ball."""
    runs = [kick(policy, 1000 * seed) for seed in range(episodes)]
    return {"episodes_of_200_steps": {name: _spread([one[name] for one in runs]) for name in runs[0]}}


def measure(body: str, policy: experts.Layers, episodes: int) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Returns what the expert does, and its paths in fixed directions `[STEPS + 1, 2]`."""
    changing = [play(body, policy, 1000 * seed) for seed in range(episodes)]
    angles = 2 * np.pi * np.arange(COMPASS) / COMPASS
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    fixed = [play(body, policy, 1000 * seed, direction) for seed, direction in enumerate(directions)]
    numbers = {
        name: {
            "distance_per_1000_steps": _spread([one["distance"] for one in runs]),
            "velocity_along_direction_m_per_s": _spread([one["velocity"] for one in runs]),
            "falls_per_1000_steps": _spread([one["falls"] for one in runs]),
        }
        for name, runs in (("directions_changing_every_100_steps", changing), ("fixed_directions", fixed))
    }
    return numbers, [np.array(one["path"]) for one in fixed]


def _spread(values: Sequence[float]) -> dict[str, Any]:
    interval = mean_interval(np.array(values))
    rounded = [round(float(value), 3) for value in values]
    return {"mean": interval.mean, "interval_95": [interval.low, interval.high], "episodes": rounded}


def draw(paths: Sequence[np.ndarray], path: Path) -> None:
    """Draws the paths in fixed directions, each with the direction it should have."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("pictures need matplotlib; install it with: pip install -e '.[plot]'") from error
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    reach = max(float(np.abs(one).max()) for one in paths)
    for index, one in enumerate(paths):
        angle = 2 * np.pi * index / len(paths)
        colour = f"C{index}"
        axes.plot([0, reach * np.cos(angle)], [0, reach * np.sin(angle)], color=colour, linestyle=":", linewidth=1)
        axes.plot(one[:, 0], one[:, 1], color=colour)
    axes.set(
        xlabel="x in m", ylabel="y in m", aspect="equal", title=f"{STEPS} steps in each commanded direction (dotted)"
    )
    with replacing(path) as temporary, open(temporary, "wb") as file:
        figure.savefig(file, format="png", dpi=110)


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    split = shared.own_and_other(Settings(), arguments, __doc__ or "", fixed=("agent", "env", "agent.activation"))
    if split is None:
        return 0
    settings, passed_on = split
    if settings.body not in experts.BODIES:
        raise UserError(f"--body={settings.body} is unknown; choose {', '.join(experts.BODIES)}")
    folder, out = Path(settings.run_dir or f"runs/expert-{settings.body}"), Path(settings.out)
    task, defaults = experts.BODIES[settings.body], DEFAULTS.get(settings.body, ())
    shared.train(MAIN, folder, ["--agent=sac", f"--env={task}", *RELU, *defaults, *passed_on])
    path = export(settings.body, folder, out)
    config = read_config(folder)
    policy = experts.read(path)
    if settings.body == "antball":
        numbers, paths = measure_ball(policy, settings.episodes), list[np.ndarray]()
    else:
        numbers, paths = measure(settings.body, policy, settings.episodes)
    record = {
        "made_by": command(config),
        **{name: config[name] for name in ("git_commit", "hardware", "versions", "seeds")},
        "task": task,
        "policy": "the mode; collection adds noise",
        "measured": numbers,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    logs.write_json(path.with_suffix(".json"), record)
    if paths:
        draw(paths, path.with_suffix(".png"))
    for name, found in numbers.items():
        print(name, {key: round(value["mean"], 3) for key, value in found.items()})
    return 0


if __name__ == "__main__":
    flags.run(main)
