"""experiments/evaluate.py: the same settings give the run's own numbers, others are what was asked for."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import load, main, save_walks, sweep

from flowrl.errors import UserError
from flowrl.run_folder import logs

again = load("experiments/evaluate.py")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("again") / "run"
    tiny = (
        "--agent.hidden_dims=4", "--agent.batch_size=4", "--agent.choice.num_samples=3", "--agent.critic_steps=1",
        "--num_seeds=2", "--workers=1",
    )  # fmt: skip
    schedule = (
        "--online.steps=20", "--online.warmup_steps=10", "--online.num_envs=1", "--eval.episodes=2",
        "--eval.interval=20", "--max_episode_steps=50",
    )  # fmt: skip
    scale = ("--normalize.reward_scale=0.1", "--log.interval=10", "--checkpoint.interval=20")
    assert main("--agent=fpmd_m", "--env=Pendulum-v1", *tiny, *schedule, *scale, f"--run_dir={folder}") == 0
    return folder


def evaluated(folder: Path, out: Path, *arguments: str) -> list[dict[str, Any]]:
    """Evaluates a run, which must stay as it is, and returns the rows of its table."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert again.main(["evaluate.py", f"--run_dir={folder}", "--workers=1", f"--out={out}", *arguments]) == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    report = json.loads(out.read_text())
    assert str(folder) not in json.dumps(report)
    assert len(out.with_suffix(".md").read_text().splitlines()) == 2 + len(report["results"])
    return report["results"]


def own_scores(folder: Path, metric: str = "return", **where: Any) -> dict[str, float]:
    """Returns each seed's mean over tasks in the run's own evaluations of these lines."""
    lines = [line for line in logs.read_lines(folder / "eval.jsonl") if where.items() <= line.items()]
    seeds = dict.fromkeys(line["seed"] for line in lines)
    return {str(seed): float(np.mean([x[metric] for x in lines if x["seed"] == seed])) for seed in seeds}


@pytest.mark.slow
def test_the_runs_own_settings_give_its_own_numbers(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(run_dir, tmp_path / "out.json", "--vary=eval_steps", "--values=1,3")
    rows = {(row["eval_steps"], row["mode"]): row for row in found}
    assert set(rows) == {(steps, mode) for steps in (1, 3) for mode in ("eval", "best_of_n")}
    for mode in ("eval", "best_of_n"):
        own = own_scores(run_dir, mode=mode)
        assert rows[1, mode]["per_seed"] == own
        assert rows[3, mode]["per_seed"] != own
        assert rows[1, mode]["milliseconds_per_action"] > 0
    np.testing.assert_allclose(rows[1, "eval"]["return"], np.mean([*rows[1, "eval"]["per_seed"].values()]))
    assert f"| 1 | eval | 20 | {rows[1, 'eval']['return']:.1f} | " in capsys.readouterr().out
    for row, plain in zip(
        evaluated(run_dir, tmp_path / "plain.json"), (rows[1, "eval"], rows[1, "best_of_n"]), strict=True
    ):
        assert row["per_seed"] == plain["per_seed"]


@pytest.mark.slow
def test_another_checkpoint_and_more_episodes(data: str, tmp_path: Path) -> None:
    """Of a run with normalised observations, whose data are gone."""
    path = shutil.copy(data.removeprefix("--data="), tmp_path / "own.npz")
    tiny = ("--agent=bc", "--env=Pendulum-v1", "--preset=none", "--agent.hidden_dims=4", "--agent.batch_size=8")
    schedule = ("--steps=20", "--eval.interval=10", "--checkpoint.interval=10", "--eval.episodes=2", "--workers=1")
    folder = tmp_path / "run"
    arguments = (*tiny, *schedule, "--normalize.observations", "--num_seeds=2", f"--data={path}")
    assert main(*arguments, f"--run_dir={folder}") == 0
    Path(path).unlink()
    for step in (10, 20):
        (row,) = evaluated(folder, tmp_path / "out.json", f"--step={step}")
        assert (row["step"], row["per_seed"]) == (step, own_scores(folder, step=step))
    (row,) = evaluated(folder, tmp_path / "out.json", "--episodes=3")
    assert row["episodes_per_task"] == 3
    assert row["per_seed"] != own_scores(folder, step=20)


@pytest.mark.slow
def test_all_runs_of_a_sweep(data: str, tmp_path: Path) -> None:
    tiny = ("--agent=bc", "--env=Pendulum-v1", "--preset=none", "--agent.batch_size=8", "--eval.episodes=1")
    grid = ("--agent.learning_rate=0.01,1e20", "--agent.hidden_dims=4:8", "--num_seeds=2", "--workers=1")
    assert sweep(*tiny, "--steps=10", *grid, data, f"--run_dir={tmp_path / 'sweep'}") == 0
    rows = evaluated(tmp_path / "sweep", tmp_path / "out.json")
    assert [(row["part"], row["agent.learning_rate"]) for row in rows] == [
        (part, rate) for part in ("group1", "group2") for rate in (0.01, 1e20)
    ]
    for row in rows:
        rate = {"agent.learning_rate": row["agent.learning_rate"]}
        assert row["per_seed"] == own_scores(tmp_path / "sweep" / row["part"], **rate)
        assert row.get("diverged") == (None if rate["agent.learning_rate"] == 0.01 else [0, 1])
    assert "(diverged)" in (tmp_path / "out.md").read_text()
    assert len(evaluated(tmp_path / "sweep" / "group1", tmp_path / "out.json")) == 2


@pytest.mark.slow
def test_a_goal_conditioned_run_on_all_its_tasks(tmp_path: Path) -> None:
    path = save_walks(tmp_path / "walks.npz")
    tiny = ("--agent=gcbc", "--env=pointmaze-medium-navigate", "--agent.hidden_dims=4", "--agent.batch_size=8")
    schedule = (
        "--steps=10", "--eval.interval=10", "--eval.episodes=1", "--workers=1", "--max_episode_steps=60"
    )  # fmt: skip
    assert main(*tiny, *schedule, f"--data={path}", f"--run_dir={tmp_path / 'run'}") == 0
    (row,) = evaluated(tmp_path / "run", tmp_path / "out.json")
    assert row["per_seed"] == own_scores(tmp_path / "run", "success")
    assert set(row["per_task"]) == {f"task{task}" for task in range(1, 6)}


@pytest.mark.slow
def test_what_cannot_be_loaded_is_named(run_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_dir, tmp_path / "run")
    config = logs.read_json(folder / "config.json")

    def evaluate() -> None:
        again.main(["evaluate.py", f"--run_dir={folder}", "--workers=1"])

    logs.write_json(folder / "config.json", config | {"agent_config": config["agent_config"] | {"hidden_dims": [8]}})
    with pytest.raises(UserError, match="does not fit this agent and its settings"):
        evaluate()
    fewer = {"settings": config["settings"] | {"num_seeds": 3}, "seeds": [0, 1, 2]}
    logs.write_json(folder / "config.json", config | fewer)
    with pytest.raises(UserError, match="it has 2 runs, not 3"):
        evaluate()
    logs.write_json(folder / "config.json", config)
    for step in (folder / "checkpoints").iterdir():
        (step / "facts" / "metadata").write_text('{"agent": "fpmd_r", "evaluated": true}')
    with pytest.raises(UserError, match="is of agent fpmd_r, not fpmd_m"):
        evaluate()
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint"):
        evaluate()
    assert not (folder / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("which run", []),
        ("choose choice.num_samples or choice.temperature or eval_steps", ["--vary=learning_rate"]),
        ("has no checkpoint at step 7; give --step=0 or 20", ["--step=7"]),
        ("--episodes=0 is too small; the least is 1", ["--episodes=0"]),
        ("--episodes=-1 is too small", ["--episodes=-1"]),
        ("--workers=0 is too small", ["--workers=0"]),
        ("holds no run", ["--run_dir=."]),
        ("--values=1,x: x is not of type int", ["--vary=eval_steps", "--values=1,x"]),
        ("is no JSON file", ["--vary=eval_steps", "--out=table.md"]),
    ],
)
def test_bad_input_names_the_remedy(run_dir: Path, message: str, arguments: list[str]) -> None:
    given = [f"--run_dir={run_dir}", *arguments] if arguments else []
    with pytest.raises(UserError, match=message):
        again.main(["evaluate.py", *given])


FAULTS = {
    "flowrl/experiment/loading.py": [
        ("arrays = checkpoints.raw(step)", "arrays = checkpoints.raw()", "test_another_checkpoint_and_more_episodes"),
        ("    checkpoints.require_fit(like, states, step)\n", "", "test_what_cannot_be_loaded_is_named"),
    ],
    "experiments/evaluate.py": [
        (
            "facts.tasks, plan.runs)",
            "facts.tasks, plan.runs[::-1])",
            "test_another_checkpoint_and_more_episodes",
        ),
        ("given.episodes is None", "True", "test_another_checkpoint_and_more_episodes"),
    ],
}
