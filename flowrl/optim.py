"""The one place that takes gradients and applies an optimizer, and the one place that averages parameters."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flowrl.train_state import ADAM, Metrics, Params, TrainState


def descend(
    state: TrainState,
    loss_fn: Callable[[Params], tuple[jax.Array, Metrics]],
    names: tuple[str, ...],
    learning_rate: jax.Array | None = None,
) -> tuple[TrainState, Metrics]:
    """Takes one Adam step on the networks in `names`; all others are constants.

    The gradient is joint: a representation that several losses share receives the sum of theirs. Where there is a
    `hyper["max_grad_norm"]`, each network's gradient is clipped to it.

    Args:
        state: State whose `params` the loss is differentiated at.
        loss_fn: Maps parameters of all networks to a scalar loss and metrics.
        names: The networks to train.
        learning_rate: Size of the step `[]`; by default `hyper["learning_rate"]`.

    Returns:
        The state with moved parameters and moments, its step counter and targets untouched, and the metrics.
    """
    grads, metrics = gradients(state, loss_fn, names)
    return step(state, grads, learning_rate), metrics


def gradients(
    state: TrainState, loss_fn: Callable[[Params], tuple[jax.Array, Metrics]], names: tuple[str, ...]
) -> tuple[dict[str, Any], Metrics]:
    """Returns the gradient of a loss by the networks in `names`, one entry each, and the loss's metrics."""
    trained = {name: state.params[name] for name in names}
    return jax.grad(lambda params: loss_fn({**state.params, **params}), has_aux=True)(trained)


def step(state: TrainState, grads: Mapping[str, Any], learning_rate: jax.Array | None = None) -> TrainState:
    """Takes one Adam step along gradients of some networks, clipped as `descend` says.

    Args:
        state: State whose `params` and moments move.
        grads: One entry for each network to move.
        learning_rate: Size of the step `[]`; by default `hyper["learning_rate"]`.
    """
    rate = state.hyper["learning_rate"] if learning_rate is None else learning_rate
    params, opt_state = dict(state.params), dict(state.opt_state)
    for name in grads:
        clips = "max_grad_norm" in state.hyper
        gradient = clip_norm(grads[name], state.hyper["max_grad_norm"]) if clips else grads[name]
        direction, opt_state[name] = ADAM.update(gradient, state.opt_state[name])
        updates = jax.tree.map(lambda d: -rate * d, direction)
        params[name] = optax.apply_updates(state.params[name], updates)
    return state.replace(params=params, opt_state=opt_state)


def every(
    interval: int, state: TrainState, move: Callable[[TrainState], tuple[TrainState, Metrics]]
) -> tuple[TrainState, Metrics]:
    """Does `move(state)` at updates 0, `interval`, 2·`interval`, …, and nothing at the others.

    Its metrics are `interval` times too large where it is done and 0 elsewhere, so that their mean over updates is the
    mean over moves. The step counter is shared by mapped runs, so that the others really cost nothing.
    """
    if interval == 1:
        return move(state)

    def due(state: TrainState) -> tuple[TrainState, Metrics]:
        state, metrics = move(state)
        return state, {name: interval * value for name, value in metrics.items()}

    def idle(state: TrainState) -> tuple[TrainState, Metrics]:
        names = jax.eval_shape(move, state)[1]
        return state, {name: jnp.zeros(value.shape, value.dtype) for name, value in names.items()}

    return jax.lax.cond(state.step % interval == 0, due, idle, state)


def clip_norm(grads: Params, max_norm: jax.Array) -> Params:
    """Scales a gradient down to the norm `max_norm` `[]` where it is larger; 0 leaves it as it is."""
    norm = optax.global_norm(grads)
    scale = jnp.where(max_norm > 0, jnp.minimum(1.0, max_norm / (norm + 1e-6)), 1.0)
    return jax.tree.map(lambda g: g * scale, grads)


def polyak(state: TrainState, rates: Mapping[str, jax.Array], toward: Params | None = None) -> TrainState:
    """Moves target networks toward trained ones: p̄ ← (1 − ρ) p̄ + ρ p.

    Args:
        state: State after the gradient step.
        rates: ρ `[]` for each target network to move.
        toward: The p; by default the parameters in `state`. Code that follows OGBench's gives those before the step.
    """
    params = state.params if toward is None else toward
    moved = {
        name: optax.incremental_update(params[name], state.target_params[name], rate) for name, rate in rates.items()
    }
    return state.replace(target_params={**state.target_params, **moved})
