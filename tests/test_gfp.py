"""GFP: its weights and losses by hand, who acts, and a bandit on which guidance shows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bandits import actions_of, positive, trained, two_modes
from small_agents import SPEC, A, B, D, config_of, state_with
from small_agents import transitions as batch_of
from stub_agents import ACTOR, CRITIC, critics, field, network
from ways import Way, array, each_way

from flowrl import agents
from flowrl.agents import gfp
from flowrl.networks import Distilled

NETS = Distilled(SPEC, network("flow", lambda params, *inputs: field(jnp, params, *inputs)), ACTOR, CRITIC)
COMBINED = {"actor": lambda actor, flow: actor, "mean": lambda actor, flow: (actor + flow) / 2, "min": np.minimum}


def state_of(told: dict[str, Any]) -> Any:
    rng = np.random.default_rng(3)
    config = config_of("gfp", {"alpha": 1.7, "eta": 0.5, "flow.steps": 2, **told})
    shapes = {"weight": (2, D + A), "curve": (2, A), "bias": (2,)}

    def dense(inputs: int) -> Any:
        return {"kernel": rng.normal(0, 0.6, (inputs, A)), "bias": rng.normal(0, 0.3, A)}

    def params() -> Any:
        critic = {name: rng.normal(0, 0.7, shape) for name, shape in shapes.items()}
        return {"actor": dense(D + A), "flow": dense(D + A + 1), "critic": critic}

    return state_with(config, jax.tree.map(jnp.asarray, params()), {"critic": params()["critic"]})


def value(params: Any, s: Any, a: Any, aggregate: str) -> np.ndarray:
    q = critics(np, jax.tree.map(np.asarray, params["critic"]), np.asarray(s), np.asarray(a))
    return q.min(axis=0) if aggregate == "min" else q.mean(axis=0)


def both(params: Any, s: Any, z: Any) -> tuple[np.ndarray, np.ndarray]:
    """The policy's action as it is, and the flow's, of two Euler steps, clipped."""
    s, x = np.asarray(s), np.asarray(z)
    for t in (0.0, 0.5):
        x = x + field(np, params["flow"], s, x, np.full((len(s), 1), t)) / 2
    return field(np, params["actor"], s, np.asarray(z)), np.clip(x, -1, 1)


@each_way
def test_weights_by_hand(way: Way) -> None:
    # Advantages −1, 0 and 2 where Q is of size 4: with η = ½ they are −½, 0 and 1.
    advantages, size = array(-1, 0, 2), jnp.float32(4)
    config = config_of("gfp", {"eta": 0.5})
    scaled = np.array([-0.5, 0, 1])
    found = way(lambda a, size: gfp.weights(config, a, size))(advantages, size)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-scaled)), rtol=1e-6)
    config = config_of("gfp", {"eta": 0.5, "guidance": "advantage"})
    found = way(lambda a, size: gfp.weights(config, a, size))(advantages, size)
    np.testing.assert_allclose(found, np.exp(scaled), rtol=1e-6)
    config = config_of("gfp", {"eta": 0.0})
    np.testing.assert_array_equal(way(lambda a, size: gfp.weights(config, a, size))(advantages, size), 1)
    # a hard filter
    config = config_of("gfp", {"eta": 1e-6})
    np.testing.assert_allclose(way(lambda a, size: gfp.weights(config, a, size))(advantages, size), [0, 0.5, 1])


@pytest.mark.parametrize(("reference", "aggregate"), [("actor", "mean"), ("min", "min")])
@each_way
def test_the_losses_of_flow_and_policy_by_hand(x64: None, way: Way, reference: str, aggregate: str) -> None:
    state = state_of({"reference": reference, "critic.aggregate": aggregate})
    batch, key = batch_of(), jax.random.key(7)
    batch = {**batch, "actions_valid": jnp.asarray(np.arange(B * A).reshape(B, A) % 3 > 0, float)}
    z_key, flow_key = jax.random.split(key)
    s, a = np.asarray(batch["observations"]), np.asarray(batch["actions"])
    raw, flow_a = both(state.params, s, jax.random.normal(z_key, (B, A)))
    own = np.clip(raw, -1, 1)
    assert (np.abs(raw) > 1).any()
    q = value(state.params, s, own, aggregate)
    size = np.abs(q).mean()
    slow = [value(state.target_params, s, x, aggregate) for x in (a, own, flow_a)]
    g = 1 / (1 + np.exp(-(slow[0] - COMBINED[reference](*slow[1:])) / size / 0.5))
    noise_key, time_key = jax.random.split(flow_key)
    e, t = np.asarray(jax.random.normal(noise_key, (B, A))), np.asarray(jax.random.uniform(time_key, (B, 1)))
    velocities = field(np, state.params["flow"], s, (1 - t) * e + t * a, t)
    flow = (g * (np.asarray(batch["actions_valid"]) * (velocities - (a - e)) ** 2).mean(axis=1)).mean()
    expected = flow + 1.7 * ((raw - flow_a) ** 2).mean() - q.mean() / size

    def loss(batch: Any) -> jax.Array:
        return gfp.actor_loss(NETS, state.params, state, batch, key)[0]

    np.testing.assert_allclose(way(loss)(batch), expected, rtol=1e-6)


def test_weights_and_the_flows_action_have_no_gradient(x64: None) -> None:
    # By the flow's bias: that of the weighted errors alone, which is linear in constant weights.
    state, batch, key = state_of({}), batch_of(), jax.random.key(7)

    def loss(bias: jax.Array, told: Any) -> jax.Array:
        params = {**state.params, "flow": {**state.params["flow"], "bias": bias}}
        return gfp.actor_loss(NETS, params, state.replace(config=told), batch, key)[0]

    bias, config = state.params["flow"]["bias"], state.config
    without = jax.grad(loss)(bias, config.__class__(**{**vars(config), "alpha": jnp.float32(0.0)}))
    np.testing.assert_allclose(jax.grad(loss)(bias, config), without, rtol=1e-9)

    # By the policy's: at η = 0 the flow's term is gone, and with any η the gradient is the same.
    def by_actor(eta: float) -> jax.Array:
        told = config.__class__(**{**vars(config), "eta": jnp.float32(eta)})

        def one(bias: jax.Array) -> jax.Array:
            params = {**state.params, "actor": {**state.params["actor"], "bias": bias}}
            return gfp.actor_loss(NETS, params, state.replace(config=told), batch, key)[0]

        return jax.grad(one)(state.params["actor"]["bias"])

    np.testing.assert_allclose(by_actor(0.5), by_actor(0.0), rtol=1e-9)


@pytest.mark.parametrize("told", [{}, {"target": "mean"}, {"target": "mean", "flow_at_next": True}, {"target": "min"}])
@each_way
def test_the_critics_loss_by_hand(x64: None, way: Way, told: dict[str, Any]) -> None:
    state, batch, key = state_of(told), batch_of(), jax.random.key(7)
    batch = {**batch, "valid": jnp.array([1.0, 1, 0, 1, 1, 1])}
    s, next_s, z = batch["observations"], batch["next_observations"], jax.random.normal(key, (B, A))
    raw, _ = both(state.params, next_s, z)
    _, flow_a = both(state.params, next_s if "flow_at_next" in told else s, z)
    values = [value(state.target_params, next_s, x, "mean") for x in (np.clip(raw, -1, 1), flow_a)]
    targets = batch["rewards"] + batch["discounts"] * COMBINED[told.get("target", "actor")](*values)
    fast = jax.tree.map(np.asarray, state.params["critic"])
    errors = (critics(np, fast, np.asarray(s), np.asarray(batch["actions"])) - targets) ** 2

    def loss(batch: Any) -> jax.Array:
        return gfp.critic_loss(NETS, state.params, state, batch, key)[0]

    np.testing.assert_allclose(way(loss)(batch), (np.asarray(batch["valid"]) * errors).mean(), rtol=1e-6)


@pytest.mark.slow
def test_the_policy_acts_and_the_flow_is_evaluated_beside_it() -> None:
    config = config_of("gfp", {"hidden_dims": (8,)})
    agent = agents.build("gfp", config, SPEC)
    state = agent.init(jax.random.key(0), config)
    assert [*agent.evaluations(config)] == ["eval", "vabc"]
    assert agent.explores(config) == config
    inputs, actions = {"observations": jnp.ones((50, D))}, {}
    for name, variant in agent.evaluations(state.config).items():
        policy = agent.policy(state.replace(config=variant))
        assert set(policy.params) == {"actor", "flow"}
        actions[name] = agent.act(policy, inputs, jax.random.key(1))
    z = jax.random.normal(jax.random.key(1), (50, A))
    nets = agent.act.args[0]  # type: ignore[attr-defined]
    np.testing.assert_allclose(actions["eval"], jnp.clip(nets.actor(state.params, inputs["observations"], z), -1, 1))
    assert float(jnp.abs(actions["vabc"] - actions["eval"]).mean()) > 0.1


@pytest.mark.slow
def test_guidance_makes_the_flow_prefer_what_pays() -> None:
    """Data ±0.6, which earn as much: cloned as they are by η = 0; a small η leaves the better half."""
    told = {"hidden_dims": (32, 32), "flow.steps": 4, "alpha": 1.0}
    share = {}
    for eta in (0.0, 0.01):
        agent, state = trained("gfp", {**told, "eta": eta}, two_modes, positive, 400)
        share[eta] = (actions_of(agent, state, "vabc") > 0).mean()
        assert (actions_of(agent, state) > 0).mean() > 0.9
    assert abs(share[0.0] - 0.5) < 0.15
    assert share[0.01] > 0.9


FAULTS = {
    "agents/gfp.py": [
        ("jax.nn.sigmoid(scaled)", "jax.nn.sigmoid(-scaled)", "test_weights_by_hand and plain"),
        ("size * jnp.maximum(config.eta, 1e-30)", "jnp.maximum(config.eta, 1e-30)", "test_weights_by_hand and plain"),
        ("found, 1.0)", "found, 0.5)", "test_weights_by_hand and plain"),
        (
            "return jax.lax.stop_gradient(jnp.where(",
            "return (jnp.where(",
            "test_weights_and_the_flows_action_have_no_gradient",
        ),
        (
            "partial(nets.flow, state.params, s), z)",
            "partial(nets.flow, params, s), z)",
            "test_weights_and_the_flows_action_have_no_gradient",
        ),
        (
            "jnp.mean((raw - flow_a) ** 2)",
            "jnp.mean((jnp.clip(raw, -1, 1) - flow_a) ** 2)",
            "test_the_losses_of_flow_and_policy_by_hand and plain",
        ),
        (
            "partial(value_of, nets, config, state.target_params, s)",
            "partial(value_of, nets, config, state.params, s)",
            "test_the_losses_of_flow_and_policy_by_hand and plain",
        ),
        ('flow_key, batch["actions_valid"])', "flow_key)", "test_the_losses_of_flow_and_policy_by_hand and plain"),
        ('"min": jnp.minimum', '"min": jnp.maximum', "test_the_losses_of_flow_and_policy_by_hand and plain"),
        ("next_s if config.flow_at_next else s", "next_s", "test_the_critics_loss_by_hand and plain"),
        (
            "config, state.target_params, next_s)",
            "config, state.params, next_s)",
            "test_the_critics_loss_by_hand and plain",
        ),
        ('{"acts": "flow"}', '{"acts": "actor"}', "test_the_policy_acts_and_the_flow_is_evaluated_beside_it"),
    ],
}
