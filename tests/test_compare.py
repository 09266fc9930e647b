"""The comparison of agents: what it trains and keeps, the tables it writes, and what it refuses."""

import csv
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from commands import load, main
from run_dirs import make_run

from flowrl import agents
from flowrl.config import put, values
from flowrl.errors import UserError
from flowrl.experiment import cells, comparing, presets, run, speed
from flowrl.experiment.recorder import Recorder
from flowrl.experiment.settings import plan
from flowrl.machine import signals
from flowrl.networks import Spec
from flowrl.reports import figures, score_tables
from flowrl.run_folder import logs, statistics

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
program = load("experiments/compare.py")
TINY = (
    "--preset=none", "--agent.hidden_dims=4", "--agent.batch_size=4", "--workers=1", "--max_episode_steps=10",
    "--steps=20", "--log.interval=10", "--eval.interval=10", "--eval.episodes=2", "--checkpoint.interval=10",
)  # fmt: skip
PENDULUM = ("--envs=Pendulum-v1", "--num_seeds=2", "--bc.flow.steps=1", *TINY)


def compare(*arguments: object) -> int:
    return program.main(["compare.py", *map(str, arguments)])


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    """Measures no longer than it must."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "MEASURED", 0.001)
        yield


@pytest.fixture(scope="module")
def undisturbed(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two agents, one of which acts with the best of several, with two seeds each."""
    folder = tmp_path_factory.mktemp("undisturbed") / "compared"
    assert compare("--agents=bc,bfn", *PENDULUM, "--bfn.flow.steps=1", data, f"--run_dir={folder}") == 0
    return folder


def again(folder: Path, data: str, *others: str, agents: str = "bc,bfn") -> int:
    return compare(f"--agents={agents}", *PENDULUM, "--bfn.flow.steps=1", data, f"--run_dir={folder}", *others)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "comparison.csv").open() as file:
        return [*csv.DictReader(file)]


# ------------------------------------------------------------------------------------------------------- tables


def scores_of(folder: Path, mode: str) -> np.ndarray:
    """Returns each seed's mean of the two evaluations."""
    lines = [line for line in logs.read_lines(folder / "eval.jsonl") if line["mode"] == mode]
    return np.array([np.mean([line["return"] for line in lines if line["seed"] == seed]) for seed in (0, 1)])


@pytest.mark.slow
def test_tables_hold_what_agents_reach_as_they_are_configured_to_act(undisturbed: Path) -> None:
    bc, bfn = table(undisturbed)
    scores = [
        scores_of(undisturbed / "bc-Pendulum-v1", "eval"),
        scores_of(undisturbed / "bfn-Pendulum-v1", "best_of_n"),
    ]
    for row, own, mode in zip((bc, bfn), scores, ("eval", "best_of_n"), strict=True):
        assert (row["mode"], row["seeds"], row["updates"], row["metric"]) == (mode, "2", "20", "return")
        interval = statistics.mean_interval(own)
        assert [float(row[name]) for name in ("mean", "mean_low", "mean_high")] == pytest.approx([*interval])
        np.testing.assert_allclose([float(part.split(":")[1]) for part in row["per_seed"].split()], own)
        assert float(row["iqm"]) == pytest.approx(own.mean())
        assert float(row["ms_per_action"]) > 0
        times = logs.read_lines(undisturbed / f"{row['agent']}-Pendulum-v1" / "time.jsonl")
        rate = sorted(line["steps_per_second"] for line in times)[1]  # of the program, thus of each of two seeds
        assert float(row["ms_per_update"]) == pytest.approx(1000 / rate / 2)
    assert (bc["one_draw"], bc["mean_q"]) == ("", "")
    logged = logs.read_lines(undisturbed / "bfn-Pendulum-v1" / "metrics.jsonl")
    q = {(line["step"], line["seed"]): line["train/critic/q_mean"] for line in logged}
    assert float(bfn["mean_q"]) == pytest.approx((q[20, 0] + q[20, 1]) / 2)
    assert float(bfn["mean_q"]) != pytest.approx(np.mean([*q.values()]))
    assert float(bfn["one_draw"]) == pytest.approx(scores_of(undisturbed / "bfn-Pendulum-v1", "eval").mean())
    wins = (scores[0][:, None] > scores[1]).mean() + 0.5 * (scores[0][:, None] == scores[1]).mean()
    assert float(bc["beats_bfn"]) == wins
    assert float(bfn["beats_bc"]) == 1 - wins
    assert (bc["beats_bc"], bc["data"]) == ("", "file own.npz")


@pytest.mark.slow
def test_the_page_says_all_that_and_names_no_place_of_the_machine(undisturbed: Path, tmp_path: Path) -> None:
    text = (undisturbed / "comparison.md").read_text()
    assert "| `bfn` | best of 4 |" in text
    assert "| `bc` | one draw |" in text
    assert "| Pendulum-v1 | " in text.split("## Probability of improvement")[1]
    assert "--data=FILE" in text
    assert "- Pendulum-v1: no released curves of bc, bfn" in text
    for name in ("comparison.md", "comparison.csv", "Pendulum-v1.png.json"):
        assert str(undisturbed.parent) not in (undisturbed / name).read_text()
    assert (undisturbed / "Pendulum-v1.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_cells_are_ordinary_runs(undisturbed: Path, tmp_path: Path) -> None:
    folders = [str(undisturbed / f"{name}-Pendulum-v1") for name in ("bc", "bfn")]
    plot, report = load("experiments/plot.py"), load("experiments/report.py")
    assert plot.main(["plot.py", *folders, f"--out={tmp_path / 'c.png'}"]) == 0
    assert report.main(["report.py", *folders, f"--out={tmp_path / 'r.html'}"]) == 0
    assert main("--resume", f"--run_dir={folders[0]}") == 0
    config = logs.read_json(undisturbed / "bc-Pendulum-v1" / "config.json")
    assert config["command"].startswith("python experiments/main.py --agent=bc --env=Pendulum-v1 --preset=none")
    assert "--num_seeds=2" in config["command"]
    assert "grid" not in config


def test_a_success_that_no_run_of_an_agent_reaches_is_one_of_zero(tmp_path: Path) -> None:
    reached, never = make_run(tmp_path / "a", {0: [0.5]}), make_run(tmp_path / "b", {0: [0.5]}, agent="hiql")
    (never / "eval.jsonl").write_text((never / "eval.jsonl").read_text().replace("success", "return"))
    entries, left_out = score_tables.read([reached, never, tmp_path / "c"], {})
    assert [entry.group.final for entry in entries] == [{0: 0.5}, {0: 0.0}]
    assert left_out == ["left out: c is not a folder; give the --run_dir of a run"]
    (first, second) = score_tables.rows(entries)
    assert (first["improvement"], second["improvement"]) == ({"hiql": 1.0}, {"gcbc": 0.0})


def test_differences_beside_the_agent_are_noted(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a", {0: [0.5, 0.5], 1: [0.5, 0.5]})
    two = make_run(tmp_path / "b", {0: [0.5], 1: [0.5]}, agent="hiql", sha="cd" * 32, steps=200)
    entries, _ = score_tables.read([one, two], {})
    text = score_tables.markdown(entries, "a command", ["something else"])
    place = "pointmaze-medium-navigate"
    assert f"- something else\n- {place}: trained on different data" in text
    assert f"- {place}: scores come from different evaluations (gcbc: [100, 200], hiql: [100])" in text
    assert f"- {place}: hiql: unfinished: 100 of 200 updates" in text


# ---------------------------------------------------------------------------------------------- what is trained


@pytest.mark.slow
def test_what_is_finished_is_kept_and_what_is_missing_trained(
    undisturbed: Path, data: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[str] = []
    monkeypatch.setattr(run, "execute", lambda plan, *_: trained.append(plan.settings.agent) or 0)
    before = (undisturbed / "comparison.csv").read_bytes()
    assert again(undisturbed, data) == 0
    assert trained == []
    assert (undisturbed / "comparison.csv").read_bytes() == before
    capsys.readouterr()
    assert again(undisturbed, data, agents="sscp,bc,bfn") == 0
    assert trained == ["sscp"]
    told = capsys.readouterr().out
    assert "3 trainings, 2 of them finished before\n[3/3] sscp on Pendulum-v1: 2 seeds" in told


@pytest.mark.slow
def test_what_is_broken_off_goes_on_and_comes_to_the_same(
    undisturbed: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated, write = [], Recorder.evaluated

    def stopped(self: Recorder, step: int, lines: list[dict[str, Any]]) -> None:
        write(self, step, lines)
        evaluated.append(step)
        if len(evaluated) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Recorder, "evaluated", stopped)
    folder = tmp_path / "compared"
    with signals.orderly():
        assert again(folder, data) == 128 + signal.SIGTERM
        assert "the same command continues the comparison" in capsys.readouterr().out
        assert not (folder / "comparison.md").exists()
        assert again(folder, data) == 0
    assert evaluated == [10, 20, 10, 20]
    times = {"ms_per_action", "ms_per_update"}
    for own, other in zip(table(folder), table(undisturbed), strict=True):
        assert {name: own[name] for name in own.keys() - times} == {name: other[name] for name in own.keys() - times}


@pytest.mark.slow
def test_a_run_that_diverges_leaves_the_others_their_table(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert again(tmp_path / "compared", data, "--bc.learning_rate=1e38") == 0
    assert "warning: bc on Pendulum-v1: diverged" in capsys.readouterr().out
    assert [row["agent"] for row in table(tmp_path / "compared")] == ["bfn"]
    text = (tmp_path / "compared" / "comparison.md").read_text()
    assert "- bc on Pendulum-v1: diverged: " in text
    assert str(tmp_path) not in text


@pytest.mark.slow
def test_without_matplotlib_there_are_tables(
    undisturbed: Path, data: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise UserError("plots need matplotlib")

    monkeypatch.setattr(figures, "make", missing)
    assert again(undisturbed, data) == 0
    told = capsys.readouterr().out
    assert "warning: not drawn: plots need matplotlib" in told
    assert "wrote comparison.md, comparison.csv in " in told


def test_settings_of_all_agents_and_of_one(data: str, tmp_path: Path) -> None:
    seen: list[cells.Cell] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "show", lambda found: seen.extend(found) or 0)
        given = ("--agents=bc,fql", *PENDULUM, data, "--fql.alpha=3", "--fql.hidden_dims=5,5", "--list")
        assert compare(*given, f"--run_dir={tmp_path / 'c'}") == 0
    bc, fql = (values(cell.plan.config) for cell in seen)
    assert (bc["hidden_dims"], fql["hidden_dims"]) == ((4,), (5, 5))
    assert (fql["alpha"], fql["batch_size"], bc["batch_size"]) == (3.0, 4, 4)


# ----------------------------------------------------------------------------------------------------- listing


@pytest.mark.slow
def test_a_list_trains_nothing(
    undisturbed: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(undisturbed / "bfn-Pendulum-v1", tmp_path / "bfn-Pendulum-v1")
    assert again(tmp_path, data, "--list") == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("bc on Pendulum-v1: 2 seeds × 20 updates at ")
    assert "evaluations at most" in first
    assert second.startswith("bfn on Pendulum-v1: finished, in ")
    assert last.startswith("in all about ")
    assert [path.name for path in tmp_path.iterdir()] == ["bfn-Pendulum-v1"]


def test_updates_of_a_later_stage_take_their_own_time(tmp_path: Path) -> None:
    given = {"agent": "hiql", "env": "antmaze-large-navigate", "preset": "none", "steps": 60_000}
    made = plan(given | {"run_dir": str(tmp_path)}, {"value.steps": 25_000})
    pace = speed.Pace(updates=20.0, action=0.002, step=0.001, turn=25_000, later=10.0)
    left = [speed.training_seconds(made, pace, done) for done in (0, 5_000, 30_000, 60_000)]
    assert left == pytest.approx([1250 + 3500, 1000 + 3500, 3000, 0])


@pytest.mark.parametrize(
    ("agent", "given", "acts"),
    [
        ("gfp", {}, {"acts": "actor"}),
        ("fmq", {"beam.rounds": 1}, {"beam.rounds": 0, "choice.num_samples": 32}),
    ],
)
def test_the_action_that_is_timed_is_the_one_that_is_judged(
    agent: str,
    given: dict[str, Any],
    acts: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = plan({"agent": agent, "env": "Pendulum-v1", "preset": "none", "run_dir": str(tmp_path)}, given)
    seen: list[Any] = []
    monkeypatch.setattr(
        speed, "acting_times", lambda agent, spec, policy, seconds: (seen.append(policy), (0.0, 1.0))[1]
    )
    assert speed.action_seconds(made, made.env.facts().spec, 1.0) == 1.0
    assert acts.items() <= values(seen[0].config).items()


def test_of_several_actions_at_a_time_each_takes_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, config = Spec.of_sizes(3, 1), put(agents.default("qc"), {"hidden_dims": (4,), "horizon.steps": 5})
    agent = agents.build("qc", config, spec)
    monkeypatch.setattr(speed, "rate", lambda advance, seconds: 2.0)
    policy = agent.policy(agent.init(jax.random.key(0), config))
    assert speed.acting_times(agent, spec, policy, 1.0)[1] == 1 / 2 / 5


def test_how_long_the_rest_takes(data: str, tmp_path: Path) -> None:
    given = {"agent": "bc", "env": "Pendulum-v1", "preset": "none", "steps": 1000, "num_seeds": 2, "eval.interval": 100}
    made = plan(given | {"eval.episodes": 5, "workers": 1, "run_dir": str(tmp_path)}, {})
    pace = speed.Pace(updates=10.0, action=0.002, step=0.001)
    assert speed.training_seconds(made, pace) == pytest.approx(100)
    assert speed.training_seconds(made, pace, done=600) == pytest.approx(40)
    episodes = 10 * 2 * 5 * 3
    one = 200 * (0.001 + 0.002 / 10)
    assert speed.evaluation_seconds(made, pace, limit=200, tasks=1, modes=3) == pytest.approx(episodes * one)
    assert speed.evaluation_seconds(made, pace, 200, 1, 3, done=600) == pytest.approx(episodes * one * 0.4)


# ------------------------------------------------------------------------------------------------------ refusals


def assert_error(message: str, *arguments: object) -> None:
    with pytest.raises(UserError, match=message) as caught:
        compare(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("--agents is missing", ["--envs=Pendulum-v1"]),
        ("--envs is missing", ["--agents=bc"]),
        ("--agents has bc twice", ["--agents=bc,fql,bc", "--envs=Pendulum-v1"]),
        ("unknown agent 'fqq'; did you mean fql", ["--agents=bc,fqq", "--envs=Pendulum-v1"]),
        ("--envs has cube-single-play-singletask-task2 twice", [
            "--agents=bc", "--envs=cube-single-play-singletask,cube-single-play-singletask-task2-v0",
        ]),
        ("has goals and cube-single-play-singletask a single task: no agent learns both", [
            "--agents=bc", "--envs=pointmaze-medium-navigate,cube-single-play-singletask",
        ]),
        ("gcbc is goal-conditioned, but cube-single-play-singletask has a single task", [
            "--agents=fql,gcbc", "--envs=cube-single-play-singletask",
        ]),
        ("--num_seeds=0 is too small", ["--agents=bc", "--envs=Pendulum-v1", "--num_seeds=0"]),
        ("ofql has no published settings for cube-single-play-singletask", [
            "--agents=fql,ofql", "--envs=cube-single-play-singletask",
        ]),
        ("sscp on .* would train with --steps=500000, fql with 1000000: .* does not mix sizes", []),
        ("--agent is set for each run by this program", ["--agents=bc", "--envs=Pendulum-v1", "--agent=bc"]),
        ("--agent.completion_alpha .a setting of sscp.; ", ["--agents=bc,sscp", "--agent.completion_alpha=1"]),
        ("--suite=nothing is unknown", ["--agents=bc", "--suite=nothing"]),
        ("takes a preset, quick or paper, as it stands; leave --steps out", [
            "--agents=bc", "--suite=ogbench-singletask", "--steps=20",
        ]),
        ("leave --fql.alpha out", ["--agents=fql", "--suite=ogbench-singletask", "--fql.alpha=3"]),
        ("leave --preset=none out", ["--agents=fql", "--suite=ogbench-singletask", "--preset=none"]),
        (
            "-singletask is no set of goals",
            ["--agents=gcbc", "--suite=ogbench-goals", "--envs=pointmaze-medium-navigate-singletask"],
        ),
        ("Pendulum-v1 is no single task of OGBench", [
            "--agents=fql", "--suite=ogbench-singletask", "--envs=Pendulum-v1", "--preset=quick",
        ]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(
    message: str, arguments: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(*_: Any) -> None:
        raise AssertionError("trained")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comparing, "_train_all", trained)
    if not arguments:  # two agents whose published settings differ
        usual = presets.table
        row = {"dataset": "", "setting": "offline", "source": "x", "steps": "500000"}
        monkeypatch.setattr(presets, "table", lambda name, agent: (row,) if agent == "sscp" else usual(name, agent))
        arguments = ["--agents=fql,sscp", "--envs=cube-single-play-singletask"]
    assert_error(message, *arguments)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_a_folder_with_runs_of_another_size_is_refused(undisturbed: Path, data: str) -> None:
    place = f"--run_dir={undisturbed}"
    given = ("--agents=bc,bfn", *PENDULUM, "--bfn.flow.steps=1", data, place)
    assert_error("bc-Pendulum-v1 was trained with --steps=20, not 30: .* does not mix sizes", *given, "--steps=30")
    assert_error("with --agent.hidden_dims=.4,., not .8,.", *given, "--agent.hidden_dims=8")
    assert_error("has the seeds .0, 1., not .0, 1, 2.", *given, "--num_seeds=3")
    assert_error("trained on data of origin file, not collected", *[*given[:-2], place, "--data=collected"])
    assert_error("with --preset=none, not quick", *given, "--preset=quick")


FAULTS = {
    "flowrl/experiment/cells.py": [
        ("if twice := [", "if False and (twice := 1) and [", "test_what_cannot_be_is_one_line and twice"),
        ("    if len(goals) > 1:", "    if len(goals) > 2:", "test_what_cannot_be_is_one_line and goals"),
        ("        if one != two:", "        if False:", "test_what_cannot_be_is_one_line and mix"),
        ("held[entry.name] != entry.value:", "False:", "test_a_folder_with_runs_of_another_size_is_refused"),
        ("comparison.of_agents.get(name, {})", "{}", "test_settings_of_all_agents_and_of_one"),
        ("if tasks_of and (", "if False and (", "test_what_cannot_be_is_one_line and goals"),
    ],
    "flowrl/experiment/comparing.py": [
        (
            "for cell in found if not cell.finished]",
            "for cell in found]",
            "test_what_is_finished_is_kept_and_what_is_missing_trained",
        ),
        (
            "except SharedError as error:",
            "except ZeroDivisionError as error:",
            "test_a_run_that_diverges_leaves_the_others_their_table",
        ),
        ("* len(cell.plan.runs))", ")", "test_tables_hold_what_agents_reach_as_they_are_configured_to_act"),
    ],
    "flowrl/experiment/speed.py": [
        ("found.seconds(min(done, settings.steps)", "found.seconds(0", "test_how_long_the_rest_takes"),
        ("if self.turn else", "if False else", "test_updates_of_a_later_stage_take_their_own_time"),
        ("min(last, self.turn) - first)", "self.turn)", "test_updates_of_a_later_stage_take_their_own_time"),
        ("(agent.batch(policy.config).chunk or 1)", "1", "test_of_several_actions_at_a_time_each_takes_its_share"),
        (
            "evaluated[configured_among(evaluated)]",
            "[*evaluated.values()][-1]",
            "test_the_action_that_is_timed_is_the_one_that_is_judged",
        ),
        ("return count * modes *", "return count *", "test_how_long_the_rest_takes"),
    ],
    "flowrl/run_folder/evaluations.py": [
        (
            "return BEST if BEST in modes else SINGLE",
            "return SINGLE",
            "test_tables_hold_what_agents_reach_as_they_are_configured_to_act",
        ),
    ],
    "flowrl/reports/score_tables.py": [
        (
            'last = {line["seed"]: line',
            'last = {line["step"]: line',
            "test_tables_hold_what_agents_reach_as_they_are_configured_to_act",
        ),
        (
            "probability_of_improvement(scores, np.array(",
            "mean(scores - np.array(",
            "test_a_success_that_no_run_of_an_agent_reaches_is_one_of_zero",
        ),
        (
            "unsuccessful(run) if run.metric",
            "run if run.metric",
            "test_a_success_that_no_run_of_an_agent_reaches_is_one_of_zero",
        ),
    ],
}
