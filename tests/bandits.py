"""A problem of one state and one action for agents that learn offline: data of two kinds, and their rewards."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from small_agents import config_of

from flowrl import agents
from flowrl.agent import Agent
from flowrl.config import as_arrays
from flowrl.data.samplers import Transitions
from flowrl.networks import Spec
from flowrl.train_state import TrainState

ROWS = 64
Actions = Callable[[jax.Array, int], jax.Array]


def anywhere(key: jax.Array, rows: int) -> jax.Array:
    """Actions uniform over [−1, 1]."""
    return jax.random.uniform(key, (rows,), minval=-1.0, maxval=1.0)


def two_modes(key: jax.Array, rows: int) -> jax.Array:
    """Actions ±0.6, as many of either."""
    return 0.6 * jax.random.rademacher(key, (rows,), jnp.float32)


def near_half(a: jax.Array) -> jax.Array:
    """1 − (a − 0.5)²."""
    return 1 - (a - 0.5) ** 2


def positive(a: jax.Array) -> jax.Array:
    """1 for positive actions, −1 for others."""
    return jnp.sign(a)


@functools.cache
def _program(name: str, structure: Any, data: Actions, reward: Callable[[jax.Array], jax.Array], steps: int) -> Any:
    agent = agents.build(name, jax.tree.unflatten(structure, [0.0] * structure.num_leaves), Spec.of_sizes(1, 1))

    def step(i: jax.Array, state: TrainState) -> TrainState:
        data_key, update_key = jax.random.split(jax.random.fold_in(jax.random.key(1), i))
        a, one = data(data_key, ROWS), jnp.ones((ROWS, 1))
        fields = {"observations": one, "next_observations": one, "actions": a[:, None], "rewards": reward(a)}
        batch = Transitions(0.9).complete({**fields, "masks": jnp.zeros(ROWS)})
        return agent.update(state, batch, update_key)[0]

    return agent, jax.jit(agent.init), jax.jit(lambda state: jax.lax.fori_loop(0, steps, step, state))


def trained(
    name: str,
    told: Mapping[str, Any],
    data: Actions,
    reward: Callable[[jax.Array], jax.Array],
    steps: int,
    start: TrainState | None = None,
) -> tuple[Agent, TrainState]:
    """An agent and its state after some updates, of a new state or of `start` with this configuration."""
    config = config_of(name, {"learning_rate": 3e-3, "critic.target_rate": 0.05, **told})
    agent, init, train = _program(name, jax.tree.structure(config), data, reward, steps)
    return agent, train(init(jax.random.key(0), config) if start is None else start.replace(config=as_arrays(config)))


def actions_of(agent: Agent, state: TrainState, evaluation: str = "eval", number: int = 500) -> np.ndarray:
    """Actions that it takes in the one state, as one of its evaluations has it."""
    policy = agent.policy(state.replace(config=agent.evaluations(state.config)[evaluation]))
    return np.asarray(agent.act(policy, {"observations": jnp.ones((number, 1))}, jax.random.key(3)))[:, 0]
