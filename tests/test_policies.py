"""Parts of stochastic policies: choosing among candidates by Q, and Gaussians."""

import functools
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowrl.choice import BestOfN, backup_values, best_of_n, generated, one_and_best, with_critic
from flowrl.config import config, nested, traced
from flowrl.networks import Spec
from flowrl.policies import act_squashed, noise_entropy, squash, squashed, unit_gaussian
from flowrl.train_state import TrainState

# --------------------------------------------------------------------------------------------- the best of several

VALUES = {-1.0: -4.0, 0.0: 1.0, 1.0: 2.0}
"""Candidates and their least value; 1 is the best."""


def thirds(rows: int, key: jax.Array) -> jax.Array:
    """One of −1, 0 and 1 in each row `[rows, 1]`, equally often."""
    return jax.random.randint(key, (rows, 1), -1, 2).astype(jnp.float32)


def by_table(actions: jax.Array) -> jax.Array:
    """Critics `[2, ...]` whose least value is that of the table."""
    low = sum(jnp.where(actions[..., 0] == action, value, 0.0) for action, value in VALUES.items())
    return jnp.stack([low + jnp.abs(actions[..., 0]), low])


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def choose(sample: Any, critic: Any, key: jax.Array, count: int, temperature: jax.Array) -> jax.Array:
    return best_of_n(BestOfN(num_samples=count, temperature=temperature), sample, critic, key)


def test_temperature_zero_takes_the_best_candidate() -> None:
    actions = choose(functools.partial(thirds, 2000), by_table, jax.random.key(0), 5, jnp.float32(0))
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
        jnp.float32(0),
    )
    np.testing.assert_array_equal(first, 1)


def test_candidates_are_drawn_by_the_softmax_of_q() -> None:
    # All nine pairs of candidates are equally likely, and in each the softmax over two decides.
    for temperature in (0.5, 2.0):
        actions = choose(functools.partial(thirds, 60_000), by_table, jax.random.key(2), 2, jnp.float32(temperature))
        pairs = [(a, b) for a in VALUES for b in VALUES]
        expected = 0.0
        for pair in pairs:
            weights = np.exp(temperature * np.array([VALUES[a] for a in pair]))
            expected += weights[np.array(pair) == 1].sum() / weights.sum() / len(pairs)
        assert abs((actions == 1).mean() - expected) < 0.01  # standard error 0.002
    hot = choose(functools.partial(thirds, 2000), by_table, jax.random.key(0), 5, jnp.float32(1e4))
    best = choose(functools.partial(thirds, 2000), by_table, jax.random.key(0), 5, jnp.float32(0))
    np.testing.assert_array_equal(hot, best)


def test_states_choose_independently() -> None:
    actions = choose(functools.partial(thirds, 20_000), by_table, jax.random.key(3), 2, jnp.float32(0.5))[:, 0]
    assert abs(np.corrcoef(actions[::2], actions[1::2])[0, 1]) < 0.04  # standard error 0.01


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
def test_any_batch_of_states_is_served(shape: tuple[int, ...]) -> None:
    # The best of many has the sign of its own state, whatever the others are.
    signs = np.where(np.arange(np.prod(shape, dtype=int)) % 2, 1.0, -1.0).reshape(shape)
    actions = best_of_n(
        BestOfN(num_samples=20),
        lambda key: jax.random.normal(key, (*shape, 2)),
        lambda actions: jnp.stack([actions[..., 0] * signs, actions[..., 0] * signs + 1]),
        jax.random.key(4),
    )
    assert actions.shape == (*shape, 2)
    assert (actions[..., 0] * signs > 0).all()


def test_both_dimensions_come_from_the_same_candidate() -> None:
    actions = best_of_n(
        BestOfN(num_samples=10),
        lambda key: jax.random.normal(key, (50, 1)) * jnp.array([1.0, 2.0]),
        lambda actions: jnp.stack([actions[..., 1]] * 2),
        jax.random.key(5),
    )
    np.testing.assert_allclose(actions[:, 1], 2 * actions[:, 0], rtol=1e-6)


def test_one_draw_is_the_policys_own() -> None:
    key = jax.random.key(6)
    action = best_of_n(BestOfN(), lambda key: jax.random.normal(key, (4, 2)), lambda actions: None, key)  # type: ignore[arg-type,return-value]
    np.testing.assert_array_equal(action, jax.random.normal(key, (4, 2)))


@config
class Chooses:
    choice: BestOfN = nested(BestOfN())
    other: float = traced(1.0, "Something else.")


def test_a_choice_is_evaluated_beside_single_actions() -> None:
    assert one_and_best(Chooses(other=3.0)) == {"eval": Chooses(other=3.0)}
    several = Chooses(choice=BestOfN(num_samples=4, temperature=2.0))
    assert one_and_best(several) == {"eval": Chooses(choice=BestOfN(temperature=2.0)), "best_of_n": several}


def test_critics_act_only_where_there_is_a_choice() -> None:
    def state(choice: BestOfN) -> TrainState[Chooses]:
        own, slow = {"actor": 1, "critic": 2}, {"actor": 3, "critic": 4}
        return TrainState(0, Chooses(choice=choice), own, slow, {}, {})  # type: ignore[arg-type]

    one, several = state(BestOfN()), state(BestOfN(num_samples=2))
    assert with_critic(one, one.params) == {"actor": 1}
    assert with_critic(one, one.target_params) == {"actor": 3}
    assert with_critic(several, several.params) == {"actor": 1, "critic": 4}


# ------------------------------------------------------------------------------------------------------- Gaussians


@pytest.mark.parametrize("variant", [lambda f: f, jax.jit, jax.vmap], ids=["plain", "jit", "vmap"])
def test_squashed_gaussian_by_hand(variant: Any) -> None:
    """At the mode 0: −½ log 2π = −0.918939 for each action, and tanh's slope is 1. With μ = ½, σ = 2 and noise 1 the
    action is tanh 2.5 = 0.986614 with slope 1 − tanh² 2.5 = 0.0265922: −½ − 0.918939 − log 2 + 3.627131 = 1.515045."""
    means, log_stds = jnp.array([[0.0, 0.0], [0.5, 0.0]]), jnp.array([[0.0, 0.0], [np.log(2), 0.0]])
    actions, log_probs = variant(squash)(means, log_stds, jnp.array([[0.0, 0.0], [1.0, 0.0]]))
    np.testing.assert_allclose(actions, [[0, 0], [0.986614, 0]], atol=1e-6)
    np.testing.assert_allclose(log_probs, [-1.837877, 1.515045 - 0.918939], atol=1e-5)


def test_squashed_density_integrates_to_one() -> None:
    before = jnp.linspace(-12.0, 12.0, 20_001)[:, None]
    actions, log_probs = squash(jnp.array([0.3]), jnp.array([-0.2]), (before - 0.3) / jnp.exp(-0.2))
    total = jnp.trapezoid(jnp.exp(log_probs), actions[:, 0])
    np.testing.assert_allclose(total, 1, atol=1e-4)


def test_saturated_actions_have_finite_densities() -> None:
    far = jnp.array([[30.0], [-30.0]], jnp.float32)
    grads = jax.grad(lambda means: squash(means, jnp.zeros_like(means), jnp.zeros_like(means))[1].sum())(far)
    _, log_probs = squash(far, jnp.zeros_like(far), jnp.zeros_like(far))
    np.testing.assert_allclose(log_probs, [60 - 0.918939 - 2 * np.log(2)] * 2, rtol=1e-5)
    np.testing.assert_allclose(grads, [[2], [-2]], rtol=1e-5)


def test_evaluation_takes_the_mode_and_exploration_samples() -> None:
    means, log_stds = jnp.full((4000, 1), 0.4), jnp.full((4000, 1), -1.0)
    np.testing.assert_allclose(act_squashed((means, log_stds), jax.random.key(0), False), np.tanh(0.4), rtol=1e-6)
    before = jnp.arctanh(act_squashed((means, log_stds), jax.random.key(0), True))
    np.testing.assert_allclose([before.mean(), before.std()], [0.4, np.exp(-1)], atol=0.02)


def test_draws_have_the_sizes_that_are_asked_for() -> None:
    means, log_stds = jnp.array([[0.3, -0.2]] * 5), jnp.full((5, 2), -1.0)
    actions, log_probs = squashed((means, log_stds), jax.random.key(0), (3,))
    noise = jax.random.normal(jax.random.key(0), (3, 5, 2))
    assert log_probs.shape == (3, 5)
    np.testing.assert_allclose(actions, np.tanh(means + np.exp(-1) * noise), rtol=1e-5)
    np.testing.assert_allclose(log_probs[1], squash(means, log_stds, noise[1])[1], rtol=1e-5)


def test_a_unit_gaussian_is_its_mode_or_a_draw() -> None:
    means, key = jnp.array([[0.3, -2.0]]), jax.random.key(0)
    np.testing.assert_array_equal(unit_gaussian(means, key, False), means)
    np.testing.assert_allclose(unit_gaussian(means, key, True), means + jax.random.normal(key, (1, 2)))


class Chooser(NamedTuple):
    choice: BestOfN = BestOfN()


def test_each_critic_takes_its_own_best_of_ten_in_the_max_q_backup() -> None:
    """Slow critics a and −a: without the backup of one draw, with it the largest and the least of ten."""

    def critic(params: Any, s: jax.Array, a: jax.Array) -> jax.Array:
        return params["sign"] * jnp.stack([a[..., 0], -a[..., 0]])

    nets, s, key = types.SimpleNamespace(critic=critic), jnp.zeros((4, 1)), jax.random.key(3)
    state: Any = types.SimpleNamespace(config=Chooser(), params={"sign": 100.0}, target_params={"sign": 1.0})

    def sample(nets: Any, config: Chooser, params: Any, s: jax.Array, key: jax.Array) -> jax.Array:
        return params["sign"] * jax.random.normal(key, (4, 2))

    for max_q, count in ((False, 1), (True, 10)):
        draws = np.stack([jax.random.normal(own, (4, 2))[:, 0] for own in jax.random.split(key, count)])
        found = backup_values(sample, nets, state, s, key, max_q=max_q)
        np.testing.assert_allclose(found, [draws.max(axis=0), -draws.min(axis=0)], rtol=1e-6)


def test_a_generated_action_has_noise_of_its_own_for_start_and_steps() -> None:
    class Model:
        def sample(self, field: Any, z: jax.Array, key: jax.Array) -> jax.Array:
            return field(z) + 10 * (jax.random.normal(key, z.shape) == z)

    nets = types.SimpleNamespace(spec=Spec.of_sizes(2, 3), actor=lambda params, s, z: params * z + s[..., :1])
    s, (z_key, _) = jnp.full((5, 2), 0.3), jax.random.split(jax.random.key(1))
    found = generated(nets, types.SimpleNamespace(policy=Model()), 0.5, s, jax.random.key(1))  # type: ignore[arg-type]
    np.testing.assert_allclose(found, jnp.clip(0.5 * jax.random.normal(z_key, (5, 3)) + 0.3, -1, 1), rtol=1e-6)


def test_entropy_of_the_noise() -> None:
    # Deviation 0.1·2: ½·3·log(2πe·0.04) = 1.5·(2.837877 − 3.218876).
    np.testing.assert_allclose(noise_entropy(0.1 * jnp.float32(2), 3), -0.571498, rtol=1e-5)


FAULTS = {
    "flowrl/policies.py": [
        ("- log_slope", "+ log_slope", "test_squashed_gaussian_by_hand"),
        (
            "noise**2 + jnp.log(2 * jnp.pi)) - log_stds",
            "noise**2 + jnp.log(2 * jnp.pi))",
            "test_squashed_density_integrates_to_one",
        ),
    ],
    "flowrl/choice.py": [
        (
            "values.min(axis=1) if choice",
            "values.mean(axis=1) if choice",
            "test_the_least_of_the_critics_decides",
        ),
        ("temperature * values", "values", "test_candidates_are_drawn_by_the_softmax_of_q"),
        (
            "jnp.asarray(choice.temperature) > 0, drawn",
            "jnp.asarray(choice.temperature) >= 0, drawn",
            "test_temperature_zero_takes_the_best_candidate",
        ),
        (
            "jax.random.split(sample_key, choice.num_samples)",
            "jnp.broadcast_to(sample_key, (choice.num_samples,))",
            "test_temperature_zero_takes_the_best_candidate",
        ),
        (
            "return one if config.choice.num_samples == 1",
            "return one if config.choice.num_samples <= 4",
            "test_a_choice_is_evaluated_beside_single_actions",
        ),
    ],
}
