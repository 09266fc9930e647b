"""The state of a training run: a pytree of arrays, so that it scans, maps, shards and saves."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax

Params = Mapping[str, Any]
"""Network parameters, one entry per network."""
Batch = Mapping[str, jax.Array]
"""Named arrays with a leading batch axis `[B, ...]`, under OGBench's names."""
Metrics = dict[str, jax.Array]
"""Named float32 scalars, `critic/q_mean` and the like."""
Mode = Literal["eval", "explore", "best_of_n"]
"""How a policy acts: one action, as it gathers experience, or the best of several candidates by Q."""
Hyper = Mapping[str, jax.Array]
"""Named traced scalars that a sweep may map over."""

ADAM = optax.scale_by_adam()


class TrainState(flax.struct.PyTreeNode):
    """All that changes while an agent learns.

    Attributes:
        step: Updates done, int32 `[]`; shared by all mapped runs, so that delayed updates stay real conditionals.
        params: Trained parameters, one entry per network.
        target_params: Copies that follow slowly, for some of the networks; no optimizer ever sees them.
        opt_state: Adam's moments, one entry per network in `params`.
        hyper: Hyperparameters, strongly typed scalars `[]`.
        extras: Arrays without gradients, such as normalisers and running statistics.
    """

    step: jax.Array
    params: Params
    target_params: Params
    opt_state: Mapping[str, optax.OptState]
    hyper: Hyper
    extras: Mapping[str, Any]


def new_state(
    params: Params, targets: Iterable[str], hyper: Hyper, extras: Mapping[str, Any] | None = None
) -> TrainState:
    """Returns the state before the first update, with target copies of the networks named in `targets`.

    The targets are copies, not aliases: a donated state may not hold one buffer twice.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        target_params={name: jax.tree.map(jnp.copy, params[name]) for name in targets},
        opt_state={name: ADAM.init(params[name]) for name in params},
        hyper=hyper,
        extras=extras or {},
    )
