"""DQL, EDP, CAC and SORL on networks of a few numbers, for tests."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from offline_references import Case
from small_agents import SPEC, A, B, D, state_with
from small_agents import config_of as told_config
from stub_agents import critics, field, network

from flowrl.agent import Agent
from flowrl.agents import cac, dql, edp, shortcut
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


def euler_steps(case: Case, params: Any, s: np.ndarray, key: jax.Array, level: int) -> np.ndarray:
    x, k = case.normal(key), 2**level
    for i in range(k):
        x = x + jumps(np, params, s, x, np.full((B, 1), i / k), np.full((B, 1), level)) / k
    return np.clip(x, -1, 1)


def one_level(case: Case, params: Any, s: np.ndarray, key: jax.Array) -> np.ndarray:
    """One action of SORL as it acts, in two steps."""
    return euler_steps(case, params, s, jax.random.split(key)[0], 1)
