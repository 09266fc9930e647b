"""Denoising diffusion against closed forms: a point, a Gaussian, and numbers by hand."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowrl import diffusion
from flowrl.agent import Spec
from flowrl.agents import dpmd
from flowrl.errors import UserError

SCHEDULE = diffusion.linear_schedule(20, 0.3)
OLDER = {"schedule_scale": 0.3, "start": "scaled"}


def test_schedule_and_noise_by_hand() -> None:
    """β = 0.1, 0.3, 0.5: ᾱ = 0.9, 0.63, 0.315."""
    schedule = diffusion.linear_schedule(3, 1.0, 0.1, 0.5)
    np.testing.assert_allclose(schedule, [0.9, 0.63, 0.315])
    levels = jnp.array([[0], [2]])
    for variant in (lambda f: f, jax.jit):
        found = variant(functools.partial(diffusion.noised, schedule))(jnp.ones((2, 1)), -2 * jnp.ones((2, 1)), levels)
        expected = [[0.9**0.5 - 2 * 0.1**0.5], [0.315**0.5 - 2 * 0.685**0.5]]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, [19]), (2, [19, 0]), (5, [19, 14, 10, 5, 0]), (20, range(19, -1, -1))]
)
def test_visited_levels(steps: int, expected: Any) -> None:
    np.testing.assert_array_equal(diffusion.sampled_levels(20, steps), list(expected))


def model_of(mean: float, std: float, schedule: np.ndarray = SCHEDULE) -> diffusion.NoiseModel:
    """The noise to be expected in √ᾱ x + √(1 − ᾱ) ε with x from a Gaussian."""

    def model(points: jax.Array, levels: jax.Array) -> jax.Array:
        left = jnp.asarray(schedule)[levels.astype(int)]
        variance = left * std**2 + 1 - left
        return jnp.sqrt(1 - left) * (points - jnp.sqrt(left) * mean) / variance

    return model


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_a_point_is_found_in_any_number_of_steps(steps: int) -> None:
    starts = jax.random.normal(jax.random.key(0), (50, 2))
    found = diffusion.ancestral(model_of(0.4, 0.0), starts, jax.random.key(1), SCHEDULE, steps)
    np.testing.assert_allclose(found, 0.4, atol=1e-4)


def test_a_gaussian_is_sampled() -> None:
    """Its samples have its mean and deviation; one step can only give the mean that the start lets expect."""
    fine = diffusion.linear_schedule(200, 0.03)
    starts = jax.random.normal(jax.random.key(0), (20_000, 1))
    model = model_of(0.2, 0.15, fine)
    sample = functools.partial(diffusion.ancestral, model, starts, jax.random.key(1), fine)
    found = sample(200)
    assert abs(float(found.mean()) - 0.2) < 0.005
    assert abs(float(found.std()) - 0.15) < 0.01
    assert float(sample(1).std()) < 0.05


def test_samples_stay_in_the_box() -> None:
    starts = 5 * jax.random.normal(jax.random.key(0), (100, 1))
    far = diffusion.ancestral(model_of(3.0, 0.5), starts, jax.random.key(1), SCHEDULE, 5)
    assert float(far.min()) > 0.95
    assert float(far.max()) <= 1.0


def test_one_step_by_hand() -> None:
    """Two levels, ᾱ = 0.9, 0.72; x = 1 and no noise predicted: the data is 1/√0.72, cut to 1; β = 0.2."""
    schedule = np.array([0.9, 0.72])
    found = diffusion.ancestral(lambda x, _: 0 * x, jnp.ones((1, 1)), jax.random.key(0), schedule, 2)
    mean = (0.9**0.5 * 0.2 * 1 + 0.8**0.5 * 0.1 * 1) / 0.28
    draw = jax.random.normal(jax.random.key(0), (2, 1, 1))[0]
    between = mean + (0.2 * 0.1 / 0.28) ** 0.5 * draw
    np.testing.assert_allclose(found, jnp.clip(between / 0.9**0.5, -1, 1), rtol=1e-5)


class Known:
    """A network that predicts one number as the noise."""

    out_dim = 2

    def apply(self, prediction: jax.Array, observations: jax.Array, points: jax.Array, levels: jax.Array) -> jax.Array:
        return prediction + 0 * points


def test_errors_by_hand() -> None:
    key, actions = jax.random.key(5), jnp.array([[0.5, -0.5], [1.0, 0.0]])
    noise = jax.random.normal(jax.random.split(key)[0], (2, 2))
    errors = functools.partial(dpmd.errors, Known(), dpmd.Config())
    for variant in (lambda f: f, jax.jit):
        found = variant(errors)(jnp.float32(0.3), jnp.zeros((2, 3)), actions, key)
        np.testing.assert_allclose(found, ((noise - 0.3) ** 2).mean(axis=-1), rtol=1e-5)


def test_errors_are_of_noised_actions_at_their_level() -> None:
    class Echo(Known):
        def apply(self, prediction: jax.Array, observations: jax.Array, points: jax.Array, *levels: Any) -> jax.Array:
            return points + prediction * levels[0]

    key, actions = jax.random.key(5), jnp.array([[0.5, -0.5], [1.0, 0.0]])
    noise_key, level_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (2, 2))
    levels = jax.random.randint(level_key, (2, 1), 0, 20)
    left = SCHEDULE[np.asarray(levels)]
    points = np.sqrt(left) * actions + np.sqrt(1 - left) * noise
    found = dpmd.errors(Echo(), dpmd.Config(**OLDER), jnp.float32(0.1), jnp.zeros((2, 3)), actions, key)
    np.testing.assert_allclose(found, ((points + 0.1 * levels - noise) ** 2).mean(axis=-1), rtol=1e-5)


@pytest.mark.parametrize(("evaluation", "steps"), [(True, 1), (False, 3)])
def test_training_and_evaluation_take_their_own_steps(evaluation: bool, steps: int) -> None:
    config = dpmd.Config(diffusion_steps=3, eval_steps=1, **OLDER)
    start_key, steps_key = jax.random.split(jax.random.key(2))
    starts = 0.7 * jax.random.normal(start_key, (4, 2))
    schedule, network = diffusion.linear_schedule(3, 0.3), Known()
    model = functools.partial(network.apply, jnp.float32(0.2), jnp.zeros((4, 3)))
    expected = diffusion.ancestral(model, starts, steps_key, schedule, steps)
    arguments = (jnp.float32(0.2), jnp.zeros((4, 3)), jax.random.key(2), 0.7, evaluation)
    np.testing.assert_allclose(dpmd.sample(network, config, *arguments), expected, rtol=1e-5)


def test_sampling_starts_from_the_noise_that_the_last_level_leaves() -> None:
    """Two levels, β = 0.8 · (1e-4, 0.999): ᾱ of the last is 0.99992 · 0.2008. No noise is predicted."""
    found = dpmd.sample(
        Known(), dpmd.Config(diffusion_steps=2, eval_steps=1), 0.0, jnp.zeros((500, 3)), jax.random.key(0), 99.0, True
    )
    left = 0.99992 * 0.2008
    starts = jax.random.normal(jax.random.split(jax.random.key(0))[0], (500, 2))
    np.testing.assert_allclose(found, jnp.clip((1 - left) ** 0.5 * starts / left**0.5, -1, 1), rtol=1e-4)


def test_cosine_schedule_by_hand() -> None:
    """cos²(π/2 · (t + 0.008)/1.008) at t = 0, ½, 1: 0.999845, 0.493767, 0; β = 0.506156 and 1, cut to 0.999."""
    np.testing.assert_allclose(diffusion.cosine_schedule(2, 1.0), [0.493844, 0.000493844], rtol=1e-5)
    np.testing.assert_allclose(diffusion.cosine_schedule(2, 0.5), [0.746922, 0.746922 * 0.5005], rtol=1e-5)


@pytest.mark.parametrize(
    ("message", "fields"),
    [("eval_steps=30", {"eval_steps": 30}), ("least is 2", {"diffusion_steps": 1, "eval_steps": 1})],
)
def test_steps_that_do_not_fit_are_refused(message: str, fields: dict[str, int]) -> None:
    with pytest.raises(UserError, match=message):
        dpmd.make(dpmd.Config(**fields), Spec(3, 2, 0))
