"""DriftQL: its drift and losses by hand, and a bandit with a known answer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bandits import actions_of, anywhere, near_half, trained
from small_agents import SPEC, A, B, D, config_of, state_with
from small_agents import transitions as batch_of
from stub_agents import ACTOR, CRITIC, critics, field
from ways import Way, each_way

from flowrl import agents
from flowrl.agents import driftql
from flowrl.networks import Spec

NETS = driftql.Networks(SPEC, SPEC, ACTOR, CRITIC)
each_kernel = pytest.mark.parametrize("kernel", ["laplace", "gaussian"])

pytestmark = pytest.mark.usefixtures("x64")


def state_of(told: dict[str, Any]) -> Any:
    rng = np.random.default_rng(3)
    config = config_of("driftql", {"samples": 3, "width": 0.4, "alpha": 1.7, **told})
    shapes = {"weight": (2, D + A), "curve": (2, A), "bias": (2,)}

    def params() -> Any:
        actor = {"kernel": rng.normal(0, 0.6, (D + A, A)), "bias": rng.normal(0, 0.3, A)}
        return {"actor": actor, "critic": {name: rng.normal(0, 0.7, shape) for name, shape in shapes.items()}}

    return state_with(config, jax.tree.map(jnp.asarray, params()), {"critic": params()["critic"]})


@each_way
def test_drift_by_hand(way: Way) -> None:
    # Samples 0, 1 and 3 of one state, τ = 1. From 0 the others are 1 and 3 away, so that they weigh e⁻¹ and e⁻³.
    config = config_of("driftql", {"width": 1.0})
    x, a = jnp.array([0.0, 1.0, 3.0])[:, None, None], jnp.array([[0.5]])
    v, repulsion = way(lambda x, a: driftql.drift(config, x, a))(x, a)
    near, far = np.exp([-1, -3]) / np.exp([-1, -3]).sum()
    pulls = [
        near * 1 + far * 3,
        np.exp(-1) / (np.exp(-1) + np.exp(-2)) * -1 + np.exp(-2) / (np.exp(-1) + np.exp(-2)) * 2,
    ]
    pulls += [np.exp(-2) / (np.exp(-2) + np.exp(-3)) * -2 + np.exp(-3) / (np.exp(-2) + np.exp(-3)) * -3]
    np.testing.assert_allclose(repulsion[:, 0, 0], pulls, rtol=1e-6)
    np.testing.assert_allclose(v[:, 0, 0], np.array([0.5, -0.5, -2.5]) - pulls, rtol=1e-6)


def drift(x: np.ndarray, a: np.ndarray, kernel: str, width: float) -> np.ndarray:
    """The same in loops: x `[N, A]` of one state, a `[A]`."""
    found = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        distances = np.array([np.linalg.norm(x[i] - x[j]) / np.sqrt(x.shape[1]) for j in others])
        logits = -distances / width if kernel == "laplace" else -(distances**2) / (2 * width**2)
        weights = np.exp(logits) / np.exp(logits).sum()
        found.append(a - x[i] - sum(w * (x[j] - x[i]) for w, j in zip(weights, others, strict=True)))
    return np.array(found)


@pytest.mark.slow
@each_kernel
@each_way
def test_the_policys_loss_by_hand(way: Way, kernel: str) -> None:
    told = {"kernel": kernel, "step_size": 0.8, "normalize_drift": kernel == "gaussian", "normalize_q": True}
    state, batch, key = state_of({**told, "actor_aggregate": "min"}), batch_of(), jax.random.key(7)
    batch = {**batch, "actions_valid": jnp.asarray(np.arange(B * A).reshape(B, A) % 3 > 0, float)}
    drift_key, q_key = jax.random.split(key)
    actor, s = state.params["actor"], np.asarray(batch["observations"])
    z = np.asarray(jax.random.normal(drift_key, (3, B, A)))
    x = np.clip(field(np, actor, np.broadcast_to(s, (3, B, D)), z), -1, 1)
    assert (np.abs(x) == 1).any()
    errors = []
    for b in range(B):
        v = drift(x[:, b], np.asarray(batch["actions"][b]), kernel, 0.4)
        v = v / np.sqrt((v**2).mean()) if kernel == "gaussian" else v
        targets = np.clip(x[:, b] + 0.8 * v, -1, 1)
        errors.append((np.asarray(batch["actions_valid"][b]) * (x[:, b] - targets) ** 2).mean())
    a = np.clip(field(np, actor, s, np.asarray(jax.random.normal(q_key, (B, A)))), -1, 1)
    q = critics(np, jax.tree.map(np.asarray, state.params["critic"]), s, a).min(axis=0)
    expected = 1.7 * np.mean(errors) - q.mean() / np.abs(q).mean()

    def loss(batch: Any) -> jax.Array:
        return driftql.actor_loss(NETS, state.params, state, batch, key)[0]

    np.testing.assert_allclose(way(loss)(batch), expected, rtol=1e-5)


@pytest.mark.slow
def test_drift_is_a_constant_target() -> None:
    # Without Q the gradient by the policy's bias is that of (x − target)², the target held still.
    state, batch, key = state_of({"alpha": 1.0}), batch_of(), jax.random.key(7)
    still = jax.tree.map(jnp.zeros_like, state.params["critic"])
    state = state.replace(params={**state.params, "critic": still})

    def loss(bias: jax.Array) -> jax.Array:
        params = {**state.params, "actor": {**state.params["actor"], "bias": bias}}
        return driftql.actor_loss(NETS, params, state, batch, key)[0]

    drift_key, _ = jax.random.split(key)
    z = jax.random.normal(drift_key, (3, B, A))
    s = jnp.broadcast_to(batch["observations"], (3, B, D))

    def samples(bias: jax.Array) -> jax.Array:
        return jnp.clip(field(jnp, {**state.params["actor"], "bias": bias}, s, z), -1, 1)

    bias = state.params["actor"]["bias"]
    x = samples(bias)
    v, _ = driftql.drift(state.config, x, batch["actions"])
    targets = jnp.clip(x + v, -1, 1)
    expected = jax.grad(lambda bias: jnp.mean((samples(bias) - targets) ** 2))(bias)
    np.testing.assert_allclose(jax.grad(loss)(bias), expected, rtol=1e-6)


@each_way
def test_the_critics_loss_by_hand(way: Way) -> None:
    state, batch, key = state_of({}), batch_of(), jax.random.key(7)
    batch = {**batch, "valid": jnp.array([1.0, 1, 0, 1, 1, 1])}
    s, next_s = np.asarray(batch["observations"]), np.asarray(batch["next_observations"])
    next_a = np.clip(field(np, state.params["actor"], next_s, np.asarray(jax.random.normal(key, (B, A)))), -1, 1)
    slow, fast = (jax.tree.map(np.asarray, tree["critic"]) for tree in (state.target_params, state.params))
    targets = batch["rewards"] + batch["discounts"] * critics(np, slow, next_s, next_a).min(axis=0)
    errors = np.asarray(batch["valid"]) * (critics(np, fast, s, np.asarray(batch["actions"])) - targets) ** 2

    def loss(batch: Any) -> jax.Array:
        return driftql.critic_loss(NETS, state.params, state, batch, key)[0]

    np.testing.assert_allclose(way(loss)(batch), errors.mean(), rtol=1e-6)


def test_noise_may_have_its_own_size() -> None:
    for told, size in ({"noise_dim": 0}, A), ({"noise_dim": 7}, 7):
        config = config_of("driftql", {"hidden_dims": (8,), **told})
        agent = agents.build("driftql", config, SPEC)
        state = jax.eval_shape(agent.init, jax.random.key(0), config)
        assert state.params["actor"]["params"]["SplitDense_0"]["kernel"].shape == (D + size, 8)
        inputs = {"observations": jnp.zeros((4, D))}
        actions = jax.eval_shape(agent.act, jax.eval_shape(agent.policy, state), inputs, jax.random.key(0))
        assert actions.shape == (4, A)
    assert driftql.networks(config_of("driftql", {"noise_dim": 7}), Spec.of_sizes(D, A)).latent.action_dim == 7


@pytest.mark.slow
def test_a_bandits_best_action() -> None:
    with jax.enable_x64(False):
        told = {"hidden_dims": (32, 32), "alpha": 0.02, "samples": 4}
        actions = actions_of(*trained("driftql", told, anywhere, near_half, 400))
    assert abs(actions.mean() - 0.5) < 0.1
    assert near_half(actions).mean() > 0.95


FAULTS = {
    "agents/driftql.py": [
        ("(a - x) - repulsion", "(a - x) + repulsion", "test_drift_by_hand and plain"),
        ("~jnp.eye(len(x), dtype=bool)", "jnp.ones((len(x), len(x)), dtype=bool)", "test_drift_by_hand and plain"),
        (
            "jnp.mean((x[:, None] - x[None]) ** 2",
            "jnp.sum((x[:, None] - x[None]) ** 2",
            "test_the_policys_loss_by_hand and plain and laplace",
        ),
        ("-(scaled**2) / 2", "-(scaled**2)", "test_the_policys_loss_by_hand and plain and gaussian"),
        ("axis=(0, 2), keepdims", "axis=(0, 1, 2), keepdims", "test_the_policys_loss_by_hand and plain and gaussian"),
        (
            "jnp.clip(x + config.step_size * v, -1.0, 1.0)",
            "x + config.step_size * v",
            "test_the_policys_loss_by_hand and plain and laplace",
        ),
        (
            '(x, targets, batch["actions_valid"])',
            "(x, targets, 1 + 0 * targets[0])",
            "test_the_policys_loss_by_hand and plain and laplace",
        ),
        ("values.min(axis=0)", "values.max(axis=0)", "test_the_policys_loss_by_hand and plain and laplace"),
        ("targets = jax.lax.stop_gradient(jnp.clip(x", "targets = (jnp.clip(x", "test_drift_is_a_constant_target"),
        ("if config.noise_dim else spec", "if not config.noise_dim else spec", "test_noise_may_have_its_own_size"),
    ],
}
