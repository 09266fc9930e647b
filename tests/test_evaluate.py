"""Evaluation: episodes are a function of the run's key, its tasks and nothing else."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowrl import envs, evaluate
from flowrl.agent import Agent, Needs
from flowrl.evaluate import Evaluator
from flowrl.streams import stream_key

ENV = "pointmaze-medium-v0"
TASKS, EPISODES = 5, 2


def wanderer() -> Agent:
    """Steps toward the goal with noise; its policy is the weight of the goal's direction, `[]`."""

    def act(policy: Any, observations: Any, goals: Any, key: Any, *, mode: str) -> jax.Array:
        direction = goals - observations
        direction /= jnp.linalg.norm(direction, axis=-1, keepdims=True) + 1e-6
        return jnp.clip(policy * direction + jax.random.normal(key, observations.shape), -1, 1)

    unused: Any = None
    return Agent(init=unused, update=unused, policy=unused, act=act, needs=Needs(()))


def keys_of(*seeds: int) -> jax.Array:
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def outcome(*seeds: int, workers: int = 2, twice: bool = False, slots: int = evaluate.MAX_SLOTS) -> Any:
    sizes = dict(tasks=TASKS, episodes=EPISODES, workers=workers, slots=slots)
    evaluator = Evaluator(wanderer(), functools.partial(envs.make, ENV), keys_of(*seeds), **sizes)
    try:
        policies = jnp.full(len(seeds), 0.8)
        first = evaluator(policies)
        if twice:
            again = evaluator(policies)
            np.testing.assert_array_equal(first.lengths, again.lengths)
            np.testing.assert_array_equal(first.successes, again.successes)
        return first
    finally:
        evaluator.close()


@pytest.fixture(scope="module")
def two_runs() -> Any:
    return outcome(3, 4, twice=True)


def test_shapes_and_outcomes(two_runs: Any) -> None:
    assert two_runs.successes.shape == two_runs.lengths.shape == (2, TASKS, EPISODES)
    reached = two_runs.successes == 1
    assert reached.any()
    assert (~reached).any()
    assert (two_runs.lengths[reached] < 1000).all()
    assert (two_runs.lengths[~reached] == 1000).all()


def test_other_keys_give_other_episodes(two_runs: Any) -> None:
    assert (two_runs.lengths[0] != two_runs.lengths[1]).any()


def test_workers_and_other_runs_do_not_matter(two_runs: Any) -> None:
    alone = outcome(4, workers=1)
    np.testing.assert_array_equal(alone.lengths[0], two_runs.lengths[1])
    np.testing.assert_array_equal(alone.successes[0], two_runs.successes[1])


def test_fewer_slots_than_episodes(two_runs: Any) -> None:
    few = outcome(3, workers=2, slots=3)
    np.testing.assert_array_equal(few.lengths[0], two_runs.lengths[0])


def test_few_of_the_large_environments_exist_at_a_time() -> None:
    assert envs.most(envs.parse("pointmaze-medium-navigate")) == 160
    assert envs.most(envs.parse("cube-single-play-singletask-task2")) == envs.most(envs.parse("scene-play")) == 16


def test_agrees_with_a_plain_loop(two_runs: Any) -> None:
    env, agent = envs.make(ENV), wanderer()
    act = jax.jit(lambda *args: agent.act(jnp.float32(0.8), *args, mode="eval"))
    root = stream_key(jax.random.key(3), "eval")
    for task, episode in ((0, 0), (2, 1), (4, 0)):
        env_key, key = jax.random.split(jax.random.fold_in(jax.random.fold_in(root, task), episode))
        observation, info = env.reset(seed=int(jax.random.bits(env_key)), options={"task_id": task + 1})
        goal = np.asarray(info["goal"], np.float32)[None]
        for time in range(1000):
            observations = np.asarray(observation, np.float32)[None]
            action = np.asarray(act(observations, goal, jax.random.fold_in(key, time)))[0]
            observation, _, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                break
        assert two_runs.lengths[0, task, episode] == time + 1
        assert two_runs.successes[0, task, episode] == info["success"]


def test_breaking_off_leaves_the_evaluator_usable() -> None:
    evaluator = Evaluator(wanderer(), functools.partial(envs.make, ENV), keys_of(3), tasks=TASKS, episodes=1, workers=1)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    policies = jnp.full(1, 0.8)
    with pytest.raises(KeyboardInterrupt):
        evaluator(policies, stop)
    assert evaluator(policies).lengths.min() > 1
    evaluator.close()


def test_a_failing_worker_is_reported() -> None:
    evaluator = Evaluator(
        wanderer(), functools.partial(envs.make, "no-such-env-v0"), keys_of(3), tasks=1, episodes=1, workers=1
    )
    with pytest.raises(RuntimeError, match=r"environment worker failed[\s\S]*no-such-env"):
        evaluator(jnp.full(1, 0.8))
    evaluator.close()


def test_environments_side_by_side_do_not_disturb_each_other() -> None:
    def episode(env: Any, other: Any | None) -> list[np.ndarray]:
        rows = [env.reset(seed=7, options={"task_id": 3})[0]]
        for _ in range(300):
            if other is not None:
                other.step(np.ones(2))
            rows.append(env.step(np.array([0.0, -1.0]))[0])
        return rows

    env, other = envs.make("pointmaze-teleport-v0"), envs.make("pointmaze-teleport-v0")
    other.reset(seed=1, options={"task_id": 2})
    alone, beside = episode(env, None), episode(env, other)
    np.testing.assert_array_equal(alone, beside)
    jumps = np.linalg.norm(np.diff(alone, axis=0), axis=1)
    assert jumps.max() > 2  # the walk went through a teleport, which draws from the global generator
