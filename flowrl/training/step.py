"""One update of one run, and a chunk of them in one program, whose metrics are summed on the way."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from flowrl.agent import Agent
from flowrl.data.dataset import Dataset
from flowrl.data.replay import Replay, mixed
from flowrl.data.samplers import Transitions
from flowrl.random_streams import stream_key
from flowrl.train_state import Batch, Metrics, Params, TrainState


class Totals(flax.struct.PyTreeNode):
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


def empty_totals(metrics: Iterable[str], networks: Iterable[str] = ()) -> Totals:
    """Returns a totals with nothing in it, for metrics and networks of the given names."""
    return Totals(
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


def train_step(
    agent: Agent[Any],
    batch_size: int,
    state: TrainState[Any],
    key: jax.Array,
    dataset: Dataset | None,
    replay: Replay | None = None,
    offline_share: float | None = None,
    cut_batch: Callable[[Batch], Batch] = lambda batch: batch,
) -> tuple[TrainState[Any], Metrics]:
    """One update of one run, whose root key is `key`; all randomness follows from the key and `state.step`.

    Batches come from the dataset, or where there is a replay buffer from both, as `flowrl.data.replay.mixed` says;
    `cut_batch` spreads them over devices.
    """
    data_key, kind = stream_key(key, "data", state.step), agent.batch(state.config)
    if replay is None:
        batch = kind.sample(data_key, dataset, batch_size)
    else:
        assert isinstance(kind, Transitions), "a replay buffer holds transitions"
        batch = mixed(data_key, replay, dataset, batch_size, offline_share, kind)
    return agent.update(state, cut_batch(batch), stream_key(key, "update", state.step))


def run_chunk(
    step: Callable[..., tuple[TrainState[Any], Metrics]],
    state: TrainState[Any],
    totals: Totals,
    key: jax.Array,
    dataset: Dataset | None,
    updates: jax.Array,
    replay: Replay | None,
) -> tuple[TrainState[Any], Totals]:
    """Runs `updates` updates of one run, each by `step(state, key, dataset, replay)`.

    The count is traced, so that chunks of any length share one program; metrics are summed in the carry, in an order
    that does not depend on where chunks begin and end. A run that diverges is frozen in the state before that update,
    but for the step counter, which mapped runs share.
    """

    def body(_: jax.Array, carry: tuple[TrainState[Any], Totals]) -> tuple[TrainState[Any], Totals]:
        before, totals = carry
        after, metrics = step(before, key, dataset, replay)
        bad_step = {
            name: jnp.where((totals.bad_step[name] == 0) & ~good, after.step, totals.bad_step[name])
            for name, good in finite(metrics, after.params).items()
        }
        going = jnp.all(jnp.stack([*bad_step.values()]) == 0)
        kept = jax.tree.map(partial(jnp.where, going), after.replace(step=None), before.replace(step=None))
        sums = {name: totals.sums[name] + value for name, value in metrics.items()}
        return kept.replace(step=after.step), Totals(sums, totals.count + 1, bad_step)

    return jax.lax.fori_loop(0, updates, body, (state, totals))
