"""Bad input through the command line: one line that names the remedy, exit status 2 and no traceback."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import main, save_walks, status

from flowrl import agents
from flowrl import config as configs
from flowrl.errors import UserError
from flowrl.machine import files
from flowrl.run_folder import logs
from flowrl.tasks import ogbench
from flowrl.training.checkpoint import Checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
MAIN = Path(__file__).parents[1] / "experiments" / "main.py"
ENV = "--env=pointmaze-medium-navigate"
TINY = ("--agent.hidden_dims=4", "--agent.batch_size=8", "--eval.episodes=0")


def assert_error(message: str, *arguments: object) -> None:
    """Checks for a one-line error that contains `message`."""
    with pytest.raises(UserError) as caught:
        main(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def assert_program_fails(capfd: pytest.CaptureFixture[str], message: str, *arguments: object) -> None:
    """Checks the exit status and all of stderr of the program."""
    assert status("experiments/main.py", *arguments) == 2
    complaints = capfd.readouterr().err
    errors = [line for line in complaints.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, complaints
    assert message in errors[0]
    assert "Traceback" not in complaints


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_walks(tmp_path_factory.mktemp("data") / "tiny.npz")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 updates with checkpoints at 10 and 20."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    schedule = ("--steps=20", "--log.interval=10", "--checkpoint.interval=10")
    assert main("--agent=gcbc", ENV, f"--data={data}", f"--run_dir={folder}", *TINY, *schedule) == 0
    return folder


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to spoil."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may touch the user's datasets or leave runs behind."""
    monkeypatch.setenv("FLOWRL_DATA", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


# ------------------------------------------------------------------------------------------------- names and values


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("did you mean gcbc?", ["--agent=gcbcc", ENV]),
        ("did you mean pointmaze-medium-navigate?", ["--agent=gcbc", "--env=pointmaze-mediun-navigate"]),
        ("unknown flag --stepz; did you mean --steps?", ["--agent=gcbc", ENV, "--stepz=4"]),
        ("unknown flag --agent.alfa; did you mean --agent.alpha?", ["--agent=gcivl", ENV, "--agent.alfa=4"]),
        (
            "unknown flag --agent.subgoal_steps (a setting of gc_sscp, hiql, hsvl, lavl); --help lists all",
            ["--agent=gcbc", ENV, "--agent.subgoal_steps=4"],
        ),
        ("--agent.horizon.steps (a setting of bc, bfn, ", ["--agent=cal_ql", ENV, "--agent.horizon.steps=5"]),
        ("--help lists all", ["--agent=gcbc", ENV, "--zzz=4"]),
        ("unexpected argument 'quick'", ["--agent=gcbc", ENV, "quick", "--steps=3"]),
        ("--agent is missing: bc, ", [ENV]),
        ("--agent is missing: bc, ", [ENV, "--agent.alpha=3"]),
        ("--env is missing: for example", ["--agent=gcbc"]),
        ("--steps=1.5 is not of type int", ["--agent=gcbc", ENV, "--steps=1.5"]),
        ("--resume=maybe is not of type bool", ["--agent=gcbc", ENV, "--resume=maybe"]),
        ("--agent.learning_rate=fast is not of type float", ["--agent=gcbc", ENV, "--agent.learning_rate=fast"]),
        ("for example 256,256", ["--agent=gcbc", ENV, "--agent.hidden_dims=8,x"]),
        ("for example 256,256", ["--agent=gcbc", ENV, "--agent.hidden_dims="]),
        ("--steps=0 is too small; the least is 1", ["--agent", "gcbc", ENV, "--steps=0"]),
        ("--eval.interval=-5 is too small", ["--agent=gcbc", ENV, "--eval.interval=-5"]),
        ("--eval.episodes=-1 is too small; the least is 0", ["--agent=gcbc", ENV, "--eval.episodes=-1"]),
        ("--log.interval=0 is too small", ["--agent=gcbc", ENV, "--log.interval=0"]),
        ("--checkpoint.interval=0 is too small", ["--agent=gcbc", ENV, "--checkpoint.interval=0"]),
        ("--num_seeds=0 is too small", ["--agent=gcbc", ENV, "--num_seeds=0"]),
        ("--seed=-1 is too small", ["--agent=gcbc", ENV, "--seed=-1"]),
        ("--workers=0 is too small", ["--agent=gcbc", ENV, "--workers=0"]),
        ("--agent.batch_size=0", ["--agent=gcbc", ENV, "--agent.batch_size=0"]),
        ("--agent.hidden_dims=(8, -8)", ["--agent=gcbc", ENV, "--agent.hidden_dims=8,-8"]),
        ("--agent.discount=1.5 is out of range; give a value in [0, 1]", ["--agent=hiql", ENV, "--agent.discount=1.5"]),
        ("--agent.subgoal_steps=0 is out of range", ["--agent=gc_sscp", ENV, "--agent.subgoal_steps=0"]),
        ("leave at most 1 in all", ["--agent=gcbc", ENV, "--agent.actor_goals.p_random=0.5"]),
        ("leave at most 1 in all", ["--agent=hiql", ENV, "--agent.value_goals.p_trajectory=0.8"]),
        ("choose auto, vmap or serial", ["--agent=gcbc", ENV, "--map=parallel"]),
        ("choose paper, quick or none", ["--agent=gcbc", ENV, "--preset=papr"]),
        ("choose --preset=quick or --preset=none", ["--agent=gc_sscp", "--env=scene-play"]),
        ("pixel observations are not supported yet", ["--agent=gcbc", "--env=visual-scene-play"]),
        ("--resume needs --run_dir=DIR", ["--resume"]),
        ("--resume needs --run_dir=DIR", ["--resume", "--agent=gcbc"]),
    ],
)
def test_a_bad_command_line_names_the_remedy(message: str, arguments: list[str]) -> None:
    assert_error(message, *arguments)
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_bad_command_line_exits_without_a_traceback() -> None:
    """The real program, started as people do."""
    command = [sys.executable, str(MAIN), "--agent=gcbc", ENV, "--stepz=4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "did you mean --steps?" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", agents.names())
def test_help_lists_every_flag_with_its_default(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--help") == 0
    general = capsys.readouterr().out
    for flag in ("--agent", "--env", "--preset=paper", "--data=auto", "--num_seeds=1", "--seed=0", "--map=auto"):
        assert f"  {flag}\n" in general
    assert ", ".join(agents.names()) in general
    assert main(f"--agent={name}", "--help") == 0
    own = capsys.readouterr().out
    assert own.startswith(general.rstrip())
    for entry in configs.flatten(agents.default(name), "agent."):
        shown = ",".join(map(str, entry.value)) if isinstance(entry.value, tuple) else entry.value
        assert (
            f"  --{entry.name}{f'={shown}' if shown != '' else ''} [{'sweepable' if entry.traced else 'static'}]" in own
        )


def test_importing_the_package_or_an_agent_brings_in_no_environments_or_plots() -> None:
    heavy = {"mujoco", "ogbench", "gymnasium", "matplotlib", "wandb", "tensorflow"}
    program = (
        "import sys, flowrl, flowrl.agents as agents\n"
        "for name in agents.names(): agents.load(name)\n"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ------------------------------------------------------------------------------------------------- data


def spoilt(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[7, 1] = np.nan
    return values


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        ("the field 'actions' is missing", {"actions": None}),
        ("'observations' has shape (119, 2), but 120 rows", {"observations": np.zeros((119, 2), np.float32)}),
        ("first in row 7", {"observations": spoilt(np.zeros((120, 2), np.float32))}),
        ("'observations' have size 3, but the environment's have 2", {"observations": np.zeros((120, 3), np.float32)}),
        ("'actions' have size 8, but the environment's have 2", {"actions": np.zeros((120, 8), np.float32)}),
    ],
)
def test_bad_data_is_named_before_anything_is_written(tmp_path: Path, message: str, changed: dict[str, Any]) -> None:
    path = save_walks(tmp_path / "bad.npz", **changed)
    assert_error(message, "--agent=gcbc", ENV, f"--data={path}", f"--run_dir={tmp_path / 'run'}", *TINY)
    assert not (tmp_path / "run").exists()


def test_a_truncated_file_exits_without_a_traceback(
    tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cut.npz"
    path.write_bytes(data.read_bytes()[:1000])
    assert_program_fails(capfd, "damaged or cannot be read", "--agent=gcbc", ENV, f"--data={path}", *TINY)


def test_a_missing_file_is_named() -> None:
    assert_error("there is no file nowhere.npz", "--agent=gcbc", ENV, "--data=nowhere.npz")


def test_official_data_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ogbench, "HOSTS", ("http://127.0.0.1:9/data",))  # nothing listens there
    assert_error("use --data=collected", "--agent=gcbc", ENV, "--data=official")


# ------------------------------------------------------------------------------------------------- run directories


def test_a_folder_in_use_is_left_alone(run_dir: Path, data: Path) -> None:
    before = sorted(run_dir.rglob("*"))
    assert_error("continue its run with --resume", "--agent=gcbc", ENV, f"--data={data}", f"--run_dir={run_dir}", *TINY)
    assert sorted(run_dir.rglob("*")) == before


def test_resume_needs_a_run(tmp_path: Path) -> None:
    assert_error("holds no run (no config.json)", "--resume", f"--run_dir={tmp_path}")


@pytest.mark.parametrize(
    ("message", "argument"),
    [
        ("has --agent=gcbc, not hiql", "--agent=hiql"),
        ("has --seed=0, not 3", "--seed=3"),
        ("has --agent.batch_size=8, not 16", "--agent.batch_size=16"),
        ("has --agent.hidden_dims=(4,), not (16,)", "--agent.hidden_dims=16"),
        ("has --env=pointmaze-medium-navigate, not pointmaze-large-navigate", "--env=pointmaze-large-navigate-v0"),
        ("is for 20 updates, more than --steps=15", "--steps=15"),
    ],
)
def test_resume_refuses_what_contradicts_the_run(finished: Path, message: str, argument: str) -> None:
    before = {path: path.read_bytes() for path in finished.glob("*.json*")}
    assert_error(message, "--resume", f"--run_dir={finished}", argument)
    assert {path: path.read_bytes() for path in finished.glob("*.json*")} == before


def test_more_steps_are_recorded(run_dir: Path) -> None:
    assert main("--resume", f"--run_dir={run_dir}", "--steps=25") == 0
    assert logs.read_json(run_dir / "config.json")["settings"]["steps"] == 25
    assert logs.read_json(run_dir / "summary.json")["steps"] == 25
    assert main("--resume", f"--run_dir={run_dir}") == 0


@pytest.mark.parametrize("text", ["{}", "[1]", '{"settings"', ""])
def test_a_damaged_record_of_a_run(run_dir: Path, text: str) -> None:
    (run_dir / "config.json").write_text(text)
    assert_error("config.json", "--resume", f"--run_dir={run_dir}")


def test_the_checkpoint_of_another_agent(run_dir: Path) -> None:
    config = logs.read_json(run_dir / "config.json")
    config["settings"]["agent"] = "gcivl"
    config["agent_config"] = configs.values(agents.default("gcivl")) | config["agent_config"]
    (run_dir / "config.json").write_text(json.dumps(config))
    assert_error("is of agent gcbc, not gcivl", "--resume", f"--run_dir={run_dir}", "--steps=30")


def test_changed_data(run_dir: Path, tmp_path: Path) -> None:
    other = save_walks(tmp_path / "other.npz", actions=np.zeros((120, 2), np.float32))
    message = "is not the data that the run in"
    assert_error(message, "--resume", f"--run_dir={run_dir}", f"--data={other}", "--steps=30")


def garble_facts(step: Path) -> None:
    for path in (step / "facts").iterdir():
        path.write_text("garbage")


def truncate_arrays(step: Path) -> None:
    for path in (step / "arrays").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [
        garble_facts,
        lambda step: shutil.rmtree(step / "facts"),
        lambda step: shutil.rmtree(step / "arrays"),
        lambda step: (step / "arrays" / "manifest.ocdbt").unlink(),
        truncate_arrays,
    ],
    ids=["facts garbled", "facts lost", "arrays lost", "manifest lost", "arrays truncated"],
)
def test_a_damaged_checkpoint_names_the_way_back(run_dir: Path, damage: Callable[[Path], None]) -> None:
    damage(run_dir / "checkpoints" / "20")
    again = ("--resume", f"--run_dir={run_dir}", "--steps=30")
    assert_error("delete that step's folder to fall back to the one before", *again)
    shutil.rmtree(run_dir / "checkpoints" / "20")
    assert main(*again) == 0


def test_a_damaged_checkpoint_exits_without_a_traceback(run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    truncate_arrays(run_dir / "checkpoints" / "20")
    assert_program_fails(capfd, "checkpoint at step 20", "--resume", f"--run_dir={run_dir}", "--steps=30")


# ------------------------------------------------------------------------------------------------- during a run


def test_a_diverging_run_stops_with_a_checkpoint_from_before_it(
    tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    often = ("--log.interval=1", "--checkpoint.interval=1", "--steps=50", "--num_seeds=2", "--seed=4")
    arguments = ("--agent=gcbc", ENV, f"--data={data}", f"--run_dir={folder}", *TINY, *often)
    message = "diverged: actor/loss of the run with seed 5 is not finite after update 2; the checkpoint at 1 in"
    assert_program_fails(capfd, message, *arguments, "--agent.learning_rate=1e20")  # and so, with what helps:
    assert_error("try a smaller --agent.learning_rate than 1e+20", "--resume", f"--run_dir={folder}")
    lines = logs.read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 1]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    for path in folder.glob("*.json*"):
        assert "NaN" not in path.read_text()
        assert "Infinity" not in path.read_text()
    checkpoints = Checkpoints(folder / "checkpoints")
    assert checkpoints.latest() == 1
    checkpoints.close()
    events = [{"step": 2, "metric": "actor/loss", "run": run, "seed": 4 + run} for run in range(2)]
    assert logs.read_json(folder / "diverged.json") == events


@pytest.mark.parametrize(
    ("rate", "fields", "advice"),
    [
        (1e20, {"observations": 1e6}, "try a smaller --agent.learning_rate than 1e+20"),
        (3e-4, {"observations": 1e6, "rewards": 1.0}, "observations are as large as 1e+06: try --normalize.observ"),
        (
            3e-4,
            {"observations": 1.0, "rewards": 1e9},
            "rewards are as large as 1e+09: try a smaller --normalize.reward_scale",
        ),
        (3e-4, {"observations": 1.0, "rewards": 1.0}, "look at what grew before in metrics.jsonl"),
    ],
)
def test_the_advice_after_a_divergence_is_about_what_is_unusual(
    rate: float, fields: dict[str, float], advice: str
) -> None:
    from flowrl.experiment import run as runs
    from flowrl.experiment.settings import Settings
    from flowrl.run_folder.runs import Run
    from flowrl.training.loop import Divergence

    config = configs.put(agents.default("bc"), {"learning_rate": rate})
    plan = SimpleNamespace(settings=Settings(agent="bc"), config=config, runs=(Run(3, {}),), folder="x")
    dataset = SimpleNamespace(fields={name: np.array([0.0, -size]) for name, size in fields.items()})
    parts: Any = SimpleNamespace(plan=plan, dataset=dataset)
    own: Any = SimpleNamespace(parts=parts, checkpoints=SimpleNamespace(latest=lambda: 1))
    told = runs._diverged(own, Divergence(2, "actor/loss", 0))
    assert advice in told
    assert ("learning_rate" in told) == (rate > 1)


def test_the_bar_comes_after_the_banner_and_counts_what_was_done_for_no_rate(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flowrl.experiment import runner

    class Told(runner.Progress):
        def __init__(self, *arguments: Any, **named: Any):
            super().__init__(*arguments, **named)
            print(f"bar from {self.n}")

    monkeypatch.setattr(runner, "Progress", Told)
    assert main("--resume", f"--run_dir={run_dir}", "--steps=25") == 0
    out = capsys.readouterr().out
    assert out.index("agent  gcbc") < out.index("         run  ") < out.index("bar from 20")


def test_metrics_whose_sum_overflows_are_not_logged(tmp_path: Path) -> None:
    from flowrl.experiment.recorder import Recorder
    from flowrl.experiment.settings import Settings
    from flowrl.run_folder.runs import Run

    runs = tuple(Run(seed, {}) for seed in range(3))
    plan: Any = SimpleNamespace(settings=Settings(), folder=tmp_path, runs=runs, swept=False)
    recorder = Recorder(plan, range(1, 3), {})  # as on a later host
    recorder.log(30, {"actor/loss": np.array([1.0, np.inf])}, [{}, {}])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("train/actor/loss") for line in lines] == [1.0, None]
    assert [(line["run"], line["seed"]) for line in lines] == [(1, 1), (2, 2)]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10, used=10, free=0))


@pytest.mark.usefixtures("full_disk")
def test_no_disk_space_for_a_checkpoint_leaves_the_run_as_it_was(run_dir: Path) -> None:
    assert_error("no disk space in", "--resume", f"--run_dir={run_dir}", "--steps=30")
    checkpoints = Checkpoints(run_dir / "checkpoints")
    assert checkpoints.latest() == 20
    assert checkpoints.facts()["agent"] == "gcbc"
    checkpoints.close()


def test_no_disk_space_while_a_file_is_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old")

    def write() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device; free space"):
        write()
    assert [item.name for item in tmp_path.iterdir()] == ["summary.json"]
    assert path.read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_no_disk_space_for_a_log_line() -> None:
    with pytest.raises(UserError, match="No space left on device; free space and continue with --resume"):
        logs.append_lines(Path("/dev/full"), [{"step": 1}])


def test_every_sweepable_default_is_in_range() -> None:
    for name in agents.names():
        configs.check(agents.default(name), "agent.")


FAULTS = {
    "flowrl/cli/flags.py": [
        (
            'if flag.startswith("agent.") else ()',
            "if not flag else ()",
            "test_a_bad_command_line_names_the_remedy and subgoal_steps",
        ),
    ],
    "flowrl/experiment/recorder.py": [
        (
            "row, run in enumerate(self._own)",
            "row, run in enumerate(range(len(self._own)))",
            "test_metrics_whose_sum_overflows_are_not_logged",
        ),
    ],
    "flowrl/experiment/runner.py": [
        (
            "total, step, hidden",
            "total, 0, hidden",
            "test_the_bar_comes_after_the_banner_and_counts_what_was_done_for_no_rate",
        ),
    ],
    "flowrl/experiment/run.py": [
        (
            "if rate > usual.get(",
            "if rate >= usual.get(",
            "test_the_advice_after_a_divergence_is_about_what_is_unusual",
        ),
    ],
}
