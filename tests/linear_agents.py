"""Agents by hand: networks of one number each that do not read the state, two rows, and losses at given draws."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from conformance.feeding import fed
from conformance.mapping import draws
from stub_agents import network
from ways import Way, array

from flowrl.networks import Spec
from flowrl.train_state import Batch, Metrics, Params, TrainState

SMALL = Spec.of_sizes(1, 1)
ROWS: Batch = {
    "observations": jnp.zeros((2, 1)),
    "next_observations": jnp.zeros((2, 1)),
    "actions": array([0.5], [-1.0]),
    "rewards": array(1, -2),
    "discounts": array(0.5, 0),
    "valid": array(1, 1),
    "actions_valid": jnp.ones((2, 1)),
}


def times(params: Any, s: jax.Array, x: jax.Array, *t: jax.Array) -> jax.Array:
    """A velocity or an action, w x."""
    return params["w"] * x


def of_action(params: Any, s: jax.Array, a: jax.Array) -> jax.Array:
    """Twin values k a: `[2, B]`."""
    return params["k"][:, None] * a[..., 0]


ACTOR, CRITIC = network("actor", times), network("critic", of_action)


def found(
    way: Way, loss: Callable[..., Any], nets: Any, state: TrainState, order: Sequence[str], drawn: Mapping[str, Any],
    **batch: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """A loss with its metrics, and its gradient, at these draws."""

    def run(params: Params, batch: Batch) -> Any:
        with fed(draws(*order), {name: np.asarray(x, np.float32) for name, x in drawn.items()}) as key:
            return jax.value_and_grad(lambda p: loss(nets, p, state, batch, key), has_aux=True)(params)

    return way(run)(state.params, {**ROWS, **batch})


def assert_first_step(state: TrainState, after: TrainState, metrics: Metrics) -> None:
    """Every network moved; slow copies, which begin as the networks and follow those before the step, stayed."""
    for name in state.params:
        pairs = (jax.tree.leaves(x.params[name]) for x in (state, after))
        assert any((one != two).any() for one, two in zip(*pairs, strict=True)), name
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), after.target_params, state.target_params)
    assert all(np.isfinite(value) for value in metrics.values())
