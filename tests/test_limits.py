"""Numbers as people write them, the bounds that messages name, and what no machine can do."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from absl import flags as absl_flags
from commands import load, main, sweep

from flowrl import agents
from flowrl import config as configs
from flowrl.cli import flags
from flowrl.errors import UserError
from flowrl.experiment import estimates, run, settings
from flowrl.experiment.settings import MAX_SEED, MOST_RUNS, Plan, Settings, plan
from flowrl.machine import limits, memory

ENV = "--env=pointmaze-medium-navigate"
OFFLINE = ("--agent=gcbc", ENV, "--preset=quick")
ONLINE = ("--agent=sac", "--env=Pendulum-v1", "--preset=quick", "--online.steps=1e6")


@pytest.fixture(autouse=True)
def a_small_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 GB of memory, 100 GB of disk and two cores; nothing is trained, and no test leaves runs behind."""
    monkeypatch.setattr(estimates, "available_memory", lambda: 16 * 10**9)
    monkeypatch.setattr(memory, "free_bytes", lambda: 16 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: (10**12, 0, 10**11))
    monkeypatch.setattr(estimates, "usable_cores", lambda: 2)
    monkeypatch.setattr(run, "_execute", lambda plan, stored, signals: plans.append(plan) or 0)
    monkeypatch.chdir(tmp_path)
    plans.clear()


plans: list[Plan] = []


def refusal(*arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        main(*arguments)
    assert "\n" not in str(caught.value)
    assert not plans
    return str(caught.value)


def planned(*arguments: object) -> Settings:
    assert main(*arguments) == 0
    return plans[-1].settings


# --------------------------------------------------------------------------------------------------- how it is written


@pytest.mark.parametrize(
    ("text", "value"), [("1e5", 100_000), ("1_000", 1000), ("2.5e3", 2500), ("+7", 7), ("12.0", 12), ("1E2", 100)]
)
def test_integers_as_people_write_them(text: str, value: int) -> None:
    steps = planned(*OFFLINE, f"--steps={text}").steps
    assert steps == value
    assert type(steps) is int
    assert planned(*OFFLINE, "--steps", text).steps == value


def test_layers_and_values_of_sweeps_as_people_write_them() -> None:
    values = absl_flags.FlagValues()
    config = agents.default("gcbc")
    flags.define_lists(values, config)
    flags.parse(values, ["x", "--hidden_dims=1e2,64:1_000", "--batch_size=1e3,8", "--learning_rate=-0.0,1e-3"])
    found = flags.given_lists(values, config)
    assert found == {"hidden_dims": [(100, 64), (1000,)], "batch_size": [1000, 8], "learning_rate": [0.0, 1e-3]}
    assert str(found["learning_rate"][0]) == "0.0"


@pytest.mark.parametrize("text", ["nan", "1e-3,inf", "1e-400", "-Infinity,1"])
def test_values_of_sweeps_that_are_no_numbers(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a finite number|is too small to be told from 0"):
        sweep(*OFFLINE, f"--agent.learning_rate={text}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_float_setting_takes_what_is_no_number(value: float) -> None:
    for record in (Settings(), *map(agents.default, agents.names())):
        floats = [entry.name for entry in configs.flatten(record) if entry.kind is float]
        assert floats
        for name in floats:
            with pytest.raises(UserError, match=rf"{name}={value}"):
                configs.check(configs.put(record, {name: value}))


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("give a value in [0, 3.40282e+38]", ["--agent.learning_rate=1e39"]),
        ("--agent.learning_rate=inf is not a finite number", ["--agent.learning_rate=inf"]),
        ("--agent.learning_rate=nan is not a finite number", ["--agent.learning_rate=nan"]),
        ("--agent.learning_rate=1e-400 is too small to be told", ["--agent.learning_rate=1e-400"]),
        ("--agent.learning_rate=1e-50 is too small to be told", ["--agent.learning_rate=1e-50"]),
        ("--normalize.reward_shift=-inf is not a finite number", ["--normalize.reward_shift=-inf"]),
        ("--normalize.reward_scale=0 makes all rewards equal", ["--normalize.reward_scale=-0.0"]),
        ("--seed=4294967296 is too large; the most is 4,294,967,295", ["--seed=4294967296"]),
        ("goes beyond the last seed, 4294967295", ["--seed=4294967295", "--num_seeds=2"]),
        ("--steps=1e999999999 is too large", ["--steps=1e999999999"]),
        ("--steps=100000000000000000000 is too large; the most is 2,147,", ["--steps=1e20"]),
        ("unknown flag --learning_rate; did you mean --agent.learning", ["--learning_rate=1"]),
        ("--run_dir= is empty", ["--run_dir="]),
        ("--map=vmaps is unknown; choose auto, vmap or serial; did you", ["--map=vmaps"]),
    ],
)
def test_numbers_and_texts_that_cannot_be(message: str, arguments: list[str]) -> None:
    assert message in refusal(*OFFLINE, *arguments)


# ------------------------------------------------------------------------------------------------------------- bounds


WHOLE = {entry.name: entry.field for entry in configs.flatten(Settings()) if entry.kind is int}


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "checkpoint.keep"])
def test_the_bounds_that_messages_name_are_those_that_hold(name: str) -> None:
    low, high = WHOLE[name].metadata["range"]
    for value in (low, high):
        configs.check(configs.put(Settings(), {name: value}))
    with pytest.raises(UserError, match=f"--{name}={low - 1} is too small; the least is {low}$"):
        configs.check(configs.put(Settings(), {name: low - 1}))
    with pytest.raises(UserError, match=f"--{name}={high + 1} is too large; the most is {high:,}$"):
        configs.check(configs.put(Settings(), {name: high + 1}))


def test_the_bounds_of_agents_are_those_that_hold() -> None:
    for agent in agents.names():
        for entry in configs.flatten(agents.default(agent), "agent."):
            if not entry.traced:
                continue
            low, high = entry.field.metadata["range"]
            most = min(high, configs.MOST_COUNT if entry.kind is int else configs.MOST_FLOAT)
            for value in (max(low, -configs.MOST_FLOAT), most):
                configs._check_value(entry._replace(value=value))
            with pytest.raises(UserError, match=f"--{entry.name}=.* is out of range"):
                configs._check_value(entry._replace(value=most + max(1, most)))


def test_the_last_seed() -> None:
    assert planned(*OFFLINE, f"--seed={MAX_SEED}").seed == MAX_SEED
    assert planned(*OFFLINE, f"--seed={MAX_SEED - 1}", "--num_seeds=2").seed == MAX_SEED - 1


# -------------------------------------------------------------------------------------------- who gave what, and empty


def test_the_preset_and_not_the_user_is_named() -> None:
    assert "leaves nothing of --online.steps=1000 " in refusal(*ONLINE, "--online.steps=1e3")
    assert refusal(*ONLINE, "--online.steps=1e3").startswith("the preset's --online.warmup_steps=")
    assert refusal(*ONLINE, "--online.warmup_steps=2e6").startswith(
        "--online.warmup_steps=2000000 leaves nothing of --online.steps"
    )
    assert refusal(*ONLINE, "--online.num_envs=3").startswith(
        "--online.steps=1000000 is no multiple of --online.num_envs=3"
    )
    told = refusal(*ONLINE, "--online.num_envs=3", "--online.steps=999999")
    assert told.startswith("the preset's --log.interval=1000 is no multiple of --online.num_envs=3")


# ------------------------------------------------------------------------------------------------------ absurd sizes


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--num_seeds=1e8",), f"--num_seeds=100000000 is too large; the most is {MOST_RUNS:,}"),
        (("--num_seeds=10_000", "--agent.hidden_dims=512,512"), "lower"),
        (("--agent.hidden_dims=10000000",), "is too large; the most is 1,000,000"),
        (("--agent.hidden_dims=1e6,1e6",), "not enough memory: at least 12.0 TB are needed, 16.0 GB are free"),
        (("--agent.hidden_dims=" + ",".join(["8"] * 1000),), "has 1000 layers; the most is 100"),
        (("--agent.batch_size=1e13",), "--agent.batch_size=10000000000000 is too large"),
        (("--agent.batch_size=1e8",), "most of it is for batches of 100,000,000 transitions"),
        (("--eval.episodes=1e8",), "the 500,000,000 episodes of each evaluation would take at least 29 days"),
        (("--eval.episodes=1e5", "--eval.interval=1", "--steps=1e6"), "give a smaller --eval.episodes"),
        (("--eval.interval=1", "--steps=1e9", "--eval.episodes=1"), "1,000,000,000 evaluations"),
        (("--steps=2e9", "--agent.batch_size=65536"), "2,000,000,000 updates; give a smaller --steps"),
        (("--steps=2e9", "--checkpoint.interval=1"), "give a larger --checkpoint.interval"),
        (("--steps=1e6", "--checkpoint.interval=1", "--checkpoint.keep=0"), "no disk space in"),
        (("--steps=2e9", "--log.interval=1"), "2,000,000,000 log lines; give a larger --log.interval, or free space"),
        (("--eval.episodes=1e5", "--log.video_episodes=1e5"), "the videos would take at least 29 days"),
        (("--workers=100000",), "--workers=100000 is too large; the most is 1,024"),
    ],
)
def test_what_no_machine_can_do_is_refused_at_once(arguments: tuple[str, ...], told: str) -> None:
    message = refusal(*OFFLINE, *arguments)
    assert told in message or (told == "lower" and "give a smaller --num_seeds" in message), message
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--online.num_envs=100000",), "--online.num_envs=100000 is too large; the most is 10,000"),
        (("--online.num_envs=100", "--num_seeds=1000"), "come to 100,000 environments; the most is 10,000"),
        (
            ("--online.num_envs=1000", "--online.vectorization=async"),
            "1,000 processes with environments; give a smaller --online.num_envs",
        ),
        (("--num_seeds=1000", "--online.buffer_size=1e6"), "replay buffers of 1,000,000 transitions of 1,000 runs"),
        (("--online.steps=2e9", "--online.buffer_size=2e9"), "give a smaller --online.buffer_size"),
        (("--online.updates_per_step=1e6",), "come to 1e+12 steps and updates; the most is 2,147,483,647"),
        (("--online.steps=1e20",), "is too large"),
    ],
)
def test_what_no_machine_can_do_online(arguments: tuple[str, ...], told: str) -> None:
    assert told in refusal(*ONLINE, *arguments)


def test_sizes_that_work_are_let_through() -> None:
    assert planned(*OFFLINE, "--num_seeds=64").num_seeds == 64
    assert planned(*ONLINE, "--online.num_envs=100").online.num_envs == 100
    assert planned(*OFFLINE, "--eval.interval=2147483647", "--checkpoint.keep=1000").eval.interval == 2**31 - 1


def test_a_grid_of_a_million_points_is_not_written_out() -> None:
    rates = ",".join(str(each) for each in range(1, 1001))
    with pytest.raises(UserError, match=r"1,000,000 grid points × 1 seeds are more than 10,000 runs"):
        sweep(*OFFLINE, f"--agent.learning_rate={rates}", f"--agent.actor_goals.p_random={rates}")
    with pytest.raises(UserError, match=r"--num_seeds=100000000 is too large"):
        sweep(*OFFLINE, "--num_seeds=1e8")
    with pytest.raises(UserError, match=r"not enough memory: at least 12\.0 TB"):
        sweep(*OFFLINE, "--agent.hidden_dims=8:1e6,1e6")
    assert not plans  # not even those that fit
    assert not Path("runs").exists()


def test_the_disk_of_a_resumed_run_holds_its_checkpoints_already(monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan({"agent": "gcbc", "env": "pointmaze-medium-navigate", "preset": "quick"}, {})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: (10**12, 0, 1000))
    with pytest.raises(UserError, match=r"3 checkpoints of 1\.6 MB"):
        estimates.require(made)
    estimates.require(made, begun=True)


def test_memory_is_what_the_narrowest_limit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(limits, "_left_of_cgroups", list)
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (limits.resource.RLIM_INFINITY,) * 2)
    whole = limits.available_memory()
    if whole is None:
        pytest.skip("only Linux tells")
    monkeypatch.setattr(limits, "_left_of_cgroups", lambda: [10**6])
    assert limits.available_memory() == 10**6
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (2 * 10**5, 2 * 10**5))
    assert limits.available_memory() == 0  # more than that is taken already


@pytest.mark.parametrize(
    "name", [path.stem for path in sorted((Path(__file__).parents[1] / "experiments").glob("*.py"))]
)
def test_every_program_says_its_version_and_helps(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    program = load(f"experiments/{name}.py").main
    assert program([f"{name}.py", "--version"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("flowrl ")
    assert "jax " in told
    for asking in (["--help"], ["--steps=zz", "-h"]):
        assert program([f"{name}.py", *asking]) == 0
        assert "python experiments/" in capsys.readouterr().out


def test_help_on_an_agent_that_is_not_there() -> None:
    assert refusal("--agent=scp", "--help").startswith("unknown agent 'scp'; did you mean sscp?")


@pytest.mark.parametrize(
    ("program", "arguments", "told"),
    [
        ("collect", [ENV, "--episodes=1e20"], "is too large; the most is 1,000,000"),
        ("collect", [ENV, "--workers=1e6"], "is too large; the most is 1,024"),
        ("evaluate", ["--run_dir=x", "--episodes=1e8"], "is too large"),
        ("expert", ["--episodes=1e20"], "is too large"),
        ("evaluate", ["--run_dir=x", "--step=-1"], "is too small; the least is 0"),
        ("bench", ["--seconds=inf"], "is not a finite number"),
        ("plot", ["x", "--out="], "--out= is empty"),
    ],
)
def test_other_programs_have_bounds_too(program: str, arguments: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        load(f"experiments/{program}.py").main([f"{program}.py", *arguments])


def test_a_platform_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise AssertionError

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(settings.devices.jax, "devices", none)
    assert refusal(*OFFLINE) == "JAX finds no device for JAX_PLATFORMS=cuda; unset it, or set cpu"


def test_a_folder_that_is_nearly_there(tmp_path: Path) -> None:
    (tmp_path / "runs" / "first").mkdir(parents=True)
    assert "did you mean runs/first?" in refusal("--resume", "--run_dir=runs/frist")


FAULTS = {
    "flowrl/run_folder/texts.py": [
        ("if not math.isfinite(value):", "if False:", "test_values_of_sweeps_that_are_no_numbers"),
        ("return value + 0.0", "return value", "test_layers_and_values_of_sweeps_as_people_write_them"),
        (
            "    return int(number)\n",
            "    raise\n",
            "test_integers_as_people_write_them or test_layers_and_values_of_sweeps_as_people_write_them",
        ),
    ],
    "flowrl/cli/flags.py": [
        ('values[name].value == ""', "values[name].value is None", "test_numbers_and_texts_that_cannot_be"),
        ('if asks(arguments, "version"):', "if False:", "test_every_program_says_its_version_and_helps"),
    ],
    "flowrl/config.py": [
        ("if value == 0 and (reason", "if False and (reason", "test_numbers_and_texts_that_cannot_be"),
        ("    if value < low:\n", "    if value <= low:\n", "test_the_bounds_that_messages_name_are_those_that_hold"),
        ("    if value > high:\n", "    if value >= high:\n", "test_the_bounds_that_messages_name_are_those_that_hold"),
        (
            "-MOST_FLOAT) <= value <= high:",
            "-MOST_FLOAT) <= value < high:",
            "test_the_bounds_of_agents_are_those_that_hold",
        ),
        ("if len(value) > MOST_LAYERS:", "if False:", "test_what_no_machine_can_do_is_refused_at_once"),
        ("if not max(low, -MOST_FLOAT) <=", "if not low <=", "test_no_float_setting_takes_what_is_no_number"),
    ],
    "flowrl/experiment/settings.py": [
        ("settings.num_seeds - 1 > MAX_SEED", "settings.num_seeds > MAX_SEED", "test_the_last_seed"),
        ('dict.fromkeys(preset.run, "the preset\'s")', "{}", "test_the_preset_and_not_the_user_is_named"),
        ("if updates > MOST_COUNT:", "if False:", "test_what_no_machine_can_do_online"),
    ],
    "flowrl/experiment/estimates.py": [
        ("if free is not None and total > free:", "if False:", "test_what_no_machine_can_do_is_refused_at_once"),
        ("if need.amount > DAY:", "if False:", "test_what_no_machine_can_do_is_refused_at_once"),
        ("if total > MOST_DAYS * DAY:", "if False:", "test_what_no_machine_can_do_is_refused_at_once"),
        ("for need in needs)) > free:", "for need in needs)) < 0:", "test_what_no_machine_can_do_is_refused_at_once"),
        ("    if not begun:\n", "    if True:\n", "test_the_disk_of_a_resumed_run_holds_its_checkpoints_already"),
    ],
    "flowrl/machine/limits.py": [
        ("*_left_of_cgroups(), ", "", "test_memory_is_what_the_narrowest_limit_leaves"),
        (", *_left_of_ulimit()", "", "test_memory_is_what_the_narrowest_limit_leaves"),
    ],
    "flowrl/experiment/grids.py": [
        (
            "        estimates.require(dataclasses.replace(made, runs=made.runs[:1]))",
            "        pass",
            "test_a_grid_of_a_million_points_is_not_written_out",
        ),
    ],
    "flowrl/machine/devices.py": [
        ("except (RuntimeError, AssertionError)", "except RuntimeError", "test_a_platform_that_is_not_there"),
    ],
}
