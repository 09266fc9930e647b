"""Kills a sweep again and again and compares what it came to.

python experiments/evidence/kill_sweep.py --kills=20 --out=FILE

A small sweep (two static groups × three values, one of which diverges, × two seeds) is run undisturbed; then the same
is killed at random moments and continued by the same command, until so many kills have been made and it has ended.
Where it ends before, another one is begun. The moments lie half in the start of a process (imports, data, compilation),
half in what follows; the signals are SIGKILL and SIGTERM, to the main process or to its whole group. The end is
compared: arrays of the newest checkpoints bit for bit, log lines and summaries byte for byte, and no file may be left
over.
"""

if __name__ == "__main__":
    import flowrl.cli.start  # noqa: F401 - before the other imports, which take seconds

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from flowrl.cli import flags
from flowrl.config import MOST_COUNT, record, static
from flowrl.errors import UserError
from flowrl.experiment.resuming import DROPPED
from flowrl.machine.provenance import git_commit, hardware, versions
from flowrl.run_folder import logs
from flowrl.run_folder.layout import CHECKPOINTS, LOCK, SWEEP
from flowrl.training.checkpoint import Checkpoints

PROGRAM = Path(__file__).parents[1] / "sweep.py"
EVAL_INTERVAL = 1000
FLAGS = (
    "--agent=sscp", "--env=Pendulum-v1", "--preset=none", "--agent.hidden_dims=16,16:32", "--agent.batch_size=32",
    "--agent.learning_rate=0.0003,0.001,1e20", "--num_seeds=2", "--steps=4000", "--log.interval=100",
    "--checkpoint.interval=250", f"--eval.interval={EVAL_INTERVAL}", "--eval.episodes=20", "--workers=2",
)  # fmt: skip
SIGNALS = {
    "SIGKILL to all": (signal.SIGKILL, True),
    "SIGKILL": (signal.SIGKILL, False),
    "SIGTERM to all": (signal.SIGTERM, True),
    "SIGTERM": (signal.SIGTERM, False),
}
PATIENCE = 300
"""Seconds that a process may take to end after SIGTERM."""


@record
class Settings:
    """What to do."""

    kills: int = static(20, "Kills in all.", high=10_000)
    seed: int = static(0, "Of the moments and signals.", low=0, high=MOST_COUNT)
    folder: str = static("", "Empty folder for the sweeps; a temporary one if absent.")
    out: str = static("", "JSON file for the record.")


def save_data(path: Path) -> None:
    """Writes transitions in the shape of Pendulum's, 10 episodes of 200 rows of noise."""
    rng, rows = np.random.default_rng(0), 2000
    np.savez(
        path,
        observations=rng.normal(size=(rows, 3)),
        actions=rng.uniform(-2, 2, (rows, 1)),
        rewards=rng.normal(size=rows),
        terminals=np.zeros(rows, bool),
        timeouts=np.arange(rows) % 200 == 199,
    )


# ------------------------------------------------------------------------------------------------------- running


class Attempt:
    """One process of the sweep, in a process group of its own, whose output goes to a file."""

    def __init__(self, folder: Path, data: Path, log: Path):
        self.folder, self.log = folder, log
        command = [sys.executable, str(PROGRAM), *FLAGS, f"--data={data}", f"--run_dir={folder}"]
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        self._began = time.perf_counter()

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves no process behind where this program is interrupted."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def seconds(self) -> float:
        """Its age."""
        return time.perf_counter() - self._began

    @property
    def said(self) -> str:
        """What it has printed."""
        return self.log.read_text()

    def lasts(self, seconds: float) -> bool:
        """Waits for this age; whether it got that old."""
        try:
            self.process.wait(max(0.0, seconds - self.seconds))
        except subprocess.TimeoutExpired:
            return True
        return False

    def kill(self, kind: str) -> dict[str, Any]:
        """Sends it a signal, waits for its end and returns the record."""
        number, to_all = SIGNALS[kind]
        if number == signal.SIGTERM:
            record: dict[str, Any] = {"signal": kind, "second": round(self.seconds, 2), "amid": self.phase()}
        (os.killpg if to_all else os.kill)(self.process.pid, number)
        if number == signal.SIGKILL:  # which leaves all as it is
            record = {"signal": kind, "second": round(self.seconds, 2), "amid": self.phase()}
        sent = self.seconds
        status = self.process.wait(PATIENCE)
        return record | {"exit_status": status, "seconds_to_end": round(self.seconds - sent, 2)}

    def end(self) -> None:
        """Waits for its end.

        Raises:
            UserError: It did not finish.
        """
        if status := self.process.wait():
            raise UserError(f"the sweep in {self.folder} ended with status {status}: {self.said[-2000:]}")

    def phase(self) -> str:
        """Says what it is doing, by its files and by what it has printed."""
        if not (self.folder / SWEEP).exists():
            return "start, before sweep.json"
        *_, now = ["", *self.said.split("\n[")]
        if "] group" not in now:
            return "start"
        part = self.folder / now.split("] ")[1].split(":")[0]
        if (part / "summary.json").exists():
            return f"after {part.name}"
        return f"{part.name}, {_phase(part, now)}"


def _phase(part: Path, said: str) -> str:
    """Says what is being done in a part of the sweep, of which the process has said this."""
    if not (part / "config.json").exists():
        return "data and networks"
    names = [path.name for path in (part / CHECKPOINTS).glob("*")]
    steps = [int(name) for name in names if name.isdigit()]
    if not steps:
        return "before the first checkpoint"
    if len(steps) < len(names):
        return f"writing a checkpoint after {max(steps)}"
    if "compiled in" not in said:
        return f"{'compiling' if 'device' in said else 'data and networks'}, at {max(steps)}"
    logged, evaluated = (_last_step(part / f"{name}.jsonl") for name in ("metrics", "eval"))
    what = "evaluating" if logged % EVAL_INTERVAL == 0 and evaluated < logged else "training"
    return f"{what} after {logged}"


def _last_step(path: Path) -> int:
    return max((line["step"] for line in logs.read_lines(path)), default=0)


def run_undisturbed(folder: Path, data: Path, log: Path) -> tuple[float, float]:
    """Runs the sweep; returns its seconds until the first log line, and in all."""
    first = 0.0
    with Attempt(folder, data, log) as attempt:
        while attempt.process.poll() is None:
            if not first and (folder / "group1" / "metrics.jsonl").exists():
                first = attempt.seconds
            time.sleep(0.01)
        attempt.end()
        return first, attempt.seconds


def run_killed(
    folder: Path, data: Path, kills: int, seed: int, first: float, whole: float
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Runs sweeps, killed so often in all; returns the record of each kill, and the sweeps' folders."""
    rng, records, folders = random.Random(seed), list[dict[str, Any]](), [folder / "killed1"]
    logs = (folder / f"log{index}" for index in range(10 * kills))
    bar = tqdm(total=kills, unit="kill", disable=None)
    while len(records) < kills:
        moment = rng.uniform(0, first)
        if rng.random() < 0.5:
            moment = first + rng.uniform(0, 4 * (whole - first) / kills)
        kind = rng.choice([*SIGNALS])
        with Attempt(folders[-1], data, next(logs)) as attempt:
            if attempt.lasts(moment):
                records.append({"sweep": folders[-1].name, **attempt.kill(kind)})
                bar.update()
                bar.write(json.dumps(records[-1]))
            else:
                attempt.end()
                folders.append(folder / f"killed{len(folders) + 1}")
    bar.close()
    with Attempt(folders[-1], data, next(logs)) as attempt:
        attempt.end()
    return records, folders


# ----------------------------------------------------------------------------------------------------- comparing


def differences(one: Path, other: Path) -> list[str]:
    """Returns what differs between the folders of two sweeps."""
    found = [f"{name} only in one of both" for name in sorted(files(one) ^ files(other))]
    for name in sorted(files(one) & files(other)):
        if name.endswith("time.jsonl"):
            steps = [[line["step"] for line in logs.read_lines(folder / name)] for folder in (one, other)]
            equal = steps[0] == steps[1]
        else:
            equal = (one / name).read_bytes() == (other / name).read_bytes()
        found += [] if equal else [name]
    for part in logs.read_json(one / SWEEP)["parts"]:
        name = f"{part['folder']}/{CHECKPOINTS}"
        found += _checkpoint_differences(one / name, other / name)
    return found


def files(folder: Path) -> set[str]:
    """Returns the names of a sweep's files, without those of checkpoints and of lines that a kill took out of logs."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != LOCK}
    return {name for name in names if CHECKPOINTS not in name and not name.endswith(DROPPED)}


def _checkpoint_differences(one: Path, other: Path) -> list[str]:
    """Returns what differs in the newest checkpoints of two runs, and what is no checkpoint."""
    found = [f"{path} left over" for path in other.iterdir() if not path.name.isdigit()]
    managers = [Checkpoints(folder, read_only=True) for folder in (one, other)]
    steps = [manager.latest() for manager in managers]
    if steps[0] != steps[1] or managers[0].facts() != managers[1].facts():
        return [*found, f"{one}: {steps}"]
    leaves = [jax.tree.leaves_with_path(manager.raw()) for manager in managers]
    for (path, mine), (_, theirs) in zip(*leaves, strict=True):
        if not np.array_equal(mine, theirs, equal_nan=True):
            found.append(f"{one} {jax.tree_util.keystr(path)}")
    for manager in managers:
        manager.close()
    return found


# ------------------------------------------------------------------------------------------------------- program


def measure(folder: Path, settings: Settings) -> dict[str, Any]:
    """Runs all and returns the numbers."""
    data = folder / "data.npz"
    save_data(data)
    first, whole = run_undisturbed(folder / "undisturbed", data, folder / "log")
    print(f"undisturbed: {whole:.1f} s, the first log line after {first:.1f} s", flush=True)
    records, folders = run_killed(folder, data, settings.kills, settings.seed, first, whole)
    found = {killed.name: differences(folder / "undisturbed", killed) for killed in folders}
    parts = logs.read_json(folder / "undisturbed" / SWEEP)["parts"]
    lines = [len(logs.read_lines(folder / "undisturbed" / part["folder"] / "metrics.jsonl")) for part in parts]
    return {
        "seconds_undisturbed": round(whole, 1),
        "seconds_until_the_first_log_line": round(first, 1),
        "log_lines_compared": sum(lines) * len(folders),
        "kills": records,
        "sweeps": len(folders),
        "differences": found,
        "verdict": "equal" if not any(found.values()) else "different",
    }


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status: 1 if the outcomes differ."""
    settings = flags.read(Settings(), arguments, __doc__ or "")
    if settings is None:
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(settings.folder or temporary).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; choose another --folder")
        numbers = measure(folder, settings)
    report = {
        "command": f"python experiments/evidence/kill_sweep.py --kills={settings.kills} --seed={settings.seed}",
        "sweep": " ".join(["python experiments/sweep.py", *FLAGS, "--data=FILE"]),
        "git_commit": git_commit(),
        "hardware": hardware(),
        "versions": versions("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "gymnasium"),
        **numbers,
    }
    print(f"{settings.kills} kills: {report['verdict']} {json.dumps(report['differences'])}")
    if settings.out:
        Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
        logs.write_json(Path(settings.out), report)
    return int(report["verdict"] != "equal")


if __name__ == "__main__":
    flags.run(main)
