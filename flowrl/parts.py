"""What a training is put together from: data, agent, and the program of its updates."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from flowrl import agent as agents
from flowrl import devices, envs, loop, normalize
from flowrl.agent import Agent, Spec
from flowrl.data import goals, minari_sets, replay, returns, sources
from flowrl.data.dataset import Dataset, from_arrays
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
    """

    plan: Plan
    agent: Agent
    sizes: envs.Sizes
    dataset: Dataset | None


def prepare(plan: Plan, source: sources.Source, layout: devices.Layout = devices.ONE) -> Parts:
    """Reads the data onto the devices and builds the agent.

    Raises:
        UserError: The data do not suit the environment or the agent.
    """
    plan = _with_environment(plan, source)
    sizes = envs.sizes(plan.env) if plan.env.env_id is not None else None
    expected: dict[str, Any] = sizes._asdict() if sizes else {}
    names = ("observation_dim", "action_dim", "action_low", "action_high")
    arrays = None
    if source is not sources.NONE:
        arrays = sources.read(source, plan.env, **{name: expected[name] for name in names if name in expected})
    if sizes is None:
        assert arrays is not None
        sizes = envs.Sizes(arrays["observations"].shape[1], arrays["actions"].shape[1])
    agent = build_agent(plan, sizes, arrays)
    if arrays is not None and agent.needs.returns_discount is not None:
        arrays |= returns.of_dataset(arrays, agent.needs.returns_discount)
    return Parts(plan, agent, sizes, None if arrays is None else layout.place(from_arrays(arrays), mapped=False))


def _with_environment(plan: Plan, source: sources.Source) -> Plan:
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
    spec = spec_of(sizes)
    agent = agents.load(str(plan.settings.agent)).make(plan.agent_config, spec)
    seen = {"observations": np.zeros((1, sizes.observation_dim))} if arrays is None else arrays
    normalizer = normalize.fit(seen, plan.normalization)
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
    plan, agent, sizes, dataset = parts
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
