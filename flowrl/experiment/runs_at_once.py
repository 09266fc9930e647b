"""How many runs fit into the memory of the devices at once, estimated from the sizes of what they consist of."""

from functools import partial
from typing import Any

import jax

from flowrl.data import replay
from flowrl.data.samplers import Transitions
from flowrl.experiment.build import Parts, prepare
from flowrl.experiment.settings import Plan
from flowrl.machine.memory import fitting, free_bytes, size_of

PASSES = 4
"""How often the outputs of all layers are held for a batch: for several losses and targets, forward and backward. XLA
asks for a half to four fifths of what comes of this for SAC, FQL and GCIVL."""


def runs_that_fit(plan: Plan) -> int:
    """Returns how many of a plan's runs fit into one device's memory at once: all where nobody tells its size.

    The data are in memory while that is estimated. Runs that are trained one after another share the memory of work.
    """
    runs = len(plan.runs)
    if runs == 1 or free_bytes() is None:
        return runs
    parts = prepare(plan, plan.env.locate(plan.settings.data, workers=plan.settings.workers))
    kept, work = kept_bytes(parts), work_bytes(parts)
    serial = plan.settings.map == "serial"
    return fitting(free_bytes() or 0, work if serial else 0, kept if serial else kept + work, runs)


def kept_bytes(parts: Parts) -> int:
    """Returns what one run has all the time: its state with the optimizer's moments, its policy, its replay buffer."""
    state = _state(parts)
    return size_of((state, jax.eval_shape(parts.agent.policy, state), _buffer(parts)))


def work_bytes(parts: Parts) -> int:
    """Returns about what one run needs besides while it is at work: a new state, a batch, outputs of layers."""
    batch_size, kind, key = parts.plan.config.batch_size, parts.agent.batch(parts.plan.config), jax.random.key(0)
    if parts.dataset is None:
        batch: Any = jax.eval_shape(partial(replay.sample, batch_size=batch_size, kind=kind), key, _buffer(parts))
    else:
        batch = jax.eval_shape(partial(kind.sample, batch_size=batch_size), key, parts.dataset)
    state = _state(parts)
    # A kernel [..., inputs, outputs] gives as many numbers for each row as it has outputs.
    outputs = sum(leaf.size // leaf.shape[-2] for leaf in jax.tree.leaves(state.params) if leaf.ndim > 1)
    return size_of(state) + size_of(batch) + PASSES * 4 * batch_size * outputs


def _state(parts: Parts) -> Any:
    return jax.eval_shape(parts.agent.init, jax.random.key(0), parts.plan.config)


def _buffer(parts: Parts) -> Any:
    """Returns the shapes of one run's replay buffer; none where it learns from data alone."""
    kind, online = parts.agent.batch(parts.plan.config), parts.plan.settings.online
    if not online.steps or not isinstance(kind, Transitions):
        return ()
    return jax.eval_shape(partial(replay.empty, parts.facts.spec, online.capacity, kind, online.num_envs))
