"""Runs over devices and hosts: simulated devices of a CPU, and two local processes as hosts."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import ROOT, main

from flowrl.errors import UserError
from flowrl.experiment.settings import plan
from flowrl.machine import devices, hosts
from flowrl.run_folder import logs
from flowrl.training.checkpoint import Checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
RUNS = 15
"""Two for each of eight devices, but for one that has a copy to fill it up."""
COMMON = (
    "--agent=bc", "--env=Pendulum-v1", "--preset=none", "--agent.hidden_dims=4", "--agent.batch_size=8", "--workers=1",
    "--log.interval=5", "--eval.interval=10", "--checkpoint.interval=10", "--eval.episodes=1",
    "--max_episode_steps=40",
)  # fmt: skip
SEEDS = (*COMMON, f"--num_seeds={RUNS}")


def start(number: int, *runs: tuple[str, ...]) -> subprocess.Popen[str]:
    """Starts a process with so many devices that makes these runs."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={number}"
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "on_devices.py"), json.dumps(runs)],
        env=os.environ | {"XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def on_hosts(*arguments: str, other: tuple[str, ...] = ()) -> list[tuple[int, str, str]]:
    """Runs the same command as two hosts with four devices each; returns each one's status, stdout and stderr."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"--coordinator_address=localhost:{free.getsockname()[1]}"
    connect = (address, "--num_processes=2", "--connect_timeout=120")
    started = [start(4, (*arguments, *connect, f"--process_id={host}", *(other if host else ()))) for host in range(2)]
    ended = []
    for process in started:
        out, err = process.communicate(timeout=400)
        ended.append((process.returncode, out, err))
    return ended


def arrays(folder: Path) -> dict[str, Any]:
    """Returns the arrays of the newest checkpoint by name, without rows that are not runs."""
    checkpoints = Checkpoints(folder / "checkpoints")
    stored = checkpoints.raw()
    checkpoints.close()
    leaves = jax.tree_util.tree_flatten_with_path(stored)[0]
    return {jax.tree_util.keystr(path): np.asarray(x)[:RUNS] if x.ndim else np.asarray(x) for path, x in leaves}


def require_same(one: Path, other: Path) -> None:
    """Requires the same arrays, bit for bit, and the same files."""
    found, expected = arrays(one), arrays(other)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    for file in ("metrics.jsonl", "eval.jsonl", "summary.json"):
        assert (one / file).read_text() == (other / file).read_text(), file


@pytest.fixture(scope="module")
def alone(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on one device, one after another."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert main(*SEEDS, data, "--steps=20", "--map=serial", f"--run_dir={folder}") == 0
    return folder


@pytest.fixture(scope="module")
def spread(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on eight devices: serially for the whole and for half of the way, mapped, and with its batches cut."""
    root = tmp_path_factory.mktemp("spread")
    process = start(
        8,
        (*SEEDS, data, "--steps=20", "--map=serial", f"--run_dir={root / 'serial'}"),
        (*SEEDS, data, "--steps=10", "--map=serial", f"--run_dir={root / 'half'}"),
        (*SEEDS, data, "--steps=20", "--map=vmap", f"--run_dir={root / 'vmap'}"),
        (*COMMON, data, "--steps=20", "--num_seeds=2", "--shard=batch", f"--run_dir={root / 'batch'}"),
        (
            "--agent=td3", "--env=Pendulum-v1", "--preset=none", "--agent.hidden_dims=4", "--agent.batch_size=4",
            "--online.steps=20", "--online.warmup_steps=5", "--log.interval=10", "--eval.interval=20",
            "--eval.episodes=1", "--checkpoint.interval=20", "--workers=1", "--num_seeds=10", "--map=serial",
            "--online.buffer_size=20", "--max_episode_steps=40", f"--run_dir={root / 'online'}",
        ),
    )  # fmt: skip
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    used = [line.split("device  ")[1].split(" (")[0] for line in out.splitlines() if "device  " in line]
    assert used == ["8 × cpu"] * 4 + ["5 × cpu"]
    return root


@pytest.mark.slow
def test_serial_runs_on_eight_devices_are_those_on_one(alone: Path, spread: Path) -> None:
    require_same(spread / "serial", alone)
    checkpoints = Checkpoints(spread / "serial" / "checkpoints")
    assert checkpoints.raw()["states"]["params"]["actor"] is not None
    assert {len(x) for x in jax.tree.leaves(checkpoints.raw()["states"]["params"])} == {RUNS + 1}
    checkpoints.close()


@pytest.mark.slow
def test_runs_go_on_with_other_devices_and_hosts(alone: Path, spread: Path) -> None:
    """Half of the way on eight devices of one host, the rest on four of each of two: the same as on one."""
    ended = on_hosts("--resume", "--steps=20", f"--run_dir={spread / 'half'}")
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert "host 0 of 2, 4 of 8 devices" in ended[0][1]
    assert "resuming from update 10" in ended[0][1]
    said = [line for line in ended[1][1].splitlines() if not line.startswith("[Gloo]")]
    assert said == ["host 1 of 2, 4 of 8 devices"]  # the first speaks for all
    require_same(spread / "half", alone)


@pytest.mark.slow
def test_mapped_runs_on_eight_devices_agree_with_one_up_to_rounding(alone: Path, spread: Path) -> None:
    """The tolerance is that of reproducibility.md, for runs mapped together against runs alone."""
    expected = arrays(alone)
    for name, array in arrays(spread / "vmap").items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    one, other = (logs.read_lines(folder / "metrics.jsonl") for folder in (alone, spread / "vmap"))
    assert [(line["step"], line["run"], line["seed"]) for line in one] == [
        (line["step"], line["run"], line["seed"]) for line in other
    ]


@pytest.mark.slow
def test_cut_batches_train_the_same_runs_up_to_rounding(alone: Path, spread: Path) -> None:
    expected = arrays(alone)
    for name, array in arrays(spread / "batch").items():
        np.testing.assert_allclose(array, expected[name][:2] if array.ndim else expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_online_runs_on_several_devices_are_those_on_one(spread: Path, tmp_path: Path) -> None:
    """Ten runs on five devices, for there are no environments to fill devices up."""
    stored = logs.read_json(spread / "online" / "config.json")
    flags = stored["command"].removeprefix("python experiments/main.py ").split()
    assert main(*flags, f"--run_dir={tmp_path / 'run'}") == 0
    for file in ("metrics.jsonl", "eval.jsonl", "summary.json"):
        assert (spread / "online" / file).read_text() == (tmp_path / "run" / file).read_text(), file


@pytest.mark.slow
def test_hosts_with_different_commands_are_told_apart(data: str, tmp_path: Path) -> None:
    """Each in a folder of its own, as if they did not share it."""
    folders = [f"--run_dir={tmp_path / name}" for name in ("one", "two")]
    ended = on_hosts(*SEEDS, data, "--steps=20", folders[0], other=(folders[1],))
    for status, _, err in ended:
        assert status != 0
        assert f"SharedError: host 0 has --run_dir={tmp_path / 'one'}, but host 1 has {tmp_path / 'two'}" in err
    assert not list(tmp_path.glob("*/config.json"))


@pytest.mark.slow
def test_what_goes_wrong_on_one_host_ends_all(data: str, tmp_path: Path) -> None:
    ended = on_hosts(*SEEDS, data, "--steps=20", f"--run_dir={tmp_path / 'run'}", other=("--data=nowhere.npz",))
    for status, _, err in ended:
        assert status != 0
        assert "SharedError: host 1: " in err
        assert "nowhere.npz" in err


@pytest.mark.slow
def test_a_host_that_does_not_come_ends_the_others_with_a_message(tmp_path: Path) -> None:
    connect = ("--coordinator_address=localhost:9", "--num_processes=2", "--process_id=1", "--connect_timeout=2")
    process = start(1, (*COMMON, "--steps=1", f"--run_dir={tmp_path}", *connect))
    _, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "error: not all of the 2 hosts came to localhost:9 within 2 s; start the same command on each" in err


@pytest.mark.parametrize(
    ("message", "given"),
    [
        ("need --coordinator_address=HOST:PORT", {"process_id": 1}),
        ("needs --num_processes=N", {"coordinator_address": "here:1", "process_id": 1}),
        ("is no HOST:PORT", {"coordinator_address": "here", "num_processes": 2, "process_id": 1}),
        ("none of the 2 hosts", {"coordinator_address": "here:1", "num_processes": 2, "process_id": 2}),
        ("leave them out", {"coordinator_address": "auto", "num_processes": 2}),
        ("connect_timeout=0", {"coordinator_address": "auto", "connect_timeout": 0}),
        ("cannot connect hosts by --coordinator_address=auto", {"coordinator_address": "auto"}),
    ],
)
def test_options_that_cannot_connect_are_refused(message: str, given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=message):
        hosts.connect(hosts.Cluster(**given))


def test_what_cannot_be_spread_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {"agent": "td3", "env": "Pendulum-v1", "preset": "none", "online.steps": 10, "run_dir": str(tmp_path)}
    with pytest.raises(UserError, match="--shard=bath is unknown; choose runs or batch"):
        plan(given | {"shard": "bath"}, {})
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    with pytest.raises(UserError, match="batch_size=8 cannot be spread evenly over 3 devices"):
        plan(given | {"shard": "batch"}, {"batch_size": 8})
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(UserError, match=r"--online\.steps works on one host only"):
        plan(given | {"num_seeds": 4}, {})
    offline = {"agent": "bc", "env": "hopper-medium-v2", "preset": "none", "eval.episodes": 0}
    offline |= {"steps": 1, "eval.interval": 1, "log.interval": 1, "checkpoint.interval": 1}
    with pytest.raises(UserError, match="several hosts need --run_dir"):
        plan(offline | {"num_seeds": 4}, {})
    with pytest.raises(UserError, match="4 hosts are more than 3 runs; start at most 3"):
        plan(offline | {"num_seeds": 3, "run_dir": str(tmp_path)}, {})


def test_batches_are_cut_only_where_asked_for() -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (devices.AXIS,))
    for shard, expected in (("runs", False), ("batch", True)):
        text = str(jax.make_jaxpr(devices.Layout(1, shard, mesh).cut_batch)({"x": jnp.zeros(4)}))  # type: ignore[arg-type]
        assert ("sharding_constraint" in text) == expected


def test_waves_fit_wherever_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Online, eighteen runs lie on six devices, but nine on three: no wave may need more than two rows for each."""
    from flowrl.experiment import grids

    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(process_index=0, id=i) for i in range(8)])
    monkeypatch.setattr(jax, "local_device_count", lambda: 8)
    monkeypatch.setattr(devices, "Mesh", lambda array, _: SimpleNamespace(size=array.size))

    def most(runs: int, each: int, online_steps: int) -> int:
        settings = SimpleNamespace(shard="runs", online=SimpleNamespace(steps=online_steps))
        return grids.at_once(settings, runs, each)  # type: ignore[arg-type]

    assert most(18, 2, 0) == 17  # two waves of nine, with two rows on each of five devices
    assert most(18, 2, 100) == 8  # three waves of six, a row on each of six devices


def test_rows_fill_the_devices() -> None:
    """Values and keys of what fills up are those of the last run."""
    mesh = type("Mesh", (), {"size": 4})()
    layout = devices.Layout(6, "runs", mesh)  # type: ignore[arg-type]
    assert layout.rows == 8
    assert layout.own == range(6)
    np.testing.assert_array_equal(layout.filled([5, 6, 7, 8, 9, 10]), [5, 6, 7, 8, 9, 10, 10, 10])
    assert devices.Layout(6, "batch", mesh).rows == 6  # type: ignore[arg-type]


def test_each_host_has_its_own_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five runs in eight rows of four hosts: the last has none, and of batches the first has all."""
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    layout = devices.Layout(5, "runs", type("Mesh", (), {"size": 8})())  # type: ignore[arg-type]
    own = []
    for host in range(4):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        own.append(layout.own)
        assert layout._replace(shard="batch").own == (range(5) if host == 0 else range(0))
    assert list(map(list, own)) == [[0, 1], [2, 3], [4], []]


def test_a_checkpoint_is_cut_or_filled_up_to_the_rows(tmp_path: Path) -> None:
    """For another number of devices; what differs in more than the number of runs is no checkpoint of these."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": jnp.arange(8.0).reshape(4, 2), "n": jnp.int32(7)}, {})
    for rows, last in ((2, [2.0, 3.0]), (4, [6.0, 7.0]), (6, [0.0, 0.0])):
        found = checkpoints.restore({"w": jnp.zeros((rows, 2)), "n": jnp.int32(0)})
        np.testing.assert_array_equal(found["w"][:2], [[0, 1], [2, 3]])
        np.testing.assert_array_equal(found["w"][-1], last)
        assert found["n"] == 7
    with pytest.raises(UserError, match=r"w has shape \(2,\) for each run, not \(3,\)"):
        checkpoints.restore({"w": jnp.zeros((4, 3)), "n": jnp.int32(0)})
    checkpoints.close()


def test_what_the_first_host_does_for_all_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UserError("no room")

    for host in (0, 1):
        done = list[int]()
        monkeypatch.setattr(hosts, "index", lambda host=host: host)
        monkeypatch.setattr(hosts, "count", lambda: 2)
        monkeypatch.setattr(hosts, "gather", lambda problem: [None, None])
        hosts.on_first(lambda host=host, done=done: done.append(host))
        assert done == [0][: 1 - host]
        monkeypatch.setattr(hosts, "gather", lambda problem: ["no room", None])
        with pytest.raises(hosts.SharedError, match="host 0: no room"):
            hosts.on_first(refuse)


FAULTS = {
    "flowrl/machine/devices.py": [
        ("self.runs - 1)]", "0)]", "test_rows_fill_the_devices"),
        ("(hosts.index() + 1) * share", "hosts.index() + share", "test_each_host_has_its_own_runs"),
        ("self.runs if hosts.first() else 0", "self.runs", "test_each_host_has_its_own_runs"),
        ("hosts.count() > runs", "hosts.count() > 2 * runs", "test_what_cannot_be_spread_is_refused"),
        (
            "return jax.lax.with_sharding_constraint(batch,",
            "return (lambda x, _: x)(batch,",
            "test_batches_are_cut_only_where_asked_for",
        ),
    ],
    "flowrl/training/checkpoint.py": [
        (
            "name, shape)[1:] != shape[1:]",
            "name, shape)[2:] != shape[2:]",
            "test_a_checkpoint_is_cut_or_filled_up_to_the_rows",
        ),
        ("(shapes, strict=False)", "(shapes)", "test_a_checkpoint_is_cut_or_filled_up_to_the_rows"),
    ],
    "flowrl/machine/hosts.py": [
        ("watchdog.start()", "pass", "test_a_host_that_does_not_come_ends_the_others_with_a_message"),
        ("function() if first() else None", "function()", "test_what_the_first_host_does_for_all_is_done_once"),
    ],
    "flowrl/experiment/grids.py": [
        ("rows_each <= each", "rows_each <= each + 1", "test_waves_fit_wherever_they_lie"),
    ],
}
