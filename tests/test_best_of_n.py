"""Choosing among several actions by Q: which one, how often, and from how many."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowrl import policies
from flowrl.config import as_arrays
from flowrl.policies import BestOfN

VALUES = {-1.0: -4.0, 0.0: 1.0, 1.0: 2.0}
"""Candidates and their least value; 1 is the best."""


def thirds(rows: int, key: jax.Array) -> jax.Array:
    """One of −1, 0 and 1 in each row `[rows, 1]`, equally often."""
    return jax.random.randint(key, (rows, 1), -1, 2).astype(jnp.float32)


def by_table(actions: jax.Array) -> jax.Array:
    """Critics `[2, ...]` whose least value is that of the table."""
    low = sum(jnp.where(actions[..., 0] == action, value, 0.0) for action, value in VALUES.items())
    return jnp.stack([low + jnp.abs(actions[..., 0]), low])


def choose(sample: Any, critics: Any, key: jax.Array, count: int, temperature: float) -> jax.Array:
    return jax.jit(policies.best_of_n, static_argnums=(1, 2))(chosen(count, temperature), sample, critics, key)


def chosen(count: int, temperature: float = 0.0) -> BestOfN:
    return as_arrays(BestOfN(num_samples=count, temperature=temperature))


def test_temperature_zero_takes_the_best_candidate() -> None:
    actions = choose(functools.partial(thirds, 2000), by_table, jax.random.key(0), 5, 0.0)
    assert actions.shape == (2000, 1)
    # 1 is missing among five with probability (2/3)⁵ = 0.132, and only −1 is there with (1/3)⁵ = 0.004.
    assert abs((actions == 1).mean() - (1 - 0.132)) < 0.03
    assert abs((actions == -1).mean() - 0.004) < 0.006


def test_the_least_of_the_critics_decides() -> None:
    # Means 3 and 2.5, least values 1 and 2: the second candidate is better by min Q.
    table = jnp.array([[5.0, 3.0], [1.0, 2.0]])
    first = choose(
        lambda key: jax.random.bernoulli(key, shape=(500, 1)).astype(jnp.float32),
        lambda actions: table[:, actions[..., 0].astype(int)],
        jax.random.key(1),
        30,
        0.0,
    )
    np.testing.assert_array_equal(first, 1)


def test_candidates_are_drawn_by_the_softmax_of_q() -> None:
    # All nine pairs of candidates are equally likely, and in each the softmax over two decides.
    for temperature in (0.5, 2.0):
        actions = choose(functools.partial(thirds, 60_000), by_table, jax.random.key(2), 2, temperature)
        pairs = [(a, b) for a in VALUES for b in VALUES]
        expected = 0.0
        for pair in pairs:
            weights = np.exp(temperature * np.array([VALUES[a] for a in pair]))
            expected += weights[np.array(pair) == 1].sum() / weights.sum() / len(pairs)
        assert abs((actions == 1).mean() - expected) < 0.01  # standard error 0.002
    hot = choose(functools.partial(thirds, 2000), by_table, jax.random.key(0), 5, 1e4)
    best = choose(functools.partial(thirds, 2000), by_table, jax.random.key(0), 5, 0.0)
    np.testing.assert_array_equal(hot, best)


def test_states_choose_independently() -> None:
    actions = choose(functools.partial(thirds, 20_000), by_table, jax.random.key(3), 2, 0.5)[:, 0]
    assert abs(np.corrcoef(actions[::2], actions[1::2])[0, 1]) < 0.04  # standard error 0.01


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
def test_any_batch_of_states_is_served(shape: tuple[int, ...]) -> None:
    # The best of many has the sign of its own state, whatever the others are.
    signs = np.where(np.arange(np.prod(shape, dtype=int)) % 2, 1.0, -1.0).reshape(shape)
    actions = policies.best_of_n(
        chosen(20),
        lambda key: jax.random.normal(key, (*shape, 2)),
        lambda actions: jnp.stack([actions[..., 0] * signs, actions[..., 0] * signs + 1]),
        jax.random.key(4),
    )
    assert actions.shape == (*shape, 2)
    assert (actions[..., 0] * signs > 0).all()


def test_both_dimensions_come_from_the_same_candidate() -> None:
    actions = policies.best_of_n(
        chosen(10),
        lambda key: jax.random.normal(key, (50, 1)) * jnp.array([1.0, 2.0]),
        lambda actions: jnp.stack([actions[..., 1]] * 2),
        jax.random.key(5),
    )
    np.testing.assert_allclose(actions[:, 1], 2 * actions[:, 0], rtol=1e-6)
