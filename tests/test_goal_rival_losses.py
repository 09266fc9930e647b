"""GCIQL, CRL and QRL: losses by hand, and what quasimetrics obey."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goal_rivals import ACTOR, ACTOR_PARAMS, BATCH, NLL, each_quasimetric, loss_and_slopes, receivers
from small_agents import GOAL_SPEC, D, config_of, networks_of, state_with
from stub_agents import network
from ways import Way, array, each_way

from flowrl import agents
from flowrl import config as configs
from flowrl.agents import crl, gciql, qrl
from flowrl.losses import contrastive_errors, iqe, mrn, relative
from flowrl.train_state import Batch, Params

# ------------------------------------------------------------------------------------------------------ shared parts


@each_way
def test_contrasts_by_hand(way: Way) -> None:
    # −log σ(f) of own goals: log 2, log 4/3. −log(1 − σ(f)) of others': log 4, log 4/3. Slopes are σ(f) − 1{own}.
    logits = array([0, np.log(3)], [-np.log(3), np.log(3)])

    def both(logits: jax.Array) -> Any:
        return contrastive_errors(logits), jax.grad(lambda f: contrastive_errors(f).sum())(logits)

    errors, slopes = way(both)(logits)
    np.testing.assert_allclose(errors, np.log([[2, 4], [4 / 3, 4 / 3]]), rtol=1e-6)
    np.testing.assert_allclose(slopes, [[-1 / 2, 3 / 4], [1 / 4, -1 / 4]], rtol=1e-6)


@pytest.mark.slow
@each_way
def test_quasimetrics_by_hand(way: Way) -> None:
    # Groups of three: [1, 2], [0, 5], [4, 6] cover 6 together; of [3, 3], [5, 1] and [0, 2] only the last is one: 2.
    # A quarter of the mean 4, three quarters of the largest 6. The union ends with 6 and begins with 0, coordinates 2
    # and 1 of the first group, whose slope is 1/8 + 3/4.
    x, y = array(1, 0, 4, 3, 5, 0), array(2, 5, 6, 3, 1, 2)

    def all_three(x: jax.Array, y: jax.Array) -> Any:
        return jax.value_and_grad(lambda x, y: iqe(x, y, 0.25, size=3), argnums=(0, 1))(x, y)

    d, (by_x, by_y) = way(all_three)(x, y)
    np.testing.assert_allclose(d, 5.5)
    np.testing.assert_allclose(by_x, [0, -0.875, 0, 0, 0, -0.125])
    np.testing.assert_allclose(by_y, [0, 0, 0.875, 0, 0, 0.125])
    # Distance 5 of the first halves; of the others x exceeds y by 1 at most, y exceeds x by 3.
    x, y = array(3, 0, 1, 5), array(0, 4, 2, 4)
    np.testing.assert_allclose([way(mrn)(x, y), way(mrn)(y, x - array(0, 0, -2, 0))], [6, 5], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(mrn)(x, x)[:2], 0)


@each_way
def test_q_in_units_of_its_size(way: Way) -> None:
    # mean −1 and mean size 2, and 2 more: −1/4 with slopes 1/2 · 1/4.
    value, slopes = way(jax.value_and_grad(functools.partial(relative, constant=2.0)))(array(1, -3))
    np.testing.assert_allclose(value, -0.25)
    np.testing.assert_allclose(slopes, [0.125, 0.125])


# ------------------------------------------------------------------------------------------------------------- GCIQL

IQL_NETS = gciql.Networks(
    ACTOR,
    network("value", lambda params, s, g: params["w"] * (s - g)[:, 0]),
    network("critic", lambda params, s, g, a: params["w"][:, None] * (s - g)[:, 0] + params["b"] * a[:, 0]),
)
IQL_PARAMS = {
    "actor": ACTOR_PARAMS,
    "value": {"w": jnp.float32(1)},
    "critic": {"w": array(1, 2), "b": jnp.float32(1)},
}
IQL_SLOW = {"critic": {"w": array(0, 0.5), "b": jnp.float32(1)}}


@each_way
def test_gciqls_value_and_critics_by_hand(way: Way) -> None:
    # V = s − g = (−3, 0), slow critics (½, −½) and (−1, −½): u = (2, −½), with κ = 0.8 errors 3.2 and 0.05. The slope
    # of V's weight is −mean(2 · 0.8 · 2 · −3, 2 · 0.2 · −½ · 0).
    config = configs.put(agents.default("gciql"), {"value.expectile": 0.8})
    state = state_with(config, IQL_PARAMS, IQL_SLOW)

    def both(params: Params, batch: Batch) -> Any:
        losses = (gciql.implicit_value_loss, gciql.implicit_critic_loss)
        return [
            jax.value_and_grad(lambda p, f=f: f(IQL_NETS, p, state, batch, None, goals=gciql.GOALS)[0])(params)
            for f in losses
        ]

    (value, value_slopes), (critic, critic_slopes) = way(both)(IQL_PARAMS, BATCH)
    np.testing.assert_allclose(value, 1.625, rtol=1e-6)
    np.testing.assert_allclose(value_slopes["value"]["w"], 4.8, rtol=1e-6)
    # Targets −1 + ½ (2 − 3) and 0 after the goal. Q₁ = (−2.5, −.5), Q₂ = (−5.5, −.5): errors (−1, −.5), (−4, −.5).
    np.testing.assert_allclose(critic, (1 + 0.25 + 16 + 0.25) / 2, rtol=1e-6)
    np.testing.assert_allclose(critic_slopes["critic"]["w"], [3, 12], rtol=1e-6)
    assert (receivers(value_slopes), receivers(critic_slopes)) == ({"value"}, {"critic"})


@each_way
def test_gciqls_policy_by_hand(way: Way) -> None:
    # a_π = (0.8, 1): Q₂ = (−3.2, −7) is the smaller, of mean size 5.1. By the policy's slope: −½ · 2 / 5.1 of the row
    # that is not clipped, and α/2 · (0.3 · 2 + 2.1 · 4).
    told = {"alpha": 0.3, "actor_loss": "ddpgbc"}
    loss, slopes = way(loss_and_slopes(gciql, "actor_loss", IQL_NETS, told))(IQL_PARAMS, IQL_SLOW, BATCH)
    np.testing.assert_allclose(loss, 1 + 0.3 * NLL.mean(), rtol=1e-5)
    np.testing.assert_allclose(slopes["actor"]["slope"], -1 / 5.1 + 0.3 * 4.5, rtol=1e-5)
    assert receivers(slopes) == {"actor"}
    # A = min Q(s, a, g) − V(s, g) = (−3.5 + 2, −8.5 + 4)
    told = {"alpha": 0.3, "actor_loss": "awr"}
    loss, slopes = way(loss_and_slopes(gciql, "actor_loss", IQL_NETS, told))(IQL_PARAMS, IQL_SLOW, BATCH)
    np.testing.assert_allclose(loss, np.mean(np.exp([-0.45, -1.35]) * NLL), rtol=1e-5)
    assert receivers(slopes) == {"actor"}


def test_a_policy_with_learnt_deviations_is_improved_at_a_draw() -> None:
    params = {**IQL_PARAMS, "actor": {"slope": jnp.float32(0.1), "log_std": jnp.log(0.5)}}
    told = {"learnt_std": True, "alpha": 0.0}
    _, slopes = loss_and_slopes(gciql, "actor_loss", IQL_NETS, told)(params, IQL_SLOW, BATCH)
    noise = np.asarray(jax.random.normal(jax.random.key(3), (2, 1)))[:, 0]
    raw = np.array([0.2, 0.4]) + 0.5 * noise
    a, inside = np.clip(raw, -1, 1), np.abs(raw) < 1
    q = np.minimum(array(-2, -4) + a, array(-4, -8) + a)
    by_log_std = -np.mean(inside * 0.5 * noise) / np.abs(q).mean()
    np.testing.assert_allclose(slopes["actor"]["log_std"], by_log_std, rtol=1e-4)


# --------------------------------------------------------------------------------------------------------------- CRL


def linear(params: Any, *inputs: jax.Array) -> jax.Array:
    return jnp.concatenate(inputs, axis=-1) @ params["w"] + params["b"]


CRL_NETS = crl.Networks(ACTOR, *(network(name, linear) for name in ("phi", "psi", "value_phi", "value_psi")))
CRL_PARAMS = {
    "actor": ACTOR_PARAMS,
    "phi": {"w": array([[1, 0], [0, 1]], [[0.5, 0], [1, -1]]), "b": array([[0, 1]], [[1, 0]])},
    "psi": {"w": array([[1, -1]], [[0.5, 1]]), "b": array([[0, 2]], [[1, 0]])},
    "value_phi": {"w": array([1, 0.5]), "b": array(0, 1)},
    "value_psi": {"w": array([-1, 1]), "b": array(1, 0)},
}


def cross_entropy(logits: np.ndarray) -> np.ndarray:
    """Of own goals on the diagonal, one row and one goal after the other."""
    p = 1 / (1 + np.exp(-logits))
    return np.array([[-np.log(p[i, j] if i == j else 1 - p[i, j]) for j in range(len(p))] for i in range(len(p))])


@pytest.mark.slow
@each_way
def test_crls_contrasts_by_hand(way: Way) -> None:
    # φ₁ = (s, a + 1) = (0, 1.5), (1, .5) and ψ₁ = (g, 2 − g) = (3, −1), (1, 1): φ·ψ = −1.5, 1.5; 2.5, 1.5.
    # φ₂ = (s/2 + a + 1, −a) = (1.5, −.5), (1, .5) and ψ₂ = (g/2 + 1, g) = (2.5, 3), (1.5, 1): 2.25, 1.75; 4, 2.
    first = np.array([[-1.5, 1.5], [2.5, 1.5]]) / 2**0.5
    second = np.array([[2.25, 1.75], [4, 2]]) / 2**0.5
    loss, slopes = way(loss_and_slopes(crl, "critic_loss", CRL_NETS, {}))(CRL_PARAMS, {}, BATCH)
    np.testing.assert_allclose(loss, np.mean([cross_entropy(first), cross_entropy(second)]), rtol=1e-5)
    assert receivers(slopes) == {"phi", "psi"}
    # By the bias of φ₁: Σ over rows and goals of (σ(f) − 1{own}) ψ₁ / √2, of the mean over 8.
    excess = 1 / (1 + np.exp(-first)) - np.eye(2)
    expected = (excess @ np.array([[3, -1], [1, 1]])).sum(axis=0) / 2**0.5 / 8
    np.testing.assert_allclose(slopes["phi"]["b"][0, 0], expected, rtol=1e-5)
    # V: φ = (s, s/2 + 1) = (0, 1), (1, 1.5) and ψ = (1 − g, g) = (−2, 3), (0, 1): 3, 1; 2.5, 1.5.
    loss, slopes = way(loss_and_slopes(crl, "value_loss", CRL_NETS, {}))(CRL_PARAMS, {}, BATCH)
    np.testing.assert_allclose(loss, cross_entropy(np.array([[3, 1], [2.5, 1.5]]) / 2**0.5).mean(), rtol=1e-5)
    assert receivers(slopes) == {"value_phi", "value_psi"}


def test_crls_policy_by_hand() -> None:
    # At the goals 2, 5: ψ₁ = (2, 0), (5, −3), ψ₂ = (2, 2), (3.5, 5).
    def logits(a: Any) -> np.ndarray:
        first = np.array([0, 5]) + np.array([0, -3]) * (np.asarray(a) + 1)
        second = np.array([2, 3.5]) * (np.array([1, 1.5]) + a) - np.array([2, 5]) * a
        return np.minimum(first, second) / 2**0.5

    q = logits([0.8, 1])
    loss, slopes = loss_and_slopes(crl, "actor_loss", CRL_NETS, {"alpha": 0.3})(CRL_PARAMS, {}, BATCH)
    np.testing.assert_allclose(loss, -q.mean() / np.abs(q).mean() + 0.3 * NLL.mean(), rtol=1e-5)
    assert receivers(slopes) == {"actor"}
    # V: φ = (0, 1), (1, 1.5) and ψ = (−1, 2), (−4, 5): 2, 3.5.
    told = {"alpha": 0.3, "actor_loss": "awr"}
    loss, slopes = loss_and_slopes(crl, "actor_loss", CRL_NETS, told)(CRL_PARAMS, {}, BATCH)
    advantages = logits([0.5, -0.5]) - np.array([2, 3.5]) / 2**0.5
    np.testing.assert_allclose(loss, np.mean(np.exp(0.3 * advantages) * NLL), rtol=1e-5)
    assert receivers(slopes) == {"actor"}


# --------------------------------------------------------------------------------------------------------------- QRL

QRL_NETS = qrl.Networks(
    ACTOR,
    network("phi", lambda params, s: jnp.tile(params["w"] * s, (1, 8))),
    network("dynamics", lambda params, x, a: jnp.tile(params["w"] * a, (1, 8)) + 0 * x),
)
QRL_PARAMS = {
    "actor": ACTOR_PARAMS,
    "phi": {"w": jnp.float32(1)},
    "dynamics": {"w": jnp.float32(1)},
    "odds": {"log": jnp.float32(0.3)},
    "multiplier": {"log": jnp.log(jnp.float32(2))},
}
"""All intervals are [w x, w y], so that d = relu(w (y − x)) in one group, whatever the share of the mean."""


@pytest.mark.slow
@each_way
def test_qrls_distances_by_hand(way: Way) -> None:
    # d(s, g) = (3, 0), d(s, s') = (2, ½): C = ½ with λ = 2 and ε = 0.1. By w: −½ σ(5 − .03) · 3 and λ/2 · 2 · 1 · 2;
    # by log λ: λ (ε − C).
    apart = 100 * np.mean(np.log1p(np.exp([5 - 0.03, 5])))
    loss, slopes = way(loss_and_slopes(qrl, "value_loss", QRL_NETS, {"slack": 0.1}))(QRL_PARAMS, {}, BATCH)
    np.testing.assert_allclose(loss, apart + 2 * 0.5 + 2 * (0.1 - 0.5), rtol=1e-6)
    np.testing.assert_allclose(slopes["phi"]["w"], -1.5 / (1 + np.exp(-4.97)) + 4, rtol=1e-5)
    np.testing.assert_allclose(slopes["multiplier"]["log"], -0.8, rtol=1e-5)
    assert receivers(slopes) == {"phi", "multiplier"}


@each_way
def test_qrls_dynamics_by_hand(way: Way) -> None:
    # With a = (½, 2): φ̂' = (½, 3) where φ(s') = (2, 1½), in both directions 1½ off. By the weights of φ the mean of
    # ½ (2, −½), by those of the dynamics ½ (−½, 2).
    batch = {**BATCH, "actions": array([0.5], [2])}
    loss, slopes = way(loss_and_slopes(qrl, "dynamics_loss", QRL_NETS, {}))(QRL_PARAMS, {}, batch)
    np.testing.assert_allclose(loss, 0.75, rtol=1e-6)
    np.testing.assert_allclose(slopes["phi"]["w"], 0.375, rtol=1e-6)
    np.testing.assert_allclose(slopes["dynamics"]["w"], 0.375, rtol=1e-6)
    assert receivers(slopes) == {"phi", "dynamics"}


@each_way
def test_qrls_policy_by_hand(way: Way) -> None:
    # a_π = (0.8, 1) leads to (0.8, 2), that is −(1.2, 3) to the goals: of mean 2.1 in size.
    told = {"alpha": 0.3, "actor_loss": "ddpgbc"}
    loss, slopes = way(loss_and_slopes(qrl, "actor_loss", QRL_NETS, told))(QRL_PARAMS, {}, BATCH)
    np.testing.assert_allclose(loss, 1 + 0.3 * NLL.mean(), rtol=1e-5)
    np.testing.assert_allclose(slopes["actor"]["slope"], -1 / 2.1 + 0.3 * 4.5, rtol=1e-5)
    assert receivers(slopes) == {"actor"}
    # The steps to s' bring the goals nearer by 2 and by ½.
    told = {"alpha": 0.3, "actor_loss": "awr"}
    loss, slopes = way(loss_and_slopes(qrl, "actor_loss", QRL_NETS, told))(QRL_PARAMS, {}, BATCH)
    np.testing.assert_allclose(loss, np.mean(np.exp([0.6, 0.15]) * NLL), rtol=1e-5)
    assert receivers(slopes) == {"actor"}


@pytest.mark.slow
@each_quasimetric
def test_distances_obey_the_triangle_inequality_and_differ_by_direction(kind: str) -> None:
    told = {"hidden_dims": (16,), "latent_dim": 32, "quasimetric": kind}
    agent = agents.build("qrl", config_of("qrl", told), GOAL_SPEC)
    for seed in range(5):
        keys = jax.random.split(jax.random.key(seed), 3)
        state = agent.init(keys[0], config_of("qrl", told))
        leaves, tree = jax.tree.flatten(state.params)
        drawn = jax.random.split(keys[1], len(leaves))
        params = jax.tree.unflatten(
            tree, [jax.random.normal(*x) for x in zip(drawn, map(jnp.shape, leaves), strict=True)]
        )
        x, y, z = networks_of(agent).phi(params, jax.random.normal(keys[2], (3, 200, D)))
        d = functools.partial(qrl.d, state.config, params)
        assert (d(x, z) <= (d(x, y) + d(y, z)) * (1 + 1e-5)).all()
        assert (d(x, y) > 0).all()
        np.testing.assert_allclose(d(x, x), 0, atol=2e-6)
        assert float(jnp.mean(jnp.abs(d(x, y) - d(y, x)) > 0.05 * d(x, y))) > 0.5


FAULTS = {
    "flowrl/losses.py": [
        ("- jnp.eye(", "+ jnp.eye(", "test_contrasts_by_hand and jit"),
        ("jax.lax.cummax(", "(lambda z, axis: z)(", "test_quasimetrics_by_hand and jit"),
        ("(1 - mean_share) * covered.max", "mean_share * covered.max", "test_quasimetrics_by_hand and jit"),
        ("jnp.max(x_rest - y_rest", "jnp.max(y_rest - x_rest", "test_quasimetrics_by_hand and jit"),
        (
            "jnp.maximum(jnp.sum((x - y) ** 2, axis=-1), 1e-12)",
            "jnp.sum((x - y) ** 2, axis=-1)",
            "test_quasimetrics_by_hand and jit",
        ),
        ("jnp.abs(q).mean() + constant)", "jnp.abs(q).mean())", "test_q_in_units_of_its_size and jit"),
    ],
    "flowrl/critics.py": [
        (
            "v = nets.value(params, s, *g)",
            "v = nets.value(params, *g, s)",
            "test_gciqls_value_and_critics_by_hand and jit",
        ),
        (
            'batch["next_observations"], *g)',
            'batch["observations"], *g)',
            "test_gciqls_value_and_critics_by_hand and jit",
        ),
    ],
    "agents/gciql.py": [
        ('("value_goals",)', '("actor_goals",)', "test_gciqls_value_and_critics_by_hand and jit"),
        (
            "nets.critic(state.params, s, g, a))",
            "nets.critic(state.target_params, s, g, a))",
            "test_gciqls_policy_by_hand and jit",
        ),
        ("- nets.value(state.params, s, g)", "+ nets.value(state.params, s, g)", "test_gciqls_policy_by_hand and jit"),
        ("explore=config.learnt_std", "explore=False", "test_a_policy_with_learnt_deviations_is_improved_at_a_draw"),
    ],
    "agents/crl.py": [
        (
            "return jnp.sum(phi * psi, axis=-1) / phi.shape[-1] ** 0.5",
            "return jnp.sum(phi * psi, axis=-1)",
            "test_crls_policy_by_hand",
        ),
        ("psi) / phi.shape[-1] ** 0.5\n    loss", "psi)\n    loss", "test_crls_contrasts_by_hand and jit"),
        (".min(axis=0)", ".mean(axis=0)", "test_crls_policy_by_hand"),
        ("q(nets, state, s, g, a) - v", "v - q(nets, state, s, g, a)", "test_crls_policy_by_hand"),
        (
            'nets.value_psi(params, batch["value_goals"])',
            'nets.value_psi(params, batch["actor_goals"])',
            "test_crls_contrasts_by_hand and jit",
        ),
    ],
    "agents/qrl.py": [
        ("jax.nn.relu(near - 1)", "(near - 1)", "test_qrls_distances_by_hand and jit"),
        ("softplus(5 - far / 100)", "softplus(5 + far / 100)", "test_qrls_distances_by_hand and jit"),
        ("stop(weight) * excess", "weight * excess", "test_qrls_distances_by_hand and jit"),
        ("config.slack - stop(excess)", "config.slack - excess", "test_qrls_distances_by_hand and jit"),
        ("d(state.config, params, next_x, guess) + ", "", "test_qrls_dynamics_by_hand and jit"),
        ("return x + nets.dynamics(", "return nets.dynamics(", "test_qrls_dynamics_by_hand and jit"),
        (
            "advantages = d(config, now, x, goal) - ",
            "advantages = -d(config, now, x, goal) + ",
            "test_qrls_policy_by_hand and jit",
        ),
        ("q = -d(config, now, moved(", "q = d(config, now, moved(", "test_qrls_policy_by_hand and jit"),
        ("moved(nets, now, x, improved)", "moved(nets, params, x, improved)", "test_qrls_policy_by_hand and jit"),
        ("iqe(x, y,", "iqe(y, x,", "test_qrls_distances_by_hand and jit"),
    ],
}
