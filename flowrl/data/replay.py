"""A replay buffer on the device, as a pytree that pure functions change, and batches from it and from offline data."""

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp

from flowrl.data.dataset import Dataset, sample_rows
from flowrl.data.samplers import ONE_STEP, Rows, Transitions
from flowrl.data.stretches import Stretch
from flowrl.networks import Shape, Spec, vector
from flowrl.train_state import Batch

UNKNOWN = -jnp.inf
"""The return of a transition whose episode is under way: it may be anything, so that no bound follows from it."""


class Replay(flax.struct.PyTreeNode):
    """The last transitions of one run, C at most, in a ring.

    Attributes:
        fields: Arrays `[C, ...]`: `observations`, `actions`, `rewards`, `masks`, which are 0 after a true termination
            and 1 where only a limit of time ended the episode, `next_observations`, and for agents that read them
            `returns`, or `ended`, whether the episode ended for either reason; all as the agent sees them.
        position: Where the next transition goes, int32 `[]`.
        size: Transitions stored, int32 `[]`.
        offset: Row of the run's first transition where the arrays hold those of several runs (`of_run`), int32 `[]`.
        capacity: C.
        num_envs: Environments that fill it in turns, so that the next step in one lies that many rows ahead.
    """

    fields: Mapping[str, jax.Array]
    position: jax.Array
    size: jax.Array
    offset: jax.Array
    capacity: int = flax.struct.field(pytree_node=False)
    num_envs: int = flax.struct.field(pytree_node=False)


def empty(spec: Spec, capacity: int, kind: Transitions = ONE_STEP, num_envs: int = 1) -> Replay:
    """Returns a buffer without transitions.

    Args:
        spec: Shapes of observations and single actions.
        capacity: The most transitions C that it keeps.
        kind: The batches that it is for.
        num_envs: Environments that fill it, in turns.
    """

    def zeros(one: Shape) -> jax.Array:
        return jnp.zeros((capacity, *one.shape), one.dtype)

    fields = {
        "observations": zeros(spec.observation),
        "actions": zeros(spec.action),
        "rewards": zeros(vector()),
        "masks": zeros(vector()),
        "next_observations": zeros(spec.observation),
    }
    if kind.returns:
        fields["returns"] = jnp.full(capacity, UNKNOWN)
    if kind.steps > 1:
        fields["ended"] = jnp.zeros(capacity, bool)
    position, size, offset = (jnp.zeros((), jnp.int32) for _ in range(3))
    return Replay(fields, position, size, offset, capacity, num_envs)


def of_run(replays: Replay, run: jax.Array) -> Replay:
    """Returns the buffer of one of R runs for sampling, without a copy of its arrays.

    Args:
        replays: The buffers, with a leading axis R.
        run: Its index `[]`.
    """
    fields = {name: array.reshape(-1, *array.shape[2:]) for name, array in replays.fields.items()}
    offset = run * replays.capacity
    return replays.replace(fields=fields, position=replays.position[run], size=replays.size[run], offset=offset)


def add(replay: Replay, rows: Batch) -> Replay:
    """Stores transitions in place of the oldest ones.

    Args:
        replay: The buffer, of capacity C.
        rows: The fields `[E, ...]` of E ≤ C transitions, but for returns, which are not known yet.
    """
    capacity, count = replay.capacity, len(rows["rewards"])
    if count > capacity:
        raise ValueError(f"{count} transitions do not fit into a buffer of {capacity}")
    places = (replay.position + jnp.arange(count)) % capacity
    fields = {name: array.at[places].set(rows.get(name, UNKNOWN)) for name, array in replay.fields.items()}
    size = jnp.minimum(replay.size + count, capacity)
    return replay.replace(fields=fields, position=(replay.position + count) % capacity, size=size)


def record(replay: Replay, places: jax.Array, returns: jax.Array) -> Replay:
    """Writes returns `[L]` into the rows at `places` `[L]`; places that are no rows are skipped."""
    written = replay.fields["returns"].at[places].set(returns, mode="drop")
    return replay.replace(fields={**replay.fields, "returns": written})


def sample(key: jax.Array, replay: Replay, batch_size: int, kind: Transitions = ONE_STEP) -> Rows:
    """Draws transitions uniformly by their first row, with replacement, `[B, ...]`; zeros from an empty buffer."""
    drawn = jax.random.randint(key, (batch_size,), 0, jnp.maximum(replay.size, 1))
    if kind.steps == 1:
        rows = {name: array[replay.offset + drawn] for name, array in replay.fields.items()}
        after = replay.offset + (drawn + replay.num_envs) % replay.capacity
        return kind.complete({**rows, "next_actions": replay.fields["actions"][after]})
    both = following(replay, drawn, 2 * kind.steps)
    fields = {name: array for name, array in replay.fields.items() if name != "ended"}
    return kind.along(fields, both, fields["next_observations"][both.rows[:, kind.steps - 1]])


def following(replay: Replay, rows: jax.Array, length: int) -> Stretch:
    """Returns the stretches of H steps that begin in `rows` `[B]`, and end with their episode or what is stored."""
    steps = jnp.arange(length)
    oldest = (replay.position - replay.size) % replay.capacity
    stored = ((rows - oldest) % replay.capacity)[:, None] + steps * replay.num_envs < replay.size
    places = replay.offset + (rows[:, None] + steps * replay.num_envs) % replay.capacity
    ended = replay.fields["ended"][places]
    inside = jnp.cumprod(stored & jnp.roll(~ended, 1, axis=1).at[:, 0].set(True), axis=1).astype(bool)
    last = inside.sum(axis=1, keepdims=True) - 1
    return Stretch(jnp.take_along_axis(places, jnp.minimum(steps, last), axis=1), inside)


def mixed(
    key: jax.Array, replay: Replay, dataset: Dataset | None, batch_size: int, offline_share: float | None = None,
    kind: Transitions = ONE_STEP,
) -> Rows:  # fmt: skip
    """Draws a batch from a buffer and from offline data.

    Args:
        key: Random key.
        replay: The buffer.
        dataset: The offline data, or None.
        batch_size: Transitions B.
        offline_share: This share of the rows, rounded to whole ones, comes from the dataset; with None each stored
            transition of either is equally likely, as if the dataset lay in the buffer.
        kind: The transitions.

    Returns:
        The kind's fields `[B, ...]` as far as the buffer has them.
    """
    online_key, offline_key, choice_key = jax.random.split(key, 3)
    online = sample(online_key, replay, batch_size, kind)
    if dataset is None:
        return online
    offline = kind.at(dataset, sample_rows(offline_key, dataset, (batch_size,)))
    if offline_share is None:
        stored = len(dataset.transitions)
        chosen = jax.random.randint(choice_key, (batch_size,), 0, stored + replay.size) < stored
    else:
        chosen = jnp.arange(batch_size) < round(offline_share * batch_size)
    return {name: _where(chosen, offline[name], own) for name, own in online.items()}


def _where(rows: jax.Array, one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.where(rows.reshape(-1, *[1] * (one.ndim - 1)), one, other)
