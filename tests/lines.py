"""A line of cells with two walks, and a training of goal-conditioned agents on data as small."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from small_agents import config_of

from flowrl import agents
from flowrl.agent import Agent
from flowrl.config import put
from flowrl.data.dataset import Dataset, from_arrays
from flowrl.networks import Spec
from flowrl.random_streams import stream_key
from flowrl.train_state import TrainState

CELLS, GAMMA = 7, 0.8


def line() -> Dataset:
    """A line of cells, seen as one-hot vectors, walked once to the right and once to the left.

    Both walks end with a row that has no transition; it repeats the last cell, so that every cell is a goal.
    """
    right = [*range(CELLS), CELLS - 1]
    cells = np.array(right + [CELLS - 1 - c for c in right])
    terminals = np.zeros(2 * (CELLS + 1), bool)
    terminals[[CELLS, 2 * CELLS + 1]] = True
    actions = np.repeat([[0.8], [-0.8]], CELLS + 1, axis=0)
    return from_arrays(
        {
            "observations": np.eye(CELLS, dtype=np.float32)[cells],
            "actions": actions.astype(np.float32),
            "terminals": terminals,
        }
    )


def cell_pairs() -> tuple[np.ndarray, np.ndarray]:
    """All pairs of different cells (s, g)."""
    s, g = np.divmod(np.arange(CELLS**2), CELLS)
    return s[s != g], g[s != g]


def trained(
    name: str, told: Mapping[str, Any], dataset: Dataset, updates: int = 600, *,
    first: Mapping[str, Any] | None = None, options: Any = None,
) -> tuple[Agent, TrainState]:  # fmt: skip
    """An agent after its updates, and as many with a fifth of its learning rate.

    Args:
        name: Its name.
        told: What of its configuration differs.
        dataset: What it learns from; goals are states.
        updates: How many.
        first: Parameters that it begins with in place of its own.
        options: Those of the compiler; by default it compiles in haste, which most of the time goes to.
    """
    config, fields = config_of(name, told), dataset.fields
    cells = fields["observations"].shape[-1]
    agent = agents.build(name, config, Spec.of_sizes(cells, fields["actions"].shape[-1], cells))
    key = jax.random.key(0)

    def step(_: int, state: TrainState) -> TrainState:
        data_key, update_key = (stream_key(key, stream, state.step) for stream in ("data", "update"))
        return agent.update(state, agent.batch(state.config).sample(data_key, dataset, 128), update_key)[0]

    @functools.partial(jax.jit, compiler_options=options)
    def train(state: TrainState, factor: float) -> TrainState:
        """Updates with a learning rate times `factor`."""
        rate = state.config.learning_rate * factor
        return jax.lax.fori_loop(0, updates, step, state.replace(config=put(state.config, {"learning_rate": rate})))

    start = jax.jit(agent.init)(key, config)
    return agent, train(train(start.replace(params={**start.params, **(first or {})}), 1.0), 0.2)


def steps_toward(agent: Agent, state: TrainState) -> np.ndarray:
    """First actions in all cells for all goals at least two cells away, positive where they lead toward the goal."""
    s, g = cell_pairs()
    s, g = s[np.abs(s - g) >= 2], g[np.abs(s - g) >= 2]
    eye = np.eye(CELLS, dtype=np.float32)
    actions = agent.act(agent.policy(state), {"observations": eye[s], "goals": eye[g]}, jax.random.key(0))
    return np.asarray(actions)[:, 0] * np.sign(g - s)
