"""The examples of docs/examples run as a reader would run them."""

import shutil
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import ROOT, load, main, save_walks

import flowrl.agents
from flowrl.networks import Spec
from flowrl.run_folder import logs


@pytest.mark.slow
def test_an_agent_in_somebody_elses_loop_finds_the_rewarded_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("docs/examples/own_loop.py")
    for name, fewer in {"ROWS": 512, "BATCH": 64, "UPDATES": 500}.items():
        monkeypatch.setattr(module, name, fewer)
    assert module.main() > 0.95


@pytest.mark.slow
def test_an_agent_learns_from_somebody_elses_sampler(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).uniform(-1, 1, (400, 2)).astype(np.float32)
    terminals = np.zeros(400, bool)
    terminals[19::20] = True
    np.savez(tmp_path / "file.npz", observations=rows, actions=-rows, terminals=terminals)
    first, last = load("docs/examples/other_sampler.py").main(str(tmp_path / "file.npz"), 300)
    assert last < 0.1 * first


@pytest.mark.slow
def test_a_file_of_ones_own_trains_an_agent(tmp_path: Path) -> None:
    arrays = load("docs/examples/own_data.py").collect(3)
    assert {name: array.shape for name, array in arrays.items()} == {
        "observations": (600, 3), "actions": (600, 1), "rewards": (600,), "next_observations": (600, 3),
        "terminals": (600,), "timeouts": (600,),
    }  # fmt: skip
    assert np.flatnonzero(arrays["timeouts"]).tolist() == [199, 399, 599]
    np.savez(tmp_path / "pendulum.npz", **arrays)
    folder = tmp_path / "run"
    names = ("--agent=sscp", "--env=Pendulum-v1", "--preset=quick", f"--data={tmp_path / 'pendulum.npz'}")
    sizes = ("--agent.hidden_dims=4", "--agent.batch_size=8", "--steps=2", "--eval.episodes=1", "--eval.interval=2")
    assert main(*names, *sizes, "--workers=1", f"--run_dir={folder}") == 0
    assert -2000 < logs.read_json(folder / "summary.json")["return"] < 0


def test_hand_written_control_swings_the_pendulum_up() -> None:
    control, env = load("docs/examples/own_data.py").control, gymnasium.make("Pendulum-v1")
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        for _ in range(200):
            observation, *_ = env.step(np.array([control(observation)], np.float32))
        assert observation[0] > 0.95


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("lagrange", ("--agent.distance=0.1", "--agent.critic.hidden_dims=4", "--agent.critic.heads=3")),
    ],
)
def test_a_new_agent_runs_from_the_command_line(
    name: str, flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It learns, is evaluated, and is found by its name."""
    shutil.copy(ROOT / "docs" / "examples" / f"{name}.py", tmp_path)
    monkeypatch.setattr(flowrl.agents, "__path__", [*flowrl.agents.__path__, str(tmp_path)])
    data, folder = save_walks(tmp_path / "tiny.npz"), tmp_path / "run"
    names = (f"--agent={name}", "--env=pointmaze-medium-navigate-singletask", "--preset=quick", f"--data={data}")
    sizes = ("--agent.hidden_dims=4", "--agent.batch_size=8", "--steps=2", "--log.interval=1", "--workers=1")
    schedule = ("--eval.episodes=1", "--eval.interval=2", "--max_episode_steps=5")
    assert main(*names, *sizes, *flags, *schedule, f"--run_dir={folder}") == 0
    assert [line["step"] for line in logs.read_lines(folder / "metrics.jsonl")] == [1, 2]
    assert [line["length"] for line in logs.read_lines(folder / "eval.jsonl")] == [5]


@pytest.mark.slow
def test_a_learnt_weight_holds_the_distance_from_the_data() -> None:
    """Rewards are 2 + a, so that Q pulls the policy away from the data's actions, as far as it is allowed.

    These lie about 0 with variance v, an action is at the distance a² + v of them, and of those that are allowed
    a = √(ε − v) has the largest Q. There λ · 2a = 1 / Q.
    """
    module = load("docs/examples/lagrange.py")
    config = module.Config(hidden_dims=(16,), learning_rate=1e-2, distance=0.25)
    agent = module.make(config, Spec.of_sizes(1, 1))
    zeros, actions = jnp.zeros((64, 1)), jnp.linspace(-0.5, 0.5, 64)[:, None]
    rows = {"observations": zeros, "actions": actions, "rewards": 2 + actions[:, 0], "masks": zeros[:, 0]}
    batch = agent.batch(config).complete({**rows, "next_observations": zeros})

    @jax.jit
    def train(keys: jax.Array) -> Any:
        state, metrics = jax.lax.scan(lambda s, key: agent.update(s, batch, key), agent.init(keys[0], config), keys)
        return agent.act(agent.policy(state), {"observations": zeros}, keys[0])[0, 0], metrics

    action, metrics = train(jax.random.split(jax.random.key(0), 2000))
    best = np.sqrt(0.25 - np.var(actions))
    assert action == pytest.approx(best, abs=0.05)
    assert metrics["actor/distance"][-100:].mean() == pytest.approx(0.25, abs=0.02)
    assert metrics["actor/weight"][-100:].mean() == pytest.approx(1 / (2 * best * (2 + best)), abs=0.1)
