"""The locomotion experts: exported as they were trained, shipped with a true record, and walking."""

import functools
import json
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import load

from flowrl import tasks
from flowrl.agents import sac
from flowrl.cli import shared
from flowrl.collection import collect, experts
from flowrl.config import stacked
from flowrl.envs import locomotion, making
from flowrl.envs.episodes import SeededEpisodes
from flowrl.errors import UserError
from flowrl.machine import files
from flowrl.networks import Spec
from flowrl.training.checkpoint import Checkpoints

expert = load("experiments/expert.py")
SHIPPED = experts.path("ant")


@pytest.mark.slow
def test_an_exported_policy_acts_as_the_agent_does(tmp_path: Path) -> None:
    config = sac.Config(hidden_dims=(16, 16, 16))
    agent = sac.make(config, Spec.of_sizes(29, 8))
    states = jax.vmap(agent.init)(jax.random.split(jax.random.key(0)), stacked(config, [{}, {}]))
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.save(5, {"states": states.replace(config=None)}, {"agent": "sac"})
    checkpoints.close()
    layers = experts.read(expert.export("ant", tmp_path / "run", tmp_path / "made"))
    assert [kernel.shape for kernel, _ in layers] == [(29, 16), (16, 16), (16, 16), (16, 16)]
    rng = np.random.default_rng(0)
    observation, direction = rng.normal(size=29), np.array([0.6, -0.8])
    policy = agent.policy(jax.tree.map(lambda leaf: leaf[0], states))
    seen = jnp.asarray(np.concatenate([observation[2:], direction]), jnp.float32)
    expected = agent.act(policy, {"observations": seen}, jax.random.key(0))
    found = experts.act(layers, observation, direction)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    moved = experts.act(layers, observation + np.eye(29)[0], direction)
    np.testing.assert_array_equal(moved, found)  # it does not see where in the maze it is


def test_the_shipped_expert_has_its_record() -> None:
    record = json.loads(SHIPPED.with_suffix(".json").read_text())
    assert record["sha256"] == files.sha256(SHIPPED)
    assert record["made_by"].startswith("python experiments/main.py --agent=sac --env=online-ant-xy-v0")
    assert not record["git_commit"].endswith("-dirty")


@pytest.mark.slow
def test_the_shipped_expert_walks_in_the_commanded_direction() -> None:
    for angle in (0.0, 2.0, 4.0):
        direction = np.array([np.cos(angle), np.sin(angle)])
        walk = expert.play("ant", experts.shipped("ant"), 0, direction)
        assert walk["velocity"] > 1.2
        assert walk["falls"] <= 3
    turned = expert.play("ant", experts.shipped("ant"), 0)
    assert turned["velocity"] > 1.2


def test_a_missing_expert_is_named() -> None:
    with pytest.raises(UserError, match=r"ships no expert for humanoid yet; train one with experiments/expert\.py"):
        experts.path("humanoid")


class Counted:
    """An environment that counts the goals that are reached, each once."""

    def __init__(self, env: SeededEpisodes) -> None:
        self.unwrapped: Any = env.unwrapped
        self.reached = set[tuple[float, ...]]()
        self.reset, self._env = env.reset, env

    def step(self, action: Any) -> Any:
        goal, moved = tuple(self.unwrapped.cur_goal_xy), self._env.step(action)
        self.reached |= {goal} if moved[-1]["success"] else set()
        return moved


def test_an_ant_reaches_goals_in_a_maze() -> None:
    name = tasks.parse("antmaze-large-navigate")
    recipe = name.recipe()
    counted = Counted(making.make(str(name.env_id), terminate_at_goal=False, max_episode_steps=recipe.length))
    fields = collect.play(counted, recipe, 0, 0)  # type: ignore[arg-type]
    assert len(counted.reached) >= 2
    sizes = {"observations": 29, "actions": 8, "qpos": 15, "qvel": 14}
    assert {field: array.shape for field, array in fields.items()} == {
        **{field: (1001, size) for field, size in sizes.items()},
        "terminals": (1001,),
    }
    assert np.abs(fields["actions"]).max() <= 1
    np.testing.assert_allclose(fields["observations"][:, :15], fields["qpos"], atol=1e-5)


def test_directions_are_seen_and_rewarded() -> None:
    env = making.make("online-ant-xy-v0", module=locomotion.__name__)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (29,)
    np.testing.assert_allclose(np.linalg.norm(observation[-2:]), 1)
    before: Any = env.unwrapped.data.qpos[:2].copy()  # type: ignore[attr-defined]
    _, reward, *_ = env.step(np.full(8, 0.5))
    moved = env.unwrapped.data.qpos[:2] - before  # type: ignore[attr-defined]
    np.testing.assert_allclose(reward, moved @ observation[-2:])


@pytest.mark.slow
def test_the_program_trains_exports_and_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert, "STEPS", 20)
    tiny = ("--online.steps=40", "--online.warmup_steps=20", "--agent.hidden_dims=8", "--agent.batch_size=8")
    schedule = ("--eval.interval=40", "--log.interval=20", "--checkpoint.interval=40", "--eval.episodes=0")
    folders = (f"--run_dir={tmp_path / 'run'}", f"--out={tmp_path / 'made'}")
    command = ["expert.py", "--body=ant", "--episodes=2", *folders, *tiny, *schedule]
    assert expert.main(command) == 0
    record = json.loads((tmp_path / "made" / "ant.json").read_text())
    assert record["sha256"] == files.sha256(tmp_path / "made" / "ant.npz")
    assert len(record["measured"]["directions_changing_every_100_steps"]["falls_per_1000_steps"]["episodes"]) == 2
    assert (tmp_path / "made" / "ant.png").stat().st_size > 10_000
    monkeypatch.setattr(shared, "run_program", functools.partial(pytest.fail, "trained again"))
    assert expert.main(command) == 0  # a finished training is only measured


@pytest.mark.parametrize(
    ("message", "arguments"),
    [("choose ant, humanoid, antball", ["--body=dog"]), ("cannot be passed on; write --name=value", ["--steps", "5"])],
)
def test_wrong_arguments_name_the_remedy(message: str, arguments: list[str]) -> None:
    with pytest.raises(UserError, match=message):
        expert.main(["expert.py", *arguments])


def test_an_episode_with_the_ball_ends_for_good() -> None:
    class Counting(gymnasium.Env):
        observation_space = action_space = gymnasium.spaces.Box(-1, 1, (1,))

        def reset(self, **_: Any) -> Any:
            return np.zeros(1), {}

        def step(self, action: Any) -> Any:
            return np.zeros(1), 1.0, False, False, {}

    env = locomotion.EndsForGood(gymnasium.wrappers.TimeLimit(Counting(), 3))
    env.reset()
    assert [env.step(np.zeros(1))[2:4] for _ in range(3)] == [(False, False), (False, False), (True, False)]
