"""Choosing among candidates by Q: which one, how often, and from how many; and how the single-task agents act."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from offline_references import HYPER, NETWORKS, A, D, config_of, field, state_of

from flowrl import acting
from flowrl import agent as agents
from flowrl.agent import Spec

VALUES = {-1.0: -4.0, 0.0: 1.0, 1.0: 2.0}
"""Candidates and their least value; 1 is the best."""


def thirds(rows: int, key: jax.Array) -> jax.Array:
    """One of −1, 0 and 1 in each row `[rows, 1]`, equally often."""
    return jax.random.randint(key, (rows, 1), -1, 2).astype(jnp.float32)


def by_table(actions: jax.Array) -> jax.Array:
    """Critics `[2, ...]` whose least value is that of the table."""
    low = sum(jnp.where(actions[..., 0] == action, value, 0.0) for action, value in VALUES.items())
    return jnp.stack([low + jnp.abs(actions[..., 0]), low])


choose = jax.jit(acting.best_of_n, static_argnums=(0, 1, 3))


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
    actions = acting.best_of_n(
        lambda key: jax.random.normal(key, (*shape, 2)),
        lambda actions: jnp.stack([actions[..., 0] * signs, actions[..., 0] * signs + 1]),
        jax.random.key(4),
        20,
        jnp.float32(0),
    )
    assert actions.shape == (*shape, 2)
    assert (actions[..., 0] * signs > 0).all()


def test_both_dimensions_come_from_the_same_candidate() -> None:
    actions = acting.best_of_n(
        lambda key: jax.random.normal(key, (50, 1)) * jnp.array([1.0, 2.0]),
        lambda actions: jnp.stack([actions[..., 1]] * 2),
        jax.random.key(5),
        10,
        jnp.float32(0),
    )
    np.testing.assert_allclose(actions[:, 1], 2 * actions[:, 0], rtol=1e-6)


# --- the agents ---

OBSERVATIONS = np.random.default_rng(0).normal(size=(40, D)).astype(np.float32)
ACTOR = {"sscp": "target_params", "ofql": "target_params", "fql": "params", "bc": "params"}


def act_of(name: str, mode: str, key: int = 0, hyper: dict[str, Any] | None = None, **fields: Any) -> np.ndarray:
    """What the tiny networks do in `OBSERVATIONS`."""
    agent = agents.load(name).make(config_of(name, **fields), Spec(D, A, 0))
    act = functools.partial(agents.load(name).act, NETWORKS[name], config_of(name, **fields))
    state = state_of(name, 0, **fields)
    state = state.replace(hyper={**state.hyper, **{field: jnp.float32(v) for field, v in (hyper or {}).items()}})
    observations = jnp.asarray(OBSERVATIONS)
    return np.asarray(act(agent.policy(state), observations, observations, jax.random.key(key), mode=mode))


def by_hand(name: str, key: jax.Array, scale: float = 1.0, steps: int = 1, **fields: Any) -> np.ndarray:
    """The same in numpy, from the acting copy's parameters."""
    params = jax.tree.map(np.asarray, getattr(state_of(name, 0, **fields), ACTOR[name])["actor"])
    noise = scale * np.asarray(jax.random.normal(key, (len(OBSERVATIONS), A)))
    ones = np.ones((len(OBSERVATIONS), 1))
    actor = functools.partial(field, np, params, OBSERVATIONS)
    if name == "fql":
        return np.clip(actor(noise), -1, 1)
    if name == "ofql":
        return np.clip(noise - actor(noise, 0 * ones, ones), -1, 1)
    for i in range(steps):
        t = i / steps * ones
        noise = noise + (actor(noise, t, 1 - t) if name == "sscp" else actor(noise, t)) / steps
    return np.clip(noise, -1, 1)


@pytest.mark.parametrize("mode", ["eval", "explore"])
@pytest.mark.parametrize(
    ("name", "steps", "fields"),
    [
        ("sscp", 1, {}),
        ("sscp", 3, {"completion_steps": 3}),
        ("ofql", 1, {}),
        ("fql", 1, {}),
        ("bc", 10, {"distribution": "flow"}),
        ("bc", 4, {"distribution": "flow", "flow_steps": 4}),
    ],
)
def test_flow_policies_act_by_their_acting_copy(name: str, steps: int, fields: dict[str, Any], mode: str) -> None:
    expected = by_hand(name, jax.random.key(7), steps=steps, **fields)
    np.testing.assert_allclose(act_of(name, mode, 7, **fields), expected, atol=2e-5)
    assert (np.abs(expected) == 1).any()
    assert np.abs(act_of(name, mode, 8, **fields) - expected).max() > 0.1  # other noise


def test_the_gaussian_policy_acts_by_its_mean_and_explores_around_it() -> None:
    params = jax.tree.map(np.asarray, state_of("bc").params["actor"])
    means = field(np, params, OBSERVATIONS)
    for key in (1, 2):
        np.testing.assert_allclose(act_of("bc", "eval", key), np.clip(means, -1, 1), atol=1e-5)
        noise = np.asarray(jax.random.normal(jax.random.key(key), means.shape))
        np.testing.assert_allclose(act_of("bc", "explore", key), np.clip(means + noise, -1, 1), atol=1e-5)


@pytest.mark.parametrize("name", ["sscp", "ofql", "fql"])
def test_the_best_of_n_is_the_best_by_the_slow_critics(name: str) -> None:
    scale, count = (0.3 if name == "ofql" else 1.0), 5
    hyper = {"candidate_noise": 0.3} if name == "ofql" else {}
    keys = jax.random.split(jax.random.split(jax.random.key(9))[0], count)
    candidates = np.stack([by_hand(name, key, scale) for key in keys])
    slow = state_of(name).target_params["critic"]
    values = np.stack([NETWORKS[name].critic.apply(slow, OBSERVATIONS, jnp.asarray(c)) for c in candidates]).min(axis=1)
    expected = candidates[values.argmax(axis=0), np.arange(len(OBSERVATIONS))]
    np.testing.assert_allclose(act_of(name, "best_of_n", 9, hyper, candidates=count), expected, atol=2e-5)
    # One action is one draw of unit noise, though candidates start from less.
    expected = by_hand(name, jax.random.key(9))
    np.testing.assert_allclose(act_of(name, "eval", 9, hyper, candidates=count), expected, atol=2e-5)


@pytest.mark.parametrize("name", ["sscp", "ofql", "fql"])
def test_candidates_ask_for_critics_a_temperature_and_an_evaluation(name: str) -> None:
    noise = {"noise"} if name == "ofql" else set()
    for count, arrays, modes in (
        (1, {"actor"}, ("eval",)),
        (4, {"actor", "critic", "temperature"}, ("eval", "best_of_n")),
    ):
        config = config_of(name, candidates=count, candidate_temperature=3.0)
        agent, state = agents.load(name).make(config, Spec(D, A, 0)), state_of(name, candidate_temperature=3.0)
        assert set(agent.policy(state)) == arrays | noise
        assert agent.evaluations == acting.evaluations(config) == modes
    assert agent.policy(state)["temperature"] == 3
    assert "candidates" not in HYPER[name]  # a static field
    np.testing.assert_array_equal(agent.policy(state)["critic"]["bias"], state.target_params["critic"]["bias"])


def test_behaviour_cloning_is_evaluated_by_single_actions() -> None:
    agent = agents.load("bc").make(config_of("bc"), Spec(D, A, 0))
    assert agent.evaluations == ("eval",)
    assert set(agent.policy(state_of("bc"))) == {"actor"}
