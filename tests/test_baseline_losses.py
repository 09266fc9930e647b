"""TD3+BC, ReBRAC, IQL, IFQL and IDQL: losses by hand."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from baselines import Plain, constant, nets, rows
from small_agents import A
from ways import Way, array, each_way

from flowrl import agents, critics
from flowrl.agents import iql, rebrac, td3
from flowrl.config import put
from flowrl.critics import ImplicitValue


@each_way
def test_errors_of_the_implicit_value_by_hand(way: Way) -> None:
    """κ = 0.8 at u = 2 and −1: 0.8 · 4 and 0.2 · 1, or 0.8 · 2 and 0.2 · 1; α = ½: (e − 1) · 2, (e^−½ − 1) · −1."""
    found = {
        objective: way(lambda u, k, t, o=objective: ImplicitValue(objective=o, expectile=k, temperature=t).errors(u))(
            array(2, -1, 9), jnp.float32(0.8), jnp.float32(0.5)
        )
        for objective in ("expectile", "quantile", "exponential")
    }
    np.testing.assert_allclose(found["expectile"], [3.2, 0.2, 64.8], rtol=1e-5)
    np.testing.assert_allclose(found["quantile"], [1.6, 0.2, 7.2], rtol=1e-5)
    # e^4.5 is cut to 6
    np.testing.assert_allclose(found["exponential"], [2 * (np.e - 1), 1 - np.exp(-0.5), 45], rtol=1e-5)


@pytest.mark.parametrize(("objective", "slopes"), [("quantile", [0.8, -0.2]), ("exponential", [np.e - 1, -0.393469])])
def test_slopes_of_idqls_objectives(objective: str, slopes: list[float]) -> None:
    def total(u: jax.Array) -> jax.Array:
        value = ImplicitValue(objective=objective, expectile=jnp.float32(0.8), temperature=jnp.float32(0.5))
        return value.errors(u).sum()

    np.testing.assert_allclose(jax.grad(total)(array(2, -1)), slopes, rtol=1e-5)


@each_way
def test_losses_of_implicit_q_learning_by_hand(way: Way) -> None:
    """Slow critics 3 and 5, V = 1, so that u = 2; κ = 0.8: 3.2 in each row, of which only the first counts, mean 1.6.

    Critics 1 and 2 against 1 + ½ · 1 = 1.5 and 1: squares 0.25, 0 and 0.25, 1, of which the first column counts.
    """

    def losses(critic: jax.Array, slow: jax.Array, v: jax.Array, valid: jax.Array) -> tuple[Any, Any]:
        state: Any = Plain("iql", {"value.expectile": 0.8}, {"value": v}, {"critic": slow})
        own, batch = nets(critic=constant, value=constant), rows(valid=valid)
        params, key = {"critic": critic, "value": v}, jax.random.key(0)
        return tuple(
            loss(own, params, state, batch, key)[0]
            for loss in (critics.implicit_value_loss, critics.implicit_critic_loss)
        )

    arguments = array(1, 2), array(3, 5), jnp.float32(1)
    np.testing.assert_allclose(way(losses)(*arguments, array(1, 0)), [1.6, 0.25], rtol=1e-5)
    np.testing.assert_allclose(way(losses)(*arguments, array(1, 1)), [3.2, 0.75], rtol=1e-5)


@each_way
def test_losses_of_iqls_policy_by_hand(way: Way) -> None:
    """μ = 0, σ = ½: −log π is 2 · ½² + log 2π − 2 log 2 in both rows; the weights e^{β (min Q − V)}, at most 100.

    Slow critics 3 and 5, critics 1 and 2, V = 1, β = ½: weights e and 1; with β = 5 the first is 100.
    """
    nll = 0.5 + np.log(2 * np.pi) - 2 * np.log(2)

    def loss(which: str, told: tuple[Any, ...], beta: jax.Array, valid: jax.Array) -> jax.Array:
        def policy(params: Any, s: jax.Array, key: jax.Array) -> Any:  # which is that of dropout
            return jnp.zeros((len(s), A)), jnp.full((len(s), A), params)

        state: Any = Plain("iql", dict(told), {"value": jnp.float32(1), "critic": array(1, 2)}, {"critic": array(3, 5)})
        state.config = put(state.config, {"alpha": beta})
        own, params = nets(critic=constant, value=constant, actor=policy), {"actor": jnp.log(0.5)}
        return getattr(iql, which)(own, params, state, rows(actions_valid=valid), jax.random.key(0))[0]

    all_valid, half = jnp.ones((2, 2)), array([0, 1], [1, 1])
    for told, beta, weight in (((), 0.5, np.e), ((), 5, 100), ((("advantage", "online"),), 5, 1)):
        found = way(functools.partial(loss, "awr_loss", told))(jnp.float32(beta), all_valid)
        np.testing.assert_allclose(found, weight * nll, rtol=1e-5)
    # Without the first action of the first row there is no (½ / ½)² / 2, and half of the constants.
    found = way(functools.partial(loss, "awr_loss", ()))(jnp.float32(0.5), half)
    np.testing.assert_allclose(found, np.e * (nll + (nll / 2 - 0.25)) / 2, rtol=1e-5)
    # Q of constant critics is 1, and so is its size.
    found = way(functools.partial(loss, "ddpgbc_loss", ()))(jnp.float32(0.3), all_valid)
    np.testing.assert_allclose(found, -1 + 0.3 * nll, rtol=1e-5)


@each_way
def test_losses_of_the_deterministic_policies_by_hand(way: Way) -> None:
    """π = tanh(θ) = (½, 0) where the data are (½, 0) and (0, −½); critics 2 and 3 times a₀.

    Squared distances 0 and ½: per dimension 0.125 on average, and 0.25 as their sum. Q₁ = 1 and min Q = 1 wherever
    π acts; divided by its size it is 1.
    """

    def losses(theta: jax.Array, weights: jax.Array) -> tuple[Any, ...]:
        own = nets(
            actor=lambda params, s: jnp.broadcast_to(params, (len(s), A)),
            critic=lambda params, s, a: params[:, None] * a[:, 0],
        )
        constants = {"critic": weights}
        cloning: Any = Plain("td3_bc", {"alpha": 1.7}, constants, {})
        other: Any = Plain("rebrac", {"alpha_actor": 0.6}, constants, {})
        arguments = rows(), jax.random.key(0)
        return (
            td3.actor_loss(own, {"actor": theta}, cloning, *arguments)[0],
            rebrac.actor_loss(own, {"actor": theta}, other, *arguments)[0],
        )

    found = way(losses)(jnp.arctanh(array(0.5, 0)), array(2, 3))
    np.testing.assert_allclose(found, [0.125 - 1.7, 0.6 * 0.25 - 1], rtol=1e-5)


@each_way
def test_rebracs_critics_by_hand(way: Way) -> None:
    """Slow critics 3 and 5; a' = (½, 0) without noise where the data go on with (0, 0): ‖·‖² = ¼, times β₂ = 2: ½.

    y = 1 + ½ (3 − ½) = 2.25 and 1; critics 1 and 2: squares 1.5625, 0.0625 and 0, 1.
    """

    def loss(joint: bool, critic: jax.Array, slow: jax.Array) -> jax.Array:
        told = {"alpha_critic": 2.0, "target_noise": 0.0, "joint": joint}
        targets = {"critic": slow, "actor": jnp.arctanh(array(0.5, 0))}
        own = nets(critic=constant, actor=lambda params, s: jnp.broadcast_to(params, (len(s), A)))
        batch = rows(next_actions=jnp.zeros((2, A)))
        state: Any = Plain("rebrac", told, {}, targets)
        return rebrac.critic_loss(own, {"critic": critic}, state, batch, jax.random.key(0))[0]

    for joint, expected in ((False, 2.625 / 2), (True, 2.625 / 4)):
        found = way(functools.partial(loss, joint))(array(1, 2), array(3, 5))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@each_way
def test_behaviour_losses_by_hand(way: Way) -> None:
    """Networks that give zeros: the flow's error is a − z, whose square is averaged; the noise's own is summed."""
    key = jax.random.key(3)
    a = rows()["actions"]
    noise = {
        "ifql": jax.random.normal(jax.random.split(key)[0], (2, A)),
        "idql": jax.random.normal(jax.random.split(jax.random.split(key)[0])[0], (2, A)),
    }

    def loss(name: str, theta: jax.Array, valid: jax.Array) -> jax.Array:
        plain = {"ifql": lambda params, s, x, t: params * x, "idql": lambda params, s, x, t, key: params * x}
        own = nets(actor=plain[name])
        state: Any = Plain(name, {}, {}, {})
        batch = rows(actions_valid=valid)
        return agents.load(name).actor_loss(own, {"actor": theta}, state, batch, key)[0]

    for valid in (jnp.ones((2, 2)), array([1, 0], [0, 1])):
        for name, expected in (
            ("ifql", (valid * (a - noise["ifql"]) ** 2).mean()),
            ("idql", (valid * noise["idql"] ** 2).sum() / 2),
        ):
            found = way(functools.partial(loss, name))(jnp.float32(0), valid)
            np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["td3_bc", "rebrac"])
def test_masked_actions_are_not_cloned(name: str) -> None:
    """With no action valid, none matters to the policy's loss."""
    losses = []
    for shift in (0.0, 0.3):
        state: Any = Plain(name, {}, {"critic": array(1, 2)}, {})
        own = nets(actor=lambda params, s: jnp.broadcast_to(params, (len(s), A)), critic=constant)
        batch = rows(actions_valid=jnp.zeros((2, 2)))
        batch["actions"] = batch["actions"] + shift
        actor_loss = agents.load(name).actor_loss
        losses.append(actor_loss(own, {"actor": array(0.2, 0.1)}, state, batch, jax.random.key(0))[0])
    assert losses[0] == losses[1]


FAULTS = {
    "flowrl/critics.py": [
        ("config.value.errors(q - v)", "config.value.errors(v - q)", "test_losses_of_implicit_q_learning_by_hand"),
        ('(batch["valid"] * config.value', "(config.value", "test_losses_of_implicit_q_learning_by_hand"),
        ('batch["discounts"] * nets.value(', "nets.value(", "test_losses_of_implicit_q_learning_by_hand"),
        ("loss = errors.mean(axis=-1).sum()", "loss = errors.mean()", "test_losses_of_implicit_q_learning_by_hand"),
    ],
    "flowrl/losses.py": [
        (
            "expectile_weight(errors, quantile) * jnp.abs(errors)",
            "expectile_weight(errors, quantile) * errors",
            "test_errors_of_the_implicit_value_by_hand",
        ),
        (
            "jax.lax.stop_gradient(jnp.exp(jnp.minimum(temperature * errors, jnp.log(6.0))) - 1)",
            "(jnp.exp(jnp.minimum(temperature * errors, jnp.log(6.0))) - 1)",
            "test_slopes_of_idqls_objectives",
        ),
        (
            "jnp.minimum(temperature * errors, jnp.log(6.0))",
            "temperature * errors",
            "test_errors_of_the_implicit_value_by_hand",
        ),
        ("squares + 2 * log_stds", "squares - 2 * log_stds", "test_losses_of_iqls_policy_by_hand"),
    ],
    "flowrl/policies.py": [
        ("loss = -(weights *", "loss = (weights *", "test_losses_of_iqls_policy_by_hand"),
        (
            "gaussian_log_prob(actions, *gaussian, valid)).mean()",
            "gaussian_log_prob(actions, *gaussian)).mean()",
            "test_losses_of_iqls_policy_by_hand",
        ),
        ("q_loss = -relative(", "q_loss = relative(", "test_losses_of_iqls_policy_by_hand"),
        ("cloning = -alpha", "cloning = alpha", "test_losses_of_iqls_policy_by_hand"),
    ],
    "agents/td3.py": [
        (
            "cloning - state.config.alpha * relative(q)",
            "cloning + state.config.alpha * relative(q)",
            "test_losses_of_the_deterministic_policies_by_hand",
        ),
        (
            'mse(a, batch["actions"], batch["actions_valid"])',
            'mse(a, batch["actions"])',
            "test_masked_actions_are_not_cloned and td3_bc",
        ),
    ],
    "agents/rebrac.py": [
        ("- config.alpha_critic * distances", "+ config.alpha_critic * distances", "test_rebracs_critics_by_hand"),
        ('batch["discounts"] * next_q', "next_q", "test_rebracs_critics_by_hand"),
        (
            "errors.mean() if config.joint else",
            "errors.mean() if not config.joint else",
            "test_rebracs_critics_by_hand",
        ),
        ("nets.spec.action_dim * mse(", "mse(", "test_losses_of_the_deterministic_policies_by_hand"),
        (
            'mse(a, batch["actions"], batch["actions_valid"])',
            'mse(a, batch["actions"])',
            "test_masked_actions_are_not_cloned and rebrac",
        ),
        ("q_loss = -relative(q)", "q_loss = relative(q)", "test_losses_of_the_deterministic_policies_by_hand"),
    ],
    "agents/iql.py": [
        ("- nets.value(state.params, s)", "+ nets.value(state.params, s)", "test_losses_of_iqls_policy_by_hand"),
        ('if config.advantage == "target"', 'if config.advantage == "online"', "test_losses_of_iqls_policy_by_hand"),
        (
            ', config.alpha, batch["actions_valid"])\n\n\ndef ddpgbc',
            ", config.alpha)\n\n\ndef ddpgbc",
            "test_losses_of_iqls_policy_by_hand",
        ),
    ],
    "agents/ifql.py": [
        ('batch["actions"], key, batch["actions_valid"]', 'batch["actions"], key', "test_behaviour_losses_by_hand"),
    ],
    "agents/idql.py": [
        ("nets.spec.action_dim * errors", "errors", "test_behaviour_losses_by_hand"),
        (', model_key, batch["actions_valid"]', ", model_key", "test_behaviour_losses_by_hand"),
        (", key=dropout_key", "", "test_behaviour_losses_by_hand"),
        (
            "model_key, dropout_key = jax.random.split(key)",
            "model_key = dropout_key = key",
            "test_behaviour_losses_by_hand",
        ),
    ],
}
