"""The single-task agents with tiny networks, whose derivatives are short and known."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from small_agents import SPEC, A, D, state_with
from small_agents import config_of as told_config

from flowrl import agents
from flowrl.agent import Agent
from flowrl.agents import bc, cal_ql
from flowrl.networks import Distilled, Network, Networks
from flowrl.train_state import Params, TrainState

NAMES = ("sscp", "ofql", "fql", "bc")
TARGETS = {
    "sscp": ("actor", "critic"), "ofql": ("actor", "critic"), "fql": ("critic",), "bc": (),
    "sac": ("critic",), "td3": ("actor", "critic"), "cal_ql": ("critic",),
}  # fmt: skip
# Off the defaults and all different, so that no two can be mistaken for one another.
SHARED = {"learning_rate": 0.01, "discount": 0.9, "critic.target_rate": 0.2}
ENTROPY = {"target_entropy": -0.7, "initial_temperature": 0.6}
TOLD: dict[str, dict[str, Any]] = {
    "sscp": {**SHARED, "flow_alpha": 0.7, "completion_alpha": 1.3, "q_alpha": 0.4, "actor_target_rate": 0.3},
    "ofql": {
        **SHARED, "q_alpha": 0.6, "actor_target.rate": 0.3, "flow.adaptive_power": 0.8, "flow.adaptive_constant": 0.1,
    },
    "fql": {**SHARED, "alpha": 1.7, "q_alpha": 0.6},
    "bc": {"learning_rate": 0.01},
    "sac": {**SHARED, **ENTROPY},
    "td3": {**SHARED, "target_noise": 0.8, "noise_clip": 0.5, "explore_noise": 0.3},
    "cal_ql": {**SHARED, **ENTROPY, "actor_learning_rate": 0.002, "conservative_weight": 1.7, "proposals": 3},
}  # fmt: skip


# --- networks ---


def field(xp: Any, params: Any, *parts: Any) -> Any:
    """1.5·tanh(W x + b): a network whose derivatives are short, and whose outputs leave [−1, 1]."""
    return 1.5 * xp.tanh(xp.concatenate(parts, axis=-1) @ params["kernel"] + params["bias"])


def critics(xp: Any, params: Any, observations: Any, actions: Any) -> Any:
    """Two values, each b + w·[s, a] + (c·a)²: `[2, ...]`."""
    inputs = xp.concatenate([observations, actions], axis=-1)
    values = inputs @ params["weight"].T + (actions @ params["curve"].T) ** 2 + params["bias"]
    return xp.moveaxis(values, -1, 0)


@dataclasses.dataclass(frozen=True)
class Stub:
    """Stands in for a module: a function of its parameters and inputs."""

    function: Callable[..., Any]

    def apply(self, params: Any, *inputs: Any, **options: Any) -> Any:
        return self.function(params, *inputs, **options)


def drawn_params(rng: np.random.Generator, times: int, spread: float) -> Params:
    """Parameters of a `field` of states, actions and some times, and of `critics`, in double precision."""
    shapes = {"weight": (2, D + A), "curve": (2, A), "bias": (2,)}
    actor = {"kernel": rng.normal(0, spread, (D + A + times, A)), "bias": rng.normal(0, 0.3, A)}
    critic = {name: rng.normal(0, 0.7, shape) for name, shape in shapes.items()}
    return jax.tree.map(jnp.asarray, {"actor": actor, "critic": critic})


def network(name: str, function: Callable[..., Any]) -> Network:
    """A network that computes `function(params, *inputs)`."""
    return Network(name, Stub(function), ())  # type: ignore[arg-type]


def halves(params: Any, observations: jax.Array) -> Any:
    """Means and log standard deviations: the halves of one field."""
    return jnp.split(field(jnp, params, observations), 2, axis=-1)


def apart(params: Any, observations: jax.Array, actions: jax.Array) -> jax.Array:
    """Twin critics, each at actions of its own."""
    return jnp.stack([critics(jnp, params, observations, own)[i] for i, own in enumerate(actions)])


def squashed(params: Any, observations: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Actions and log densities by the change of variables, as it stands in textbooks."""
    means, log_stds = np.split(field(np, params, observations), 2, axis=-1)
    before = means + np.exp(log_stds) * noise
    normal = np.exp(-0.5 * noise**2) / np.sqrt(2 * np.pi) / np.exp(log_stds)
    return np.tanh(before), np.log(normal / (1 - np.tanh(before) ** 2)).sum(axis=-1)


ACTOR, CRITIC = network("actor", functools.partial(field, jnp)), network("critic", functools.partial(critics, jnp))
NETWORKS: dict[str, Any] = {
    "sscp": Networks(SPEC, ACTOR, CRITIC),
    "ofql": Networks(SPEC, ACTOR, CRITIC),
    "fql": Distilled(SPEC, network("flow", functools.partial(field, jnp)), ACTOR, CRITIC),
    "bc": bc.Networks(SPEC, ACTOR),
    "sac": Networks(SPEC, network("actor", halves), CRITIC),
    "td3": Networks(SPEC, ACTOR, CRITIC),
    "cal_ql": cal_ql.Networks(SPEC, network("actor", halves), CRITIC, network("critic", apart)),
}


def config_of(name: str, told: dict[str, Any]) -> Any:
    return told_config(name, TOLD[name] | told)


@functools.cache
def _agent(name: str, structure: Any) -> Agent:
    config = jax.tree.unflatten(structure, [0.0] * structure.num_leaves)
    return dataclasses.replace(agents.load(name).make, networks=lambda config, spec: NETWORKS[name])(config, SPEC)


def agent_of(name: str, told: dict[str, Any] | None = None) -> Agent:
    """The agent with tiny networks in place of its own."""
    return _agent(name, jax.tree.structure(config_of(name, told or {})))


def stub_params(name: str, config: Any, rng: np.random.Generator) -> Params:
    """Random parameters, float64: no two heads alike, no bias zero."""

    def dense(inputs: int, outputs: int = A) -> dict[str, np.ndarray]:
        return {"kernel": rng.normal(0, 0.6, (inputs, outputs)), "bias": rng.normal(0, 0.3, outputs)}

    flows = {"sscp": D + A + 2, "ofql": D + A + 2, "fql": D + A, "td3": D}
    params: dict[str, Any]
    if name == "bc":
        return {"actor": dense(D if config.distribution == "gaussian" else D + A + 1)}
    params = {"actor": dense(flows[name]) if name in flows else dense(D, 2 * A)}
    if name == "fql":
        params["flow"] = dense(D + A + 1)
    shapes = {"weight": (2, D + A), "curve": (2, A), "bias": (2,)}
    params["critic"] = {leaf: rng.normal(0, 0.7, shape) for leaf, shape in shapes.items()}
    if name in ("sac", "cal_ql"):
        params["temperature"] = {"log": rng.normal(-1, 0.3)}
    if name == "cal_ql" and config.lagrange:
        params["multiplier"] = {"log": np.asarray(0.4)}
    return params


def state_of(name: str, seed: int = 0, told: dict[str, Any] | None = None) -> TrainState:
    """A state with slow copies unlike the trained networks; float64 where JAX has it enabled."""
    config, rng = config_of(name, told or {}), np.random.default_rng([seed, len(name)])
    params, slow = (jax.tree.map(jnp.asarray, stub_params(name, config, rng)) for _ in range(2))
    return state_with(config, params, {network: slow[network] for network in TARGETS[name]})
