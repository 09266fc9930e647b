"""The ways in which a function is tested: as written, under jit and under vmap."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

Way = Callable[[Callable[..., Any]], Callable[..., Any]]


def mapped_twice(function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs `function` on two copies of its arguments, one of them of ones, under vmap; returns the other's result."""

    def run(*args: Any) -> Any:
        doubled = jax.tree.map(lambda x: jnp.stack([jnp.ones_like(x), jnp.asarray(x)]), args)
        return jax.tree.map(lambda x: x[1], jax.vmap(function)(*doubled))

    return run


each_way = pytest.mark.parametrize("way", [lambda f: f, jax.jit, mapped_twice], ids=["plain", "jit", "vmap"])

variants = pytest.mark.parametrize("variant", [lambda f: f, jax.jit], ids=["plain", "jit"])


def array(*values: Any) -> jax.Array:
    """A float32 array."""
    return jnp.asarray(values, jnp.float32)
