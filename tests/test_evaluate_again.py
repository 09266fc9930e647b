"""experiments/evaluate.py: the same settings give the run's own numbers, others are what was asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
from programs import load, main

from flowrl import loggers
from flowrl.errors import UserError

again = load("experiments/evaluate.py")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("again") / "run"
    tiny = ("--agent.hidden_dims=8", "--agent.batch_size=8", "--agent.candidates=3", "--num_seeds=2", "--workers=1")
    schedule = ("--online_steps=20", "--warmup_steps=10", "--num_envs=1", "--eval_episodes=2", "--eval_interval=20")
    scale = ("--reward_scale=0.1", "--log_interval=10", "--checkpoint_interval=20")
    assert main("--agent=fpmd_m", "--env=Pendulum-v1", *tiny, *schedule, *scale, f"--run_dir={folder}") == 0
    return folder


def test_the_runs_own_settings_give_its_own_numbers(run_dir: Path) -> None:
    arguments = [f"--run_dir={run_dir}", "--vary=eval_steps", "--values=1,3", "--workers=1"]
    assert again.main(["evaluate.py", *arguments]) == 0
    report = json.loads((run_dir / "evaluate_eval_steps.json").read_text())
    rows = {(row["eval_steps"], row["mode"]): row for row in report["results"]}
    assert set(rows) == {(steps, mode) for steps in (1, 3) for mode in ("eval", "best_of_n")}
    lines = loggers.read_lines(run_dir / "eval.jsonl")
    for mode in ("eval", "best_of_n"):
        own = {str(line["seed"]): line["return"] for line in lines if line["mode"] == mode}
        assert rows[1, mode]["per_seed"] == own
        assert rows[3, mode]["per_seed"] != own
        assert rows[1, mode]["milliseconds_per_action"] > 0
    np.testing.assert_allclose(rows[1, "eval"]["return"], np.mean([*rows[1, "eval"]["per_seed"].values()]))
    assert str(run_dir) not in json.dumps(report)
    table = (run_dir / "evaluate_eval_steps.md").read_text().splitlines()
    assert len(table) == 2 + len(rows)
    assert table[2].startswith(f"| 1 | eval | {rows[1, 'eval']['return']:.1f} | ")


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("which run", []),
        ("choose eval_steps or candidates", ["--vary=learning_rate"]),
        ("not a list of positive numbers", ["--vary=eval_steps", "--values=0,2"]),
    ],
)
def test_bad_input_names_the_remedy(run_dir: Path, message: str, arguments: list[str]) -> None:
    given = [f"--run_dir={run_dir}", *arguments] if arguments else []
    with pytest.raises(UserError, match=message):
        again.main(["evaluate.py", *given])
