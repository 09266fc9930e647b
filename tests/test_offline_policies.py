"""How the single-task agents act with tiny networks: by which copy, how noisily, and as the best of several."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_agents import A, D, assert_same
from stub_agents import agent_of, config_of, critics, field, state_of

from flowrl import agents
from flowrl.config import put

OBSERVATIONS = np.random.default_rng(0).normal(size=(40, D)).astype(np.float32)
SLOW = {"sscp": True, "ofql": True, "fql": False, "bc": False}
"""Whether the slow copy of the actor acts."""


def act_of(name: str, key: int, told: dict[str, Any], evaluated: str = "eval", explore: bool = False) -> np.ndarray:
    """What the tiny networks do in `OBSERVATIONS`."""
    agent, state = agent_of(name, told), state_of(name, 0, told)
    policy = agent.policy(state)
    policy = policy.replace(config=agent.evaluations(policy.config)[evaluated])
    inputs = {"observations": jnp.asarray(OBSERVATIONS)}
    return np.asarray(agent.act(policy, inputs, jax.random.key(key), explore=explore))


def by_hand(name: str, key: jax.Array, told: dict[str, Any], scale: float = 1.0, steps: int = 1) -> np.ndarray:
    """The same in numpy, from the acting copy's parameters."""
    state = state_of(name, 0, told)
    params = jax.tree.map(np.asarray, (state.target_params if SLOW[name] else state.params)["actor"])
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


@pytest.mark.parametrize("explore", [False, True])
@pytest.mark.parametrize(
    ("name", "steps", "told"),
    [
        ("sscp", 1, {}),
        ("sscp", 3, {"completion_steps": 3}),
        ("ofql", 1, {}),
        ("fql", 1, {}),
        ("bc", 10, {"distribution": "flow"}),
        ("bc", 4, {"distribution": "flow", "flow.steps": 4}),
    ],
)
def test_flow_policies_act_by_their_acting_copy(name: str, steps: int, told: dict[str, Any], explore: bool) -> None:
    expected = by_hand(name, jax.random.key(7), told, steps=steps)
    np.testing.assert_allclose(act_of(name, 7, told, explore=explore), expected, atol=2e-5)
    assert (np.abs(expected) == 1).any()
    assert np.abs(act_of(name, 8, told, explore=explore) - expected).max() > 0.1  # other noise


def test_the_gaussian_policy_acts_by_its_mean_and_explores_around_it() -> None:
    params = jax.tree.map(np.asarray, state_of("bc").params["actor"])
    means = field(np, params, OBSERVATIONS)
    for key in (1, 2):
        np.testing.assert_allclose(act_of("bc", key, {}), np.clip(means, -1, 1), atol=1e-5)
        noise = np.asarray(jax.random.normal(jax.random.key(key), means.shape))
        np.testing.assert_allclose(act_of("bc", key, {}, explore=True), np.clip(means + noise, -1, 1), atol=1e-5)


@pytest.mark.parametrize("name", ["sscp", "ofql", "fql"])
def test_the_best_of_n_is_the_best_by_the_slow_critics(name: str) -> None:
    scale, count = (0.3 if name == "ofql" else 1.0), 5
    told = {"choice.num_samples": count, **({"candidate_noise": 0.3} if name == "ofql" else {})}
    keys = jax.random.split(jax.random.split(jax.random.key(9))[0], count)
    candidates = np.stack([by_hand(name, key, told, scale) for key in keys])
    slow = state_of(name).target_params["critic"]
    values = np.stack([critics(np, jax.tree.map(np.asarray, slow), OBSERVATIONS, c) for c in candidates]).min(axis=1)
    expected = candidates[values.argmax(axis=0), np.arange(len(OBSERVATIONS))]
    np.testing.assert_allclose(act_of(name, 9, told, "best_of_n"), expected, atol=2e-5)
    # One action is one draw of unit noise, though candidates start from less.
    expected = by_hand(name, jax.random.key(9), told)
    np.testing.assert_allclose(act_of(name, 9, told), expected, atol=2e-5)


@pytest.mark.parametrize("name", ["sscp", "ofql", "fql"])
def test_candidates_ask_for_critics_and_an_evaluation(name: str) -> None:
    for count, networks, ways in ((1, {"actor"}, ["eval"]), (4, {"actor", "critic"}, ["eval", "best_of_n"])):
        told = {"choice.num_samples": count, "choice.temperature": 3.0}
        agent, state = agent_of(name, told), state_of(name, 0, told)
        policy = agent.policy(state)
        assert set(policy.params) == networks
        assert policy.config.choice.temperature == 3
        assert list(agent.evaluations(policy.config)) == ways
        assert agent.evaluations(policy.config)["eval"].choice.num_samples == 1
    assert_same(policy.params["critic"], state.target_params["critic"])


@pytest.mark.parametrize("name", ["driftql", "fql", "ofql", "sscp"])
def test_one_step_policies_explore_by_one_draw(name: str) -> None:
    config = put(agents.default(name), {"choice.num_samples": 4})
    assert agents.load(name).make.explores(config) == agents.default(name)


def test_behaviour_cloning_is_evaluated_by_single_actions() -> None:
    config = config_of("bc", {})
    assert agent_of("bc").evaluations(config) == {"eval": config}
    assert set(agent_of("bc").policy(state_of("bc")).params) == {"actor"}


FAULTS = {
    "agents/sscp.py": [
        (", config.completion_steps)", ")", "test_flow_policies_act_by_their_acting_copy and sscp"),
        (
            "with_critic(state, state.target_params)",
            "with_critic(state, state.params)",
            "test_flow_policies_act_by_their_acting_copy and sscp",
        ),
    ],
    "flowrl/generative.py": [
        ("field(x, t - 1 / self.steps, t)", "field(x, t, t)", "test_flow_policies_act_by_their_acting_copy and ofql"),
        ("x = x - field(", "x = x + field(", "test_flow_policies_act_by_their_acting_copy and ofql"),
    ],
    "agents/ofql.py": [
        (
            "1.0 if config.choice.num_samples == 1 else config.candidate_noise",
            "config.candidate_noise",
            "test_flow_policies_act_by_their_acting_copy and ofql",
        ),
    ],
    "agents/fql.py": [
        (
            "nets.spec.noise(key, s)), -1.0",
            "0.0 * nets.spec.noise(key, s)), -1.0",
            "test_flow_policies_act_by_their_acting_copy and fql",
        ),
    ],
    "agents/driftql.py": [(", explores=one_draw", "", "test_one_step_policies_explore_by_one_draw and driftql")],
    "agents/bc.py": [
        (
            "unit_gaussian(nets.actor(policy.params, s), key, explore), -1.0, 1.0)",
            "unit_gaussian(nets.actor(policy.params, s), key, explore), -2.0, 2.0)",
            "test_the_gaussian_policy_acts_by_its_mean_and_explores_around_it",
        ),
        (
            "nets.spec.noise(key, s))",
            "0.0 * nets.spec.noise(key, s))",
            "test_flow_policies_act_by_their_acting_copy and bc",
        ),
    ],
    "flowrl/choice.py": [
        (
            'state.params if self.critics == "online" else state.target_params',
            "state.params",
            "test_the_best_of_n_is_the_best_by_the_slow_critics and fql",
        ),
    ],
}
