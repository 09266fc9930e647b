"""How the goal-conditioned agents act, and what they learn on a line of cells, where all answers are known."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goal_references import (
    NAMES,
    Reference,
    agent_of,
    config_of,
    double,
    jump,
    normalized,
    pair_of,
    sscp_two_hops,
    state_of,
)
from lines import CELLS, GAMMA, cell_pairs, line, trained
from small_agents import AT_LEISURE, compiled, networks_of
from small_agents import goal_transitions as batch_of

from flowrl.agent import Agent
from flowrl.agents import gc_sscp, gcivl
from flowrl.config import as_arrays, check
from flowrl.encoders import length_normalize, represented_value
from flowrl.errors import UserError
from flowrl.train_state import Policy, TrainState

each_agent = pytest.mark.parametrize("name", NAMES)


@each_agent
@pytest.mark.parametrize("shape", [(), (5,), (2, 5)], ids=str)
def test_actions_have_the_shape_of_the_observations_and_stay_in_bounds(name: str, shape: tuple[int, ...]) -> None:
    agent, key = agent_of(name), jax.random.key(1)
    policy = agent.policy(state_of(name))
    s, g = jax.random.normal(key, (*shape, 3)) * 10, jnp.ones((*shape, 3))
    for explore in (False, True):
        actions = jax.jit(functools.partial(agent.act, explore=explore))(policy, {"observations": s, "goals": g}, key)
        assert actions.shape == (*shape, 2)
        assert np.abs(actions).max() <= 1
        assert jnp.isfinite(actions).all()


@pytest.mark.slow
@each_agent
def test_acting_at_the_origin_before_training_is_finite(name: str) -> None:
    # All biases start at zero, and so does every hidden layer there.
    agent = agent_of(name)
    state = jax.jit(agent.init)(jax.random.key(0), config_of(name))
    origin = {"observations": jnp.zeros((2, 3)), "goals": jnp.zeros((2, 3))}
    assert np.isfinite(jax.jit(agent.act)(agent.policy(state), origin, jax.random.key(1))).all()
    batch = {field: jnp.zeros_like(array) for field, array in batch_of().items()}
    after, metrics = compiled(agent)(state, batch, jax.random.key(2))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after.params, metrics)))


@pytest.mark.parametrize("name", ["gcbc", "gcivl", "hiql"])
def test_gaussian_policies_act_by_their_mode_or_a_unit_sample(name: str) -> None:
    agent, networks, state = agent_of(name), networks_of(agent_of(name)), state_of(name)
    small = jax.tree.map(lambda x: 0.3 * x, state.params)
    state = state.replace(params=small)
    policy = agent.policy(state)
    s, g = batch_of()["observations"], batch_of()["actor_goals"]
    if name == "hiql":
        reps = double(networks.high_actor(small, s, g))
        means = networks.low_actor(small, s, jnp.asarray(normalized(reps), jnp.float32))
    else:
        means = networks.actor(small, s, g)
    inputs = {"observations": s, "goals": g}
    one, other = (agent.act(policy, inputs, jax.random.key(seed)) for seed in (1, 2))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(one, np.clip(means, -1, 1), atol=1e-5)
    repeated = jax.tree.map(lambda x: jnp.repeat(x[:1], 5000, 0), inputs)
    many = functools.partial(agent.act, policy, repeated, explore=True)
    explored = double(many(jax.random.key(1)))
    assert not np.array_equal(explored, many(jax.random.key(2)))
    if name != "hiql":  # there the mean of the low level moves with the sample of the high level
        # Where N(μ, 1) is not clipped: P(a < x) is its distribution function. Standard error 0.007.
        for dim in range(2):
            below = 0.5 * (1 + jax.lax.erf((0.2 - double(means)[0, dim]) / np.sqrt(2)))
            assert abs((explored[:, dim] < 0.2).mean() - below) < 0.05
    assert (np.abs(explored) == 1).mean() > 0.1


def test_hiql_explores_at_both_levels() -> None:
    # A low-level policy that outputs one coordinate of the subgoal's representation shows the high level's noise: with
    # its own mean fixed, unit noise in the action alone would make the spread equal for any representation.
    agent, state = agent_of("hiql"), state_of("hiql")
    quiet = jax.tree.map(lambda x: x * 0, state.params["low_actor"])
    zeroed = state.replace(params={**state.params, "low_actor": quiet})
    inputs = {"observations": jnp.zeros((5000, 3)), "goals": jnp.zeros((5000, 3))}
    fixed = double(agent.act(agent.policy(zeroed), inputs, jax.random.key(1), explore=True))
    free = double(agent.act(agent.policy(state), inputs, jax.random.key(1), explore=True))
    # The low level's noise is a function of the key alone, so what differs is the mean, by more than a constant.
    inside = (np.abs(fixed) < 1) & (np.abs(free) < 1)
    assert np.std((free - fixed)[inside]) > 0.05
    high_key, low_key = jax.random.split(jax.random.key(1))  # each level's noise is its own
    nets, s = networks_of(agent), inputs["observations"]
    means = nets.high_actor(state.params, s, inputs["goals"])
    rep = length_normalize(means + jax.random.normal(high_key, means.shape))
    means = nets.low_actor(state.params, s, rep)
    np.testing.assert_allclose(free, jnp.clip(means + jax.random.normal(low_key, means.shape), -1, 1), atol=1e-5)


def with_hops(hops: int) -> TrainState:
    return state_of("gc_sscp").replace(config=as_arrays(config_of("gc_sscp", {"hops": hops})))


@pytest.mark.parametrize("explore", [False, True])
@pytest.mark.parametrize("hops", [1, 2])
def test_gc_sscp_acts_by_the_slow_actor_in_one_hop_and_by_the_trained_one_in_two(
    hops: int, explore: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    noises = iter([pair_of(1), pair_of(2)])
    monkeypatch.setattr(gc_sscp, "noise", lambda nets, s, key: next(noises))
    state, agent = with_hops(hops), agent_of("gc_sscp", {"hops": hops})
    batch = {**batch_of(), "high_actor_goals": batch_of()["actor_goals"]}
    ref = Reference("gc_sscp", state, batch)
    if hops == 2:
        expected, _ = sscp_two_hops(ref, state.params["actor"])
    else:
        reps = ref.rep(state.params, batch["observations"], batch["high_actor_goals"])
        leap = jump(ref, state.target_params["actor"], reps, pair_of(1), 0, 2)
        expected = np.clip(double(leap.a), -1, 1)
    inputs = {"observations": batch["observations"], "goals": batch["high_actor_goals"]}
    actions = agent.act(agent.policy(state), inputs, jax.random.key(0), explore=explore)
    np.testing.assert_allclose(actions, expected, atol=1e-4)


def test_gc_sscp_draws_noise_when_acting() -> None:
    # An actor whose output is zero passes its noise through: clipped actions of N(0, 1), for one hop and for two.
    state = state_of("gc_sscp")
    zeroed = jax.tree.map(jnp.zeros_like, state.target_params["actor"])
    params = {"goal_rep": state.params["goal_rep"], "actor": zeroed}
    s = jax.random.normal(jax.random.key(2), (20_000, 3))
    drawn = list[np.ndarray]()
    for hops in (1, 2):
        act = functools.partial(agent_of("gc_sscp").act, Policy(with_hops(hops).config, params))
        one, other = (double(act({"observations": s, "goals": s}, jax.random.key(k))) for k in (1, 2))
        for x in (-0.5, 0.0, 0.8):  # standard error 0.0025
            assert abs((one < x).mean() - 0.5 * (1 + float(jax.lax.erf(x / np.sqrt(2))))) < 0.015
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.05
        assert abs(np.corrcoef(one[:, 0], one[:, 1])[0, 1]) < 0.05
        drawn.append(one)
    assert abs(np.corrcoef(drawn[0].ravel(), drawn[1].ravel())[0, 1]) < 0.05  # the second hop's noise is another


def test_gc_sscp_refuses_other_numbers_of_hops() -> None:
    with pytest.raises(UserError, match="hops=3"):
        check(gc_sscp.Config(hops=3))


@each_agent
def test_a_policy_carries_only_what_acting_needs(name: str) -> None:
    expected = {
        "gcbc": {"actor"},
        "gcivl": {"actor"},
        "hiql": {"low_actor", "high_actor"},
        "gc_sscp": {"goal_rep", "actor"},
    }
    assert set(agent_of(name).policy(state_of(name)).params) == expected[name]


# --- problems with known answers ---


@functools.cache
def trained_on_line(name: str, horizon: int = 1) -> tuple[Agent, TrainState]:
    """A small agent after its updates on the line; goals come from the same walk, so that values are exact."""
    told: dict[str, Any] = {"hidden_dims": (64, 64), "learning_rate": 3e-3}
    if name != "gcbc":
        told |= {"discount": GAMMA, "value.expectile": 0.95, "value.target_rate": 0.05, "value.horizon": horizon}
        told |= {"value_goals.p_trajectory": 0.7, "value_goals.p_random": 0.0}
    if name in ("hiql", "gc_sscp"):
        told |= {"subgoal_steps": 2, "low_alpha": 0.3, "high_alpha": 0.3}
    if name == "gc_sscp":  # where larger steps reshape the representation, some initial parameters end in no direction
        return trained(
            name, {**told, "actor_target_rate": 0.02, "learning_rate": 1e-3}, line(), updates=2500, options=AT_LEISURE
        )
    return trained(name, told, line(), options=AT_LEISURE)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "horizon"), [("gcivl", 1), ("gcivl", 3), ("hiql", 1), ("gc_sscp", 1)])
def test_values_on_a_line_are_those_of_the_distance(name: str, horizon: int) -> None:
    # Reward −1 until the goal is reached in k steps, and nothing after: −(1 − γ^k)/(1 − γ), from 0 to −3.7.
    agent, state = trained_on_line(name, horizon)
    networks = networks_of(agent)
    s, g = cell_pairs()
    eye = jnp.eye(CELLS)
    value = gcivl.v if name == "gcivl" else represented_value
    values = double(value(networks, state.params, eye[s], eye[g])).mean(axis=0)
    expected = -(1 - GAMMA ** np.abs(s - g)) / (1 - GAMMA)
    at_goal = double(value(networks, state.params, eye, eye)).mean(axis=0)
    if name == "gc_sscp":
        # The actor's losses reshape the representation that V reads, so V follows them with an error.
        assert np.abs(values - expected).mean() < 0.4
        assert np.corrcoef(values, expected)[0, 1] > 0.93
        assert at_goal.mean() > values[np.abs(s - g) == 1].mean() > values[np.abs(s - g) == 3].mean()
        return
    np.testing.assert_allclose(values, expected, atol=0.1)
    np.testing.assert_allclose(at_goal, 0, atol=0.1)
    for start in range(CELLS):  # nearer goals are worth more, on either side
        for side in (s > g, s < g):
            here = (s == start) & side
            assert (np.diff(values[here][np.argsort(np.abs(s - g)[here])]) < 0).all()


@pytest.mark.slow
@each_agent
def test_policies_on_a_line_go_toward_the_goal(name: str) -> None:
    agent, state = trained_on_line(name)
    s, g = cell_pairs()
    if name in ("hiql", "gc_sscp"):  # nearer goals than a subgoal's distance are not what the low level is trained for
        s, g = s[np.abs(s - g) >= 2], g[np.abs(s - g) >= 2]
    eye, draws = jnp.eye(CELLS), 50
    inputs, policy = {"observations": eye[s], "goals": eye[g]}, agent.policy(state)
    act = jax.jit(jax.vmap(lambda key: agent.act(policy, inputs, key)))
    actions = act(jax.random.split(jax.random.key(5), draws))
    toward = double(actions)[..., 0] * np.sign(g - s)
    assert (toward > 0).mean() > 0.97
    # The data's action is ±0.8 toward the goal; a flow policy's is spread around it and clipped.
    np.testing.assert_allclose(toward.mean(axis=None if name == "gc_sscp" else 0), 0.8, atol=0.3)


FAULTS = {
    "flowrl/policies.py": [
        (
            "means + jax.random.normal(key, means.shape) if explore",
            "means + jax.random.normal(key, means.shape) if not explore",
            "test_gaussian_policies_act_by_their_mode_or_a_unit_sample and gcbc",
        ),
        (
            'rep = length_normalize(unit_gaussian(nets.high_actor(params, s, inputs["goals"]), high_key, explore))',
            'rep = unit_gaussian(nets.high_actor(params, s, inputs["goals"]), high_key, explore)',
            "test_gaussian_policies_act_by_their_mode_or_a_unit_sample and hiql",
        ),
        (
            "(high_key, low_key), s, params = jax.random.split(key),",
            "(high_key, low_key), s, params = (key, key),",
            "test_hiql_explores_at_both_levels",
        ),
    ],
    "agents/gcbc.py": [
        (
            "unit_gaussian(means, key, explore), -1.0, 1.0)",
            "unit_gaussian(means, key, explore), -1.0, 2.0)",
            "test_actions_have_the_shape_of_the_observations_and_stay_in_bounds and gcbc",
        ),
    ],
    "agents/gc_sscp.py": [
        (
            "noises[1], 1, 1)",
            "noises[0], 1, 1)",
            "test_gc_sscp_acts_by_the_slow_actor_in_one_hop_and_by_the_trained_one_in_two",
        ),
        (
            "goal_rep, first, 0, 2)",
            "goal_rep, first, 0, 1)",
            "test_gc_sscp_acts_by_the_slow_actor_in_one_hop_and_by_the_trained_one_in_two",
        ),
        (
            "noise(nets, s, keys[1])",
            "noise(nets, s, keys[0])",
            "test_gc_sscp_draws_noise_when_acting",
        ),
        (
            "state.params if state.config.hops == 2 else state.target_params",
            "state.params",
            "test_gc_sscp_acts_by_the_slow_actor_in_one_hop_and_by_the_trained_one_in_two",
        ),
    ],
}
