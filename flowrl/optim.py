"""The one place that takes gradients and applies an optimizer, and the one place that averages parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flowrl.config import config, put, traced
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
    clip: "Clip | None" = None,
    decays: Mapping[str, Scalar] | None = None,
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
        clip: What is done to gradients that are too large.
        decays: The share `[]` of parameters that is taken off, times the step size, of networks that decay (AdamW,
            https://arxiv.org/abs/1711.05101).

    Returns:
        The state with moved parameters and moments, its step counter and targets untouched, and the metrics.
    """
    grads, metrics = gradients(nets, state, batch, key, losses, tuple(rates))
    return step(state, grads, rates, clip, decays), metrics


def in_turn(
    nets: Any,
    state: TrainState[C],
    batch: Batch,
    key: jax.Array,
    losses: Sequence[LossFn[C]],
    rates: Mapping[str, Scalar],
    decays: Mapping[str, Scalar] | None = None,
) -> tuple[TrainState[C], Metrics]:
    """Takes an Adam step for each network in `rates` by the loss at its place, each where those before have led.

    Arguments and results are those of `descend`; each loss has a key of its own.
    """
    metrics: Metrics = {}
    for own, loss, name in zip(jax.random.split(key, len(losses)), losses, rates, strict=True):
        state, more = descend(nets, state, batch, own, (loss,), {name: rates[name]}, decays=decays)
        metrics |= more
    return state, metrics


class Stage(NamedTuple, Generic[C]):
    """What is learnt at a time: losses, and the networks that descend them."""

    losses: Sequence[LossFn[C]]
    networks: Sequence[str]


def in_stages(
    steps: int,
    nets: Any,
    state: TrainState[C],
    batch: Batch,
    key: jax.Array,
    stages: tuple[Stage[C], Stage[C]],
    rates: Mapping[str, Scalar],
    clip: "Clip | None" = None,
) -> tuple[TrainState[C], Metrics]:
    """Descends the losses of values alone for some updates, then those of policies alone, which begin there.

    Each update then costs no more than its stage. The metrics of the other stage are 0.

    Args:
        steps: Updates of the first stage; 0: all losses are descended jointly, by all networks in `rates`.
        stages: Values, and policies on values that stay. The step counter is shared by mapped runs.

    The other arguments, and the results, are those of `descend`.
    """
    several, values = (*stages[0].losses, *stages[1].losses), len(stages[0].losses)
    if not steps:
        return descend(nets, state, batch, key, several, rates, clip)
    keys = [*jax.random.split(key, len(several))]

    def alone(stage: Stage[C], keys: Sequence[jax.Array]) -> Callable[[TrainState[C]], tuple[TrainState[C], Metrics]]:
        own = {name: rates[name] for name in stage.networks}
        return lambda state: descend(nets, state, batch, keys, stage.losses, own, clip)

    moves = alone(stages[0], keys[:values]), alone(stages[1], keys[values:])
    names = {name: x for move in moves for name, x in jax.eval_shape(move, state)[1].items()}
    resting = {name: jnp.zeros(x.shape, x.dtype) for name, x in names.items()}

    def filled(moved: TrainState[C], metrics: Metrics) -> tuple[TrainState[C], Metrics]:
        return moved, resting | metrics

    first, second = (lambda state, move=move: filled(*move(state)) for move in moves)
    return jax.lax.cond(state.step < steps, first, second, state)


def stage(steps: int, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns whether values learn at an update `step` `[]`, 1 or 0 `[]`, and the updates since that became so `[]`.

    Args:
        steps: Updates after which values stay; 0: never.
        step: Updates before.
    """
    learn = jnp.logical_or(steps == 0, step < steps)
    return learn.astype(jnp.float32), jnp.where(learn, step, step - steps)


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
    clip: "Clip | None" = None,
    decays: Mapping[str, Scalar] | None = None,
) -> TrainState[C]:
    """Takes one Adam step along gradients of some networks; arguments as for `descend`."""
    params, opt_state, grads = dict(state.params), dict(state.opt_state), {name: grads[name] for name in rates}
    grads = grads if clip is None else clip(grads)
    for name, rate in rates.items():
        direction, opt_state[name] = ADAM.update(grads[name], state.opt_state[name])
        if decays and name in decays:
            decay = decays[name]
            direction = jax.tree.map(lambda d, p, decay=decay: d + decay * p, direction, state.params[name])
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


@config
class LateTarget:
    """When a slow copy follows: at first not, or at another rate, then at some of the updates (DQL's code)."""

    rate: float = traced(0.005, "Polyak rate of the slow copy of the policy.", high=1.0)
    start: int = traced(1000, "Updates before that copy first moves at this rate.")
    interval: int = traced(5, "Updates between its moves.", low=1)
    early: float = traced(0.0, "Its rate until then: 0 leaves it as it was, 1 copies.", high=1.0)

    def at(self, step: jax.Array) -> jax.Array:
        """Returns the rate `[]` at an update, 0 where it stays."""
        return jnp.where(step % self.interval == 0, jnp.where(step >= self.start, self.rate, self.early), 0.0)


@config
class CosineDecay:
    """How a step size rises from 0 and then falls along half a cosine."""

    final: float = traced(1e-5, "The step size in the end.")
    warmup: float = traced(0.05, "Share of the steps in which it rises.", high=1.0)
    steps: int = traced(1_000_000, "Steps after which it has fallen: those of the whole training; 0: it stays.")

    def note(self, prefix: str) -> str:
        """Says when the step size comes to its end, which no length of the training changes."""
        steps, final = f"{self.steps:,} steps ({prefix}steps)", f"{float(self.final):g}"
        return (
            f"after {steps}, of a stage where there are two, the step size has fallen to {final}" if self.steps else ""
        )

    def __call__(self, rate: Scalar, done: Scalar) -> jax.Array:
        """Returns the step size `[]` after `done` steps of one whose height is `rate`."""
        rise = jnp.floor(self.warmup * self.steps)
        fallen = jnp.clip((done - rise) / jnp.maximum(self.steps - rise, 1), 0.0, 1.0)
        falling = self.final + (rate - self.final) * 0.5 * (1 + jnp.cos(jnp.pi * fallen))
        rising = done / jnp.maximum(rise, 1) * rate
        return jnp.where(jnp.asarray(self.steps) > 0, jnp.where(done < rise, rising, falling), rate)


def undecayed(config: Any) -> Any:
    """Returns the configuration of an agent online, where training has no length: the step size `decay` stays."""
    return put(config, {"decay.steps": config.decay.steps * 0})  # an array, where runs are mapped


class Clip(NamedTuple):
    """How gradients are scaled down: to a norm, where theirs is larger.

    Attributes:
        norm: It `[]`; 0 leaves all gradients as they are.
        jointly: The norm is that of all networks' gradients together, which are scaled by one factor.
        ensembles: Networks of which each head, along the first axes, is clipped by itself.
        slack: What is added to a norm before it is compared: 1e-6 in PyTorch, 0 in Optax.
    """

    norm: Scalar
    jointly: bool = False
    ensembles: Sequence[str] = ()
    slack: float = 1e-6

    def __call__(self, grads: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the gradients of some networks, scaled."""
        if self.jointly:
            return self.one(dict(grads))
        return {name: (jax.vmap(self.one) if name in self.ensembles else self.one)(g) for name, g in grads.items()}

    def one(self, grads: Any) -> Any:
        """Scales what has one norm."""
        norm = optax.global_norm(grads)
        scale = jnp.where(jnp.asarray(self.norm) > 0, jnp.minimum(1.0, self.norm / (norm + self.slack)), 1.0)
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
