"""What a training is put together from: data, agent, and the program of its updates."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from flowrl import agent as agents
from flowrl import devices, envs, loop, normalize
from flowrl.agent import Agent, Spec
from flowrl.data import description, goals, minari_sets, replay, returns, sources
from flowrl.data.dataset import Dataset, from_arrays
from flowrl.data.fields import Expected
from flowrl.errors import UserError
from flowrl.loop import Program
from flowrl.settings import Plan


class Parts(NamedTuple):
    """What a training is put together from.

    Attributes:
        plan: What to do, with the environment that the data name.
        agent: Who learns.
        sizes: Of its environment.
        dataset: What it learns from; None without offline data.
        facts: Lines for people on what the data consist of.
        doubts: Lines on what about them is to be noted, or implausible.
    """

    plan: Plan
    agent: Agent
    sizes: envs.Sizes
    dataset: Dataset | None
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
        return Parts(plan, build_agent(plan, sizes, None), sizes, None)
    known = Expected() if sizes is None else Expected(*(getattr(sizes, name) for name in Expected._fields))
    reading = sources.examine(source, plan.env, known)
    arrays = reading.arrays
    if sizes is None:
        sizes = envs.Sizes(arrays["observations"].shape[1], arrays["actions"].shape[1])
    doubts = [*reading.notes, *description.small(arrays, plan.agent_config.batch_size)]
    facts = description.facts(reading)
    agent = _plain_agent(plan, sizes)
    if agent.needs.returns_discount is not None:
        arrays |= returns.of_dataset(arrays, agent.needs.returns_discount)
    agent = _normalized(plan, agent, arrays)
    return Parts(plan, agent, sizes, layout.place(from_arrays(arrays), mapped=False), tuple(facts), tuple(doubts))


def with_environment(plan: Plan, source: sources.Source) -> Plan:
    """Adds the environment that a Minari dataset names, in which its policies are evaluated."""
    if plan.env.family != "minari" or not plan.settings.eval_episodes:
        return plan
    found = minari_sets.environment(source.path)
    if found is None:
        raise UserError(f"{plan.env.name} names no environment; train only, with --eval_episodes=0")
    kwargs = found.kwargs | dict(plan.env.kwargs)
    env = plan.env._replace(env_id=found.env_id, kwargs=tuple(kwargs.items()), module=found.module)
    return dataclasses.replace(plan, env=env)


def build_agent(plan: Plan, sizes: envs.Sizes, arrays: dict[str, np.ndarray] | None) -> Agent:
    """Builds the agent, with the normalisation that the settings ask for."""
    seen = {"observations": np.zeros((1, sizes.observation_dim))} if arrays is None else arrays
    return _normalized(plan, _plain_agent(plan, sizes), seen)


def _plain_agent(plan: Plan, sizes: envs.Sizes) -> Agent:
    return agents.load(str(plan.settings.agent)).make(plan.agent_config, spec_of(sizes))


def _normalized(plan: Plan, agent: Agent, arrays: dict[str, np.ndarray]) -> Agent:
    normalizer = normalize.fit(arrays, plan.normalization)
    if normalizer is None:
        return agent
    return normalize.normalized(agent, normalizer, goals_are_states=plan.env.goals == "state")


def spec_of(sizes: envs.Sizes) -> Spec:
    """Returns the sizes that an agent is built for."""
    return Spec(sizes.observation_dim, sizes.action_dim, sizes.goal_dim)


def build_program(parts: Parts, layout: devices.Layout = devices.ONE) -> Program:
    """Builds the functions of a training.

    Args:
        parts: What it is put together from.
        layout: The devices that it runs on.

    Raises:
        UserError: The agent reads what the data lack.
    """
    plan, agent, sizes, dataset = parts[:4]
    settings: Any = plan.settings
    stored = replay.stored(agent.needs)
    available = stored if dataset is None else goals.available(dataset, agent.needs)
    agents.check_needs(agent.needs, dict.fromkeys(available))
    buffer = None
    if settings.online_steps:
        agents.check_needs(agent.needs, dict.fromkeys(stored))
        buffer = jax.eval_shape(partial(replay.empty, spec_of(sizes), plan.online.capacity, stored))
    batch_size = plan.agent_config.batch_size
    return loop.build(agent, batch_size, dataset, settings.map, buffer, settings.offline_share, layout)
