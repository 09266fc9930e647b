"""The single-task agents as they are used: their networks and defaults, a problem with known answers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_agents import SPEC, config_of, networks_of, transitions

from flowrl import agents
from flowrl.agent import Agent
from flowrl.config import put, values
from flowrl.data.samplers import Transitions
from flowrl.networks import Spec
from flowrl.train_state import Batch, TrainState

NAMES = ("sscp", "ofql", "fql", "bc")
each_agent = pytest.mark.parametrize("name", NAMES)
each_q_agent = pytest.mark.parametrize("name", ["sscp", "ofql", "fql"])
TARGETS = {"sscp": {"actor", "critic"}, "ofql": {"actor", "critic"}, "fql": {"critic"}, "bc": set()}


def count(params: object) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def mlp(inputs: int, width: int, layers: int, outputs: int, norm: bool = False) -> int:
    hidden = dense(inputs, width) + (layers - 1) * dense(width, width) + (2 * width * layers if norm else 0)
    return hidden + dense(width, outputs)


def fresh(name: str, spec: Spec, told: dict[str, Any] | None = None) -> tuple[Agent, TrainState]:
    """An agent and the shapes of its first state."""
    config = config_of(name, told or {})
    agent = agents.build(name, config, spec)
    return agent, jax.eval_shape(agent.init, jax.random.key(0), config)


def test_networks_have_the_sizes_of_the_papers() -> None:
    # A state of 17 and an action of 6 (halfcheetah).
    embedding = 64 + 2 * mlp(128, 128, 1, 128)  # one Fourier layer for both times, an MLP each
    sinusoidal = 2 * mlp(64, 128, 1, 64)
    expected = {
        "sscp": {
            "actor": embedding + mlp(17 + 6 + 128, 512, 4, 6),
            "critic": 2 * mlp(17 + 6, 512, 4, 1, norm=True),
        },
        "ofql": {"actor": sinusoidal + mlp(6 + 17 + 64 + 64, 256, 3, 6), "critic": 2 * mlp(17 + 6, 256, 3, 1)},
        "fql": {
            "flow": mlp(17 + 6 + 1, 512, 4, 6),
            "actor": mlp(17 + 6, 512, 4, 6),
            "critic": 2 * mlp(17 + 6, 512, 4, 1, norm=True),
        },
        "bc": {"actor": mlp(17, 512, 4, 6)},
    }
    spec = Spec.of_sizes(17, 6)
    for name, sizes in expected.items():
        state = fresh(name, spec)[1]
        assert {network: count(params) for network, params in state.params.items()} == sizes
        assert set(state.target_params) == TARGETS[name]
    with_norm = fresh("ofql", spec, {"critic.layer_norm": True})[1]
    assert count(with_norm.params["critic"]) == 2 * mlp(23, 256, 3, 1, norm=True)


def test_defaults_are_the_published_ones() -> None:
    base = {"learning_rate": 3e-4, "batch_size": 256, "hidden_dims": (512,) * 4}
    q = {**base, "discount": 0.99, "choice.num_samples": 1, "choice.temperature": 0.0, "q_alpha": 1.0}
    q |= {"critic.heads": 2, "critic.aggregate": "min", "critic.rho": 0.0, "critic.hidden_dims": ()}
    horizon = {"horizon.steps": 1, "horizon.chunk": False, "horizon.stops": False}
    q |= horizon | {"choice.target_samples": 1, "choice.aggregate": "min", "choice.critics": "target"}
    q |= {"critic.activation": "gelu", "critic.layer_norm": True, "critic.target_rate": 0.005}
    sscp = {"batch_size": 1024, "completion_target": "data", "q_sample": "completion", "completion_steps": 1}
    sscp |= {"lagging_targets": True, "time_dim": 128, "flow_alpha": 1.0, "completion_alpha": 1.0}
    fql = {"critic.aggregate": "mean", "lagging_targets": True, "behaviour.steps": 10, "normalize_q": False}
    ofql = {"hidden_dims": (256,) * 3, "critic.activation": "mish", "critic.layer_norm": False, "q_alpha": 0.1}
    ofql |= {"max_q_backup": False, "q_scale": "policy", "max_grad_norm": 0.0, "candidate_noise": 0.5}
    ofql |= {"actor_target.rate": 0.005, "actor_target.start": 1000, "actor_target.interval": 5}
    ofql |= {"actor_target.early": 0.0}
    ofql |= {"flow.steps": 1, "flow.divide_steps": True, "flow.time_sampler": "logit_normal", "flow.flow_ratio": 0.5}
    ofql |= {"flow.adaptive_power": 0.0, "flow.adaptive_constant": 1e-3}
    published = {
        "sscp": {**q, **sscp, "actor_target_rate": 0.0005},
        "ofql": {**q, **ofql},
        "fql": {**q, **fql, "alpha": 10.0},
        "bc": {**base, **horizon, "distribution": "gaussian", "flow.steps": 10},
    }
    for name, expected in published.items():
        assert values(agents.default(name)) == expected


@each_agent
def test_an_update_reads_what_its_batches_hold(name: str) -> None:
    agent, state = fresh(name, SPEC, {"hidden_dims": (8,)})
    assert agent.batch(config_of(name, {})) == Transitions(1.0 if name == "bc" else 0.99)
    update = functools.partial(jax.eval_shape, agent.update, state, key=jax.random.key(0))
    reads = {"observations", "actions", "actions_valid"}
    if name != "bc":
        reads |= {"rewards", "discounts", "next_observations", "valid"}
    batch = {field: x for field, x in transitions().items() if field in reads}
    update(batch=batch)
    for field in reads:
        with pytest.raises(KeyError, match=field):
            update(batch={other: x for other, x in batch.items() if other != field})


@pytest.mark.parametrize("name", [*NAMES, "sac", "td3", "cal_ql"])
@pytest.mark.parametrize("shape", [(), (4,), (2, 5)], ids=str)
def test_actions_have_the_shape_of_the_observations(name: str, shape: tuple[int, ...]) -> None:
    several = {"choice.num_samples": 3} if name in ("sscp", "ofql", "fql") else {}
    agent, state = fresh(name, SPEC, {"hidden_dims": (8,), **several})
    policy = jax.eval_shape(agent.policy, state)
    inputs = {"observations": jnp.zeros((*shape, 3))}
    for config in agent.evaluations(policy.config).values():
        for explore in (False, True):
            act = functools.partial(agent.act, explore=explore)
            actions = jax.eval_shape(act, policy.replace(config=config), inputs, jax.random.key(2))
            assert actions.shape == (*shape, 2)


# --- a problem with known answers ---

BEST, GAMMA = 0.5, 0.8
TOLD: dict[str, dict[str, Any]] = {
    "sscp": {"flow_alpha": 0.1, "completion_alpha": 0.02, "actor_target_rate": 0.02},
    "ofql": {"q_alpha": 5.0, "actor_target.start": 0, "actor_target.interval": 1, "actor_target.rate": 0.02},
    "fql": {"alpha": 0.02, "behaviour.steps": 4},
}


def chain(key: jax.Array, rows: int) -> Batch:
    """Steps along three states: 0 → 1 → 2 → end, without reward but for 1 − (a − 0.5)² at the end.

    Actions are uniform, so that the data says nothing about the best one.
    """
    state_key, action_key = jax.random.split(key)
    states = jax.random.randint(state_key, (rows,), 0, 3)
    actions = jax.random.uniform(action_key, (rows, 1), minval=-1.0, maxval=1.0)
    last = states == 2
    fields = {
        "observations": jnp.eye(3)[states],
        "actions": actions,
        "rewards": jnp.where(last, 1 - (actions[:, 0] - BEST) ** 2, 0.0),
        "masks": 1.0 - last,
        "next_observations": jnp.eye(3)[jnp.minimum(states + 1, 2)],
    }
    return Transitions(GAMMA).complete(fields)


@functools.cache
def trained_on_chain(name: str) -> tuple[Agent, TrainState]:
    told = {"hidden_dims": (32, 32), "learning_rate": 3e-3, "discount": GAMMA, "critic.target_rate": 0.05}
    config = config_of(name, told | TOLD[name])
    agent = agents.build(name, config, Spec.of_sizes(3, 1))

    @jax.jit
    def train(key: jax.Array) -> TrainState:
        def step(i: jax.Array, state: TrainState) -> TrainState:
            batch_key, update_key = jax.random.split(jax.random.fold_in(key, i))
            state = state.replace(config=put(state.config, {"learning_rate": jnp.where(i < 700, 3e-3, 5e-4)}))
            return agent.update(state, chain(batch_key, 64), update_key)[0]

        return jax.lax.fori_loop(0, 900, step, agent.init(key, config))

    return agent, train(jax.random.key(1))


def policy_at(name: str, state: int) -> np.ndarray:
    """500 actions of a trained policy."""
    agent, trained = trained_on_chain(name)
    inputs = {"observations": jnp.tile(jnp.eye(3)[state], (500, 1))}
    return np.asarray(agent.act(agent.policy(trained), inputs, jax.random.key(3)))[:, 0]


@pytest.mark.slow
@each_q_agent
def test_critics_on_a_chain_learn_its_values(name: str) -> None:
    # Q(2, a) = 1 − (a − 0.5)² for any policy; before the end γ and γ² of what the policy then gets.
    agent, state = trained_on_chain(name)
    actions = jnp.linspace(-1, 1, 21)[:, None]
    critic = functools.partial(networks_of(agent).critic, state.params)
    q = [np.asarray(critic(jnp.tile(jnp.eye(3)[i], (21, 1)), actions)) for i in range(3)]
    np.testing.assert_allclose(q[2], np.tile(1 - (actions[:, 0] - BEST) ** 2, (2, 1)), atol=0.25)
    assert np.abs(q[2] - (1 - (actions[:, 0] - BEST) ** 2)).mean() < 0.07
    reached = (1 - (policy_at(name, 2) - BEST) ** 2).mean()
    for i, expected in ((1, GAMMA * reached), (0, GAMMA**2 * reached)):
        assert np.abs(q[i].mean() - expected) < 0.05
        np.testing.assert_allclose(q[i], expected, atol=0.12)


@pytest.mark.slow
@each_q_agent
def test_policies_on_a_chain_take_the_best_action(name: str) -> None:
    # The data's mean is 0 and its spread 0.58, for which the reward is 0.42 on average.
    actions = policy_at(name, 2)
    assert abs(actions.mean() - BEST) < 0.12
    assert (1 - (actions - BEST) ** 2).mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["gaussian", "flow"])
def test_behaviour_cloning_finds_the_mean_or_both_modes(distribution: str) -> None:
    """Actions ±0.6 in state 0 and 0.2 in state 1: a Gaussian's mode is the mean, a flow keeps the modes."""
    config = config_of("bc", {"hidden_dims": (32, 32), "learning_rate": 5e-3, "distribution": distribution})
    agent = agents.build("bc", config, Spec.of_sizes(2, 1))

    @jax.jit
    def train(key: jax.Array) -> TrainState:
        def step(i: jax.Array, state: TrainState) -> TrainState:
            state_key, sign_key, update_key = jax.random.split(jax.random.fold_in(key, i), 3)
            states = jax.random.bernoulli(state_key, shape=(128,)).astype(jnp.int32)
            signs = jax.random.rademacher(sign_key, (128,), jnp.float32)
            actions = jnp.where(states == 1, 0.2, 0.6 * signs)[:, None]
            batch = {"observations": jnp.eye(2)[states], "actions": actions, "actions_valid": jnp.ones_like(actions)}
            return agent.update(state, batch, update_key)[0]

        return jax.lax.fori_loop(0, 600, step, agent.init(key, config))

    policy = agent.policy(train(jax.random.key(0)))
    inputs = {"observations": jnp.repeat(jnp.eye(2), 500, axis=0)}
    two_modes, one = np.split(np.asarray(agent.act(policy, inputs, jax.random.key(1)))[:, 0], 2)
    np.testing.assert_allclose(one.mean(), 0.2, atol=0.08)
    assert abs(two_modes.mean()) < 0.12
    if distribution == "gaussian":
        assert two_modes.std() < 1e-6
    else:
        assert abs(np.abs(two_modes).mean() - 0.6) < 0.15
        assert abs((two_modes > 0).mean() - 0.5) < 0.15


FAULTS = {
    "agents/sscp.py": [
        ('1.0, "Weight of the completion', '0.1, "Weight of the completion', "test_defaults_are_the_published_ones"),
    ],
}
