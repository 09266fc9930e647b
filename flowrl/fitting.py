"""How many of a plan's runs fit into the memory of the devices at once."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flowrl import config as configs
from flowrl.machine import devices, memory
from flowrl.online import empty_replays
from flowrl.parts import build_program, prepare, spec_of
from flowrl.random_streams import root_keys
from flowrl.settings import Plan

SMALL = 0.1
"""Runs whose states need less than this share of what is free surely fit."""


def runs_that_fit(plan: Plan) -> int:
    """Returns how many of a plan's runs fit into one device's memory at once: all where nobody tells its size.

    The program of two runs is compiled for one device, and XLA asked what it needs; the data are in memory while that
    is compared. Where all runs are small beside what is free, that is not done.
    """
    runs = len(plan.trials)
    if runs == 1 or memory.free_bytes() is None:
        return runs
    two = dataclasses.replace(plan, grid=plan.trials[:2])
    parts = prepare(two, plan.env.locate(plan.settings.data, workers=plan.settings.workers))
    program, count = build_program(parts), len(two.trials)
    keys = root_keys(jnp.arange(count))
    hyper = configs.hypers(plan.agent_config, [trial.values for trial in two.trials])
    arrays: Any = jax.eval_shape(program.start, keys, hyper)
    replays: tuple[Any, ...] = ()
    if plan.settings.online_steps:
        needs = parts.agent.needs
        two_rows = devices.Layout(count)
        replays = (jax.eval_shape(lambda: empty_replays(spec_of(parts.sizes), plan.online.capacity, needs, two_rows)),)
    kept = memory.size_of((arrays, replays, jax.eval_shape(program.policies, arrays[0])))
    serial = plan.settings.map == "serial"  # then one run at a time works
    free = memory.free_bytes() or 0
    if serial and kept / count * runs < SMALL * free:
        return runs
    compiled = program.chunk.lower(*arrays, keys, parts.dataset, jnp.int32(1), *replays).compile()
    work = compiled.memory_analysis().temp_size_in_bytes
    return memory.fitting(free, work if serial else 0, (kept if serial else kept + work) / count, runs)
