"""TD3+BC, ReBRAC, IQL, IFQL and IDQL on problems with known answers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from baselines import NAMES, gaussian
from small_agents import config_of, state_with
from stub_agents import network

from flowrl import agents
from flowrl.agents import iql
from flowrl.config import put
from flowrl.data.samplers import Transitions
from flowrl.networks import Spec
from flowrl.train_state import TrainState

# ------------------------------------------------------------------------------------- problems with known answers


def expectile_of(values: np.ndarray, kappa: float) -> float:
    """The number m at which κ Σ (x − m)₊ = (1 − κ) Σ (m − x)₊, by bisection."""
    low, high = values.min(), values.max()
    for _ in range(60):
        m = (low + high) / 2
        rises = kappa * np.maximum(values - m, 0).sum() > (1 - kappa) * np.maximum(m - values, 0).sum()
        low, high = (m, high) if rises else (low, m)
    return float(low)


@pytest.mark.slow
@pytest.mark.parametrize("kappa", [0.5, 0.8, 0.99])
def test_a_table_has_the_expectiles_of_its_values(kappa: float) -> None:
    """State 0 leads to state 1 and that to the end, γ = ½; in each the data have four actions, three of them alike.

    Q(1, a) = r and V(1) is the κ-expectile of the data's; Q(0, a) = r + ½ V(1), V(0) likewise. At κ = ½ V is the mean,
    near 1 the greatest value.
    """
    rewards = np.array([[1.0, 1, 2, 0], [0, 3, 3, -1]])
    columns = np.array([[0, 0, 1, 2], [0, 1, 1, 2]])
    later = expectile_of(rewards[1], kappa)
    expected = [expectile_of(rewards[0] + 0.5 * later, kappa), later]
    states = np.repeat([0, 1], 4)
    batch = Transitions(0.5).complete({
        "observations": jnp.eye(2)[states], "actions": jnp.eye(3)[columns.ravel()], "rewards": rewards.ravel(),
        "masks": 1.0 - states, "next_observations": jnp.eye(2)[np.ones(8, int)],
    })  # fmt: skip
    table = iql.Networks(
        network("actor", gaussian),
        network("value", lambda params, s: s @ params),
        network("critic", lambda params, s, a: jnp.einsum("hij,bi,bj->hb", params, s, a)),
    )
    make = dataclasses.replace(iql.make, networks=lambda config, spec: table)
    told = {"value.expectile": kappa, "discount": 0.5, "critic.target_rate": 0.05, "alpha": 0.0}
    config = config_of("iql", told)
    agent = make(config, Spec.of_sizes(2, 3))
    actor = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3), "log_stds": jnp.zeros(3)}
    params = {"actor": actor, "value": jnp.zeros(2), "critic": jnp.zeros((2, 2, 3))}
    state = state_with(config, params, {"critic": params["critic"]})

    def step(i: jax.Array, state: TrainState) -> TrainState:
        rate = 0.03 * 0.5 ** (i / 500)
        state = state.replace(config=put(state.config, {"learning_rate": rate}))
        return agent.update(state, batch, jax.random.key(0))[0]

    trained = jax.jit(lambda state: jax.lax.fori_loop(0, 4000, step, state))(state)
    np.testing.assert_allclose(trained.params["value"], expected, atol=0.02)
    if kappa == 0.99:
        np.testing.assert_allclose(trained.params["value"], [3.5, 3], atol=0.15)


PROBE: dict[str, dict[str, Any]] = {
    "td3_bc": {"alpha": 40.0},
    "rebrac": {"alpha_actor": 0.02, "alpha_critic": 0.0, "actor_learning_rate": 3e-3},
    "iql": {"alpha": 10.0, "value.expectile": 0.9, "decay.steps": 0},
    "ifql": {"flow.steps": 4},
    "idql": {"hidden_dims": (32,), "time_dim": 16, "decay.steps": 0, "actor_target_rate": 0.02, "dropout": 0.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_bandit_with_a_known_answer(name: str) -> None:
    """r = −4 (a − s/2)² at states −1 and 1, then the episode is over; the data's actions are uniform."""
    told = {"hidden_dims": (32, 32), "critic.hidden_dims": (32, 32), "learning_rate": 3e-3, "batch_size": 64}
    config = config_of(name, told | {"critic.target_rate": 0.05} | PROBE[name])
    agent = agents.build(name, config, Spec.of_sizes(1, 1))

    @jax.jit
    def train(key: jax.Array) -> jax.Array:
        def body(i: jax.Array, state: TrainState) -> TrainState:
            state_key, action_key, update_key = jax.random.split(jax.random.fold_in(key, i), 3)
            s = jax.random.rademacher(state_key, (64, 1), jnp.float32)
            a = jax.random.uniform(action_key, (64, 1), minval=-1.0)
            fields = {"observations": s, "actions": a, "rewards": -4 * (a - s / 2)[:, 0] ** 2, "next_actions": a}
            batch = agent.batch(config).complete({**fields, "masks": jnp.zeros(64), "next_observations": s})
            return agent.update(state, batch, update_key)[0]

        state = jax.lax.fori_loop(0, 600, body, agent.init(key, config))
        inputs = {"observations": jnp.tile(jnp.array([[-1.0], [1.0]]), (50, 1))}
        return agent.act(agent.policy(state), inputs, jax.random.key(1)).reshape(50, 2)

    actions = train(jax.random.key(0))
    np.testing.assert_allclose(actions.mean(axis=0), [-0.5, 0.5], atol=0.12)
    np.testing.assert_allclose(actions, np.broadcast_to([-0.5, 0.5], (50, 2)), atol=0.4)


FAULTS = {
    "flowrl/choice.py": [
        (
            "partial(nets.critic, params, s), key)",
            "lambda a: -nets.critic(params, s, a), key)",
            "test_a_bandit_with_a_known_answer and ifql",
        ),
    ],
}
