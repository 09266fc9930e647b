"""Diffusion against closed forms: schedules, errors and samples by hand, and the chain's gradients."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ways import Way, array, each_way, variants

from flowrl import diffusion
from flowrl.config import check
from flowrl.diffusion import Diffusion
from flowrl.dpm_solver import NoiseModel
from flowrl.errors import UserError

# ---------------------------------------------------------------------------------------------------- diffusion

SCHEDULE = diffusion.linear_schedule(20, 0.3)


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


def model_of(mean: float, std: float, schedule: np.ndarray = SCHEDULE) -> NoiseModel:
    """The noise to be expected in √ᾱ x + √(1 − ᾱ) ε with x from a Gaussian."""

    def model(points: jax.Array, levels: jax.Array) -> jax.Array:
        left = jnp.asarray(schedule)[levels.astype(int)]
        variance = left * std**2 + 1 - left
        return jnp.sqrt(1 - left) * (points - jnp.sqrt(left) * mean) / variance

    return model


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_a_point_is_found_in_any_number_of_steps(steps: int) -> None:
    starts = jax.random.normal(jax.random.key(0), (50, 2))
    found = diffusion.denoise(model_of(0.4, 0.0), starts, jax.random.key(1), SCHEDULE, steps)
    np.testing.assert_allclose(found, 0.4, atol=1e-4)


@pytest.mark.slow
def test_a_gaussian_is_sampled() -> None:
    """Its samples have its mean and deviation; one step can only give the mean that the start lets expect."""
    fine = diffusion.linear_schedule(200, 0.03)
    starts = jax.random.normal(jax.random.key(0), (20_000, 1))
    model = model_of(0.2, 0.15, fine)
    sample = functools.partial(diffusion.denoise, model, starts, jax.random.key(1), fine)
    found = sample(200)
    assert abs(float(found.mean()) - 0.2) < 0.005
    assert abs(float(found.std()) - 0.15) < 0.01
    assert float(sample(1).std()) < 0.05


def test_samples_stay_in_the_box() -> None:
    starts = 5 * jax.random.normal(jax.random.key(0), (100, 1))
    far = diffusion.denoise(model_of(3.0, 0.5), starts, jax.random.key(1), SCHEDULE, 5)
    assert float(far.min()) > 0.95
    assert float(far.max()) <= 1.0


def test_one_step_by_hand() -> None:
    """Two levels, ᾱ = 0.9, 0.72; x = 1 and no noise predicted: the data is 1/√0.72, cut to 1; β = 0.2."""
    schedule = np.array([0.9, 0.72])
    found = diffusion.denoise(lambda x, _: 0 * x, jnp.ones((1, 1)), jax.random.key(0), schedule, 2)
    mean = (0.9**0.5 * 0.2 * 1 + 0.8**0.5 * 0.1 * 1) / 0.28
    draw = jax.random.normal(jax.random.key(0), (2, 1, 1))[0]
    between = mean + (0.2 * 0.1 / 0.28) ** 0.5 * draw
    np.testing.assert_allclose(found, jnp.clip(between / 0.9**0.5, -1, 1), rtol=1e-5)


OLDER = Diffusion(schedule_scale=0.3)


@variants
def test_errors_of_a_known_prediction_by_hand(variant: Callable[..., Any]) -> None:
    key, actions = jax.random.key(5), jnp.array([[0.5, -0.5], [1.0, 0.0]])
    noise = jax.random.normal(jax.random.split(key)[0], (2, 2))
    found = variant(functools.partial(Diffusion().errors, lambda x, levels: 0.3 + 0 * x))(actions, key)
    np.testing.assert_allclose(found, ((noise - 0.3) ** 2).mean(axis=-1), rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 2), (2, 3, 2)], ids=str)
def test_errors_are_of_noised_actions_at_their_level(shape: tuple[int, ...]) -> None:
    key, actions = jax.random.key(5), jnp.linspace(-1, 1, math.prod(shape)).reshape(shape)
    noise_key, level_key = jax.random.split(key)
    noise, one = jax.random.normal(noise_key, shape), (2, *[1] * (len(shape) - 1))
    levels = jax.random.randint(level_key, one, 0, 20)
    left = SCHEDULE[np.asarray(levels)]
    points = np.sqrt(left) * actions + np.sqrt(1 - left) * noise
    found = OLDER.errors(lambda x, levels: x + 0.1 * levels, actions, key)
    expected = ((points + 0.1 * levels - noise) ** 2).mean(axis=tuple(range(1, len(shape))))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("steps", "taken"), [(1, 1), (3, 3), (0, 3)])
def test_samples_take_the_steps_that_are_told_or_all(steps: int, taken: int) -> None:
    starts, key = 0.7 * jax.random.normal(jax.random.key(2), (4, 2)), jax.random.key(3)
    calls = []

    def model(x: jax.Array, levels: jax.Array) -> jax.Array:
        calls.append(float(levels[0, 0]))
        return 0.2 + 0 * x

    found = Diffusion(levels=3, steps=steps, schedule_scale=0.3).sample(model, starts, key)
    assert calls == {1: [2.0], 3: [2.0, 1.0, 0.0]}[taken]
    expected = diffusion.denoise(model, starts, key, diffusion.linear_schedule(3, 0.3), taken)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_noise_that_the_last_level_leaves() -> None:
    """Two levels, β = 0.8 · (1e-4, 0.999): ᾱ of the last is 0.99992 · 0.2008."""
    np.testing.assert_allclose(Diffusion(levels=2).deviation(), (1 - 0.99992 * 0.2008) ** 0.5, rtol=1e-6)


def test_cosine_schedule_by_hand() -> None:
    """cos²(π/2 · (t + 0.008)/1.008) at t = 0, ½, 1: 0.999845, 0.493767, 0; β = 0.506156 and 1, cut to 0.999."""
    np.testing.assert_allclose(diffusion.cosine_schedule(2, 1.0), [0.493844, 0.000493844], rtol=1e-5)
    np.testing.assert_allclose(diffusion.cosine_schedule(2, 0.5), [0.746922, 0.746922 * 0.5005], rtol=1e-5)
    np.testing.assert_allclose(
        Diffusion(levels=2, schedule="cosine", schedule_scale=0.5).variance_left(), [0.746922, 0.746922 * 0.5005],
        rtol=1e-5,
    )  # fmt: skip


def test_ddpm_and_vp_schedules_by_hand() -> None:
    """Two levels: β = 0.05 and 10 hundredths; 1 − β = e^(−0.05 − 4.95/4) and e^(−0.05 − 3·4.95/4)."""
    np.testing.assert_allclose(diffusion.ddpm_schedule(2, 0.01), [0.9995, 0.9995 * 0.9], rtol=1e-9)
    np.testing.assert_allclose(diffusion.ddpm_schedule(1000, 1.0)[0], 1 - 1e-4)
    np.testing.assert_allclose(diffusion.vp_schedule(2, 1.0), np.exp([-0.05 - 1.2375, -0.1 - 4.95]), rtol=1e-9)
    np.testing.assert_allclose(diffusion.vp_schedule(1, 0.5), [1 - 0.5 * (1 - np.exp(-5.05))], rtol=1e-9)
    # The last level of any number of them is the same: the sum of exponents is 0.1 + 4.95.
    for levels in (1, 5, 100):
        model = Diffusion(levels=max(levels, 2), schedule="vp", schedule_scale=1.0)
        np.testing.assert_allclose(model.variance_left()[-1], np.exp(-5.05), rtol=1e-9)


VP = diffusion.vp_schedule(5, 1.0)


def test_one_step_magnifies_errors_in_the_noise_twelvefold() -> None:
    """√(1 − ᾱ)/√ᾱ with ᾱ = e^−5.05 is √(e^5.05 − 1) = 12.45, and 12.49 = 1/√ᾱ what noise itself becomes."""
    model, z = Diffusion(levels=5, steps=1, schedule="vp", schedule_scale=1.0), jnp.array([[0.01, -0.02]])

    def acted(error: float, model: Diffusion = model) -> jax.Array:
        return model.sample(lambda x, _: x / math.sqrt(1 - VP[-1]) + error, z, jax.random.key(0))  # the data is 0

    np.testing.assert_allclose(acted(0.0), 0.0, atol=1e-6)
    np.testing.assert_allclose(acted(0.01), -0.01 * math.sqrt(math.exp(5.05) - 1), rtol=1e-4)
    assert abs(math.sqrt(math.exp(5.05) - 1) - 12.45) < 0.01
    np.testing.assert_allclose(acted(0.2), -1.0)  # cut off
    plain = model.sample(lambda x, _: 0 * x, z, jax.random.key(0))
    np.testing.assert_allclose(plain, z * math.exp(5.05 / 2), rtol=1e-5)
    # The whole chain of five forgives most of it.
    whole = acted(0.01, Diffusion(levels=5, schedule="vp", schedule_scale=1.0, sampler="ddim"))
    assert jnp.abs(whole).max() < 0.06


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_one_step_is_the_data_seen_whatever_the_sampler(sampler: str) -> None:
    z = 0.3 * jax.random.normal(jax.random.key(1), (4, 2))
    found = diffusion.denoise(lambda x, _: 0.9 * x, z, jax.random.key(0), VP, 1, sampler)
    expected = jnp.clip((z - math.sqrt(1 - VP[-1]) * 0.9 * z) / math.sqrt(VP[-1]), -1, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_ddim_by_hand() -> None:
    """Two levels, ᾱ = 0.9, 0.72; x = 0.5, noise 0.2 predicted: the data is (0.5 − √0.28 · 0.2)/√0.72, then √0.9 of it
    and √0.1 of that noise; where the data are cut, the noise is what is left of x."""
    schedule = np.array([0.9, 0.72])

    def found(noise: float) -> float:
        drawn = diffusion.denoise(lambda x, _: noise + 0 * x, jnp.full((1, 1), 0.5), KEY, schedule, 2, "ddim")
        return float(drawn[0, 0])

    data = (0.5 - 0.28**0.5 * 0.2) / 0.72**0.5
    np.testing.assert_allclose(found(0.2), (0.9**0.5 * data + 0.1**0.5 * 0.2 - 0.1**0.5 * 0.2) / 0.9**0.5, rtol=1e-5)
    cut = 0.9**0.5 + 0.1**0.5 * (0.5 - 0.72**0.5) / 0.28**0.5
    np.testing.assert_allclose(found(-2.0), min(1.0, (cut + 0.1**0.5 * 2) / 0.9**0.5), rtol=1e-5)
    np.testing.assert_allclose(found(3.0), -1.0)


KEY = jax.random.key(0)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_many_steps_are_a_loop_with_the_same_result(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    starts, schedule = jax.random.normal(KEY, (6, 2)), diffusion.ddpm_schedule(30, 1.0)
    sample = functools.partial(diffusion.denoise, model_of(0.3, 0.4, schedule), starts, KEY, schedule, 30, sampler)
    looped = sample()
    calls: list[int] = []
    monkeypatch.setattr(diffusion, "WRITTEN_OUT", 30)
    monkeypatch.setattr(jax.lax, "scan", lambda *_: calls.append(1))
    np.testing.assert_allclose(looped, sample(), atol=1e-4)
    assert calls == []


@pytest.mark.slow
def test_ddim_draws_a_gaussian_without_fresh_noise() -> None:
    fine = diffusion.ddpm_schedule(200, 1.0)
    starts = jax.random.normal(KEY, (20_000, 1))
    one, other = (
        diffusion.denoise(model_of(0.2, 0.15, fine), starts, jax.random.key(key), fine, 200, "ddim") for key in (1, 2)
    )
    np.testing.assert_array_equal(one, other)
    assert abs(float(one.mean()) - 0.2) < 0.01
    assert abs(float(one.std()) - 0.15) < 0.01


@pytest.mark.slow
@variants
@pytest.mark.parametrize("schedule", ["vp", "ddpm", "linear", "cosine"])
def test_the_true_noise_shows_the_action(schedule: str, variant: Callable[..., Any]) -> None:
    """EDP's approximation is exact where the predicted noise is the true one; else it is off by √(1 − ᾱ)/√ᾱ of it."""
    model, key = Diffusion(levels=30, schedule=schedule, schedule_scale=0.1), jax.random.key(5)
    actions = jnp.array([[0.5, -0.5], [0.9, 0.0], [-0.3, 0.2]])
    noise_key, level_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, actions.shape)
    left = model.variance_left()[np.asarray(jax.random.randint(level_key, (3, 1), 0, 30))]
    exact = variant(lambda: model.errors_and_actions(lambda x, levels: noise, actions, key))()
    np.testing.assert_allclose(exact[0], 0, atol=1e-9)
    np.testing.assert_allclose(exact[1], actions, atol=1e-5)
    errors, seen = variant(lambda: model.errors_and_actions(lambda x, levels: noise + 0.05, actions, key))()
    np.testing.assert_allclose(errors, 0.05**2, rtol=1e-4)
    np.testing.assert_allclose(seen, np.clip(actions - 0.05 * np.sqrt((1 - left) / left), -1, 1), atol=1e-5)
    far = variant(lambda: model.errors_and_actions(lambda x, levels: noise - 1000, actions, key))()[1]
    np.testing.assert_array_equal(far, 1)


@pytest.mark.slow
def test_gradients_pass_the_whole_chain_and_die_where_it_is_cut() -> None:
    """∂(actions)/∂(weight of the network) through five steps of DQL's chain, against finite differences."""
    with jax.enable_x64(True):
        z, key = 0.8 * jax.random.normal(jax.random.key(2), (3, 2)), jax.random.key(4)
        model = Diffusion(levels=5, schedule="vp", schedule_scale=1.0)

        def actions(weight: jax.Array, size: float = 1.0) -> jax.Array:
            return model.sample(lambda x, levels: size * jnp.tanh(weight * x + 0.1 * levels), z, key)

        weight, step = jnp.asarray(0.7), 1e-6
        found = jax.jacfwd(actions)(weight)
        np.testing.assert_allclose(jax.jacrev(actions)(weight), found, rtol=1e-9)
        np.testing.assert_allclose(
            found, (actions(weight + step) - actions(weight - step)) / (2 * step), rtol=1e-5, atol=1e-8
        )
        inside = jnp.abs(actions(weight)) < 1
        assert inside.any()
        assert (jnp.abs(found[inside]) > 1e-3).all()
        np.testing.assert_array_equal(found[~inside], 0)
        # Not the last step alone: each one adds to it.
        alone = jax.jacfwd(
            lambda w: model.sample(lambda x, at: jnp.tanh(jnp.where(at == 0, w, 0.7) * x + 0.1 * at), z, key)
        )(weight)
        assert (jnp.abs(alone - found)[inside] > 1e-3).any()
        # All cut off in every step, nothing passes.
        np.testing.assert_array_equal(jax.jacfwd(functools.partial(actions, size=1e3))(weight), 0)


@pytest.mark.parametrize(
    ("message", "model"),
    [
        ("--policy.steps=30 is more than the 20 noise levels", Diffusion(steps=30)),
        ("--policy.schedule=ddpm needs 21 noise levels", Diffusion(schedule="ddpm", schedule_scale=1.0)),
        ("--policy.levels=1 is too small; the least is 2", Diffusion(levels=1)),
        ("--policy.schedule=linear leaves nothing of the data at the last of 400 levels", Diffusion(levels=400)),
        ("--policy.schedule=linaer is unknown.*did you mean linear", Diffusion(schedule="linaer")),
    ],
)
def test_choices_that_do_not_fit_are_refused(message: str, model: Diffusion) -> None:
    with pytest.raises(UserError, match=message):
        check(model, "policy.")


@each_way
def test_steps_whose_points_are_cut_by_hand(way: Way) -> None:
    """x ← clip((x − β/√(1 − ᾱ) ε̂) / √(1 − β) + √β z), z only where a level follows; ε̂ = x/2 + 0.1 t here."""
    model = Diffusion(levels=3, schedule="vp", schedule_scale=1.0, clip="points")
    x, key = array([0.4, -2], [0.1, 3]), jax.random.key(2)
    found = way(functools.partial(model.sample, lambda x, t: x / 2 + 0.1 * t))(x, key)
    left, draws = model.variance_left(), np.asarray(jax.random.normal(key, (3, 2, 2)))
    expected = np.asarray(x)
    for draw, t in zip(draws, (2, 1, 0), strict=True):
        beta = 1 - left[t] / (left[t - 1] if t else 1)
        expected = (expected - beta / np.sqrt(1 - left[t]) * (expected / 2 + 0.1 * t)) / np.sqrt(1 - beta)
        expected = np.clip(expected + (np.sqrt(beta) * draw if t else 0), -1, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert (np.abs(expected) < 1).any()


FAULTS = {
    "flowrl/diffusion.py": [
        ("left[-1] < np.finfo", "left[0] < np.finfo", "test_choices_that_do_not_fit_are_refused"),
        ('data = jnp.clip(data, -bound, bound) if clip == "data" else data', "pass", "test_samples_stay_in_the_box"),
        ("* std * draw\n", "* std * draws[0]\n", "test_a_gaussian_is_sampled"),
        ("mse(predicted, noise, valid)", "mse(predicted, -noise, valid)", "test_errors_of_a_known_prediction_by_hand"),
        ("jnp.sqrt(left) * data + ", "jnp.sqrt(left) * data - ", "test_schedule_and_noise_by_hand"),
        (
            "math.sqrt(1 - self.variance_left()[-1])",
            "math.sqrt(self.variance_left()[-1])",
            "test_the_noise_that_the_last_level_leaves",
        ),
        ("+ 0.008) / 1.008", "+ 0.008)", "test_cosine_schedule_by_hand"),
        ("beta * (1 - before) / (1 - left)", "beta", "test_one_step_by_hand"),
        ("added * noise) / kept", "noise) / kept", "test_one_step_magnifies_errors_in_the_noise_twelvefold"),
        ("- 4.95 * (2 * t - 1)", "- 4.95 * (2 * t)", "test_ddpm_and_vp_schedules_by_hand"),
        ("0.1 / levels, 20 / levels", "0.1 / levels, 2 / levels", "test_ddpm_and_vp_schedules_by_hand"),
        ("- np.sqrt(left) * rest, rest", ", rest", "test_ddim_by_hand"),
        ("else beta * (before < 1)", "else beta", "test_steps_whose_points_are_cut_by_hand"),
        (
            'jnp.clip(points, -bound, bound) if clip == "points" else points',
            "points",
            "test_steps_whose_points_are_cut_by_hand",
        ),
    ],
}
