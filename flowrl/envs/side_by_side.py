"""Environments that all move at a time, in this process or each in its own, for acting and learning at once.

Processes import this module, so nothing here needs JAX.
"""

import contextlib
import functools
import signal
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowrl.envs.episodes import NotFinite
from flowrl.envs.workers import EnvFactory, WorkerDied, begin


class SideBySide:
    """Environments that all move at a time, and begin episodes when they are told.

    What they show stands in rows, one per environment.
    """

    def __init__(self, make_env: EnvFactory, count: int):
        """Makes `count` environments."""
        self._envs = [make_env() for _ in range(count)]
        self._rows: list[np.ndarray] = [np.zeros(0, np.float32)] * count

    def reset(self, seeds: Sequence[int | None]) -> np.ndarray:
        """Begins the episode of a seed in each environment that has one; returns all observations, float32 `[N, D]`."""
        for i, seed in enumerate(seeds):
            if seed is not None:
                try:
                    self._rows[i] = np.asarray(self._envs[i].reset(seed=seed)[0], np.float32)
                except NotFinite as error:
                    error.slot = i
                    raise
        return np.stack(self._rows)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Plays actions `[N, A]`; returns observations float32 `[N, D]`, and rewards, terminations and truncations."""
        told = []
        for i, env in enumerate(self._envs):
            try:
                observation, *others, _ = env.step(actions[i])
            except NotFinite as error:
                error.slot = i
                raise
            self._rows[i] = np.asarray(observation, np.float32)
            told.append(others)
        rewards, terminated, truncated = zip(*told, strict=True)
        return np.stack(self._rows), np.array(rewards, float), np.array(terminated, bool), np.array(truncated, bool)

    def close(self) -> None:
        """Ends the environments."""
        for env in self._envs:
            with contextlib.suppress(Exception):
                env.close()


class Alone(SideBySide):
    """The one environment of a process, which tells a step in bytes; arrays take longer to send."""

    def __init__(self, make_env: EnvFactory):
        """Makes it."""
        super().__init__(make_env, 1)

    def step(self, action: bytes) -> bytes:  # type: ignore[override]
        """Plays an action float32 `[A]`; returns observation, reward, termination and truncation, float64 `[D + 3]`."""
        observation, *others, _ = self._envs[0].step(np.frombuffer(action, np.float32))
        self._rows[0] = np.asarray(observation, np.float32)
        return np.concatenate((observation, others)).tobytes()


class Apart:
    """Environments each in a process of its own; otherwise as `SideBySide`."""

    def __init__(self, make_env: EnvFactory, count: int):
        """Starts the processes."""
        build, ignored = functools.partial(Alone, make_env), (signal.SIGINT, signal.SIGTERM)
        self._started: list[tuple[Any, Any]] = []
        try:
            for _ in range(count):
                self._started.append(begin(build, ignored))
        except BaseException:
            self.close()
            raise

    def reset(self, seeds: list[int | None]) -> np.ndarray:
        """Begins the episode of a seed in each environment that has one; returns all observations, float32 `[N, D]`."""
        return np.concatenate(self._asked("reset", [[seed] for seed in seeds]))

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Plays actions `[N, A]`; returns observations float32 `[N, D]`, and rewards, terminations and truncations."""
        given = [row.tobytes() for row in np.asarray(actions, np.float32)]
        told = np.frombuffer(b"".join(self._asked("step", given)), np.float64).reshape(len(given), -1)
        return told[:, :-3].astype(np.float32), told[:, -3], told[:, -2].astype(bool), told[:, -1].astype(bool)

    def _asked(self, method: str, arguments: Any) -> list[Any]:
        for (_, connection), argument in zip(self._started, arguments, strict=True):
            with contextlib.suppress(OSError):  # one that has failed says why in what it sent last
                connection.send((method, argument))
        try:
            replies = [connection.recv() for _, connection in self._started]
        except (EOFError, OSError) as error:
            raise WorkerDied(
                "the process of a training environment died: it was killed, or memory ran out; continue with --resume"
            ) from error
        for i, reply in enumerate(replies):
            if isinstance(reply, NotFinite):
                reply.slot = i
            if isinstance(reply, Exception):
                raise reply
        return replies

    def close(self) -> None:
        """Ends the processes."""
        for process, connection in self._started:
            connection.close()
            process.kill()
        for process, _ in self._started:
            process.join()
