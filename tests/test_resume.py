"""Interrupted and continued runs equal undisturbed ones bit for bit, through the real command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from commands import ROOT, main

from flowrl.errors import UserError
from flowrl.run_folder.layout import sole_owner, unused

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
PROGRAM = str(ROOT / "experiments" / "main.py")
KILL_SELF = """
import os, runpy, signal, sys
event, part = sys.argv[1:3]
def hook(name, arguments):
    if name == event and any(part in str(argument) for argument in arguments):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small point maze file: 10 episodes of 50 rows around the first cell."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (10, 50, 2)).astype(np.float32)
    observations = (0.2 * np.cumsum(actions, axis=1)).astype(np.float32)
    terminals = np.zeros((10, 50), bool)
    terminals[:, -1] = True
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    flat = dict(observations=observations.reshape(-1, 2), actions=actions.reshape(-1, 2), terminals=terminals.ravel())
    np.savez(path, **flat)
    return path


def command(data: Path, run_dir: Path, *extra: str) -> list[str]:
    flags = [
        "--agent=gcivl", "--env=pointmaze-medium-navigate", "--preset=none", f"--data={data}", f"--run_dir={run_dir}",
        "--agent.hidden_dims=8", "--agent.batch_size=8", "--num_seeds=2", "--steps=400", "--log.interval=50",
        "--checkpoint.interval=100", "--eval.interval=200", "--eval.episodes=0", "--workers=1",
        "--max_episode_steps=300",
    ]  # fmt: skip
    return [*flags, *extra]


def run(arguments: list[str]) -> None:
    """Runs in this process, of which nothing is tested that ends one."""
    assert main(*arguments) == 0


def resume(run_dir: Path, *extra: str) -> None:
    run(["--resume", f"--run_dir={run_dir}", *extra])


def kill_at(event: str, part: str, arguments: list[str]) -> None:
    """Runs in a process that kills itself at such an event."""
    killed = subprocess.run([sys.executable, "-c", KILL_SELF, event, part, PROGRAM, *arguments], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()


def assert_same_run(one: Path, other: Path, step: int) -> None:
    """Asserts equal log lines and equal parameters, moments and counters."""
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert (one / name).exists() == (other / name).exists()
        if (one / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes()
    restore = ocp.PyTreeCheckpointer().restore
    arrays = [restore(folder.absolute() / "checkpoints" / str(step) / "arrays") for folder in (one, other)]
    assert len(jax.tree.leaves(arrays[0])) > 20
    jax.tree.map(np.testing.assert_array_equal, *arrays)


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run(command(data, folder))
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [step for step in range(50, 401, 50) for _ in range(2)]
    return folder


@pytest.mark.slow
def test_a_finished_run_goes_on_to_more_steps(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    run(command(data, tmp_path / "run", "--steps=230"))  # between log lines: the last one is a part of a totals
    assert '"step": 230' in (tmp_path / "run" / "metrics.jsonl").read_text()
    resume(tmp_path / "run", "--steps=400")
    assert_same_run(undisturbed, tmp_path / "run", 400)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "part"),
    [("open", "checkpoints/200.orbax-checkpoint-tmp"), ("os.rename", "checkpoints/200.orbax-checkpoint-tmp")],
    ids=["as its files are written", "just before it is renamed"],
)
def test_kill_during_a_checkpoint_write(data: Path, undisturbed: Path, tmp_path: Path, event: str, part: str) -> None:
    folder = tmp_path / "run"
    kill_at(event, part, command(data, folder))
    assert not (folder / "checkpoints" / "200").exists()
    assert (folder / "checkpoints" / "100").exists()
    assert '"step": 200' in (folder / "metrics.jsonl").read_text()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 250, "run": 0, "tra')  # a torn line, as a kill during a write leaves it
    resume(folder)
    assert_same_run(undisturbed, folder, 400)


def wait_for(path: Path, text: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not (path.exists() and text in path.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_begins_anew(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    kill_at("open", "checkpoints/0.orbax-checkpoint-tmp", command(data, folder))
    resume(folder)
    assert_same_run(undisturbed, folder, 400)


def test_a_run_directory_belongs_to_one_process(tmp_path: Path) -> None:
    with sole_owner(tmp_path), pytest.raises(UserError, match="another process"), sole_owner(tmp_path):
        pass
    with sole_owner(tmp_path):
        pass


def test_what_a_kill_before_config_json_leaves_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / ".config.json.0a1b.tmp").touch()
    with sole_owner(tmp_path):
        assert unused(tmp_path)
        (tmp_path / "checkpoints" / "100").mkdir()
        assert not unused(tmp_path)


@pytest.fixture(scope="module")
def undisturbed_with_evaluation(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    run(command(data, folder, "--eval.episodes=1"))
    lines = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    assert [(line["step"], line["run"], line["task"]) for line in lines] == [
        (step, run, task) for step in (200, 400) for run in range(2) for task in range(1, 6)
    ]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_training_or_evaluation(
    data: Path, undisturbed_with_evaluation: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """The signal goes to the whole process group, as from a terminal or a batch system."""
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, PROGRAM, *command(data, folder, "--eval.episodes=1")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(folder / "metrics.jsonl", '"step": 200', process)  # the evaluation at 200 is about to begin
    time.sleep(0.3)
    os.killpg(process.pid, number)
    stdout, stderr = process.communicate(timeout=120)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number, stderr
        assert "--resume" in stdout
        assert "Traceback" not in stderr
    resume(folder)
    assert_same_run(undisturbed_with_evaluation, folder, 400)


FAULTS = {
    "flowrl/run_folder/layout.py": [
        ("            left.unlink()\n", "            pass\n", "test_what_a_kill_before_config_json_leaves_is_no_run"),
        (
            " and not any((folder / CHECKPOINTS)",
            " and any((folder / CHECKPOINTS)",
            "test_what_a_kill_before_config_json_leaves_is_no_run",
        ),
    ],
}
