"""Single tasks through the real command line: data to evaluation, for OGBench, D4RL and the user's own environment."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import main, save_walks

from flowrl.errors import UserError
from flowrl.run_folder import logs

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
SINGLE = "pointmaze-medium-navigate-singletask"
SMALL = (
    "--agent.hidden_dims=4", "--agent.batch_size=8", "--steps=2", "--log.interval=1", "--workers=1",
    "--max_episode_steps=60",
)  # fmt: skip
SSCP = ("--agent=sscp", f"--env={SINGLE}", "--agent.choice.num_samples=3")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_walks(tmp_path_factory.mktemp("data") / "tiny.npz")


def train(folder: Path, *arguments: object) -> dict[str, Any]:
    """Runs two updates and returns the summary."""
    assert main(*SMALL, "--preset=quick", f"--run_dir={folder}", *arguments) == 0
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "env"),
    [
        ("bc", "cube-single-play-singletask"),
        ("fql", "antmaze-large-navigate-singletask"),
        ("ofql", "walker2d-medium-v2"),
    ],
)
def test_a_published_preset_trains(tmp_path: Path, agent: str, env: str) -> None:
    """Two updates of the published networks on a made-up file of the right sizes, without evaluation."""
    if env.endswith("-v2"):
        data = save_hdf5(tmp_path / f"{env}.hdf5", 17, 6)
    else:
        dims, qdims, actions = {"antmaze": (29, 15, 8), "cube": (28, 21, 5)}[env.split("-")[0]]
        rng = np.random.default_rng(0)
        data = save_walks(
            tmp_path / "tiny.npz",
            observations=rng.normal(size=(120, dims)).astype(np.float32),
            actions=rng.uniform(-1, 1, (120, actions)).astype(np.float32),
            qpos=rng.normal(size=(120, qdims)).astype(np.float32),
        )
    folder = tmp_path / "run"
    assert main(
        f"--agent={agent}", f"--env={env}", f"--data={data}", f"--run_dir={folder}", "--steps=2", "--eval.episodes=0"
    ) == 0  # fmt: skip
    config = logs.read_json(folder / "config.json")
    assert config["preset"]["name"] == "paper"
    width = 256 if agent == "ofql" else 512
    assert set(config["agent_config"]["hidden_dims"]) == {width}


def save_hdf5(path: Path, observation_dim: int, action_dim: int, rows: int = 60) -> Path:
    """Writes a file in D4RL's format: episodes of 20 rows, of which the second one terminates."""
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    timeouts, terminals = np.zeros(rows, bool), np.zeros(rows, bool)
    timeouts[19::40], terminals[39] = True, True
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(rows, observation_dim)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (rows, action_dim)).astype(np.float32)
        file["rewards"] = rng.normal(size=rows).astype(np.float32)
        file["terminals"], file["timeouts"] = terminals, timeouts
    return path


@pytest.mark.slow
def test_success_and_return_are_reported(tmp_path: Path, data: Path) -> None:
    summary = train(tmp_path / "run", "--agent=bc", f"--env={SINGLE}", f"--data={data}", "--eval.episodes=2")
    (line,) = logs.read_lines(tmp_path / "run" / "eval.jsonl")
    assert (line["task"], line["mode"], line["episodes"]) == (1, "eval", 2)
    assert 0 <= line["success"] <= 1
    assert line["return"] == pytest.approx(-line["length"] + line["success"])  # −1 per step until the goal is reached
    assert summary["metric"] == "success"
    assert "best_of_n" not in summary


@pytest.mark.slow
def test_choices_by_q_are_reported_apart(tmp_path: Path, data: Path) -> None:
    summary = train(tmp_path / "run", *SSCP, f"--data={data}", "--eval.episodes=1")
    lines = logs.read_lines(tmp_path / "run" / "eval.jsonl")
    assert [line["mode"] for line in lines] == ["eval", "best_of_n"]
    assert summary["best_of_n"]["choice.num_samples"] == 3
    assert summary["best_of_n"]["metric"] == summary["metric"] == "success"


@pytest.mark.slow
def test_d4rl_scores_are_normalised_and_name_their_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = save_hdf5(tmp_path / "hopper-medium-v2.hdf5", 11, 3)
    summary = train(tmp_path / "run", "--agent=bc", "--env=hopper-medium-v2", f"--data={data}", "--eval.episodes=2")
    (line,) = logs.read_lines(tmp_path / "run" / "eval.jsonl")
    assert line["normalized_score"] == pytest.approx(
        100 * (line["return"] + 20.272305) / (3234.3 + 20.272305), abs=1e-3
    )
    assert summary["metric"] == "normalized_score"
    assert summary["environment"] == "Hopper-v4"
    assert "Hopper-v4" in capsys.readouterr().out


def test_own_files_train_for_any_gymnasium_environment(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    timeouts = np.zeros(100, bool)
    timeouts[19::20] = True
    np.savez(
        tmp_path / "pendulum.npz",
        observations=rng.normal(size=(100, 3)).astype(np.float32),
        actions=rng.uniform(-2, 2, (100, 1)).astype(np.float32),  # in the environment's own units
        rewards=rng.normal(size=100).astype(np.float32),
        terminals=np.zeros(100, bool),
        timeouts=timeouts,
    )
    flags = ("--agent=bc", "--env=Pendulum-v1", f"--data={tmp_path / 'pendulum.npz'}", "--eval.episodes=1")
    summary = train(tmp_path / "run", *flags)
    assert summary["metric"] == "return"
    assert summary["return"] < 0


@pytest.mark.slow
def test_normalisation_is_recorded_and_resumed(tmp_path: Path, data: Path) -> None:
    options = ("--normalize.observations", "--normalize.reward_scale=2", "--normalize.reward_shift=-0.5")
    flags = (*SSCP, f"--data={data}", "--eval.episodes=0")
    train(tmp_path / "whole", *flags, *options, "--steps=4")
    train(tmp_path / "halves", *flags, *options)
    assert main("--resume", f"--run_dir={tmp_path / 'halves'}", "--steps=4") == 0
    whole, halves = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "halves"))
    assert whole == halves
    train(tmp_path / "plain", *flags, "--steps=4")
    assert (tmp_path / "plain" / "metrics.jsonl").read_text() != whole
    settings = logs.read_json(tmp_path / "whole" / "config.json")["settings"]
    told = {"normalize.observations": True, "normalize.reward_scale": 2.0, "normalize.reward_shift": -0.5}
    assert told.items() <= settings.items()


@pytest.mark.slow
def test_compact_goals_are_the_policys_goals(tmp_path: Path, data: Path) -> None:
    flags = ("--agent=gcivl", "--env=pointmaze-medium-navigate-oraclerep", f"--data={data}", "--eval.episodes=1")
    summary = train(tmp_path / "run", *flags)
    assert len(summary["success_per_task"]) == 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--agent=gc_sscp", f"--env={SINGLE}"), "gc_sscp is goal-conditioned, but"),
        (("--agent=fql", "--env=pointmaze-medium-navigate"), "--env=pointmaze-medium-navigate-singletask"),
        (("--agent=hiql", "--env=pointmaze-medium-navigate-oraclerep"), "low_actor_goals"),
        (("--agent=fql", "--env=Pendulum-v1", "--data=auto"), "--data"),
        (("--agent=fql", "--env=CartPole-v1"), "continuous"),
        (("--agent=fql", "--env=Hopper-v2"), "Hopper-v2 cannot be made here"),
        (("--agent=fql", "--env=antmaze-umaze-v2", "--eval.episodes=1"), "--eval.episodes=0"),
        (("--agent=fql", "--env=cube-single-play-singletusk"), "did you mean"),
        (("--agent=fql", "--env=cube-single-play-singletask-task6"), "-singletask-task1 to -task5"),
        (("--agent=hiql", f"--env={SINGLE}", "--preset=paper"), "hiql is goal-conditioned, but"),
    ],
)
def test_what_does_not_fit_says_what_does(tmp_path: Path, data: Path, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", f"--data={data}", "--eval.episodes=0", *flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
