"""Small agents for tests, each compiled once in a process, and states and batches for them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowrl import agents
from flowrl.agent import Agent
from flowrl.config import flatten, put, values
from flowrl.data.samplers import Transitions
from flowrl.networks import Spec
from flowrl.optim import ADAM
from flowrl.train_state import Batch, Params, TrainState

D, A, B = 3, 2, 6
"""Sizes of observations, which are goals too, of actions, and of batches."""
SPEC, GOAL_SPEC = Spec.of_sizes(D, A), Spec.of_sizes(D, A, D)


def config_of(name: str, told: Mapping[str, Any]) -> Any:
    """An agent's configuration with other values by dotted name."""
    return put(agents.default(name), told)


def with_config(state: TrainState, told: Mapping[str, float]) -> TrainState:
    """A state with other numbers in its configuration, of the same types."""
    known = values(state.config)
    return state.replace(config=put(state.config, {n: jnp.asarray(v, known[n].dtype) for n, v in told.items()}))


def state_with(config: Any, params: Params, targets: Params, extras: Mapping[str, Any] | None = None) -> TrainState:
    """A state before its first update, in JAX's default precision."""
    leaves = {entry.name: jnp.asarray(entry.value, entry.kind) for entry in flatten(config) if entry.traced}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        config=put(config, leaves),
        params=params,
        target_params=targets,
        opt_state={name: ADAM.init(params[name]) for name in params},
        extras=extras or {},
    )


AT_LEISURE: Any = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    **({"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 11) else {}),  # unknown to later ones
}
"""Options as outside of tests, which otherwise compile in haste."""


@functools.cache
def compiled(agent: Agent, optimised: bool = False) -> Callable[..., Any]:
    """The compiled update of an agent."""
    return jax.jit(agent.update, compiler_options=AT_LEISURE if optimised else None)


@functools.cache
def compiled_mapped(agent: Agent, batches: bool = False, optimised: bool = False) -> Callable[..., Any]:
    """The same for states with one step counter, and keys; with `batches` each state has its own batch."""

    def update(states: TrainState, batch: Batch, keys: jax.Array) -> Any:
        axes = jax.tree.map(lambda _: 0, states).replace(step=None)
        mapped = jax.vmap(agent.update, in_axes=(axes, 0 if batches else None, 0), out_axes=(axes, 0))
        return mapped(states, batch, keys)

    return jax.jit(update, compiler_options=AT_LEISURE if optimised else None)


def networks_of(agent: Agent) -> Any:
    """The networks that an agent's functions read."""
    return agent.act.args[-1]  # type: ignore[attr-defined]


def stack(trees: list[Any]) -> Any:
    """Trees of arrays as one with a new first axis; of states the first step counter."""
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *trees)
    return stacked.replace(step=trees[0].step) if isinstance(stacked, TrainState) else stacked


def transitions(seed: int = 0, discount: float = 0.9, rows: int = B) -> Batch:
    """Single transitions, some of them terminal; of the default precision."""
    rng = np.random.default_rng(seed)
    fields = {"observations": rng.normal(size=(rows, D)), "next_observations": rng.normal(size=(rows, D))}
    fields |= {"actions": rng.uniform(-1, 1, (rows, A)), "rewards": 2 * rng.normal(size=rows)}
    fields["masks"] = np.resize([1.0, 0, 1, 1, 1, 0], rows)
    return Transitions(discount).complete(jax.tree.map(lambda x: jnp.asarray(x, float), fields))


def goal_transitions(seed: int = 0, discount: float = 0.9) -> Batch:
    """Transitions with goals of all kinds, their rewards of any size, so that advantages have both signs."""
    rng = np.random.default_rng(seed)
    states = ("observations", "next_observations", "value_next_observations")
    fields = {name: rng.normal(size=(B, D)) for name in states}
    goals = ("value_goals", "actor_goals", "low_actor_goals", "high_actor_goals", "high_actor_targets")
    fields |= {name: rng.normal(size=(B, D)) for name in goals}
    masks = np.array([1, 0, 1, 1, 1, 0])
    fields |= {"actions": rng.uniform(-1, 1, (B, A)), "masks": masks, "rewards": 3 * rng.normal(size=B)}
    return Transitions(discount).complete({name: jnp.asarray(x, jnp.float32) for name, x in fields.items()})


def check_mapped(
    agent: Agent, states: list[TrainState], batch: Batch | list[Batch], optimised: bool = False, **bounds: float
) -> None:
    """Runs that are mapped are the runs alone: states, with one batch or each its own, and metrics within bounds."""
    own, keys = isinstance(batch, list), jax.random.split(jax.random.key(3), len(states))
    mapped = compiled_mapped(agent, batches=own, optimised=optimised)
    after, metrics = mapped(stack(states), stack(batch) if own else batch, keys)
    for i, state in enumerate(states):
        alone, told = compiled(agent, optimised)(state, batch[i] if own else batch, keys[i])
        one = jax.tree.map(lambda x, i=i: x[i], (after.replace(step=None), metrics))
        assert_close(one, (alone.replace(step=None), told), **bounds)


def gradients(after: TrainState) -> Params:
    """The gradients of a first step: from zero, Adam's mean becomes a tenth of them."""
    return {name: jax.tree.map(lambda m: m / 0.1, moments.mu) for name, moments in after.opt_state.items()}


def assert_close(one: Any, other: Any, rtol: float = 1e-6, atol: float = 1e-8) -> None:
    """Compares trees of arrays; `atol` is relative to an array's largest entry where that exceeds 1."""

    def compare(x: Any, y: Any) -> None:
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol * max(1.0, float(np.abs(y).max())))

    jax.tree.map(compare, one, other)


def assert_same(one: Any, other: Any) -> None:
    """Compares trees of arrays bit by bit."""
    jax.tree.map(np.testing.assert_array_equal, one, other)


def followed(slow: Params, toward: Params, rates: Mapping[str, float]) -> Params:
    """Slow copies after a step of size `rates` toward parameters."""
    return {
        name: jax.tree.map(lambda old, new, rate=rate: (1 - rate) * old + rate * new, slow[name], toward[name])
        for name, rate in rates.items()
    }
