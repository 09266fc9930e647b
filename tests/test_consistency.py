"""Consistency and shortcut models against closed forms: fields that are consistent, errors by hand, samples."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ways import Way, array, each_way, variants

from flowrl import generative
from flowrl.config import check
from flowrl.errors import UserError
from flowrl.generative import Consistency, Shortcut

KEY = jax.random.key(3)
ACTION = jnp.array([0.4, -0.7])

# ------------------------------------------------------------------------------------------------ consistency models


def wild(x: jax.Array, t: jax.Array) -> jax.Array:
    """A field that is large everywhere."""
    return 7 * jnp.cos(3 * x) + t


@variants
def test_the_consistency_function_is_the_point_itself_at_the_earliest_time(variant: Callable[..., Any]) -> None:
    x = jax.random.normal(KEY, (5, 2))
    found = variant(functools.partial(generative.boundary, wild))(x, jnp.full((5, 1), 0.002))
    np.testing.assert_array_equal(found, x)
    # And of the noise at the latest nothing is left but what the network says: c_skip is 4e-5 there, c_out almost 1/2.
    late = variant(functools.partial(generative.boundary, lambda x, t: 0 * x))(x, jnp.full((5, 1), 80.0))
    np.testing.assert_allclose(late, x * 0.25 / (79.998**2 + 0.25), rtol=1e-4)


@each_way
def test_the_consistency_function_by_hand(way: Way) -> None:
    """t = 0.502: past 0.5, c_skip = ½, c_out = ¼/√(0.502² + ¼)."""
    found = way(functools.partial(generative.boundary, lambda x, t: 3 * x + t))(array([2.0]), array([0.502]))
    np.testing.assert_allclose(found, [[1 + 0.25 / (0.502**2 + 0.25) ** 0.5 * 6.502]], rtol=1e-5)


@each_way
@pytest.mark.parametrize(
    ("done", "points"),
    # ⌈√(k/K · 22496 + 4) − 1⌉ + 1: 2 at first; √903.84 = 30.06 and √904 = 30.07; at a half √11252 = 106.08.
    [(0.0, 2), (0.04, 31), (0.5, 107), (0.99999, 150)],
)
def test_the_grid_grows(way: Way, done: float, points: int) -> None:
    assert int(way(generative.grid_points)(jnp.float32(done))) == points


@pytest.mark.parametrize("count", [2, 3, 40])
def test_the_grid_goes_from_the_earliest_to_the_latest_time(count: int) -> None:
    times = np.asarray(generative.grid_times(jnp.arange(count), count))
    np.testing.assert_allclose(times[[0, -1]], [0.002, 80], rtol=1e-5)
    np.testing.assert_allclose(np.diff(times ** (1 / 7)), (80 ** (1 / 7) - 0.002 ** (1 / 7)) / (count - 1), rtol=1e-3)


def test_errors_of_consistency_by_hand() -> None:
    """Two points: times 0.002, where f̄ is a + 0.002 z, and 80; each row's error times 100/79.998."""
    a, mask = jnp.array([[0.5, -0.5], [1.0, 0.0], [0.2, 0.3]]), jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    z = np.asarray(jax.random.normal(jax.random.split(KEY)[0], a.shape))
    for way in (lambda f: f, jax.jit):
        errors = functools.partial(Consistency().errors, lambda x, t: 0.3 * x, wild, done=0.0)
        found = way(lambda a, key, valid, errors=errors: errors(a=a, key=key, valid=valid))(a, KEY, mask)
        far = np.asarray(a) + 80 * z
        skip, out = 0.25 / (79.998**2 + 0.25), 0.5 * 79.998 / (6400.25) ** 0.5
        squares = (skip * far + out * 0.3 * far - (np.asarray(a) + 0.002 * z)) ** 2 * np.asarray(mask)
        np.testing.assert_allclose(found, 100 / 79.998 * squares.mean(axis=-1), rtol=1e-3)


def to_one_action(x: jax.Array, t: jax.Array) -> jax.Array:
    """F of the consistency function that goes to one action from anywhere; 0 where c_out is."""
    past = t - 0.002
    skip, out = 0.25 / (past**2 + 0.25), 0.5 * past / jnp.sqrt(t**2 + 0.25)
    return (ACTION - skip * x) / jnp.where(out == 0, 1.0, out)


@pytest.mark.parametrize("done", [0.0, 0.001, 0.3, 0.9])
def test_a_consistent_function_has_errors_at_the_earliest_time_only(done: float) -> None:
    """All data are one action: f = action has no error anywhere; a slow copy that is elsewhere makes one."""
    actions, errors = jnp.broadcast_to(ACTION, (200, 2)), Consistency().errors
    # At the earliest time f̄ is a + 0.002 z: 100/Δt of its square is the least error there.
    index_key = jax.random.split(KEY)[1]
    first = jax.random.randint(index_key, (200, 1), 0, generative.grid_points(done) - 1)[:, 0] == 0
    found = errors(to_one_action, to_one_action, actions, KEY, done)
    np.testing.assert_allclose(jnp.where(first, 0, found), 0, atol=1e-3)
    if done == 0:
        assert first.all()
    off = errors(to_one_action, lambda x, t: to_one_action(x, t) + 1, actions, KEY, done)
    assert first.all() or float(jnp.where(first, 0, off).max()) > 0.1


def test_targets_of_consistency_are_constants() -> None:
    a = jax.random.normal(KEY, (8, 2))

    def loss(fast: jax.Array, slow: jax.Array) -> jax.Array:
        fields = (lambda x, t: fast * jnp.tanh(x)), (lambda x, t: slow * jnp.tanh(x))
        return Consistency().errors(*fields, a, KEY, 0.5).mean()

    by_fast, by_slow = jax.grad(loss, argnums=(0, 1))(1.0, 2.0)
    assert abs(by_fast) > 0.1
    assert by_slow == 0


def test_both_ends_share_their_noise() -> None:
    """A function that returns its point's noise, (x − a)/t, differs by nothing between neighbours, though both move."""
    seen: dict[str, Any] = {}

    def watching(name: str, x: jax.Array, t: jax.Array) -> jax.Array:
        seen[name] = (np.asarray(x), np.asarray(t))
        return x

    a = jnp.full((500, 2), 0.3)
    Consistency().errors(functools.partial(watching, "far"), functools.partial(watching, "near"), a, KEY, 0.01)
    noises = [(x - 0.3) / t for x, t in (seen["far"], seen["near"])]
    later = seen["near"][1][:, 0] > 0.05
    np.testing.assert_allclose(noises[0][later], noises[1][later], atol=1e-4)
    assert (seen["far"][1] > seen["near"][1]).all()
    count = int(generative.grid_points(0.01))  # every neighbour is drawn about as often
    shares = np.bincount(
        np.searchsorted(np.asarray(generative.grid_times(jnp.arange(count), count)), seen["near"][1][:, 0] * 1.001) - 1
    )
    assert len(shares) == count - 1
    assert (shares > 500 / count / 3).all()


@pytest.mark.parametrize(("steps", "times"), [(1, [80.0]), (2, [80.0, 2.0]), (5, [80.0, 60.5, 41.0, 21.5, 2.0])])
def test_samples_of_consistency_by_hand(steps: int, times: list[float]) -> None:
    z, asked = jax.random.normal(jax.random.key(1), (4, 2)), []

    def field(x: jax.Array, t: jax.Array) -> jax.Array:
        asked.append(float(t[0, 0]))
        return jnp.tanh(x) + 0.1

    found = Consistency(steps=steps).sample(field, z, KEY)
    np.testing.assert_allclose(asked, times)
    draws, points = np.asarray(jax.random.normal(KEY, (steps - 1, 4, 2))), 80 * np.asarray(z)
    for i, t in enumerate(times):
        if i:
            points = points + np.sqrt(t**2 - 0.002**2) * draws[i - 1]
        skip, out = 0.25 / ((t - 0.002) ** 2 + 0.25), 0.5 * (t - 0.002) / np.sqrt(t**2 + 0.25)
        points = skip * points + out * (np.tanh(points) + 0.1)
    np.testing.assert_allclose(found, points, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_consistent_function_samples_its_action(steps: int) -> None:
    z = jax.random.normal(jax.random.key(1), (50, 2))
    found = Consistency(steps=steps).sample(to_one_action, z, KEY)
    np.testing.assert_allclose(found, jnp.broadcast_to(ACTION, z.shape), atol=1e-4)


# --------------------------------------------------------------------------------------------------- shortcut models


def straight_to(action: jax.Array, x: jax.Array, t: jax.Array, level: jax.Array) -> jax.Array:
    """The field of straight paths to one action, alike over all steps."""
    return (action - x) / (1 - t)


def growing(x: jax.Array, t: jax.Array, level: jax.Array) -> jax.Array:
    """The mean velocity of dx/dt = x over a step of 2^−j: x (e^d − 1)/d."""
    size = 0.5**level
    return x * (jnp.exp(size) - 1) / size


FIELDS = {"straight": functools.partial(straight_to, ACTION), "growing": growing}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("finest", [1, 3, 6])
def test_consistent_fields_have_no_error_at_any_level(name: str, finest: int) -> None:
    rows, model = 3 * 64, Shortcut(finest=finest)
    actions, seen = 0.5 * jax.random.normal(KEY, (rows, 2)), []

    def field(x: jax.Array, t: jax.Array, level: jax.Array) -> jax.Array:
        seen.append(np.asarray(level)[:, 0])
        return FIELDS[name](x, t, level)

    found = model.consistency_errors(field, field, actions, KEY)
    np.testing.assert_allclose(found, 0, atol=1e-8)
    halves, also, whole = seen
    np.testing.assert_array_equal(halves, whole + 1)
    np.testing.assert_array_equal(also, halves)
    counts = np.bincount(whole.astype(int), minlength=finest)
    assert counts.max() - counts.min() <= rows - finest * (rows // finest)
    # A field that is off at one level has errors at its own level and, as the half steps, at the next larger one.
    for off in range(finest + 1):
        wrong = model.consistency_errors(
            lambda x, t, j, off=off: FIELDS[name](x, t, j) + 0.3 * (j == off), FIELDS[name], actions, KEY
        )
        np.testing.assert_allclose(wrong, np.where(whole == off, 0.09, 0), atol=1e-4)
        slow = model.consistency_errors(
            FIELDS[name], lambda x, t, j, off=off: FIELDS[name](x, t, j) + 0.3 * (j == off), actions, KEY
        )
        assert ((np.asarray(slow) > 0.01) == (whole + 1 == off)).all()


def test_a_step_is_where_the_grid_of_its_level_says() -> None:
    """t is a multiple of 2^−j below 1, and the second half step begins 2^−j/2 later, where the first one led."""
    calls: list[Any] = []

    def slow(x: jax.Array, t: jax.Array, level: jax.Array) -> jax.Array:
        calls.append((np.asarray(x), np.asarray(t)))
        return jnp.full_like(x, 2.0)

    actions = jax.random.normal(KEY, (300, 2))
    errors = Shortcut().consistency_errors(lambda x, t, j: 0 * x, slow, actions, KEY)
    np.testing.assert_allclose(errors, 4.0)
    (x, t), (later_x, later_t) = calls
    levels = np.repeat([2, 1, 0], 100)[:, None]
    assert set((t * 2.0**levels).ravel()) <= {0.0, 1.0, 2.0, 3.0}
    assert (t * 2.0**levels < 2.0**levels).all()
    for j, share in ((2, 0.25), (1, 0.5), (0, 1.0)):
        assert abs((t[levels == j] == 0).mean() - share) < 0.15
    np.testing.assert_allclose(later_t, t + 0.5 * 0.5**levels)
    np.testing.assert_allclose(later_x, x + 0.5 * 0.5**levels * 2.0, rtol=1e-5)
    noise = np.asarray(jax.random.normal(jax.random.split(KEY)[0], actions.shape))
    np.testing.assert_allclose(x, (1 - t) * noise + t * np.asarray(actions), rtol=1e-4, atol=1e-6)


def test_targets_of_shortcuts_are_constants() -> None:
    a = jax.random.normal(KEY, (9, 2))

    def loss(fast: jax.Array, slow: jax.Array) -> jax.Array:
        fields = (lambda x, t, j: fast * x), (lambda x, t, j: slow * x)
        return Shortcut().consistency_errors(*fields, a, KEY).mean()

    by_fast, by_slow = jax.grad(loss, argnums=(0, 1))(1.0, 2.0)
    assert abs(by_fast) > 0.1
    assert by_slow == 0


def test_flow_matching_of_shortcuts_by_hand() -> None:
    """At times of the finest grid and its level; where `valid` is 0 there is no error."""
    a, mask = jax.random.normal(KEY, (400, 2)), jnp.ones((400, 2)).at[0].set(0)
    noise_key, time_key = jax.random.split(jax.random.key(8))
    noise = np.asarray(jax.random.normal(noise_key, a.shape))
    t = np.asarray(jax.random.randint(time_key, (400, 1), 0, 8)) / 8
    found = Shortcut().errors(lambda x, t, j: x + t + j, a, jax.random.key(8), mask)
    x = (1 - t) * noise + t * np.asarray(a)
    expected = ((x + t + 3 - (np.asarray(a) - noise)) ** 2 * np.asarray(mask)).mean(axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found[0] == 0
    assert set(t.ravel()) == {i / 8 for i in range(8)}


@variants
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_samples_of_shortcuts_take_the_steps_of_their_level(level: int, variant: Callable[..., Any]) -> None:
    z, points = jax.random.normal(KEY, (5, 2)), np.asarray(jax.random.normal(KEY, (5, 2)))
    for i in range(2**level):
        points = points + 0.5**level * (np.cos(points) + i * 0.5**level + 0.1 * level)

    def field(x: jax.Array, t: jax.Array, j: jax.Array) -> jax.Array:
        return jnp.cos(x) + t + 0.1 * j

    model = Shortcut(level=level)
    np.testing.assert_allclose(variant(lambda z: model.sample(field, z))(z), points, rtol=1e-4, atol=1e-5)
    drawn = variant(lambda z, level: Shortcut().sample_at(field, z, level))(z, jnp.int32(level))
    np.testing.assert_allclose(drawn, points, rtol=1e-4, atol=1e-5)


def test_a_consistent_field_leads_to_its_action_in_any_steps() -> None:
    z = jax.random.normal(KEY, (5, 2))
    for level in range(4):
        found = Shortcut(level=level).sample(FIELDS["straight"], z)
        np.testing.assert_allclose(found, jnp.broadcast_to(ACTION, z.shape), atol=1e-5)
        np.testing.assert_allclose(Shortcut(level=level).sample(growing, z), np.e * z, rtol=1e-5)


def test_steps_beyond_the_finest_are_refused() -> None:
    with pytest.raises(UserError, match=r"--policy.level=4 is beyond the finest one, 3; give a smaller one"):
        check(Shortcut(level=4), "policy.")


FAULTS = {
    "flowrl/generative.py": [
        (
            "past = times - EARLIEST",
            "past = times",
            "test_the_consistency_function_is_the_point_itself_at_the_earliest_time",
        ),
        ("jnp.sqrt(times**2 +", "jnp.sqrt(past**2 +", "test_the_consistency_function_by_hand"),
        ("jnp.ceil(jnp.sqrt(grown) - 1) + 1", "jnp.ceil(jnp.sqrt(grown) - 1)", "test_the_grid_grows"),
        (
            "first + index / (count - 1)",
            "first + index / count",
            "test_the_grid_goes_from_the_earliest_to_the_latest_time",
        ),
        ("jax.lax.stop_gradient(boundary(slow", "(boundary(slow", "test_targets_of_consistency_are_constants"),
        ("100.0 / (far - near)", "(far - near)", "test_errors_of_consistency_by_hand"),
        (
            "boundary(slow, a + near * z, near)",
            "boundary(field, a + near * z, near)",
            "test_a_consistent_function_has_errors_at_the_earliest_time_only",
        ),
        ("time**2 - EARLIEST**2", "time - EARLIEST**2", "test_samples_of_consistency_by_hand"),
        ("field, first * z", "field, z", "test_samples_of_consistency_by_hand"),
        ("/ 2**self.finest\n", "/ (2**self.finest - 1)\n", "test_flow_matching_of_shortcuts_by_hand"),
        ("points, t, 1 / 2**levels", "points, t, 2 / 2**levels", "test_consistent_fields_have_no_error_at_any_level"),
        ("by_size(slow), points", "by_size(field), points", "test_a_step_is_where_the_grid_of_its_level_says"),
    ],
}
