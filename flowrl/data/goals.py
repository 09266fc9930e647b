"""Hindsight goal relabelling, as OGBench's samplers do it; no goal crosses an episode unless it is a random one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowrl.agent import Needs
from flowrl.data.dataset import Dataset, sample_rows
from flowrl.train_state import Hyper

_HIERARCHY = ("low_actor_goals", "high_actor_goals", "high_actor_targets")
_VALUE = ("value_goals", "rewards", "masks")


def available(dataset: Dataset, needs: Needs) -> list[str]:
    """Returns the names of the fields that a batch for an agent with these needs can have.

    Goals in OGBench's compact form cannot be subgoals, which are states. Rewards and masks come with the value goals,
    or from a dataset of a single task.
    """
    names = [*dataset.fields, "next_observations", "actor_goals"]
    names += [] if "oracle_reps" in dataset.fields else _HIERARCHY
    return [*names, *_VALUE] if "value_goals" in needs.fields else names


class GoalRows(NamedTuple):
    """Rows whose observations serve as goals.

    Attributes:
        rows: int32 `[B]`.
        is_random: Which of them were drawn from anywhere, bool `[B]`.
    """

    rows: jax.Array
    is_random: jax.Array


def geometric_offsets(key: jax.Array, discount: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws offsets k ≥ 1 with probability (1 − γ) γ^(k−1), by the inverse of their distribution: int32.

    With γ = 1 they are larger than any episode.
    """
    uniform = jax.random.uniform(key, shape)
    # The bound lies above log γ of every float32 below 1.
    offsets = jnp.ceil(jnp.log1p(-uniform) / jnp.minimum(jnp.log(discount), -1e-15))
    return jnp.clip(offsets, 1, 2**30).astype(jnp.int32)


def trajectory_rows(
    key: jax.Array, dataset: Dataset, rows: jax.Array, *, geometric: bool, discount: jax.Array | None = None
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
        assert discount is not None
        return jnp.minimum(rows + geometric_offsets(key, discount, rows.shape), ends)
    # round(d·min(t + 1, end) + (1 − d)·end), measured from the end so that float32 suffices for any number of rows.
    spans = ends - jnp.minimum(rows + 1, ends)
    return ends - jnp.round(jax.random.uniform(key, rows.shape) * spans).astype(jnp.int32)


def draw(key: jax.Array, dataset: Dataset, rows: jax.Array, hyper: Hyper, kind: str, *, geometric: bool) -> GoalRows:
    """Draws a goal for each of `rows` `[B]`: from its episode's future, from anywhere, or the row itself.

    Args:
        key: Random key.
        dataset: The episodes.
        rows: int32 `[B]`.
        hyper: Holds `<kind>_p_trajectory` and `<kind>_p_random`; what remains to 1 is the row itself.
        kind: `value` or `actor`.
        geometric: Distribution of offsets within the episode.
    """
    kind_key, trajectory_key, random_key = jax.random.split(key, 3)
    future = trajectory_rows(trajectory_key, dataset, rows, geometric=geometric, discount=hyper.get("discount"))
    p_random, p_trajectory = hyper[f"{kind}_p_random"], hyper[f"{kind}_p_trajectory"]
    uniform = jax.random.uniform(kind_key, rows.shape)
    is_random = uniform < p_random
    anywhere = sample_rows(random_key, dataset, rows.shape)
    goals = jnp.where(is_random, anywhere, jnp.where(uniform < p_random + p_trajectory, future, rows))
    return GoalRows(goals, is_random)


def relabel(key: jax.Array, dataset: Dataset, rows: jax.Array, hyper: Hyper, needs: Needs) -> dict[str, jax.Array]:
    """Returns the goal fields `[B, ...]` that an agent needs for the transitions at `rows` `[B]`.

    - `value_goals`, `rewards` and `masks`: reward 0 and mask 0 exactly where the goal is the row itself, else −1 and 1.
    - `actor_goals`; they and the value goals are OGBench's compact `oracle_reps` where the dataset has them.
    - `low_actor_goals`: the state `subgoal_steps` ahead, or the episode's end.
    - `high_actor_goals`, and `high_actor_targets` `subgoal_steps` ahead but not beyond the goal (for goals from
      anywhere: not beyond the episode's end).
    """
    states = dataset.fields["observations"]
    as_goals = dataset.fields.get("oracle_reps", states)
    value_key, actor_key, high_key = jax.random.split(key, 3)
    fields: dict[str, jax.Array] = {}
    if "value_goals" in needs.fields:
        goals = draw(value_key, dataset, rows, hyper, "value", geometric="value_goals" in needs.geometric)
        reached = goals.rows == rows
        fields["value_goals"] = as_goals[goals.rows]
        fields["rewards"] = jnp.where(reached, 0.0, -1.0)
        fields["masks"] = jnp.where(reached, 0.0, 1.0)
    if "actor_goals" in needs.fields:
        goals = draw(actor_key, dataset, rows, hyper, "actor", geometric="actor_goals" in needs.geometric)
        fields["actor_goals"] = as_goals[goals.rows]
    if "low_actor_goals" in needs.fields:
        ahead = jnp.minimum(rows + hyper["subgoal_steps"], dataset.ends[rows])
        fields["low_actor_goals"] = states[ahead]
    if "high_actor_goals" in needs.fields:
        goals = draw(high_key, dataset, rows, hyper, "actor", geometric="high_actor_goals" in needs.geometric)
        limits = jnp.where(goals.is_random, dataset.ends[rows], goals.rows)
        fields["high_actor_goals"] = states[goals.rows]
        fields["high_actor_targets"] = states[jnp.minimum(rows + hyper["subgoal_steps"], limits)]
    return fields
