"""Every loss against numbers derived by hand, as written, under jit and under vmap."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ways import Way, array, each_way

from flowrl.config import config, nested, traced
from flowrl.losses import (
    GoalValue,
    awr_weight,
    coin_q,
    expectile_weight,
    goal_advantage,
    goal_value_loss,
    mse,
    multiplier,
    q_size,
    unit_gaussian_log_prob,
)
from flowrl.train_state import Batch, Metrics, Params, TrainState


@each_way
def test_expectile_weight(way: Way) -> None:
    # κ where the advantage is 0 or more, 1 − κ below: |0.7 − 1| = 0.3.
    weights = way(expectile_weight)(array(-5.0, -1e-6, 0.0, 3.0), jnp.float32(0.7))
    np.testing.assert_allclose(weights, [0.3, 0.3, 0.7, 0.7], rtol=1e-6)


@each_way
def test_awr_weight(way: Way) -> None:
    # exp(2·0) = 1, exp(2·ln 3) = 9, exp(2·(−ln 2)) = 1/4; exp(2·2.4) = 121.5 and exp(2000) = inf are cut at 100.
    advantages = array(0.0, np.log(3), -np.log(2), 2.4, 1000.0, -1000.0)
    weights = way(awr_weight)(advantages, jnp.float32(2.0))
    np.testing.assert_allclose(weights, [1, 9, 0.25, 100, 100, 0], rtol=1e-5)


def test_awr_weight_takes_another_maximum() -> None:
    # exp(1·ln 3) = 3 lies below 4, exp(1·ln 5) = 5 above.
    np.testing.assert_allclose(awr_weight(array(np.log(3), np.log(5)), jnp.float32(1.0), 4.0), [3, 4], rtol=1e-6)


def test_awr_weight_gives_no_gradient() -> None:
    grads = jax.grad(lambda a, alpha: awr_weight(a, alpha).sum(), argnums=(0, 1))(array(0.5, 1000.0), jnp.float32(2.0))
    np.testing.assert_array_equal(grads[0], [0, 0])
    assert grads[1] == 0


@each_way
def test_unit_gaussian_log_prob(way: Way) -> None:
    # −½ log 2π = −0.9189385 per dimension. Row 0: 2·(−0.9189385) − ½(0 + 0); row 1: 2·(−0.9189385) − ½(1² + 2²).
    result = way(unit_gaussian_log_prob)(array([1, 2], [1, 2]), array([1, 2], [0, 4]))
    np.testing.assert_allclose(result, [-1.8378771, -4.3378771], rtol=1e-6)


@each_way
def test_mse(way: Way) -> None:
    # ((1 − 3)² + (5 − 4)²) / 2 = 2.5, and 0; the mean is over all but the rows.
    np.testing.assert_allclose(way(mse)(array([1, 5], [2, 2]), array([3, 4], [2, 2])), [2.5, 0], rtol=1e-6)
    segments = array([[1, 5], [0, 0]], [[2, 2], [2, 6]]), array([[3, 4], [0, 0]], [[2, 2], [2, 2]])
    np.testing.assert_allclose(way(mse)(*segments), [1.25, 4], rtol=1e-6)


@each_way
def test_a_multiplier_is_the_exponential_of_what_is_learnt(way: Way) -> None:
    params = {"temperature": {"log": jnp.log(array(0.5)[0])}, "other": {"log": jnp.float32(0)}}
    np.testing.assert_allclose(way(multiplier)(params), 0.5, rtol=1e-6)
    np.testing.assert_allclose(way(lambda p: multiplier(p, "other"))(params), 1)


@each_way
def test_q_size(way: Way) -> None:
    # Critics (2, 6) and (4, −8): their mean is (3, −1), whose mean size is 2; the critics' own size is 5.
    np.testing.assert_allclose(way(q_size)(array([2, 6], [4, -8])), 2)


def test_q_size_is_a_constant_and_never_zero() -> None:
    np.testing.assert_array_equal(jax.grad(q_size)(array([2, 6], [4, -8])), 0)
    assert 0 < q_size(jnp.zeros((2, 3))) < 1e-6
    # So a policy that maximises Q / size sees Q's own gradient over the size, and a positive Q is worth 1.
    value, slope = jax.value_and_grad(lambda q: q.mean() / q_size(q))(array([2, 6], [4, -8]))
    np.testing.assert_allclose(value, 1 / 2)
    np.testing.assert_allclose(slope, [[1 / 8, 1 / 8]] * 2)


@each_way
def test_coin_q(way: Way) -> None:
    """Means 2 and −1, sizes 2 and 3: −2/3 or 1/2; with the heads of the sizes swapped each by itself, −1 or 1/3."""
    q = array([1, 3], [-4, 2])
    for sizes, expected in ((q, {-0.6667, 0.5}), (q[::-1], {-1.0, 0.3333})):
        found = {
            round(float(way(lambda q, sizes, key: coin_q(q, sizes, jax.random.key(key)))(q, sizes, jnp.uint32(k))), 4)
            for k in range(8)
        }
        assert found == expected
    slopes = [jax.grad(lambda q, key=key: coin_q(q, q, jax.random.key(key)))(q) for key in range(8)]
    heads = {
        int(jnp.abs(slope).sum(axis=1).argmax()) for slope in slopes
    }  # of the numerator alone: sizes are constants
    assert heads == {0, 1}
    assert all(float(jnp.abs(slope).sum(axis=1).min()) == 0 for slope in slopes)


@pytest.mark.parametrize("function", [mse, unit_gaussian_log_prob])
def test_shapes_that_would_broadcast_are_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError):
        function(jnp.zeros((3, 1)), jnp.zeros((3, 2)))


# An analytic twin value V_i(s, g) = w_i·s + c·g, where `value` holds w and `shared` holds c. Online w = (−1, 2), slow
# w̄ = (3, 1), c = 1 in both; γ = 0.5, κ = 0.75. With q = r + γ m min V̄(s', g) and adv = q − mean V̄(s, g):
#
#     row   s  s'  g   r  m   V̄(s')      q   V̄(s)     mean  adv   weight  targets r + γ m V̄_i(s')   V(s)      errors
#     A     1  5   1  −1  1   (16, 6)    2   (4, 2)    3    −1    0.25    (7, 2)                    (0, 3)    (7, −1)
#     B     0  4   2  −1  1   (14, 6)    2   (2, 2)    2     0    0.75    (6, 2)                    (2, 2)    (4, 0)
#     C     2  9  −5   0  0   —          0   (1, −3)  −1     1    0.75    (0, 0)                    (−7, −1)  (7, 1)
#
# In row A the weight would be 0.75 if q took the mean of V̄(s') (q = 4.5), if adv took the least V̄(s) (adv = 0) or the
# online V(s) (mean 1.5, adv = 0.5); in row C a forgotten mask would make adv negative (V̄(s') = (22, 4), q = 2: adv = 3)
# or the targets (11, 2).
@config
class Settings:
    value: GoalValue = nested(GoalValue())
    other: float = traced(7.0, "Something else.")


STATE = TrainState(
    step=jnp.int32(0),
    config=Settings(value=GoalValue(expectile=jnp.float32(0.75))),
    params={"value": array(-1, 2), "shared": jnp.float32(1), "other": jnp.float32(7)},
    target_params={"value": array(3, 1)},
    opt_state={},
    extras={},
)
BATCH = {
    "observations": array([1], [0], [2]),
    "value_next_observations": array([5], [4], [9]),
    "value_goals": array([1], [2], [-5]),
    "rewards": array(-1, -1, 0),
    "discounts": array(0.5, 0.5, 0),
}


def linear_value(nets: Any, params: Params, observations: jax.Array, goals: jax.Array) -> jax.Array:
    return params["value"][:, None] * observations[:, 0] + params["shared"] * goals[:, 0]


def value_loss(params: Params, state: TrainState, batch: Batch) -> tuple[jax.Array, Metrics]:
    return goal_value_loss(linear_value, None, params, state, batch, jax.random.key(0))


@each_way
def test_goal_value_loss(way: Way) -> None:
    # Head 1: (0.25·49 + 0.75·16 + 0.75·49)/3 = 61/3. Head 2: (0.25·1 + 0.75·0 + 0.75·1)/3 = 1/3. The heads are summed.
    loss, metrics = way(value_loss)(STATE.params, STATE, BATCH)
    np.testing.assert_allclose(loss, 62 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["value/loss"], 62 / 3, rtol=1e-6)
    # V(s): 0, 2, −7 and 3, 2, −1.
    np.testing.assert_allclose(metrics["value/v_mean"], -1 / 6, rtol=1e-6)
    np.testing.assert_allclose([metrics["value/v_min"], metrics["value/v_max"]], [-7, 3])
    np.testing.assert_allclose(metrics["value/advantage"], 0, atol=1e-6)  # (−1 + 0 + 1)/3


@pytest.mark.parametrize(("row", "expected"), [(0, 12.25 + 0.25), (1, 12.0), (2, 36.75 + 0.75)], ids=["A", "B", "C"])
def test_goal_value_loss_row_by_row(row: int, expected: float) -> None:
    loss, _ = value_loss(STATE.params, STATE, {name: field[row : row + 1] for name, field in BATCH.items()})
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@each_way
def test_gradients_of_goal_value_loss_pass_through_the_online_values_only(way: Way) -> None:
    # dL/dw_i = mean weight·2·error·(−s). Head 1: (0.5·7·(−1) + 0 + 1.5·7·(−2))/3 = −24.5/3.
    # Head 2: (0.5·(−1)·(−1) + 0 + 1.5·1·(−2))/3 = −2.5/3.
    # dL/dc = Σ_i mean weight·2·error·(−g): ((−3.5 + 0.5) + (−12 + 0) + (52.5 + 7.5))/3 = 15; the targets hold c too,
    # and would change this number if they received gradients.
    grads, _ = way(jax.grad(value_loss, has_aux=True))(STATE.params, STATE, BATCH)
    np.testing.assert_allclose(grads["value"], [-24.5 / 3, -2.5 / 3], rtol=1e-6)
    np.testing.assert_allclose(grads["shared"], 15, rtol=1e-6)
    assert grads["other"] == 0


def test_each_head_has_its_own_target() -> None:
    # Each V_i is a fixed point at its own r + γ m V̄_i(s'): row A's targets are 7 and 2, so w + c·1 must be 7 and 2.
    params = {**STATE.params, "value": array(6, 1)}
    loss, _ = value_loss(params, STATE, {name: field[:1] for name, field in BATCH.items()})
    np.testing.assert_allclose(loss, 0, atol=1e-6)


def test_the_targets_read_all_other_networks_from_the_state() -> None:
    # c = 2 in the state, 1 in the parameters under differentiation. Row A: V̄(s') = (17, 7), targets (7.5, 2.5),
    # V̄(s) = (5, 3), q = 2.5, adv = −1.5; V(s) = (0, 3), errors (7.5, −0.5): 0.25·(56.25 + 0.25) = 14.125.
    state = STATE.replace(params={**STATE.params, "shared": jnp.float32(2)})
    loss, _ = value_loss(STATE.params, state, {name: field[:1] for name, field in BATCH.items()})
    np.testing.assert_allclose(loss, 14.125, rtol=1e-6)


def test_rewards_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(AssertionError):
        value_loss(STATE.params, STATE, {**BATCH, "rewards": BATCH["rewards"][:, None]})


@each_way
def test_goal_advantage(way: Way) -> None:
    # w = (−1, 2), c = 1: mean V(s, g) = s/2 + g, so V(4, g) − V(1, g) = 3/2, whatever the goal.
    advantage = way(lambda *arrays: goal_advantage(linear_value, None, STATE.params, *arrays))
    np.testing.assert_allclose(advantage(array([1], [0]), array([4], [-2]), array([9], [-9])), [1.5, -1])


FAULTS = {
    "flowrl/losses.py": [
        ("(advantages < 0)", "(advantages <= 0)", "test_expectile_weight"),
        (
            "(advantages < 0)",
            "(advantages > 0)",
            "test_goal_value_loss or test_gradients_of_goal_value_loss_pass_through_the_online_values_only",
        ),
        ("jnp.exp(alpha * advantages)", "jnp.exp(-alpha * advantages)", "test_awr_weight"),
        (
            "jax.lax.stop_gradient(jnp.minimum(jnp.exp(alpha * advantages), maximum))",
            "jnp.minimum(jnp.exp(alpha * advantages), maximum)",
            "test_awr_weight_gives_no_gradient",
        ),
        (
            "next_v.min(axis=0)",
            "next_v.mean(axis=0)",
            "test_goal_value_loss or test_gradients_of_goal_value_loss_pass_through_the_online_values_only",
        ),
        ("target_v.mean(axis=0)", "v.mean(axis=0)", "test_goal_value_loss"),
        (
            'errors = batch["rewards"] + batch["discounts"] * next_v',
            'errors = batch["rewards"] + next_v',
            "test_goal_value_loss",
        ),
        (
            'batch["discounts"] * next_v - v',
            'batch["discounts"] * next_v.min(axis=0) - v',
            "test_each_head_has_its_own_target",
        ),
        (
            "{**state.params, **state.target_params}",
            "{**params, **state.target_params}",
            "test_gradients_of_goal_value_loss_pass_through_the_online_values_only",
        ),
        (
            "errors**2).mean(axis=-1).sum()",
            "errors**2).mean()",
            "test_goal_value_loss or test_gradients_of_goal_value_loss_pass_through_the_online_values_only",
        ),
        ("-0.5 * jnp.sum(", "-0.5 * jnp.mean(", "test_unit_gaussian_log_prob"),
        ("jnp.abs(q.mean(axis=0)).mean()", "jnp.abs(q).mean()", "test_q_size"),
        (
            "jax.lax.stop_gradient(jnp.maximum(jnp.abs",
            "(jnp.maximum(jnp.abs",
            "test_q_size_is_a_constant_and_never_zero",
        ),
    ],
}
