"""Steps of optimizers, slow copies and schedules, by numbers derived by hand, as written, under jit and vmap."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_agents import state_with
from ways import Way, array, each_way

from flowrl.config import config, traced
from flowrl.optim import Clip, LateTarget, LinearDecay, descend, every, gradients, polyak, step
from flowrl.train_state import Loss, Params, TrainState


@config
class Settings:
    rate: float = traced(0.1, "Something that losses may read.")


def toy_state() -> TrainState:
    params = {name: {"x": jnp.full((2,), 3.0)} for name in ("one", "two")}
    return state_with(Settings(), params, jax.tree.map(lambda x: x - 2, params))


def linear(one: float, two: float) -> Callable[..., Loss]:
    """A loss with these slopes."""

    def loss(nets: Any, params: Params, state: TrainState, batch: Any, key: jax.Array) -> Loss:
        return one * params["one"]["x"].sum() + two * params["two"]["x"].sum(), {f"slope/{one:g}": jnp.float32(one)}

    return loss


down = functools.partial(descend, None, batch={}, key=jax.random.key(0))


# ------------------------------------------------------------------------------------------------------ descend


def test_descend_takes_adam_steps() -> None:
    # A gradient of 1, then ten of 0: after step k the averages are 0.1·0.9^(k−1) and 0.001·0.999^(k−1), each divided by
    # 1 − β^k; the step is the first over the root of the second.
    state, expected = toy_state(), 3.0
    for k in range(1, 12):
        state, metrics = down(state, losses=(linear(1.0 if k == 1 else 0.0, 1.0),), rates={"one": 0.1})
        mean = 0.1 * 0.9 ** (k - 1) / (1 - 0.9**k)
        square = 0.001 * 0.999 ** (k - 1) / (1 - 0.999**k)
        expected -= 0.1 * mean / (np.sqrt(square) + 1e-8)
        np.testing.assert_allclose(state.params["one"]["x"], expected, rtol=1e-5)
    assert metrics == {"slope/0": 0}
    # What is not named is a constant; targets and the step counter stay.
    np.testing.assert_array_equal(state.params["two"]["x"], 3)
    np.testing.assert_array_equal(state.target_params["one"]["x"], 1)
    assert int(state.step) == 0


def test_several_losses_are_summed_and_all_their_metrics_kept() -> None:
    # Slopes 2 + 5 and −1 + 3; Adam's first mean is a tenth of them.
    after, metrics = down(toy_state(), losses=(linear(2, -1), linear(5, 3)), rates={"one": 0.1, "two": 0.1})
    np.testing.assert_allclose(after.opt_state["one"].mu["x"], 0.7, rtol=1e-6)
    np.testing.assert_allclose(after.opt_state["two"].mu["x"], 0.2, rtol=1e-6)
    assert metrics == {"slope/2": 2, "slope/5": 5}
    grads, found = gradients(None, toy_state(), {}, jax.random.key(0), (linear(2, -1), linear(5, 3)), ("two",))
    assert set(grads) == {"two"}
    np.testing.assert_allclose(grads["two"]["x"], 2)
    assert found == metrics


def test_every_network_has_its_own_rate_and_losses_see_all_others() -> None:
    # A first step of Adam is as long as its rate, whatever the gradient; the losses meet the same parameters.
    def product(nets: Any, params: Params, state: TrainState, batch: Any, key: jax.Array) -> Loss:
        return nets * (params["one"]["x"] * params["two"]["x"]).sum() * batch["factor"] * state.config.rate, {}

    given = {"nets": 2.0, "batch": {"factor": 5.0}, "key": jax.random.key(0), "losses": (product,)}
    after, _ = descend(state=toy_state(), rates={"one": 0.1, "two": jnp.float32(0.02)}, **given)
    np.testing.assert_allclose(after.params["one"]["x"], 2.9, rtol=1e-5)
    np.testing.assert_allclose(after.params["two"]["x"], 2.98, rtol=1e-5)
    np.testing.assert_allclose(after.opt_state["two"].mu["x"], 0.1 * 2 * 3 * 5 * 0.1, rtol=1e-5)


def drawing(name: str) -> Callable[..., Loss]:
    """A loss that tells which key it was given."""

    def loss(nets: Any, params: Params, state: TrainState, batch: Any, key: jax.Array) -> Loss:
        return params["one"]["x"].sum(), {name: jax.random.uniform(key)}

    return loss


def test_each_loss_has_a_key_of_its_own() -> None:
    key, rates = jax.random.key(3), {"one": 0.1}
    first, second = jax.random.split(key)
    losses = (drawing("first"), drawing("second"))
    _, metrics = descend(None, toy_state(), {}, key, losses, rates)
    assert metrics == {"first": jax.random.uniform(first), "second": jax.random.uniform(second)}
    # One loss gets the key as it is.
    _, metrics = descend(None, toy_state(), {}, key, losses[:1], rates)
    assert metrics == {"first": jax.random.uniform(key)}
    # And keys may be told, the same one twice too.
    _, metrics = descend(None, toy_state(), {}, [second, second], losses, rates)
    assert metrics == {"first": jax.random.uniform(second), "second": jax.random.uniform(second)}


def test_a_gradient_may_be_stepped_along_again() -> None:
    # Twice along one gradient of 2: both of Adam's first steps are as long as the rate.
    grads, _ = gradients(None, toy_state(), {}, jax.random.key(0), (linear(2, 0),), ("one",))
    state = step(step(toy_state(), grads, {"one": 0.5}), grads, {"one": 0.5})
    np.testing.assert_allclose(state.params["one"]["x"], 2, rtol=1e-5)
    np.testing.assert_array_equal(state.params["two"]["x"], 3)


GRADS = {"one": array(3, 0), "two": array([4], [0])}
"""A gradient of norm 5."""


@each_way
@pytest.mark.parametrize(("bound", "scale"), [(2.5, 0.5), (10.0, 1.0), (0.0, 1.0)])
def test_gradients_are_clipped_jointly(way: Way, bound: float, scale: float) -> None:
    clipped = way(lambda grads, bound: Clip(bound, jointly=True)(grads))(GRADS, jnp.float32(bound))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, scale * other, rtol=1e-6), clipped, GRADS)


def test_each_network_and_each_head_may_be_clipped_by_itself() -> None:
    each = Clip(2.0)(GRADS)
    np.testing.assert_allclose(each["one"], [2, 0], rtol=1e-6)
    np.testing.assert_allclose(each["two"], [[2], [0]], rtol=1e-6)
    heads = Clip(1.0, ensembles=("one",))({"one": {"x": array([3, 4], [0.6, 0]), "y": array([0], [0.3])}})["one"]
    np.testing.assert_allclose(heads["x"], [[0.6, 0.8], [0.6, 0]], rtol=1e-6)
    np.testing.assert_allclose(heads["y"], [[0], [0.3]], rtol=1e-6)


@pytest.mark.parametrize("slack", [1e-6, 0.0])
def test_a_gradient_of_nothing_stays_nothing(slack: float) -> None:
    clipped = Clip(jnp.float32(1), jointly=True, slack=slack)(jax.tree.map(jnp.zeros_like, GRADS))
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), clipped)


@pytest.mark.parametrize("bound", [None, 0.0, 2.5])
def test_descend_clips_each_network_by_itself_where_asked(bound: float | None) -> None:
    # Slopes of norm 5 and 1: the first is halved, the second is left alone; Adam's first mean is a tenth of them.
    def loss(nets: Any, params: Params, *rest: Any) -> Loss:
        return params["large"] @ array(3, 4) + params["small"] @ array(1, 0), {}

    state = state_with(Settings(), {"large": jnp.zeros(2), "small": jnp.zeros(2)}, {})
    clip = None if bound is None else Clip(bound)
    after, _ = down(state, losses=(loss,), rates={"large": 0.1, "small": 0.1}, clip=clip)
    scale = 0.5 if bound else 1.0
    np.testing.assert_allclose(after.opt_state["large"].mu, 0.1 * scale * np.array([3, 4]), rtol=1e-6)
    np.testing.assert_allclose(after.opt_state["small"].mu, [0.1, 0], rtol=1e-6)


@pytest.mark.parametrize(("bound", "scale"), [(0.0, 1.0), (6.5, 0.5), (20.0, 1.0)])
def test_descend_clips_all_networks_together_where_asked(bound: float, scale: float) -> None:
    # Slopes (3, 4) and (12, 0) have the norm 13 together; a network that does not move does not count.
    def loss(nets: Any, params: Params, *rest: Any) -> Loss:
        return params["one"] @ array(3, 4) + params["two"] @ array(12, 0) + params["still"] @ array(100, 0), {}

    state = state_with(Settings(), {name: jnp.zeros(2) for name in ("one", "two", "still")}, {})
    after, _ = down(state, losses=(loss,), rates={"one": 0.1, "two": 0.1}, clip=Clip(bound, jointly=True))
    np.testing.assert_allclose(after.opt_state["one"].mu, 0.1 * scale * np.array([3, 4]), rtol=1e-6)
    np.testing.assert_allclose(after.opt_state["two"].mu, 0.1 * scale * np.array([12, 0]), rtol=1e-6)


def test_descend_clips_each_head_by_itself_where_asked() -> None:
    # Heads of norm 5 and 1 in two leaves; together their norm is √26.
    def loss(nets: Any, params: Params, *rest: Any) -> Loss:
        kernel, bias = params["heads"]["kernel"], params["heads"]["bias"]
        return (kernel * array([3, 0], [0, 1])).sum() + (bias * jnp.array([4.0, 0.0])).sum(), {}

    state = state_with(Settings(), {"heads": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}, {})
    for ensembles, scales in (((), [2.5 / 26**0.5] * 2), (("heads",), [0.5, 1.0])):
        after, _ = down(state, losses=(loss,), rates={"heads": 0.1}, clip=Clip(2.5, ensembles=ensembles))
        mu = after.opt_state["heads"].mu
        np.testing.assert_allclose(mu["kernel"], 0.1 * np.array([[3 * scales[0], 0], [0, scales[1]]]), rtol=1e-5)
        np.testing.assert_allclose(mu["bias"], [0.4 * scales[0], 0], rtol=1e-5)


# ----------------------------------------------------------------------------------------- schedules, slow copies


@each_way
def test_a_late_target_moves_at_some_updates_after_its_start(way: Way) -> None:
    late = LateTarget(rate=jnp.float32(0.3), start=jnp.int32(7), interval=jnp.int32(3))
    rates = [float(way(lambda late, step: late.at(step))(late, jnp.int32(step))) for step in range(13)]
    np.testing.assert_allclose(rates, [0.3 * (step in (9, 12)) for step in range(13)], rtol=1e-6)
    copied = dataclasses.replace(late, early=jnp.float32(1))
    rates = [float(way(lambda late, step: late.at(step))(copied, jnp.int32(step))) for step in range(13)]
    np.testing.assert_allclose(rates, [1, 0, 0, 1, 0, 0, 1, 0, 0, 0.3, 0, 0, 0.3], rtol=1e-6)


@each_way
def test_a_step_size_falls_linearly(way: Way) -> None:
    # From 1 after 10 steps, by (0.2 − 1)/20 for each of 20.
    decay = LinearDecay(final=0.2, begin=10, steps=20)
    rates = way(lambda rate, done: decay(rate, done))(jnp.float32(1), array(0, 10, 20, 25, 30, 1000))
    np.testing.assert_allclose(rates, [1, 1, 0.6, 0.4, 0.2, 0.2], rtol=1e-6)


def test_schedules_may_be_mapped() -> None:
    decays = LinearDecay(final=array(0.2, 0), begin=jnp.array([10, 0]), steps=jnp.array([20, 40]))
    np.testing.assert_allclose(jax.vmap(lambda decay: decay(1.0, 20))(decays), [0.6, 0.5], rtol=1e-6)


def test_polyak_moves_targets_toward_what_it_is_given() -> None:
    # 0.75·1 + 0.25·7 = 2.5; the other target is not named and stays at 1.
    toward = {name: {"x": jnp.full((2,), 7.0)} for name in ("one", "two")}
    state = polyak(toy_state(), toward, one=jnp.float32(0.25))
    np.testing.assert_allclose(state.target_params["one"]["x"], 2.5)
    np.testing.assert_array_equal(state.target_params["two"]["x"], 1)
    np.testing.assert_array_equal(state.params["one"]["x"], 3)


def test_polyak_moves_each_target_at_its_own_rate() -> None:
    # 0.75·1 + 0.25·3 = 1.5, and 0.5·1 + 0.5·3 = 2.
    state = toy_state()
    state = polyak(state, state.params, one=0.25, two=jnp.float32(0.5))
    np.testing.assert_allclose(state.target_params["one"]["x"], 1.5)
    np.testing.assert_allclose(state.target_params["two"]["x"], 2)


def test_every_does_what_is_due_and_keeps_the_mean_of_metrics() -> None:
    state: TrainState = toy_state()
    seen: list[float] = []
    state = state.replace(extras={"count": jnp.zeros(())})

    def move(state: TrainState) -> Any:
        count = state.extras["count"] + 1
        return state.replace(extras={"count": count}), {"count": count}

    for _ in range(6):
        state, metrics = jax.jit(functools.partial(every, 3, move=move))(state)
        state = state.replace(step=state.step + 1)
        seen.append(float(metrics["count"]))
    assert float(state.extras["count"]) == 2
    assert seen == [3, 0, 0, 6, 0, 0]  # mean 1.5, that of 1 and 2


FAULTS = {
    "flowrl/optim.py": [
        ("-rate * d", "rate * d", "test_descend_takes_adam_steps"),
        (
            "optax.incremental_update(toward[name], state.target_params[name], rate)",
            "optax.incremental_update(state.target_params[name], toward[name], rate)",
            "test_polyak_moves_targets_toward_what_it_is_given",
        ),
        (
            "toward[name], state.target_params",
            "state.params[name], state.target_params",
            "test_polyak_moves_targets_toward_what_it_is_given",
        ),
        ("direction, opt_state[name] = ", "direction, _ = ", "test_descend_takes_adam_steps"),
        ("optax.scale_by_adam()", "optax.scale_by_adam(b2=0.99)", "test_descend_takes_adam_steps"),
        ("jnp.asarray(self.norm) > 0", "jnp.asarray(self.norm) >= 0", "test_gradients_are_clipped_jointly and plain"),
        (
            "jnp.minimum(1.0, self.norm / (norm + self.slack))",
            "self.norm / (norm + self.slack)",
            "test_gradients_are_clipped_jointly and plain",
        ),
        ("if self.jointly:", "if True:", "test_descend_clips_each_network_by_itself_where_asked"),
        ("if name in self.ensembles", "if False", "test_each_network_and_each_head_may_be_clipped_by_itself"),
        ("if self.jointly:", "if False:", "test_descend_clips_all_networks_together_where_asked"),
        (
            "state.step % interval == 0",
            "state.step % interval == 1",
            (
                "test_every_does_what_is_due_and_keeps_the_mean_of_metrics or "
                "test_every_network_has_its_own_rate_and_losses_see_all_others"
            ),
        ),
        ("batch, keys[i])", "batch, keys[0])", "test_each_loss_has_a_key_of_its_own"),
        (
            "sum((value for value, _ in found[1:]), found[0][0])",
            "found[0][0]",
            "test_several_losses_are_summed_and_all_their_metrics_kept",
        ),
    ],
}
