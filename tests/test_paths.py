"""Paths against closed forms: straight ones between Gaussians, linear fields, hand-computed steps, time samplers."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ways import variants

from flowrl import paths

MEAN, STD = 0.7, 0.4
"""Data N(MEAN, STD²) at time 1, unit noise at time 0."""


def column(*values: float) -> jax.Array:
    return jnp.asarray(values)[:, None]


def spread(t: Any) -> Any:
    """Standard deviation of x_t = (1 − t) x₀ + t x₁."""
    return ((1 - t) ** 2 + (t * STD) ** 2) ** 0.5


def transported(x: Any, t: Any, other: Any) -> Any:
    """Where the marginal field carries x from time t: x_t = t·MEAN + spread(t)·x₀."""
    return other * MEAN + spread(other) / spread(t) * (x - t * MEAN)


def marginal(x: Any, t: Any) -> Any:
    """E[x₁ − x₀ | x_t = x], the regression of one Gaussian on another."""
    return MEAN + (t * STD**2 - (1 - t)) / spread(t) ** 2 * (x - t * MEAN)


def gaussian_average(x: Any, r: Any, t: Any) -> Any:
    return (x - transported(x, t, r)) / (t - r)


def linear_average(rate: Any, x: Any, r: Any, t: Any) -> Any:
    """Average velocity of dx/dt = rate·x: x_r = x_t·exp(−rate·(t − r))."""
    return -x * jnp.expm1(-rate * (t - r)) / (t - r)


# --- paths and Euler steps ---


@pytest.mark.parametrize(("rows", "shape"), [((2,), (1,)), ((5, 2), (5, 1)), ((5, 4, 2), (5, 1, 1))], ids=str)
def test_one_number_for_each_row_broadcasts_over_all_else(rows: tuple[int, ...], shape: tuple[int, ...]) -> None:
    assert paths.one_each(jnp.zeros(rows)) == shape
    assert jnp.broadcast_shapes(rows, shape) == rows


def test_straight_paths_run_from_start_to_end() -> None:
    path = paths.straight(jnp.array([[1.0, 2.0]] * 3), jnp.array([[5.0, -2.0]] * 3), column(0.0, 0.25, 1.0))
    np.testing.assert_allclose(path.points, [[1, 2], [2, 1], [5, -2]])
    np.testing.assert_allclose(path.velocities, [[4, -4]] * 3)


@pytest.mark.parametrize(("ends", "times"), [((3, 1), (3, 1)), ((3, 2), (3, 2)), ((3, 2), (3,))])
def test_paths_whose_shapes_would_broadcast_are_refused(ends: tuple[int, ...], times: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        paths.straight(jnp.zeros((3, 2)), jnp.zeros(ends), jnp.zeros(times))


def test_euler_by_hand() -> None:
    # dx/dt = x + 2t in two steps from 1: 1 + ½·1 = 1.5, then 1.5 + ½·(1.5 + 1) = 2.75.
    np.testing.assert_allclose(paths.euler(lambda x, t: x + 2 * t, jnp.ones((1, 1)), 2), 2.75)


@pytest.mark.slow
def test_euler_carries_noise_to_the_data_and_converges_at_first_order(x64: None) -> None:
    starts = jax.random.normal(jax.random.key(0), (20_000, 1))
    integrate = jax.jit(lambda steps: paths.euler(marginal, starts, steps), static_argnums=0)
    exact = MEAN + STD * starts
    coarse, fine = (np.abs(integrate(steps) - exact).max() for steps in (20, 40))
    assert 1.8 < coarse / fine < 2.2
    ends = integrate(80)
    np.testing.assert_allclose(ends, exact, atol=0.06)
    assert abs(ends.mean() - MEAN) < 0.01
    assert abs(ends.std() - STD) < 0.02


def test_one_euler_step_is_the_conditional_mean() -> None:
    # At time 0 the marginal velocity points at the data's mean, whatever the noise.
    np.testing.assert_allclose(paths.euler(marginal, jnp.array([[-2.0], [0.3], [1.0]]), 1), MEAN, rtol=1e-5)


# --- completions ---


@pytest.mark.parametrize("steps", [None, 1, 2, 5])
def test_completing_a_straight_path_is_exact(steps: int | None, x64: None) -> None:
    starts, ends = (jax.random.normal(jax.random.key(seed), (6, 2)) for seed in (1, 2))
    times = column(0.0, 0.1, 0.3, 0.5, 0.9, 1.0)
    points, velocities = paths.straight(starts, ends, times)
    if steps is None:  # from any time
        np.testing.assert_allclose(paths.complete(lambda x, t, d: velocities, points, times), ends, atol=1e-12)
    else:  # a jump that aims at the end from wherever it is
        aimed = paths.complete_in_steps(lambda x, t, d: (ends - x) / d, starts, steps)
        np.testing.assert_allclose(aimed, ends, atol=1e-12)


def test_completions_by_hand() -> None:
    def jump(x: jax.Array, t: jax.Array, d: jax.Array) -> jax.Array:
        return x + 2 * t + 3 * d

    start = jnp.ones((1, 1))
    # From time ¼: 1 + ¾·(1 + ½ + 9/4) = 61/16; from 0 in one step 1 + (1 + 3) = 5.
    np.testing.assert_allclose(paths.complete(jump, start, jnp.full((1, 1), 0.25)), 61 / 16)
    np.testing.assert_allclose(paths.complete_in_steps(jump, start, 1), 5)
    # In two: 1 + ½·(1 + 0 + 3·1) = 3, then 3 + ½·(3 + 1 + 3·½) = 5.75.
    np.testing.assert_allclose(paths.complete_in_steps(jump, start, 2), 5.75)


def gaussian_jump(x: Any, t: Any, d: Any) -> Any:
    """Mean velocity over a step of size d of the Gaussian field, the velocity where d = 0."""
    size = jnp.where(d == 0, 1.0, d)
    return jnp.where(d == 0, marginal(x, t), (transported(x, t, t + size) - x) / size)


POINTS = (-1.5, -0.2, 0.4, 1.3)


def test_exact_jumps_are_their_own_bootstrap_target(x64: None) -> None:
    points, times = column(*POINTS), column(0.0, 0.2, 0.5, 0.7)
    sizes = (1 - times) * column(1.0, 0.5, 0.25, 1.0)
    target = paths.bootstrap_target(gaussian_jump, points, times, sizes, 1 / 16)
    np.testing.assert_allclose(target, gaussian_jump(points, times, sizes), rtol=1e-12)
    wrong = paths.bootstrap_target(lambda x, t, d: gaussian_jump(x, t, d) + 0.1 * d, points, times, sizes, 1 / 16)
    np.testing.assert_allclose(wrong - target, 0.05 * sizes, atol=0.05 * 0.3)
    assert (np.abs(wrong - gaussian_jump(points, times, sizes)) > 1e-3).all()


def test_smallest_bootstrap_steps_follow_the_velocity(x64: None) -> None:
    # With a floor of 1/8: halves of 1/8 of the rest and less rest on the velocity, larger ones on jumps of their size.
    points, times = column(*POINTS), column(0.0, 0.2, 0.5, 0.7)
    shares, asked = column(1 / 4, 1 / 2, 1 / 8, 1 / 2), []

    def jump(x: jax.Array, t: jax.Array, d: jax.Array) -> jax.Array:
        asked.append(d)
        return gaussian_jump(x, t, d)

    halves = (1 - times) * shares / 2
    target = paths.bootstrap_target(jump, points, times, 2 * halves, 1 / 8)
    expected = np.array([0, 0.8 / 4, 0, 0.3 / 4])[:, None]
    np.testing.assert_allclose(asked, [expected, expected])
    first = marginal(points, times)
    heun = (first + marginal(points + halves * first, times + halves)) / 2
    np.testing.assert_allclose(target[::2], heun[::2], rtol=1e-12)


def test_rounding_does_not_move_the_floor() -> None:
    # In float32 (1 − t)·2^−6 / 2 may come out above 2^−7·(1 − t); all such halves still rest on the velocity.
    times, asked = jax.random.uniform(jax.random.key(6), (1000, 1)), []

    def jump(x: jax.Array, t: jax.Array, d: jax.Array) -> jax.Array:
        asked.append(d)
        return x

    for share in (0.5**6, 0.5**6 * 1.000001):
        paths.bootstrap_target(jump, jnp.zeros((1000, 2)), times, (1 - times) * share, 0.5**7)
    assert not np.any(asked)


def test_bootstrap_targets_give_no_gradient() -> None:
    def total(scale: jax.Array) -> jax.Array:
        points, times, sizes = scale * column(*POINTS), column(*[0.2] * 4), column(*[0.4] * 4)
        return paths.bootstrap_target(lambda *at: scale * gaussian_jump(*at), points, times, sizes, 1 / 8).sum()

    assert jax.grad(total)(1.3) == 0


# --- average velocities ---


def intervals_by_hand() -> tuple[jax.Array, jax.Array]:
    return column(0.0, 0.1, 0.4, 0.69), column(1.0, 0.3, 0.9, 0.7)


def test_the_gaussian_average_velocity_is_the_mean_of_the_velocity_on_the_way(x64: None) -> None:
    begins, times = intervals_by_hand()
    points = column(*POINTS)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    on_the_way = begins + (times - begins) * (nodes + 1) / 2
    velocities = marginal(transported(points, times, on_the_way), on_the_way)
    quadrature = (velocities * weights / 2).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(gaussian_average(points, begins, times), quadrature, rtol=1e-9)


FIELDS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "linear": (functools.partial(linear_average, 1.7), lambda x, t: 1.7 * x),
    "gaussian": (gaussian_average, marginal),
}


@pytest.mark.parametrize("field", FIELDS)
@variants
def test_exact_average_velocities_are_their_own_target(field: str, variant: Callable[..., Any], x64: None) -> None:
    (average, velocity), (begins, times) = FIELDS[field], intervals_by_hand()
    points = jnp.asarray([[x, -2 * x] for x in POINTS])
    path = paths.Path(points, velocity(points, times))
    target = functools.partial(paths.average_velocity_target, average)
    averages, targets = variant(target)(path, begins, times)
    np.testing.assert_allclose(averages, average(points, begins, times), rtol=1e-12)
    np.testing.assert_allclose(targets, averages, rtol=1e-9)


def test_another_average_velocity_is_not_its_own_target(x64: None) -> None:
    # u = 1.7 x for all r is the velocity of the linear field, not its average.
    begins, times = intervals_by_hand()
    points = column(*POINTS)
    _, targets = paths.average_velocity_target(lambda x, r, t: 1.7 * x, paths.Path(points, 1.7 * points), begins, times)
    np.testing.assert_allclose(targets, 1.7 * points - (times - begins) * 1.7**2 * points, rtol=1e-12)


def test_average_velocity_target_by_hand() -> None:
    # u = 2x + 3r + 5t at x = 1, r = ¼, t = ¾ with v = 4: u = 6.5, du/dt = 4·2 + 5 = 13, target 4 − ½·13 = −2.5.
    path = paths.Path(jnp.ones((1, 1)), jnp.full((1, 1), 4.0))
    averages, targets = paths.average_velocity_target(
        lambda x, r, t: 2 * x + 3 * r + 5 * t, path, jnp.full((1, 1), 0.25), jnp.full((1, 1), 0.75)
    )
    np.testing.assert_allclose(averages, 6.5)
    np.testing.assert_allclose(targets, -2.5)


def test_the_target_at_equal_times_is_the_velocity() -> None:
    times = column(0.0, 0.3, 1.0)
    path = paths.Path(jnp.ones((3, 2)), jax.random.normal(jax.random.key(7), (3, 2)))
    _, targets = paths.average_velocity_target(lambda x, r, t: jnp.sin(9 * x) + t**2 - r, path, times, times)
    np.testing.assert_array_equal(targets, path.velocities)


def test_average_velocity_targets_give_no_gradient() -> None:
    begins, times = intervals_by_hand()
    path = paths.Path(column(*POINTS), column(*POINTS) * 2)

    def total(which: int, rate: jax.Array, path: paths.Path) -> jax.Array:
        average = functools.partial(linear_average, rate)
        return paths.average_velocity_target(average, path, begins, times)[which].sum()

    rate_slope, path_slope = jax.grad(functools.partial(total, 1), argnums=(0, 1))(1.7, path)
    assert rate_slope == 0
    np.testing.assert_array_equal(path_slope, jax.tree.map(jnp.zeros_like, path))
    # The first output is the network's own, with its gradient.
    slope = jax.grad(functools.partial(total, 0))(1.7, path)
    exact = jax.grad(lambda rate: linear_average(rate, path.points, begins, times).sum())(1.7)
    np.testing.assert_allclose(slope, exact, rtol=1e-6)


# --- time samplers ---

N = 20_000
"""Draws per test; the Kolmogorov distance of a right sampler exceeds 0.0115 in one of a hundred seeds."""


def normal_cdf(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def logit_normal_cdf(t: np.ndarray) -> np.ndarray:
    return normal_cdf(np.log(t / (1 - t)) + 0.4)


def distance(draws: np.ndarray, cdf: Callable[[np.ndarray], np.ndarray]) -> float:
    """Kolmogorov's distance between draws and a distribution function."""
    ordered = cdf(np.sort(np.asarray(draws, np.float64)))
    return float(np.abs(ordered - (np.arange(len(ordered)) + 0.5) / len(ordered)).max())


SAMPLERS: dict[str, paths.TimeSampler] = {
    "uniform_times": paths.uniform_times,
    "early_times": paths.early_times,
    "logit_normal_times": paths.logit_normal_times,
}
CDFS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uniform_times": lambda t: t,
    "early_times": np.sqrt,
    "logit_normal_times": logit_normal_cdf,
}


@pytest.mark.parametrize("name", CDFS)
def test_times_follow_their_distribution(name: str) -> None:
    draws = SAMPLERS[name](jax.random.key(8), (N // 4, 4, 1))
    assert draws.shape == (N // 4, 4, 1)
    assert 0 <= draws.min() <= draws.max() <= 1
    assert distance(draws.ravel(), CDFS[name]) < 0.015


def test_early_times_have_the_moments_of_a_square() -> None:
    draws = paths.early_times(jax.random.key(9), (N,))
    assert abs(draws.mean() - 1 / 3) < 0.01  # E u²
    assert abs((draws**2).mean() - 1 / 5) < 0.01  # E u⁴
    assert abs((draws < 0.01).mean() - 0.1) < 0.01


def test_logit_normal_times_take_another_mean_and_spread() -> None:
    draws = paths.logit_normal_times(jax.random.key(10), (N,), 1.0, 0.5)
    logits = np.log(draws / (1 - draws))
    assert abs(logits.mean() - 1) < 0.02
    assert abs(logits.std() - 0.5) < 0.02


intervals = jax.jit(paths.interval_times, static_argnames=("shape", "sampler"))


@pytest.mark.parametrize(
    ("rows", "ratio", "equal"), [(10, 0.0, 0), (10, 0.5, 5), (10, 0.31, 4), (7, 0.5, 4), (10, 1.0, 10), (8, 0.25, 2)]
)
def test_an_exact_share_of_intervals_is_empty(rows: int, ratio: float, equal: int) -> None:
    begins, times = intervals(jax.random.key(11), (rows, 1), jnp.float32(ratio), paths.uniform_times)
    assert begins.shape == times.shape == (rows, 1)
    np.testing.assert_array_equal((begins == times)[:, 0], np.arange(rows) < equal)
    assert (begins <= times).all()


@pytest.mark.parametrize("name", ["uniform_times", "logit_normal_times"])
def test_intervals_are_two_independent_times_in_order(name: str) -> None:
    draw = functools.partial(intervals, jax.random.key(12), (N, 1))
    begins, times = (np.asarray(x)[:, 0] for x in draw(jnp.float32(0), SAMPLERS[name]))
    cdf = CDFS[name]
    assert distance(times, lambda t: cdf(t) ** 2) < 0.015
    assert distance(begins, lambda t: 1 - (1 - cdf(t)) ** 2) < 0.015
    # The gap of two independent uniforms has the distribution function 1 − (1 − g)².
    assert distance(cdf(times) - cdf(begins), lambda gap: 1 - (1 - gap) ** 2) < 0.015
    # Where r is set to t, the later of the two stays.
    equal, later = draw(jnp.float32(1), SAMPLERS[name])
    np.testing.assert_array_equal(equal, later)
    np.testing.assert_array_equal(later[:, 0], times)


def test_shares_of_empty_intervals_may_be_mapped() -> None:
    def share(ratio: jax.Array) -> jax.Array:
        begins, times = paths.interval_times(jax.random.key(13), (8, 1), ratio, paths.uniform_times)
        return jnp.mean(begins == times)

    np.testing.assert_allclose(jax.vmap(share)(jnp.array([0.0, 0.25, 1.0])), [0, 0.25, 1])


def test_intervals_of_segments_are_those_of_their_rows() -> None:
    draw = functools.partial(intervals, jax.random.key(14), flow_ratio=jnp.float32(0.5), sampler=paths.uniform_times)
    np.testing.assert_array_equal(np.stack(draw(shape=(6, 1)))[..., None], draw(shape=(6, 1, 1)))


FAULTS = {
    "flowrl/paths.py": [
        ("ends - starts)", "starts - ends)", "test_straight_paths_run_from_start_to_end"),
        (
            "jnp.full(one_each(starts), i / steps)) / steps",
            "jnp.full(one_each(starts), (i + 1) / steps)) / steps",
            "test_euler_by_hand",
        ),
        (
            "points + (1 - times) * jump(points, times, 1 - times)",
            "points + jump(points, times, 1 - times)",
            "test_completions_by_hand",
        ),
        (
            "jump(points, times, 1 - times) / steps",
            "jump(points, times, jnp.full_like(times, 1 / steps)) / steps",
            "test_completions_by_hand",
        ),
        ("first, times + halves, asked)", "first, times, asked)", "test_exact_jumps_are_their_own_bootstrap_target"),
        (" * (1 + 1e-3)", "", "test_rounding_does_not_move_the_floor"),
        ("floor * (1 - times)", "floor", "test_smallest_bootstrap_steps_follow_the_velocity"),
        (
            "jax.lax.stop_gradient((first + second) / 2)",
            "(first + second) / 2",
            "test_bootstrap_targets_give_no_gradient",
        ),
        (
            "jnp.zeros_like(begins), jnp.ones_like(times))",
            "jnp.ones_like(begins), jnp.zeros_like(times))",
            "test_average_velocity_target_by_hand",
        ),
        (
            "path.velocities - (times - begins) * derivatives",
            "path.velocities + (times - begins) * derivatives",
            "test_exact_average_velocities_are_their_own_target and linear",
        ),
        (
            "jax.lax.stop_gradient(path.velocities - (times - begins) * derivatives)",
            "path.velocities - (times - begins) * derivatives",
            "test_average_velocity_targets_give_no_gradient",
        ),
        (
            "jax.random.uniform(key, shape) ** 2",
            "jax.random.uniform(key, shape) ** 0.5",
            "test_times_follow_their_distribution and early",
        ),
        ("mean: float = -0.4", "mean: float = 0.4", "test_times_follow_their_distribution and logit"),
        ("flow_ratio * shape[0]", "(1 - flow_ratio) * shape[0]", "test_an_exact_share_of_intervals_is_empty"),
        (
            "jnp.where(equal, times, draws.min(axis=0))",
            "jnp.where(equal, times, draws[0])",
            "test_an_exact_share_of_intervals_is_empty",
        ),
    ],
}
