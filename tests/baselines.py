"""TD3+BC, ReBRAC, IQL, IFQL and IDQL on networks of a few numbers, for tests."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from offline_references import Case
from small_agents import SPEC, A, B, D, compiled, config_of, state_with, transitions
from stub_agents import ACTOR, CRITIC, field, network
from ways import array

from flowrl import agents
from flowrl.agent import Agent
from flowrl.agents import idql, ifql, iql
from flowrl.networks import Networks
from flowrl.train_state import Batch, Params, TrainState

NAMES = ("td3_bc", "rebrac", "iql", "ifql", "idql")


# ------------------------------------------------------------------------------------------------ tiny networks


def value(params: Any, observations: Any) -> Any:
    """b + w·s + (c·s)²: `[...]`."""
    return observations @ params["weight"] + (observations @ params["curve"]) ** 2 + params["bias"]


def gaussian(params: Any, observations: Any, key: Any = None) -> Any:
    """Means of one field, and log standard deviations of their own."""
    means = field(jnp, params, observations)
    return means, jnp.broadcast_to(params["log_stds"], means.shape)


def denoiser(params: Any, *inputs: Any, key: Any = None) -> Any:
    """A field of everything."""
    return field(jnp, params, *inputs)


VALUE = network("value", value)
STUBS: dict[str, Any] = {
    "td3_bc": Networks(SPEC, ACTOR, CRITIC),
    "rebrac": Networks(SPEC, ACTOR, CRITIC),
    "iql": iql.Networks(network("actor", gaussian), VALUE, CRITIC),
    "ifql": ifql.Networks(SPEC, network("actor", denoiser), VALUE, CRITIC),
    "idql": idql.Networks(SPEC, network("actor", denoiser), VALUE, CRITIC),
}
SHARED = {"learning_rate": 0.01, "discount": 0.9, "critic.target_rate": 0.2}
TOLD: dict[str, dict[str, Any]] = {
    "td3_bc": {**SHARED, "alpha": 1.7, "target_noise": 0.8},
    "rebrac": {
        **SHARED, "actor_learning_rate": 0.02, "alpha_actor": 0.6, "alpha_critic": 0.3, "target_noise": 0.8,
    },
    "iql": {**SHARED, "value.expectile": 0.8, "alpha": 0.7, "decay.steps": 4},
    "ifql": {**SHARED, "value.expectile": 0.8},
    "idql": {
        **SHARED, "value.expectile": 0.8, "value.temperature": 0.9, "decay.steps": 4, "weight_decay": 0.3,
        "actor_target_rate": 0.1,
    },
}  # fmt: skip
TARGETS = {"td3_bc": ("actor", "critic"), "rebrac": ("actor", "critic"), "iql": ("critic",), "ifql": ("critic",)}
TARGETS["idql"] = ("actor", "critic")


def told_of(name: str, told: dict[str, Any] | None = None) -> Any:
    return config_of(name, TOLD[name] | (told or {}))


@functools.cache
def _agent(name: str, structure: Any) -> Agent:
    config = jax.tree.unflatten(structure, [0.0] * structure.num_leaves)
    return dataclasses.replace(agents.load(name).make, networks=lambda config, spec: STUBS[name])(config, SPEC)


def agent_of(name: str, told: dict[str, Any] | None = None) -> Agent:
    return _agent(name, jax.tree.structure(told_of(name, told)))


def state_of(name: str, told: dict[str, Any] | None = None, seed: int = 0) -> TrainState:
    rng = np.random.default_rng([seed, len(name)])

    def drawn() -> Params:
        inputs = D + A + 1 if name in ("ifql", "idql") else D
        params: dict[str, Any] = {"actor": {"kernel": rng.normal(0, 0.6, (inputs, A)), "bias": rng.normal(0, 0.3, A)}}
        if name == "iql":
            params["actor"]["log_stds"] = rng.normal(-0.5, 0.3, A)
        shapes = {"weight": (2, D + A), "curve": (2, A), "bias": (2,)}
        params["critic"] = {leaf: rng.normal(0, 0.7, shape) for leaf, shape in shapes.items()}
        if name in ("iql", "ifql", "idql"):
            params["value"] = {leaf: rng.normal(0, 0.5, D) for leaf in ("weight", "curve")} | {"bias": np.asarray(0.1)}
        return jax.tree.map(jnp.asarray, params)

    params, slow = drawn(), drawn()
    return state_with(told_of(name, told), params, {target: slow[target] for target in TARGETS[name]})


def batch_of(seed: int = 0) -> Batch:
    """Transitions with the data's next actions, of which one row does not count."""
    batch, rng = transitions(seed), np.random.default_rng(seed + 100)
    return {**batch, "next_actions": jnp.asarray(rng.uniform(-1, 1, (B, A))), "valid": jnp.arange(B) != 4.0}


def run(name: str, told: dict[str, Any] | None = None, step: int = 0, seed: int = 0) -> Any:
    """States before and after an update, its metrics, and what a reference holds constant."""
    state, batch, key = state_of(name, told, seed).replace(step=jnp.int32(step)), batch_of(seed), jax.random.key(seed)
    after, metrics = compiled(agent_of(name, told))(state, batch, key)
    return state, after, metrics, Case(told_of(name, told), state, batch, key)


# ------------------------------------------------------------------------------------------------- losses by hand


class Plain:
    """Stands for a state: a configuration and parameters."""

    def __init__(self, name: str, told: dict[str, Any], params: Params, targets: Params) -> None:
        self.config, self.params, self.target_params = config_of(name, told), params, targets


def nets(**functions: Callable[..., Any]) -> Any:
    """Networks that are functions `(params, *inputs)` of their own entries, and the spec."""
    made = {
        name: lambda params, *inputs, name=name, f=f, **options: f(params[name], *inputs, **options)
        for name, f in functions.items()
    }
    return type("Nets", (), {name: staticmethod(f) for name, f in made.items()} | {"spec": SPEC})


def constant(params: jax.Array, *inputs: jax.Array) -> jax.Array:
    """The same values for all rows: `[heads]` to `[heads, B]`, or a scalar to `[B]`."""
    return jnp.broadcast_to(params[..., None], (*params.shape, len(inputs[0])))


def rows(**fields: Any) -> Batch:
    """Two transitions with rewards 1, of which the second terminates, γ = ½, and the actions (½, 0) and (0, −½)."""
    batch = {"observations": jnp.zeros((2, D)), "next_observations": jnp.zeros((2, D)), "rewards": jnp.ones(2)}
    batch |= {"actions": array([0.5, 0], [0, -0.5]), "discounts": array(0.5, 0), "valid": jnp.ones(2)}
    return batch | {"actions_valid": jnp.ones((2, 2))} | fields


# ---------------------------------------------------------------------------------------------- what moves when


def same(one: Any, other: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), one, other)))
