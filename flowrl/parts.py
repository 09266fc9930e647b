"""What a training is put together from: data, agent, and the program of its updates."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from flowrl import agents, compiled, devices, envs, normalize
from flowrl.agent import Agent
from flowrl.compiled import Program
from flowrl.data import description, minari_sets, replay, returns, sources
from flowrl.data.dataset import Dataset, from_arrays
from flowrl.data.fields import Expected
from flowrl.data.samplers import Transitions, require
from flowrl.errors import UserError
from flowrl.networks import Spec
from flowrl.normalize import Normalizer
from flowrl.settings import Plan


class Parts(NamedTuple):
    """What a training is put together from.

    Attributes:
        plan: What to do, with the environment that the data name.
        agent: Who learns.
        sizes: Of its environment.
        dataset: What it learns from, normalised; None without offline data.
        normalizer: What stands between environment and agent; None where nothing does.
        facts: Lines for people on what the data consist of.
        doubts: Lines on what about them is to be noted, or implausible.
    """

    plan: Plan
    agent: Agent[Any]
    sizes: envs.Sizes
    dataset: Dataset | None
    normalizer: Normalizer | None
    facts: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def prepare(plan: Plan, source: sources.Source, layout: devices.Layout = devices.ONE) -> Parts:
    """Reads the data onto the devices and builds the agent.

    Raises:
        UserError: The data do not suit the environment or the agent.
    """
    plan = with_environment(plan, source)
    sizes = envs.sizes(plan.env) if plan.env.env_id is not None else None
    if source is sources.NONE:
        assert sizes is not None
        nothing = {"observations": np.zeros((1, sizes.observation_dim), np.float32)}
        return Parts(plan, build_agent(plan, sizes), sizes, None, fit(plan, nothing))
    known = Expected() if sizes is None else Expected(*(getattr(sizes, name) for name in Expected._fields))
    reading = sources.examine(source, plan.env, known)
    arrays = reading.arrays
    if sizes is None:
        sizes = envs.Sizes(arrays["observations"].shape[1], arrays["actions"].shape[1])
    doubts = [*reading.notes, *description.small(arrays, plan.config.batch_size)]
    facts = description.facts(reading)
    agent = build_agent(plan, sizes)
    kind = agent.batch(plan.config)
    if isinstance(kind, Transitions) and kind.returns:
        arrays |= returns.of_dataset(arrays, float(kind.discount))
    normalizer = fit(plan, arrays)
    arrays = arrays if normalizer is None else normalizer.arrays(arrays)
    arrays = {name: array for name, array in arrays.items() if name != "horizons"}
    require(kind, arrays)
    dataset = layout.place(from_arrays(arrays), mapped=False)
    return Parts(plan, agent, sizes, dataset, normalizer, tuple(facts), tuple(doubts))


def with_environment(plan: Plan, source: sources.Source) -> Plan:
    """Adds the environment that a Minari dataset names, in which its policies are evaluated."""
    if plan.env.family != "minari" or not plan.settings.eval.episodes:
        return plan
    found = minari_sets.environment(source.path)
    if found is None:
        raise UserError(f"{plan.env.name} names no environment; train only, with --eval.episodes=0")
    kwargs = found.kwargs | dict(plan.env.kwargs)
    env = plan.env._replace(env_id=found.env_id, kwargs=tuple(kwargs.items()), module=found.module)
    return dataclasses.replace(plan, env=env)


def build_agent(plan: Plan, sizes: envs.Sizes) -> Agent[Any]:
    """Builds the agent."""
    return agents.build(plan.settings.agent, plan.config, spec_of(sizes))


def fit(plan: Plan, arrays: dict[str, np.ndarray]) -> Normalizer | None:
    """Returns the normaliser that the settings ask for, of a dataset; None where nothing is to be done.

    Raises:
        UserError: The data cannot be normalised so.
    """
    return normalize.fit(arrays, plan.settings.normalize, goals_are_states=plan.env.goals == "state")


def spec_of(sizes: envs.Sizes) -> Spec:
    """Returns the shapes that an agent is built for."""
    return Spec.of_sizes(sizes.observation_dim, sizes.action_dim, sizes.goal_dim)


def online_kind(parts: Parts) -> Transitions:
    """Returns the kind of batches that an agent reads, which must be one that a replay buffer gives.

    Raises:
        UserError: It is another.
    """
    kind = parts.agent.batch(parts.plan.config)
    if not isinstance(kind, Transitions):
        raise UserError(f"{parts.plan.settings.agent} learns offline only; leave --online.steps out")
    return kind


def build_program(parts: Parts, layout: devices.Layout = devices.ONE) -> Program:
    """Builds the functions of a training.

    Args:
        parts: What it is put together from.
        layout: The devices that it runs on.

    Raises:
        UserError: The agent cannot learn online.
    """
    plan, settings = parts.plan, parts.plan.settings
    buffer: Any = None
    if settings.online.steps:
        returns = online_kind(parts).returns
        buffer = jax.eval_shape(partial(replay.empty, spec_of(parts.sizes), settings.online.capacity, returns=returns))
    return compiled.build(
        parts.agent,
        plan.config.batch_size,
        parts.dataset,
        settings.map,
        buffer,
        settings.online.offline_share,
        layout,
    )
