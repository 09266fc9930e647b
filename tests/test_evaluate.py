"""Evaluation: episodes are a function of the run's key, its tasks and nothing else."""

import functools
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
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
from flowrl.envs.episodes import EnvironmentFailed
from flowrl.envs.workers import MOST_RESTARTS, Episode, WorkerDied
from flowrl.errors import UserError
from flowrl.experiment import run, settings, stored
from flowrl.random_streams import stream_key
from flowrl.reports import curves
from flowrl.run_folder import evaluations, logs
from flowrl.train_state import Policy
from flowrl.training import evaluation
from flowrl.training.evaluation import Evaluation, Evaluator

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


def test_shapes_and_outcomes(two_runs: Any) -> None:
    assert two_runs.successes.shape == two_runs.lengths.shape == (2, TASKS, EPISODES)
    reached = two_runs.successes == 1
    assert reached.any()
    assert (~reached).any()
    assert (two_runs.lengths[reached] < STEPS).all()
    assert (two_runs.lengths[~reached] == STEPS).all()


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


def test_breaking_off_leaves_the_evaluator_usable() -> None:
    evaluator = Evaluator(wanderer(), MAKE, keys_of(3), tasks=TASKS, episodes=1, workers=1)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    policies = policies_of(1)
    with pytest.raises(KeyboardInterrupt):
        evaluator(policies, stop)
    assert evaluator(policies).lengths.min() > 1
    evaluator.close()


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


# -------------------------------------------------------------------------------------- what environments tell


OWN = {"hidden_dims": (8,), "batch_size": 8}


def own_run(folder: Path, env: str, **given: Any) -> settings.Plan:
    """A small run in an environment of the test's own, to be executed."""
    rng, data = np.random.default_rng(0), folder.parent / "own.npz"
    fields = {"observations": rng.normal(size=(16, 2)), "next_observations": rng.normal(size=(16, 2))}
    np.savez(data, actions=rng.uniform(-1, 1, (16, 1)), rewards=np.zeros(16), terminals=np.zeros(16), **fields)
    small: dict[str, Any] = dict(agent="bc", env=env, data=str(data), preset="none", run_dir=str(folder), workers=1)
    small |= {"steps": 4, "eval.interval": 2, "eval.episodes": 4, "log.interval": 2, "checkpoint.interval": 2}
    return settings.plan(small | given, OWN)


def test_an_evaluation_goes_on_where_a_simulator_gives_no_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.execute(own_run(tmp_path / "some", "own_envs:own/Broken-v0", num_seeds=2)) == 0
    lines = logs.read_lines(tmp_path / "some" / "eval.jsonl")
    assert {line["return"] for line in lines} == {4.0}
    assert {line["episodes"] for line in lines} == {4}
    assert 0 < sum(line.get("not_finite", 0) for line in lines) < 16
    said = capsys.readouterr().out
    assert re.search(
        r"warning: own/Broken-v0: the reward is nan.*step 3 of evaluation episode \d \(run \d, task 1\)", said
    )
    summary = logs.read_json(tmp_path / "some" / "summary.json")
    assert (summary["metric"], summary["return"]) == ("return", 4.0)
    assert "not finite are left out" in summary["rule"]


def test_a_run_without_any_finite_number_ends_well_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = "own_envs:own/Broken-v0"
    monkeypatch.setattr(own_envs.Broken, "__init__", lambda self: own_envs.Own.__init__(self))
    monkeypatch.setattr(Evaluator, "__call__", nothing_finite)
    for attribute, value in (("where", "none"), ("share", 0.0), ("broken", False)):
        monkeypatch.setattr(own_envs.Broken, attribute, value, raising=False)
    assert run.execute(own_run(tmp_path / "run", env)) == 0
    summary = logs.read_json(tmp_path / "run" / "summary.json")
    assert (summary["metric"], summary["rule"]) == (None, "no evaluation episode had finite numbers")
    plan, told = stored.resumed_plan({"run_dir": str(tmp_path / "run"), "resume": True, "steps": 6}, {})
    assert run.execute(plan, told) == 0
    lines = logs.read_lines(tmp_path / "run" / "eval.jsonl")
    assert [(line["step"], line["not_finite"]) for line in lines] == [(2, 4), (4, 4), (6, 4)]
    assert not any({"return", "success"} & line.keys() for line in lines)


def nothing_finite(self: Evaluator, policies: Any, *arguments: Any, **options: Any) -> Evaluation:
    nothing = np.full((1, 1, 4), np.nan, np.float32)
    return Evaluation(nothing, nothing, np.ones((1, 1, 4), np.int32))


def test_success_is_judged_once_and_0_where_it_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first evaluation tells nothing, of the second one episode of one seed, the third again nothing."""
    outcomes = []
    for told in (0, 1, 0, 0):
        successes = np.full((2, 1, 4), np.nan, np.float32)
        successes[0, 0, :told] = 1
        outcomes.append(Evaluation(successes, np.zeros((2, 1, 4), np.float32), np.ones((2, 1, 4), np.int32)))
    monkeypatch.setattr(Evaluator, "__call__", lambda self, *_, **__: outcomes.pop(0))
    assert run.execute(own_run(tmp_path / "run", "own_envs:own/Own-v0", num_seeds=2, steps=6)) == 0
    plan, told = stored.resumed_plan({"run_dir": str(tmp_path / "run"), "resume": True, "steps": 8}, {})
    assert run.execute(plan, told) == 0
    lines = logs.read_lines(tmp_path / "run" / "eval.jsonl")
    assert [line.get("success") for line in lines] == [None, None, 0.25, 0, 0, 0, 0, 0]
    summary = logs.read_json(tmp_path / "run" / "summary.json")
    assert (summary["metric"], summary["success_per_seed"]) == ("success", [0.25 / 3, 0.0])
    assert evaluations.read_runs(tmp_path / "run", with_minutes=False)[0].curves == {
        0: {2: 0.0, 4: 0.25, 6: 0.0, 8: 0.0},
        1: {2: 0.0, 4: 0.0, 6: 0.0, 8: 0.0},
    }


def test_parts_of_a_sweep_that_were_told_no_success_had_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two sweeps has a part that reached nothing, so was told nothing; the other never tells it."""
    monkeypatch.setattr(curves, "identity", lambda config: config["agent_config"])
    parts = []
    for sweep, metric in (("one", "success"), ("other", "return")):
        config: dict[str, Any] = {"settings": {"env": sweep}}
        (tmp_path / sweep).mkdir()
        (tmp_path / sweep / "sweep.json").touch()
        for part, judged_by in enumerate(("return", metric)):
            own = config | {"agent_config": {"sweep": sweep, "part": part}}
            folder = tmp_path / sweep / f"part{part}"
            parts.append(evaluations.RunDir(folder, own, judged_by, {0: {2: 0.5}}, {}, 4, 1, ""))
    found = [(group.metric, group.final) for group in curves.group_runs(parts)]
    assert found == [("success", {0: 0.0}), ("success", {0: 0.5}), ("return", {0: 0.5}), ("return", {0: 0.5})]


def test_episodes_that_end_from_the_start_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a seed's episodes are broken off at their reset; what the other's come to is not moved."""

    def start(self: workers.EnvPool, queues: Any, on_death: Any) -> workers.Slots:
        broken = [workers.Finished(0, np.nan, np.nan, 0, "nothing") for _ in range(2)]
        return workers.Slots(np.zeros((2, 2), np.float32), np.zeros((2, 0), np.float32), broken)

    def step(self: workers.EnvPool, actions: Any) -> workers.Slots:
        return workers.Slots(np.zeros((2, 2), np.float32), np.zeros((2, 0), np.float32), [workers.Finished(1, 1, 5, 1)])

    monkeypatch.setattr(workers.EnvPool, "start", start)
    monkeypatch.setattr(workers.EnvPool, "step", step)
    evaluator = Evaluator(wanderer(), fault, keys_of(3, 4), tasks=0, episodes=2, workers=1, slots=2)
    monkeypatch.setattr(evaluator, "_actor", lambda *_: np.zeros((2, 1, 1), np.float32))
    found = evaluator(policies_of(2))
    evaluator.close()
    np.testing.assert_array_equal(found.returns, [[[np.nan, np.nan]], [[5, 5]]])


def test_a_limit_of_steps_belongs_to_the_run(tmp_path: Path) -> None:
    given = dict(num_seeds=1, max_episode_steps=3)
    assert run.execute(own_run(tmp_path / "run", "own_envs:own/Endless-v0", **given)) == 0
    plan, told = stored.resumed_plan({"run_dir": str(tmp_path / "run"), "resume": True, "steps": 6}, {})
    assert run.execute(plan, told) == 0
    assert [line["length"] for line in logs.read_lines(tmp_path / "run" / "eval.jsonl")] == [3, 3, 3]
    assert "--max_episode_steps=3" in told["command"]
    with pytest.raises(UserError, match="max_episode_steps=0 is too small"):
        own_run(tmp_path / "other", "own_envs:own/Endless-v0", max_episode_steps=0)


def test_a_users_mistake_amid_a_run_says_how_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Evaluator, *arguments: Any, **options: Any) -> Evaluation:
        raise EnvironmentFailed("own/Own-v0 failed in step 3: KeyError (own.py:7)")

    monkeypatch.setattr(Evaluator, "__call__", failing)
    with pytest.raises(UserError, match=r"own\.py:7\); mend the environment, and --resume --run_dir=.* from update 0"):
        run.execute(own_run(tmp_path / "run", "own_envs:own/Own-v0"))


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


def test_a_worker_killed_between_evaluations_changes_nothing(three_slots: Evaluator, two_runs: Any) -> None:
    for _ in range(2):  # before the first evaluation, and after it
        for worker in range(2):
            kill(three_slots, worker)
        np.testing.assert_array_equal(three_slots(policies_of(1)).lengths[0], two_runs.lengths[0])


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
        (
            "        tally.note(view)\n        while",
            "        while",
            "test_episodes_that_end_from_the_start_are_counted",
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
    "flowrl/run_folder/summary.py": [
        (
            "good = np.isfinite(returns)",
            "good = np.isfinite(returns) | True",
            "test_an_evaluation_goes_on_where_a_simulator_gives_no_numbers",
        ),
        (
            "            if good.any():\n                line",
            "            if True:\n                line",
            "test_a_run_without_any_finite_number_ends_well_and_resumes",
        ),
        (
            "float(np.nan_to_num(told).mean())",
            "float(np.nanmean(told))",
            "test_success_is_judged_once_and_0_where_it_is_not_told",
        ),
        ("with_success(lines) if any(", "[*lines] if any(", "test_success_is_judged_once_and_0_where_it_is_not_told"),
    ],
    "flowrl/experiment/recorder.py": [
        (
            "with_success(lines) if self._told else lines",
            "lines",
            "test_success_is_judged_once_and_0_where_it_is_not_told",
        ),
        ("        self._told = any(", "        any(", "test_success_is_judged_once_and_0_where_it_is_not_told"),
    ],
    "flowrl/experiment/run.py": [
        (
            "        except EnvironmentFailed as error:",
            "        except ZeroDivisionError as error:",
            "test_a_users_mistake_amid_a_run_says_how_it_goes_on",
        ),
    ],
    "flowrl/reports/curves.py": [
        ("    runs = _sweeps_alike(runs)\n", "", "test_parts_of_a_sweep_that_were_told_no_success_had_none"),
    ],
    "flowrl/experiment/stored.py": [
        ("env.limited(settings.max_episode_steps)", "env.limited(None)", "test_a_limit_of_steps_belongs_to_the_run"),
    ],
}
