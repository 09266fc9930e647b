"""Worker processes that each step a share of many seeded environments side by side."""

import contextlib
import multiprocessing
import signal
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from flowrl.errors import UserError
from flowrl.provenance import usable_cores

MOST_RESTARTS = 3
"""How often one worker is started anew in an evaluation; what kills it more often will kill it again."""

EnvFactory = Callable[[], Any]
"""Picklable function without arguments that makes one `flowrl.envs.SeededEpisodes`."""


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
        success: Whether its goal was reached; NaN where the environment does not say.
        total_reward: Sum of its rewards, undiscounted.
        length: In environment steps.
    """

    slot: int
    success: float
    total_reward: float
    length: int


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
        self._make_env, self._context = make_env, multiprocessing.get_context("spawn")
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
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._make_env, len(share)), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def start(self, queues: Sequence[Sequence[Episode]], on_death: Callable[[], None] = lambda: None) -> Slots:
        """Starts the first episode of each slot's queue; a slot goes on to its next one by itself.

        Args:
            queues: The episodes of each slot, at least one.
            on_death: Called from here and from `step` before workers that have died are started anew; may raise to
                break off.

        Raises:
            WorkerDied: A worker ended by itself, or was killed more than `MOST_RESTARTS` times.
        """
        self._left = [list(queue) for queue in queues]  # of each slot, the episode under way first
        self._deaths, self._on_death = [0] * len(self._shares), on_death
        return self._exchange({worker: self._beginning(worker) for worker in range(len(self._shares))})

    def step(self, actions: np.ndarray) -> Slots:
        """Steps every slot that still has an episode with its row of `actions` `[S, A]`.

        Raises:
            WorkerDied: As for `start`.
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
            if isinstance(reply, str):
                raise RuntimeError(f"an environment worker failed:\n{reply}")
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


def without_interrupts(make_env: EnvFactory) -> Any:
    """Makes an environment; in a process of its own, signals to stop are the parent's to handle."""
    if multiprocessing.parent_process() is not None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    return make_env()


def _work(connection: Connection, make_env: EnvFactory, slots: int) -> None:
    """A worker's life: until its connection closes, answers each command with `Slots` or a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    warnings.simplefilter("ignore")
    try:
        share = _Share(make_env, slots)
        while (message := _receive(connection)) is not None:
            command, argument = message
            reply = share.start(argument) if command == "start" else share.step(argument)
            with contextlib.suppress(OSError):
                connection.send(reply)
    except Exception:
        with contextlib.suppress(OSError):
            connection.send(traceback.format_exc())


def _receive(connection: Connection) -> tuple[str, Any] | None:
    """Returns the next command, or None when the parent has gone."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


class _Share:
    """One worker's environments."""

    def __init__(self, make_env: EnvFactory, slots: int):
        self._envs = [make_env() for _ in range(slots)]
        self._queues: list[list[Episode]] = [[] for _ in range(slots)]
        self._lengths = [0] * slots
        self._rewards = [0.0] * slots
        self._busy = [False] * slots
        self._rows: list[tuple[np.ndarray, np.ndarray] | None] = [None] * slots

    def start(self, queues: list[list[Episode]]) -> Slots:
        self._queues = [queue[::-1] for queue in queues]
        for slot in range(len(self._envs)):
            self._next_episode(slot)
        return self._view([])

    def step(self, actions: np.ndarray) -> Slots:
        finished = []
        for slot, env in enumerate(self._envs):
            if not self._busy[slot]:
                continue
            observation, reward, terminated, truncated, info = env.step(actions[slot])
            self._lengths[slot] += 1
            self._rewards[slot] += float(reward)
            if terminated or truncated:
                success = float(info.get("success", np.nan))
                finished.append(Finished(slot, success, self._rewards[slot], self._lengths[slot]))
                self._next_episode(slot)
            else:
                _, goal = self._rows[slot]  # type: ignore[misc]
                self._rows[slot] = np.asarray(observation, np.float32), goal
        return self._view(finished)

    def _next_episode(self, slot: int) -> None:
        self._busy[slot] = bool(self._queues[slot])
        self._lengths[slot], self._rewards[slot] = 0, 0.0
        if self._busy[slot]:
            episode = self._queues[slot].pop()
            options = {"task_id": episode.task} if episode.task else None
            observation, info = self._envs[slot].reset(seed=episode.seed, options=options)
            goal = info["goal"] if episode.task else ()
            self._rows[slot] = np.asarray(observation, np.float32), np.asarray(goal, np.float32)

    def _view(self, finished: list[Finished]) -> Slots:
        # A worker started anew has nothing to show for slots that were through; what stands there is not used.
        anything = next(row for row in self._rows if row is not None)
        observations, goals = zip(*[row or anything for row in self._rows], strict=True)
        return Slots(np.stack(observations), np.stack(goals), finished)
