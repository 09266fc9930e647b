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
from flowrl.data.dataset import from_arrays
from flowrl.data.samplers import Segments, require
from flowrl.networks import Spec
from flowrl.run_folder import logs


def test_an_agent_in_somebody_elses_loop_finds_the_rewarded_mode() -> None:
    assert load("docs/examples/own_loop.py").main() > 0.95


def test_an_agent_learns_from_somebody_elses_sampler(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).uniform(-1, 1, (400, 2)).astype(np.float32)
    terminals = np.zeros(400, bool)
    terminals[19::20] = True
    np.savez(tmp_path / "file.npz", observations=rows, actions=-rows, terminals=terminals)
    first, last = load("docs/examples/other_sampler.py").main(str(tmp_path / "file.npz"), 300)
    assert last < 0.1 * first


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
    sizes = ("--agent.hidden_dims=8", "--agent.batch_size=8", "--steps=2", "--eval.episodes=1", "--eval.interval=2")
    assert main(*names, *sizes, f"--run_dir={folder}") == 0
    assert -2000 < logs.read_json(folder / "summary.json")["return"] < 0


def test_hand_written_control_swings_the_pendulum_up() -> None:
    control, env = load("docs/examples/own_data.py").control, gymnasium.make("Pendulum-v1")
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        for _ in range(200):
            observation, *_ = env.step(np.array([control(observation)], np.float32))
        assert observation[0] > 0.95


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("max_q", ("--agent.alpha=1", "--agent.critic.heads=3")),
        ("lagrange", ("--agent.distance=0.1", "--agent.critic.hidden_dims=8,8")),
        ("chunks", ("--agent.chunk=3", "--agent.flow.steps=2", "--agent.choice.num_samples=2")),
    ],
)
def test_a_new_agent_runs_from_the_command_line(
    name: str, flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It learns, is evaluated, and is found by its name; steps of a chunk go on from one action to the next."""
    shutil.copy(ROOT / "docs" / "examples" / f"{name}.py", tmp_path)
    monkeypatch.setattr(flowrl.agents, "__path__", [*flowrl.agents.__path__, str(tmp_path)])
    data, folder = save_walks(tmp_path / "tiny.npz"), tmp_path / "run"
    names = (f"--agent={name}", "--env=pointmaze-medium-navigate-singletask", "--preset=quick", f"--data={data}")
    sizes = ("--agent.hidden_dims=8", "--agent.batch_size=8", "--steps=2", "--log.interval=1", "--workers=1")
    schedule = ("--eval.episodes=1", "--eval.interval=2", "--max_episode_steps=5")
    assert main(*names, *sizes, *flags, *schedule, f"--run_dir={folder}") == 0
    assert [line["step"] for line in logs.read_lines(folder / "metrics.jsonl")] == [1, 2]
    assert [line["length"] for line in logs.read_lines(folder / "eval.jsonl")] == [5]


def test_a_learnt_weight_holds_the_distance_from_the_data() -> None:
    """Rewards are the actions, so that Q pulls the policy away from actions at 0, as far as it is allowed."""
    module = load("docs/examples/lagrange.py")
    config = module.Config(hidden_dims=(32,), learning_rate=3e-3, distance=0.25)
    agent = module.make(config, Spec.of_sizes(1, 1))
    zeros = jnp.zeros((64, 1))
    actions = jax.random.uniform(jax.random.key(0), (64, 1), minval=-0.5, maxval=0.5)
    rows = {"observations": zeros, "actions": actions, "rewards": actions[:, 0], "masks": zeros[:, 0]}
    batch = agent.batch(config).complete({**rows, "next_observations": zeros})

    def step(state: Any, key: jax.Array) -> Any:
        return agent.update(state, batch, key)

    keys = jax.random.split(jax.random.key(1), 3000)
    state, metrics = jax.jit(lambda state: jax.lax.scan(step, state, keys))(agent.init(jax.random.key(2), config))
    assert agent.act(agent.policy(state), {"observations": zeros}, keys[0])[0, 0] == pytest.approx(
        0.41, abs=0.08
    )  # √(0.25 − 1/12)
    assert metrics["actor/distance"][-500:].mean() == pytest.approx(0.25, abs=0.03)


def test_chunks_of_actions_are_those_of_the_data() -> None:
    """An episode's actions are all 0.5 or all −0.5, so that what begins one way goes on so; the first is rewarded."""
    module = load("docs/examples/chunks.py")
    signs = np.repeat(np.array([1, -1] * 20, np.float32), 6)[:, None]
    terminals = np.arange(240) % 6 == 5
    arrays = {"observations": 0 * signs, "actions": 0.5 * signs, "rewards": signs[:, 0], "terminals": terminals}
    dataset = from_arrays(arrays | {"masks": np.ones(240, np.float32)})
    config = module.Config(hidden_dims=(64, 64), learning_rate=3e-3, chunk=2, discount=0.5, batch_size=128)
    agent, kind = module.make(config, Spec.of_sizes(1, 1)), Segments(2, 0.5)
    require(kind, dataset.fields)

    def step(state: Any, key: jax.Array) -> Any:
        return agent.update(state, kind.sample(key, dataset, 128), key)

    keys = jax.random.split(jax.random.key(1), 500)
    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, keys))(agent.init(jax.random.key(2), config))
    inputs = {"observations": jnp.zeros((200, 1))}
    best = agent.act(agent.policy(state), inputs, keys[0])
    assert best.shape == (200, 2, 1)
    np.testing.assert_allclose(jnp.median(best, axis=0), 0.5, atol=0.1)
    assert (best > 0).mean() > 0.95
