"""The training loop: chunks of steps, and what happens between them: logs, evaluations, checkpoints."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowrl.machine.devices import local
from flowrl.train_state import TrainState
from flowrl.training.step import Totals

FIRST_CHUNK = 50
"""Updates in the first chunk, from which the end of the run is estimated."""
States = TrainState[Any]
"""The states of R runs in one, with a leading axis R but for the counter."""


def clear(totals: Totals) -> Totals:
    """Returns a totals with its sums back at zero, on the same devices."""

    def zero(array: jax.Array) -> jax.Array:
        return jnp.zeros(array.shape, array.dtype, device=array.sharding)

    return totals.replace(sums=jax.tree.map(zero, totals.sums), count=zero(totals.count))


class Divergence(NamedTuple):
    """The first that was not finite in a run.

    Attributes:
        step: Updates after which it was seen; the run's state is that of one update before.
        metric: Name of the metric, or `params/<network>`.
        run: Index of the run.
    """

    step: int
    metric: str
    run: int


class Diverged(Exception):
    """A metric or a parameter is not finite, and the training is to end by that.

    Attributes:
        divergence: What and when.
    """

    def __init__(self, divergence: Divergence):
        super().__init__(f"{divergence.metric} of run {divergence.run} is not finite after update {divergence.step}")
        self.divergence = divergence


def divergences(totals: Totals) -> dict[int, Divergence]:
    """Returns for each run of this host that diverged where it did; runs are counted by their rows here."""
    events = [
        Divergence(int(step), metric, run)
        for metric, steps in local(totals.bad_step).items()
        for run, step in enumerate(np.atleast_1d(steps))
        if step > 0
    ]
    return {event.run: event for event in sorted(events, reverse=True)}  # the earliest stays


def end(found: dict[int, Divergence]) -> None:
    """Ends the training by the latest divergence.

    Raises:
        Diverged: There is one.
    """
    if found:
        raise Diverged(max(found.values()))


class Schedule(NamedTuple):
    """When what happens, in steps; each also happens after the last one.

    A step is an update, or online an environment step.
    """

    steps: int
    log_interval: int
    eval_interval: int
    checkpoint_interval: int

    def due(self, interval: int, step: int) -> bool:
        """Whether what happens every `interval` steps happens after `step`."""
        return step > 0 and (step % interval == 0 or step == self.steps)

    def next_stop(self, step: int, *intervals: int) -> int:
        """Returns the first step after `step` at which what happens at some intervals does, at any if none is given."""
        intervals = intervals or (self.log_interval, self.eval_interval, self.checkpoint_interval)
        return min(self.steps, *((step // interval + 1) * interval for interval in intervals))


class Hooks(NamedTuple):
    """What a training run does beside training; all are called on the host, between chunks.

    Attributes:
        log: `(step, metrics)` with the totals's means, float32 `[R]` each; none where no update was done.
        evaluate: `(step, states) -> bool`; false if it was broken off because the run is to stop.
        checkpoint: `(step, states, totals, evaluated)`; `evaluated` is false if the evaluation due at this step is
            still to come.
        progress: `(step, steps, seconds)` after each chunk.
        stopping: Whether to save and stop.
        pace: Returns the seconds that a chunk took on all hosts, whose chunks have equal lengths.
        diverged: Takes the runs that have diverged so far, at the beginning and after each chunk; may raise to end the
            training, so that nothing of it is saved.
    """

    log: Callable[[int, dict[str, np.ndarray]], None]
    evaluate: Callable[[int, States], bool]
    checkpoint: Callable[[int, States, Totals, bool], None]
    progress: Callable[[int, int, float], None]
    stopping: Callable[[], bool]
    diverged: Callable[[dict[int, Divergence]], None] = end
    pace: Callable[[float], float] = lambda seconds: seconds


class Stopped(Exception):
    """The run was asked to stop, and has saved where it was."""


Advance = Callable[[States, Totals, int], tuple[States, Totals]]
"""`(states, totals, steps) -> (states, totals)`, which takes its first two over."""


class _Training:
    """A training under way: its states, and what is still to be done at its step."""

    def __init__(
        self, schedule: Schedule, hooks: Hooks, states: States, totals: Totals, step: int, evaluated: bool
    ) -> None:
        self.states, self.totals, self.step = states, totals, step
        self._schedule, self._hooks, self._evaluated = schedule, hooks, evaluated
        self._saved = (step, evaluated)  # the caller has saved where it begins
        hooks.diverged(divergences(totals))

    def over(self) -> bool:
        """Evaluates and saves where that is due, and returns whether that was the end."""
        if not self._evaluated:
            self._evaluated = self._hooks.evaluate(self.step, self.states)
        if self._evaluated and self._schedule.due(self._schedule.checkpoint_interval, self.step):
            self.save()
        return self._evaluated and self.step >= self._schedule.steps

    def save(self) -> None:
        """Saves what is not saved yet."""
        if self._saved != (self.step, self._evaluated):
            self._hooks.checkpoint(self.step, self.states, self.totals, self._evaluated)
            self._saved = (self.step, self._evaluated)

    def go_on(self, advance: Advance, steps: int) -> float:
        """Trains for some steps, logs where that is due, and returns the seconds that the steps took."""
        began = time.perf_counter()
        self.states, self.totals = advance(self.states, self.totals, steps)
        self._hooks.diverged(divergences(self.totals))
        seconds = self._hooks.pace(time.perf_counter() - began)
        self.step += steps
        self._hooks.progress(self.step, steps, seconds)
        if self._schedule.due(self._schedule.log_interval, self.step):
            self._hooks.log(self.step, means(self.totals))
            if self.step % self._schedule.log_interval == 0:
                self.totals = clear(self.totals)
        if self._schedule.due(self._schedule.eval_interval, self.step):
            self._evaluated = False
        return seconds


def train(
    advance: Advance,
    schedule: Schedule,
    hooks: Hooks,
    states: States,
    totals: Totals,
    *,
    step: int,
    unit: int = 1,
    evaluated: bool = True,
    chunk_seconds: float = 1.0,
) -> tuple[States, Totals]:
    """Trains until `schedule.steps`, in chunks of about `chunk_seconds`, and returns the final states and totals.

    Chunk lengths, log and evaluation intervals do not change what is learnt.

    Args:
        advance: Trains for a number of steps.
        schedule: When what happens.
        hooks: What to call.
        states: The states to go on from, already saved.
        totals: The totals to go on from.
        step: The step to go on from.
        unit: Chunks are multiples of this, and so must the schedule's numbers be.
        evaluated: False to begin with the evaluation due at the current step.
        chunk_seconds: How soon the host sees what is going on.

    Raises:
        Diverged: A metric or parameter is not finite, and `hooks.diverged` ends the training by that.
        Stopped: `hooks.stopping` said so; a checkpoint was saved.
    """
    training = _Training(schedule, hooks, states, totals, step, evaluated)
    length = -(-FIRST_CHUNK // unit) * unit
    while not training.over():
        if hooks.stopping():
            training.save()
            raise Stopped
        steps = min(length, schedule.next_stop(training.step) - training.step)
        seconds = training.go_on(advance, steps)
        if steps == length or seconds > chunk_seconds:
            length = max(unit, min(2 * length, round(steps * chunk_seconds / seconds)) // unit * unit)
    return training.states, training.totals


def means(totals: Totals) -> dict[str, np.ndarray]:
    """Returns the mean of each metric over the totals's updates, float32 `[R]`, of this host's rows.

    It is empty where there were no updates.
    """
    count = int(local(totals.count))
    return {name: total / np.float32(count) for name, total in local(totals.sums).items()} if count else {}
