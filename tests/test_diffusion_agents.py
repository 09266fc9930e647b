"""DQL, EDP, CAC and SORL: losses and gradients against references in numpy, what moves when, how they act, a bandit.

Networks are tiny stand-ins with known derivatives; losses are compared in float64, gradients with finite differences.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from offline_references import Case, finite_differences
from small_agents import (
    SPEC,
    A,
    B,
    D,
    assert_close,
    assert_same,
    compiled,
    compiled_mapped,
    followed,
    gradients,
    stack,
    state_with,
    with_config,
)
from small_agents import config_of as told_config
from small_agents import transitions as batch_of
from stub_agents import critics, field, network

from flowrl import agents, optim
from flowrl import config as configs
from flowrl.agent import Agent
from flowrl.agents import cac, dql, edp, shortcut
from flowrl.config import as_arrays, check, put
from flowrl.data.samplers import Transitions
from flowrl.errors import UserError
from flowrl.experiment import presets
from flowrl.experiment.settings import Settings
from flowrl.networks import Spec
from flowrl.run_folder import texts
from flowrl.train_state import Params, TrainState

NAMES = ("dql", "edp", "edp_crr", "edp_iql", "cac", "shortcut")
CHAINS = ("dql", "edp", "edp_crr")
each_agent = pytest.mark.parametrize("name", NAMES)
SLOW = {"actor_target.rate": 0.3, "actor_target.start": 0, "actor_target.interval": 1}
SHARED = {"learning_rate": 0.01, "discount": 0.9, "critic.target_rate": 0.2, "q_alpha": 0.6, "choice.num_samples": 1}
TOLD: dict[str, dict[str, Any]] = {
    "dql": {**SHARED, **SLOW, "actor_learning_rate": 0.02},
    "edp": {**SHARED, **SLOW, "policy.levels": 24},
    "edp_crr": {**SHARED, **SLOW, "policy.levels": 24, "advantage_alpha": 0.7, "max_weight": 0.71},
    "edp_iql": {**SHARED, **SLOW, "policy.levels": 24, "advantage_alpha": 0.5, "max_weight": 0.7},
    "cac": {**SHARED, **SLOW, "actor_learning_rate": 0.02},
    "shortcut": {
        **SHARED, "actor_target_rate": 0.3, "flow_alpha": 0.7, "consistency_alpha": 1.3, "max_grad_norm": 0.0,
    },
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("x64")

# ----------------------------------------------------------------------------------------------------- stand-ins


def by_level(xp: Any, params: Any, s: Any, x: Any, level: Any) -> Any:
    """A field of points and a level or a time, which may be large."""
    return field(xp, params, s, x, xp.log(1.0 + level) / 4)


def jumps(xp: Any, params: Any, s: Any, x: Any, t: Any, level: Any) -> Any:
    """A field of points, a time and a level."""
    return field(xp, params, s, x, t, level / 3)


def counting(xp: Any, params: Any, s: Any, a: Any, k: Any) -> Any:
    """Critics that know the number of steps, on which it depends what the best action is."""
    steps = params["steps"][(slice(None), *[None] * (k.ndim - 1))]
    return critics(xp, params, s, a) + steps * k[..., 0] * (1 + 4 * a.sum(axis=-1)) / 8


def value(xp: Any, params: Any, s: Any) -> Any:
    """A state's value."""
    return s @ params["weight"] + params["bias"]


MODULES = {"dql": dql, "edp": edp, "edp_crr": edp, "edp_iql": edp, "cac": cac, "shortcut": shortcut}


def nets_of(name: str) -> Any:
    if name == "shortcut":
        return shortcut.Networks(
            SPEC, network("actor", functools.partial(jumps, jnp)), network("critic", functools.partial(counting, jnp))
        )
    both = network("actor", functools.partial(by_level, jnp)), network("critic", functools.partial(critics, jnp))
    if name == "edp_iql":
        return edp.Networks(SPEC, *both, network("value", functools.partial(value, jnp)))
    return MODULES[name].Networks(SPEC, *both)


def config_of(name: str, told: dict[str, Any] | None = None) -> Any:
    return told_config(name, TOLD[name] | (told or {}))


@functools.cache
def _agent(name: str, structure: Any) -> Agent:
    config = jax.tree.unflatten(structure, [0.0] * structure.num_leaves)
    return dataclasses.replace(MODULES[name].make, networks=lambda config, spec: nets_of(name))(config, SPEC)


def agent_of(name: str, told: dict[str, Any] | None = None) -> Agent:
    """The agent with tiny networks in place of its own."""
    return _agent(name, jax.tree.structure(config_of(name, told)))


def state_of(name: str, seed: int = 0, told: dict[str, Any] | None = None) -> TrainState:
    """A state in float64 with slow copies unlike the trained networks."""
    rng = np.random.default_rng([seed, len(name)])

    def params() -> Params:
        inputs = D + A + (2 if name == "shortcut" else 1)
        found = {"actor": {"kernel": rng.normal(0, 0.6, (inputs, A)), "bias": rng.normal(0, 0.3, A)}}
        shapes = {"weight": (2, D + A), "curve": (2, A), "bias": (2,)} | ({"steps": (2,)} if name == "shortcut" else {})
        found["critic"] = {leaf: rng.normal(0, 0.7, shape) for leaf, shape in shapes.items()}
        if name == "edp_iql":
            found["value"] = {"weight": rng.normal(0, 0.7, D), "bias": rng.normal()}
        return jax.tree.map(jnp.asarray, found)

    online, slow = params(), params()
    return state_with(config_of(name, told), online, {network: slow[network] for network in ("actor", "critic")})


# ---------------------------------------------------------------------------------------------------- references


def betas(levels: int, schedule: str) -> np.ndarray:
    """β of each level, as the authors write them."""
    t = np.arange(1, levels + 1)
    vp = 1 - np.exp(-0.1 / levels - 0.5 * (10 - 0.1) * (2 * t - 1) / levels**2)
    return vp if schedule == "vp" else np.linspace(0.1 / levels, 20 / levels, levels)


def chain(case: Case, params: Any, s: np.ndarray, key: jax.Array) -> np.ndarray:
    """One action by the textbook's posterior of each step."""
    z_key, steps_key = jax.random.split(key)
    model, x = case.config.policy, case.normal(z_key)
    beta, draws = betas(model.levels, model.schedule), case.normal(steps_key, model.levels, B, A)
    left = np.cumprod(1 - beta)
    for i, t in enumerate(range(model.levels - 1, -1, -1)):
        before = left[t - 1] if t else 1.0
        noise = by_level(np, params, s, x, np.full((B, 1), t))
        data = np.clip((x - np.sqrt(1 - left[t]) * noise) / np.sqrt(left[t]), -1, 1)
        mean = np.sqrt(before) * beta[t] * data + np.sqrt(1 - beta[t]) * (1 - before) * x
        x = mean / (1 - left[t]) + np.sqrt(beta[t] * (1 - before) / (1 - left[t])) * draws[i]
    return np.clip(x, -1, 1)


def consistent(params: Any, s: np.ndarray, x: np.ndarray, t: Any) -> np.ndarray:
    past = np.broadcast_to(t, (B, 1)) - 0.002
    skip, out = 0.25 / (past**2 + 0.25), 0.5 * past / np.sqrt((past + 0.002) ** 2 + 0.25)
    return skip * x + out * by_level(np, params, s, x, past + 0.002)


def two_steps(case: Case, params: Any, s: np.ndarray, key: jax.Array) -> np.ndarray:
    """One action of CAC, from 80 and again from 2."""
    z_key, steps_key = jax.random.split(key)
    first = consistent(params, s, 80 * case.normal(z_key), 80.0)
    again = first + np.sqrt(4 - 0.002**2) * case.normal(steps_key, 1, B, A)[0]
    return np.clip(consistent(params, s, again, 2.0), -1, 1)


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


def euler_steps(case: Case, params: Any, s: np.ndarray, key: jax.Array, level: int) -> np.ndarray:
    x, k = case.normal(key), 2**level
    for i in range(k):
        x = x + jumps(np, params, s, x, np.full((B, 1), i / k), np.full((B, 1), level)) / k
    return np.clip(x, -1, 1)


def one_level(case: Case, params: Any, s: np.ndarray, key: jax.Array) -> np.ndarray:
    """One action of SORL as it acts, in two steps."""
    return euler_steps(case, params, s, jax.random.split(key)[0], 1)


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


@each_agent
def test_mapped_updates_equal_single_ones(name: str) -> None:
    states, batches = [state_of(name, seed) for seed in (0, 1)], [batch_of(seed) for seed in (0, 1)]
    states[1] = with_config(states[1], {"learning_rate": 0.02})
    keys = jax.random.split(jax.random.key(3))
    after, metrics = compiled_mapped(agent_of(name), batches=True)(stack(states), stack(batches), keys)
    for i, (state, batch) in enumerate(zip(states, batches, strict=True)):
        alone, own = compiled(agent_of(name))(state, batch, keys[i])
        one = jax.tree.map(lambda x, i=i: x[i], (after.replace(step=None), metrics))
        assert_close(one, (alone.replace(step=None), own), rtol=1e-8, atol=1e-9)


# -------------------------------------------------------------------------------------------- constants by hand


def flat(state: TrainState, q: list[float], slow: list[float]) -> TrainState:
    """All networks are 0 but for the critics, which are these constants."""
    zero = jax.tree.map(jnp.zeros_like, state).replace(config=state.config)
    for params, bias in ((zero.params, q), (zero.target_params, slow)):
        params["critic"]["bias"] = jnp.array(bias)
    return zero


@pytest.mark.parametrize("name", ["dql", "cac", "edp"])
def test_a_coin_chooses_the_critic_and_the_one_that_scales_it(name: str) -> None:
    """Critics 1 and 4; DQL's family divides one by the other, −1/4 or −4, EDP each by itself, −1; both heads count."""
    state = with_config(flat(state_of(name), [1.0, 4.0], [3.0, 5.0]), {"learning_rate": 0.0})
    batch = {**batch_of(), "rewards": jnp.ones(B), "discounts": jnp.array([0.5, 0, 0.5, 0, 0.5, 0])}
    found, metric = set(), "actor/improvement_loss" if name == "edp" else "actor/q_loss"
    for key in range(8):
        _, metrics = compiled(agent_of(name))(state, batch, jax.random.key(key))
        # targets 1 + ½·3 and 1: (2.25 + 0)/2 for the first critic, (2.25 + 9)/2 for the second
        np.testing.assert_allclose(metrics["critic/loss"], 1.125 + 5.625)
        found.add(round(float(metrics[metric]), 6))
    assert found == ({-1.0} if name == "edp" else {-0.25, -4.0})


def test_sorl_divides_q_by_its_own_size_and_means_over_critics() -> None:
    state = flat(state_of("shortcut"), [1.0, 4.0], [3.0, 5.0])
    batch = {**batch_of(), "rewards": jnp.ones(B), "discounts": jnp.array([0.5, 0, 0.5, 0, 0.5, 0])}
    _, metrics = compiled(agent_of("shortcut"))(state, batch, jax.random.key(0))
    # targets 1 + ½·4 and 1: (4 + 0)/2 and (1 + 9)/2, their mean
    np.testing.assert_allclose([metrics["critic/loss"], metrics["actor/q_loss"]], [3.5, -1.0])


def test_normalized_targets_have_unit_deviation_among_rows_that_count() -> None:
    """r = 2, 4, 6 and rows that do not count, nothing after: deviation 2, targets 1, 2, 3."""
    state = flat(state_of("cac", told={"normalize_targets": True}), [0.0, 0.0], [0.0, 0.0])
    state = state.replace(params=jax.tree.map(lambda x: x, state.params))
    batch = {**batch_of(), "rewards": jnp.array([2.0, 4, 6, 100, -100, 100]), "discounts": jnp.zeros(B)}
    batch["valid"] = jnp.array([1.0, 1, 1, 0, 0, 0])
    _, metrics = compiled(agent_of("cac", {"normalize_targets": True}))(state, batch, jax.random.key(0))
    np.testing.assert_allclose(metrics["critic/loss"], 2 * (1 + 4 + 9) / 6, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------- routes


@each_agent
def test_nothing_follows_a_terminal_and_rows_and_entries_may_not_count(name: str) -> None:
    state, batch, key = state_of(name), batch_of(), jax.random.key(5)
    base = compiled(agent_of(name))(state, batch, key)[1]
    for mask, same in ((0, True), (1, False)):
        rows = (batch["masks"] == mask)[:, None]
        moved = {**batch, "next_observations": batch["next_observations"] + 5.0 * rows}
        after = compiled(agent_of(name))(state, moved, key)[1]
        assert (float(base["critic/loss"]) == float(after["critic/loss"])) is same
    clone = {"cac": "consistency_loss", "shortcut": "flow_loss"}.get(name, "noise_loss")
    none = {**batch, "valid": jnp.zeros(B), "actions_valid": jnp.zeros((B, A))}
    nothing = compiled(agent_of(name))(state, none, key)[1]
    assert (nothing["critic/loss"], nothing[f"actor/{clone}"]) == (0, 0)
    if name == "edp_iql":
        assert nothing["value/loss"] == 0
    if name == "shortcut":
        assert nothing["actor/consistency_loss"] == 0


@each_agent
def test_policies_without_q_clone_whatever_the_critics_say(name: str) -> None:
    state = with_config(state_of(name), {"q_alpha": 0.0})
    params = {**state.params, "critic": jax.tree.map(lambda leaf: leaf + 0.3, state.params["critic"])}
    one, other = (compiled(agent_of(name))(start, batch_of(), jax.random.key(1))[0] for start in (
        state, state.replace(params=params),
    ))  # fmt: skip
    assert_same(one.params["actor"], other.params["actor"])
    with_q = [with_config(start, {"q_alpha": 1.0}) for start in (state, state.replace(params=params))]
    after = [
        compiled(agent_of(name))(start, batch_of(), jax.random.key(1))[0].opt_state["actor"].mu for start in with_q
    ]
    if name != "edp_iql":  # whose weights are of the slow critics
        assert np.abs(after[0]["kernel"] - after[1]["kernel"]).max() > 1e-6


@each_agent
def test_which_critics_the_policy_meets(name: str) -> None:
    """The rewards change the critics' step: DQL and CAC meet the moved critics, EDP and SORL those before."""
    state, batch = state_of(name), batch_of()
    poorer = {**batch, "rewards": batch["rewards"] - 20}
    one, other = (compiled(agent_of(name))(state, data, jax.random.key(5))[0] for data in (batch, poorer))
    assert np.abs(one.params["critic"]["bias"] - other.params["critic"]["bias"]).max() > 1e-9
    same = np.array_equal(one.opt_state["actor"].mu["kernel"], other.opt_state["actor"].mu["kernel"])
    assert same is (name not in ("dql", "cac"))


# ---------------------------------------------------------------------------------------------------- one step


@pytest.mark.parametrize("name", ["dql", "edp", "edp_iql", "cac"])
def test_a_step_is_adam_and_slow_copies_follow_the_new_parameters(name: str) -> None:
    state = state_of(name)
    after, _ = compiled(agent_of(name))(state, batch_of(), jax.random.key(0))
    for net, grad in gradients(after).items():
        rate = 0.02 if net == "actor" and name in ("dql", "cac") else 0.01
        direction, _ = (adam := optax.adam(rate)).update(grad, adam.init(state.params[net]))
        assert_close(after.params[net], optax.apply_updates(state.params[net], direction), rtol=1e-7)
    expected = followed(state.target_params, after.params, {"critic": 0.2, "actor": 0.3})
    assert_close(after.target_params, expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["dql", "edp", "cac"])
def test_the_slow_policy_moves_late_and_rarely(name: str) -> None:
    late = {"actor_target.start": 1000, "actor_target.interval": 5}
    assert (agents.default(name).actor_target.start, agents.default(name).actor_target.interval) == (1000, 5)
    state = with_config(state_of(name), late)
    for step, due in ((995, False), (999, False), (1000, True), (1001, False), (1005, True)):
        after, _ = compiled(agent_of(name))(state.replace(step=jnp.int32(step)), batch_of(), jax.random.key(0))
        moved = not np.array_equal(after.target_params["actor"]["kernel"], state.target_params["actor"]["kernel"])
        assert moved is due


def norms(grads: Params) -> dict[str, np.ndarray]:
    """The norm of each network's gradient, of the critics one for each head."""
    squares = {net: [jnp.sum(g**2, axis=tuple(range(1, g.ndim))) for g in grads[net].values()] for net in grads}
    return {net: np.sqrt(sum(s if net == "critic" else s.sum() for s in parts)) for net, parts in squares.items()}


@pytest.mark.parametrize("name", ["dql", "cac", "edp", "edp_iql"])
def test_gradients_are_clipped_by_network_and_in_edp_by_head(name: str) -> None:
    state = state_of(name)
    state.params["critic"]["bias"] = state.params["critic"]["bias"] + jnp.array([0.0, 2.0])  # type: ignore[index]
    step = functools.partial(compiled(agent_of(name)), batch=batch_of(), key=jax.random.key(2))
    plain = norms(gradients(step(state)[0]))
    assert abs(plain["critic"][0] / plain["critic"][1] - 1) > 0.05
    bound = 0.5 * min(plain["critic"].min(), plain["actor"])
    found = norms(gradients(step(with_config(state, {"max_grad_norm": bound}))[0]))
    np.testing.assert_allclose(found["actor"], bound, rtol=1e-4)
    if name.startswith("edp"):
        np.testing.assert_allclose(found["critic"], [bound, bound], rtol=1e-4)
    else:
        np.testing.assert_allclose(np.sqrt((found["critic"] ** 2).sum()), bound, rtol=1e-4)
        np.testing.assert_allclose(found["critic"][0] / found["critic"][1], plain["critic"][0] / plain["critic"][1])


@functools.cache
def sorls_gradients(leaks: bool, policy: bool) -> Any:
    """The compiled gradients of one of SORL's losses by both networks, and that loss: of a state, one before, a key."""
    nets = nets_of("shortcut")

    def found(state: TrainState, before: TrainState, key: jax.Array) -> Any:
        loss = functools.partial(shortcut.actor_loss, before=before) if policy else shortcut.critic_loss
        grads, _ = optim.gradients(nets, state, batch_of(), key, (loss,), ("actor", "critic"))
        return grads, loss(nets, state.params, state, batch_of(), key)[0]

    return jax.jit(found)


def shortcut_by_hand(state: TrainState, leaks: bool, bound: float) -> TrainState:
    """SORL's update from its two gradients: one Adam and one norm for all networks, slow copies a step behind."""
    adam, params = optax.chain(optax.clip_by_global_norm(bound), optax.adam(0.3)), state.params
    moments = adam.init(params)
    for policy, key in enumerate(jax.random.split(jax.random.key(2))):
        grads, _ = sorls_gradients(leaks, bool(policy))(state.replace(params=params), state, key)
        assert float(optax.global_norm(grads)) > 1.2 * bound
        updates, moments = adam.update(grads, moments)
        params = optax.apply_updates(params, updates)
    slow = followed(state.target_params, state.params, {"critic": 0.2, "actor": 0.3})
    return state.replace(params=params, target_params=slow)


@pytest.mark.parametrize("leaks", [False, True])
def test_sorl_has_one_adam_of_two_steps_an_update(leaks: bool) -> None:
    state = with_config(
        state_of("shortcut", 0, {"target_gradients": leaks}), {"max_grad_norm": 0.5, "learning_rate": 0.3}
    )
    after, _ = compiled(agent_of("shortcut", {"target_gradients": leaks}))(state, batch_of(), jax.random.key(2))
    expected = shortcut_by_hand(state, leaks, 0.5)
    assert_close((after.params, after.target_params), (expected.params, expected.target_params), rtol=1e-5)


def test_sorls_targets_may_pass_gradients_into_the_policy() -> None:
    """As released, the policy is moved to where targets agree with Q; by default they are constants."""
    key, found = jax.random.key(2), {}
    for leaks in (False, True):
        state = state_of("shortcut", 0, {"target_gradients": leaks})
        found[leaks], _ = sorls_gradients(leaks, False)(state, state, key)

    def loss(params: Params) -> float:
        moved = state.replace(params={**state.params, **jax.tree.map(jnp.asarray, params)})
        return float(sorls_gradients(True, False)(moved, state, key)[1])

    whole = finite_differences(loss, {"actor": jax.tree.map(np.asarray, state.params["actor"])})
    assert_close(found[True]["actor"], whole["actor"], rtol=1e-5, atol=1e-7)
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(found[False]["actor"]))
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(found[True]["actor"]))
    assert_same(found[False]["critic"], found[True]["critic"])


# ------------------------------------------------------------------------------------------------------ acting


@each_agent
@pytest.mark.parametrize("explore", [False, True])
def test_the_trained_policy_acts_and_the_critics_choose(name: str, explore: bool) -> None:
    count = 5
    told = {"choice.num_samples": count, "choice.temperature": 0.0} | (
        {"policy.level": 1} if name == "shortcut" else {}
    )
    state, agent, config = state_of(name, 0, told), agent_of(name, told), config_of(name, told)
    policy, s = agent.policy(state), batch_of()["observations"]
    case = Case(config, state, batch_of(), jax.random.key(0))
    draw: Any = {"cac": two_steps, "shortcut": one_level}.get(name, chain)
    candidates = [
        draw(case, case.params["actor"], case.batch["observations"], key)
        for key in [jax.random.key(9), *jax.random.split(jax.random.split(jax.random.key(9))[0], count)]
    ]
    kinds = agent.evaluations(policy.config)
    assert list(kinds) == ["eval", "best_of_n"]
    act = functools.partial(agent.act, inputs={"observations": s}, key=jax.random.key(9), explore=explore)
    np.testing.assert_allclose(act(policy.replace(config=kinds["eval"])), candidates[0], atol=1e-7)
    ranking = case.slow if config.choice.critics == "target" else case.params
    if name == "shortcut":
        ranks = [counting(np, ranking["critic"], s, a, np.full((B, 1), 2.0)) for a in candidates[1:]]
    else:
        ranks = [critics(np, ranking["critic"], s, a) for a in candidates[1:]]
    ranks = [q.mean(axis=0) if name == "shortcut" else q.min(axis=0) for q in ranks]
    best = np.stack(candidates[1:])[np.argmax(ranks, axis=0), np.arange(B)]
    np.testing.assert_allclose(act(policy.replace(config=kinds["best_of_n"])), best, atol=1e-7)


@each_agent
def test_defaults_are_the_published_ones(name: str) -> None:
    config = agents.default(name)
    assert (config.batch_size, config.discount, config.critic.heads, config.critic.target_rate) == (256, 0.99, 2, 0.005)
    if name == "shortcut":
        assert (config.learning_rate, config.max_grad_norm, config.actor_target_rate) == (1e-4, 1.0, 0.005)
        assert (config.flow_alpha, config.consistency_alpha, config.q_alpha) == (10, 10, 100)
        assert (config.policy.finest, config.policy.level, config.choice.num_samples) == (3, 0, 1)
        assert (config.hidden_dims, config.critic.layer_norm, config.critic.activation) == ((512,) * 4, True, "gelu")
        return
    assert (config.learning_rate, config.hidden_dims, config.critic.layer_norm) == (3e-4, (256,) * 3, False)
    assert (config.critic.activation, config.critic.aggregate, config.actor_target.rate) == ("mish", "min", 0.005)
    assert (config.choice.num_samples, config.choice.temperature, config.max_q_backup) == (50, 1, False)
    assert config.choice.critics == ("online" if name.startswith("edp") else "target")
    assert config.q_alpha == (2.0 if name == "edp" else 1.0)
    assert agents.load(name).make.explores(config) == config
    if name == "dql":
        assert (config.policy.levels, config.policy.schedule, config.policy.schedule_scale) == (5, "vp", 1.0)
    if name.startswith("edp"):
        assert (config.policy.levels, config.policy.schedule, config.policy.schedule_scale) == (100, "ddpm", 1.0)
        alphas = {"edp_crr": (1.0, 20.0), "edp_iql": (3.0, 100.0)}
        assert (config.advantage_alpha, config.max_weight) == alphas.get(name, (1.0, 20.0))
        assert config.expectile == 0.7
    if name == "cac":
        assert (config.policy.steps, config.normalize_targets, config.grid_updates) == (2, False, 50_000)


@pytest.mark.parametrize("name", ["dql", "edp", "cac"])
def test_there_are_two_critics(name: str) -> None:
    with pytest.raises(UserError, match=r"--agent.critic.heads=3 must be 2"):
        check(told_config(name, {"critic.heads": 3}), "agent.")


def test_networks_have_the_sizes_of_the_papers() -> None:
    """A state of 17 and an action of 6: DQL's 16 features of a level go through 32 units to 16 numbers."""
    spec = Spec.of_sizes(17, 6)

    def count(tree: Any) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    hidden = 2 * (256 * 256 + 256)
    embedded = 16 * 32 + 32 + 32 * 16 + 16 + (39 * 256 + 256) + hidden + 256 * 6 + 6
    twins = 2 * ((23 * 256 + 256) + hidden + 257)
    for name in ("dql", "edp", "edp_iql", "cac"):
        config = agents.default(name)
        state = jax.eval_shape(agents.build(name, config, spec).init, jax.random.key(0), config)
        assert (count(state.params["actor"]), count(state.params["critic"])) == (embedded, twins)
        assert set(state.target_params) == {"actor", "critic"}
        assert set(state.params) == {"actor", "critic", *(["value"] if name == "edp_iql" else [])}
    config = agents.default("shortcut")
    state = jax.eval_shape(agents.build("shortcut", config, spec).init, jax.random.key(0), config)
    wide = 3 * (512 * 512 + 512)
    assert count(state.params["actor"]) == (25 * 512 + 512) + wide + 512 * 6 + 6
    assert count(state.params["critic"]) == 2 * ((24 * 512 + 512) + wide + 4 * 1024 + 513)


# ------------------------------------------------------------------------------------------------------ a bandit

BEST = 0.5
FIVE = {"policy.levels": 5, "policy.schedule": "vp"}
BANDIT: dict[str, dict[str, Any]] = {
    "dql": {"q_alpha": 3.0, "learning_rate": 1e-2, "actor_learning_rate": 1e-2, **SLOW},
    "edp": {**FIVE, "q_alpha": 3.0},
    "edp_crr": {**FIVE, "q_alpha": 10.0, "advantage_alpha": 20.0, "max_weight": 100.0},
    "edp_iql": {**FIVE, "q_alpha": 1.0, "advantage_alpha": 20.0},
    "cac": {"q_alpha": 100.0, "actor_learning_rate": 3e-3, **SLOW, "grid_updates": 600},
    "shortcut": {"policy.finest": 2, "q_alpha": 10.0, "learning_rate": 1e-3, "actor_target_rate": 0.05},
}


def rows_of(key: jax.Array, two_modes: jax.Array) -> Any:
    """128 rows of one state: actions uniform, or near ±0.6; rewards 1 − (a − 0.5)²."""
    sign_key, noise_key = jax.random.split(key)
    around = 0.6 * jax.random.rademacher(sign_key, (128, 1), jnp.float32)
    spread = jax.random.uniform(noise_key, (128, 1), jnp.float32, -1.0, 1.0)
    actions, s = jnp.where(two_modes, around + 0.05 * spread, spread), jnp.ones((128, 1), jnp.float32)
    rows = {"observations": s, "next_observations": s, "actions": actions, "masks": jnp.zeros(128, jnp.float32)}
    return Transitions(0.9).complete({**rows, "rewards": 1 - (actions[:, 0] - BEST) ** 2})


@functools.cache
def bandit(name: str) -> Any:
    """A compiled training, `(key, config, whether there are two modes) -> 500 actions`, and the configuration."""
    told = {"hidden_dims": (32, 32), "learning_rate": 3e-3, "choice.num_samples": 1, **BANDIT[name]}
    config = told_config(name, told)
    agent = agents.build(name, config, Spec.of_sizes(1, 1))

    def train(key: jax.Array, config: Any, two_modes: jax.Array) -> jax.Array:
        def step(i: jax.Array, state: TrainState) -> TrainState:
            rows_key, update_key = jax.random.split(jax.random.fold_in(key, i))
            return agent.update(state, rows_of(rows_key, two_modes), update_key)[0]

        policy = agent.policy(jax.lax.fori_loop(0, 600, step, agent.init(key, config)))
        return agent.act(policy, {"observations": jnp.ones((500, 1), jnp.float32)}, key)[:, 0]

    return jax.jit(train), as_arrays(config)


def acted(name: str, two_modes: bool, told: dict[str, float] | None = None) -> np.ndarray:
    with jax.enable_x64(False):
        train, config = bandit(name)
        other = {name: jnp.float32(value) for name, value in (told or {}).items()}
        return np.asarray(train(jax.random.key(1), put(config, other), jnp.asarray(two_modes)))


@each_agent
def test_policies_on_a_bandit_take_the_best_action(name: str) -> None:
    """The data's mean is 0 and its spread 0.58, for which the reward is 0.42 on average."""
    actions = acted(name, two_modes=False)
    assert abs(actions.mean() - BEST) < 0.25
    assert (1 - (actions - BEST) ** 2).mean() > 0.78


@pytest.mark.parametrize("name", ["dql", "cac", "shortcut"])
def test_cloning_alone_does_not_average_modes(name: str) -> None:
    """Actions near ±0.6: so short a training smears them, but their mean is not what comes out."""
    actions = acted(name, two_modes=True, told={"q_alpha": 0.0})
    assert 0.3 < (actions > 0).mean() < 0.7
    assert actions.std() > 0.3


# ------------------------------------------------------------------------------------------------------ presets


@pytest.mark.parametrize(
    ("name", "dataset", "run", "own"),
    [
        ("dql", "hopper-medium-v2", {"steps": 2_000_000, "eval.episodes": 10}, {"q_alpha": 1.0, "max_grad_norm": 9.0}),
        (
            "dql", "antmaze-medium-play-v2", {"normalize.reward_scale": 4.0, "normalize.reward_shift": -2.0},
            {"actor_learning_rate": 1e-3, "q_alpha": 2.0, "max_q_backup": True, "max_grad_norm": 2.0},
        ),
        ("dql", "kitchen-complete-v0", {"steps": 250_000, "eval.episodes": 100}, {"q_alpha": 0.005}),
        ("edp", "antmaze-large-play-v2", {"normalize.reward_shift": -2.0}, {"max_grad_norm": 10.0, "q_alpha": 2.0}),
        ("edp_iql", "antmaze-large-play-v2", {"normalize.reward_shift": -1.0, "normalize.reward_scale": 1.0}, {}),
        ("edp_crr", "walker2d-medium-v2", {"steps": 2_000_000}, {"max_grad_norm": 1.0}),
        ("cac", "walker2d-medium-v2", {}, {"policy.steps": 5, "normalize_targets": True, "q_alpha": 1.0}),
        ("cac", "antmaze-large-diverse-v2", {"normalize.reward_scale": 4.0}, {"q_alpha": 3.5, "max_q_backup": True}),
        ("cac", "cube-double-play-singletask-task3", {"eval.episodes": 50}, {"q_alpha": 0.3, "max_grad_norm": 5.0}),
        ("cac", "antmaze-giant-navigate-singletask", {}, {"discount": 0.995, "max_q_backup": True}),
        ("shortcut", "antmaze-giant-navigate-singletask", {}, {"critic.aggregate": "min", "q_alpha": 500.0}),
        ("shortcut", "scene-play-singletask", {"steps": 1_000_000}, {"critic.aggregate": "mean", "q_alpha": 100.0}),
    ],
)  # fmt: skip
def test_published_values(name: str, dataset: str, run: dict[str, Any], own: dict[str, Any]) -> None:
    preset, usual = presets.lookup("paper", name, dataset), agents.default(name)
    assert run.items() <= (configs.values(Settings()) | texts.read(Settings(), preset.run)).items()
    assert own.items() <= (configs.values(usual) | texts.read(usual, preset.agent)).items()


FAULTS = {
    "agents/dql.py": [
        (
            "clone + config.q_alpha * q_loss",
            "clone - config.q_alpha * q_loss",
            "test_losses_and_gradients_equal_their_references and dql",
        ),
        (
            "backup_values(generated, nets, state, state.target_params,",
            "backup_values(generated, nets, state, state.params,",
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
            'batch["discounts"] * critics',
            "config.discount * critics",
            "test_nothing_follows_a_terminal_and_rows_and_entries_may_not_count and dql",
        ),
        (
            "noise_key, chain_key, coin_key = jax.random.split(key, 3)",
            "noise_key = chain_key = coin_key = key",
            "test_losses_and_gradients_equal_their_references and dql",
        ),
        (
            'batch["actions"], noise_key, valid)',
            'batch["actions"], noise_key)',
            "test_nothing_follows_a_terminal_and_rows_and_entries_may_not_count and dql",
        ),
    ],
    "agents/edp.py": [
        ("coin_q(q, q[::-1]", "coin_q(q, q", "test_a_coin_chooses_the_critic_and_the_one_that_scales_it and edp"),
        ("better = -jnp.mean(", "better = jnp.mean(", "test_losses_and_gradients_equal_their_references and edp_crr"),
        ("values.mean(axis=0)", "values.max(axis=0)", "test_losses_and_gradients_equal_their_references and edp_crr"),
        (
            "nets.critic(state.target_params, s, a).min(axis=0) - nets.value(state.params, s)",
            "nets.critic(state.params, s, a).min(axis=0) - nets.value(state.params, s)",
            "test_losses_and_gradients_equal_their_references and edp_iql",
        ),
        (
            'batch["actions"]).min(axis=0) - nets.value(params, s)',
            'batch["actions"]).mean(axis=0) - nets.value(params, s)',
            "test_losses_and_gradients_equal_their_references and edp_iql",
        ),
        (
            '[["value"], ["actor"], ["critic"]]',
            '[["critic"], ["actor"], ["value"]]',
            "test_losses_and_gradients_equal_their_references and edp_iql",
        ),
        (
            '(batch["valid"] * expectile_errors',
            "(expectile_errors",
            "test_nothing_follows_a_terminal_and_rows_and_entries_may_not_count and edp_iql",
        ),
        (
            "unit_gaussian_log_prob(a, seen, valid)",
            "unit_gaussian_log_prob(a, a, valid)",
            "test_losses_and_gradients_equal_their_references and edp_crr",
        ),
        (', ensembles=("critic",)', "", "test_gradients_are_clipped_by_network_and_in_edp_by_head and edp"),
    ],
    "agents/cac.py": [
        (
            "own, s) for own in (params, state.target_params)",
            "own, s) for own in (params, state.params)",
            "test_losses_and_gradients_equal_their_references and cac",
        ),
        ("state.step % config.grid_updates", "state.step", "test_losses_and_gradients_equal_their_references and cac"),
        ("std(ddof=1", "std(ddof=0", "test_normalized_targets_have_unit_deviation_among_rows_that_count"),
        (', where=batch["valid"] > 0', "", "test_normalized_targets_have_unit_deviation_among_rows_that_count"),
        (
            "clone + config.q_alpha * q_loss",
            "clone - config.q_alpha * q_loss",
            "test_losses_and_gradients_equal_their_references and cac",
        ),
        (
            'clone_key, done, batch["actions_valid"])',
            "clone_key, done)",
            "test_nothing_follows_a_terminal_and_rows_and_entries_may_not_count and cac",
        ),
        (
            '{"actor": config.actor_learning_rate}',
            '{"actor": config.learning_rate}',
            "test_a_step_is_adam_and_slow_copies_follow_the_new_parameters and cac",
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
        (
            "q_loss = -q.mean() / q_size(q)",
            "q_loss = -q.mean()",
            "test_sorl_divides_q_by_its_own_size_and_means_over_critics",
        ),
        ("rates, Clip(config.max_grad_norm, jointly=True))", "rates)", "test_sorl_has_one_adam_of_two_steps_an_update"),
        ("polyak(moved, state.params", "polyak(moved, moved.params", "test_sorl_has_one_adam_of_two_steps_an_update"),
        (
            "params if config.target_gradients else state.params",
            "state.params",
            "test_sorls_targets_may_pass_gradients_into_the_policy",
        ),
        (
            "steps_of(config.policy.level, a)",
            "steps_of(0, a)",
            "test_the_trained_policy_acts_and_the_critics_choose and shortcut",
        ),
    ],
    "flowrl/choice.py": [
        (
            "z_key, steps_key = jax.random.split(key)",
            "z_key = steps_key = key",
            "test_losses_and_gradients_equal_their_references and dql",
        ),
        (
            "return with_critic(state, state.params)",
            "return with_critic(state, state.target_params)",
            "test_the_trained_policy_acts_and_the_critics_choose and dql",
        ),
    ],
}
