"""A replay buffer on the device, as a pytree that pure functions change, and batches from it and from offline data."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from flowrl.agent import Needs, Spec
from flowrl.data.dataset import Dataset, gather, sample_rows
from flowrl.train_state import Batch

FIELDS = ("observations", "actions", "rewards", "masks", "next_observations")
"""What a buffer holds; the mask is 0 after a true termination, and 1 where only a limit of time ended the episode."""
RETURNS = {"returns": -jnp.inf, "horizons": 0.0}
"""What it holds besides for agents that read returns, and the values while an episode is under way: its return may be
anything, so that no bound follows from it."""


def stored(needs: Needs) -> tuple[str, ...]:
    """Returns the names of the fields that a buffer holds for an agent with these needs."""
    return FIELDS if needs.returns_discount is None else (*FIELDS, *RETURNS)


class Replay(flax.struct.PyTreeNode):
    """The last transitions of one run, C at most, in a ring.

    Attributes:
        fields: Arrays `[C, ...]` under the names that `stored` gives.
        position: Where the next transition goes, int32 `[]`.
        size: Transitions stored, int32 `[]`.
        offset: Row of the run's first transition where the arrays hold those of several runs (`of_run`), int32 `[]`.
    """

    fields: Mapping[str, jax.Array]
    position: jax.Array
    size: jax.Array
    offset: jax.Array


def empty(spec: Spec, capacity: int, names: tuple[str, ...] = FIELDS) -> Replay:
    """Returns a buffer without transitions.

    Args:
        spec: Sizes of observations and actions.
        capacity: The most transitions C that it keeps.
        names: Its fields.
    """
    shapes = {
        "observations": (capacity, spec.observation_dim),
        "actions": (capacity, spec.action_dim),
        "rewards": (capacity,),
        "masks": (capacity,),
        "next_observations": (capacity, spec.observation_dim),
    }
    fields = {name: jnp.full(shapes.get(name, (capacity,)), RETURNS.get(name, 0.0), jnp.float32) for name in names}
    return Replay(fields, *(jnp.zeros((), jnp.int32) for _ in range(3)))


def of_run(replays: Replay, run: jax.Array) -> Replay:
    """Returns the buffer of one of R runs for sampling, without a copy of its arrays.

    Args:
        replays: The buffers, with a leading axis R.
        run: Its index `[]`.
    """
    fields = {name: array.reshape(-1, *array.shape[2:]) for name, array in replays.fields.items()}
    capacity = replays.fields["rewards"].shape[1]
    return Replay(fields, replays.position[run], replays.size[run], run * capacity)


def add(replay: Replay, rows: Batch) -> Replay:
    """Stores transitions in place of the oldest ones.

    Args:
        replay: The buffer, of capacity C.
        rows: The fields `[E, ...]` of E ≤ C transitions; those in `RETURNS` are not known yet.
    """
    capacity, count = len(replay.fields["rewards"]), len(rows["rewards"])
    if count > capacity:
        raise ValueError(f"{count} transitions do not fit into a buffer of {capacity}")
    places = (replay.position + jnp.arange(count)) % capacity
    values: dict[str, Any] = {**RETURNS, **rows}
    fields = {name: array.at[places].set(values[name]) for name, array in replay.fields.items()}
    size = jnp.minimum(replay.size + count, capacity)
    return replay.replace(fields=fields, position=(replay.position + count) % capacity, size=size)


def record(replay: Replay, places: jax.Array, returns: jax.Array, horizons: jax.Array) -> Replay:
    """Writes returns and horizons `[L]` into the rows at `places` `[L]`; places that are no rows are skipped."""
    known = {"returns": returns, "horizons": horizons}
    written = {name: replay.fields[name].at[places].set(values, mode="drop") for name, values in known.items()}
    return replay.replace(fields={**replay.fields, **written})


def sample(key: jax.Array, replay: Replay, batch_size: int) -> dict[str, jax.Array]:
    """Draws stored transitions uniformly, with replacement: the fields `[B, ...]`; zeros from an empty buffer."""
    rows = replay.offset + jax.random.randint(key, (batch_size,), 0, jnp.maximum(replay.size, 1))
    return {name: array[rows] for name, array in replay.fields.items()}


def mixed(
    key: jax.Array,
    replay: Replay,
    dataset: Dataset | None,
    batch_size: int,
    fields: tuple[str, ...],
    offline_share: float | None = None,
) -> dict[str, jax.Array]:
    """Draws a batch from a buffer and from offline data.

    Args:
        key: Random key.
        replay: The buffer.
        dataset: The offline data, or None.
        batch_size: Transitions B.
        fields: The fields to return.
        offline_share: This share of the rows, rounded to whole ones, comes from the dataset; with None each stored
            transition of either is equally likely, as if the dataset lay in the buffer.

    Returns:
        The fields `[B, ...]`.
    """
    online_key, offline_key, choice_key = jax.random.split(key, 3)
    online = sample(online_key, replay, batch_size)
    if dataset is None:
        return {name: online[name] for name in fields}
    offline = gather(dataset, sample_rows(offline_key, dataset, (batch_size,)))
    if offline_share is None:
        stored = len(dataset.transitions)
        chosen = jax.random.randint(choice_key, (batch_size,), 0, stored + replay.size) < stored
    else:
        chosen = jnp.arange(batch_size) < round(offline_share * batch_size)
    return {name: _where(chosen, offline[name], online[name]) for name in fields}


def _where(rows: jax.Array, one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.where(rows.reshape(-1, *[1] * (one.ndim - 1)), one, other)
