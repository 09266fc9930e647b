"""Kinds of batches: transitions of one step or of several, and transitions with goals; of segments see `segments`.

An agent says which kind it reads. Whatever the kind, the line `r + batch["discounts"] * next_q` is the right target:
`discounts` are γⁿ · mask for the n steps that `rewards` sum and `next_observations` lie ahead. `valid` says which rows
count. A batch holds all that its kind can tell; what an update does not read, the compiler does not gather.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from flowrl.config import config, static
from flowrl.data.dataset import Dataset, gather, sample_rows
from flowrl.data.goals import GoalMix, draw
from flowrl.data.stretches import Stretch, of_episodes, sums
from flowrl.errors import UserError
from flowrl.train_state import Scalar

Rows = dict[str, jax.Array]


class Kind(Protocol):
    """What all kinds of batches have."""

    @property
    def goals(self) -> bool:
        """Whether batches have goals."""

    @property
    def steps(self) -> int:
        """How many steps a row looks ahead."""

    @property
    def chunk(self) -> int:
        """How many actions in a row are one action to the agent; 0 where it chooses each by itself."""

    def sample(self, key: jax.Array, dataset: Dataset, batch_size: int) -> Rows:
        """Draws a batch of B rows, each field `[B, ...]`."""

    def lacking(self, fields: Iterable[str]) -> list[str]:
        """Returns which fields a dataset lacks for batches of this kind."""


def require(kind: Kind, fields: Iterable[str], longest: int | None = None) -> None:
    """Checks that data have what a kind of batch is made of.

    Args:
        kind: The kind.
        fields: Names of the fields that the data have.
        longest: Steps of their longest episode, if that is known.

    Raises:
        UserError: They lack a field, which the message names, or have no episode as long as a row looks ahead.
    """
    known = list(fields)
    if missing := kind.lacking(known):
        raise UserError(
            f"the data lack {', '.join(missing)}, which this agent reads; they have {', '.join(sorted(known))}; choose "
            "data that have them"
        )
    if longest is not None and kind.steps > longest:
        raise UserError(
            f"the agent looks {kind.steps} steps ahead, but the longest episode of the data has {longest}; give a "
            "smaller --agent.horizon.steps"
        )


# ----------------------------------------------------------------------------------------------------- transitions


@config
class Horizon:
    """How many steps a transition takes, and whether their actions are chosen together.

    More than one step give n-step returns, of actions of which only the first is looked at; with `chunk` the actions of
    all steps are one action `[steps · A]` to policies and critics, which is played to its end
    (Q-chunking, https://arxiv.org/abs/2507.07969).
    """

    steps: int = static(1, "Steps whose rewards are summed before critics bootstrap.")
    chunk: bool = static(False, "The actions of all these steps are one action, and are played in a row.")
    stops: bool = static(
        False, "Nothing counts after a termination within the steps. Off as in QC's code, where rewards are summed to "
        "the end of the episode, and only what critics bootstrap is 0.",
    )  # fmt: skip


class HasHorizon(Protocol):
    """A configuration of an agent that reads transitions."""

    @property
    def discount(self) -> float:
        """γ."""

    @property
    def horizon(self) -> Horizon:
        """How many steps they take."""


class Transitions(NamedTuple):
    """Transitions: `observations`, `actions`, `rewards`, `next_observations`, `discounts`, `valid`, and so on.

    Of one step, or of the steps of a horizon: `rewards` are then Σ γᵏ rₖ, `discounts` γʰ · the product of masks, and
    `valid` is 0 where the episode ends on the way. `actions` are `[B, A]`, or the flattened chunks `[B, h·A]`;
    `actions_valid`, in the same shape, is 0 for those beyond the end. `next_actions` are those that follow, where the
    episode is over any others.

    Attributes:
        discount: γ `[]`.
        horizon: How many steps they take.
        returns: Whether the agent reads Monte-Carlo `returns` too (`flowrl.data.returns`); γ is then a plain number.
    """

    discount: Scalar = 1.0
    horizon: Horizon = Horizon()
    returns: bool = False

    @classmethod
    def of(cls, config: HasHorizon) -> "Transitions":
        """Returns what an agent reads whose configuration has a `discount` and a `horizon`."""
        return cls(config.discount, config.horizon)

    @property
    def goals(self) -> bool:
        """Whether batches have goals."""
        return False

    @property
    def steps(self) -> int:
        """How many steps a row looks ahead."""
        return self.horizon.steps

    @property
    def chunk(self) -> int:
        """How many actions in a row are one action to the agent."""
        return self.horizon.steps if self.horizon.chunk else 0

    def sample(self, key: jax.Array, dataset: Dataset, batch_size: int) -> Rows:
        """Draws transitions uniformly by their first row."""
        rows_key, _ = jax.random.split(key)
        return self.at(dataset, sample_rows(rows_key, dataset, (batch_size,)))

    def at(self, dataset: Dataset, rows: jax.Array) -> Rows:
        """Returns the transitions that begin in `rows` `[B]`."""
        if self.horizon.steps == 1:
            return self.complete(gather(dataset, rows))
        both = of_episodes(dataset, rows, 2 * self.horizon.steps)
        return self.along(dataset.fields, both, dataset.fields["observations"][both.rows[:, self.steps - 1] + 1])

    def along(self, fields: Mapping[str, jax.Array], both: "Stretch", next_observations: jax.Array) -> Rows:
        """Returns transitions of H steps along the first half of stretches of 2H stored rows, and what they lead to."""
        stretch, later = (Stretch(*x) for x in zip(*(jnp.split(x, 2, axis=1) for x in both), strict=True))
        batch = {name: array[stretch.rows[:, 0]] for name, array in fields.items()}
        batch |= sums(fields, stretch, self.discount, self.horizon.stops) | {"next_observations": next_observations}
        valid, size = batch.pop("actions_valid"), len(stretch.rows)
        if not self.horizon.chunk:
            after = fields["actions"][later.rows[:, 0]]
            return {**batch, "next_actions": after, "actions_valid": jnp.ones_like(batch["actions"])}
        batch |= {"actions": fields["actions"][stretch.rows], "next_actions": fields["actions"][later.rows]}
        batch["actions_valid"] = jnp.broadcast_to(valid[..., None], batch["actions"].shape)
        return batch | {name: x.reshape(size, -1) for name, x in batch.items() if "actions" in name}

    def complete(self, rows: Mapping[str, jax.Array]) -> Rows:
        """Adds `discounts` and what is valid to transitions of one step `[B, ...]` from wherever."""
        valid = {"valid": jnp.ones_like(rows["masks"]), "actions_valid": jnp.ones_like(rows["actions"])}
        return {**rows, "discounts": self.discount * rows["masks"], **valid}

    def lacking(self, fields: Iterable[str]) -> list[str]:
        """Returns which fields a dataset lacks."""
        needed = ("observations", "actions", "rewards", "masks", *(("returns",) if self.returns else ()))
        return [name for name in needed if name not in fields]


ONE_STEP = Transitions()
"""Transitions of one step, whose discounts are their masks."""


# ----------------------------------------------------------------------------------------------------------- goals


class HasGoals(Protocol):
    """A configuration of an agent that reads goals for its policy and its values."""

    @property
    def discount(self) -> float:
        """γ."""

    @property
    def actor_goals(self) -> GoalMix:
        """Where the policy's come from."""

    @property
    def value_goals(self) -> GoalMix:
        """Where those of values come from."""


class Goals(NamedTuple):
    """Transitions with goals drawn in hindsight.

    - `value_goals`, with `rewards` and `masks`: reward 0 and mask 0 exactly where the goal is the row itself, else −1
      and 1; and `discounts` and `valid`. Over a horizon of n steps rewards are −Σ γᵏ over the steps up to the goal, the
      episode's end or n of them, and masks 0 where the goal is nearer than that.
    - `value_next_observations`: where those steps lead.
    - `value_steps`, and whether they lead to the value goal, `value_reached`: in the same episode and not behind; else
      they are those that the episode still takes.
    - `actor_goals`; they and the value goals are OGBench's compact `oracle_reps` where the dataset has them.
    - `low_actor_goals`: the state `subgoal_steps` ahead, or the episode's end.
    - `high_actor_goals`, and `high_actor_targets` `subgoal_steps` ahead but not beyond the goal (for goals from
      anywhere: not beyond the episode's end).

    Attributes:
        actor: The goals of actors.
        value: The goals of values.
        discount: γ `[]`.
        subgoal_steps: Steps to a subgoal `[]`; without them there are no goals of levels.
        horizon: Steps n after which values bootstrap.
        more: The goals of `more_goals`, which nothing else depends on; without it there are none.
    """

    actor: GoalMix
    value: GoalMix = GoalMix()
    discount: Scalar = 1.0
    subgoal_steps: Scalar | None = None
    horizon: int = 1
    more: GoalMix | None = None

    @classmethod
    def of(cls, config: HasGoals) -> "Goals":
        """Returns what an agent reads whose configuration has a `discount`, `actor_goals` and `value_goals`."""
        return cls(config.actor_goals, config.value_goals, config.discount)

    @property
    def goals(self) -> bool:
        """Whether batches have goals."""
        return True

    @property
    def steps(self) -> int:
        """How many steps a row looks ahead: goals may be nearer."""
        return 1

    @property
    def chunk(self) -> int:
        """Each action is chosen by itself."""
        return 0

    def sample(self, key: jax.Array, dataset: Dataset, batch_size: int) -> Rows:
        """Draws transitions uniformly, and their goals."""
        rows_key, goals_key = jax.random.split(key)
        rows = sample_rows(rows_key, dataset, (batch_size,))
        return gather(dataset, rows) | self.relabel(goals_key, dataset, rows)

    def relabel(self, key: jax.Array, dataset: Dataset, rows: jax.Array) -> Rows:
        """Returns the fields `[B, ...]` that depend on goals, for the transitions at `rows` `[B]`."""
        states = dataset.fields["observations"]
        as_goals = dataset.fields.get("oracle_reps", states)
        value_key, actor_key, high_key, more_key = jax.random.split(key, 4)
        value = draw(value_key, dataset, rows, self.value, self.discount).rows
        ends = dataset.ends[rows]
        reached = (value >= rows) & (value <= ends)
        steps = jnp.minimum(self.horizon, ends + 1 - rows)
        at_goal = reached & (value < rows + steps)
        steps, masks = jnp.where(at_goal, value - rows, steps), jnp.where(at_goal, 0.0, 1.0)
        powers = jnp.cumprod(jnp.full(self.horizon + 1, self.discount).at[0].set(1.0))  # γᵏ, k = 0 to n
        fields = {
            "value_goals": as_goals[value],
            "rewards": -jnp.sum(powers[:-1] * (jnp.arange(self.horizon) < steps[:, None]), axis=-1),
            "masks": masks,
            "discounts": powers[steps] * masks,
            "value_next_observations": states[rows + steps],
            "valid": jnp.ones_like(masks),
            "value_reached": reached,
            "value_steps": jnp.where(reached, value, ends) - rows,
            "actor_goals": as_goals[draw(actor_key, dataset, rows, self.actor, self.discount).rows],
        }
        if self.subgoal_steps is not None:
            ahead = rows + self.subgoal_steps
            high = draw(high_key, dataset, rows, self.actor, self.discount)
            limits = jnp.where(high.is_random, ends, high.rows)
            fields["low_actor_goals"] = states[jnp.minimum(ahead, ends)]
            fields["high_actor_goals"] = states[high.rows]
            fields["high_actor_targets"] = states[jnp.minimum(ahead, limits)]
        if self.more is not None:
            fields["more_goals"] = as_goals[draw(more_key, dataset, rows, self.more, self.discount).rows]
        return fields

    def complete(self, rows: Mapping[str, jax.Array]) -> Rows:
        """Adds to OGBench's batches of goals `[B, ...]` what critics read besides, where values look one step ahead.

        Raises:
            ValueError: Values bootstrap later: where, such batches do not tell.
        """
        if self.horizon > 1:
            raise ValueError(f"values bootstrap after {self.horizon} steps; rows of one step do not tell where that is")
        masks, ahead = rows["masks"], rows["next_observations"]
        added = {"discounts": self.discount * masks, "valid": jnp.ones_like(masks), "value_next_observations": ahead}
        return {**rows, **added}

    def lacking(self, fields: Iterable[str]) -> list[str]:
        """Returns which fields a dataset lacks; OGBench's compact goals cannot be subgoals, which are states."""
        known = list(fields)
        missing = [name for name in ("observations", "actions") if name not in known]
        hierarchical = self.subgoal_steps is not None and "oracle_reps" in known
        return [*missing, *(("low_actor_goals", "high_actor_goals", "high_actor_targets") if hierarchical else ())]
