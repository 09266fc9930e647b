"""Hindsight goal relabelling, as OGBench's samplers do it; no goal crosses an episode unless it is a random one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowrl.config import config, static, traced
from flowrl.data.dataset import Dataset, sample_rows
from flowrl.train_state import Scalar


@config
class GoalMix:
    """Where the goals of one kind come from; what remains to 1 is the state itself."""

    p_trajectory: float = traced(1.0, "Share of goals from the rest of the episode.", high=1.0)
    p_random: float = traced(0.0, "Share of goals from anywhere.", high=1.0)
    geometric: bool = static(
        False, "How far ahead goals of the episode lie: geometric(1 - discount), or uniform over what remains."
    )

    def problem(self, prefix: str) -> str:
        """Says that shares cannot be more than all."""
        if self.p_trajectory + self.p_random <= 1 + 1e-6:
            return ""
        return (
            f"{prefix}p_trajectory={self.p_trajectory} and {prefix}p_random={self.p_random} are shares of the same "
            "goals; leave at most 1 in all"
        )


class GoalRows(NamedTuple):
    """Rows whose observations serve as goals.

    Attributes:
        rows: int32 `[B]`.
        is_random: Which of them were drawn from anywhere, bool `[B]`.
    """

    rows: jax.Array
    is_random: jax.Array


def geometric_offsets(key: jax.Array, discount: Scalar, shape: tuple[int, ...]) -> jax.Array:
    """Draws offsets k ≥ 1 with probability (1 − γ) γ^(k−1), by the inverse of their distribution: int32.

    With γ = 1 they are larger than any episode.
    """
    uniform = jax.random.uniform(key, shape)
    # The bound lies above log γ of every float32 below 1.
    offsets = jnp.ceil(jnp.log1p(-uniform) / jnp.minimum(jnp.log(jnp.asarray(discount)), -1e-15))
    return jnp.clip(offsets, 1, 2**30).astype(jnp.int32)


def trajectory_rows(
    key: jax.Array, dataset: Dataset, rows: jax.Array, *, geometric: bool, discount: Scalar
) -> jax.Array:
    """Draws goals from what follows `rows` `[B]` in their episodes, the row itself only where nothing follows.

    Args:
        key: Random key.
        dataset: The episodes.
        rows: int32 `[B]`.
        geometric: Offsets geometric(1 − γ), capped at the end; otherwise uniform over the future.
        discount: γ `[]`, read when geometric.

    Returns:
        int32 `[B]`.
    """
    ends = dataset.ends[rows]
    if geometric:
        return jnp.minimum(rows + geometric_offsets(key, discount, rows.shape), ends)
    # round(d·min(t + 1, end) + (1 − d)·end), measured from the end so that float32 suffices for any number of rows.
    spans = ends - jnp.minimum(rows + 1, ends)
    return ends - jnp.round(jax.random.uniform(key, rows.shape) * spans).astype(jnp.int32)


def draw(key: jax.Array, dataset: Dataset, rows: jax.Array, mix: GoalMix, discount: Scalar) -> GoalRows:
    """Draws a goal for each of `rows` `[B]`: from its episode's future, from anywhere, or the row itself.

    Args:
        key: Random key.
        dataset: The episodes.
        rows: int32 `[B]`.
        mix: The shares of these.
        discount: γ `[]` of geometric offsets.
    """
    kind_key, trajectory_key, random_key = jax.random.split(key, 3)
    future = trajectory_rows(trajectory_key, dataset, rows, geometric=mix.geometric, discount=discount)
    uniform = jax.random.uniform(kind_key, rows.shape)
    is_random = uniform < mix.p_random
    anywhere = sample_rows(random_key, dataset, rows.shape)
    goals = jnp.where(is_random, anywhere, jnp.where(uniform < mix.p_random + mix.p_trajectory, future, rows))
    return GoalRows(goals, is_random)
