"""SAC and TD3: their parts by hand, their updates against references in numpy, and a bandit with a known answer."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from offline_references import Case, finite_differences
from small_agents import A, assert_close, check_mapped, compiled, followed, gradients, with_config
from small_agents import transitions as batch_of
from stub_agents import agent_of, config_of, critics, field, network, squashed, state_of

from flowrl import agents
from flowrl.agents import sac
from flowrl.config import put
from flowrl.networks import Spec
from flowrl.train_state import Params, TrainState

NAMES = ("sac", "td3")
# Unoptimised, XLA gives NaN for a gradient of SAC's here.
update_of = functools.partial(compiled, optimised=True)

pytestmark = pytest.mark.usefixtures("x64")

# ----------------------------------------------------------------------------------------------------- updates


def sac_reference(case: Case, _: Any) -> Callable[[Params], dict[str, Any]]:
    critic_key, actor_key = jax.random.split(case.key)
    s, after = case.batch["observations"], case.batch["next_observations"]
    next_noise, noise = case.normal(critic_key), case.normal(actor_key)
    alpha = np.exp(case.params["temperature"]["log"])
    next_actions, next_log_probs = squashed(case.params["actor"], after, next_noise)
    soft = np.minimum(*critics(np, case.slow["critic"], after, next_actions)) - alpha * next_log_probs

    def metrics(params: Params) -> dict[str, Any]:
        actions, log_probs = squashed(params["actor"], s, noise)
        entropy = -squashed(case.params["actor"], s, noise)[1].mean()
        values = np.minimum(*critics(np, case.params["critic"], s, actions))
        learnt_alpha = np.exp(params["temperature"]["log"])
        return {
            "critic/loss": case.td_loss(params, soft),
            "actor/loss": (alpha * log_probs - values).mean(),
            "actor/temperature": learnt_alpha,
            "total": learnt_alpha * (entropy - case.hyper["target_entropy"] * A),
        }

    return metrics


def td3_reference(case: Case, moved_critic: Any) -> Callable[[Params], dict[str, Any]]:
    s, after = case.batch["observations"], case.batch["next_observations"]
    noise = np.clip(case.hyper["target_noise"] * case.normal(case.key), -0.5, 0.5)
    next_actions = np.clip(np.tanh(field(np, case.slow["actor"], after)) + noise, -1, 1)
    next_values = np.minimum(*critics(np, case.slow["critic"], after, next_actions))

    def metrics(params: Params) -> dict[str, Any]:
        values = critics(np, moved_critic, s, np.tanh(field(np, params["actor"], s)))
        # Twice as large, since it counts at every second update.
        return {"critic/loss": case.td_loss(params, next_values), "actor/loss": -2 * values[0].mean(), "total": 0.0}

    return metrics


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_equal_their_references(name: str, seed: int) -> None:
    state, batch, key = state_of(name, seed), batch_of(seed), jax.random.key(seed)
    after, metrics = update_of(agent_of(name))(state, batch, key)
    case = Case(config_of(name, {}), state, batch, key)
    moved_critic = jax.tree.map(np.asarray, after.params["critic"])
    reference = {"sac": sac_reference, "td3": td3_reference}[name](case, moved_critic)
    expected = reference(case.params)
    for metric in expected.keys() - {"total"}:
        np.testing.assert_allclose(metrics[metric], expected[metric], rtol=1e-6, err_msg=metric)
    weight = 0.5 if name == "td3" else 1.0

    def total(params: Params) -> float:
        found = reference(params)
        return found["critic/loss"] + weight * found["actor/loss"] + found["total"]

    assert_close(gradients(after), finite_differences(total, case.params))


@pytest.mark.slow
@pytest.mark.parametrize(("aggregate", "slow_value", "value"), [("min", 3, 1), ("mean", 4, 1.5)])
def test_sac_by_hand(aggregate: str, slow_value: float, value: float) -> None:
    """Critics 1 and 2, slow ones 3 and 5, α = ½, log densities known, r = 1, γ = ½, masks 1 and 0.

    With μ = 0, log σ = −5 and the update's own noise n the density is −½ Σ n² − log 2π + 10 − Σ log(1 − a²).
    """
    state, key = state_of("sac", 0, {"critic.aggregate": aggregate}), jax.random.key(2)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    actor = {**zeros["actor"], "bias": jnp.array([0.0, 0.0, -5.0, -5.0])}
    constant = {**zeros["critic"], "bias": jnp.array([1.0, 2.0])}
    state = with_config(state, {"target_entropy": -1.0}).replace(
        params={"actor": actor, "critic": constant, "temperature": {"log": jnp.log(0.5)}},
        target_params={"critic": {**zeros["critic"], "bias": jnp.array([3.0, 5.0])}},
    )

    def plain(params: Any, s: jax.Array) -> Any:
        return jnp.split(jnp.broadcast_to(params["bias"], (len(s), 4)), 2, axis=-1)

    batch = {name: array[:2] for name, array in batch_of().items()}
    batch |= {"rewards": jnp.ones(2), "discounts": jnp.array([0.5, 0.0])}
    nets = agent_of("sac").act.args[0]._replace(actor=network("actor", plain))  # type: ignore[attr-defined]
    _, metrics = sac.update(nets, state, batch, key)
    noise, own = (np.asarray(jax.random.normal(k, (2, 2))) for k in jax.random.split(key))

    def log_density(n: np.ndarray) -> np.ndarray:
        return (-0.5 * n**2 - 0.5 * np.log(2 * np.pi) + 5 - np.log(1 - np.tanh(np.exp(-5) * n) ** 2)).sum(axis=-1)

    target = 1 + 0.5 * (slow_value - 0.5 * log_density(noise)[0])
    np.testing.assert_allclose(metrics["critic/loss"], ((target - 1) ** 2 + (target - 2) ** 2 + 0 + 1) / 4)
    np.testing.assert_allclose(metrics["actor/loss"], 0.5 * log_density(own).mean() - value)
    np.testing.assert_allclose(metrics["actor/entropy"], -log_density(own).mean())


@pytest.mark.parametrize(("target", "sign"), [(-50.0, -1), (50.0, 1)])
def test_the_temperature_falls_while_there_is_too_much_entropy(target: float, sign: int) -> None:
    state = with_config(state_of("sac"), {"target_entropy": target})
    after, _ = update_of(agent_of("sac"))(state, batch_of(), jax.random.key(0))
    change = after.params["temperature"]["log"] - state.params["temperature"]["log"]
    np.testing.assert_allclose(change, sign * 0.01, rtol=1e-4)


def test_td3_moves_policy_and_targets_at_every_second_update() -> None:
    states = [state_of("td3")]
    for seed in range(3):
        states.append(update_of(agent_of("td3"))(states[-1], batch_of(seed), jax.random.key(seed))[0])
    for before, after, due in zip(states, states[1:], (True, False, True), strict=False):
        same = jax.tree.map(
            lambda x, y: bool((x == y).all()),
            (before.params, before.target_params),
            (after.params, after.target_params),
        )
        assert not any(jax.tree.leaves(same[0]["critic"]))
        for part in (same[0]["actor"], same[1]["actor"], same[1]["critic"]):
            assert all(jax.tree.leaves(part)) is not due
    expected = followed(states[0].target_params, states[1].params, {"actor": 0.2, "critic": 0.2})
    assert_close(states[1].target_params, expected)


@pytest.mark.slow
def test_ddpg_is_a_setting_of_td3() -> None:
    """Slow critic 3, one critic 1, r = 1, γ = ½, masks 1 and 0: targets 2.5 and 1, errors 2.25 and 0."""
    told = {"critic.heads": 1, "policy_delay": 1, "target_noise": 0.0}
    state = state_of("td3", 0, told)
    zeros = jax.tree.map(lambda x: jnp.zeros_like(x[:1]), state.params["critic"])
    moments = jax.tree.map(lambda x: x[:1] if x.ndim else x, state.opt_state["critic"])
    state = state.replace(
        params={**state.params, "critic": {**zeros, "bias": jnp.array([1.0])}},
        target_params={**state.target_params, "critic": {**zeros, "bias": jnp.array([3.0])}},
        opt_state={**state.opt_state, "critic": moments},
    )
    batch = {name: array[:2] for name, array in batch_of().items()}
    batch |= {"rewards": jnp.ones(2), "discounts": jnp.array([0.5, 0.0])}
    _, metrics = agent_of("td3", told).update(state, batch, jax.random.key(0))
    np.testing.assert_allclose(metrics["critic/loss"], 1.125)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_mapped_updates_equal_single_ones(name: str) -> None:
    states = [state_of(name, seed) for seed in (0, 1)]
    check_mapped(agent_of(name), states, batch_of(), optimised=True, rtol=1e-9)


# ------------------------------------------------------------------------------------------------------- probe


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_bandit_with_a_known_answer(name: str) -> None:
    """r = −4 (a − s/2)² at states −1 and 1, then the episode is over: the best action is s/2, and Q its reward."""
    with jax.enable_x64(False):
        config = put(agents.default(name), {"hidden_dims": (16, 16), "learning_rate": 3e-3})
        agent = agents.build(name, config, Spec.of_sizes(1, 1))

        def train(key: jax.Array) -> TrainState:
            def body(i: jax.Array, state: TrainState) -> TrainState:
                state_key, action_key, update_key = jax.random.split(jax.random.fold_in(key, i), 3)
                s = jax.random.rademacher(state_key, (64, 1), jnp.float32)
                a = jax.random.uniform(action_key, (64, 1), minval=-1.0)
                rows = {"observations": s, "actions": a, "rewards": -4 * (a - s / 2)[:, 0] ** 2}
                batch = agent.batch(config).complete({**rows, "masks": jnp.zeros(64), "next_observations": s})
                return agent.update(state, batch, update_key)[0]

            return jax.lax.fori_loop(0, 1000, body, agent.init(key, config))

        state = jax.jit(train)(jax.random.key(0))
        inputs = {"observations": jnp.array([[-1.0], [1.0]])}
        actions = agent.act(agent.policy(state), inputs, jax.random.key(1))
    np.testing.assert_allclose(actions[:, 0], [-0.5, 0.5], atol=0.12)


FAULTS = {
    "agents/sac.py": [
        (
            "(next_q - multiplier(state.params) * log_probs)",
            "next_q",
            "test_losses_and_gradients_equal_their_references and sac",
        ),
        (
            "jnp.mean(multiplier(state.params) * log_probs - q)",
            "jnp.mean(multiplier(params) * log_probs - q)",
            "test_losses_and_gradients_equal_their_references and sac",
        ),
        (
            "nets.critic(state.target_params, next_s, next_a)",
            "nets.critic(state.params, next_s, next_a)",
            "test_losses_and_gradients_equal_their_references and sac",
        ),
        ('batch["discounts"] * (', "(", "test_losses_and_gradients_equal_their_references and sac"),
        ("log_probs - q)", "log_probs + q)", "test_losses_and_gradients_equal_their_references and sac"),
        (
            "nets.critic(state.params, s, a)",
            "nets.critic(params, s, a)",
            "test_losses_and_gradients_equal_their_references and sac",
        ),
    ],
    "flowrl/policies.py": [
        (
            "actions + jnp.clip(noise, -bound, bound)",
            "actions + noise",
            "test_losses_and_gradients_equal_their_references and td3",
        ),
    ],
    "agents/td3.py": [
        ("not state.config.clones", "state.config.clones", "test_losses_and_gradients_equal_their_references and td3"),
        ("return -q.mean(), {", "return q.mean(), {", "test_losses_and_gradients_equal_their_references and td3"),
        ('batch["discounts"] * next_q', "next_q", "test_losses_and_gradients_equal_their_references and td3"),
        (
            "mean(nets, slow, next_s)",
            "mean(nets, state.params, next_s)",
            "test_losses_and_gradients_equal_their_references and td3",
        ),
        (
            "nets.critic(slow, next_s, next_a)",
            "nets.critic(state.params, next_s, next_a)",
            "test_losses_and_gradients_equal_their_references and td3",
        ),
        (
            "polyak(state, state.params, critic=rate, actor=rate), metrics",
            "polyak(state, state.params, critic=rate), metrics",
            "test_td3_moves_policy_and_targets_at_every_second_update",
        ),
    ],
    "flowrl/losses.py": [
        (
            "stop_gradient(-log_probs.mean() - target)",
            "stop_gradient(target + log_probs.mean())",
            "test_the_temperature_falls_while_there_is_too_much_entropy",
        ),
    ],
}
