"""The training loop: chunks of steps, and what happens between them: logs, evaluations, checkpoints."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowrl.machine.devices import local
from flowrl.train_state import TrainState
from flowrl.training.step import Window

FIRST_CHUNK = 50
"""Updates in the first chunk, from which the end of the run is estimated."""
States = TrainState[Any]
"""The states of R runs in one, with a leading axis R but for the counter."""


def clear(window: Window) -> Window:
    """Returns a window with its sums back at zero, on the same devices."""

    def zero(array: jax.Array) -> jax.Array:
        return jnp.zeros(array.shape, array.dtype, device=array.sharding)

    return window.replace(sums=jax.tree.map(zero, window.sums), count=zero(window.count))


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


def divergences(window: Window) -> dict[int, Divergence]:
    """Returns for each run of this host that diverged where it did; runs are counted by their rows here."""
    events = [
        Divergence(int(step), metric, run)
        for metric, steps in local(window.bad_step).items()
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

    def due(self, what: str, step: int) -> bool:
        """Whether `what` (`log`, `eval` or `checkpoint`) happens after `step`."""
        return step > 0 and (step % getattr(self, f"{what}_interval") == 0 or step == self.steps)

    def next_stop(self, step: int) -> int:
        """Returns the first step after `step` at which something happens."""
        intervals = (self.log_interval, self.eval_interval, self.checkpoint_interval)
        return min(self.steps, *((step // interval + 1) * interval for interval in intervals))


class Hooks(NamedTuple):
    """What a training run does beside training; all are called on the host, between chunks.

    Attributes:
        log: `(step, metrics)` with the window's means, float32 `[R]` each; none where no update was done.
        evaluate: `(step, states) -> bool`; false if it was broken off because the run is to stop.
        checkpoint: `(step, states, window, evaluated)`; `evaluated` is false if the evaluation due at this step is
            still to come.
        progress: `(step, steps, seconds)` after each chunk.
        stopping: Whether to save and stop.
        pace: Returns the seconds that a chunk took on all hosts, whose chunks have equal lengths.
        diverged: Takes the runs that have diverged so far, at the beginning and after each chunk; may raise to end the
            training, so that nothing of it is saved.
    """

    log: Callable[[int, dict[str, np.ndarray]], None]
    evaluate: Callable[[int, States], bool]
    checkpoint: Callable[[int, States, Window, bool], None]
    progress: Callable[[int, int, float], None]
    stopping: Callable[[], bool]
    diverged: Callable[[dict[int, Divergence]], None] = end
    pace: Callable[[float], float] = lambda seconds: seconds


class Stopped(Exception):
    """The run was asked to stop, and has saved where it was."""


Advance = Callable[[States, Window, int], tuple[States, Window]]
"""`(states, window, steps) -> (states, window)`, which takes its first two over."""


def train(
    advance: Advance,
    schedule: Schedule,
    hooks: Hooks,
    states: States,
    window: Window,
    *,
    step: int,
    unit: int = 1,
    evaluated: bool = True,
    chunk_seconds: float = 1.0,
) -> tuple[States, Window]:
    """Trains until `schedule.steps`, in chunks of about `chunk_seconds`.

    Chunk lengths, log and evaluation intervals do not change what is learnt.

    Args:
        advance: Trains for a number of steps.
        schedule: When what happens.
        hooks: What to call.
        states: The states to go on from, already saved.
        window: The window to go on from.
        step: The step to go on from.
        unit: Chunks are multiples of this, and so must the schedule's numbers be.
        evaluated: False to begin with the evaluation due at the current step.
        chunk_seconds: How soon the host sees what is going on.

    Returns:
        The final states and window.

    Raises:
        Diverged: A metric or parameter is not finite, and `hooks.diverged` ends the training by that.
        Stopped: `hooks.stopping` said so; a checkpoint was saved.
    """
    length = -(-FIRST_CHUNK // unit) * unit
    saved = (step, evaluated)  # the caller has saved where it begins
    hooks.diverged(divergences(window))
    while True:
        if not evaluated:
            evaluated = hooks.evaluate(step, states)
            if evaluated and schedule.due("checkpoint", step):
                hooks.checkpoint(step, states, window, True)
                saved = (step, True)
        if step >= schedule.steps and evaluated:
            return states, window
        if hooks.stopping():
            if saved != (step, evaluated):
                hooks.checkpoint(step, states, window, evaluated)
            raise Stopped
        steps = min(length, schedule.next_stop(step) - step)
        began = time.perf_counter()
        states, window = advance(states, window, steps)
        hooks.diverged(divergences(window))
        seconds = hooks.pace(time.perf_counter() - began)
        step += steps
        hooks.progress(step, steps, seconds)
        if steps == length or seconds > chunk_seconds:
            length = max(unit, min(2 * length, round(steps * chunk_seconds / seconds)) // unit * unit)
        if schedule.due("log", step):
            hooks.log(step, means(window))
            if step % schedule.log_interval == 0:
                window = clear(window)
        if schedule.due("eval", step):
            evaluated = False
        elif schedule.due("checkpoint", step):
            hooks.checkpoint(step, states, window, True)
            saved = (step, True)


def means(window: Window) -> dict[str, np.ndarray]:
    """Returns the mean of each metric over the window's updates, float32 `[R]`, of this host's rows.

    It is empty where there were no updates.
    """
    count = int(local(window.count))
    return {name: total / np.float32(count) for name, total in local(window.sums).items()} if count else {}
