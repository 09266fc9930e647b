"""Sweeps: a run is the run alone, groups and waves, broken off and gone on with; bad input."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from commands import load, main, sweep

from flowrl import agents
from flowrl.agents import bc
from flowrl.cli import flags
from flowrl.errors import UserError
from flowrl.experiment import grids, runs_at_once, sweep_table, sweeps
from flowrl.experiment.recorder import Recorder
from flowrl.experiment.runner import Runner
from flowrl.experiment.stored import resumed_plan
from flowrl.machine import memory, signals
from flowrl.run_folder import logs
from flowrl.run_folder.runs import Run, seeds
from flowrl.tasks import Task
from flowrl.training.checkpoint import Checkpoints
from flowrl.training.evaluation import Evaluator

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
TINY = (
    "--env=Pendulum-v1", "--preset=none", "--agent.hidden_dims=4", "--agent.batch_size=4", "--workers=1",
    "--max_episode_steps=40",
)  # fmt: skip
OFFLINE = (
    *TINY, "--agent=bc", "--agent.flow.steps=1", "--steps=20", "--log.interval=5", "--eval.interval=10",
    "--checkpoint.interval=10",
)  # fmt: skip
ONLINE = (
    *TINY, "--agent=td3", "--online.steps=20", "--online.buffer_size=20", "--online.warmup_steps=5",
    "--log.interval=10", "--eval.interval=20", "--checkpoint.interval=20",
)  # fmt: skip
RATES = "--agent.learning_rate=0.001,0.01"


@pytest.fixture(scope="module")
def undisturbed(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two groups of two learning rates and two seeds, evaluated."""
    folder = tmp_path_factory.mktemp("undisturbed") / "sweep"
    static = ("--agent.distribution=gaussian,flow", "--eval.episodes=1")
    assert sweep(*OFFLINE, data, RATES, *static, "--num_seeds=2", f"--run_dir={folder}") == 0
    return folder


@pytest.fixture(scope="module")
def at_once(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two learning rates and two seeds, without evaluation, one after another in one program."""
    folder = tmp_path_factory.mktemp("at_once") / "sweep"
    assert sweep(*OFFLINE, data, RATES, "--eval.episodes=0", "--num_seeds=2", f"--run_dir={folder}") == 0
    return folder


def lines(folder: Path, name: str = "metrics", **where: Any) -> list[dict[str, Any]]:
    """Returns log lines without the number of the run."""
    found = [line for line in logs.read_lines(folder / f"{name}.jsonl") if where.items() <= line.items()]
    return [{key: value for key, value in line.items() if key != "run"} for line in found]


def params(folder: Path, run: int) -> Any:
    """Returns the parameters of one run at the newest checkpoint."""
    checkpoints = Checkpoints(folder / "checkpoints")
    states = checkpoints.raw()["states"]
    checkpoints.close()
    return jax.tree.map(lambda leaf: leaf[run], states["params"])


# ------------------------------------------------------------------------------------------------- against main.py


@pytest.mark.slow
@pytest.mark.parametrize(("part", "field"), [(OFFLINE, "learning_rate"), (ONLINE, "explore_noise")], ids=["off", "on"])
def test_a_run_of_a_sweep_is_the_run_alone(part: tuple[str, ...], field: str, data: str, tmp_path: Path) -> None:
    """Bit for bit where runs are mapped serially, else up to rounding."""
    given = (*part, *([data] if part is OFFLINE else []), "--eval.episodes=1")
    assert main(*given, f"--agent.{field}=0.01", "--seed=1", f"--run_dir={tmp_path / 'alone'}") == 0
    alone, names = tmp_path / "alone", {f"agent.{field}": 0.01}
    for mode in ("serial", "vmap"):
        grid = (f"--agent.{field}=0.5,0.01", "--num_seeds=2", f"--map={mode}")
        assert sweep(*given, *grid, f"--run_dir={tmp_path / mode}") == 0
        folder = tmp_path / mode / "group1"
        compare: Any = np.testing.assert_array_equal if mode == "serial" else _close
        jax.tree.map(compare, params(folder, 3), params(alone, 0))
        for file in ("metrics", "eval"):
            own = lines(folder, file, seed=1, **names)
            assert len(own) == len(lines(alone, file)) > 0
            for line, other in zip(own, lines(alone, file), strict=True):
                assert line.keys() - names.keys() == other.keys()
                for key, value in other.items():
                    compare(line[key], value)
        assert logs.read_json(folder / "config.json")["settings"]["map"] == mode


def _close(one: Any, other: Any) -> None:
    if not isinstance(other, str):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_group_is_traced_once(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traces: list[int] = []
    make = bc.make

    def counted(*arguments: Any) -> agents.Agent:
        agent = make(*arguments)

        def update(*rest: Any) -> Any:
            traces.append(1)
            return agent.update(*rest)

        return agent._replace(update=update)

    monkeypatch.setattr(bc, "make", counted)
    monkeypatch.setattr(agents, "_built", agents._built.__wrapped__)  # or it might have been made before
    grid = (RATES, "--num_seeds=3", "--agent.hidden_dims=4:2,2", "--eval.episodes=0")
    assert sweep(*OFFLINE, data, *grid, f"--run_dir={tmp_path / 'sweep'}") == 0
    # Per group once for shapes and once for the program of six runs.
    assert len(traces) == 2 * 2
    configs = [logs.read_json(path) for path in sorted((tmp_path / "sweep").glob("group*/config.json"))]
    assert [config["agent_config"]["hidden_dims"] for config in configs] == [[4], [2, 2]]
    assert all(len(config["grid"]) == 6 for config in configs)


# ---------------------------------------------------------------------------------------------- groups and waves


def test_static_fields_split_and_sweepable_ones_do_not() -> None:
    shares = {"actor_goals.p_random": [0.0, 0.5]}
    grid = {"alpha": [1.0, 2.0], "hidden_dims": [(4,), (2, 2)], "learning_rate": [0.1]} | shares
    groups = grids.split(agents.default("gcivl"), grid, [3, 4])
    assert [part.folder for part in groups] == ["group1", "group2"]
    assert [part.fixed for part in groups] == [{"hidden_dims": dims, "learning_rate": 0.1} for dims in ((4,), (2, 2))]
    points = [{"alpha": alpha, "actor_goals.p_random": share} for alpha in (1.0, 2.0) for share in (0.0, 0.5)]
    for part in groups:
        assert part.runs == [Run(seed, point) for point in points for seed in (3, 4)]


@pytest.mark.parametrize(("runs", "most", "sizes"), [(8, 8, [8]), (8, 4, [4, 4]), (10, 4, [3, 4, 3]), (3, 1, [1] * 3)])
def test_waves_are_few_and_equal(runs: int, most: int, sizes: list[int]) -> None:
    runs = [Run(seed, {}) for seed in range(runs)]
    parts = grids.waves(grids.Group("group1", {}, runs), most)
    assert [len(part.runs) for part in parts] == sizes
    assert [run for part in parts for run in part.runs] == runs
    assert len({part.folder for part in parts}) == len(parts)


@pytest.mark.slow
def test_waves_do_not_change_numbers(data: str, at_once: Path, tmp_path: Path) -> None:
    grid = (RATES, "--num_seeds=2", "--eval.episodes=0", "--runs_at_once=3")
    assert sweep(*OFFLINE, data, *grid, f"--run_dir={tmp_path}") == 0
    parts = [tmp_path / part["folder"] for part in logs.read_json(tmp_path / "sweep.json")["parts"]]
    assert len(parts) == 2

    def order(line: dict[str, Any]) -> Any:
        return line["step"], line["agent.learning_rate"], line["seed"]

    assert sorted((line for part in parts for line in lines(part)), key=order) == sorted(
        lines(at_once / "group1"), key=order
    )
    pairs = [(parts[0], 0), (parts[0], 1), (parts[1], 0), (parts[1], 1)]
    for run, (part, index) in enumerate(pairs):
        jax.tree.map(np.testing.assert_array_equal, params(part, index), params(at_once / "group1", run))


def test_as_many_runs_as_fit() -> None:
    assert memory.fitting(free=1000, fixed=100, per_run=100, runs=20) == 8  # 900 may be used
    assert memory.fitting(free=1000, fixed=100, per_run=100, runs=5) == 5
    assert memory.fitting(free=10, fixed=100, per_run=100, runs=5) == 1


@pytest.mark.parametrize("mode", ["serial", "vmap"])
def test_memory_is_asked_of_device_and_program(
    mode: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"agent": "bc", "env": "Pendulum-v1", "preset": "none", "num_seeds": 8, "map": mode}
    given |= {"data": data.removeprefix("--data="), "run_dir": str(tmp_path)}
    made = grids.Sweep(given, {"hidden_dims": [(64, 64)], "batch_size": [16]}, grids.SweepSettings())
    plan = grids.group_plan(made, grids.groups(made)[0])
    assert runs_at_once.runs_that_fit(plan) == 8
    asked = []
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 1000, "bytes_in_use": 400})
    monkeypatch.setattr(memory.jax, "local_devices", lambda: [device])
    monkeypatch.setattr(runs_at_once, "fitting", lambda *sizes: asked.append(sizes) or 5)
    assert runs_at_once.runs_that_fit(plan) == 5
    ((free, fixed, per_run, runs),) = asked
    kept = 4 * 4 * ((3 + 1) * 64 + (64 + 1) * 64 + 64 + 1)  # parameters, two moments, the policy
    assert (free, runs) == (600, 8)
    if mode == "serial":
        assert kept < per_run < kept + 200  # and some scalars
        assert fixed > 16 * 64 * 4  # the layers of one run at work
    else:
        assert per_run > kept + 16 * 64 * 4
        assert fixed == 0


def test_a_finished_part_that_is_resumed_still_tells_what_diverged(data: str, tmp_path: Path) -> None:
    grid = ("--agent.learning_rate=0.001,1e38", "--eval.episodes=0")
    assert sweep(*OFFLINE, data, *grid, f"--run_dir={tmp_path / 'sweep'}") == 0
    folder = tmp_path / "sweep" / "group1"
    before = logs.read_json(folder / "diverged.json")
    assert [event["agent.learning_rate"] for event in before] == [1e38]
    assert main("--resume", f"--run_dir={folder}") == 0
    assert logs.read_json(folder / "diverged.json") == before


def test_free_memory_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between nothing and all of it; each device has its share; where nobody tells, all runs fit."""
    free = memory.free_bytes()
    assert free is not None
    assert 0 < free < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    assert memory.free_bytes() == 1000
    monkeypatch.setattr(memory.jax, "local_device_count", lambda: 4)
    assert memory.free_bytes() == 250
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    assert memory.free_bytes() is None


# --------------------------------------------------------------------------------------------- broken off, diverged


@pytest.mark.slow
def test_a_broken_sweep_ends_like_an_undisturbed_one(
    data: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, checkpoint = tmp_path / "sweep", Runner._checkpoint
    static = ("--agent.distribution=gaussian,flow", "--eval.episodes=1")
    command = (*OFFLINE, data, RATES, *static, "--num_seeds=2", f"--run_dir={folder}")

    def killed(self: Runner, step: int, *arguments: Any) -> None:
        if self.parts.plan.folder.name == "group2" and step == 20:
            raise RuntimeError("killed")
        checkpoint(self, step, *arguments)

    monkeypatch.setattr(Runner, "_checkpoint", killed)
    with pytest.raises(RuntimeError, match="killed"):
        sweep(*command)
    monkeypatch.undo()
    assert not (folder / "summary.json").exists()
    first = (folder / "group1" / "metrics.jsonl").stat().st_mtime_ns
    with pytest.raises(UserError, match="holds another sweep: python experiments"):
        sweep(*command, "--agent.learning_rate=0.001,0.02")
    assert sweep("--resume", f"--run_dir={folder}") == 0
    assert (folder / "group1" / "metrics.jsonl").stat().st_mtime_ns == first
    for part in ("group1", "group2"):
        for name in ("metrics.jsonl", "eval.jsonl"):
            assert (folder / part / name).read_bytes() == (undisturbed / part / name).read_bytes()
    for name in ("summary.json", "summary.md"):
        assert (folder / name).read_text() == (undisturbed / name).read_text()
    assert sweep(*command) == 0  # all of it is there


@pytest.fixture
def own_handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts back what programs do to signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(signals, "PROMPT", 600.0)  # this very process would be ended
    monkeypatch.setattr(signals, "SAVING", 600.0)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize(
    ("number", "place", "name", "told"),
    [
        (signal.SIGTERM, Task, "examine", "terminated"),
        (signal.SIGINT, Task, "examine", "interrupted"),
        (signal.SIGTERM, Checkpoints, "save", "stopped at update 0;"),
        (signal.SIGTERM, Runner, "_compiled", "stopped at update 0;"),
        (signal.SIGTERM, Evaluator, "__call__", "stopped at update 10;"),
        (signal.SIGTERM, Recorder, "summarize", "continues the sweep"),
        (signal.SIGTERM, sweeps, "_train", "terminated"),
        (signal.SIGINT, sweeps, "_train", "interrupted"),
        (signal.SIGTERM, sweep_table, "summarize", "terminated"),
    ],
)
def test_a_signal_at_any_moment_leaves_what_the_same_command_continues(
    number: int,
    place: Any,
    name: str,
    told: str,
    data: str,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    real, calls = getattr(place, name), []

    def signalled(*arguments: Any, **named: Any) -> Any:
        result = real(*arguments, **named)
        calls.append(1)
        if len(calls) == 1:
            signal.raise_signal(number)
        return result

    program, folder = load("experiments/sweep.py").main, tmp_path / "sweep"
    static = ("--agent.distribution=gaussian,flow", "--eval.episodes=1", "--num_seeds=2")
    monkeypatch.setattr(sys, "argv", ["sweep.py", *OFFLINE, data, RATES, *static, f"--run_dir={folder}"])
    monkeypatch.setattr(place, name, signalled)
    with pytest.raises(SystemExit) as stopped:
        flags.run(program)
    monkeypatch.setattr(place, name, real)
    assert stopped.value.code == 128 + number
    said = capfd.readouterr()
    assert told in said.out + said.err
    assert "Traceback" not in said.err
    assert name != "save" or "compiled in" not in said.out  # the signal was heeded before
    assert (folder / "group2").exists() == (place is sweep_table)  # at the very end
    with pytest.raises(SystemExit) as ended:
        flags.run(program)
    assert ended.value.code == 0
    for part in ("group1", "group2"):
        for file in ("metrics.jsonl", "eval.jsonl"):
            assert (folder / part / file).read_bytes() == (undisturbed / part / file).read_bytes()
        for index in range(4):
            jax.tree.map(np.testing.assert_array_equal, params(folder / part, index), params(undisturbed / part, index))
    assert (folder / "summary.json").read_text() == (undisturbed / "summary.json").read_text()


@pytest.mark.slow
def test_the_comparison_of_killed_sweeps_notices_what_differs(undisturbed: Path, tmp_path: Path) -> None:
    differences, other = load("experiments/evidence/kill_sweep.py").differences, tmp_path / "other"
    shutil.copytree(undisturbed, other)
    assert differences(undisturbed, other) == []
    metrics = other / "group2" / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-1])  # torn
    logs.append_lines(other / "group1" / "eval.jsonl", lines(undisturbed / "group1", "eval")[-1:])  # doubled
    (other / ".summary.json.0a1b.tmp").touch()
    checkpoints = other / "group1" / "checkpoints"
    shutil.rmtree(checkpoints / "20")
    shutil.copytree(checkpoints / "10", checkpoints / "20")
    (checkpoints / "30.orbax-checkpoint-tmp").mkdir()
    found = differences(undisturbed, other)
    assert found[:3] == [".summary.json.0a1b.tmp only in one of both", "group1/eval.jsonl", "group2/metrics.jsonl"]
    assert "30.orbax-checkpoint-tmp left over" in found[3]
    assert any("params" in difference for difference in found[4:])
    shutil.rmtree(checkpoints / "20")
    assert any("[20, 10]" in difference for difference in differences(undisturbed, other))


@pytest.mark.slow
def test_a_diverged_run_is_frozen_and_marked(data: str, at_once: Path, tmp_path: Path) -> None:
    grid = ("--agent.learning_rate=0.001,1e20", "--num_seeds=2", "--eval.episodes=1")
    assert sweep(*OFFLINE, data, *grid, f"--run_dir={tmp_path}") == 0
    folder = tmp_path / "group1"
    healthy = lines(folder, **{"agent.learning_rate": 0.001})
    assert healthy == lines(at_once / "group1", **{"agent.learning_rate": 0.001})
    broken = lines(folder, **{"agent.learning_rate": 1e20})
    assert all(line["diverged"] <= 3 and "train/actor/loss" not in line for line in broken)
    assert all(line["diverged"] <= 3 for line in lines(folder, "eval", **{"agent.learning_rate": 1e20}))
    assert all("diverged" not in line for line in lines(folder, "eval", **{"agent.learning_rate": 0.001}))
    for run in range(4):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params(folder, run)))
    events = logs.read_json(folder / "diverged.json")
    assert [(event["run"], event["seed"], event["agent.learning_rate"]) for event in events] == [
        (2, 0, 1e20), (3, 1, 1e20),
    ]  # fmt: skip
    summary = logs.read_json(tmp_path / "summary.json")
    assert ["of seed 0" in str(row["diverged"]) for row in summary["configurations"]] == [False, True]


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("--agent.learning_rate= lacks a value; write for example", ["--agent.learning_rate="]),
        ("--agent.learning_rate=0.1,,0.2 lacks a value", ["--agent.learning_rate=0.1,,0.2"]),
        ("--agent.hidden_dims=4: lacks a value; .*256,256:512,512", ["--agent.hidden_dims=4:"]),
        ("--agent.learning_rate has 0.1 twice", ["--agent.learning_rate=0.1,0.10"]),
        ("--agent.learning_rate has 0.10000000001 twice", ["--agent.learning_rate=0.1,0.10000000001"]),
        ("--agent.hidden_dims has 4,4 twice", ["--agent.hidden_dims=4,4:4,4"]),
        ("--agent.learning_rate=-1.0 is out of range", ["--agent.learning_rate=0.1,-1"]),
        ("--agent.learning_rate=0.1,nan is not a finite number", ["--agent.learning_rate=0.1,nan"]),
        ("--agent.learning_rate=0.1,fast is not of type float", ["--agent.learning_rate=0.1,fast"]),
        ("--agent.batch_size=8,0.5 is not of type int", ["--agent.batch_size=8,0.5"]),
        ("--agent.hidden_dims=8:4,x is not a list", ["--agent.hidden_dims=8:4,x"]),
        ("--agent.distribution=uniform is unknown; choose gaussian or flow", ["--agent.distribution=gaussian,uniform"]),
        ("unknown flag --agent.learning_rat; did you mean", ["--agent.learning_rat=0.1,0.2"]),
        ("--num_seeds=0 is too small; the least is 1", ["--num_seeds=0"]),
        ("2 grid points × 6,000 seeds are more than 10,000 runs", [RATES, "--num_seeds=6000"]),
        ("--runs_at_once=0 is too small", ["--runs_at_once=0"]),
        ("--select=median is unknown; choose final, last or best", ["--select=median"]),
        ("--agent= is empty; give a value", ["--agent="]),
        ("--resume needs --run_dir=DIR", ["--resume"]),
        ("holds no sweep", ["--resume", "--run_dir=."]),
        ("is not empty and holds no sweep", ["--run_dir=."]),
    ],
)
def test_bad_input_is_one_line(message: str, arguments: list[str], data: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    with pytest.raises(UserError, match=message) as caught:
        sweep(*OFFLINE, "--eval.episodes=0", data, *arguments)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"something", ".lock"}


@pytest.mark.slow
def test_waves_of_another_size_are_refused(at_once: Path, data: str) -> None:
    grid = (RATES, "--eval.episodes=0", "--num_seeds=2", "--runs_at_once=1")
    with pytest.raises(UserError, match="holds a sweep with 4 runs at once, not 1"):
        sweep(*OFFLINE, data, *grid, f"--run_dir={at_once}")


@pytest.mark.slow
def test_a_group_of_a_sweep_is_read_as_a_plan_of_its_own(at_once: Path) -> None:
    plan, stored = resumed_plan({"run_dir": str(at_once / "group1"), "resume": True}, {})
    assert plan.runs == tuple(Run(seed, {"learning_rate": rate}) for rate in (0.001, 0.01) for seed in (0, 1))
    assert seeds(plan.runs) == [0, 1]
    assert "experiments/sweep.py" in stored["command"]
    assert "--agent.learning_rate=0.001,0.01" in stored["command"]


def test_help_lists_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("--agent=gcbc", "--help") == 0
    shown = capsys.readouterr().out
    for flag in ("--runs_at_once", "--select=final", "--num_seeds=1", "--agent.learning_rate=0.0003 [sweepable]"):
        assert f"  {flag}\n" in shown


FAULTS = {
    "flowrl/experiment/grids.py": [
        ("name in traced and len(values) > 1", "len(values) > 1", "test_static_fields_split_and_sweepable_ones_do_not"),
        (
            "for point in _product(mapped) for seed in seeds]",
            "for seed in seeds for point in _product(mapped)]",
            "test_static_fields_split_and_sweepable_ones_do_not",
        ),
        ("part.runs[begin:end]", "part.runs[begin : end - 1]", "test_waves_are_few_and_equal"),
    ],
    "flowrl/machine/memory.py": [
        ("free // jax.local_device_count()", "free", "test_free_memory_of_a_cpu"),
        ("SHARE * free - fixed", "SHARE * free", "test_as_many_runs_as_fit"),
    ],
    "flowrl/experiment/runner.py": [
        (
            "        self._recorder.diverging(loop.divergences(self._totals))\n",
            "",
            "test_a_finished_part_that_is_resumed_still_tells_what_diverged",
        ),
        (
            "            raise loop.Stopped  # before",
            "            pass  # before",
            "test_a_signal_at_any_moment_leaves_what_the_same_command_continues and Checkpoints",
        ),
    ],
    "flowrl/experiment/sweeps.py": [
        ("if status or stopped:", "if status:", "test_a_signal_at_any_moment_leaves_what_the_same_command_continues"),
    ],
}
