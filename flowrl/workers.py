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

from flowrl.errors import UserError
from flowrl.provenance import usable_cores

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
    """

    observations: np.ndarray
    goals: np.ndarray
    finished: list[Finished]


class WorkerDied(UserError):
    """A worker process ended without a word."""


class EnvPool:
    """Environments in slots, spread evenly over worker processes that live until `close`."""

    def __init__(self, make_env: EnvFactory, slots: int, workers: int | None = None):
        """Starts the workers.

        Args:
            make_env: Makes one environment, inside a worker.
            slots: Number of environments S.
            workers: Number of processes; by default one for each usable core.
        """
        workers = min(workers or usable_cores(), slots)
        context = multiprocessing.get_context("spawn")
        self._shares = [share.tolist() for share in np.array_split(np.arange(slots), workers)]
        self._connections: list[Connection] = []
        self._processes = []
        for share in self._shares:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, make_env, len(share)), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def start(self, queues: Sequence[Sequence[Episode]]) -> Slots:
        """Starts the first episode of each slot's queue; a slot goes on to its next one by itself."""
        return self._exchange("start", [[list(queues[slot]) for slot in share] for share in self._shares])

    def step(self, actions: np.ndarray) -> Slots:
        """Steps every slot that still has an episode with its row of `actions` `[S, A]`."""
        return self._exchange("step", [actions[share] for share in self._shares])

    def _exchange(self, command: str, arguments: list[Any]) -> Slots:
        for connection, argument in zip(self._connections, arguments, strict=True):
            with contextlib.suppress(OSError):  # a worker that has failed says why in what it sent last
                connection.send((command, argument))
        try:
            replies = [connection.recv() for connection in self._connections]
        except (EOFError, OSError) as error:
            raise WorkerDied(
                "an environment worker died: it was killed, or memory ran out; try fewer --workers, and continue with "
                "--resume"
            ) from error
        for reply in replies:
            if isinstance(reply, str):
                raise RuntimeError(f"an environment worker failed:\n{reply}")
        finished = [
            event._replace(slot=share[event.slot])
            for share, reply in zip(self._shares, replies, strict=True)
            for event in reply.finished
        ]
        return Slots(
            np.concatenate([reply.observations for reply in replies]),
            np.concatenate([reply.goals for reply in replies]),
            finished,
        )

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
        observations, goals = zip(*[row for row in self._rows if row is not None], strict=True)
        return Slots(np.stack(observations), np.stack(goals), finished)
