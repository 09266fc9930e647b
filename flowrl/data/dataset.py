"""Offline data on the device: every observation stored once, the next one found by index."""

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


class Dataset(flax.struct.PyTreeNode):
    """Episodes laid end to end, one row per environment step, N rows in all.

    Attributes:
        fields: Arrays `[N, ...]`: `observations`, `actions`, and others that agents may read.
        transitions: Rows that have a next row in the same episode, int32 `[T]`.
        ends: For every row the last row of its episode that has a transition, int32 `[N]`.
    """

    fields: Mapping[str, jax.Array]
    transitions: jax.Array
    ends: jax.Array


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Dataset:
    """Builds a dataset from arrays in OGBench's layout.

    Args:
        arrays: `terminals` bool `[N]`, true on the last row of each episode, and other fields `[N, ...]`.

    Returns:
        The dataset on the default device; `terminals` is replaced by the index arrays.
    """
    terminals = np.asarray(arrays["terminals"], bool)
    (last_rows,) = np.nonzero(terminals)
    lengths = np.diff(last_rows, prepend=-1)
    return Dataset(
        fields={name: jnp.asarray(array) for name, array in arrays.items() if name != "terminals"},
        transitions=jnp.asarray(np.flatnonzero(~terminals).astype(np.int32)),
        ends=jnp.asarray(np.repeat((last_rows - 1).astype(np.int32), lengths)),
    )


def longest_episode(terminals: np.ndarray) -> int:
    """Returns the steps of the longest of the episodes whose last rows `terminals` `[N]` marks."""
    return int(np.diff(np.flatnonzero(terminals), prepend=-1).max()) - 1


def sample_rows(key: jax.Array, dataset: Dataset, shape: tuple[int, ...]) -> jax.Array:
    """Draws rows uniformly, with replacement, from those that have a transition: int32 of the given shape."""
    return dataset.transitions[jax.random.randint(key, shape, 0, len(dataset.transitions))]


def gather(dataset: Dataset, rows: jax.Array) -> dict[str, jax.Array]:
    """Returns all fields at `rows` `[B]`, and `next_observations` and `next_actions`, those of the rows after them."""
    batch = {name: array[rows] for name, array in dataset.fields.items()}
    after = {f"next_{name}": dataset.fields[name][rows + 1] for name in ("observations", "actions")}
    return {**batch, **after}
