"""Cal-QL from the command line: offline, going on online, and online alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import main

from flowrl.run_folder import logs

TINY = ("--agent=cal_ql", "--env=Pendulum-v1", "--agent.hidden_dims=4", "--agent.critic.hidden_dims=4")
TINY = (*TINY, "--agent.batch_size=8", "--agent.proposals=2", "--preset=none", "--eval.episodes=1", "--workers=1")


def metrics_of(folder: Path, name: str) -> dict[int, float]:
    return {line["step"]: line[f"train/{name}"] for line in logs.read_lines(folder / "metrics.jsonl")}


@pytest.mark.slow
def test_it_learns_offline_and_goes_on_online(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fields = {"observations": rng.normal(size=(60, 3)), "actions": rng.uniform(-2, 2, (60, 1)), "rewards": -np.ones(60)}
    np.savez(tmp_path / "own.npz", **fields, terminals=np.zeros(60, bool), timeouts=np.arange(60) % 20 == 19)
    folder = tmp_path / "run"
    given = (f"--data={tmp_path / 'own.npz'}", "--steps=20", "--online.steps=20", "--online.offline_share=0.5")
    rewards = (
        "--normalize.reward_scale=10",
        "--normalize.reward_shift=20",
    )  # unsolved: 10 · (−1)/(1 − γ) + 20/(1 − γ) = 1000
    schedule = ("--eval.interval=20", "--log.interval=10", "--checkpoint.interval=20")
    assert main(*TINY, *given, *rewards, *schedule, f"--run_dir={folder}") == 0
    calibrated = metrics_of(folder, "critic/calibrated")
    assert [calibrated[step] for step in (10, 20)] == [1, 1]
    np.testing.assert_allclose([calibrated[step] for step in (30, 40)], 0.5)  # the episode online is under way
    assert json.loads((folder / "config.json").read_text())["agent_config"]["discount"] == 0.99
    assert {line["step"] for line in logs.read_lines(folder / "eval.jsonl")} == {20, 40}


@pytest.mark.slow
def test_online_returns_are_known_once_the_episode_is_over(tmp_path: Path) -> None:
    """Pendulum's episodes have 200 steps, and with 50 more each the returns are far above fresh critics."""
    folder, schedule = tmp_path / "run", ("--eval.interval=240", "--log.interval=20", "--checkpoint.interval=120")
    steps = (
        "--online.steps=240",
        "--online.warmup_steps=170",
        "--online.updates_per_step=0.5",
        "--normalize.reward_shift=50",
    )
    assert main(*TINY, *steps, *schedule, f"--run_dir={folder}") == 0
    calibrated = {
        line["step"]: line.get("train/critic/calibrated") for line in logs.read_lines(folder / "metrics.jsonl")
    }
    assert calibrated[200] == 0
    assert calibrated[240] > 0.5
