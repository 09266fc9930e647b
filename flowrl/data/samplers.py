"""Kinds of batches: single transitions, transitions with goals, and segments of episodes.

An agent says which kind it reads. Whatever the kind, the line `r + batch["discounts"] * next_q` is the right target:
`discounts` are γⁿ · mask for the n steps that `rewards` sum and `next_observations` lie ahead. `valid` says which rows
count. A batch holds all that its kind can tell; what an update does not read, the compiler does not gather.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from flowrl.data.dataset import Dataset, gather, sample_rows
from flowrl.data.goals import GoalMix, draw
from flowrl.errors import UserError
from flowrl.train_state import Scalar

Rows = dict[str, jax.Array]


class Kind(Protocol):
    """What all kinds of batches have."""

    @property
    def goals(self) -> bool:
        """Whether batches have goals."""

    def sample(self, key: jax.Array, dataset: Dataset, batch_size: int) -> Rows:
        """Draws a batch of B rows, each field `[B, ...]`."""

    def lacking(self, fields: Iterable[str]) -> list[str]:
        """Returns which fields a dataset lacks for batches of this kind."""


def require(kind: Kind, fields: Iterable[str]) -> None:
    """Checks that data have what a kind of batch is made of.

    Raises:
        UserError: They lack a field; the message names it.
    """
    known = list(fields)
    if missing := kind.lacking(known):
        raise UserError(
            f"the data lack {', '.join(missing)}, which this agent reads; they have {', '.join(sorted(known))}; choose "
            "data that have them"
        )


class Transitions(NamedTuple):
    """Single transitions: `observations`, `actions`, `rewards`, `masks`, `next_observations`, `discounts`, `valid`.

    Attributes:
        discount: γ `[]`.
        returns: Whether the agent reads Monte-Carlo `returns` too (`flowrl.data.returns`); γ is then a plain number.
    """

    discount: Scalar = 1.0
    returns: bool = False

    @property
    def goals(self) -> bool:
        """Whether batches have goals."""
        return False

    def sample(self, key: jax.Array, dataset: Dataset, batch_size: int) -> Rows:
        """Draws transitions uniformly."""
        rows_key, _ = jax.random.split(key)
        return self.complete(gather(dataset, sample_rows(rows_key, dataset, (batch_size,))))

    def complete(self, rows: Mapping[str, jax.Array]) -> Rows:
        """Adds `discounts` and `valid` to transitions `[B, ...]` from wherever."""
        return {**rows, "discounts": self.discount * rows["masks"], "valid": jnp.ones_like(rows["masks"])}

    def lacking(self, fields: Iterable[str]) -> list[str]:
        """Returns which fields a dataset lacks."""
        needed = ("observations", "actions", "rewards", "masks", *(("returns",) if self.returns else ()))
        return [name for name in needed if name not in fields]


class Goals(NamedTuple):
    """Transitions with goals drawn in hindsight.

    - `value_goals`, with `rewards` and `masks`: reward 0 and mask 0 exactly where the goal is the row itself, else −1
      and 1; and `discounts` and `valid`.
    - `actor_goals`; they and the value goals are OGBench's compact `oracle_reps` where the dataset has them.
    - `low_actor_goals`: the state `subgoal_steps` ahead, or the episode's end.
    - `high_actor_goals`, and `high_actor_targets` `subgoal_steps` ahead but not beyond the goal (for goals from
      anywhere: not beyond the episode's end).

    Attributes:
        actor: The goals of actors.
        value: The goals of values.
        discount: γ `[]`.
        subgoal_steps: Steps to a subgoal `[]`; without them there are no goals of levels.
    """

    actor: GoalMix
    value: GoalMix = GoalMix()
    discount: Scalar = 1.0
    subgoal_steps: Scalar | None = None

    @property
    def goals(self) -> bool:
        """Whether batches have goals."""
        return True

    def sample(self, key: jax.Array, dataset: Dataset, batch_size: int) -> Rows:
        """Draws transitions uniformly, and their goals."""
        rows_key, goals_key = jax.random.split(key)
        rows = sample_rows(rows_key, dataset, (batch_size,))
        return gather(dataset, rows) | self.relabel(goals_key, dataset, rows)

    def relabel(self, key: jax.Array, dataset: Dataset, rows: jax.Array) -> Rows:
        """Returns the fields `[B, ...]` that depend on goals, for the transitions at `rows` `[B]`."""
        states = dataset.fields["observations"]
        as_goals = dataset.fields.get("oracle_reps", states)
        value_key, actor_key, high_key = jax.random.split(key, 3)
        value = draw(value_key, dataset, rows, self.value, self.discount).rows
        masks = jnp.where(value == rows, 0.0, 1.0)
        fields = {
            "value_goals": as_goals[value],
            "rewards": jnp.where(value == rows, 0.0, -1.0),
            "masks": masks,
            "discounts": self.discount * masks,
            "valid": jnp.ones_like(masks),
            "actor_goals": as_goals[draw(actor_key, dataset, rows, self.actor, self.discount).rows],
        }
        if self.subgoal_steps is not None:
            ends, ahead = dataset.ends[rows], rows + self.subgoal_steps
            high = draw(high_key, dataset, rows, self.actor, self.discount)
            limits = jnp.where(high.is_random, ends, high.rows)
            fields["low_actor_goals"] = states[jnp.minimum(ahead, ends)]
            fields["high_actor_goals"] = states[high.rows]
            fields["high_actor_targets"] = states[jnp.minimum(ahead, limits)]
        return fields

    def lacking(self, fields: Iterable[str]) -> list[str]:
        """Returns which fields a dataset lacks; OGBench's compact goals cannot be subgoals, which are states."""
        known = list(fields)
        missing = [name for name in ("observations", "actions") if name not in known]
        hierarchical = self.subgoal_steps is not None and "oracle_reps" in known
        return [*missing, *(("low_actor_goals", "high_actor_goals", "high_actor_targets") if hierarchical else ())]


class Segments(NamedTuple):
    """Stretches of H steps, for action chunks, n-step returns and models of trajectories.

    A segment begins at any transition. Where its episode ends before H steps are over, it stays in the last row:
    `actions_valid` is 0 from there on. `valid` is 1 where the value of what lies H steps ahead is known, or not needed
    because an episode terminated on the way.

    - `observations` `[B, ...]` at the first step, `next_observations` `[B, ...]` after the last;
    - `states` `[B, H, ...]`;
    - `actions` `[B, H, A]` and `actions_valid` `[B, H]`;
    - `rewards` `[B]`: Σ γᵏ rₖ until the first termination; `discounts` `[B]`: γ^H, or 0 after a termination;
      `valid` `[B]`.

    Attributes:
        length: H.
        discount: γ `[]`.
    """

    length: int
    discount: Scalar = 1.0

    @property
    def goals(self) -> bool:
        """Whether batches have goals."""
        return False

    def sample(self, key: jax.Array, dataset: Dataset, batch_size: int) -> Rows:
        """Draws segments uniformly by their first row."""
        return self.at(dataset, sample_rows(key, dataset, (batch_size,)))

    def at(self, dataset: Dataset, rows: jax.Array) -> Rows:
        """Returns the segments that begin in `rows` `[B]`."""
        steps, ends = jnp.arange(self.length), dataset.ends[rows][:, None]
        ahead = rows[:, None] + steps
        inside = ahead <= ends
        ahead = jnp.minimum(ahead, ends)
        masks = jnp.where(inside, dataset.fields["masks"][ahead], 1.0)
        alive = jnp.cumprod(masks, axis=1)  # after each step
        before = jnp.concatenate([jnp.ones_like(alive[:, :1]), alive[:, :-1]], axis=1)
        factors = jnp.asarray(self.discount) ** steps * before * inside
        states = dataset.fields["observations"]
        return {
            "observations": states[rows],
            "states": states[ahead],
            "next_observations": states[ahead[:, -1] + 1],
            "actions": dataset.fields["actions"][ahead],
            "actions_valid": (inside & (before > 0)).astype(jnp.float32),
            "rewards": (factors * dataset.fields["rewards"][ahead]).sum(axis=1),
            "discounts": jnp.asarray(self.discount) ** self.length * alive[:, -1],
            "valid": (inside[:, -1] | (alive[:, -1] == 0)).astype(jnp.float32),
        }

    def lacking(self, fields: Iterable[str]) -> list[str]:
        """Returns which fields a dataset lacks."""
        return [name for name in ("observations", "actions", "rewards", "masks") if name not in fields]
