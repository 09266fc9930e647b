"""The compiled program of a training: many runs at once, side by side or one after another, on one device or many."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowrl.agent import Agent
from flowrl.data.dataset import Dataset
from flowrl.data.replay import Replay, of_run
from flowrl.machine.devices import ALL, ONE, RUNS, Layout
from flowrl.random_streams import stream_key
from flowrl.train_state import Policy, TrainState
from flowrl.training.step import Totals, empty_totals, run_chunk, train_step

States = TrainState[Any]
"""The states of R runs in one, with a leading axis R but for the counter."""


class Program(NamedTuple):
    """The functions of a training with R runs mapped; states and totals carry a leading axis R but for counters.

    R are the rows of a `Layout`, on whose devices all arrays lie.

    Attributes:
        start: `(keys [R], configs) -> (states, totals)` before the first update; jitted. The traced fields of the
            configurations are `[R]` (`flowrl.config.stacked`), and copied into the states.
        chunk: `(states, totals, keys, dataset, updates, replays=None) -> (states, totals)`; jitted, takes its first two
            over. All runs share the dataset; each has its own replay buffer.
        policies: `states -> policies`, jitted. What an agent is evaluated as, `agent.evaluations(states.config)`, are
            the policies of `states.replace(config=...)`.
    """

    start: Any
    chunk: Any
    policies: Callable[[States], Policy[Any]]


def _state_axes(states: States, mapped: Any = 0, shared: Any = None) -> States:
    """Returns `mapped` for each array of the states, and `shared` for their counter."""
    return jax.tree.map(lambda _: mapped, states).replace(step=shared)


def _totals_axes(totals: Totals, mapped: Any = 0, shared: Any = None) -> Totals:
    return jax.tree.map(lambda _: mapped, totals).replace(count=shared)


def policies_of(agent: Agent[Any], states: States) -> Policy[Any]:
    """Returns the policies of several runs, with a leading axis R."""
    policies: Policy[Any] = jax.vmap(agent.policy, in_axes=(_state_axes(states),))(states)
    return policies


def resolve_map(mode: str, runs: int) -> str:
    """Returns how runs are mapped: `auto` is `vmap` on accelerators and `serial` for one run or on a CPU.

    On a CPU one run's matrices already fill the cores, and batched products are slower than plain ones.
    """
    if mode != "auto":
        return mode
    return "serial" if runs == 1 or jax.default_backend() == "cpu" else "vmap"


RunChunk = Callable[..., tuple[States, Totals]]
"""`run_chunk` of a certain step."""


def vmapped(
    one: RunChunk,
    states: States,
    totals: Totals,
    keys: jax.Array,
    dataset: Dataset | None,
    updates: jax.Array,
    replays: Replay | None = None,
) -> tuple[States, Totals]:
    """Runs a chunk of all runs in one batched computation, where `one` runs that of one run."""
    axes = (_state_axes(states), _totals_axes(totals))
    mapped = jax.vmap(one, in_axes=(*axes, 0, None, None, 0), out_axes=axes)
    return mapped(states, totals, keys, dataset, updates, replays)


def serial(
    one: RunChunk,
    states: States,
    totals: Totals,
    keys: jax.Array,
    dataset: Dataset | None,
    updates: jax.Array,
    replays: Replay | None = None,
) -> tuple[States, Totals]:
    """Runs a chunk of all runs, one run after another, where `one` runs that of one run."""
    step, count = states.step, totals.count

    def run(args: tuple[States, Totals, jax.Array, jax.Array]) -> tuple[States, Totals]:
        state, own, key, index = args
        replay = None if replays is None else of_run(replays, index)
        state, own = one(state.replace(step=step), own.replace(count=count), key, dataset, updates, replay)
        return state.replace(step=None), own.replace(count=None)

    mapped = (states.replace(step=None), totals.replace(count=None), keys, jnp.arange(len(keys)))
    states, totals = jax.lax.map(run, mapped)
    return states.replace(step=step + updates), totals.replace(count=count + updates)


def build(
    agent: Agent[Any],
    batch_size: int,
    dataset: Dataset | None,
    mode: str,
    replay: Replay | None = None,
    offline_share: float | None = None,
    layout: Layout = ONE,
) -> Program:
    """Builds the program for `mode` `vmap` (all runs in one batched computation) or `serial` (one run after another).

    What was built before for the same agent, sizes and devices is returned again, and not compiled again.

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
    leaves, structure = jax.tree.flatten((dataset, replay))
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    return _built(agent, batch_size, mode, offline_share, layout, shapes, structure)


@lru_cache(maxsize=64)
def _built(
    agent: Agent[Any],
    batch_size: int,
    mode: str,
    offline_share: float | None,
    layout: Layout,
    shapes: tuple[jax.ShapeDtypeStruct, ...],
    structure: Any,
) -> Program:
    """Builds a program; `shapes` and `structure` are those of dataset and buffer."""
    step = partial(train_step, agent, batch_size, offline_share=offline_share, cut_batch=layout.cut_batch)
    chunk_of_all = partial(vmapped if mode == "vmap" else serial, partial(run_chunk, step))
    dataset, replay = jax.tree.unflatten(structure, shapes)
    whole = layout.replicated()

    def begin(keys: jax.Array, configs: Any) -> tuple[States, Totals]:
        states = jax.vmap(lambda key, config: agent.init(stream_key(key, "init"), config))(keys, configs)
        states = states.replace(step=jnp.zeros((), jnp.int32))
        single = jax.eval_shape(agent.init, jax.random.key(0), jax.tree.map(lambda x: x[0], configs))
        names = jax.eval_shape(step, single, jax.random.key(0), dataset, replay)[1]
        totals = jax.vmap(lambda _: empty_totals(names, single.params))(keys)
        return states, totals.replace(count=jnp.zeros((), jnp.int32))

    def start(keys: jax.Array, configs: Any) -> tuple[States, Totals]:
        specs = _specs(*jax.eval_shape(begin, keys, configs))
        return layout.spread(begin, (RUNS, RUNS), specs)(keys, configs)

    def chunk(
        states: States, totals: Totals, keys: jax.Array, dataset: Any, updates: jax.Array, replays: Any = None
    ) -> tuple[States, Totals]:
        specs = _specs(states, totals)
        mapped = layout.spread(chunk_of_all, (*specs, RUNS, ALL, ALL, RUNS), specs)
        return mapped(states, totals, keys, dataset, updates, replays)

    def policies(states: States) -> Policy[Any]:
        return layout.spread(partial(policies_of, agent), (_state_axes(states, RUNS, ALL),), RUNS)(states)

    return Program(
        jax.jit(start, out_shardings=whole),
        jax.jit(chunk, donate_argnums=(0, 1), out_shardings=whole),
        jax.jit(policies, out_shardings=whole),
    )


def _specs(states: States, totals: Totals) -> tuple[States, Totals]:
    """Returns which of their arrays are cut into shares for the devices."""
    return _state_axes(states, RUNS, ALL), _totals_axes(totals, RUNS, ALL)
