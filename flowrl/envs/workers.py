"""Worker processes that each step a share of many seeded environments side by side."""

import contextlib
import functools
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from flowrl.envs.episodes import NotFinite, success
from flowrl.envs.processes import begin
from flowrl.errors import UserError
from flowrl.machine.provenance import usable_cores

MOST_RESTARTS = 3
"""How often one worker is started anew in an evaluation; what kills it more often will kill it again."""

EnvFactory = Callable[[], Any]
"""Picklable function without arguments that makes one `flowrl.envs.episodes.SeededEpisodes`."""


class Episode(NamedTuple):
    """One evaluation episode to run.

    Attributes:
        task: OGBench's task number, from 1; 0 where the environment has no more than one task.
        seed: uint32 that fixes the episode's start, goal and environment noise.
    """

    task: int
    seed: int


class Finished(NamedTuple):
    """The end of a slot's episode.

    Attributes:
        slot: Where it was played.
        success: Whether its goal was reached at any step; NaN where the environment does not say.
        total_reward: Sum of its rewards, undiscounted; NaN where the episode was broken off.
        length: In environment steps.
        problem: Which number of it was not finite, so that it was broken off; or empty.
    """

    slot: int
    success: float
    total_reward: float
    length: int
    problem: str = ""


class Slots(NamedTuple):
    """What the environments of one or several workers show after a step, a row per slot.

    Attributes:
        observations: float32 `[S, D]`; of the slot's next episode where one has just finished.
        goals: float32 `[S, G]`; G is 0 where there is a single task.
        finished: The episodes that ended in this step.
        restarted: Slots whose worker was started anew in this step: what they show is the beginning of the episode that
            was under way.
    """

    observations: np.ndarray
    goals: np.ndarray
    finished: list[Finished]
    restarted: Sequence[int] = ()


class WorkerDied(UserError):
    """A worker process ended without a word, by itself or too often."""


class EnvPool:
    """Environments in slots, spread evenly over worker processes that live until `close`.

    A worker that a signal kills, be it for want of memory or by a fault in a simulator, is started anew, and the
    episodes under way in its slots begin again. As each is a function of its seed and of the actions, nothing is lost.
    """

    def __init__(self, make_env: EnvFactory, slots: int, workers: int | None = None):
        """Starts the workers.

        Args:
            make_env: Makes one environment, inside a worker.
            slots: Number of environments S.
            workers: Number of processes; by default one for each usable core.
        """
        workers = min(workers or usable_cores(), slots)
        self._make_env = make_env
        self._shares = [share.tolist() for share in np.array_split(np.arange(slots), workers)]
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        for share in self._shares:
            process, connection = self._begin(share)
            self._processes.append(process)
            self._connections.append(connection)
        self._shown: dict[int, Slots] = {}

    def _begin(self, share: list[int]) -> tuple[Any, Connection]:
        """Starts a process for the slots of a share."""
        return begin(functools.partial(_Share, self._make_env, len(share)), (signal.SIGINT,))

    def start(self, queues: Sequence[Sequence[Episode]], on_death: Callable[[], None] = lambda: None) -> Slots:
        """Starts the first episode of each slot's queue; a slot goes on to its next one by itself.

        Args:
            queues: The episodes of each slot, at least one.
            on_death: Called from here and from `step` before workers that have died are started anew; may raise to
                break off.

        Raises:
            WorkerDied: A worker ended by itself, or was killed more than `MOST_RESTARTS` times.
            UserError: An environment cannot be made, raised an exception, or returned what it must not.
        """
        self._left = [list(queue) for queue in queues]  # of each slot, the episode under way first
        self._deaths, self._on_death = [0] * len(self._shares), on_death
        return self._exchange({worker: self._beginning(worker) for worker in range(len(self._shares))})

    def step(self, actions: np.ndarray) -> Slots:
        """Steps every slot that still has an episode with its row of `actions` `[S, A]`.

        Raises:
            UserError: As for `start`.
        """
        busy = [worker for worker, share in enumerate(self._shares) if any(self._left[slot] for slot in share)]
        return self._exchange({worker: ("step", actions[self._shares[worker]]) for worker in busy})

    def _beginning(self, worker: int) -> tuple[str, Any]:
        """Returns the message that makes a worker begin what is left for its slots."""
        return "start", [list(self._left[slot]) for slot in self._shares[worker]]

    def _exchange(self, messages: dict[int, tuple[str, Any]]) -> Slots:
        """Sends messages to workers, and returns what all slots show then."""
        replies, restarted = self._ask(messages), set[int]()
        while dead := messages.keys() - replies.keys():
            self._on_death()
            for worker in sorted(dead):
                self._restart(worker)
                restarted |= {*self._shares[worker]}
            replies |= self._ask({worker: self._beginning(worker) for worker in sorted(dead)})
        self._shown |= replies
        finished = [
            event._replace(slot=self._shares[worker][event.slot])
            for worker, reply in sorted(replies.items())
            for event in reply.finished
        ]
        for event in finished:
            del self._left[event.slot][0]
        shown = [self._shown[worker] for worker in range(len(self._shares))]
        observations, goals = (np.concatenate(rows) for rows in zip(*[reply[:2] for reply in shown], strict=True))
        return Slots(observations, goals, finished, sorted(restarted))

    def _ask(self, messages: dict[int, tuple[str, Any]]) -> dict[int, Slots]:
        """Sends messages to workers and returns the replies of those that live, once all of these have replied."""
        for worker, message in messages.items():
            with contextlib.suppress(OSError):  # a worker that has failed says why in what it sent last
                self._connections[worker].send(message)
        replies: dict[int, Any] = {}
        for worker in messages:
            with contextlib.suppress(EOFError, OSError):
                replies[worker] = self._connections[worker].recv()
        for reply in replies.values():
            if isinstance(reply, Exception):
                raise reply
        return replies

    def _restart(self, worker: int) -> None:
        """Puts a new process in the place of one that has died.

        Raises:
            WorkerDied: It ended by itself, or has been killed too often.
        """
        process = self._processes[worker]
        process.join(timeout=5)
        self._deaths[worker] += 1
        if process.exitcode is None or process.exitcode >= 0:
            raise WorkerDied(
                f"an environment worker ended with status {process.exitcode}, see above; a script that evaluates "
                "needs `if __name__ == '__main__':`"
            )
        name = f"signal {-process.exitcode} ({signal.strsignal(-process.exitcode)})"
        if self._deaths[worker] > MOST_RESTARTS:
            raise WorkerDied(
                f"an environment worker died {self._deaths[worker]} times in one evaluation, now by {name}: memory may "
                "have run out; try fewer --workers, and continue with --resume"
            )
        tqdm.write(f"an environment worker died by {name}; it is started anew, and its episodes under way begin again")
        self._connections[worker].close()
        self._processes[worker], self._connections[worker] = self._begin(self._shares[worker])

    def close(self) -> None:
        """Ends the workers."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()


class _Share:
    """One worker's environments, each with a queue of episodes."""

    def __init__(self, make_env: EnvFactory, slots: int):
        self._envs = [make_env() for _ in range(slots)]
        self._queues: list[list[Episode]] = [[] for _ in range(slots)]
        self._lengths = [0] * slots
        self._rewards = [0.0] * slots
        self._successes = [float("nan")] * slots
        self._busy = [False] * slots
        self._rows: list[tuple[np.ndarray, np.ndarray] | None] = [None] * slots
        self._finished: list[Finished] = []

    def start(self, queues: list[list[Episode]]) -> Slots:
        self._queues, self._finished = [queue[::-1] for queue in queues], []
        for slot in range(len(self._envs)):
            self._next_episode(slot)
        return self._view()

    def step(self, actions: np.ndarray) -> Slots:
        self._finished = []
        for slot, env in enumerate(self._envs):
            if not self._busy[slot]:
                continue
            self._lengths[slot] += 1
            try:
                observation, reward, terminated, truncated, info = env.step(actions[slot])
            except NotFinite as error:
                self._finish(slot, str(error))
                continue
            self._rewards[slot] += reward
            told = success(info)
            if told == told and not self._successes[slot] >= told:  # NaN where nothing is told, or was so far
                self._successes[slot] = told
            if terminated or truncated:
                self._finish(slot)
            else:
                _, goal = self._rows[slot]  # type: ignore[misc]
                self._rows[slot] = np.asarray(observation, np.float32), goal
        return self._view()

    def _finish(self, slot: int, problem: str = "") -> None:
        """Ends an episode, which a number that is not finite may have broken off, and begins the slot's next one."""
        self._end(slot, problem)
        self._next_episode(slot)

    def _end(self, slot: int, problem: str) -> None:
        numbers = (float("nan"), float("nan")) if problem else (self._successes[slot], self._rewards[slot])
        self._finished.append(Finished(slot, *numbers, self._lengths[slot], problem))

    def _next_episode(self, slot: int) -> None:
        while self._queues[slot]:
            self._lengths[slot], self._rewards[slot], self._successes[slot] = 0, 0.0, float("nan")
            episode = self._queues[slot].pop()
            options = {"task_id": episode.task} if episode.task else None
            try:
                observation, info = self._envs[slot].reset(seed=episode.seed, options=options)
            except NotFinite as error:
                self._end(slot, str(error))
                continue
            goal = info["goal"] if episode.task else ()
            self._rows[slot] = np.asarray(observation, np.float32), np.asarray(goal, np.float32)
            self._busy[slot] = True
            return
        self._busy[slot] = False

    def _view(self) -> Slots:
        # A worker started anew has nothing to show for slots that were through; what stands there is not used.
        rows: list[Any] = self._rows
        if None in rows:
            nothing = np.zeros(self._envs[0].observation_space.shape, np.float32), np.zeros(0, np.float32)
            anything = next((row for row in rows if row is not None), nothing)
            rows = [row or anything for row in rows]
        observations, goals = zip(*rows, strict=True)
        return Slots(np.stack(observations), np.stack(goals), self._finished)
