"""Offline sets of MuJoCo tasks: who acts in which set, what a stretch holds, the program that trains the policies."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import load, main

from flowrl import policies, tasks
from flowrl.agents import sac
from flowrl.collection import collect, experts, mujoco_sets
from flowrl.config import put, stacked
from flowrl.envs import making
from flowrl.envs.episodes import SeededEpisodes
from flowrl.errors import UserError
from flowrl.experiment.settings import Settings
from flowrl.machine import files
from flowrl.networks import Spec
from flowrl.tasks.fields import Expected
from flowrl.training.checkpoint import Checkpoints

snapshots = load("experiments/snapshots.py")
RETURNS = np.array([50.0, 400.0, 350.0, 900.0, 600.0])


def test_who_acts() -> None:
    """The expert has 900; 400 is the first return of at least 300."""
    assert mujoco_sets.policies("random", RETURNS) == (None,)
    assert mujoco_sets.policies("medium", RETURNS) == (1,)
    assert mujoco_sets.policies("medium-replay", RETURNS) == (None, 0, 1)
    assert mujoco_sets.policies("medium-expert", RETURNS) == (1, 3)
    assert mujoco_sets.policies("expert", RETURNS) == (3,)
    assert snapshots.choose(RETURNS) == [0, 1, 3]


def layers_of(means: list[float], log_stds: list[float], observation_dim: int = 11) -> experts.Layers:
    """A policy that does not look."""
    biases = np.array([*means, *log_stds], np.float32)
    return ((np.zeros((observation_dim, len(biases)), np.float32), biases),)


def test_samples_are_those_of_the_squashed_gaussian() -> None:
    assert experts.LOG_STD_RANGE == policies.LOG_STD_RANGE
    layers, generator = layers_of([0.3, -0.5], [-1.0, -9.0], 3), np.random.default_rng(0)
    found = np.array([experts.sample(layers, np.zeros(3), generator) for _ in range(4000)])
    noise = jax.random.normal(jax.random.key(0), (4000, 2))
    log_stds = jnp.clip(jnp.array([-1.0, -9.0]), *policies.LOG_STD_RANGE)
    expected, _ = policies.squash(jnp.array([0.3, -0.5]), log_stds, noise)
    np.testing.assert_allclose(found.mean(axis=0), expected.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(found.std(axis=0), expected.std(axis=0), atol=0.01)


@pytest.fixture(scope="module")
def hopper() -> SeededEpisodes:
    return making.make("Hopper-v5", max_episode_steps=1000)


@pytest.mark.parametrize("policy", [None, layers_of([0.1, 0.0, -0.2], [-2.0] * 3)], ids=["uniform", "sampled"])
def test_a_stretch_is_episodes_end_to_end(hopper: SeededEpisodes, policy: Any) -> None:
    rows = mujoco_sets.rollout(hopper, policy, 120, np.random.SeedSequence([0, 5]))
    assert {field: array.dtype for field, array in rows.items()} == mujoco_sets.FIELDS
    ends = rows["terminals"] | rows["timeouts"]
    assert rows["terminals"].sum() >= 1  # it falls
    assert not (rows["terminals"] & rows["timeouts"]).any()
    assert ends[-1]
    np.testing.assert_array_equal(rows["next_observations"][:-1][~ends[:-1]], rows["observations"][1:][~ends[:-1]])
    starts = rows["observations"][1:][ends[:-1]]
    assert (np.abs(starts - rows["next_observations"][:-1][ends[:-1]]).max(axis=1) > 1e-3).all()
    assert len(np.unique(starts, axis=0)) == len(starts)  # every episode has a start of its own
    first = int(np.argmax(rows["terminals"])) + 1
    fallen = mujoco_sets.rollout(hopper, policy, first, np.random.SeedSequence([0, 5]))  # ends with the fall
    assert fallen["terminals"][-1]
    assert not fallen["timeouts"].any()
    again = mujoco_sets.rollout(hopper, policy, 120, np.random.SeedSequence([0, 5]))
    other = mujoco_sets.rollout(hopper, policy, 120, np.random.SeedSequence([0, 6]))
    for field in mujoco_sets.FIELDS:
        np.testing.assert_array_equal(rows[field], again[field])
    assert not np.array_equal(rows["observations"], other["observations"])


def test_names_have_environment_scores_and_settings() -> None:
    env = tasks.parse("collected:halfcheetah-medium")
    assert (env.env_id, env.published, env.goals) == ("HalfCheetah-v5", "halfcheetah-medium-v2", "none")
    assert env.score(np.array([12135.0])).tolist() == pytest.approx([100.0])
    with pytest.raises(UserError, match="did you mean collected:hopper-medium"):
        tasks.parse("collected:hoper-medium")
    with pytest.raises(UserError, match="no official file"):
        env.locate("official")


@pytest.mark.parametrize("body", ["walker2d"])
def test_a_body_without_policies_is_refused(body: str) -> None:
    with pytest.raises(UserError, match=f"snapshots.py --body={body}"):
        tasks.parse(f"collected:{body}-medium").recipe()


@pytest.mark.parametrize("body", ["halfcheetah", "hopper"])
def test_shipped_policies_have_their_record(body: str) -> None:
    path = experts.path(body)
    record, found = json.loads(path.with_suffix(".json").read_text()), experts.snapshots(body)
    assert record["sha256"] == files.sha256(path)
    assert not record["git_commit"].endswith("-dirty")
    kept = {policy["step"]: policy["return"] for policy in record["policies"] if policy["kept_as"]}
    assert kept == pytest.approx(dict(zip(found.steps.tolist(), found.returns.tolist(), strict=True)))
    # What is kept decides as all policies did.
    roles = {policy["kept_as"]: policy["step"] for policy in record["policies"]}
    assert found.steps[mujoco_sets.medium(found.returns)] == roles["medium"]
    assert found.steps[found.returns.argmax()] == roles["expert"]


def test_the_expert_earns_what_its_record_says() -> None:
    found = experts.snapshots("halfcheetah")
    env = making.make("HalfCheetah-v5", max_episode_steps=1000)
    rows = mujoco_sets.rollout(env, found.policies[int(found.returns.argmax())], 1000, np.random.SeedSequence(7))
    assert rows["rewards"].sum() > 0.7 * found.returns.max()


def test_a_set_is_collected_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWRL_DATA", str(tmp_path))
    env = tasks.parse("collected:hopper-medium-replay")
    short = env.recipe()._replace(length=60)
    path = collect.collect(short, tmp_path / "collected", episodes=8, workers=1)
    made = collect.provenance(path)
    assert made is not None
    assert made["expert"].startswith("flowrl's own hopper")
    assert "SAC" in made["made"]
    source = env.locate("auto")
    assert (source.origin, source.path) == ("collected", path)
    arrays = env.read(source, Expected(observation_dim=11, action_dim=3))
    with np.load(path) as stored:
        ends = stored["terminals"] | stored["timeouts"]
        assert len(stored["rewards"]) == 8 * 60
        np.testing.assert_allclose(arrays["rewards"][~arrays["terminals"]], stored["rewards"])
        np.testing.assert_allclose(arrays["masks"][~arrays["terminals"]], ~stored["terminals"])
        assert arrays["terminals"].sum() == ends.sum()


TINY = (
    "--online.steps=40",
    "--online.warmup_steps=20",
    "--agent.hidden_dims=8",
    "--agent.batch_size=8",
    "--eval.interval=40",
)


@pytest.mark.slow
def test_the_program_trains_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = (f"--run_dir={tmp_path / 'run'}", f"--out={tmp_path / 'made'}")
    schedule = ("--log.interval=20", "--checkpoint.interval=20", "--eval.episodes=0", "--online.buffer_size=40")
    command = ["snapshots.py", "--body=hopper", "--episodes=1", *folders, *TINY, *schedule]
    assert snapshots.main(command) == 0
    record = json.loads((tmp_path / "made" / "hopper.json").read_text())
    assert [policy["step"] for policy in record["policies"]] == [20, 40]
    returns = np.array([policy["return"] for policy in record["policies"]])
    assert record["policies"][int(returns.argmax())]["kept_as"] == "expert"
    with np.load(tmp_path / "made" / "hopper.npz") as file:
        assert file["kernel_0"].shape[1:] == (11, 8)
        assert len(file["steps"]) == len(file["returns"]) == len(file["kernel_0"])


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("choose halfcheetah, hopper, walker2d", ["--body=dog"]),
        ("cannot be passed on", ["--steps", "5"]),
        ("--agent is set by this program", ["--agent=td3"]),
        ("--episodes=0 is too small", ["--episodes=0"]),
    ],
)
def test_wrong_arguments_name_the_remedy(message: str, arguments: list[str]) -> None:
    with pytest.raises(UserError, match=message):
        snapshots.main(["snapshots.py", *arguments])


def test_returns_are_of_whole_first_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards 1, 1, 1 (terminated), 5, 5 (cut off): the first episode's 3 counts, and nothing of the second."""
    rows = {"rewards": np.array([1.0, 1, 1, 5, 5]), "terminals": np.arange(5) == 2, "timeouts": np.arange(5) == 4}
    monkeypatch.setattr(mujoco_sets, "rollout", lambda *_: rows)
    assert snapshots.episode_returns("hopper", layers_of([0.0] * 3, [0.0] * 3), 2) == [3.0, 3.0]


@pytest.mark.slow
def test_policies_of_interruptions_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = sac.Config(hidden_dims=(4,))
    agent = sac.make(config, Spec.of_sizes(11, 3))
    states = jax.vmap(agent.init)(jax.random.split(jax.random.key(0), 1), stacked(config, [{}]))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=0)
    for step in (0, 20, 33, 40, 50):
        checkpoints.save(step, {"states": states.replace(config=None)}, {})
    checkpoints.close()
    plan = SimpleNamespace(settings=put(Settings(), {"checkpoint.interval": 20}))
    monkeypatch.setattr(snapshots, "read_plan", lambda folder: (plan, {}))
    assert [*snapshots.load(tmp_path)] == [20, 40, 50]


def test_policies_take_turns(hopper: SeededEpisodes) -> None:
    recipe = tasks.parse("collected:hopper-medium-replay").recipe()._replace(length=40)
    policies = [None, *experts.snapshots("hopper").policies]
    assert len(recipe.policies) > 2
    for episode in (0, 1, 2, len(recipe.policies) + 1):
        policy = policies[episode % len(recipe.policies)]
        expected = mujoco_sets.rollout(hopper, policy, 40, np.random.SeedSequence([3, episode]))
        found = recipe.play(hopper, recipe, [3, episode])
        for field in mujoco_sets.FIELDS:
            np.testing.assert_array_equal(found[field], expected[field])


def test_keeping_one_checkpoint_is_refused() -> None:
    with pytest.raises(UserError, match=r"--checkpoint\.keep=1 could leave none"):
        main("--agent=sac", "--env=Pendulum-v1", "--online.steps=30", "--checkpoint.keep=1")


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "expected"), [(0, [0, 10, 20, 30]), (2, [20, 30]), (3, [10, 20, 30])])
def test_checkpoints_are_kept_as_asked(tmp_path: Path, keep: int, expected: list[int]) -> None:
    folder = tmp_path / "run"
    tiny = ("--agent=sac", "--env=Pendulum-v1", "--agent.hidden_dims=8", "--agent.batch_size=4", "--online.steps=30")
    schedule = ("--online.warmup_steps=5", "--checkpoint.interval=10", "--log.interval=10", "--eval.episodes=0")
    assert main(*tiny, *schedule, "--online.buffer_size=30", f"--checkpoint.keep={keep}", f"--run_dir={folder}") == 0
    assert sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()) == expected
    assert main("--resume", f"--run_dir={folder}", "--checkpoint.keep=5") == 0
    assert json.loads((folder / "config.json").read_text())["settings"]["checkpoint.keep"] == 5


FAULTS = {
    "flowrl/collection/mujoco_sets.py": [
        ("returns >= returns.max() / 3", "returns >= returns[0]", "test_who_acts"),
        ("not terminated and (", "(", "test_a_stretch_is_episodes_end_to_end and uniform"),
    ],
}
