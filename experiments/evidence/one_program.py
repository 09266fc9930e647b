"""Trains seeds in one program and as processes one after another, and compares time and memory.

python experiments/evidence/one_program.py --agent=sscp --seeds=16 --updates=2000 --agent.hidden_dims=64,64

Both train by experiments/main.py on noise, without evaluation; flags of the agent are passed on.
"""

if __name__ == "__main__":
    import flowrl.cli.start  # noqa: F401 - before the other imports, which take seconds

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flowrl.cli import flags, shared
from flowrl.config import MOST_COUNT, MOST_WORKERS, record, static
from flowrl.errors import UserError
from flowrl.machine.provenance import git_commit, hardware, versions
from flowrl.run_folder import logs

MAIN = Path(__file__).parents[1] / "main.py"
EPISODES, LENGTH = 100, 1001


@record
class Settings:
    """What to measure."""

    agent: str = static("sscp", "Algorithm.")
    seeds: int = static(16, "Seeds in one program, and processes.", high=MOST_WORKERS)
    updates: int = static(1000, "Updates of each seed.", high=MOST_COUNT)
    out: str = static("one_program.json", "JSON file for the numbers.")


def write_noise(path: Path) -> None:
    """Writes noise in the shape of Pendulum's data; times do not depend on the values."""
    rng, rows = np.random.default_rng(0), EPISODES * LENGTH
    np.savez(
        path,
        observations=rng.standard_normal((rows, 3), np.float32),
        actions=rng.uniform(-1, 1, (rows, 1)).astype(np.float32),
        rewards=rng.standard_normal(rows, np.float32),
        masks=np.ones(rows, np.float32),
        terminals=np.arange(1, rows + 1) % LENGTH == 0,
    )


def train(arguments: Sequence[str]) -> dict[str, float]:
    """Runs experiments/main.py to its end; returns its seconds, those of compilation, and its most memory in MB."""
    began = time.perf_counter()
    command = [sys.executable, str(MAIN), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"a training failed: {' '.join(command)}\n{said}")
    return {
        "seconds": time.perf_counter() - began,
        "compile_seconds": sum(map(float, re.findall(r"compiled in ([\d.]+) s", said))),
        "peak_megabytes": usage.ru_maxrss / 1024,
    }


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    split = shared.own_and_other(
        Settings(), arguments, __doc__ or "", fixed=("env", "data", "seed", "num_seeds", "steps")
    )
    if split is None:
        return 0
    settings, passed_on = split
    with tempfile.TemporaryDirectory() as name:
        folder, interval = Path(name), settings.updates
        write_noise(folder / "data.npz")
        common = [
            f"--agent={settings.agent}", "--env=Pendulum-v1", "--preset=none", f"--data={folder}/data.npz",
            f"--steps={interval}", f"--log.interval={interval}", f"--eval.interval={interval}", "--eval.episodes=0",
            f"--checkpoint.interval={interval}", *passed_on,
        ]  # fmt: skip
        together = train([*common, f"--num_seeds={settings.seeds}", f"--run_dir={folder}/together"])
        each = [train([*common, f"--seed={seed}", f"--run_dir={folder}/{seed}"]) for seed in range(settings.seeds)]
    apart = {name: sum(one[name] for one in each) for name in ("seconds", "compile_seconds")}
    apart["peak_megabytes"] = max(one["peak_megabytes"] for one in each)
    training = [times["seconds"] - times["compile_seconds"] for times in (apart, together)]
    report = {
        "command": " ".join(["python", "experiments/evidence/one_program.py", *arguments[1:]]),
        "git_commit": git_commit(),
        "hardware": hardware(),
        "versions": versions("jax", "jaxlib"),
        "one_program": together,
        "processes": apart,
        "ratio_of_seconds": apart["seconds"] / together["seconds"],
        "ratio_without_compilation": training[0] / training[1],
    }
    logs.write_json(Path(settings.out), report)
    print(report)
    return 0


if __name__ == "__main__":
    flags.run(main)
