"""Copies of a run's numbers, read back: CSV files, TensorBoard's event files, what Weights & Biases is sent."""

import csv
import importlib.machinery
import importlib.util
import itertools
import json
import struct
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import ROOT, main, sweep

from flowrl.errors import UserError
from flowrl.experiment import sinks
from flowrl.experiment.runner import Runner
from flowrl.machine import packages
from flowrl.run_folder import logs
from flowrl.run_folder.runs import Run

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
OFFLINE = (
    "--env=Pendulum-v1", "--preset=none", "--agent=bc", "--agent.hidden_dims=4", "--agent.batch_size=4", "--workers=1",
    "--steps=20", "--log.interval=5", "--eval.interval=10", "--checkpoint.interval=10", "--eval.episodes=1",
    "--max_episode_steps=40",
)  # fmt: skip
ALL = ("--log.csv", "--log.tensorboard", "--log.wandb")
Points = dict[str, list[tuple[int, float]]]


class Server:
    """What Weights & Biases keeps of runs, by their ids: it takes their steps in rising order only."""

    def __init__(self) -> None:
        self.told: dict[str, dict[str, Any]] = {}
        self.points: dict[str, list[tuple[int, dict[str, float]]]] = defaultdict(list)
        self.axes: dict[str, list[str | None]] = defaultdict(list)
        self.finished: list[str] = []
        self.logged_in, self.broken_after, self.offline, self.inits = True, 10**9, False, 0

    def login(self) -> None:
        if not self.logged_in:
            raise UsageError("No API key configured.\nUse `wandb login` to log in.")

    def init(self, **told: Any) -> Any:
        key = told["id"]
        assert self.told.setdefault(key, told)["name"] == told["name"]
        if self.offline:  # nothing is known of what came before
            self.points[key] = []
            self.inits += 1
            (Path(told["dir"]) / "wandb" / f"offline-run-{self.inits}-{key}").mkdir(parents=True)

        def log(numbers: dict[str, float], *, step: int, commit: bool) -> None:
            if sum(map(len, self.points.values())) >= self.broken_after:
                raise OSError("no network")
            if not self.points[key] or step > self.points[key][-1][0]:
                self.points[key].append((step, numbers))

        def define_metric(name: str, step_metric: str | None = None) -> None:
            self.axes[key].append(step_metric)

        begin = self.points[key][-1][0] + 1 if self.points[key] else 0
        return SimpleNamespace(
            step=begin, log=log, define_metric=define_metric, finish=lambda: self.finished.append(key)
        )

    def curves(self, key: str) -> Points:
        """Returns each number of a run over the run's own steps."""
        found: Points = defaultdict(list)
        for _, numbers in self.points[key]:
            for name, value in numbers.items():
                found[name].append((int(numbers["step"]), value))
        del found["step"]
        return dict(found)


class UsageError(Exception):
    """As `wandb.errors.UsageError`."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server, and in place of the package what talks to it."""
    made, module = Server(), ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    parts = dict(init=made.init, login=made.login, Settings=dict, errors=SimpleNamespace(UsageError=UsageError))
    for name, value in parts.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return made


def events(folder: Path) -> Points:
    """Returns the numbers in a folder's event files, each a sequence of (length, checksum, message, checksum)."""
    from tensorboardX.proto.event_pb2 import Event

    found: Points = defaultdict(list)
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            for value in event.summary.value:
                found[value.tag].append((event.step, value.simple_value))
            at += length + 16
    return dict(found)


def rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a CSV file as the records they came from."""
    with path.open(newline="") as file:
        return [{name: _value(text) for name, text in row.items() if text != ""} for row in csv.DictReader(file)]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def assert_sinks_hold(folder: Path, server: Server, runs: list[Run]) -> None:
    """Asserts that the sinks hold what the run's files do, each number once."""
    for kind in ("metrics", "eval"):
        lines = logs.read_lines(folder / f"{kind}.jsonl")
        assert rows(folder / f"{kind}.csv") == lines
        assert len(lines) == {"metrics": 4, "eval": 2}[kind] * len(runs)
    ids = logs.read_json(folder / "wandb.json")["ids"]
    for index, (run, key) in enumerate(zip(runs, ids, strict=True)):
        expected: Points = defaultdict(list)
        for line in logs.read_lines(folder / "metrics.jsonl"):
            for name in line:
                if line["run"] == index and name.startswith(("train/", "diverged")):
                    expected[name].append((line["step"], line[name]))
        for line in logs.read_lines(folder / "eval.jsonl"):
            for name in ("return", "length", "diverged"):
                if line["run"] == index and name in line:
                    expected[name if name == "diverged" else f"eval/{name}"].append((line["step"], line[name]))
        for points in expected.values():
            points.sort()
        assert any(name.startswith("train/") for name in expected) or "diverged" in expected
        name = ",".join(f"{label}={value}" for label, value in run.labels.items())
        assert server.curves(key) == expected
        found = events(folder / "tensorboard" / name)
        assert found.keys() == expected.keys()
        for tag, points in expected.items():
            assert [step for step, _ in found[tag]] == [step for step, _ in points]
            np.testing.assert_allclose([value for _, value in found[tag]], [value for _, value in points], rtol=1e-6)
        assert server.told[key]["name"] == f"{folder.name} {name}"
        assert server.told[key]["project"] == "flowrl"
        assert server.axes[key][:2] == [None, "step"]


# ----------------------------------------------------------------------------------------------------- through runs


@pytest.mark.slow
def test_every_mapped_run_is_a_run_of_its_own(data: str, tmp_path: Path, server: Server) -> None:
    """One of the runs diverges, so that its lines change their names on the way."""
    grid = ("--agent.learning_rate=0.001,1e20", "--num_seeds=2")
    assert sweep(*OFFLINE, data, *grid, *ALL, f"--run_dir={tmp_path / 'sweep'}") == 0
    runs = [Run(seed, {"learning_rate": rate}) for rate in (0.001, 1e20) for seed in (0, 1)]
    folder = tmp_path / "sweep" / "group1"
    assert_sinks_hold(folder, server, runs)
    assert any("diverged" in line for line in rows(folder / "metrics.csv"))
    ids = logs.read_json(folder / "wandb.json")["ids"]
    assert sorted(server.finished) == sorted(ids)
    assert {server.told[key]["group"] for key in ids} == {"sweep"}
    assert [server.told[key]["config"]["agent"]["learning_rate"] for key in ids] == [0.001, 0.001, 1e20, 1e20]
    assert [server.told[key]["config"]["seed"] for key in ids] == [0, 1, 0, 1]
    record = logs.read_json(folder / "config.json")
    assert not any(flag in record["command"] for flag in ("csv", "tensorboard", "wandb"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "offline"), [("_log", False), ("_evaluate", False), ("_checkpoint", False), ("_evaluate", True)]
)
def test_a_run_killed_and_resumed_holds_each_number_once(
    what: str, offline: bool, data: str, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, server.offline = tmp_path / "run", offline
    original: Any = getattr(Runner, what)

    def killed(self: Runner, step: int, *arguments: Any) -> Any:
        if step == 20 and what == "_checkpoint":
            raise RuntimeError("killed")
        found = original(self, step, *arguments)
        if step == 20:
            raise RuntimeError("killed")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Runner, what, killed)
        patch.setattr(sinks.Sinks, "close", lambda self: None)  # as a kill leaves them
        with pytest.raises(RuntimeError, match="killed"):
            main(*OFFLINE, data, *ALL, "--num_seeds=2", f"--run_dir={folder}")
    with (folder / "metrics.csv").open("a") as file:
        file.write("20,0,0,1.")  # a torn row
    assert main("--resume", f"--run_dir={folder}") == 0
    assert_sinks_hold(folder, server, [Run(0, {}), Run(1, {})])
    assert len([*(folder / "wandb").glob("offline-run-*")]) == 2 * offline


@pytest.mark.slow
def test_sinks_can_be_asked_for_later(data: str, tmp_path: Path, server: Server) -> None:
    """A run that is finished is copied whole; a line from the middle of a totals goes where the run goes on."""
    folder = tmp_path / "run"
    assert main(*OFFLINE, data, "--steps=12", f"--run_dir={folder}") == 0
    assert not [*folder.glob("*.csv"), *folder.glob("tensorboard"), *folder.glob("wandb*")]
    assert main("--resume", f"--run_dir={folder}", "--log.csv", "--log.tensorboard") == 0
    assert [row["step"] for row in rows(folder / "metrics.csv")] == [5, 10, 12]
    assert main("--resume", f"--run_dir={folder}", "--steps=20", "--log.wandb") == 0
    assert_sinks_hold(folder, server, [Run(0, {})])
    settings = logs.read_json(folder / "config.json")["settings"]
    assert [settings[f"log.{name}"] for name in ("csv", "tensorboard", "wandb")] == [True] * 3


def test_events_of_before_are_gone(tmp_path: Path) -> None:
    """Their names hold the second of their beginning, so two writers of one second would share a file by chance."""
    run = Run(0, {"seed": 0})
    old = tmp_path / "tensorboard" / sinks.run_name(run) / "events.out.tfevents.1.here"
    old.parent.mkdir(parents=True)
    old.touch()
    sinks.TensorBoard(tmp_path, [run]).close()
    assert not old.exists()


def test_what_was_sent_stays_and_nothing_after_it_is_lost(data: str, tmp_path: Path, server: Server) -> None:
    folder = tmp_path / "run"
    assert main(*OFFLINE, data, "--log.wandb", "--steps=12", f"--run_dir={folder}") == 0
    assert main("--resume", f"--run_dir={folder}", "--steps=20") == 0
    (points,) = server.points.values()
    assert [position for position, _ in points] == [10, 20, 21, 24, 25, 30, 40, 41]


def test_a_sink_that_fails_is_left_out_with_one_warning(
    data: str, tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.broken_after = 3
    assert main(*OFFLINE, data, *ALL, f"--run_dir={tmp_path / 'run'}") == 0
    shown = "".join(capsys.readouterr())
    assert shown.count("warning: --log.wandb failed (no network) and gets no more numbers") == 1
    assert [row["step"] for row in rows(tmp_path / "run" / "metrics.csv")] == [5, 10, 15, 20]
    assert logs.read_json(tmp_path / "run" / "summary.json")["metric"] == "return"
    server.broken_after = 10**9
    assert main("--resume", f"--run_dir={tmp_path / 'run'}") == 0
    assert_sinks_hold(tmp_path / "run", server, [Run(0, {})])


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("flag", "module", "extra"),
    [
        ("log.tensorboard", "tensorboardX", "tensorboard"),
        ("log.wandb", "wandb", "wandb"),
        ("log.video_episodes=1", "imageio_ffmpeg", "video"),
    ],
)
@pytest.mark.parametrize("program", [main, sweep])
def test_a_missing_package_is_told_before_anything_begins(
    flag: str, module: str, extra: str, program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        packages.importlib.util, "find_spec", lambda name, *rest: None if name == module else find(name, *rest)
    )
    with pytest.raises(
        UserError, match=rf"--{flag.split('=')[0]} needs the package {module}.*'\.\[{extra}\]'"
    ) as caught:
        program(*OFFLINE, "--data=/nowhere.npz", f"--{flag}", f"--run_dir={tmp_path / 'run'}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    installed = (ROOT / "setup.cfg").read_text()
    assert f"\n{extra} = {module if extra != 'video' else 'imageio-ffmpeg'}>=" in installed


def test_nobody_logged_in_is_told_before_anything_begins(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.logged_in = False
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(UserError, match=r"--log.wandb: No API key.*WANDB_MODE=offline") as caught:
        main(*OFFLINE, "--data=/nowhere.npz", "--log.wandb", f"--run_dir={tmp_path / 'run'}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    packages.check(wandb=True)


@pytest.mark.slow
def test_optional_packages_are_imported_where_they_are_used_only() -> None:
    names = ("tensorboardX", "wandb", "imageio_ffmpeg", "pygame")
    code = f"import sys, flowrl.experiment.run; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


# -------------------------------------------------------------------------------------------------------- by hand


def line(task: int, mode: str, **numbers: float) -> dict[str, Any]:
    return {"step": 7, "run": 0, "seed": 3, "task": task, "mode": mode, **numbers, "episodes": 2}


def test_evaluations_by_hand() -> None:
    lines = [line(1, "eval", success=0.5, length=10.0), line(2, "eval", success=1.0, length=4.0)]
    lines += [line(1, "best_of_n", length=6.0), line(2, "best_of_n", length=8.0)]
    ((run, step, numbers),) = sinks.scalars("eval", lines)
    assert (run, step) == (0, 7)
    assert numbers == {
        "eval/success": 0.75, "eval/task1/success": 0.5, "eval/task2/success": 1.0,
        "eval/length": 7.0, "eval/task1/length": 10.0, "eval/task2/length": 4.0,
        "best_of_n/length": 7.0, "best_of_n/task1/length": 6.0, "best_of_n/task2/length": 8.0,
    }  # fmt: skip


def test_history_is_in_the_order_of_writing(tmp_path: Path) -> None:
    metrics = [{"step": step, "run": run, "seed": run} for step, run in itertools.product((5, 10), (0, 1))]
    evaluations = [line | {"mode": "eval", "task": 1, "return": 0.5, "episodes": 1, "length": 9.0} for line in metrics]
    logs.append_lines(tmp_path / "metrics.jsonl", metrics)
    logs.append_lines(tmp_path / "eval.jsonl", evaluations)
    assert [*sinks.history(tmp_path)] == [
        ("metrics", metrics[:2]), ("eval", evaluations[:2]), ("metrics", metrics[2:]), ("eval", evaluations[2:]),
    ]  # fmt: skip


def test_columns_may_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("of,another\nrun,before\n")
    made: list[dict[str, Any]] = [{"a": 1, "b": 0.1}, {"a": 2, "c": "x, y"}, {"c": "z"}, {"b": 1e-30, "d": 4}]
    sink = sinks.Csv(tmp_path)
    for record in made:
        sink.write("metrics", [record])
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "a,b,c,d"
    assert rows(tmp_path / "metrics.csv") == made
    assert not (tmp_path / "eval.csv").exists()


FAULTS = {
    "flowrl/experiment/sinks.py": [
        ("if names == columns:", "if columns:", "test_columns_may_come_and_go"),
        ("path.unlink(missing_ok=True)", "pass", "test_columns_may_come_and_go"),
        (
            '(folder / "tensorboard").rglob(',
            '(folder / "tensorboard").glob(',
            "test_events_of_before_are_gone",
        ),
        ("for kind, records in history(", "for kind, records in () and history(", "test_sinks_can_be_asked_for_later"),
        (
            "2 * step + KINDS.index(kind)",
            "step",
            "test_a_run_killed_and_resumed_holds_each_number_once and _checkpoint",
        ),
        ("secrets.token_hex(8) for _", "'same' for _", "test_every_mapped_run_is_a_run_of_its_own"),
        ("self._sinks.pop(name, None)", "", "test_a_sink_that_fails_is_left_out_with_one_warning"),
        (
            "by_time = sorted(lines, key=lambda line: line[0])",
            "by_time = lines",
            "test_history_is_in_the_order_of_writing",
        ),
    ],
}
