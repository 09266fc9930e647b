"""Flows against closed forms: their errors at true fields, by hand, and their samples."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_paths import MEAN, STD, distance, marginal, normal_cdf
from ways import variants

from flowrl.generative import Flow, MeanFlow

# -------------------------------------------------------------------------------------------- flows to one action

ACTION = jnp.array([0.4, -0.7])


def velocity(action: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
    """The true field of paths from noise at time 0 to one action: x_t = (1 − t) ε + t c."""
    return (action - x) / (1 - t)


def average(action: jax.Array, x: jax.Array, begin: jax.Array, t: jax.Array) -> jax.Array:
    """The true average velocity, noise at time 1: x_t = (1 − t) c + t ε."""
    return (x - action) / t


FIELDS = {"flow": velocity, "mean_flow": average}

MODELS: dict[str, Callable[..., Any]] = {"flow": Flow, "mean_flow": MeanFlow}

both = pytest.mark.parametrize("name", MODELS)


@both
@pytest.mark.parametrize("steps", [1, 5])
def test_the_true_field_leads_to_its_action(name: str, steps: int) -> None:
    starts = 0.5 * jax.random.normal(jax.random.key(0), (5, 2))
    drawn = MODELS[name](steps=steps).sample(functools.partial(FIELDS[name], ACTION), starts, jax.random.key(0))
    np.testing.assert_allclose(drawn, jnp.broadcast_to(ACTION, (5, 2)), atol=1e-5)


@both
@pytest.mark.parametrize("shape", [(50, 2), (50, 4, 2)], ids=str)
def test_the_true_field_has_no_error(name: str, shape: tuple[int, ...]) -> None:
    actions = jnp.broadcast_to(ACTION, shape)
    found = MODELS[name]().errors(functools.partial(FIELDS[name], ACTION), actions, jax.random.key(3))
    assert found.shape == (50,)
    np.testing.assert_allclose(found, 0, atol=1e-4)
    wrong = MODELS[name]().errors(functools.partial(FIELDS[name], ACTION + 0.5), actions, jax.random.key(3))
    assert wrong.mean() > 0.1


@variants
@both
def test_errors_by_hand(name: str, variant: Callable[..., Any]) -> None:
    """A field that is 0 everywhere: either model's target is the velocity, ±(a − ε), and the error its square."""
    actions, key = jnp.array([[0.5, -0.5], [1.0, 0.0]]), jax.random.key(5)
    noise = jax.random.normal(jax.random.split(key)[0], (2, 2))
    found = variant(functools.partial(MODELS[name]().errors, lambda x, *times: 0 * x))(actions, key)
    np.testing.assert_allclose(found, ((actions - noise) ** 2).mean(axis=-1), rtol=1e-5)


@variants
def test_mean_flow_weighs_rows_by_their_errors(variant: Callable[..., Any]) -> None:
    """Errors e become e / (e + c)^p, and the weights are constants."""
    actions, key = jax.random.normal(jax.random.key(1), (6, 2)), jax.random.key(5)

    def errors(scale: jax.Array, power: jax.Array) -> jax.Array:
        model = MeanFlow(adaptive_power=power, adaptive_constant=jnp.float32(0.2))
        return model.errors(lambda x, *times: scale * jnp.ones_like(x), actions, key)

    plain, weighted = (variant(errors)(jnp.float32(0.3), jnp.float32(power)) for power in (0.0, 0.7))
    np.testing.assert_allclose(weighted, plain * (plain + 0.2) ** -0.7, rtol=1e-5)
    slopes = [variant(jax.jacobian(errors))(jnp.float32(0.3), jnp.float32(power)) for power in (0.0, 0.7)]
    np.testing.assert_allclose(slopes[1], slopes[0] * (plain + 0.2) ** -0.7, rtol=1e-4)


@pytest.mark.parametrize(("divided", "moved"), [(True, 1.0), (False, 3.0)])
def test_each_of_several_steps_takes_its_share_of_the_path(divided: bool, moved: float) -> None:
    asked = []

    def constant(x: jax.Array, begin: jax.Array, t: jax.Array) -> jax.Array:
        asked.append((float(begin[0, 0]), float(t[0, 0])))
        return jnp.broadcast_to(ACTION, x.shape)

    starts = 0.5 * jax.random.normal(jax.random.key(0), (5, 2))
    drawn = MeanFlow(steps=3, divide_steps=divided).sample(constant, starts)
    np.testing.assert_allclose(drawn, starts - moved * ACTION, rtol=1e-5)
    np.testing.assert_allclose(asked, [(2 / 3, 1), (1 / 3, 2 / 3), (0, 1 / 3)], atol=1e-6)


def test_flows_start_from_unit_noise() -> None:
    assert Flow().deviation() == MeanFlow().deviation() == 1


# ------------------------------------------------------------------------------------------------ flow matching


def test_flow_matching_is_least_at_the_marginal_field() -> None:
    # Var(x₁ − x₀ | x_t) = STD²/spread(t)², whose integral over t is STD·π/2; any other field adds its squared distance.
    ends = MEAN + STD * jax.random.normal(jax.random.key(1), (200_000, 1))
    errors = functools.partial(Flow().errors, a=ends, key=jax.random.key(2))
    least = float(errors(marginal).mean())
    assert abs(least - STD * math.pi / 2) < 0.01
    assert abs(errors(lambda x, t: marginal(x, t) + 0.5).mean() - least - 0.25) < 0.01


@pytest.mark.parametrize("shape", [(50, 2), (50, 4, 2)], ids=str)
def test_flow_matching_is_a_mean_over_dimensions_of_each_row(shape: tuple[int, ...]) -> None:
    # A velocity of x₁ − x₀ + c has error c² in each dimension; the noise comes back from the point and the time.
    ends = jax.random.normal(jax.random.key(3), shape)
    offset = jnp.array([1.0, 3.0])
    errors = Flow().errors(lambda x, t: (ends - x) / (1 - t) + offset, ends, jax.random.key(4))
    np.testing.assert_allclose(errors, np.full(50, 5.0), rtol=1e-3)


def test_flow_matching_draws_uniform_times_and_unit_noise() -> None:
    seen: dict[str, Any] = {}

    def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
        seen.update(x=np.asarray(x), t=np.asarray(t))
        return x

    Flow().errors(velocity, jnp.full((20_000, 2), 3.0), jax.random.key(5))
    assert seen["t"].shape == (20_000, 1)
    assert distance(seen["t"].ravel(), lambda t: t) < 0.015
    noise = (seen["x"] - 3 * seen["t"]) / (1 - seen["t"])
    assert distance(noise[seen["t"][:, 0] < 0.9].ravel(), normal_cdf) < 0.015
    assert abs(np.corrcoef(noise[:, 0], seen["t"][:, 0])[0, 1]) < 0.03


FAULTS = {
    "flowrl/generative.py": [
        ("x = x - field(", "x = x + field(", "test_the_true_field_leads_to_its_action"),
        ("self.steps if self.divide_steps else 1", "1", "test_each_of_several_steps_takes_its_share_of_the_path"),
        (
            "a.shape), a, t)\n        return mse(field(path.points, t), path",
            "a.shape), -a, t)\n        return mse(field(path.points, t), path",
            "test_the_true_field_has_no_error",
        ),
    ],
}
