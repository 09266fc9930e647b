"""Choosing among several actions of a stochastic policy by its critics, shared by agents."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flowrl.networks import Network
from flowrl.train_state import Mode, Params, TrainState

Sampler = Callable[[jax.Array], jax.Array]
"""`key -> actions [..., A]` of the policy in given states."""
Critics = Callable[[jax.Array], jax.Array]
"""`actions [..., A] -> values [2, ...]` in the same states."""


def best_of_n(sample: Sampler, critics: Critics, key: jax.Array, candidates: int, temperature: jax.Array) -> jax.Array:
    """Draws several actions per state and keeps one by min Q: the best, or a draw from softmax(temperature · Q).

    Args:
        sample: The policy.
        critics: The twin critics.
        key: Random key.
        candidates: Number of actions drawn per state.
        temperature: `[]`, in units of 1/Q; 0 keeps the best.

    Returns:
        Actions `[..., A]`.
    """
    sample_key, choice_key = jax.random.split(key)
    actions = jax.vmap(sample)(jax.random.split(sample_key, candidates))
    values = jax.vmap(critics)(actions).min(axis=1)
    drawn = jax.random.categorical(choice_key, temperature * values, axis=0)
    chosen = jnp.where(temperature > 0, drawn, values.argmax(axis=0))
    return jnp.take_along_axis(actions, chosen[None, ..., None], axis=0)[0]


def choose(
    sample: Sampler,
    critic: Network,
    candidates: int,
    policy: Params,
    observations: jax.Array,
    key: jax.Array,
    mode: Mode,
) -> jax.Array:
    """One draw of the policy, or in mode `best_of_n` the best of several by Q; exploration is the policy's own noise.

    Args:
        sample: The policy's draws at `observations`.
        critic: Maps `[..., D]` and `[..., A]` to `[2, ...]`.
        candidates: Number of draws to choose from.
        policy: As `policy` returns it.
        observations: `[..., D]`.
        key: Random key.
        mode: How to act.

    Returns:
        Actions `[..., A]`.
    """
    if mode != "best_of_n":
        return sample(key)
    critics = partial(critic.apply, policy["critic"], observations)
    return best_of_n(sample, critics, key, candidates, policy["temperature"])


def policy(config: Any, actor: str, state: TrainState) -> dict[str, Any]:
    """Returns what acting needs of an agent with `candidates`: its actor, and for a choice the target critics.

    Args:
        config: Has `candidates`.
        actor: Which actor acts, `params` or `target_params`.
        state: The agent's state.
    """
    arrays = {"actor": getattr(state, actor)["actor"]}
    if config.candidates == 1:
        return arrays
    temperature = state.hyper["candidate_temperature"]
    return arrays | {"critic": state.target_params["critic"], "temperature": temperature}


def evaluations(config: Any) -> tuple[Mode, ...]:
    """Returns the modes in which an agent with `candidates` is evaluated."""
    return ("eval",) if config.candidates == 1 else ("eval", "best_of_n")
