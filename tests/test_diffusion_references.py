"""DQL, EDP, CAC and SORL: losses and gradients against numpy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_agents import (
    NAMES,
    agent_of,
    betas,
    by_level,
    chain,
    config_of,
    consistent,
    counting,
    each_agent,
    euler_steps,
    jumps,
    state_of,
    two_steps,
    value,
)
from offline_references import Case, finite_differences
from small_agents import A, B, assert_close, check_mapped, compiled, gradients, with_config
from small_agents import transitions as batch_of
from stub_agents import critics

from flowrl.train_state import Params, TrainState

pytestmark = pytest.mark.usefixtures("x64")


def next_values(case: Case, key: jax.Array, draw: Callable[..., np.ndarray]) -> np.ndarray:
    """Slow values of next actions, or each slow critic's best of ten, as one `[B]`."""
    after, best = case.batch["next_observations"], np.full((2, B), -np.inf)
    for own in jax.random.split(key, 10 if case.config.max_q_backup else 1):
        best = np.maximum(best, critics(np, case.slow["critic"], after, draw(case, case.slow["actor"], after, own)))
    return best.min(axis=0) if case.config.critic.aggregate == "min" else best.mean(axis=0)


def td_sum(case: Case, params: Params, targets: np.ndarray) -> float:
    q = critics(np, params["critic"], case.batch["observations"], case.batch["actions"])
    return float(((q - targets) ** 2).mean(axis=-1).sum())


def crossed(q: np.ndarray, sizes: np.ndarray, i: int, j: int) -> float:
    return -q[i].mean() / np.abs(sizes[j]).mean()


def noise_of(case: Case, key: jax.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Noise, levels, ᾱ of them, and noised actions of a diffusion's loss."""
    model, (noise_key, level_key) = case.config.policy, jax.random.split(key)
    noise, levels = case.normal(noise_key), np.asarray(jax.random.randint(level_key, (B, 1), 0, model.levels))
    left = np.cumprod(1 - betas(model.levels, model.schedule))[levels]
    return noise, levels, left, np.sqrt(left) * case.batch["actions"] + np.sqrt(1 - left) * noise


def dql_reference(case: Case, after: Params) -> Callable[[Params], dict[str, Any]]:
    critic_key, actor_key = jax.random.split(case.key)
    noise_key, chain_key, coin_key = jax.random.split(actor_key, 3)
    s, b, coin = case.batch["observations"], case.batch, int(jax.random.bernoulli(coin_key))
    targets = b["rewards"] + 0.9 * b["masks"] * next_values(case, critic_key, chain)
    noise, levels, _, points = noise_of(case, noise_key)

    def q(params: Params) -> np.ndarray:
        return critics(np, after["critic"], s, chain(case, params["actor"], s, chain_key))

    def metrics(params: Params) -> dict[str, Any]:
        clone = ((by_level(np, params["actor"], s, points, levels) - noise) ** 2).mean()
        q_loss = crossed(q(params), q(case.params), coin, 1 - coin)
        found = {"critic/loss": td_sum(case, params, targets), "actor/noise_loss": clone, "actor/q_loss": q_loss}
        return found | {"actor/loss": clone + case.hyper["q_alpha"] * q_loss}

    return metrics


def cac_reference(case: Case, after: Params) -> Callable[[Params], dict[str, Any]]:
    critic_key, actor_key = jax.random.split(case.key)
    clone_key, sample_key, coin_key = jax.random.split(actor_key, 3)
    z_key, index_key = jax.random.split(clone_key)
    s, a, b, coin = case.batch["observations"], case.batch["actions"], case.batch, int(jax.random.bernoulli(coin_key))
    y = b["rewards"] + 0.9 * b["masks"] * next_values(case, critic_key, two_steps)
    if case.config.normalize_targets:
        y = y / (np.sqrt(((y - y.mean()) ** 2).sum() / (B - 1)) + 1e-6)
    step, every = case.step, case.hyper["grid_updates"]
    count = int(np.ceil(np.sqrt(step % every * (150**2 - 4) / every + 4) - 1) + 1)
    ends = 0.002 ** (1 / 7), 80 ** (1 / 7)
    grid = np.array([(ends[0] + i / (count - 1) * (ends[1] - ends[0])) ** 7 for i in range(count)])
    index, z = np.asarray(jax.random.randint(index_key, (B, 1), 0, count - 1)), case.normal(z_key)
    near, far = grid[index], grid[index + 1]
    goal = consistent(case.slow["actor"], s, a + near * z, near)

    def q(params: Params) -> np.ndarray:
        return critics(np, after["critic"], s, two_steps(case, params["actor"], s, sample_key))

    def metrics(params: Params) -> dict[str, Any]:
        errors = (consistent(params["actor"], s, a + far * z, far) - goal) ** 2
        clone, q_loss = (100 / (far - near) * errors).mean(), crossed(q(params), q(case.params), coin, 1 - coin)
        found = {"critic/loss": td_sum(case, params, y), "actor/consistency_loss": clone, "actor/q_loss": q_loss}
        return found | {"actor/loss": clone + case.hyper["q_alpha"] * q_loss}

    return metrics


def edp_reference(case: Case, after: Params) -> Callable[[Params], dict[str, Any]]:
    kind, b, s, a = case.config.improvement, case.batch, case.batch["observations"], case.batch["actions"]
    if kind == "iql":
        _, actor_key, _ = jax.random.split(case.key, 3)
        next_v = value(np, after["value"], b["next_observations"])
        gaps = critics(np, case.slow["critic"], s, a).min(axis=0)
        advantages = gaps - value(np, after["value"], s)
    else:
        critic_key, actor_key = jax.random.split(jax.random.split(case.key, 1)[0])
        next_v = next_values(case, critic_key, chain)
    noise_key, other_key = jax.random.split(actor_key)
    noise, levels, left, points = noise_of(case, noise_key)
    coin, around = int(jax.random.bernoulli(other_key)), case.normal(other_key, 10, B, A)

    def seen(params: Params) -> tuple[np.ndarray, np.ndarray]:
        predicted = by_level(np, params["actor"], s, points, levels)
        return predicted, np.clip((points - np.sqrt(1 - left) * predicted) / np.sqrt(left), -1, 1)

    if kind == "crr":
        near = [critics(np, case.params["critic"], s, seen(case.params)[1] + draw).min(axis=0) for draw in around]
        advantages = critics(np, case.params["critic"], s, a).min(axis=0) - np.mean(near, axis=0)

    def metrics(params: Params) -> dict[str, Any]:
        predicted, actions = seen(params)
        if kind == "td3":
            q, size = (critics(np, case.params["critic"], s, seen(own)[1]) for own in (params, case.params))
            better = crossed(q, size, coin, coin)
        else:
            weights = np.minimum(np.exp(case.hyper["advantage_alpha"] * advantages), case.hyper["max_weight"])
            assert (weights < case.hyper["max_weight"]).any()
            assert (weights == case.hyper["max_weight"]).any()
            logs = -0.5 * ((a - actions) ** 2 + np.log(2 * np.pi)).sum(axis=-1)
            better = -(weights * logs).mean()
        clone = ((predicted - noise) ** 2).mean()
        found = {"critic/loss": td_sum(case, params, b["rewards"] + 0.9 * b["masks"] * next_v)}
        if kind == "iql":
            u = gaps - value(np, params["value"], s)
            found["value/loss"] = (np.where(u < 0, 0.3, 0.7) * u**2).mean()
        found |= {"actor/noise_loss": clone, "actor/improvement_loss": better}
        return found | {"actor/loss": clone + case.hyper["q_alpha"] * better}

    return metrics


def shortcut_reference(case: Case, after: Params) -> Callable[[Params], dict[str, Any]]:
    critic_key, actor_key = jax.random.split(case.key)
    level_key, next_key = jax.random.split(critic_key)
    flow_key, halves_key, own_key, z_key = jax.random.split(actor_key, 4)
    s, a, after_s, b = (*(case.batch[n] for n in ("observations", "actions", "next_observations")), case.batch)
    level, own = (int(jax.random.randint(key, (), 0, 4)) for key in (level_key, own_key))
    k, own_k = np.full((B, 1), 2.0**level), np.full((B, 1), 2.0**own)
    next_a = euler_steps(case, case.params["actor"], after_s, next_key, level)
    targets = b["rewards"] + 0.9 * b["masks"] * counting(np, case.slow["critic"], after_s, next_a, k).mean(axis=0)

    noise_key, time_key = jax.random.split(flow_key)
    noise, t = case.normal(noise_key), np.asarray(jax.random.randint(time_key, (B, 1), 0, 8)) / 8
    noise_key, time_key = jax.random.split(halves_key)
    levels = np.repeat([2, 1, 0], 2)[:, None]
    start = case.normal(noise_key)
    begin = np.asarray(jax.random.randint(time_key, (B, 1), 0, 2**levels)) / 2.0**levels
    x, half = (1 - begin) * start + begin * a, 0.5 / 2.0**levels
    one = jumps(np, case.slow["actor"], s, x, begin, levels + 1)
    other = jumps(np, case.slow["actor"], s, x + half * one, begin + half, levels + 1)

    def q(params: Params) -> np.ndarray:
        return counting(np, case.params["critic"], s, euler_steps(case, params["actor"], s, z_key, own), own_k)

    def metrics(params: Params) -> dict[str, Any]:
        values = counting(np, params["critic"], s, a, k)
        velocities = jumps(np, params["actor"], s, (1 - t) * noise + t * a, t, np.full((B, 1), 3))
        flow = ((velocities - (a - noise)) ** 2).mean()
        halves = ((jumps(np, params["actor"], s, x, begin, levels) - (one + other) / 2) ** 2).mean()
        q_loss = -q(params).mean() / np.abs(q(case.params).mean(axis=0)).mean()
        weights = case.hyper["flow_alpha"], case.hyper["consistency_alpha"], case.hyper["q_alpha"]
        return {
            "critic/loss": ((values - targets) ** 2).mean(), "actor/flow_loss": flow, "actor/consistency_loss": halves,
            "actor/q_loss": q_loss, "actor/loss": np.dot(weights, [flow, halves, q_loss]),
        }  # fmt: skip

    return metrics


REFERENCES: dict[str, Any] = {
    "dql": dql_reference, "cac": cac_reference, "shortcut": shortcut_reference,
    **dict.fromkeys(("edp", "edp_crr", "edp_iql"), edp_reference),
}  # fmt: skip
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in NAMES},
    "dql-backup": ("dql", {"max_q_backup": True}),
    "edp-backup-mean": ("edp", {"max_q_backup": True, "critic.aggregate": "mean"}),
    "cac-normalized": ("cac", {"normalize_targets": True}),
}


def of_first_step(name: str, after: TrainState) -> Params:
    """The gradients that an update met; SORL's Adam takes two steps, of which each network has one gradient."""
    if name != "shortcut":
        return gradients(after)
    shares = {"critic": 0.09, "actor": 0.1}
    return {net: jax.tree.map(lambda m, n=net: m / shares[n], after.opt_state[net].mu) for net in shares}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_losses_and_gradients_equal_their_references(variant: str, seed: int) -> None:
    name, told = VARIANTS[variant]
    state, batch, key = state_of(name, seed, told), batch_of(seed), jax.random.key(seed)
    state = state.replace(step=jnp.int32(20_000 if seed else 50_001))  # CAC's grid is fine, or coarse again
    after, metrics = compiled(agent_of(name, told))(state, batch, key)
    case = Case(config_of(name, told), state, batch, key)
    case.step = int(state.step)  # type: ignore[attr-defined]
    reference = REFERENCES[name](case, jax.tree.map(np.asarray, after.params))
    for metric, expected in reference(case.params).items():
        np.testing.assert_allclose(metrics[metric], expected, rtol=1e-6, atol=1e-7, err_msg=metric)

    def total(params: Params) -> float:
        found = reference(params)
        return sum(found.get(part, 0.0) for part in ("actor/loss", "critic/loss", "value/loss"))

    expected_grads = finite_differences(total, case.params)
    assert_close(of_first_step(name, after), expected_grads, rtol=1e-5, atol=1e-7)
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(expected_grads))


@pytest.mark.slow
@each_agent
def test_mapped_updates_equal_single_ones(name: str) -> None:
    states, batches = [state_of(name, seed) for seed in (0, 1)], [batch_of(seed) for seed in (0, 1)]
    states[1] = with_config(states[1], {"learning_rate": 0.02})
    check_mapped(agent_of(name), states, batches, rtol=1e-8, atol=1e-9)


FAULTS = {
    "agents/dql.py": [
        (
            "clone + config.q_alpha * q_loss",
            "clone - config.q_alpha * q_loss",
            "test_losses_and_gradients_equal_their_references and dql",
        ),
        (
            "q = nets.critic(state.params, s, generated",
            "q = nets.critic(state.target_params, s, generated",
            "test_losses_and_gradients_equal_their_references and dql",
        ),
        (
            "generated(nets, config, params, s, chain_key)",
            "generated(nets, config, state.params, s, chain_key)",
            "test_losses_and_gradients_equal_their_references and dql",
        ),
        (
            "noise_key, chain_key, coin_key = jax.random.split(key, 3)",
            "noise_key = chain_key = coin_key = key",
            "test_losses_and_gradients_equal_their_references and dql",
        ),
    ],
    "agents/edp.py": [
        ("better = -jnp.mean(", "better = jnp.mean(", "test_losses_and_gradients_equal_their_references and edp_crr"),
        ("values.mean(axis=0)", "values.max(axis=0)", "test_losses_and_gradients_equal_their_references and edp_crr"),
        (
            "nets.critic(state.target_params, s, a)) - nets.value(state.params, s)",
            "nets.critic(state.params, s, a)) - nets.value(state.params, s)",
            "test_losses_and_gradients_equal_their_references and edp_iql",
        ),
        (
            "implicit_critic_loss if iql else critic_loss",
            "critic_loss",
            "test_losses_and_gradients_equal_their_references and edp_iql",
        ),
        (
            '[["value"], ["actor"], ["critic"]]',
            '[["critic"], ["actor"], ["value"]]',
            "test_losses_and_gradients_equal_their_references and edp_iql",
        ),
        (
            "unit_gaussian_log_prob(a, seen, valid)",
            "unit_gaussian_log_prob(a, a, valid)",
            "test_losses_and_gradients_equal_their_references and edp_crr",
        ),
    ],
    "agents/cac.py": [
        (
            "own, s) for own in (params, state.target_params)",
            "own, s) for own in (params, state.params)",
            "test_losses_and_gradients_equal_their_references and cac",
        ),
        ("state.step % config.grid_updates", "state.step", "test_losses_and_gradients_equal_their_references and cac"),
        (
            "clone + config.q_alpha * q_loss",
            "clone - config.q_alpha * q_loss",
            "test_losses_and_gradients_equal_their_references and cac",
        ),
    ],
    "agents/shortcut.py": [
        (
            "before.target_params, s)",
            "before.params, s)",
            "test_losses_and_gradients_equal_their_references and shortcut",
        ),
        (
            "nets.critic(state.target_params, next_s, next_a, k)",
            "nets.critic(state.target_params, next_s, next_a, 2 * k)",
            "test_losses_and_gradients_equal_their_references and shortcut",
        ),
    ],
    "flowrl/choice.py": [
        (
            "best_next(sample, nets, state, state.target_params, s, key)",
            "best_next(sample, nets, state, state.params, s, key)",
            "test_losses_and_gradients_equal_their_references and dql",
        ),
        (
            "z_key, steps_key = jax.random.split(key)",
            "z_key = steps_key = key",
            "test_losses_and_gradients_equal_their_references and dql",
        ),
    ],
}
