"""experiments/evaluate.py: the same settings give the run's own numbers, others are what was asked for."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import load, main

from flowrl import loggers
from flowrl.agents import gc_sscp
from flowrl.errors import UserError

again, weights = load("experiments/evaluate.py"), load("experiments/mirror_weights.py")
noises = load("experiments/shared_noise.py")


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
        ("is no JSON file", ["--vary=eval_steps", "--out=table.md"]),
    ],
)
def test_bad_input_names_the_remedy(run_dir: Path, message: str, arguments: list[str]) -> None:
    given = [f"--run_dir={run_dir}", *arguments] if arguments else []
    with pytest.raises(UserError, match=message):
        again.main(["evaluate.py", *given])


def test_the_spread_of_weights_is_split_by_hand() -> None:
    """Two actions in two states, standardised Q 1 and 3 in one, 6 and 8 in the other, α = 2."""
    standard = jnp.array([[1.0, 6.0], [3.0, 8.0]])
    found = weights.spread(standard, jnp.float32(2.0), jnp.float32(9.0))
    np.testing.assert_allclose(found["deviation_between_states"], 2.5)
    np.testing.assert_allclose(found["deviation_between_actions"], 1.0)
    np.testing.assert_allclose(found["deviation_ratio"], 0.4)
    np.testing.assert_allclose(found["weight_ratio_of_actions"], np.exp(1.0), rtol=1e-6)
    np.testing.assert_allclose(found["weight_ratio_of_states"], np.exp(0.9 * 5 / 2), rtol=1e-5)
    assert found["clipped"] == 0
    # Cut at 4 the second state's are all alike, and 2 above the first's mean.
    found = weights.spread(standard, jnp.float32(2.0), jnp.float32(4.0))
    np.testing.assert_allclose(found["deviation_between_states"], 2.5)
    np.testing.assert_allclose(found["weight_ratio_of_actions"], (np.e + 1) / 2, rtol=1e-6)
    np.testing.assert_allclose(found["weight_ratio_of_states"], np.exp(0.9), rtol=1e-5)
    assert found["clipped"] == 0.5


def test_a_runs_weights_are_measured(run_dir: Path) -> None:
    assert weights.main(["mirror_weights.py", f"--run_dir={run_dir}", "--states=8", "--actions=4"]) == 0
    report = json.loads((run_dir / "mirror_weights.json").read_text())
    assert set(report["per_seed"]) == {"0", "1"}
    assert report["mean"]["deviation_between_actions"] > 0
    assert str(run_dir) not in json.dumps(report)


def test_shared_noise_begins_alike_and_is_normal() -> None:
    like = gc_sscp.Pair(jnp.zeros((2000, 2)), jnp.zeros((2000, 5)))
    actions, reps = noises.shared(jax.random.key(0), like)
    np.testing.assert_array_equal(actions, reps[:, :2])
    assert reps.shape == (2000, 5)
    assert abs(float(reps.std()) - 1) < 0.03
