"""Trains the policies that collected MuJoCo sets are sampled from: python experiments/snapshots.py --body=hopper.

Training is `experiments/main.py --agent=sac` on the body's task in --run_dir, all checkpoints kept; every other flag is
passed on to it. The same command continues a training that was broken off; a finished one is only exported. Policies
up to medium and the expert, as flowrl.collection.mujoco_sets defines them, go to <out>/<body>.npz, what they do to
.json.
"""

if __name__ == "__main__":
    import flowrl.cli.start  # noqa: F401 - before the other imports, which take seconds

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowrl.cli import flags, shared
from flowrl.collection import experts, mujoco_sets
from flowrl.config import MOST_EPISODES, record, static
from flowrl.envs import making
from flowrl.errors import UserError
from flowrl.experiment.stored import command, read_config, read_plan
from flowrl.machine.files import make_folder, replacing
from flowrl.run_folder import logs
from flowrl.training.checkpoint import Checkpoints

MAIN = Path(__file__).with_name("main.py")
DEFAULTS = {
    "agent": "sac",
    "online.steps": "240000",
    "online.buffer_size": "240000",
    "checkpoint.interval": "20000",
    "checkpoint.keep": "0",
}


@record
class Settings:
    """The flags of this program itself."""

    body: str = static("hopper", f"{', '.join(mujoco_sets.BODIES)}.")
    run_dir: str = static("", "Folder of the training; runs/snapshots-<body> if absent.")
    out: str = static("flowrl/collection/experts", "Folder for the policies.")
    episodes: int = static(20, "Episodes in which the return of each policy is measured.", high=MOST_EPISODES)


def load(folder: Path) -> dict[int, experts.Layers]:
    """Returns the first run's policy at each multiple of the interval between checkpoints, but 0, and at the end.

    A run that was stopped for a while has another checkpoint where it was.
    """
    interval = read_plan(folder)[0].settings.checkpoint.interval
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    steps = [step for step in checkpoints.steps() if step and (step % interval == 0 or step == checkpoints.latest())]
    found = {step: experts.of_actor(checkpoints.raw(step)["states"]["params"]["actor"]) for step in steps}
    checkpoints.close()
    return found


def episode_returns(body: str, policy: experts.Layers, episodes: int) -> list[float]:
    """Returns what the first episode of each of several stretches of a policy's samples comes to.

    Of the later ones the long ones would be cut off more often.
    """
    made = making.make(mujoco_sets.BODIES[body], max_episode_steps=mujoco_sets.STRETCH)
    returns: list[float] = []
    for number in range(episodes):
        rows = mujoco_sets.rollout(made, policy, mujoco_sets.STRETCH, np.random.SeedSequence([1, number]))
        end = int(np.argmax(rows["terminals"] | rows["timeouts"]))
        returns.append(float(rows["rewards"][: end + 1].sum(dtype=np.float64)))
    return returns


def choose(returns: np.ndarray) -> list[int]:
    """Indices of the policies to keep: all up to medium, and the expert."""
    return sorted({*range(mujoco_sets.medium(returns) + 1), int(returns.argmax())})


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    fixed = ("agent", "env", "checkpoint.keep", "agent.activation")  # policies are read with ReLU, SAC's default
    split = shared.own_and_other(Settings(), arguments, __doc__ or "", fixed=fixed)
    if split is None:
        return 0
    settings, passed_on = split
    body = settings.body
    if body not in mujoco_sets.BODIES:
        raise UserError(f"--body={body} is unknown; choose {', '.join(mujoco_sets.BODIES)}")
    folder, out = Path(settings.run_dir or f"runs/snapshots-{body}"), Path(settings.out)
    defaults = [f"--{name}={value}" for name, value in DEFAULTS.items()]
    shared.train(MAIN, folder, [f"--env={mujoco_sets.BODIES[body]}", *defaults, *passed_on])
    report(body, folder, out, load(folder), settings.episodes)
    return 0


def report(body: str, folder: Path, out: Path, found: dict[int, experts.Layers], episodes: int) -> None:
    """Measures all policies, and writes the chosen ones and what all do."""
    measured = {step: episode_returns(body, policy, episodes) for step, policy in found.items()}
    steps = np.array([*found])
    returns = np.array([np.mean(measured[step]) for step in found])
    kept = choose(returns)
    arrays = [experts.named(found[steps[i]]) for i in kept]
    stacked = {name: np.stack([each[name] for each in arrays]) for name in arrays[0]}
    path = out / f"{body}.npz"
    make_folder(out)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, steps=steps[kept], returns=returns[kept], **stacked)
    config = read_config(folder)
    record: dict[str, Any] = {
        "made_by": command(config),
        **{name: config[name] for name in ("git_commit", "hardware", "versions", "seeds")},
        "returns": "of episodes of samples; evaluation during training takes the mode",
        "policies": [
            {
                "step": int(step),
                "return": float(returns[i]),
                "episodes": [round(value, 1) for value in measured[int(step)]],
                "kept_as": _role(i, returns, kept),
            }
            for i, step in enumerate(steps)
        ],
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    logs.write_json(path.with_suffix(".json"), record)
    for policy in record["policies"]:
        print(f"step {policy['step']:>9,}  return {policy['return']:8.1f}  {policy['kept_as']}")


def _role(index: int, returns: np.ndarray, kept: list[int]) -> str:
    if index == returns.argmax():
        return "expert"
    if index == mujoco_sets.medium(returns):
        return "medium"
    return "replay" if index in kept else ""


if __name__ == "__main__":
    flags.run(main)
