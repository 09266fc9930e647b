"""Evaluation: episodes are a function of the run's key, its tasks and nothing else, whichever process dies."""

import functools
import os
import signal
from collections.abc import Callable
from time import sleep
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import own_envs
import pytest

from flowrl import tasks
from flowrl.agent import Agent
from flowrl.envs import making, processes, workers
from flowrl.envs.workers import MOST_RESTARTS, Episode, WorkerDied
from flowrl.errors import UserError
from flowrl.random_streams import stream_key
from flowrl.train_state import Policy
from flowrl.training import evaluation
from flowrl.training.evaluation import Evaluator

ENV = "pointmaze-medium-v0"
TASKS, EPISODES, STEPS = 5, 2, 250
MAKE = functools.partial(making.make, ENV, max_episode_steps=STEPS)


def wanderer() -> Agent[Any]:
    """Steps toward the goal with noise; its parameters are the weight of the goal's direction, `[]`."""

    def act(policy: Policy[Any], inputs: Any, key: Any, *, explore: bool = False) -> jax.Array:
        direction = inputs["goals"] - inputs["observations"]
        direction /= jnp.linalg.norm(direction, axis=-1, keepdims=True) + 1e-6
        return jnp.clip(policy.params["w"] * direction + jax.random.normal(key, direction.shape), -1, 1)

    unused: Any = None
    return Agent(init=unused, update=unused, policy=unused, act=act, batch=unused, evaluations=unused, explores=unused)


def policies_of(runs: int, weight: float = 2.0) -> Policy[Any]:
    return Policy({}, {"w": jnp.full(runs, weight)})


def keys_of(*seeds: int) -> jax.Array:
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def outcome(*seeds: int, workers: int = 2, twice: bool = False, slots: int = evaluation.MAX_SLOTS) -> Any:
    sizes = dict(tasks=TASKS, episodes=EPISODES, workers=workers, slots=slots)
    evaluator = Evaluator(wanderer(), MAKE, keys_of(*seeds), **sizes)
    try:
        policies = policies_of(len(seeds))
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


@pytest.mark.slow
def test_shapes_and_outcomes(two_runs: Any) -> None:
    assert two_runs.successes.shape == two_runs.lengths.shape == (2, TASKS, EPISODES)
    reached = two_runs.successes == 1
    assert reached.any()
    assert (~reached).any()
    assert (two_runs.lengths[reached] < STEPS).all()
    assert (two_runs.lengths[~reached] == STEPS).all()


def test_other_keys_give_other_episodes(two_runs: Any) -> None:
    assert (two_runs.lengths[0] != two_runs.lengths[1]).any()


@pytest.mark.slow
def test_workers_and_other_runs_do_not_matter(two_runs: Any) -> None:
    alone = outcome(4, workers=1)
    np.testing.assert_array_equal(alone.lengths[0], two_runs.lengths[1])
    np.testing.assert_array_equal(alone.successes[0], two_runs.successes[1])


@pytest.mark.slow
def test_fewer_slots_than_episodes(two_runs: Any) -> None:
    few = outcome(3, workers=2, slots=3)
    np.testing.assert_array_equal(few.lengths[0], two_runs.lengths[0])


def test_few_of_the_large_environments_exist_at_a_time() -> None:
    assert tasks.parse("pointmaze-medium-navigate").most == 160
    assert tasks.parse("cube-single-play-singletask-task2").most == tasks.parse("scene-play").most == 16


def test_agrees_with_a_plain_loop(two_runs: Any) -> None:
    env, agent = MAKE(), wanderer()
    act = jax.jit(functools.partial(agent.act, Policy({}, {"w": jnp.float32(2.0)})))
    root = stream_key(jax.random.key(3), "eval")
    for task, episode in ((0, 0), (2, 1), (4, 0)):
        env_key, key = jax.random.split(jax.random.fold_in(jax.random.fold_in(root, task), episode))
        observation, info = env.reset(seed=int(jax.random.bits(env_key)), options={"task_id": task + 1})
        goal = np.asarray(info["goal"], np.float32)[None]
        for time in range(STEPS):
            observations = np.asarray(observation, np.float32)[None]
            inputs = {"observations": observations, "goals": goal}
            action = np.asarray(act(inputs, jax.random.fold_in(key, time)))[0]
            observation, _, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                break
        assert two_runs.lengths[0, task, episode] == time + 1
        assert two_runs.successes[0, task, episode] == info["success"]


@pytest.mark.slow
def test_breaking_off_leaves_the_evaluator_usable() -> None:
    evaluator = Evaluator(wanderer(), MAKE, keys_of(3), tasks=TASKS, episodes=1, workers=1)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    policies = policies_of(1)
    with pytest.raises(KeyboardInterrupt):
        evaluator(policies, stop)
    assert evaluator(policies).lengths.min() > 1
    evaluator.close()


@pytest.mark.slow
def test_actions_that_are_not_finite_are_played_as_0(two_runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = dict(tasks=TASKS, episodes=EPISODES, workers=2)
    evaluator = Evaluator(wanderer(), MAKE, keys_of(3, 4), **sizes)
    evaluation = evaluator(Policy({}, {"w": jnp.array([2.0, jnp.nan])}))
    evaluator.close()
    np.testing.assert_array_equal(evaluation.lengths[0], two_runs.lengths[0])
    assert (evaluation.successes[1] == 0).all()
    assert capsys.readouterr().out.count("the policy of run 1 gives actions that are not finite") == 1


def test_a_failing_worker_is_reported() -> None:
    evaluator = Evaluator(
        wanderer(), functools.partial(making.make, "no-such-env-v0"), keys_of(3), tasks=1, episodes=1, workers=1
    )
    with pytest.raises(UserError, match=r"^no-such-env-v0 cannot be made here \(.*\)"):
        evaluator(policies_of(1))
    evaluator.close()


def fault() -> None:
    raise AssertionError("of flowrl's own")


def test_a_fault_that_is_not_the_environments_comes_with_its_traceback() -> None:
    evaluator = Evaluator(wanderer(), fault, keys_of(3), tasks=1, episodes=1, workers=1)
    with pytest.raises(RuntimeError, match=r"environment worker failed[\s\S]*in fault[\s\S]*of flowrl's own"):
        evaluator(policies_of(1))
    evaluator.close()


def test_what_cannot_be_sent_to_a_process_is_said() -> None:
    with pytest.raises(UserError, match=r"cannot be sent to a process.*module:Name-v0"):
        Evaluator(wanderer(), lambda: None, keys_of(3), tasks=1, episodes=1, workers=1)


def test_interrupts_are_the_parents_from_a_process_s_first_moment_on() -> None:
    """Ctrl-C reaches all processes of a terminal, also one that is still importing what it needs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which may be ignored where tests are started
    try:
        process, connection = processes.begin(functools.partial(dict), (signal.SIGINT,))
        for _ in range(20):
            os.kill(process.pid, signal.SIGINT)
            sleep(0.01)
        connection.send(("copy", None))
        with pytest.raises(RuntimeError, match="takes no arguments"):
            raise connection.recv()
        process.join()
        assert process.exitcode == 0
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupts_are_held_once_nothing_lets_them_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's resource tracker, which starts with the first process, unblocks them."""
    masks: list[Any] = []
    mask = functools.partial(signal.pthread_sigmask, signal.SIG_BLOCK, ())
    monkeypatch.setattr(processes.resource_tracker, "ensure_running", lambda: masks.append(mask()))
    with processes.interrupts_held():
        masks.append(mask())
    assert [signal.SIGINT in held for held in masks] == [False, True]


# ------------------------------------------------------------------------------------------------ dying workers


Moment = Callable[[list[Any]], bool]
"""Tells from what is left to play in each slot whether the moment has come."""


def always(left: list[Any]) -> bool:
    return True


def kill(evaluator: Evaluator, worker: int) -> None:
    process = evaluator._pool._processes[worker]
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def killing(evaluator: Evaluator, worker: int, *moments: Moment, delay: int = 30) -> Callable[[int, int], None]:
    """Returns an `on_step` that kills a worker so many calls after each of the moments, which come in this order."""
    waiting, calls = list(moments), 0

    def on_step(done: int, total: int) -> None:
        nonlocal calls
        calls = calls + 1 if waiting and waiting[0](evaluator._pool._left) else 0
        if calls > delay:
            del waiting[0]
            calls = 0
            kill(evaluator, worker)

    return on_step


@pytest.fixture
def three_slots(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Slots with 4, 3 and 3 of the episodes of seed 3: the first two belong to one worker, the last to another."""
    monkeypatch.setattr(evaluation, "GRACE", 0.0)
    sizes = dict(tasks=TASKS, episodes=EPISODES, workers=2, slots=3)
    evaluator = Evaluator(wanderer(), MAKE, keys_of(3), **sizes)
    yield evaluator
    evaluator.close()


def assert_equal(one: Any, other: Any) -> None:
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_a_worker_killed_amid_an_evaluation_changes_nothing(
    three_slots: Evaluator, two_runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = three_slots(policies_of(1))
    np.testing.assert_array_equal(undisturbed.lengths[0], two_runs.lengths[0])
    moments: list[Moment] = [
        always,
        lambda left: len(left[0]) < 4 or len(left[1]) < 3,  # one of its slots is further than the other
        lambda left: bool(left[0]) != bool(left[1]),  # one has no more to play
    ]
    assert_equal(three_slots(policies_of(1), killing(three_slots, 0, *moments)), undisturbed)
    assert_equal(three_slots(policies_of(1), killing(three_slots, 1, lambda left: len(left[2]) == 2)), undisturbed)
    said = capsys.readouterr().out
    assert said.count("an environment worker died by signal 9 (Killed); it is started anew") == 4


def test_slots_that_were_through_keep_their_rows_in_a_worker_started_anew() -> None:
    share = workers._Share(own_envs.make_counter, 2)
    view = share.start([[], [Episode(0, 5)]])
    assert view.observations.shape == (2, 2)
    own = own_envs.make_counter().reset(seed=5)[0]
    np.testing.assert_array_equal(view.observations[1], own)


@pytest.mark.slow
def test_a_worker_killed_between_evaluations_changes_nothing(three_slots: Evaluator, two_runs: Any) -> None:
    for _ in range(2):  # before the first evaluation, and after it
        for worker in range(2):
            kill(three_slots, worker)
        np.testing.assert_array_equal(three_slots(policies_of(1)).lengths[0], two_runs.lengths[0])


@pytest.mark.slow
def test_a_worker_that_dies_again_and_again_is_an_error(three_slots: Evaluator) -> None:
    again = [always] * (MOST_RESTARTS + 1)
    with pytest.raises(WorkerDied, match=rf"died {len(again)} times .* signal 9 \(Killed\).*--workers"):
        three_slots(policies_of(1), killing(three_slots, 0, *again, delay=1))
    three_slots(policies_of(1), killing(three_slots, 0, always))  # counted anew


def test_a_worker_that_ends_by_itself_is_an_error() -> None:
    evaluator = Evaluator(wanderer(), functools.partial(os._exit, 7), keys_of(3), tasks=1, episodes=1, workers=1)
    with pytest.raises(WorkerDied, match="ended with status 7"):
        evaluator(policies_of(1))
    evaluator.close()


@pytest.mark.slow
def test_breaking_off_goes_before_a_restart(three_slots: Evaluator, capsys: pytest.CaptureFixture[str]) -> None:
    on_step = killing(three_slots, 0, always)

    def stop(done: int, total: int) -> None:
        if not three_slots._pool._processes[0].is_alive():
            raise KeyboardInterrupt
        on_step(done, total)

    with pytest.raises(KeyboardInterrupt):
        three_slots(policies_of(1), stop)
    assert "started anew" not in capsys.readouterr().out
    assert three_slots(policies_of(1)).lengths.min() > 1


def test_environments_side_by_side_do_not_disturb_each_other() -> None:
    def episode(env: Any, other: Any | None) -> list[np.ndarray]:
        rows = [env.reset(seed=7, options={"task_id": 3})[0]]
        for _ in range(300):
            if other is not None:
                other.step(np.ones(2))
            rows.append(env.step(np.array([0.0, -1.0]))[0])
        return rows

    env, other = making.make("pointmaze-teleport-v0"), making.make("pointmaze-teleport-v0")
    other.reset(seed=1, options={"task_id": 2})
    alone, beside = episode(env, None), episode(env, other)
    np.testing.assert_array_equal(alone, beside)
    jumps = np.linalg.norm(np.diff(alone, axis=0), axis=1)
    assert jumps.max() > 2  # the walk went through a teleport, which draws from the global generator


FAULTS = {
    "flowrl/training/evaluation.py": [
        (
            "self.times.reshape(-1)[list(view.restarted)] = 0",
            "pass",
            "test_a_worker_killed_amid_an_evaluation_changes_nothing",
        ),
        (
            "            on_step(tally.done, tally.total)\n\n        view",
            "\n        view",
            "test_breaking_off_goes_before_a_restart",
        ),
    ],
    "flowrl/envs/workers.py": [
        ("del self._left[event.slot][0]", "pass", "test_a_worker_killed_amid_an_evaluation_changes_nothing"),
        (
            "            self._on_death()\n",
            (
                "            self._on_death()\n"
                "            for slot in self._shares[min(dead)]:\n"
                "                del self._left[slot][:1]\n"
            ),
            "test_a_worker_killed_amid_an_evaluation_changes_nothing",
        ),
        (
            "in self._shares[worker]]\n\n",
            "in self._shares[0]]\n\n",
            "test_a_worker_killed_amid_an_evaluation_changes_nothing",
        ),
        (
            "restarted |= {*self._shares[worker]}",
            "restarted |= {worker}",
            "test_a_worker_killed_amid_an_evaluation_changes_nothing",
        ),
        ("self._shown |= replies", "self._shown = replies", "test_a_worker_killed_amid_an_evaluation_changes_nothing"),
        (
            "row or anything for row in rows",
            "row for row in rows if row",
            "test_slots_that_were_through_keep_their_rows_in_a_worker_started_anew",
        ),
        ("self._deaths[worker] += 1", "pass", "test_a_worker_that_dies_again_and_again_is_an_error"),
        ("process.exitcode >= 0", "False", "test_a_worker_that_ends_by_itself_is_an_error"),
    ],
    "flowrl/envs/processes.py": [
        ("error if isinstance(error, UserError) else failed", "failed", "test_a_failing_worker_is_reported"),
        (
            "except (pickle.PicklingError, AttributeError, TypeError) as error",
            "except ZeroDivisionError as error",
            "test_what_cannot_be_sent_to_a_process_is_said",
        ),
        (
            "    resource_tracker.ensure_running()",
            "    pass",
            "test_interrupts_are_held_once_nothing_lets_them_through",
        ),
        (
            "    with interrupts_held():\n",
            "    with contextlib.nullcontext():\n",
            "test_interrupts_are_the_parents_from_a_process_s_first_moment_on",
        ),
    ],
}
