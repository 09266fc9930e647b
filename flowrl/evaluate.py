"""Evaluation: episodes on each of an environment's tasks, or on its only one, for many runs at once."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from flowrl.agent import Agent
from flowrl.streams import stream_key
from flowrl.train_state import Mode
from flowrl.workers import EnvFactory, EnvPool, Episode, Finished, Slots, WorkerDied

MAX_SLOTS = 160
GRACE = 1.0
"""Seconds between the death of a worker and its restart; a signal to a whole process group ends workers first."""


class Evaluation(NamedTuple):
    """Outcomes of R runs on K tasks of N episodes each.

    Attributes:
        successes: Whether each episode reached its goal, float32 `[R, K, N]`; NaN where the environment does not say.
        returns: Sum of each episode's rewards, float32 `[R, K, N]`; NaN where a number of it was not finite.
        lengths: Environment steps of each episode, int32 `[R, K, N]`.
    """

    successes: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray


class Evaluator:
    """Runs evaluation episodes that are fixed by the runs' keys, in environments kept alive between evaluations.

    Each run has the same number E of slots, and slot j runs the episodes j, j + E, j + 2E, … of its run. An episode's
    start, goal and policy noise depend only on the run's key, its task and its number, so neither the number of worker
    processes nor the training step changes them.
    """

    def __init__(
        self,
        agent: Agent,
        make_env: EnvFactory,
        keys: jax.Array,
        *,
        tasks: int,
        episodes: int,
        workers: int | None = None,
        slots: int = MAX_SLOTS,
    ):
        """Starts the environments.

        Args:
            agent: Whose policy acts.
            make_env: Makes an environment; picklable.
            keys: Root keys of the runs `[R]`.
            tasks: Number of OGBench's tasks K; 0 for an environment with a single task, which then counts as K = 1.
            episodes: Episodes per task N.
            workers: Number of worker processes; by default one for each usable core.
            slots: Most environments that exist at a time, in all.
        """
        first_task = 1 if tasks else 0
        tasks = max(1, tasks)
        self._shape = (len(keys), tasks, episodes)
        total = tasks * episodes
        self._slots = max(1, min(total, slots // len(keys)))
        env_keys, self._keys = jax.vmap(lambda key: _episode_keys(key, tasks, episodes))(keys)
        self._act = jax.jit(functools.partial(_act, agent), static_argnames="mode")
        seeds = np.asarray(jax.vmap(jax.vmap(jax.random.bits))(env_keys))
        self._queues = [
            [Episode(int(i) // episodes + first_task, int(seeds[run, i])) for i in range(slot, total, self._slots)]
            for run in range(len(keys))
            for slot in range(self._slots)
        ]
        self._noted: set[int] = set()
        self._seeds, self._first_task = seeds, first_task
        self._pool = EnvPool(make_env, len(self._queues), workers)

    def __call__(
        self, policies: Any, on_step: Callable[[int, int], None] = lambda done, total: None, *, mode: Mode = "eval"
    ) -> Evaluation:
        """Evaluates the policies of all runs.

        Args:
            policies: `agent.policy(state)` with a leading axis `[R, ...]`.
            on_step: Called after every environment step, and before workers that have died are started anew, with the
                numbers of finished and of all episodes; may raise to break off.
            mode: How the agent acts.

        Raises:
            WorkerDied: A worker process ended by itself, or was killed again and again.
            UserError: An environment raised an exception, or returned what it must not. An episode with a number that
                is not finite is broken off instead, and said.
        """
        runs, tasks, episodes = self._shape
        successes = np.zeros((runs, tasks * episodes), np.float32)
        returns, lengths = np.zeros_like(successes), np.zeros(successes.shape, np.int32)
        current = np.tile(np.arange(self._slots), (runs, 1))
        times = np.zeros_like(current)
        done, problems = 0, list[str]()

        def on_death() -> None:
            time.sleep(GRACE)
            on_step(done, successes.size)

        def note(finished: list[Finished]) -> int:
            for event in finished:
                run, slot = divmod(event.slot, self._slots)
                number = current[run, slot]
                successes[run, number] = event.success
                returns[run, number] = event.total_reward
                lengths[run, number] = event.length
                current[run, slot] += self._slots
                times[run, slot] = 0
                if event.problem:
                    task, episode = divmod(number, episodes)
                    problems.append(f"{event.problem} of evaluation episode {episode} (run {run}, task {task + 1})")
            return len(finished)

        view = self._pool.start(self._queues, on_death)
        done += note(view.finished)
        while done < successes.size:
            numbers = np.minimum(current, tasks * episodes - 1)
            observations, goals = (x.reshape(runs, self._slots, x.shape[-1]) for x in (view.observations, view.goals))
            actions = self._finite(self._act(policies, self._keys, numbers, times, observations, goals, mode=mode))
            view = self._pool.step(actions.reshape(runs * self._slots, -1))
            times += 1
            times.reshape(-1)[list(view.restarted)] = 0
            done += note(view.finished)
            on_step(done, successes.size)
        if problems:
            others = f", and the like in {len(problems) - 1} others" if len(problems) > 1 else ""
            tqdm.write(f"warning: {problems[0]}{others}; what is not finite is left out")
        return Evaluation(*(x.reshape(self._shape) for x in (successes, returns, lengths)))

    def _finite(self, actions: jax.Array) -> np.ndarray:
        """Returns actions `[R, E, A]` with 0 for what is not finite, as a policy frozen at huge parameters may give it.

        Simulators make anything of such actions, also rewards that are no numbers.
        """
        values = np.asarray(actions)
        good = np.isfinite(values)
        if good.all():
            return values
        for run in {*np.flatnonzero(~good.all(axis=(1, 2))).tolist()} - self._noted:
            tqdm.write(f"note: the policy of run {run} gives actions that are not finite; 0 is played for them")
            self._noted.add(run)
        return np.where(good, values, 0)

    def play_first_run(
        self,
        policies: Any,
        make_env: EnvFactory,
        episodes: int,
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> Evaluation:
        """Plays the first episodes per task of the first run again, one after another, in an environment apart.

        Actions are computed in the shapes and rows of a whole evaluation: in others they would be rounded
        otherwise, and where a small difference grows, an episode might end otherwise.

        Args:
            policies: As for a whole evaluation.
            make_env: Makes the environment, in a process of its own.
            episodes: How many of each task's episodes.
            on_step: As for a whole evaluation.

        Returns:
            Outcomes `[1, K, episodes]`.

        Raises:
            WorkerDied: The process of that environment died; it is not started anew.
        """
        _, tasks, each = self._shape
        numbers = [task * each + number for task in range(tasks) for number in range(episodes)]
        queue = [Episode(number // each + self._first_task, int(self._seeds[0, number])) for number in numbers]
        pool, ended = EnvPool(make_env, 1, workers=1), list[Finished]()

        def on_death() -> None:
            time.sleep(GRACE)
            on_step(len(ended), len(numbers))
            raise WorkerDied("the process of the environment died")

        try:
            view = pool.start([queue], on_death)
            ended += view.finished
            for number in numbers[len(ended) :]:
                moment, before = 0, len(ended)
                while len(ended) == before:
                    action = self._action(policies, number, moment, view)
                    view = pool.step(action[None])
                    ended += view.finished
                    moment += 1
                    on_step(len(ended), len(numbers))
        finally:
            pool.close()
        columns = zip(*[(event.success, event.total_reward, event.length) for event in ended], strict=True)
        kinds = (np.float32, np.float32, np.int32)
        return Evaluation(
            *(np.array(x, kind).reshape(1, tasks, episodes) for x, kind in zip(columns, kinds, strict=True))
        )

    def _action(self, policies: Any, number: int, moment: int, view: Slots) -> np.ndarray:
        """Returns the first run's action `[A]` in one of its episodes, in that episode's row of a whole evaluation."""
        slot, shape = number % self._slots, (self._shape[0], self._slots)

        def placed(value: Any) -> np.ndarray:
            rows = np.zeros((*shape, *np.shape(value)), np.asarray(value).dtype)
            rows[0, slot] = value
            return rows

        arguments = map(placed, (number, moment, view.observations[0], view.goals[0]))
        return self._finite(self._act(policies, self._keys, *arguments, mode="eval"))[0, slot]

    def close(self) -> None:
        """Ends the worker processes."""
        self._pool.close()


def _episode_keys(key: jax.Array, tasks: int, episodes: int) -> tuple[jax.Array, jax.Array]:
    """Returns keys for each episode's environment and for its policy, `[tasks·episodes]`, from (key, task, episode)."""
    root = stream_key(key, "eval")
    by_task = jax.vmap(lambda task: jax.random.fold_in(root, task))(jnp.arange(tasks))
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    pairs = jax.vmap(jax.random.split)(fold(by_task, jnp.arange(episodes)).reshape(tasks * episodes))
    return pairs[:, 0], pairs[:, 1]


def _act(
    agent: Agent,
    policies: Any,
    keys: jax.Array,
    numbers: jax.Array,
    times: jax.Array,
    observations: jax.Array,
    goals: jax.Array,
    *,
    mode: Mode,
) -> jax.Array:
    """Actions `[R, E, A]` for episode `numbers` at `times` `[R, E]`; keys `[R, K·N]`."""

    def one(policy: Any, key: jax.Array, time: jax.Array, observation: jax.Array, goal: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, time)
        return agent.act(policy, observation[None], goal[None], key, mode=mode)[0]

    def one_run(policy: Any, keys: jax.Array, numbers: jax.Array, *rest: jax.Array) -> jax.Array:
        return jax.vmap(one, in_axes=(None, 0, 0, 0, 0))(policy, keys[numbers], *rest)

    return jax.vmap(one_run)(policies, keys, numbers, times, observations, goals)
