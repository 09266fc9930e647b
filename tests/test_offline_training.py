"""The single-task agents as they are used: their networks and defaults, mapped runs, a problem with known answers."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowrl import agent as agents
from flowrl.agent import Agent, Spec
from flowrl.networks import TimedMLP, scaled_sinusoidal_features, sinusoidal_features
from flowrl.train_state import Batch, TrainState

NAMES = ("sscp", "ofql", "fql", "bc")
each_agent = pytest.mark.parametrize("name", NAMES)
each_q_agent = pytest.mark.parametrize("name", ["sscp", "ofql", "fql"])
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiles without optimising, which takes longer than it saves here."""
TARGETS = {"sscp": {"actor", "critic"}, "ofql": {"actor", "critic"}, "fql": {"critic"}, "bc": set()}


def count(params: object) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def mlp(inputs: int, width: int, layers: int, outputs: int, norm: bool = False) -> int:
    hidden = dense(inputs, width) + (layers - 1) * dense(width, width) + (2 * width * layers if norm else 0)
    return hidden + dense(width, outputs)


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
    for name, sizes in expected.items():
        module = agents.load(name)
        state = jax.eval_shape(module.make(module.Config(), Spec(17, 6, 0)).init, jax.random.key(0))
        assert {network: count(params) for network, params in state.params.items()} == sizes
        assert set(state.target_params) == TARGETS[name]
    with_norm = agents.load("ofql").Config(critic_layer_norm=True)
    state = jax.eval_shape(agents.load("ofql").make(with_norm, Spec(17, 6, 0)).init, jax.random.key(0))
    assert count(state.params["critic"]) == 2 * mlp(23, 256, 3, 1, norm=True)


def test_defaults_are_the_published_ones() -> None:
    base = {"learning_rate": 3e-4, "batch_size": 256, "hidden_dims": (512,) * 4}
    q = {
        **base,
        "discount": 0.99,
        "critic_target_rate": 0.005,
        "q_agg": "min",
        "candidates": 1,
        "candidate_temperature": 0.0,
    }
    sscp = {"batch_size": 1024, "completion_target": "data", "q_sample": "completion", "completion_steps": 1}
    sscp |= {"lagging_targets": True, "time_dim": 128, "completion_alpha": 1.0}
    fql = {"lagging_targets": True, "flow_steps": 10}
    ofql = {"hidden_dims": (256,) * 3, "time_sampler": "logit_normal", "max_q_backup": False, "q_scale": "policy"}
    ofql |= {"critic_layer_norm": False, "adaptive_power": 0.0, "adaptive_constant": 1e-3, "max_grad_norm": 0.0}
    ofql |= {"actor_target_start": 1000, "actor_target_interval": 5, "candidate_noise": 0.5}
    published = {
        "sscp": {**q, **sscp, "flow_alpha": 1.0, "q_alpha": 1.0, "actor_target_rate": 0.0005},
        "ofql": {**q, **ofql, "q_alpha": 0.1, "flow_ratio": 0.5, "actor_target_rate": 0.005},
        "fql": {**q, **fql, "q_agg": "mean", "normalize_q": False, "alpha": 10.0, "q_alpha": 1.0},
        "bc": {**base, "distribution": "gaussian", "flow_steps": 10},
    }
    for name, expected in published.items():
        assert vars(agents.load(name).Config()) == expected


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def test_sinusoidal_features_by_hand() -> None:
    # Frequencies 1, 10⁻² and 10⁻⁴.
    angles = np.array([[2.0, 0.02, 0.0002], [0, 0, 0]])
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    np.testing.assert_allclose(sinusoidal_features(jnp.array([[2.0], [0.0]]), 6), expected, atol=1e-6)


def test_scaled_sinusoidal_features_by_hand() -> None:
    # Frequencies 1 and 10⁻², over √4.
    expected = np.array([[np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)], [0, 0, 1, 1]]) / 2
    np.testing.assert_allclose(scaled_sinusoidal_features(jnp.array([[2.0], [0.0]]), 4), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["sscp", "ofql"])
def test_actors_read_all_inputs_and_tell_the_two_times_apart(name: str) -> None:
    actor = agents.load(name).Actor((16,), 2) if name == "sscp" else TimedMLP((16,), 2, ("begin", "time"))
    s, x, one, other = normal(1, 5, 3), normal(2, 5, 2), jnp.full((5, 1), 0.3), jnp.full((5, 1), 0.6)
    params = actor.init(jax.random.key(0), s, x, one, other)
    apply = jax.jit(actor.apply)
    base = apply(params, s, x, one, other)
    changed = [(s + 1, x, one, other), (s, x + 1, one, other), (s, x, other, other), (s, x, one, one)]
    for inputs in [*changed, (s, x, other, one)]:
        assert (np.abs(apply(params, *inputs) - base) > 1e-6).all()
    # A row's output does not depend on the other rows.
    np.testing.assert_allclose(apply(params, s[::-1], x[::-1], one, other)[::-1], base, atol=1e-5)


# --- mapped runs ---


def random_batch(seed: int, rows: int = 4) -> Batch:
    rng = np.random.default_rng(seed)
    fields = {"observations": rng.normal(size=(rows, 3)), "next_observations": rng.normal(size=(rows, 3))}
    fields |= {"actions": rng.uniform(-1, 1, (rows, 2)), "rewards": rng.normal(size=rows)}
    fields["masks"] = np.arange(rows) % 2
    return {name: jnp.asarray(field, jnp.float32) for name, field in fields.items()}


@functools.cache
def small(name: str, **fields: Any) -> Agent:
    return agents.load(name).make(agents.load(name).Config(hidden_dims=(8,), **fields), Spec(3, 2, 0))


def pairs(one: Any, other: Any) -> Iterable[tuple[Any, Any]]:
    return zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)


@each_agent
def test_runs_map_over_keys_and_hyperparameters(name: str) -> None:
    agent, rates = small(name), jnp.float32([1e-3, 1e-2])
    swept = {"learning_rate": rates} | ({} if name == "bc" else {"q_alpha": jnp.float32([0.5, 2.0])})

    @quickly
    def one_update(keys: jax.Array, swept: dict[str, jax.Array]) -> Any:
        starts = jax.vmap(agent.init)(keys, swept)
        return starts, *jax.vmap(agent.update, in_axes=(0, None, 0))(starts, random_batch(0), keys)

    keys = jax.random.split(jax.random.key(0))
    starts, states, metrics = one_update(keys, swept)
    # In the other order each run is the same: none depends on its neighbour.
    swapped = one_update(keys[::-1], {field: values[::-1] for field, values in swept.items()})
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x[::-1], y, rtol=1e-4, atol=1e-6),
        (starts.params, states.params, states.target_params, metrics),
        (swapped[0].params, swapped[1].params, swapped[1].target_params, swapped[2]),
    )
    assert all(value.shape == (2,) and jnp.isfinite(value).all() for value in metrics.values())
    targets = {network: starts.params[network] for network in TARGETS[name]}
    jax.tree.map(np.testing.assert_array_equal, starts.target_params, targets)
    np.testing.assert_array_equal(states.hyper["learning_rate"], rates)
    # A first step of Adam moves most parameters by the learning rate.
    for i in range(2):
        moves = np.abs(np.concatenate([np.ravel(x[i] - y[i]) for x, y in pairs(states.params, starts.params)]))
        np.testing.assert_allclose(np.median(moves[moves > 0]), rates[i], rtol=0.02)
    kernels = [leaf for leaf in jax.tree.leaves(starts.params) if np.abs(leaf).max() > 0]
    assert all(np.abs(kernel[0] - kernel[1]).max() > 1e-3 for kernel in kernels if kernel[0].std() > 0)


@each_agent
def test_updates_read_what_the_agent_needs_and_nothing_else(name: str) -> None:
    agent = small(name)
    batch, state = random_batch(0), jax.eval_shape(agent.init, jax.random.key(0))
    assert set(agent.needs.fields) == ({"observations", "actions"} if name == "bc" else set(batch))
    assert not agent.needs.goals
    jax.eval_shape(agent.update, state, {field: batch[field] for field in agent.needs.fields}, jax.random.key(0))
    for field in agent.needs.fields:
        rest = {f: batch[f] for f in agent.needs.fields if f != field}
        with pytest.raises(KeyError, match=field):
            jax.eval_shape(agent.update, state, rest, jax.random.key(0))


@each_agent
@pytest.mark.parametrize("shape", [(), (4,), (2, 5)], ids=str)
def test_actions_have_the_shape_of_the_observations(name: str, shape: tuple[int, ...]) -> None:
    agent = small(name) if name == "bc" else small(name, candidates=3)
    policy = jax.eval_shape(lambda key: agent.policy(agent.init(key)), jax.random.key(0))
    s = jnp.zeros((*shape, 3))
    for mode in (*agent.evaluations, "explore"):
        actions = jax.eval_shape(functools.partial(agent.act, mode=mode), policy, s, s, jax.random.key(2))
        assert actions.shape == (*shape, 2)


# --- a problem with known answers ---

BEST, GAMMA = 0.5, 0.8
SETTINGS: dict[str, dict[str, Any]] = {
    "sscp": {"flow_alpha": 0.1, "completion_alpha": 0.02, "actor_target_rate": 0.02},
    "ofql": {"q_alpha": 5.0, "actor_target_start": 0, "actor_target_interval": 1, "actor_target_rate": 0.02},
    "fql": {"alpha": 0.02, "flow_steps": 4},
}


def chain(key: jax.Array, rows: int) -> Batch:
    """Steps along three states: 0 → 1 → 2 → end, without reward but for 1 − (a − 0.5)² at the end.

    Actions are uniform, so that the data says nothing about the best one.
    """
    state_key, action_key = jax.random.split(key)
    states = jax.random.randint(state_key, (rows,), 0, 3)
    actions = jax.random.uniform(action_key, (rows, 1), minval=-1.0, maxval=1.0)
    last = states == 2
    return {
        "observations": jnp.eye(3)[states],
        "actions": actions,
        "rewards": jnp.where(last, 1 - (actions[:, 0] - BEST) ** 2, 0.0),
        "masks": 1.0 - last,
        "next_observations": jnp.eye(3)[jnp.minimum(states + 1, 2)],
    }


@functools.cache
def trained_on_chain(name: str) -> tuple[Agent, TrainState]:
    module = agents.load(name)
    settings = {"hidden_dims": (32, 32), "learning_rate": 3e-3, "discount": GAMMA, "critic_target_rate": 0.05}
    agent = module.make(module.Config(**settings, **SETTINGS[name]), Spec(3, 1, 0))

    @quickly
    def train(key: jax.Array) -> TrainState:
        def step(i: jax.Array, state: TrainState) -> TrainState:
            batch_key, update_key = jax.random.split(jax.random.fold_in(key, i))
            state = state.replace(hyper={**state.hyper, "learning_rate": jnp.where(i < 700, 3e-3, 5e-4)})
            return agent.update(state, chain(batch_key, 64), update_key)[0]

        return jax.lax.fori_loop(0, 900, step, agent.init(key))

    return agent, train(jax.random.key(1))


def policy_at(name: str, state: int) -> np.ndarray:
    """500 actions of a trained policy."""
    agent, trained = trained_on_chain(name)
    s = jnp.tile(jnp.eye(3)[state], (500, 1))
    return np.asarray(agent.act(agent.policy(trained), s, s, jax.random.key(3), mode="eval"))[:, 0]


@each_q_agent
def test_critics_on_a_chain_learn_its_values(name: str) -> None:
    # Q(2, a) = 1 − (a − 0.5)² for any policy; before the end γ and γ² of what the policy then gets.
    agent, state = trained_on_chain(name)
    networks = agent.init.args[0]  # type: ignore[attr-defined]
    actions = jnp.linspace(-1, 1, 21)[:, None]
    values = [
        np.asarray(networks.critic.apply(state.params["critic"], jnp.tile(jnp.eye(3)[i], (21, 1)), actions))
        for i in range(3)
    ]
    np.testing.assert_allclose(values[2], np.tile(1 - (actions[:, 0] - BEST) ** 2, (2, 1)), atol=0.25)
    assert np.abs(values[2] - (1 - (actions[:, 0] - BEST) ** 2)).mean() < 0.07
    reached = (1 - (policy_at(name, 2) - BEST) ** 2).mean()
    for i, expected in ((1, GAMMA * reached), (0, GAMMA**2 * reached)):
        assert np.abs(values[i].mean() - expected) < 0.05
        np.testing.assert_allclose(values[i], expected, atol=0.12)


@each_q_agent
def test_policies_on_a_chain_take_the_best_action(name: str) -> None:
    # The data's mean is 0 and its spread 0.58, for which the reward is 0.42 on average.
    actions = policy_at(name, 2)
    assert abs(actions.mean() - BEST) < 0.12
    assert (1 - (actions - BEST) ** 2).mean() > 0.9


@pytest.mark.parametrize("distribution", ["gaussian", "flow"])
def test_behaviour_cloning_finds_the_mean_or_both_modes(distribution: str) -> None:
    """Actions ±0.6 in state 0 and 0.2 in state 1: a Gaussian's mode is the mean, a flow keeps the modes."""
    module = agents.load("bc")
    config = module.Config(hidden_dims=(32, 32), learning_rate=5e-3, distribution=distribution)
    agent = module.make(config, Spec(2, 1, 0))

    @quickly
    def train(key: jax.Array) -> TrainState:
        def step(i: jax.Array, state: TrainState) -> TrainState:
            state_key, sign_key, update_key = jax.random.split(jax.random.fold_in(key, i), 3)
            states = jax.random.bernoulli(state_key, shape=(128,)).astype(jnp.int32)
            signs = jax.random.rademacher(sign_key, (128,), jnp.float32)
            actions = jnp.where(states == 1, 0.2, 0.6 * signs)[:, None]
            return agent.update(state, {"observations": jnp.eye(2)[states], "actions": actions}, update_key)[0]

        return jax.lax.fori_loop(0, 600, step, agent.init(key))

    policy = agent.policy(train(jax.random.key(0)))
    s = jnp.repeat(jnp.eye(2), 500, axis=0)
    two_modes, one = np.split(np.asarray(agent.act(policy, s, s, jax.random.key(1), mode="eval"))[:, 0], 2)
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
