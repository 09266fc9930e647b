"""The examples of docs/examples run as a reader would run them."""

import shutil
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from programs import ROOT, load, main, save_walks

import flowrl.agents
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


def test_a_new_agent_runs_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "docs" / "examples" / "max_q.py", tmp_path)
    monkeypatch.setattr(flowrl.agents, "__path__", [*flowrl.agents.__path__, str(tmp_path)])
    data, folder = save_walks(tmp_path / "tiny.npz"), tmp_path / "run"
    names = ("--agent=max_q", "--env=pointmaze-medium-navigate-singletask", "--preset=quick", f"--data={data}")
    sizes = ("--agent.hidden_dims=8", "--agent.batch_size=8", "--agent.alpha=1", "--steps=2", "--log.interval=1")
    assert main(*names, *sizes, f"--run_dir={folder}", "--eval.episodes=0") == 0
    assert [line["step"] for line in logs.read_lines(folder / "metrics.jsonl")] == [1, 2]
