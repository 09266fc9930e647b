"""Online runs by the command line, and environments that fail amid them."""

import functools
import json
from pathlib import Path
from typing import Any

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from commands import main
from test_online import Session, environments, keys_of

from flowrl.envs import making
from flowrl.envs.episodes import NotFinite
from flowrl.envs.side_by_side import Apart
from flowrl.errors import UserError
from flowrl.run_folder import logs
from flowrl.training import online
from flowrl.training.online import Environments, Online

# ------------------------------------------------------------------------------------------------- command line

PENDULUM = ("--env=Pendulum-v1", "--agent.hidden_dims=4", "--agent.batch_size=4", "--eval.episodes=1", "--workers=1")
SAC = ("--agent=sac", "--env=Pendulum-v1")
SHORT = (
    "--online.steps=40",
    "--online.warmup_steps=10",
    "--eval.interval=20",
    "--log.interval=10",
    "--checkpoint.interval=20",
)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return logs.read_lines(folder / f"{name}.jsonl")


@pytest.mark.slow
def test_a_run_without_data_learns_from_its_steps(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main("--agent=td3", "--preset=none", *PENDULUM, *SHORT, "--num_seeds=2", f"--run_dir={folder}") == 0
    config = json.loads((folder / "config.json").read_text())
    assert config["data"]["origin"] == "none"
    assert config["settings"]["steps"] == 0
    assert [line["step"] for line in lines(folder, "metrics") if line["seed"] == 1] == [10, 20, 30, 40]
    assert "train/actor/loss" not in lines(folder, "metrics")[0]  # still warming up
    assert "train/actor/loss" in lines(folder, "metrics")[2]
    assert {line["step"] for line in lines(folder, "eval")} == {20, 40}


@pytest.mark.slow
@pytest.mark.parametrize(
    "agent",
    [("--agent=td3",), ("--agent=cal_ql", "--agent.critic.hidden_dims=4", "--agent.proposals=2")],
    ids=["td3", "cal_ql"],
)
def test_a_stopped_run_goes_on_with_its_buffer_and_counters(
    agent: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    command = (*agent, "--preset=none", *PENDULUM, *SHORT, "--num_seeds=2")
    assert main(*command, f"--run_dir={whole}") == 0
    advance, broken = online.Collector.advance, []

    def killed(self: online.Collector, *arguments: Any) -> Any:
        if self.step >= 30 and not broken:
            broken.append(self.step)
            raise RuntimeError("killed")
        return advance(self, *arguments)

    monkeypatch.setattr(online.Collector, "advance", killed)
    with pytest.raises(RuntimeError, match="killed"):
        main(*command, f"--run_dir={parted}")
    seen: list[Any] = []

    def watched(self: online.Collector, *arguments: Any) -> Any:
        if not seen:
            seen.append((self.step, int(self.replays.size[0]), self.environments.episodes.tolist()))
        return advance(self, *arguments)

    monkeypatch.setattr(online.Collector, "advance", watched)
    assert main("--resume", f"--run_dir={parted}") == 0
    assert seen == [(20, 20, [[1], [1]])]  # the episode under way at the checkpoint is lost, nothing else
    for name in ("metrics", "eval"):
        assert [line["step"] for line in lines(parted, name)] == [line["step"] for line in lines(whole, name)]
    assert lines(parted, "metrics")[:4] == lines(whole, "metrics")[:4]


@pytest.mark.slow
def test_offline_training_goes_on_online(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fields = {"observations": rng.normal(size=(60, 3)), "actions": rng.uniform(-2, 2, (60, 1)), "rewards": np.ones(60)}
    np.savez(tmp_path / "own.npz", **fields, terminals=np.zeros(60, bool), timeouts=np.arange(60) % 20 == 19)
    folder, given = tmp_path / "run", ("--preset=none", "--steps=30", f"--data={tmp_path / 'own.npz'}")
    schedule = ("--online.steps=20", "--eval.interval=10", "--log.interval=10", "--checkpoint.interval=10")
    command = ("--agent=fql", "--agent.behaviour.steps=2", *PENDULUM, *given, *schedule, "--online.offline_share=0.5")
    assert main(*command, f"--run_dir={folder}") == 0
    assert [line["step"] for line in lines(folder, "eval")] == [10, 20, 30, 40, 50]
    records = lines(folder, "metrics")
    assert [record["step"] for record in records] == [10, 20, 30, 40, 50]
    assert all("train/critic/loss" in record for record in records)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("add --online.steps=N", (*SAC, "--preset=none", "--data=none")),
        ("--steps=5 are updates on offline data", (*SAC, "--steps=5")),
        ("learn offline only", ("--agent=gc_sscp", "--env=pointmaze-medium-navigate", "--online.steps=5")),
        (
            "--agent.critic.rho=0.5 lowers the mean of several critics; add --agent.critic.aggregate",
            ("--agent=fmq", "--preset=none", *PENDULUM, *SHORT, "--agent.critic.rho=0.5", "--agent.hidden_dims=8"),
        ),
        ("no multiple of --online.num_envs=3", (*SAC, "--online.num_envs=3")),
        ("--online.offline_share=1.5 is out of range", (*SAC, "--online.offline_share=1.5")),
        ("choose sync or async", (*SAC, "--online.vectorization=fork")),
        ("take their numbers from offline data", ("--agent=sac", *PENDULUM, *SHORT, "--normalize.observations")),
        ("--online.updates_per_step=-1.0 is out of range", (*SAC, "--online.updates_per_step=-1")),
        ("leaves nothing of --online.steps=40", ("--agent=sac", *PENDULUM, *SHORT, "--online.warmup_steps=40")),
        ("--online.offline_share needs offline data", (*SAC, *SHORT, "--online.offline_share=0.5")),
        ("is not a finite number", ("--agent=sac", *PENDULUM, *SHORT, "--online.updates_per_step=nan")),
        ("flowrl needs continuous, bounded ones", ("--agent=sac", "--env=CartPole-v1")),
    ],
)  # fmt: skip
def test_wrong_settings_name_the_remedy(message: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        main(*arguments, f"--run_dir={tmp_path / 'run'}")


def test_a_dead_environment_is_named_and_closed() -> None:
    acted = environments(0, num_envs=2, vectorization="async")
    process, _ = acted._envs._started[0]
    process.kill()
    process.join()
    with pytest.raises(UserError, match="process of a training environment died"):
        acted.step(np.zeros((2, 1), np.float32))
    acted.close()
    assert not any(process.is_alive() for process, _ in acted._envs._started)


def acting(env: str, vectorization: Any, steps: int, **kwargs: Any) -> list[online.Moves]:
    """Acts in two environments of each of two runs, which are ended whatever they do."""
    make = functools.partial(making.make, f"own/{env}-v0", spec=gymnasium.spec(f"own/{env}-v0"), **kwargs)
    acted = Environments(make, keys_of(4, 5), 2, vectorization=vectorization)
    moves = []
    try:
        for _ in range(steps):
            moves.append(acted.step(np.zeros((4, 1), np.float32)))
            assert np.isfinite(moves[-1].next_observations).all()
    finally:
        acted.close()
    return moves


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_what_is_not_finite_is_named_and_not_stored(vectorization: Any) -> None:
    named = r"v0: number 1 of the observation is nan.*in step 3 of training episode 0 \(run 0, environment 1\)"
    with pytest.raises(NotFinite, match=named):
        acting("Broken", vectorization, 60, where="observation")


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(("env", "message"), [("Raising", "failed in step 3: KeyError"), ("Unmade", "no such map")])
def test_mistakes_of_an_environment_are_one_line(vectorization: Any, env: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"own/{env}-v0 .*{message}.*own_envs\.py:\d+"):
        acting(env, vectorization, 3)


def test_a_process_that_has_ended_by_a_mistake_still_says_which() -> None:
    apart = Apart(functools.partial(making.make, "own/Unmade-v0", spec=gymnasium.spec("own/Unmade-v0")), 1)
    try:
        apart._started[0][0].join()
        with pytest.raises(UserError, match="no such map"):
            apart.reset([1])
    finally:
        apart.close()


def test_infos_that_are_not_read_break_nothing() -> None:
    acted = Environments(functools.partial(making.make, "own/Passing-v0", share=0.5), keys_of(0, 1), 2)
    for _ in range(8):
        acted.step(np.zeros((4, 1), np.float32))
    assert [found["length"] for found in acted.drain()] == [4, 4]


@pytest.mark.slow
def test_actions_of_a_diverging_policy_are_no_fault_of_the_simulator() -> None:
    """They are played, and stored, as 0."""
    session = Session(0, options=Online(num_envs=2, updates_per_step=0, buffer_size=40, steps=1000))
    session.collector._act = lambda *_: jnp.array([[[[jnp.nan]], [[0.5]]]])
    session.advance(2)
    np.testing.assert_array_equal(session.collector.replays.fields["actions"][0, :2], [[0], [0.5]])


FAULTS = {
    "flowrl/experiment/build.py": [
        ("    configs.check(parts", "    print(parts", "test_wrong_settings_name_the_remedy and rho"),
    ],
    "flowrl/training/online.py": [
        (
            "actions = np.where(np.isfinite",
            "np.where(np.isfinite",
            "test_actions_of_a_diverging_policy_are_no_fault_of_the_simulator",
        ),
    ],
    "flowrl/envs/side_by_side.py": [
        ("reply.slot = i", "pass", "test_what_is_not_finite_is_named_and_not_stored and async"),
        (
            "error.slot = i\n                raise\n            self._rows",
            "raise\n            self._rows",
            "test_what_is_not_finite_is_named_and_not_stored",
        ),
        (
            "with contextlib.suppress(OSError):  # one",
            "if True:  # one",
            "test_a_process_that_has_ended_by_a_mistake_still_says_which",
        ),
    ],
}
