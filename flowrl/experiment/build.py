"""What a training is put together from: data, agent, and the program of its updates."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from flowrl import agents, normalize
from flowrl import config as configs
from flowrl.agent import Agent
from flowrl.data import replay, returns
from flowrl.data.dataset import Dataset, from_arrays, longest_episode
from flowrl.data.samplers import Transitions, require
from flowrl.data.segments import Segments
from flowrl.errors import UserError
from flowrl.experiment.settings import Plan
from flowrl.machine import devices
from flowrl.normalize import Normalizer
from flowrl.tasks import description, sources
from flowrl.tasks.task import NOTHING_KNOWN, Facts, registered_limit
from flowrl.training import compiled
from flowrl.training.compiled import Program


class Parts(NamedTuple):
    """What a training is put together from.

    Attributes:
        plan: What to do, with the environment that the data name.
        agent: Who learns.
        facts: What its environment asks of it.
        dataset: What it learns from, normalised; None without offline data.
        normalizer: What stands between environment and agent; None where nothing does.
        contents: Lines for people on what the data consist of.
        doubts: Lines on what about them is to be noted, or implausible.
    """

    plan: Plan
    agent: Agent[Any]
    facts: Facts
    dataset: Dataset | None
    normalizer: Normalizer | None
    contents: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def prepare(plan: Plan, source: sources.Source, layout: devices.Layout = devices.ONE) -> Parts:
    """Reads the data onto the devices and builds the agent.

    Raises:
        UserError: The data do not suit the environment or the agent.
    """
    if plan.settings.eval.episodes:
        plan = dataclasses.replace(plan, env=plan.env.evaluated(source))
    facts = plan.env.facts() if plan.env.env_id is not None else None
    if source is sources.NONE:
        assert facts is not None
        nothing = {"observations": np.zeros((1, *facts.spec.observation.shape), np.float32)}
        agent = build_agent(plan, facts)
        _require_episodes(plan, agent)
        return Parts(plan, agent, facts, None, fit(plan, nothing))
    reading = plan.env.examine(source, NOTHING_KNOWN if facts is None else facts.expected)
    arrays = reading.arrays
    facts = facts or Facts.of_arrays(arrays)
    doubts = [*reading.notes, *description.small(arrays, plan.config.batch_size)]
    agent = build_agent(plan, facts)
    _require_episodes(plan, agent)
    kind = agent.batch(plan.config)
    if isinstance(kind, Transitions) and kind.returns:
        arrays |= returns.of_dataset(arrays, float(kind.discount))
    if isinstance(kind, Segments) and not kind.goals:
        arrays |= returns.of_dataset(arrays, kind.plans.discount, kind.plans.termination_penalty)
    normalizer = fit(plan, arrays)
    arrays = arrays if normalizer is None else normalizer.arrays(arrays)
    arrays = {name: array for name, array in arrays.items() if name != "horizons"}
    require(kind, arrays, longest_episode(arrays["terminals"]))
    dataset = layout.place(from_arrays(arrays), mapped=False)
    return Parts(plan, agent, facts, dataset, normalizer, tuple(description.facts(reading)), tuple(doubts))


def _require_episodes(plan: Plan, agent: Agent[Any]) -> None:
    """Checks that episodes played online are as long as a row looks ahead."""
    ahead, limit = agent.batch(plan.config).steps, registered_limit(plan.env)
    if plan.settings.online.steps and limit is not None and ahead > limit:
        raise UserError(
            f"the agent looks {ahead} steps ahead, but an episode of {plan.env.name} ends after {limit}; give a "
            "smaller --agent.horizon.steps"
        )


def build_agent(plan: Plan, facts: Facts) -> Agent[Any]:
    """Builds the agent."""
    return agents.build(plan.settings.agent, plan.config, facts.spec)


def fit(plan: Plan, arrays: dict[str, np.ndarray]) -> Normalizer | None:
    """Returns the normaliser that the settings ask for, of a dataset; None where nothing is to be done.

    Raises:
        UserError: The data cannot be normalised so.
    """
    return normalize.fit(arrays, plan.settings.normalize, goals_are_states=plan.env.goals == "state")


def online_kind(parts: Parts) -> Transitions:
    """Returns the kind of batches that an agent reads, which must be one that a replay buffer gives.

    Raises:
        UserError: It is another, or the agent's settings are none to learn online with.
    """
    kind = parts.agent.batch(parts.plan.config)
    if not isinstance(kind, Transitions):
        raise UserError(f"{parts.plan.settings.agent} learns offline only; leave --online.steps out")
    configs.check(parts.agent.online(parts.plan.config), "agent.")
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
        kind, online = online_kind(parts), settings.online
        buffer = jax.eval_shape(partial(replay.empty, parts.facts.spec, online.capacity, kind, online.num_envs))
    return compiled.build(
        parts.agent,
        plan.config.batch_size,
        parts.dataset,
        settings.map,
        buffer,
        settings.online.offline_share,
        layout,
    )
