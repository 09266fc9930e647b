"""How the single-task agents act; to be ported with `offline_references`."""

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
