"""DPM-Solver: its steps by hand, exact where they must be, and its order on a path that is known."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ways import variants

from flowrl import agents, diffusion, dpm_solver
from flowrl.config import check, put
from flowrl.diffusion import Diffusion
from flowrl.errors import UserError
from flowrl.networks import Spec

SCHEDULE = diffusion.ddpm_schedule(1000, 1.0)
LOG_KEPT = np.log(SCHEDULE) / 2


def at(levels: Any) -> tuple[Any, Any, Any]:
    """√ᾱ, √(1 − ᾱ) and λ, the logarithm of their ratio, at levels that need not be whole."""
    kept = np.exp(np.interp(levels, np.arange(1000), LOG_KEPT))
    return kept, np.sqrt(1 - kept**2), np.log(kept / np.sqrt(1 - kept**2))


def test_orders_add_up_to_the_evaluations() -> None:
    known = {1: [1], 2: [2], 3: [2, 1], 4: [3, 1], 5: [3, 2], 6: [3, 2, 1], 15: [3, 3, 3, 3, 2, 1]}
    assert {steps: dpm_solver.orders(steps) for steps in known} == known
    for steps in range(1, 40):
        assert sum(dpm_solver.orders(steps)) == steps


def test_evaluations_are_even() -> None:
    seen: list[float] = []

    def model(x: jax.Array, levels: jax.Array) -> jax.Array:
        seen.append(float(levels[0, 0]))
        return 0 * x

    dpm_solver.solve(model, jnp.ones((2, 1)), SCHEDULE, 15, "nothing")
    np.testing.assert_allclose(seen, np.linspace(999, 0, 16)[:-1], rtol=1e-6)


@variants
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_the_same_noise_everywhere_leaves_the_data_that_it_shows(steps: int, variant: Callable[..., Any]) -> None:
    """x = √ᾱ a + √(1 − ᾱ) ε for one a and ε all along the path, whatever the order: at level 0 too."""
    a, noise = jnp.array([[0.3, -0.6], [0.1, 0.9]]), jnp.array([[0.5, -1.2], [2.0, 0.1]])
    kept, added, _ = at(999)
    first, little, _ = at(0)
    solve = functools.partial(dpm_solver.solve, schedule=SCHEDULE, steps=steps, clip="nothing")
    found = variant(lambda starts, noise: solve(lambda x, _: jnp.broadcast_to(noise, x.shape), starts))(
        kept * a + added * noise, noise
    )
    np.testing.assert_allclose(found, first * a + little * noise, atol=2e-4)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_step_by_hand(order: int) -> None:
    """Noise λ whatever x is: of third order the step is ∫ e^(−λ) λ dλ exactly, of second it is as the paper has it."""
    levels = np.linspace(600, 300, order + 1)
    kept, added, snr = at(levels)
    moves = dpm_solver.moves_of(snr, kept, added)
    h = snr[-1] - snr[0]
    exact = added[-1] * (math.expm1(h) * snr[0] + math.expm1(h) - h)
    paper = {
        1: added[-1] * math.expm1(h) * snr[0],
        2: added[-1] * math.expm1(h) * (snr[0] + h / 2),
        3: exact,
    }
    a, b, c = moves[-1]
    noise_last = snr[order - 1]
    found = a * 0.7 - b * snr[0] - c * (noise_last - snr[0])
    np.testing.assert_allclose(found, kept[-1] / kept[0] * 0.7 - paper[order], rtol=1e-12)
    assert moves.shape == (order, 3)
    np.testing.assert_allclose(moves[0, 2], 0.0)


def test_the_second_evaluation_of_three_by_hand() -> None:
    """u₂ = a x − √(1 − ᾱ₂) (e^(r₂h) − 1) ε₁ − r₂/r₁ √(1 − ᾱ₂) ((e^(r₂h) − 1)/(r₂h) − 1) (ε₂ − ε₁)."""
    kept, added, snr = at(np.array([600, 500, 400, 300]))
    a, b, c = dpm_solver.moves_of(snr, kept, added)[1]
    first, second = snr[1] - snr[0], snr[2] - snr[0]
    grown = math.exp(second) - 1
    np.testing.assert_allclose([a, b], [kept[2] / kept[0], added[2] * grown], rtol=1e-12)
    np.testing.assert_allclose(c, second / first * added[2] * (grown / second - 1), rtol=1e-12)


MIDDLE = SCHEDULE[300:701]


def gaussian(mean: float, std: float, schedule: np.ndarray = SCHEDULE) -> dpm_solver.NoiseModel:
    """The noise to be expected where data are from a Gaussian."""

    def model(points: jax.Array, levels: jax.Array) -> jax.Array:
        kept = jnp.exp(jnp.interp(levels, jnp.arange(len(schedule)), np.log(schedule) / 2))
        variance = (kept * std) ** 2 + 1 - kept**2
        return jnp.sqrt(1 - kept**2) * (points - kept * mean) / variance

    return model


def test_errors_fall_with_the_third_power_of_the_step() -> None:
    """Where data are from a Gaussian the path is known: deviations from √ᾱ μ grow as the Gaussian's own does."""
    mean, std = 0.2, 0.3
    (first, *_, last), starts = np.sqrt(MIDDLE), np.linspace(-2, 2, 9)[:, None]
    grown = math.sqrt(((first * std) ** 2 + 1 - first**2) / ((last * std) ** 2 + 1 - last**2))
    exact = first * mean + grown * (starts - last * mean)
    with jax.enable_x64():
        found = [
            np.abs(
                dpm_solver.solve(gaussian(mean, std, MIDDLE), jnp.asarray(starts), MIDDLE, steps, "nothing") - exact
            ).max()
            for steps in (17, 35, 71)  # the steps, of three evaluations but the last of two, are half as long each time
        ]
    assert 6 < found[0] / found[1] < 10
    assert 6 < found[1] / found[2] < 10
    assert found[2] < 1e-5


@pytest.mark.parametrize("predicts", ["noise", "data"])
def test_what_the_model_sees_is_cut(predicts: str) -> None:
    """A model that is far off sees data of ±1, or ±2 with that bound: the path leads there."""
    starts = jnp.array([[0.5], [-0.5]])
    sign = -1.0 if predicts == "noise" else 1.0
    far = functools.partial(Diffusion, levels=1000, schedule="ddpm", schedule_scale=1.0, sampler="dpm", steps=15)
    for bound in (1.0, 2.0):
        sample = far(bound=bound, predicts=predicts).sample
        found = sample(lambda x, _: sign * 1e3 + 0 * x, starts, jax.random.key(0))
        np.testing.assert_allclose(found, bound, atol=0.02 * bound)
        assert float(jnp.abs(found).max()) <= bound
    free = far(clip="nothing", predicts=predicts).sample(lambda x, _: sign * 1e3 + 0 * x, starts, jax.random.key(0))
    assert float(free.min()) > 100


def test_data_and_noise_lead_the_same_way() -> None:
    noise, starts = gaussian(0.2, 0.3), jnp.linspace(-2, 2, 9)[:, None]

    def data(points: jax.Array, levels: jax.Array) -> jax.Array:
        kept = jnp.exp(jnp.interp(levels, jnp.arange(1000), LOG_KEPT))
        return diffusion.denoised(points, noise(points, levels), kept, jnp.sqrt(1 - kept**2))

    solve = functools.partial(dpm_solver.solve, starts=starts, schedule=SCHEDULE, steps=15, clip="nothing")
    np.testing.assert_allclose(solve(noise), solve(data, predicts="data"), atol=1e-3)


@pytest.mark.parametrize("steps", [15, 30])
def test_a_loop_is_the_same_as_steps_one_after_another(steps: int) -> None:
    starts = jax.random.normal(jax.random.key(0), (6, 2))
    written, looped = (
        dpm_solver.solve(gaussian(0.3, 0.4), starts, SCHEDULE, steps, looped=looped) for looped in (False, True)
    )
    np.testing.assert_allclose(written, looped, atol=1e-4)


def test_many_evaluations_are_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    looped: list[bool] = []
    monkeypatch.setattr(dpm_solver, "solve", lambda *_, **options: looped.append(options["looped"]))
    for steps in (15, 0):
        given = Diffusion(levels=100, steps=steps, schedule="ddpm", schedule_scale=1.0, sampler="dpm")
        given.sample(lambda x, _: x, jnp.ones((1, 1)), jax.random.key(0))
    assert looped == [False, True]


def test_edp_acts_with_it() -> None:
    spec = Spec.of_sizes(3, 2)
    given = {"policy.levels": 1000, "policy.sampler": "dpm", "policy.steps": 15, "hidden_dims": (8,)}
    config = put(agents.default("edp"), given)
    agent = agents.build("edp", config, spec)
    policy = agent.policy(agent.init(jax.random.key(0), config))
    actions = [agent.act(policy, {"observations": jnp.ones((4, 3))}, jax.random.key(key)) for key in (0, 1)]
    assert actions[0].shape == (4, 2)
    assert float(jnp.abs(actions[0]).max()) <= 1.0
    assert not np.allclose(actions[0], actions[1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"policy.clip": "points"}, r"clip=points cuts what DPM-Solver's path leads to; give .*clip=data or nothing"),
        (
            {"policy.levels": 5, "policy.steps": 5, "policy.schedule": "vp"},
            r"sampler=dpm ends with the noise of the first level, 0\.44; give more .*levels",
        ),
        (
            {"policy.schedule": "cosine", "policy.levels": 1000},
            r"sampler=dpm with 15 evaluations counts what they differ by 742 times; give more .*, or another",
        ),
        ({"policy.steps": 3}, r"sampler=dpm with 3 evaluations counts what they differ by 100 times"),
    ],
)
def test_what_it_cannot_do_is_refused(given: dict[str, Any], message: str) -> None:
    config = put(agents.default("edp"), {"policy.sampler": "dpm", "policy.steps": 15})
    check(config)
    with pytest.raises(UserError, match=message):
        check(put(config, given))


FAULTS = {
    "flowrl/dpm_solver.py": [
        ("[3] * (threes - 1) + [2, 1]", "[3] * threes", "test_orders_add_up_to_the_evaluations"),
        ("grown[1] * h[1] / h[0] / 2", "grown[1] * h[1] / h[0]", "test_a_step_by_hand and 2"),
        ("h[2] / h[1] * (grown[2] / h[2] - 1)", "h[2] / h[1] * grown[2] / h[2]", "test_a_step_by_hand and 3"),
        ("c[1] = h[1] / h[0] * (", "c[1] = h[0] / h[1] * (", "test_the_second_evaluation_of_three_by_hand"),
        (
            "np.linspace(len(schedule) - 1, 0,",
            "np.linspace(len(schedule) - 1, 9,",
            "test_evaluations_are_even",
        ),
        ("noise_in(reached, place)", "noise_in(points, place)", "test_errors_fall_with_the_third_power_of_the_step"),
        ("kept_below * bound) / added_below", "kept_below) / added_below", "test_what_the_model_sees_is_cut and noise"),
        (
            "(points - kept * (",
            "(points + kept * (",
            "test_data_and_noise_lead_the_same_way",
        ),
        ("> MOST_LEFT", "> 1", "test_what_it_cannot_do_is_refused"),
        ("> MOST_COUNTED", "> 1e9", "test_what_it_cannot_do_is_refused"),
        ("moves[:, 2]).max() for", "moves[:, 1]).max() for", "test_what_it_cannot_do_is_refused"),
        ("table = table[len(threes) :]", "table = []", "test_a_loop_is_the_same_as_steps_one_after_another"),
    ],
    "flowrl/diffusion.py": [
        ("looped=looped or steps > WRITTEN_OUT,", "looped=looped,", "test_many_evaluations_are_a_loop"),
        ('"dpm" and self.clip == "points"', '"dpm" and self.clip == "none"', "test_what_it_cannot_do_is_refused"),
    ],
}
