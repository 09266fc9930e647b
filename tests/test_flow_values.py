"""RQL and Q-Flow: every loss by hand for linear networks, what moves and acts, and a bandit."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_agents import ACTOR, CRITIC, SMALL, assert_first_step, found
from small_agents import SPEC, check_mapped, compiled, config_of, networks_of, state_with, transitions
from stub_agents import network
from ways import Way, array, each_way

from flowrl import agents
from flowrl.agent import Agent
from flowrl.agents import qflow, rql
from flowrl.encoders import rising_sinusoidal_features
from flowrl.networks import Networks, Spec
from flowrl.paths import backward, onward
from flowrl.train_state import Params, TrainState

NAMES = ("rql", "qflow")
# One number each, s is not read. Slow copies are others, so that none can be mistaken for one another.
PARAMS: dict[str, Params] = {"actor": {"w": array(1.0)[0]}, "critic": {"k": array(2, 4)}, "value": {"k": array(2, 4)}}
SLOW = {"actor": {"w": array(0.5)[0]}, "critic": {"k": array(1, 3)}}


def of_point(params: Any, s: jax.Array, x: jax.Array, f: jax.Array) -> jax.Array:
    return params["k"][:, None] * (x + f)[..., 0]


def square(params: Any, s: jax.Array, x: jax.Array, features: jax.Array) -> jax.Array:
    return params["k"][:, None] * x[..., 0] ** 2


RQL = Networks(SMALL, ACTOR, network("critic", of_point))
QFLOW = qflow.Networks(SMALL, ACTOR, CRITIC, network("value", square))


def toy_state(name: str, told: Mapping[str, Any] | None = None) -> TrainState:
    known = {"flow.steps": 2, "alpha": 2.0, "critic.rho": 0.5}
    return state_with(config_of(name, {**known, **(told or {})}), PARAMS, SLOW)


# --------------------------------------------------------------------------------------------------------- paths


@each_way
def test_onward_by_hand(way: Way) -> None:
    # v = x, N = 2. From 0: 1·1½·1½. From ¾ one step of ¼, and then none: 2·1¼. At 1 nothing moves.
    ends = way(lambda x, t: onward(lambda x, t: x, x, t, 2))(array([1.0], [2.0], [3.0]), array([0.0], [0.75], [1.0]))
    np.testing.assert_allclose(ends[:, 0], [2.25, 2.5, 3], rtol=1e-6)


@each_way
def test_backward_by_hand(way: Way) -> None:
    # v = x + f, N = 2, d = ½: from 1 by ¼ of 1 + 1 to ½, by ¼ of ½ + ¾ to 0.1875, at time ½. With d = 0 nothing moves.
    points, times = way(lambda x, d: backward(lambda x, f: x + f, x, d, 2))(array([1.0], [1.0]), array([0.5], [0.0]))
    np.testing.assert_allclose(points[:, 0], [0.1875, 1], rtol=1e-6)
    np.testing.assert_allclose(times[:, 0], [0.5, 1], rtol=1e-6)


@each_way
def test_rising_features(way: Way) -> None:
    features = way(lambda t: rising_sinusoidal_features(t, 6))(array([0.1], [1.0]))
    angles = np.array([[0.1], [1.0]]) * [1, 16, 256]
    np.testing.assert_allclose(features, np.concatenate([np.sin(angles), np.cos(angles)], axis=1), atol=1e-4)


# --------------------------------------------------------------------------------------------------------- losses


@each_way
def test_rql_learns_values_on_the_reversed_flow(way: Way) -> None:
    """V = k (x + f). V̄(s', ½, 0) is ½ and 1½: 1 − ½·½, so y = 1 + ½·¾ and −2.

    From ½ by d = .6 in two steps of v = x: ½·.7² at .4; from −1 by d = ½ (the first of two whole steps): −.75² at ½.
    """
    drawn = {"z": [[0.5], [0.5]], "d": [0.6], "i": [1]}
    (value, metrics), grads = found(
        way, rql.critic_loss, RQL, toy_state("rql"), ["normal z", "uniform d", "randint i"], drawn
    )
    points = np.array([0.5 * 0.7**2 + 0.4, -(0.75**2) + 0.5])
    u = np.array([1.375, -2]) - np.array([[2], [4]]) * points
    weights = np.where(u < 0, 0.1, 0.9)
    np.testing.assert_allclose(value, (weights * u**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(grads["critic"]["k"], (-2 * weights * u * points).sum(axis=1) / 4, rtol=1e-5)
    assert grads["actor"]["w"] == 0
    np.testing.assert_allclose(metrics["critic/loss"], value)
    # Rows that do not count are 0, and in the mean.
    (value, _), _ = found(
        way, rql.critic_loss, RQL, toy_state("rql"), ["normal z", "uniform d", "randint i"], drawn, valid=array(0, 1)
    )
    np.testing.assert_allclose(value, (weights * u**2)[:, 1].sum() / 4, rtol=1e-5)


def test_what_is_gone_back_is_half_of_it_by_whole_steps() -> None:
    d = np.asarray(rql.spans(jax.random.key(0), 401, 4))
    assert d.shape == (401, 1)
    assert ((d[:200] * 4) % 1 > 0).all()
    assert d.min() >= 0
    assert d.max() == 1
    assert set(d[200:, 0]) == {0, 0.25, 0.5, 0.75, 1}


@each_way
def test_rql_pulls_the_flow_along_the_next_value(way: Way) -> None:
    """First row: x = ¾ at ½, v = ¾ against −½; half a step on V = 3 (1⅛ + 1). Second: x = −½ at ¾, ¼ on V = 3 (−⅝ + 1).

    Only the first is cloned: 2·1¼²/2. By v's weight: 2·2·1¼·¾/2 − 3 (½·¾ − ¼·½)/2.
    """
    drawn = {"f": [[0.5], [0.75]], "z": [[1.0], [1.0]]}
    order = ["uniform f", "normal z"]
    (value, metrics), grads = found(
        way, rql.actor_loss, RQL, toy_state("rql"), order, drawn, actions_valid=array([1], [0])
    )
    np.testing.assert_allclose(metrics["actor/flow_loss"], 1.25**2 / 2, rtol=1e-5)
    np.testing.assert_allclose(value, 1.25**2 - 3.75, rtol=1e-5)
    np.testing.assert_allclose(grads["actor"]["w"], 1.5, rtol=1e-5)
    assert not np.any(grads["critic"]["k"])
    (value, _), _ = found(way, rql.actor_loss, RQL, toy_state("rql"), order, drawn, valid=array(0, 1))
    np.testing.assert_allclose(value, 1.25**2 + 1.5**2 - 1.125 / 2, rtol=1e-5)


@each_way
def test_qflow_bootstraps_by_its_flow(way: Way) -> None:
    # a' is ½·(1 + ½)² clipped to 1: Q̄ = 1, 3, so 2 − ½·1; y = 1 + ½·1½ and −2; Q = 1, 2 and −2, −4.
    (value, _), _ = found(way, qflow.critic_loss, QFLOW, toy_state("qflow"), ["normal z"], {"z": [[0.5], [0.5]]})
    np.testing.assert_allclose(value, (0.75**2 + 0.25**2 + 2**2) / 4, rtol=1e-5)


@each_way
@pytest.mark.parametrize(
    ("told", "error", "slopes"),
    [
        # x = ¾ at ½; the flow leads to 1⅛, clipped: Q̄ = 1, 3, so 2 − ½. V = 2·¾², 4·¾²: their mean is 1.6875.
        ({}, 0.1875, [0.1875 * 0.5625 / 2] * 2),
        # The least of each, 1 and 1⅛: only the first head learns.
        ({"critic.aggregate": "min", "critic.rho": 0.0}, 0.125, [0.125 * 0.5625, 0]),
    ],
)
def test_qflow_learns_what_the_flow_will_earn(way: Way, told: Any, error: float, slopes: Any) -> None:
    drawn = {"t": [[0.5], [0.5]], "z": [[1.0], [3.0]]}
    (value, _), grads = found(
        way, qflow.value_loss, QFLOW, toy_state("qflow", told), ["uniform t", "normal z"], drawn, valid=array(1, 0)
    )
    np.testing.assert_allclose(value, error**2 / 2, rtol=1e-4)
    np.testing.assert_allclose(grads["value"]["k"], slopes, rtol=1e-4)
    assert not any(np.any(leaf) for name in ("actor", "critic") for leaf in jax.tree.leaves(grads[name]))


@each_way
def test_qflow_follows_the_slope_of_the_value(way: Way) -> None:
    # x = ¾: mean V's slope is 2·3·¾ = 4½, over 2: −½ + 2¼ against ¾; by the weight 2·(−1)·¾/2.
    drawn = {"t": [[0.5], [0.5]], "z": [[1.0], [3.0]]}
    (value, _), grads = found(
        way, qflow.actor_loss, QFLOW, toy_state("qflow"), ["uniform t", "normal z"], drawn, valid=array(1, 0)
    )
    np.testing.assert_allclose(value, 0.5, rtol=1e-5)
    np.testing.assert_allclose(grads["actor"]["w"], -0.75, rtol=1e-5)
    assert not np.any(grads["value"]["k"])


# -------------------------------------------------------------------------------------------------------- updates


TINY = {"hidden_dims": (8,), "critic.heads": 3, "flow.steps": 3, "horizon.steps": 1, "horizon.chunk": False}


def agent_of(name: str) -> Agent:
    return agents.build(name, config_of(name, TINY), SPEC)


@functools.cache
def fresh(name: str, seed: int = 0) -> TrainState:
    return agent_of(name).init(jax.random.key(seed), config_of(name, TINY))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "slow"), [("rql", {"actor", "critic"}), ("qflow", {"critic"})])
def test_what_moves(name: str, slow: set[str]) -> None:
    state = fresh(name)
    after, metrics = compiled(agent_of(name))(state, transitions(), jax.random.key(1))
    assert set(state.target_params) == slow
    assert_first_step(state, after, metrics)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_mapped_runs_equal_single_ones(name: str) -> None:
    states = [fresh(name, seed) for seed in range(2)]
    check_mapped(agent_of(name), states, transitions(), rtol=1e-7, atol=1e-5)


def test_rql_explores_by_the_trained_flow_and_is_evaluated_by_the_slow_one() -> None:
    agent, state = agent_of("rql"), fresh("rql")
    state = state.replace(target_params=jax.tree.map(jnp.zeros_like, state.target_params))
    inputs, key = {"observations": jnp.ones((20, 3))}, jax.random.key(0)
    ways = (state.config, agent.explores(state.config))
    still, moved = (agent.act(agent.policy(state.replace(config=way)), inputs, key) for way in ways)
    np.testing.assert_allclose(still, jnp.clip(jax.random.normal(key, (20, 2)), -1, 1), rtol=1e-6)  # no velocity
    assert not np.allclose(still, moved)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "told"), [("rql", {"expectile": 0.5, "alpha": 0.1}), ("qflow", {"alpha": 0.5})])
def test_a_bandit_whose_values_are_known(name: str, told: dict[str, Any]) -> None:
    """Actions from N(0, 0.3²) earn themselves, and nothing follows: V(s, a, 1) = a, and the flow moves up."""
    told |= {"hidden_dims": (32,), "critic.heads": 2, "critic.rho": 0.0, "flow.steps": 5, "learning_rate": 5e-3}
    config = config_of(name, {**told, "critic.target_rate": 0.05, "horizon.steps": 1, "horizon.chunk": False})
    agent, s = agents.build(name, config, Spec.of_sizes(1, 1)), jnp.zeros((64, 1))

    def run(key: jax.Array) -> Any:
        def body(i: jax.Array, state: TrainState) -> TrainState:
            a_key, update_key = jax.random.split(jax.random.fold_in(key, i))
            a = jnp.clip(0.3 * jax.random.normal(a_key, (64, 1)), -1, 1)
            rows = {"observations": s, "actions": a, "rewards": a[:, 0], "next_observations": s, "masks": jnp.zeros(64)}
            return agent.update(state, agent.batch(config).complete(rows), update_key)[0]

        state = jax.lax.fori_loop(0, 500, body, agent.init(key, config))
        nets, ends = networks_of(agent), jnp.array([[-0.3], [0.0], [0.3]])
        one = jnp.ones((3, 1))
        if name == "rql":
            values = nets.critic(state.params, s[:3], ends, one)
        else:
            values = qflow.values(nets, config, state.params, s[:3], ends, one)
        policy = agent.policy(state.replace(config=agent.explores(state.config)))
        return agent.act(policy, {"observations": jnp.zeros((500, 1))}, key), values

    actions, values = jax.jit(run)(jax.random.key(0))
    np.testing.assert_allclose(values.mean(axis=0), [-0.3, 0, 0.3], atol=0.2)
    assert 0.15 < actions.mean() < 0.8


FAULTS = {
    "flowrl/paths.py": [
        ("jnp.clip(1 - times, 0.0, 1 / steps)", "1 / steps + 0 * times", "test_onward_by_hand and plain"),
        (
            "points - velocity(points, times) * spans",
            "points + velocity(points, times) * spans",
            "test_backward_by_hand and plain",
        ),
        ("times - spans / steps", "times", "test_backward_by_hand and plain"),
    ],
    "flowrl/encoders.py": [
        ("jnp.log(256.0), size // 2", "jnp.log(10_000.0), size // 2", "test_rising_features and plain"),
    ],
    "agents/rql.py": [
        (
            "nets.critic(state.target_params, next_s",
            "nets.critic(state.params, next_s",
            "test_rql_learns_values_on_the_reversed_flow and plain",
        ),
        (
            "jnp.zeros((len(a), 1))",
            "jnp.ones((len(a), 1))",
            "test_rql_learns_values_on_the_reversed_flow and plain",
        ),
        (
            "expectile_weight(targets - v,",
            "expectile_weight(v - targets,",
            "test_rql_learns_values_on_the_reversed_flow and plain",
        ),
        ("0, steps + 1) / steps", "1, steps + 2) / steps", "test_what_is_gone_back_is_half_of_it_by_whole_steps"),
        (
            "len(a), steps), steps)",
            "len(a), steps), steps + 1)",
            "test_rql_learns_values_on_the_reversed_flow and plain",
        ),
        (
            "jnp.minimum(1 / config.flow.steps, 1 - f)",
            "1 / config.flow.steps",
            "test_rql_pulls_the_flow_along_the_next_value and plain",
        ),
        (
            'flow - jnp.mean(batch["valid"] * v)',
            'flow + jnp.mean(batch["valid"] * v)',
            "test_rql_pulls_the_flow_along_the_next_value and plain",
        ),
        (
            'path.velocities, batch["actions_valid"])',
            "path.velocities)",
            "test_rql_pulls_the_flow_along_the_next_value and plain",
        ),
        (
            "(state.target_params if state.config.slow else state.params)",
            "state.params",
            "test_rql_explores_by_the_trained_flow_and_is_evaluated_by_the_slow_one",
        ),
    ],
    "agents/qflow.py": [
        (
            "critics.combine(config.critic, nets.critic(state.target_params, s, a))",
            "critics.combine(config.critic, nets.critic(state.params, s, a))",
            "test_qflow_learns_what_the_flow_will_earn and plain",
        ),
        (
            'jnp.mean(batch["valid"] * (v - jax',
            "jnp.mean((v - jax",
            "test_qflow_learns_what_the_flow_will_earn and plain",
        ),
        (
            "onward(partial(nets.actor, state.params, s)",
            "onward(partial(nets.actor, state.target_params, s)",
            "test_qflow_learns_what_the_flow_will_earn and plain",
        ),
        (
            "path.velocities + slope / config.alpha",
            "path.velocities - slope / config.alpha",
            "test_qflow_follows_the_slope_of_the_value and plain",
        ),
    ],
}
