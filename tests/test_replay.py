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
    assert set(batch) == {"observations", "actions", "rewards", "masks", "next_observations"}
    assert set(np.asarray(batch["rewards"]).tolist()) == {1, 2}


def test_mapped_buffers_are_their_runs_own() -> None:
    buffers = jax.vmap(lambda _: replay.empty(SPEC, 2))(jnp.arange(2))
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), rows(1), rows(2))
    buffers = jax.vmap(replay.add)(buffers, both)
    np.testing.assert_array_equal(buffers.fields["rewards"], [[1, 0], [2, 0]])
    np.testing.assert_array_equal(buffers.size, [1, 1])


def test_a_buffer_has_the_shapes_and_types_of_its_environment() -> None:
    pixels = Spec(Shape((4, 4, 3), jnp.uint8), Shape((2,), jnp.float32))
    fields = replay.empty(pixels, 5, returns=True).fields
    assert fields["observations"].shape == fields["next_observations"].shape == (5, 4, 4, 3)
    assert fields["observations"].dtype == jnp.uint8
    assert fields["actions"].shape == (5, 2)
    np.testing.assert_array_equal(fields["returns"], [-np.inf] * 5)
    assert "returns" not in replay.empty(pixels, 5).fields


FAULTS = {
    "flowrl/data/replay.py": [
        ("replay.offset + ", "", "test_a_view_of_one_run_draws_what_its_own_buffer_does"),
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
    ],
}
