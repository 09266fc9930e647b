"""The state of a training run, and what leaves it: pytrees of arrays, so that they scan, map, shard and save."""

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import flax.struct
import jax
import optax

from flowrl.normalize import Normalizer

C = TypeVar("C")
"""An agent's configuration."""
Params = Mapping[str, Any]
"""Parameters of all networks, one entry per network."""
Batch = Mapping[str, jax.Array]
"""Named arrays with a leading batch axis `[B, ...]`, under OGBench's names; `discounts` are γⁿ · mask."""
Metrics = dict[str, jax.Array]
"""Named float32 scalars, `critic/q_mean` and the like."""
Loss = tuple[jax.Array, Metrics]
"""A scalar `[]` and the metrics on it."""
Scalar = jax.Array | float
"""A number `[]`."""


class TrainState(flax.struct.PyTreeNode, Generic[C]):
    """All that changes while an agent learns, and the configuration it learns by.

    Attributes:
        step: Updates done, int32 `[]`; shared by all mapped runs, so that delayed updates stay real conditionals.
        config: The agent's configuration, whose traced fields are leaves.
        params: Trained parameters, one entry per network or multiplier.
        target_params: Copies that follow slowly, for some of the networks; no optimizer ever sees them.
        opt_state: Adam's moments, one entry per entry of `params`.
        extras: Arrays without gradients, such as running statistics.
    """

    step: jax.Array
    config: C
    params: Params
    target_params: Params
    opt_state: Mapping[str, optax.OptState]
    extras: Mapping[str, Any]


class Policy(flax.struct.PyTreeNode, Generic[C]):
    """What leaves training: enough to act, and nothing else.

    Attributes:
        config: The agent's configuration; another one acts otherwise, with more candidates say.
        params: Parameters of the networks that act.
        normalizer: What the observations were normalised by in training, if they were.
    """

    config: C
    params: Params
    normalizer: Normalizer | None = None
