"""The replay buffer against a plain list, and how batches are mixed from it and from offline data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl.data import replay
from flowrl.data.dataset import Dataset, from_arrays
from flowrl.data.replay import Replay
from flowrl.data.samplers import Horizon, Transitions
from flowrl.networks import Shape, Spec

SPEC = Spec.of_sizes(2, 1)
add = jax.jit(replay.add)


def rows(*numbers: int) -> dict[str, jax.Array]:
    """Transitions that can be told apart: reward n, observation (n, n), next observation (n + ½, n + ½), action n."""
    n = jnp.asarray(numbers, jnp.float32)
    pairs = jnp.stack([n, n], axis=1)
    return {
        "observations": pairs,
        "actions": n[:, None],
        "rewards": n,
        "masks": jnp.ones_like(n),
        "next_observations": pairs + 0.5,
    }


def filled(capacity: int, *numbers: int) -> Replay:
    buffer = replay.empty(SPEC, capacity)
    for number in numbers:
        buffer = add(buffer, rows(number))
    return buffer


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), max_size=12))
def test_a_full_buffer_keeps_exactly_the_newest(sizes: list[int]) -> None:
    capacity, buffer, kept, count = 5, replay.empty(SPEC, 5), list[int](), 0
    for size in sizes:
        numbers = range(count, count + size)
        buffer, count = add(buffer, rows(*numbers)), count + size
        kept = [*kept, *numbers][-capacity:]
    assert int(buffer.size) == len(kept)
    assert sorted(np.asarray(buffer.fields["rewards"])[: len(kept)].tolist()) == kept
    np.testing.assert_array_equal(
        buffer.fields["next_observations"][: len(kept), 0], buffer.fields["rewards"][: len(kept)] + 0.5
    )


def test_more_transitions_than_the_buffer_holds_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 transitions do not fit into a buffer of 2"):
        replay.add(replay.empty(SPEC, 2), rows(1, 2, 3))


def test_samples_are_uniform_over_what_is_stored() -> None:
    batch = replay.sample(jax.random.key(0), filled(8, 1, 2, 3), 3000)
    numbers, counts = np.unique(batch["rewards"], return_counts=True)
    assert numbers.tolist() == [1, 2, 3]
    assert (abs(counts - 1000) < 4 * np.sqrt(3000 * 2 / 9)).all()
    np.testing.assert_array_equal(batch["actions"][:, 0], batch["rewards"])
    np.testing.assert_array_equal(batch["next_observations"][:, 1], batch["rewards"] + 0.5)


def test_an_empty_buffer_gives_zeros() -> None:
    assert not np.any(replay.sample(jax.random.key(0), replay.empty(SPEC, 3), 4)["observations"])


def test_a_view_of_one_run_draws_what_its_own_buffer_does() -> None:
    buffers = [filled(3, 1, 2), filled(3, 4, 5, 6, 7)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *buffers)
    for run, own in enumerate(buffers):
        one = replay.sample(jax.random.key(1), own, 20)
        view = jax.jit(lambda run: replay.sample(jax.random.key(1), replay.of_run(stacked, run), 20))(run)
        jax.tree.map(np.testing.assert_array_equal, one, view)


@pytest.fixture
def dataset() -> Dataset:
    """Three transitions with rewards 101, 102 and 103."""
    numbers = np.array([101, 102, 103, 0], np.float32)
    pairs = np.stack([numbers, numbers], axis=1)
    arrays: dict[str, Any] = {"observations": pairs, "actions": numbers[:, None], "rewards": numbers}
    return from_arrays({**arrays, "masks": np.ones(4, np.float32), "terminals": np.array([0, 0, 0, 1], bool)})


@pytest.mark.parametrize(("share", "offline"), [(0.0, 0), (0.5, 50), (0.25, 25), (1.0, 100)])
def test_a_share_of_each_batch_is_offline(dataset: Dataset, share: float, offline: int) -> None:
    batch = replay.mixed(jax.random.key(0), filled(4, 1, 2), dataset, 100, share)
    assert (np.asarray(batch["rewards"]) > 100).sum() == offline
    np.testing.assert_array_equal(batch["actions"][:, 0], batch["rewards"])  # rows stay whole


def test_without_a_share_every_transition_is_equally_likely(dataset: Dataset) -> None:
    batch = replay.mixed(jax.random.key(0), filled(4, 1, 2), dataset, 5000)
    numbers, counts = np.unique(batch["rewards"], return_counts=True)
    assert numbers.tolist() == [1, 2, 101, 102, 103]
    assert (abs(counts - 1000) < 4 * np.sqrt(5000 * 0.2 * 0.8)).all()
    untouched = replay.mixed(jax.random.key(0), replay.empty(SPEC, 4), dataset, 500)
    assert (np.asarray(untouched["rewards"]) > 100).all()  # nothing of an empty buffer


def test_without_a_dataset_all_is_online() -> None:
    batch = replay.mixed(jax.random.key(0), filled(4, 1, 2), None, 50)
    stored = {"observations", "actions", "rewards", "masks", "next_observations"}
    assert set(batch) == stored | {"next_actions", "discounts", "valid", "actions_valid"}
    assert set(np.asarray(batch["rewards"]).tolist()) == {1, 2}


def ended(buffer: Replay, *which: bool) -> Replay:
    return buffer.replace(fields={**buffer.fields, "ended": jnp.array(which)})


def followed(buffer: Replay, length: int, *starts: int) -> tuple[list[Any], list[Any]]:
    stretch = jax.jit(lambda starts: replay.following(buffer, starts, length))(jnp.array(starts))
    return stretch.rows.tolist(), stretch.inside.tolist()


def test_steps_that_follow_each_other_are_those_of_one_environment() -> None:
    """Two environments in turns, four steps of them; the first one's episode ends at its second step, row 2."""
    buffer = replay.empty(SPEC, 9, Transitions(0.9, Horizon(steps=3)), num_envs=2)
    for i in range(4):
        buffer = add(buffer, {**rows(2 * i, 2 * i + 1), "ended": jnp.array([i == 1, False])})
    assert buffer.fields["ended"].tolist() == [False, False, True] + 6 * [False]
    found, inside = followed(buffer, 3, 0, 1, 4, 5)
    assert found == [[0, 2, 2], [1, 3, 5], [4, 6, 6], [5, 7, 7]]  # what has not happened yet is not there
    assert inside == [[True, True, False], [True] * 3, [True, True, False], [True, True, False]]


def test_steps_do_not_go_beyond_the_newest_in_a_full_buffer() -> None:
    buffer = replay.empty(SPEC, 5, Transitions(0.9, Horizon(steps=3)))
    for i in range(7):  # rows 0 and 1 hold the newest, transitions 5 and 6; row 2 the oldest
        buffer = add(buffer, {**rows(i), "ended": jnp.array([False])})
    found, inside = followed(buffer, 3, 2, 4, 0, 1)
    assert found == [[2, 3, 4], [4, 0, 1], [0, 1, 1], [1, 1, 1]]
    assert inside == [[True] * 3, [True] * 3, [True, True, False], [True, False, False]]
    view = replay.of_run(jax.tree.map(lambda x: jnp.stack([x, x]), buffer), jnp.int32(1))
    assert followed(view, 3, 4, 1)[0] == [[9, 5, 6], [6, 6, 6]]


@pytest.mark.slow
def test_batches_of_several_steps_from_a_buffer_and_from_data() -> None:
    kind = Transitions(0.5, Horizon(steps=2, chunk=True))
    buffer = replay.empty(SPEC, 4, kind)
    for i in (1, 2):
        buffer = add(buffer, {**rows(i), "ended": jnp.array([False])})
    batch = replay.sample(jax.random.key(0), buffer, 50, kind)
    columns = [np.asarray(batch[name]).reshape(50, -1) for name in ("actions", "rewards", "valid")]
    both = {*map(tuple, np.concatenate(columns, axis=1).tolist())}
    assert both == {(1, 2, 2, 1), (2, 2, 2, 0)}  # 1 + 2/2, and what ends with the newest
    np.testing.assert_array_equal(batch["next_observations"], np.full((50, 2), 2.5))
    pairs = np.repeat(np.array([[101], [102], [103], [0]], np.float32), 2, axis=1)
    data = from_arrays({
        "observations": pairs, "actions": pairs[:, :1], "rewards": pairs[:, 0], "masks": np.ones(4, np.float32),
        "terminals": np.array([0, 0, 0, 1], bool),
    })  # fmt: skip
    mix = replay.mixed(jax.random.key(0), buffer, data, 60, 0.5, kind)
    assert set(mix) == set(batch)
    assert {*np.asarray(mix["actions"])[:30, 0].tolist()} == {101, 102, 103}
    assert {*np.asarray(mix["actions"])[30:, 0].tolist()} == {1, 2}


def test_mapped_buffers_are_their_runs_own() -> None:
    buffers = jax.vmap(lambda _: replay.empty(SPEC, 2))(jnp.arange(2))
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), rows(1), rows(2))
    buffers = jax.vmap(replay.add)(buffers, both)
    np.testing.assert_array_equal(buffers.fields["rewards"], [[1, 0], [2, 0]])
    np.testing.assert_array_equal(buffers.size, [1, 1])


def test_a_buffer_has_the_shapes_and_types_of_its_environment() -> None:
    pixels = Spec(Shape((4, 4, 3), jnp.uint8), Shape((2,), jnp.float32))
    fields = replay.empty(pixels, 5, Transitions(returns=True)).fields
    assert fields["observations"].shape == fields["next_observations"].shape == (5, 4, 4, 3)
    assert fields["observations"].dtype == jnp.uint8
    assert fields["actions"].shape == (5, 2)
    np.testing.assert_array_equal(fields["returns"], [-np.inf] * 5)
    assert "returns" not in replay.empty(pixels, 5).fields


FAULTS = {
    "flowrl/data/replay.py": [
        ("array[replay.offset + drawn]", "array[drawn]", "test_a_view_of_one_run_draws_what_its_own_buffer_does"),
        (
            "(replay.position + jnp.arange(count)) % capacity",
            "jnp.arange(count)",
            "test_a_full_buffer_keeps_exactly_the_newest",
        ),
        (
            "0, stored + replay.size) < stored",
            "0, 2 * stored) < stored",
            "test_without_a_share_every_transition_is_equally_likely",
        ),
        (
            "stored & jnp.roll(~ended",
            "jnp.roll(~ended",
            "test_steps_do_not_go_beyond_the_newest_in_a_full_buffer",
        ),
        (
            "jnp.cumprod(stored & jnp.roll(~ended, 1, axis=1).at[:, 0].set(True), axis=1)",
            "stored",
            "test_steps_that_follow_each_other_are_those_of_one_environment",
        ),
        (
            "replay.offset + (rows",
            "(rows",
            "test_steps_do_not_go_beyond_the_newest_in_a_full_buffer",
        ),
        (
            "oldest = (replay.position - replay.size) % replay.capacity",
            "oldest = 0",
            "test_steps_do_not_go_beyond_the_newest_in_a_full_buffer",
        ),
    ],
}
