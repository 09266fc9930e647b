"""Named random streams: every key is a function of the run's seed, the stream's name and a step."""

from typing import Literal

import jax

Stream = Literal["init", "data", "update", "act", "eval", "collect"]
_INDEX: dict[Stream, int] = {"init": 0, "data": 1, "update": 2, "act": 3, "eval": 4, "collect": 5}


def root_keys(seeds: jax.Array) -> jax.Array:
    """Returns the root keys `[R]` of runs with these seeds, uint32 `[R]`."""
    return jax.vmap(jax.random.key)(seeds)


def stream_key(root: jax.Array, stream: Stream, step: jax.Array | int = 0) -> jax.Array:
    """Returns the key of `stream` at `step` for the run whose key is `root` (`jax.random.key(seed)`).

    Because nothing is split off a running key, evaluating more often or logging at other steps cannot change training,
    and a resumed run needs only its seed and step.
    """
    return jax.random.fold_in(jax.random.fold_in(root, _INDEX[stream]), step)
