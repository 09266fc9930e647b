"""Several stored rows in a row, and what is summed along them: of an episode, or of a replay buffer."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowrl.data.dataset import Dataset
from flowrl.train_state import Scalar


class Stretch(NamedTuple):
    """Rows in a row.

    Attributes:
        rows: Where they are stored `[B, H]`; from the end of an episode on its last one again.
        inside: Which of them are within the episode, bool `[B, H]`; the first always is.
    """

    rows: jax.Array
    inside: jax.Array


def of_episodes(dataset: Dataset, rows: jax.Array, length: int) -> Stretch:
    """Returns the stretches of H rows that begin in `rows` `[B]`."""
    ahead, ends = rows[:, None] + jnp.arange(length), dataset.ends[rows][:, None]
    return Stretch(jnp.minimum(ahead, ends), ahead <= ends)


def sums(fields: Mapping[str, jax.Array], stretch: Stretch, discount: Scalar, stops: bool) -> dict[str, jax.Array]:
    """Returns `rewards`, `discounts` and `valid` `[B]`, and `actions_valid` `[B, H]`, of stretches of H rows.

    Args:
        fields: `rewards` and `masks` `[N]`.
        stretch: The rows.
        discount: γ `[]`.
        stops: Whether nothing counts after a termination: rewards are summed up to it, and as nothing is bootstrapped
            after it, such rows are valid even if the episode ends before H steps are over.
    """
    rows, inside = stretch
    powers = jnp.asarray(discount) ** jnp.arange(rows.shape[1])
    alive = jnp.cumprod(jnp.where(inside, fields["masks"][rows], 1.0), axis=1)  # after each step
    before = jnp.concatenate([jnp.ones_like(alive[:, :1]), alive[:, :-1]], axis=1)
    counted = inside & (before > 0) if stops else inside
    known = inside[:, -1] | (alive[:, -1] == 0) if stops else inside[:, -1]
    return {
        "rewards": (powers * counted * fields["rewards"][rows]).sum(axis=1),
        "discounts": jnp.asarray(discount) ** rows.shape[1] * alive[:, -1],
        "valid": known.astype(jnp.float32),
        "actions_valid": counted.astype(jnp.float32),
    }
