"""TD errors, normalised Q and clipped gradients against numbers derived by hand, as written, under jit and vmap."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowrl.losses import critic_loss, mean_q_loss, normalized_q_loss, td_target
from flowrl.optim import clip_norm, descend
from flowrl.train_state import Params, TrainState, new_state


def mapped_twice(function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs `function` on two copies of its arguments under vmap, and returns the second result."""

    def run(*args: Any) -> Any:
        doubled = jax.tree.map(lambda x: jnp.stack([jnp.ones_like(x), jnp.asarray(x)]), args)
        return jax.tree.map(lambda x: x[1], jax.vmap(function)(*doubled))

    return run


variants = pytest.mark.parametrize("variant", [lambda f: f, jax.jit, mapped_twice], ids=["plain", "jit", "vmap"])
Variant = Callable[[Callable[..., Any]], Callable[..., Any]]


def array(*values: Any) -> jax.Array:
    return jnp.asarray(values, jnp.float32)


BATCH = {
    "observations": array([1], [2]),
    "actions": array([3], [1]),
    "rewards": array(1, -2),
    "masks": array(1, 0),
}
STATE = new_state({"critic": array(1, 2), "actor": array(5)}, ("critic",), {"discount": jnp.float32(0.5)})


class Product:
    """Q_i = w_i·s·a."""

    def apply(self, weights: jax.Array, observations: jax.Array, actions: jax.Array) -> jax.Array:
        return weights[:, None] * (observations * actions)[:, 0]


@variants
def test_td_target(variant: Variant) -> None:
    # 1 + ½·1·4 = 3; the second row terminated: −2, whatever follows.
    np.testing.assert_allclose(variant(td_target)(BATCH, array(4, 100), jnp.float32(0.5)), [3, -2])


def test_td_targets_give_no_gradient() -> None:
    grads = jax.grad(lambda *args: td_target(BATCH, *args).sum(), argnums=(0, 1))(array(4, 100), jnp.float32(0.5))
    np.testing.assert_array_equal(grads[0], [0, 0])
    assert grads[1] == 0


@pytest.mark.parametrize("next_values", [jnp.zeros((2, 1)), jnp.zeros(()), jnp.zeros((2, 2))])
def test_next_values_that_would_broadcast_are_refused(next_values: jax.Array) -> None:
    with pytest.raises(AssertionError):
        td_target(BATCH, next_values, jnp.float32(0.5))


def loss_and_slopes(params: Params, state: TrainState, batch: Any, next_values: jax.Array) -> Any:
    def loss(params: Params, next_values: jax.Array) -> Any:
        return critic_loss(Product(), params, state, batch, next_values)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, next_values)


@variants
def test_critic_loss(variant: Variant) -> None:
    # Q = (3, 2) and (6, 4) against (3, −2): errors 0, 4 and 3, 6; (0 + 16 + 9 + 36)/4 = 15.25.
    # dL/dw_i = ¼ Σ 2·error·s·a: head 1 ½·(0·3 + 4·2) = 4, head 2 ½·(3·3 + 6·2) = 10.5.
    (loss, metrics), (grads, next_slopes) = variant(loss_and_slopes)(STATE.params, STATE, BATCH, array(4, 100))
    np.testing.assert_allclose(loss, 15.25)
    np.testing.assert_allclose(grads["critic"], [4, 10.5])
    np.testing.assert_array_equal(next_slopes, [0, 0])
    np.testing.assert_array_equal(grads["actor"], 0)
    expected = {"critic/loss": 15.25, "critic/q_mean": 3.75, "critic/q_max": 6, "critic/q_min": 2}
    assert {name: float(value) for name, value in metrics.items()} == expected


@variants
def test_normalized_q_loss(variant: Variant) -> None:
    # −mean(1, 5) / mean(|−2|, |4|) = −3/3; the scale's sign does not matter, but each entry's size does.
    np.testing.assert_allclose(variant(normalized_q_loss)(array(1, 5), array(-2, 4)), -1)


def test_normalized_q_loss_holds_its_scale_constant() -> None:
    slopes = jax.grad(normalized_q_loss, argnums=(0, 1))(array(1, 5), array(-2, 4))
    np.testing.assert_allclose(slopes[0], [-1 / 6, -1 / 6])
    np.testing.assert_array_equal(slopes[1], [0, 0])
    # With one array for both, a positive Q is −1 in the loss, and its gradient is still that of Q.
    value, slope = jax.value_and_grad(lambda q: normalized_q_loss(q, q))(array(2, 6))
    np.testing.assert_allclose(value, -1)
    np.testing.assert_allclose(slope, [-1 / 8, -1 / 8])


@variants
def test_mean_q_loss(variant: Variant) -> None:
    # Critics (2, 6) and (4, −8): their mean is (3, −1), whose mean is 1 and whose size 2; the critics' own size is 5.
    values = array([2, 6], [4, -8])
    np.testing.assert_allclose(variant(partial(mean_q_loss, normalize=False))(values), -1)
    np.testing.assert_allclose(variant(partial(mean_q_loss, normalize=True))(values), -1 / 2)


def test_mean_q_loss_holds_its_scale_constant_and_is_finite_at_zero() -> None:
    slopes = jax.grad(lambda q: mean_q_loss(q, normalize=True))(array([2, 6], [4, -8]))
    np.testing.assert_allclose(slopes, [[-1 / 8, -1 / 8]] * 2)
    assert mean_q_loss(jnp.zeros((2, 3)), normalize=True) == 0


def test_normalized_q_loss_is_finite_at_zero() -> None:
    assert normalized_q_loss(jnp.zeros(3), jnp.zeros(3)) == 0


GRADS = {"one": array(3, 0), "two": array([4], [0])}
"""A gradient of norm 5."""


@variants
@pytest.mark.parametrize(("bound", "scale"), [(2.5, 0.5), (10.0, 1.0), (0.0, 1.0)])
def test_clip_norm(variant: Variant, bound: float, scale: float) -> None:
    clipped = variant(clip_norm)(GRADS, jnp.float32(bound))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, scale * other, rtol=1e-6), clipped, GRADS)


def test_clip_norm_at_zero_is_zero() -> None:
    clipped = clip_norm(jax.tree.map(jnp.zeros_like, GRADS), jnp.float32(1))
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), clipped)


@pytest.mark.parametrize("bound", [None, 0.0, 2.5])
def test_descend_clips_each_network_by_itself_where_asked(bound: float | None) -> None:
    # Slopes of norm 5 and 1: the first is halved, the second is left alone; Adam's first mean is a tenth of them.
    hyper = {"learning_rate": jnp.float32(0.1)} | ({} if bound is None else {"max_grad_norm": jnp.float32(bound)})
    state = new_state({"large": jnp.zeros(2), "small": jnp.zeros(2)}, (), hyper)
    after, _ = descend(state, lambda p: (p["large"] @ array(3, 4) + p["small"] @ array(1, 0), {}), ("large", "small"))
    scale = 0.5 if bound else 1.0
    np.testing.assert_allclose(after.opt_state["large"].mu, 0.1 * scale * np.array([3, 4]), rtol=1e-6)
    np.testing.assert_allclose(after.opt_state["small"].mu, [0.1, 0], rtol=1e-6)
