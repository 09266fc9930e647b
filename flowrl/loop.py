"""The training loop: one compiled program that samples, updates and averages metrics, for many runs at once."""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from flowrl.agent import Agent
from flowrl.data.dataset import Dataset, gather, sample_rows
from flowrl.data.goals import relabel
from flowrl.data.replay import Replay, mixed, of_run
from flowrl.devices import ALL, ONE, RUNS, Layout, local
from flowrl.streams import stream_key
from flowrl.train_state import Batch, Hyper, Metrics, Params, TrainState

MapMode = Literal["auto", "vmap", "serial"]
FIRST_CHUNK = 50
"""Updates in the first chunk, from which the end of the run is estimated."""


class Window(flax.struct.PyTreeNode):
    """Metrics gathered since the last log line; carried from chunk to chunk and saved with checkpoints.

    Attributes:
        sums: Sum of each metric, float32 `[]`.
        count: Updates summed, int32 `[]`; shared by all mapped runs.
        bad_step: For each metric, and `params/<network>`, the first update after which it was not finite, int32 `[]`;
            0 while there is none.
    """

    sums: Metrics
    count: jax.Array
    bad_step: dict[str, jax.Array]


def empty_window(metrics: Iterable[str], networks: Iterable[str] = ()) -> Window:
    """Returns a window with nothing in it, for metrics and networks of the given names."""
    return Window(
        sums={name: jnp.zeros((), jnp.float32) for name in metrics},
        count=jnp.zeros((), jnp.int32),
        bad_step={name: jnp.zeros((), jnp.int32) for name in (*metrics, *(f"params/{name}" for name in networks))},
    )


def finite(metrics: Metrics, params: Params) -> dict[str, jax.Array]:
    """Returns whether each metric is finite, and as `params/<network>` whether all parameters of a network are."""
    networks = {
        f"params/{name}": jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(network)]))
        for name, network in params.items()
    }
    return {name: jnp.isfinite(value) for name, value in metrics.items()} | networks


def sample_batch(agent: Agent, key: jax.Array, dataset: Dataset, state: TrainState, batch_size: int) -> Batch:
    """Draws transitions uniformly and relabels their goals as the agent needs them."""
    rows_key, goals_key = jax.random.split(key)
    rows = sample_rows(rows_key, dataset, (batch_size,))
    batch = gather(dataset, rows) | relabel(goals_key, dataset, rows, state.hyper, agent.needs)
    return {name: batch[name] for name in agent.needs.fields}


def train_step(
    agent: Agent,
    batch_size: int,
    state: TrainState,
    key: jax.Array,
    dataset: Dataset | None,
    replay: Replay | None = None,
    offline_share: float | None = None,
    cut_batch: Callable[[Batch], Batch] = lambda batch: batch,
) -> tuple[TrainState, Metrics]:
    """One update of one run, whose root key is `key`; all randomness follows from the key and `state.step`.

    Transitions come from the dataset, or where there is a replay buffer from both, as `flowrl.data.replay.mixed` says;
    `cut_batch` spreads them over devices.
    """
    data_key = stream_key(key, "data", state.step)
    if replay is None:
        assert dataset is not None
        batch = sample_batch(agent, data_key, dataset, state, batch_size)
    else:
        batch = mixed(data_key, replay, dataset, batch_size, agent.needs.fields, offline_share)
    return agent.update(state, cut_batch(batch), stream_key(key, "update", state.step))


def run_chunk(
    step: Callable[..., tuple[TrainState, Metrics]],
    state: TrainState,
    window: Window,
    key: jax.Array,
    dataset: Dataset | None,
    updates: jax.Array,
    replay: Replay | None,
) -> tuple[TrainState, Window]:
    """Runs `updates` updates of one run, each by `step(state, key, dataset, replay)`.

    The count is traced, so that chunks of any length share one program; metrics are summed in the carry, in an order
    that does not depend on where chunks begin and end. A run that diverges is frozen in the state before that update,
    but for the step counter, which mapped runs share.
    """

    def body(_: jax.Array, carry: tuple[TrainState, Window]) -> tuple[TrainState, Window]:
        before, window = carry
        after, metrics = step(before, key, dataset, replay)
        bad_step = {
            name: jnp.where((window.bad_step[name] == 0) & ~good, after.step, window.bad_step[name])
            for name, good in finite(metrics, after.params).items()
        }
        going = jnp.all(jnp.stack([*bad_step.values()]) == 0)
        kept = jax.tree.map(partial(jnp.where, going), after.replace(step=None), before.replace(step=None))
        sums = {name: window.sums[name] + value for name, value in metrics.items()}
        return kept.replace(step=after.step), Window(sums, window.count + 1, bad_step)

    return jax.lax.fori_loop(0, updates, body, (state, window))


class Program(NamedTuple):
    """The functions of a training with R runs mapped; states and windows carry a leading axis R but for counters.

    R are the rows of a `Layout`, on whose devices all arrays lie.

    Attributes:
        start: `(keys [R], hyper=None) -> (states, window)` before the first update; `hyper` holds values of sweepable
            fields `[R]` to use instead of the agent's own.
        chunk: `(states, window, keys, dataset, updates, replays=None) -> (states, window)`; jitted, takes its first two
            over. All runs share the dataset; each has its own replay buffer.
        policies: `states -> policies`, jitted.
    """

    start: Callable[..., tuple[TrainState, Window]]
    chunk: Any
    policies: Callable[[TrainState], Any]


def _state_axes(states: TrainState, mapped: Any = 0, shared: Any = None) -> TrainState:
    """Returns `mapped` for each array of the states, and `shared` for their counter."""
    return jax.tree.map(lambda _: mapped, states).replace(step=shared)


def _window_axes(window: Window, mapped: Any = 0, shared: Any = None) -> Window:
    return jax.tree.map(lambda _: mapped, window).replace(count=shared)


def resolve_map(mode: MapMode, runs: int) -> Literal["vmap", "serial"]:
    """Returns how runs are mapped: `auto` is `vmap` on accelerators and `serial` for one run or on a CPU.

    On a CPU one run's matrices already fill the cores, and batched products are slower than plain ones.
    """
    if mode != "auto":
        return mode
    return "serial" if runs == 1 or jax.default_backend() == "cpu" else "vmap"


RunChunk = Callable[..., tuple[TrainState, Window]]
"""`run_chunk` of a certain step."""


def vmapped(
    one: RunChunk,
    states: TrainState,
    window: Window,
    keys: jax.Array,
    dataset: Dataset | None,
    updates: jax.Array,
    replays: Replay | None = None,
) -> tuple[TrainState, Window]:
    """Runs a chunk of all runs in one batched computation, where `one` runs that of one run."""
    axes = (_state_axes(states), _window_axes(window))
    mapped = jax.vmap(one, in_axes=(*axes, 0, None, None, 0), out_axes=axes)
    return mapped(states, window, keys, dataset, updates, replays)


def serial(
    one: RunChunk,
    states: TrainState,
    window: Window,
    keys: jax.Array,
    dataset: Dataset | None,
    updates: jax.Array,
    replays: Replay | None = None,
) -> tuple[TrainState, Window]:
    """Runs a chunk of all runs, one run after another, where `one` runs that of one run."""
    step, count = states.step, window.count

    def run(args: tuple[TrainState, Window, jax.Array, jax.Array]) -> tuple[TrainState, Window]:
        state, own, key, index = args
        replay = None if replays is None else of_run(replays, index)
        state, own = one(state.replace(step=step), own.replace(count=count), key, dataset, updates, replay)
        return state.replace(step=None), own.replace(count=None)

    mapped = (states.replace(step=None), window.replace(count=None), keys, jnp.arange(len(keys)))
    states, window = jax.lax.map(run, mapped)
    return states.replace(step=step + updates), window.replace(count=count + updates)


def build(
    agent: Agent,
    batch_size: int,
    dataset: Dataset | None,
    mode: Literal["vmap", "serial"],
    replay: Replay | None = None,
    offline_share: float | None = None,
    layout: Layout = ONE,
) -> Program:
    """Builds the program for `mode` `vmap` (all runs in one batched computation) or `serial` (one run after another).

    Args:
        agent: The algorithm.
        batch_size: Transitions per update B.
        dataset: The data, whose shapes give the names of the metrics; None without offline data.
        mode: How runs are mapped. A serial run equals the same run alone bit for bit; with `vmap` keys, batches and
            noise are equal and floats agree up to rounding.
        replay: One run's replay buffer, or its shapes, where `chunk` will be given some.
        offline_share: Share of each batch from the dataset where there is a buffer too; None is in proportion to size.
        layout: The devices that the runs, or their batches, are spread over.
    """
    if mode not in ("vmap", "serial"):
        raise ValueError(f"mode {mode!r} is neither vmap nor serial")
    step = partial(train_step, agent, batch_size, offline_share=offline_share, cut_batch=layout.cut_batch)
    chunk_of_all = partial(vmapped if mode == "vmap" else serial, partial(run_chunk, step))
    whole = layout.replicated()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dataset)

    def begin(keys: jax.Array, hyper: Hyper | None) -> tuple[TrainState, Window]:
        states = jax.vmap(lambda key, own: agent.init(stream_key(key, "init"), own))(keys, hyper)
        states = states.replace(step=jnp.zeros((), jnp.int32))
        single = jax.eval_shape(lambda: agent.init(jax.random.key(0)))
        names = jax.eval_shape(step, single, jax.random.key(0), shapes, replay)[1]
        windows = jax.vmap(lambda _: empty_window(names, single.params))(keys)
        return states, windows.replace(count=jnp.zeros((), jnp.int32))

    def start(keys: jax.Array, hyper: Hyper | None = None) -> tuple[TrainState, Window]:
        specs = specs_of(*jax.eval_shape(begin, keys, hyper))
        return layout.spread(begin, (RUNS, RUNS), specs)(keys, hyper)

    def chunk(
        states: TrainState, window: Window, keys: jax.Array, dataset: Any, updates: jax.Array, replays: Any = None
    ) -> tuple[TrainState, Window]:
        specs = specs_of(states, window)
        mapped = layout.spread(chunk_of_all, (*specs, RUNS, ALL, ALL, RUNS), specs)
        return mapped(states, window, keys, dataset, updates, replays)

    def policies(states: TrainState) -> Any:
        mapped = jax.vmap(agent.policy, in_axes=(_state_axes(states),))
        return layout.spread(mapped, (_state_axes(states, RUNS, ALL),), RUNS)(states)

    return Program(
        jax.jit(start, out_shardings=whole),
        jax.jit(chunk, donate_argnums=(0, 1), out_shardings=whole),
        jax.jit(policies, out_shardings=whole),
    )


def specs_of(states: TrainState, window: Window) -> tuple[TrainState, Window]:
    """Returns which of their arrays are cut into shares for the devices."""
    return _state_axes(states, RUNS, ALL), _window_axes(window, RUNS, ALL)


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
    evaluate: Callable[[int, TrainState], bool]
    checkpoint: Callable[[int, TrainState, Window, bool], None]
    progress: Callable[[int, int, float], None]
    stopping: Callable[[], bool]
    diverged: Callable[[dict[int, Divergence]], None] = end
    pace: Callable[[float], float] = lambda seconds: seconds


class Stopped(Exception):
    """The run was asked to stop, and has saved where it was."""


Advance = Callable[[TrainState, Window, int], tuple[TrainState, Window]]
"""`(states, window, steps) -> (states, window)`, which takes its first two over."""


def train(
    advance: Advance,
    schedule: Schedule,
    hooks: Hooks,
    states: TrainState,
    window: Window,
    *,
    step: int,
    unit: int = 1,
    evaluated: bool = True,
    chunk_seconds: float = 1.0,
) -> tuple[TrainState, Window]:
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
