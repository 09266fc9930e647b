"""The one place that takes gradients and applies an optimizer, and the one place that averages parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flowrl.config import config, traced
from flowrl.train_state import Batch, C, Loss, Metrics, Params, Scalar, TrainState

ADAM = optax.scale_by_adam()
LossFn = Callable[[Any, Params, TrainState[C], Batch, jax.Array], Loss]
"""`(nets, params, state, batch, key) -> (loss, metrics)`: `params` are differentiated, all of `state` is constant."""


def descend(
    nets: Any,
    state: TrainState[C],
    batch: Batch,
    key: jax.Array | Sequence[jax.Array],
    losses: Sequence[LossFn[C]],
    rates: Mapping[str, Scalar],
    max_norm: Scalar | None = None,
    *,
    jointly: bool = False,
) -> tuple[TrainState[C], Metrics]:
    """Takes one joint Adam step: the losses are taken at the same parameters and summed.

    The gradient is joint: a representation that several losses share receives the sum of theirs.

    Args:
        nets: The networks, for the losses.
        state: State whose `params` the losses are differentiated at.
        batch: For the losses.
        key: Random key, split over the losses if they are several; or one for each loss.
        losses: What to descend.
        rates: Size of the step `[]` of each network to train; all others are constants.
        max_norm: The norm `[]` to which each network's gradient is clipped; 0 leaves it as it is.
        jointly: Whether that is the norm of all networks' gradients together, which are scaled by one factor.

    Returns:
        The state with moved parameters and moments, its step counter and targets untouched, and the metrics.
    """
    grads, metrics = gradients(nets, state, batch, key, losses, tuple(rates))
    return step(state, grads, rates, max_norm, jointly=jointly), metrics


def gradients(
    nets: Any,
    state: TrainState[C],
    batch: Batch,
    key: jax.Array | Sequence[jax.Array],
    losses: Sequence[LossFn[C]],
    names: Sequence[str],
) -> tuple[dict[str, Any], Metrics]:
    """Returns the gradient of the sum of losses by the networks in `names`, one entry each, and the metrics."""
    if isinstance(key, Sequence):
        keys: Any = key
    else:
        keys = jax.random.split(key, len(losses)) if len(losses) > 1 else [key]

    def total(trained: Params) -> Loss:
        params = {**state.params, **trained}
        found = [loss(nets, params, state, batch, keys[i]) for i, loss in enumerate(losses)]
        metrics = {name: value for _, own in found for name, value in own.items()}
        return sum((value for value, _ in found[1:]), found[0][0]), metrics

    return jax.grad(total, has_aux=True)({name: state.params[name] for name in names})


def step(
    state: TrainState[C],
    grads: Mapping[str, Any],
    rates: Mapping[str, Scalar],
    max_norm: Scalar | None = None,
    *,
    jointly: bool = False,
) -> TrainState[C]:
    """Takes one Adam step along gradients of some networks; arguments as for `descend`."""
    params, opt_state = dict(state.params), dict(state.opt_state)
    grads = {name: grads[name] for name in rates}
    if max_norm is not None:
        grads = clip_norm(grads, max_norm) if jointly else {n: clip_norm(g, max_norm) for n, g in grads.items()}
    for name, rate in rates.items():
        direction, opt_state[name] = ADAM.update(grads[name], state.opt_state[name])
        updates = jax.tree.map(lambda d, rate=rate: -rate * d, direction)
        params[name] = optax.apply_updates(state.params[name], updates)
    return state.replace(params=params, opt_state=opt_state)


def every(
    interval: int, state: TrainState[C], move: Callable[[TrainState[C]], tuple[TrainState[C], Metrics]]
) -> tuple[TrainState[C], Metrics]:
    """Does `move(state)` at updates 0, `interval`, 2·`interval`, …, and nothing at the others.

    Its metrics are `interval` times too large where it is done and 0 elsewhere, so that their mean over updates is the
    mean over moves. The step counter is shared by mapped runs, so that the others really cost nothing.
    """
    if interval == 1:
        return move(state)

    def due(state: TrainState[C]) -> tuple[TrainState[C], Metrics]:
        state, metrics = move(state)
        return state, {name: interval * value for name, value in metrics.items()}

    def idle(state: TrainState[C]) -> tuple[TrainState[C], Metrics]:
        names = jax.eval_shape(move, state)[1]
        return state, {name: jnp.zeros(value.shape, value.dtype) for name, value in names.items()}

    return jax.lax.cond(state.step % interval == 0, due, idle, state)


@config
class LinearDecay:
    """How a step size falls linearly from some update on."""

    final: float = traced(3e-5, "The step size in the end.")
    begin: int = traced(25_000, "Steps after which it begins to fall.")
    steps: int = traced(50_000, "Steps in which it falls.", low=1)

    def __call__(self, rate: Scalar, done: Scalar) -> jax.Array:
        """Returns the step size `[]` after `done` steps of one that begins at `rate`."""
        return rate + jnp.clip((done - self.begin) / self.steps, 0.0, 1.0) * (self.final - rate)


def clip_norm(grads: Any, max_norm: Scalar) -> Any:
    """Scales a gradient down to the norm `max_norm` `[]` where it is larger; 0 leaves it as it is."""
    largest = jnp.maximum(optax.global_norm(grads), max_norm)
    scale = jnp.where(jnp.asarray(max_norm) > 0, max_norm / largest, 1.0)
    return jax.tree.map(lambda g: g * scale, grads)


def polyak(state: TrainState[C], toward: Params, **rates: Scalar) -> TrainState[C]:
    """Moves target networks, p̄ ← (1 − ρ) p̄ + ρ p: `polyak(state, state.params, critic=0.005)`.

    Args:
        state: State whose targets move.
        toward: The p. Code that follows OGBench's gives the parameters from before the gradient step.
        rates: ρ `[]` for each target network to move.
    """
    moved = {
        name: optax.incremental_update(toward[name], state.target_params[name], rate) for name, rate in rates.items()
    }
    return state.replace(target_params={**state.target_params, **moved})
