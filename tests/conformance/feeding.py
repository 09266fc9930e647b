"""Random draws from a list in place of `jax.random`'s."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .mapping import Draw

KINDS = ("normal", "uniform", "randint", "bernoulli")


class Feeder:
    """Gives out draws in order; a key that is seen again gets the draw that it had."""

    def __init__(self, order: Sequence[Draw], values: Mapping[str, np.ndarray]) -> None:
        self.order = list(order)
        self.values = values
        self.seen: dict[Any, jax.Array] = {}

    def draw(self, kind: str, key: Any, shape: tuple[int, ...]) -> jax.Array:
        """Returns the next draw, of that shape; under `vmap` over keys the whole of it, one row per key."""
        mapped = isinstance(key, jax.core.Tracer)
        name = None if mapped else (kind, jax.random.key_data(key).tobytes(), shape)
        if name in self.seen:
            return self.seen[name]
        assert self.order, f"a {kind} of shape {shape} is drawn that the mapping does not name"
        due = self.order.pop(0)
        assert due.kind == kind, f"a {kind} of shape {shape} is drawn where the mapping has {due}"
        parts = [due.arrange(self.values[role]) for role in due.roles]
        array = jnp.asarray(parts[0] if len(parts) == 1 else np.stack(parts))
        if array.size == np.prod(shape, dtype=int):
            array = array.reshape(shape)
        else:
            assert mapped, f"a {kind} of shape {shape} is drawn where {due} has {array.shape}"
            array = _per_key(array, key, shape)
        if name is not None:
            self.seen[name] = array
        return array


def _per_key(array: jax.Array, key: Any, shape: tuple[int, ...]) -> jax.Array:
    """Returns `array` `[keys, *shape]` as what a function of each key returns under `vmap`."""
    row = jax.custom_batching.custom_vmap(lambda key: jnp.zeros(shape, array.dtype))

    @row.def_vmap
    def rows(axis_size: int, in_batched: Any, key: Any) -> tuple[jax.Array, bool]:
        return array.reshape(axis_size, *shape), True

    return row(key)


@contextlib.contextmanager
def fed(order: Sequence[Draw], values: Mapping[str, np.ndarray]) -> Iterator[None]:
    """Within, the functions of `jax.random` give out `values` in the order of `order`, and all of them must be drawn."""
    feeder, own = Feeder(order, values), {kind: getattr(jax.random, kind) for kind in KINDS}

    def fake(kind: str) -> Any:
        def function(key: Any, *arguments: Any, **named: Any) -> jax.Array:
            shape = named.get("shape", arguments[kind == "bernoulli" :][:1] or ())
            return feeder.draw(kind, key, tuple(shape[0] if shape and isinstance(shape[0], tuple) else shape))

        return function

    try:
        for kind in KINDS:
            setattr(jax.random, kind, fake(kind))
        yield
    finally:
        for kind, function in own.items():
            setattr(jax.random, kind, function)
    assert not feeder.order, f"not drawn: {feeder.order}"
