"""Segments: a kind of batches for models of trajectories, stretches of episodes with all of their states."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowrl.config import config, static
from flowrl.data.dataset import Dataset, sample_rows
from flowrl.data.samplers import Rows
from flowrl.data.stretches import of_episodes, sums


@config
class Plans:
    """What a plan is: how long, how much of it is played, and what return it has."""

    length: int = static(32, "States of a plan, H.", low=2)
    played: int = static(1, "Actions of a plan that are played before the next one is made.")
    discount: float = static(0.99, "Discount of the returns.", low=0.0, high=0.99999)
    termination_penalty: float = static(-100.0, "Added to the reward of a termination.", low=-1e9, high=1e9)

    def problem(self, prefix: str) -> str:
        """Says that actions lie between the states that are planned."""
        least = f"{prefix}played={self.played} actions lie between more states than {prefix}length={self.length}"
        return f"{least}; give fewer" if self.played >= self.length else ""


class Segments(NamedTuple):
    """Stretches of H steps with all states.

    A segment begins at any transition. Where its episode ends or the task terminates before H steps are over, it stays
    in the row of the last step: `actions_valid` is 0 after it. `valid` is 1 where the segment lies in the episode, or
    that terminated on the way.

    - `observations` `[B, ...]` at the first step, `states` `[B, H, ...]`;
    - `actions` `[B, H, A]` and `actions_valid` `[B, H]`; `valid` `[B]`;
    - `returns` `[B]`: Monte-Carlo returns of the first steps (`flowrl.data.returns`), to the ends of episodes.

    With goals there are no returns: the goal is the last state, and no action counts in it.

    Attributes:
        plans: Their length, and what is played and returned.
        goals: Whether the last state is a goal.
        early: Whether that lies 1 to H − 1 steps ahead, uniformly; a segment stays in it as at the end of an episode.
    """

    plans: Plans
    goals: bool = False
    early: bool = False

    @property
    def steps(self) -> int:
        """A segment may go beyond the end of its episode."""
        return 1

    @property
    def chunk(self) -> int:
        """How many actions in a row are one action to the agent; 0 where it plays the first alone."""
        return self.plans.played if self.plans.played > 1 else 0

    def sample(self, key: jax.Array, dataset: Dataset, batch_size: int) -> Rows:
        """Draws segments uniformly by their first row."""
        rows_key, reach_key = jax.random.split(key)
        rows, most = sample_rows(rows_key, dataset, (batch_size,)), self.plans.length - 1
        if not self.goals:
            return self.with_returns(dataset, rows)
        reach = jax.random.randint(reach_key, rows.shape, 1, most + 1) if self.early else jnp.full_like(rows, most)
        return self.with_goals(dataset, rows, reach)

    def with_returns(self, dataset: Dataset, rows: jax.Array) -> Rows:
        """Returns the segments that begin in `rows` `[B]`, with what they return."""
        stretch, fields = of_episodes(dataset, rows, self.plans.length), dataset.fields
        counted = sums(fields, stretch, self.plans.discount, stops=True)
        last = rows + counted["actions_valid"].sum(axis=1).astype(rows.dtype) - 1  # of the episode, or the termination
        path = jnp.minimum(stretch.rows, last[:, None])
        return {
            "observations": fields["observations"][rows],
            "states": fields["observations"][path],
            "actions": fields["actions"][path],
            "returns": fields["returns"][rows],
            "valid": counted["valid"],
            "actions_valid": counted["actions_valid"],
        }

    def with_goals(self, dataset: Dataset, rows: jax.Array, reach: jax.Array) -> Rows:
        """Returns the segments that begin in `rows` `[B]` and reach goals `reach` `[B]` steps ahead."""
        fields, last = dataset.fields, jnp.minimum(rows + reach, dataset.ends[rows])
        ahead = rows[:, None] + jnp.arange(self.plans.length)
        path = jnp.minimum(ahead, last[:, None])
        return {
            "observations": fields["observations"][rows],
            "states": fields["observations"][path],
            "actions": fields["actions"][path],
            "valid": (rows + reach == last).astype(jnp.float32),
            "actions_valid": (ahead < last[:, None]).astype(jnp.float32),
        }

    def lacking(self, fields: Iterable[str]) -> list[str]:
        """Returns which fields a dataset lacks; OGBench's compact goals cannot be the last of states."""
        known = list(fields)
        needed = ("observations", "actions", *(() if self.goals else ("rewards", "masks", "returns")))
        states = ["goals that are states"] if self.goals and "oracle_reps" in known else []
        return [*(name for name in needed if name not in known), *states]
