"""Random draws from a list in place of `jax.random`'s.

An agent is given a `Key`, which is no key but remembers how it was made. So all can be compiled, a function that is
traced twice, as in `jax.lax.cond`, gets the same draws each time, and a key of many that `jax.vmap` maps over gets its
row. An agent that does more with keys than `split` and `fold_in` gets a real one, and is not compiled: there a key is
known by its value.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .mapping import Draw

KINDS = {"normal": 0, "uniform": 0, "randint": 0, "bernoulli": 1}
"""The functions that are fed, and where their shape stands among the arguments after the key."""


@jax.tree_util.register_pytree_node_class
class Key:
    """Stands for a key, or for as many as its newest index is long.

    Attributes:
        path: How it was made.
        index: Which of several keys it is at each split that was not taken apart, from the oldest.
    """

    def __init__(self, path: tuple[Any, ...] = (), index: tuple[Any, ...] = ()) -> None:
        self.path, self.index = path, index

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return self.index, self.path

    @classmethod
    def tree_unflatten(cls, path: tuple[Any, ...], index: tuple[Any, ...]) -> "Key":
        return cls(path, index)

    def split(self, number: int = 2) -> "Key":
        """Returns `number` keys."""
        return Key((*self.path, "split"), (*self.index, jnp.arange(number)))

    def fold_in(self, data: Any) -> "Key":
        """Returns another key."""
        return Key((*self.path, f"fold {data}"), self.index)

    def __len__(self) -> int:
        return len(self.index[-1])

    def __getitem__(self, i: int) -> "Key":
        return Key((*self.path, i), self.index[:-1])

    def __iter__(self) -> Iterator["Key"]:
        return (self[i] for i in range(len(self)))


class Feeder:
    """Gives out draws in order; a key that is seen again gets the draw that it had."""

    def __init__(self, order: Sequence[Draw], values: Mapping[str, Any]) -> None:
        self.order = list(order)
        self.values = values
        self.seen: dict[Any, jax.Array] = {}

    def draw(self, kind: str, key: Any, shape: tuple[int, ...]) -> jax.Array:
        """Returns the draw of one key."""
        if not isinstance(key, Key):
            if isinstance(key, jax.core.Tracer):
                return _per_key(self._next(kind, shape), key, shape)
            key = Key((jax.random.key_data(key).tobytes(),))
        if (key.path, shape) not in self.seen:
            self.seen[key.path, shape] = self._next(kind, shape)
        array = self.seen[key.path, shape]
        rows = array.shape[: len(key.index)]
        assert array.size == np.prod((*rows, *shape)), f"a {kind} of shape {shape} is drawn, but given {array.shape}"
        return array.reshape(*rows, *shape)[key.index]

    def _next(self, kind: str, shape: tuple[int, ...]) -> jax.Array:
        assert self.order, f"a {kind} of shape {shape} is drawn that the mapping does not name"
        due = self.order.pop(0)
        assert due.kind == kind, f"a {kind} of shape {shape} is drawn where the mapping has {due}"
        parts = [jnp.asarray(due.arrange(self.values[role])) for role in due.roles]
        return parts[0] if len(parts) == 1 else jnp.stack(parts)


def _per_key(array: jax.Array, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns `array` `[keys, *shape]` as what a function of each key returns under `vmap`."""
    row = jax.custom_batching.custom_vmap(lambda key: jnp.zeros(shape, array.dtype))

    @row.def_vmap
    def rows(axis_size: int, in_batched: Any, key: Any) -> tuple[jax.Array, bool]:
        return array.reshape(axis_size, *shape), True

    return row(key)


@contextlib.contextmanager
def fed(order: Sequence[Draw], values: Mapping[str, Any], *, real: bool = False) -> Iterator[Any]:
    """Within, functions of `jax.random` take the key given and give out `values` in this order; all must be drawn.

    Args:
        order: The draws.
        values: The authors' by role.
        real: Whether the key is a real one.
    """
    feeder = Feeder(order, values)

    def fake(kind: str, place: int) -> Callable[..., Any]:
        def function(key: Any, *arguments: Any, **named: Any) -> jax.Array:
            return feeder.draw(kind, key, tuple(named.get("shape", arguments[place] if len(arguments) > place else ())))

        return function

    fakes = {kind: fake(kind, place) for kind, place in KINDS.items()}
    if not real:
        fakes |= {"split": Key.split, "fold_in": Key.fold_in}
    # Where it is made it is not used: the best of several actions, not a draw among them.
    fakes["categorical"] = lambda key, logits, axis=-1: logits.argmax(axis)
    own = {name: getattr(jax.random, name) for name in fakes}

    def either(name: str) -> Callable[..., Any]:
        """Other keys are those of initial values, whose shapes flax asks for."""
        return lambda key, *args, **named: (fakes if real or isinstance(key, Key) else own)[name](key, *args, **named)

    try:
        for name in fakes:
            setattr(jax.random, name, either(name))
        yield jax.random.key(0) if real else Key()
    finally:
        for name, function in own.items():
            setattr(jax.random, name, function)
    assert not feeder.order, f"not drawn: {feeder.order}"
