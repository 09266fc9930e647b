"""LAVL: its losses by hand, what a step moves, and what it learns on a line of cells."""

import functools
import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lines import CELLS, GAMMA, cell_pairs, line, steps_toward, trained
from small_agents import A, B, D, compiled, config_of, state_with
from ways import Way, array, each_way

from flowrl import agents
from flowrl.agents import lavl
from flowrl.losses import goal_value_loss
from flowrl.networks import Spec
from flowrl.policies import awr_loss
from flowrl.train_state import TrainState

# On a line of numbers: φ(g) = p g, d(s, x) = |p s − x|; the trained p are 1, the slow representation's is 0.5.
NETS: Any = SimpleNamespace(
    goal_rep=lambda params, g: params["goal_rep"] * g,
    value=lambda params, s, x: jnp.abs(params["value"] * s - x)[..., 0],
)
ONES, SLOW = {"goal_rep": array(1.0), "value": array(1.0)}, {"goal_rep": array(0.5), "value": array(1.0)}
BATCH = {
    "observations": array([1.0], [0.0]), "next_observations": array([2.0], [0.0]),
    "value_next_observations": array([2.0], [0.0]), "value_goals": array([3.0], [0.0]),
    "more_goals": array([0.0], [4.0]), "rewards": array(-1.0, 0.0), "discounts": array(0.9, 0.0),
}  # fmt: skip
KEY = jax.random.key(0)


def by_hand(told: dict[str, Any] | None = None) -> TrainState:
    config = config_of("lavl", {"discount": 0.9, "value.expectile": 0.8, **(told or {})})
    return state_with(config, ONES, SLOW, {"v_mean": jnp.float32(-1.0)})


@each_way
def test_the_value_has_slow_copies_of_both_networks(way: Way) -> None:
    # The first row: V = −2, V̄ = −|1 − 1.5|, V̄' = −|2 − 1.5|, so q = −1.45, adv < 0 and the error is 0.55.
    loss = way(lambda params, batch: goal_value_loss(lavl.v, NETS, params, by_hand(), batch, KEY)[0])(ONES, BATCH)
    np.testing.assert_allclose(loss, 0.2 * 0.55**2 / 2, rtol=1e-5)


@each_way
def test_the_bound_of_a_step(way: Way) -> None:
    # c = 1 − 0.1 · (−1); to the random goals the value changes by −1 and by 0.
    terms = [math.log1p(math.exp(10 * (change**2 - 1.1**2))) / 10 for change in (1.0, 0.0)]
    state = by_hand({"smoothness": 3.0})
    loss = way(lambda params, batch: lavl.smoothness_loss(NETS, params, state, batch, KEY)[0])(ONES, BATCH)
    np.testing.assert_allclose(loss, 3 * sum(terms) / 2, rtol=1e-5)


@each_way
def test_weights_relative_to_the_batch(way: Way) -> None:
    # exp(A) = 1 and 3, whose mean is 2; −log π = (a² + log 2π) / 2.
    gaussian, actions = (jnp.zeros((2, 1)), jnp.zeros((2, 1))), array([1.0], [2.0])
    loss = way(lambda a, adv: awr_loss(gaussian, a, adv, 1.0, relative_to_batch=True)[0])(
        actions, array(0.0, math.log(3))
    )
    each = [(a**2 + math.log(2 * math.pi)) / 2 for a in (1, 2)]
    np.testing.assert_allclose(loss, (each[0] + 3 * each[1]) / 2.001 / 2, rtol=1e-5)


TOLD = {"hidden_dims": (16,), "rep_dim": 4, "latent_dim": 8, "learning_rate": 1e-2, "value.target_rate": 0.1}


def drawn_batch() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    states = ("observations", "next_observations", "value_next_observations", "value_goals", "more_goals")
    states += ("low_actor_goals", "high_actor_goals", "high_actor_targets")
    fields = {name: rng.normal(size=(B, D)) for name in states} | {"actions": rng.uniform(-1, 1, (B, A))}
    fields |= {"rewards": -np.ones(B), "discounts": np.full(B, 0.9)}
    return {name: jnp.asarray(value, jnp.float32) for name, value in fields.items()}


@pytest.mark.slow
def test_what_follows_a_step() -> None:
    config = config_of("lavl", {**TOLD, "discount": 0.9})
    agent = agents.build("lavl", config, Spec.of_sizes(D, A, D))
    state = agent.init(KEY, config)
    np.testing.assert_allclose(state.extras["v_mean"], -10, rtol=1e-5)
    state = state.replace(target_params=jax.tree.map(jnp.zeros_like, state.target_params))
    after, metrics = compiled(agent)(state, drawn_batch(), KEY)
    np.testing.assert_allclose(metrics["value/bound"], 2, rtol=1e-5)
    np.testing.assert_allclose(after.extras["v_mean"], -9 + 0.1 * metrics["value/v_mean"], rtol=1e-5)
    assert set(after.target_params) == {"value", "goal_rep"}
    for name, slow in after.target_params.items():
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, 0.1 * y, atol=1e-6), slow, state.params[name])


@pytest.mark.slow
@pytest.mark.parametrize("level", ["low_actor_rep_grad", "high_actor_rep_grad"])
def test_what_trains_the_representation(level: str) -> None:
    # A value of weight zero, so that only the policies are left to move the representation.
    moves = []
    for on in (True, False):
        both = {"low_actor_rep_grad": False, "high_actor_rep_grad": False, level: on}
        config = config_of("lavl", {**TOLD, **both, "smoothness": 0.0, "value.expectile": 0.0})
        agent = agents.build("lavl", config, Spec.of_sizes(D, A, D))
        state = agent.init(KEY, config)
        batch = drawn_batch() | {"rewards": jnp.full(B, 1e3)}  # above all values: the other side, of weight zero
        after, _ = compiled(agent)(state, batch, KEY)
        before = jax.tree.leaves(state.params["goal_rep"])
        moves.append(
            any((x != y).any() for x, y in zip(before, jax.tree.leaves(after.params["goal_rep"]), strict=True))
        )
    assert moves == [True, False]


@functools.cache
def on_a_line() -> Any:
    told = {
        "hidden_dims": (32, 32), "rep_dim": 4, "latent_dim": 8, "learning_rate": 3e-3, "discount": GAMMA,
        "value.target_rate": 0.05, "subgoal_steps": 2, "smoothness": 1.0,
    }  # fmt: skip
    return trained("lavl", told, line())


@pytest.mark.slow
def test_values_on_a_line_are_those_of_its_distances() -> None:
    agent, state = on_a_line()
    s, g = cell_pairs()
    eye = jnp.eye(CELLS)
    found = lavl.v(agent.act.args[-1], state.params, eye[s], eye[g])[0]
    true = -(1 - GAMMA ** np.abs(s - g)) / (1 - GAMMA)
    np.testing.assert_allclose(found, true, atol=0.4)
    assert np.corrcoef(found, true)[0, 1] > 0.99


@pytest.mark.slow
def test_policies_on_a_line_go_toward_the_goal() -> None:
    np.testing.assert_allclose(steps_toward(*on_a_line()), 0.8, atol=0.3)


FAULTS = {
    "agents/lavl.py": [
        (
            "return -nets.value(params, s, rep",
            "return nets.value(params, s, rep",
            "test_the_value_has_slow_copies_of_both_networks",
        ),
        ("1 - (1 - config.discount) *", "1 + (1 - config.discount) *", "test_the_bound_of_a_step"),
        ("(change**2 - bound**2)", "(change**2 - bound)", "test_the_bound_of_a_step"),
        ("return config.smoothness * smoothness", "return smoothness", "test_the_bound_of_a_step"),
        ("partial(goal_value_loss, v), smoothness_loss]", "partial(goal_value_loss, v)]", "test_what_follows_a_step"),
        ("state.params, value=rate, goal_rep=rate", "state.params, value=rate", "test_what_follows_a_step"),
        ("polyak(moved, state.params", "polyak(moved, moved.params", "test_what_follows_a_step"),
        ("rate * (metrics", "-rate * (metrics", "test_what_follows_a_step"),
        ("rep_grad=config.high_actor_rep_grad", "rep_grad=False", "test_what_trains_the_representation"),
    ],
    "flowrl/losses.py": [
        (
            "{**state.params, **state.target_params}",
            '{**state.params, "value": state.target_params["value"]}',
            "test_the_value_has_slow_copies_of_both_networks",
        ),
    ],
    "flowrl/policies.py": [
        ("(weights.mean() + 1e-3)", "(weights.sum() + 1e-3)", "test_weights_relative_to_the_batch"),
    ],
}
