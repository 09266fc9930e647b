"""Adjoint matching: linear fields, for which everything has a closed form, as written, under jit and vmap."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ways import Way, array, each_way

from flowrl import adjoint


def linear(slope: Callable[[jax.Array], jax.Array], shift: float = 0.0) -> Callable[..., jax.Array]:
    """The field a(t) x + b."""
    return lambda x, t: slope(t) * x + shift


def rising(t: Any) -> Any:
    """a(t) = 1 + t."""
    return 1 + t


@each_way
def test_deviation(way: Way) -> None:
    # h = ½: at 0 √(2·1.5/½) = √6, at ½ √(2·1/1) = √2
    np.testing.assert_allclose(way(lambda t: adjoint.deviation(t, 0.5))(array(0, 0.5)), np.sqrt([6, 2]), rtol=1e-6)


@each_way
def test_points_of_two_steps(way: Way) -> None:
    # h = ½, v = 3: x₁ = 1 + ½ (2·3 − 1/½) + √½·√6·ξ = 3 + √3·2, and then half a step of the base flow, v̄ = x.
    def run(z: jax.Array, noise: jax.Array) -> jax.Array:
        return adjoint.memoryless(lambda x, t: 3 + 0 * x, lambda x, t: x, z, noise)

    points = way(run)(array([1.0]), array([[2.0]]))
    middle = 3 + 2 * np.sqrt(3)
    np.testing.assert_allclose(points.reshape(3), [1, middle, 1.5 * middle], rtol=1e-6)


@each_way
def test_the_lean_adjoint_of_a_linear_field_is_a_product_of_scalars(way: Way) -> None:
    """v̄ = a(t) x and the cost ½ c x²: gᵢ = c x_N ∏ (1 + h (2 a(t + h) − 1/(t + h))), whatever the points between."""
    steps, cost, rng = 5, 1.7, np.random.default_rng(0)
    points = jnp.asarray(rng.normal(size=(steps + 1, 4, 2)), jnp.float32)

    def run(points: jax.Array) -> jax.Array:
        slopes = jax.grad(lambda x: 0.5 * cost * (x**2).sum())(points[-1])
        return adjoint.lean(linear(rising, 0.3), points, slopes)

    found, expected = way(run)(points), []
    for i in range(steps):
        later = np.arange(i, steps) / steps + 1 / steps
        expected.append(cost * points[-1] * np.prod(1 + (2 * rising(later) - 1 / later) / steps))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@each_way
def test_errors_by_hand(way: Way) -> None:
    # One row, two steps, h = ½: σ = √6, √2. v − v̄ = 3 at both: 2·3/√6 + √6·1 = 2√6 and 6/√2 − √2·2 = √2: 24 + 2.
    points, adjoints = array([[5.0]], [[7.0]], [[9.0]]), array([[1.0]], [[-2.0]])

    def run(points: jax.Array, adjoints: jax.Array) -> Any:
        def loss(shift: jax.Array) -> jax.Array:
            return adjoint.errors(lambda x, t: x + shift, lambda x, t: x, points, adjoints).sum()

        return jax.value_and_grad(loss)(jnp.float32(3.0))

    value, slope = way(run)(points, adjoints)
    np.testing.assert_allclose(value, 26, rtol=1e-5)
    # d/dshift: 2·(2/σ)·gap summed: 2·2/√6·2√6 + 2·2/√2·√2
    np.testing.assert_allclose(slope, 12, rtol=1e-5)


def test_errors_hold_points_and_adjoints_constant() -> None:
    def loss(points: jax.Array, adjoints: jax.Array) -> jax.Array:
        return adjoint.errors(lambda x, t: x**2, lambda x, t: x, points, adjoints).sum()

    for slopes in jax.grad(loss, argnums=(0, 1))(jnp.ones((3, 1, 1)), jnp.ones((2, 1, 1))):
        np.testing.assert_array_equal(slopes, 0)


SPREAD, TILT, STEPS = 0.5, 0.8, 40
"""Deviation of Gaussian data about 0, the reward's slope, and steps fine enough for limits."""


def gaussian_flow(t: Any, spread: float = SPREAD) -> Any:
    """a(t) of the flow that carries N(0, 1) to N(0, spread²) along straight paths."""
    return (t * spread**2 - (1 - t)) / (t**2 * spread**2 + (1 - t) ** 2)


def tilt_of_a_linear_reward() -> tuple[jax.Array, jax.Array]:
    """g and 2 (v − v̄) = −σ² g for the cost −TILT·x: the slope is constant, and so g does not depend on x."""
    slopes = jnp.full((1, 1), -TILT)
    g = adjoint.lean(linear(gaussian_flow), jnp.zeros((STEPS + 1, 1, 1)), slopes)[:, 0, 0]
    return g, -(adjoint.deviation(jnp.arange(STEPS) / STEPS, 1 / STEPS) ** 2) * g / 2


@pytest.mark.slow
def test_the_optimal_control_tilts_gaussian_data() -> None:
    """N(0, s²) times exp(c x) is N(c s², s²): where the optimal control leads, by the process and by the flow.

    Its error is 0; without it the ends are as the data's. The process forgets where it starts.
    """
    g, push = tilt_of_a_linear_reward()

    def steered(x: jax.Array, t: jax.Array) -> jax.Array:
        return gaussian_flow(t) * x + push[jnp.round(t * STEPS).astype(int)]

    base = linear(gaussian_flow)

    def run(key: jax.Array) -> tuple[jax.Array, ...]:
        z, noise = jnp.linspace(-2, 2, 2000)[:, None], jax.random.normal(key, (STEPS - 1, 2000, 1))
        points = adjoint.memoryless(steered, base, z, noise)
        plain = adjoint.memoryless(base, base, z, noise)
        gaps = adjoint.errors(steered, base, points, jnp.broadcast_to(g[:, None, None], (STEPS, 2000, 1)))
        x = z
        for i in range(STEPS):
            x = x + steered(x, jnp.full((1, 1), i / STEPS)) / STEPS
        return points[-1], plain[-1], gaps, x

    ends, plain, gaps, flowed = jax.jit(run)(jax.random.key(0))
    np.testing.assert_allclose(gaps, 0, atol=1e-3)
    np.testing.assert_allclose([plain.mean(), plain.std()], [0, SPREAD], atol=0.03)
    np.testing.assert_allclose([ends.mean(), ends.std()], [TILT * SPREAD**2, SPREAD], atol=0.03)
    assert abs(float(np.corrcoef(ends[:, 0], np.linspace(-2, 2, 2000))[0, 1])) < 0.1
    # The flow with the same velocity: its ends have the same mean, as the means of both obey one equation in the limit.
    np.testing.assert_allclose(flowed[1000], TILT * SPREAD**2, atol=0.03)


COST = 3.0
"""Of the quadratic cost ½ c x²."""


def trained_against_a_quadratic_cost(steps: int) -> tuple[jax.Array, ...]:
    """Variances of the ends without and with the control k(t) x that adjoint matching learns, its last slope, and k.

    All is linear in the start and the noise, so that sums over the unit vectors of these are means over all draws.
    """
    base, unit = linear(gaussian_flow), jnp.eye(steps)

    def steered(k: jax.Array) -> Callable[..., jax.Array]:
        return lambda x, t: base(x, t) + k[jnp.round(t * steps).astype(int)] * x

    def follow(k: jax.Array) -> jax.Array:
        return adjoint.memoryless(steered(k), base, unit[:, :1], unit[:, 1:].T[..., None])

    def improve(k: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        points = follow(k)
        g = adjoint.lean(base, points, COST * points[-1])
        slope = jax.grad(lambda k: adjoint.errors(steered(k), base, points, g).sum())
        slopes, curvatures = jax.jvp(slope, (k,), (jnp.ones(steps),))  # each time has a curvature of its own
        return k - 0.5 * slopes / curvatures, jnp.abs(slopes).max()

    nothing = jnp.zeros(steps)
    k, slopes = jax.lax.scan(improve, nothing, None, length=40)
    return (follow(nothing)[-1] ** 2).sum(), (follow(k)[-1] ** 2).sum(), slopes[-1], k


def test_a_quadratic_cost_narrows_gaussian_data_as_the_closed_form_says() -> None:
    """N(0, s²) times exp(−½ c x²) is N(0, 1/(1/s² + c)), up to errors that fall with the size of the steps."""
    narrow, times, controls, gaps = 1 / (1 / SPREAD**2 + COST), np.array([0.25, 0.5]), [], []
    for steps in (8, 16):
        plain, ends, slope, k = jax.jit(trained_against_a_quadratic_cost, static_argnums=0)(steps)
        assert slope < 1e-3
        gaps.append((float(plain) - SPREAD**2, float(ends) - narrow))
        controls.append(k[(times * steps).astype(int)])
    assert 0 < gaps[1][1] < min(0.03, gaps[0][1] / 2)
    assert 0 < gaps[1][0] < 0.05  # that of the process without any control
    optimal = gaussian_flow(times, narrow**0.5) - gaussian_flow(times)
    np.testing.assert_allclose(2 * controls[1] - controls[0], optimal, atol=0.03)  # with ever smaller steps


FAULTS = {
    "flowrl/adjoint.py": [
        ("2 * (1 - times + step)", "2 * (1 - times)", "test_deviation and plain"),
        ("(2 * velocity(x, t) - x / (t + h))", "(velocity(x, t) - x / (t + h))", "test_points_of_two_steps and plain"),
        ("h * base(points[-1], last)", "h * velocity(points[-1], last)", "test_points_of_two_steps and plain"),
        ("jnp.sqrt(h) * deviation", "h * deviation", "test_points_of_two_steps and plain"),
        (
            "2 * base(x, t) - x / t",
            "2 * base(x, t) + x / t",
            "test_the_lean_adjoint_of_a_linear_field_is_a_product_of_scalars and plain",
        ),
        (
            "(i + 1) / steps)",
            "(i + 0.5) / steps)",
            "test_the_lean_adjoint_of_a_linear_field_is_a_product_of_scalars and plain",
        ),
        (
            "+ pulled(adjoints[-1])[0] / steps",
            "+ 0.5 * pulled(adjoints[-1])[0] / steps",
            "test_a_quadratic_cost_narrows_gaussian_data_as_the_closed_form_says",
        ),
        (
            "adjoints[:0:-1]",
            "adjoints[1:]",
            "test_the_lean_adjoint_of_a_linear_field_is_a_product_of_scalars and plain",
        ),
        ("/ sigma + sigma * adjoints", "/ sigma - sigma * adjoints", "test_errors_by_hand and plain"),
        (
            "jax.lax.stop_gradient((points[:-1], adjoints))",
            "(points[:-1], adjoints)",
            "test_errors_hold_points_and_adjoints_constant",
        ),
    ],
}
