"""The one place that takes gradients and applies an optimizer, and the one place that averages parameters."""

from collections.abc import Callable, Mapping

import jax
import optax

from flowrl.train_state import ADAM, Metrics, Params, TrainState


def descend(
    state: TrainState, loss_fn: Callable[[Params], tuple[jax.Array, Metrics]], names: tuple[str, ...]
) -> tuple[TrainState, Metrics]:
    """Takes one Adam step, of size `hyper["learning_rate"]`, on the networks in `names`; all others are constants.

    The gradient is joint: a representation that several losses share receives the sum of theirs.

    Args:
        state: State whose `params` the loss is differentiated at.
        loss_fn: Maps parameters of all networks to a scalar loss and metrics.
        names: The networks to train.

    Returns:
        The state with moved parameters and moments, its step counter and targets untouched, and the metrics.
    """
    trained = {name: state.params[name] for name in names}
    grads, metrics = jax.grad(lambda params: loss_fn({**state.params, **params}), has_aux=True)(trained)
    params, opt_state = dict(state.params), dict(state.opt_state)
    for name in names:
        direction, opt_state[name] = ADAM.update(grads[name], state.opt_state[name])
        updates = jax.tree.map(lambda d: -state.hyper["learning_rate"] * d, direction)
        params[name] = optax.apply_updates(state.params[name], updates)
    return state.replace(params=params, opt_state=opt_state), metrics


def polyak(state: TrainState, rates: Mapping[str, jax.Array]) -> TrainState:
    """Moves target networks toward their trained ones: p̄ ← (1 − ρ) p̄ + ρ p.

    Args:
        state: State after the gradient step.
        rates: ρ `[]` for each target network to move.
    """
    moved = {
        name: optax.incremental_update(state.params[name], state.target_params[name], rate)
        for name, rate in rates.items()
    }
    return state.replace(target_params={**state.target_params, **moved})
