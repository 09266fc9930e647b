"""Ensembles of critics: TD errors and combined heads by numbers derived by hand, as written, under jit and vmap."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ways import Way, array, each_way

from flowrl import critics
from flowrl.config import check
from flowrl.critics import Critic
from flowrl.errors import UserError
from flowrl.networks import Network, Spec

# Two rows, γ = ½; the second one terminated. Q_i = w_i·s·a with w = (1, 2).
BATCH = {
    "observations": array([1], [2]),
    "actions": array([3], [1]),
    "rewards": array(1, -2),
    "discounts": array(0.5, 0),
    "valid": array(1, 1),
}
WEIGHTS = array(1, 2)


def product(weights: jax.Array) -> jax.Array:
    return weights[:, None] * (BATCH["observations"] * BATCH["actions"])[:, 0]


def loss_and_slopes(weights: jax.Array, next_q: jax.Array, valid: jax.Array) -> Any:
    def loss(weights: jax.Array, next_q: jax.Array) -> Any:
        targets = BATCH["rewards"] + BATCH["discounts"] * next_q
        errors, metrics = critics.td_errors(product(weights), targets, {**BATCH, "valid": valid})
        return errors.mean(), (errors, metrics)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(weights, next_q)


@each_way
def test_td_errors(way: Way) -> None:
    # Targets 1 + ½·4 = 3, and −2 whatever follows. Q = (3, 2) and (6, 4): errors 0, 4 and 3, 6; (0 + 16 + 9 + 36)/4.
    # dL/dw_i = ¼ Σ 2·error·s·a: head 1 ½·(0·3 + 4·2) = 4, head 2 ½·(3·3 + 6·2) = 10.5. Targets are constants.
    (loss, (errors, metrics)), (grads, next_slopes) = way(loss_and_slopes)(WEIGHTS, array(4, 100), array(1, 1))
    np.testing.assert_allclose(errors, [[0, 16], [9, 36]])
    np.testing.assert_allclose(loss, 15.25)
    np.testing.assert_allclose(grads, [4, 10.5])
    np.testing.assert_array_equal(next_slopes, [0, 0])
    expected = {"critic/loss": 15.25, "critic/q_mean": 3.75, "critic/q_max": 6, "critic/q_min": 2}
    assert {name: float(value) for name, value in metrics.items()} == expected


@each_way
def test_rows_that_do_not_count_have_no_error(way: Way) -> None:
    # Without the second row (0 + 0 + 9 + 0)/4 = 2.25, and its slope: head 2 ½·3·3 = 4.5.
    (loss, (errors, _)), (grads, _) = way(loss_and_slopes)(WEIGHTS, array(4, 100), array(1, 0))
    np.testing.assert_allclose(errors, [[0, 0], [9, 0]])
    np.testing.assert_allclose(loss, 2.25)
    np.testing.assert_allclose(grads, [0, 4.5])


def test_each_head_may_have_targets_of_its_own() -> None:
    errors, _ = critics.td_errors(array([1, 2], [3, 4]), array([0, 2], [5, 1]), BATCH)
    np.testing.assert_allclose(errors, [[1, 0], [4, 9]])


def test_the_sum_over_critics() -> None:
    # (1 + 0)/2 of the first and (4 + 9)/2 of the second; without the second row 1/2 and 4/2.
    loss, metrics = critics.td_sum(array([1, 2], [3, 4]), array([0, 2], [5, 1]), BATCH)
    assert (float(loss), float(metrics["critic/loss"])) == (7.0, 7.0)
    loss, _ = critics.td_sum(array([1, 2], [3, 4]), array([0, 2], [5, 1]), {**BATCH, "valid": array(1, 0)})
    assert float(loss) == 2.5


@pytest.mark.parametrize("targets", [jnp.zeros((2, 1)), jnp.zeros(1), jnp.zeros((2, 3))])
def test_targets_that_would_broadcast_are_refused(targets: jax.Array) -> None:
    with pytest.raises(AssertionError):
        critics.td_errors(jnp.zeros((2, 2)), targets, BATCH)


@each_way
@pytest.mark.parametrize(
    ("aggregate", "rho", "expected"),
    # Heads (1, 5), (3, 5): means 2 and 5, deviations 1 and 0; the bound lies ¾ deviations below.
    [("min", 0.0, [1, 5]), ("mean", 0.0, [2, 5]), ("mean", 0.75, [1.25, 5])],
)
def test_heads_are_combined(way: Way, aggregate: str, rho: float, expected: list[float]) -> None:
    def combined(q: jax.Array, rho: jax.Array) -> jax.Array:
        return critics.combine(Critic(aggregate=aggregate, rho=rho), q)

    np.testing.assert_allclose(way(combined)(array([1, 5], [3, 5]), jnp.float32(rho)), expected)


@pytest.mark.parametrize("heads", [1, 2])
def test_heads_that_agree_have_slopes(heads: int) -> None:
    slopes = jax.grad(lambda q: critics.combine(Critic(aggregate="mean", rho=0.5), q).sum())(jnp.ones((heads, 3)))
    np.testing.assert_allclose(slopes, 1 / heads)


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        (Critic(rho=0.5, heads=1, aggregate="mean"), "lowers the mean of several critics, and there is one; give --c."),
        (Critic(rho=0.5, heads=10), "lowers the mean of several critics; add --c.aggregate=mean, or leave it out"),
    ],
)
def test_a_bound_without_an_ensemble_is_refused(choices: Critic, told: str) -> None:
    assert Critic(rho=0.5, heads=10, aggregate="mean").problem("--c.") == Critic(heads=1).problem("--c.") == ""
    with pytest.raises(UserError, match=f"--c.rho=0.5 {told}"):
        check(choices, "c.")


def test_the_module_is_what_the_choices_say() -> None:
    s, a, _, _ = Spec.of_sizes(3, 2).inputs()

    def shapes(choices: Critic) -> Any:
        net = Network("critic", critics.module(choices, (8,)), (s, a))
        params = jax.eval_shape(net.init, jax.random.key(0))
        return jax.tree.map(lambda leaf: leaf.shape, params["params"]["MLP_0"])

    plain = shapes(Critic(heads=3, layer_norm=False))
    assert plain["SplitDense_0"]["kernel"] == (3, 5, 8)
    assert "LayerNorm_0" not in plain
    assert "LayerNorm_0" in shapes(Critic())
    own = shapes(Critic(hidden_dims=(16, 4)))
    assert own["SplitDense_0"]["kernel"] == (2, 5, 16)
    assert own["Dense_1"]["kernel"] == (2, 4, 1)


@pytest.mark.parametrize("activation", ["relu", "mish"])
def test_the_module_has_the_activation_that_is_chosen(activation: str) -> None:
    shapes, (s, a) = Spec.of_sizes(3, 2).inputs()[:2], (jnp.ones((1, 3)), jnp.ones((1, 2)))
    net = Network("critic", critics.module(Critic(activation=activation, layer_norm=False), (8,)), shapes)
    fresh = jax.eval_shape(net.init, jax.random.key(0))
    params = {"critic": jax.tree.map(lambda leaf: -jnp.ones(leaf.shape), fresh)}
    # Each hidden unit is act(−6); the output −8 · act(−6) − 1.
    hidden = {"relu": 0.0, "mish": -6 * np.tanh(np.log1p(np.exp(-6)))}[activation]
    np.testing.assert_allclose(net(params, s, a), np.full((2, 1), -8 * hidden - 1), rtol=1e-5)


FAULTS = {
    "flowrl/critics.py": [
        (
            "jnp.sqrt(jnp.where(variance > 0, variance, 1.0))",
            "jnp.sqrt(variance)",
            "test_heads_that_agree_have_slopes",
        ),
        ("jax.lax.stop_gradient(targets)", "targets", "test_td_errors"),
        ('choices.aggregate == "min"', 'choices.aggregate == "mean"', "test_heads_are_combined"),
        ('errors = batch["valid"] * (', "errors = (", "test_rows_that_do_not_count_have_no_error"),
        ("q.mean(axis=0) - choices.rho", "q.mean(axis=0) + choices.rho", "test_heads_are_combined"),
        ("if self.rho and self.heads == 1", "if False", "test_a_bound_without_an_ensemble_is_refused"),
        ('if self.rho and self.aggregate == "min"', "if False", "test_a_bound_without_an_ensemble_is_refused"),
    ],
}
