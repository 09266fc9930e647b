"""Evaluation: episodes on each of an environment's tasks, or on its only one, for many runs at once."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from flowrl.agent import Agent
from flowrl.envs.workers import EnvFactory, EnvPool, Episode, Finished, Slots, WorkerDied
from flowrl.random_streams import stream_key
from flowrl.train_state import Policy
from flowrl.training.acting import EpisodeActor

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


class _Tally:
    """Which episode each slot is in, and what came of the episodes that ended.

    Attributes:
        done: How many have ended.
        total: How many there are in all.
        times: Steps of each slot's episode so far `[R, E]`.
    """

    def __init__(self, shape: tuple[int, int, int], slots: int) -> None:
        runs, tasks, self._episodes = self._shape = shape
        self._successes = np.zeros((runs, tasks * self._episodes), np.float32)
        self._returns = np.zeros_like(self._successes)
        self._lengths = np.zeros(self._successes.shape, np.int32)
        self._current = np.tile(np.arange(slots), (runs, 1))
        self._problems = list[str]()
        self.times = np.zeros_like(self._current)
        self.done, self.total = 0, self._successes.size

    def numbers(self) -> np.ndarray:
        """Returns the number of each slot's episode `[R, E]`; where none is left, of the last one."""
        return np.minimum(self._current, self._successes.shape[1] - 1)

    def note(self, view: Slots) -> None:
        """Takes down what a step of the environments ended and began anew."""
        self.times.reshape(-1)[list(view.restarted)] = 0
        for event in view.finished:
            run, slot = divmod(event.slot, self._current.shape[1])
            number = self._current[run, slot]
            self._successes[run, number] = event.success
            self._returns[run, number] = event.total_reward
            self._lengths[run, number] = event.length
            self._current[run, slot] += self._current.shape[1]
            self.times[run, slot] = 0
            if event.problem:
                task, episode = divmod(number, self._episodes)
                self._problems.append(f"{event.problem} of evaluation episode {episode} (run {run}, task {task + 1})")
        self.done += len(view.finished)

    def evaluation(self) -> Evaluation:
        """Returns the outcomes, and says what was not finite."""
        if self._problems:
            others = f", and the like in {len(self._problems) - 1} others" if len(self._problems) > 1 else ""
            tqdm.write(f"warning: {self._problems[0]}{others}; what is not finite is left out")
        return Evaluation(*(x.reshape(self._shape) for x in (self._successes, self._returns, self._lengths)))


class Evaluator:
    """Runs evaluation episodes that are fixed by the runs' keys, in environments kept alive between evaluations.

    Each run has the same number E of slots, and slot j runs the episodes j, j + E, j + 2E, … of its run. An episode's
    start, goal and policy noise depend only on the run's key, its task and its number, so neither the number of worker
    processes nor the training step changes them.
    """

    def __init__(
        self,
        agent: Agent[Any],
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
        env_keys, keys = jax.vmap(lambda key: _episode_keys(key, tasks, episodes))(keys)
        self._actor = EpisodeActor(agent, keys, self._slots)
        seeds = np.asarray(jax.vmap(jax.vmap(jax.random.bits))(env_keys))
        self._queues = [
            [Episode(int(i) // episodes + first_task, int(seeds[run, i])) for i in range(slot, total, self._slots)]
            for run in range(self._shape[0])
            for slot in range(self._slots)
        ]
        self._seeds, self._first_task = seeds, first_task
        self._pool = EnvPool(make_env, len(self._queues), workers)

    def __call__(
        self, policies: Policy[Any], on_step: Callable[[int, int], None] = lambda done, total: None
    ) -> Evaluation:
        """Evaluates the policies of all runs.

        Args:
            policies: Of all runs, `[R, ...]`, with the normaliser that they share.
            on_step: Called after every environment step, and before workers that have died are started anew, with the
                numbers of finished and of all episodes; may raise to break off.

        Raises:
            WorkerDied: A worker process ended by itself, or was killed again and again.
            UserError: An environment raised an exception, or returned what it must not. An episode with a number that
                is not finite is broken off instead, and said.
        """
        runs, tally = self._shape[0], _Tally(self._shape, self._slots)

        def on_death() -> None:
            time.sleep(GRACE)
            on_step(tally.done, tally.total)

        view = self._pool.start(self._queues, on_death)
        tally.note(view)
        while tally.done < tally.total:
            inputs = {name: x.reshape(runs, self._slots, -1) for name, x in _inputs(view).items()}
            actions = self._actor(policies, tally.numbers(), tally.times, inputs)
            view = self._pool.step(actions.reshape(runs * self._slots, -1))
            tally.times += 1
            tally.note(view)
            on_step(tally.done, tally.total)
        return tally.evaluation()

    def play_first_run(
        self,
        policies: Policy[Any],
        make_env: EnvFactory,
        episodes: int,
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> Evaluation:
        """Plays the first episodes per task of the first run again, one after another, in an environment apart.

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
                    shown = {name: x[0] for name, x in _inputs(view).items()}
                    action = self._actor.of_first_run(policies, number, moment, shown)
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

    def close(self) -> None:
        """Ends the worker processes."""
        self._pool.close()


def _inputs(view: Slots) -> dict[str, np.ndarray]:
    """Returns what policies act on `[slots, ...]`; goals of no numbers are none."""
    goals = {"goals": view.goals} if view.goals.shape[-1] else {}
    return {"observations": view.observations} | goals


def _episode_keys(key: jax.Array, tasks: int, episodes: int) -> tuple[jax.Array, jax.Array]:
    """Returns keys for each episode's environment and for its policy, `[tasks·episodes]`, from (key, task, episode)."""
    root = stream_key(key, "eval")
    by_task = jax.vmap(lambda task: jax.random.fold_in(root, task))(jnp.arange(tasks))
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    pairs = jax.vmap(jax.random.split)(fold(by_task, jnp.arange(episodes)).reshape(tasks * episodes))
    return pairs[:, 0], pairs[:, 1]
