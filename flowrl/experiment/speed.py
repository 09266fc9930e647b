"""How fast agents learn and act on this machine, measured on noise in the shape of their data."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowrl import agents
from flowrl import config as configs
from flowrl.agent import Agent
from flowrl.data import returns
from flowrl.data.dataset import Dataset, from_arrays
from flowrl.envs.episodes import SeededEpisodes
from flowrl.experiment.settings import Plan
from flowrl.machine.provenance import usable_cores
from flowrl.networks import Spec
from flowrl.random_streams import root_keys
from flowrl.run_folder.evaluations import configured_among
from flowrl.tasks.task import Facts
from flowrl.train_state import Policy
from flowrl.training import acting, compiled

STEPS = 50
"""Environment steps that tell how long one takes."""


def synthetic_arrays(spec: Spec, episodes: int = 1000, length: int = 1001) -> dict[str, np.ndarray]:
    """Returns noise in the shape of OGBench's navigate sets; rates do not depend on the values."""
    rng = np.random.default_rng(0)
    rows = episodes * length
    terminals = np.zeros((episodes, length), bool)
    terminals[:, -1] = True
    return {
        "observations": rng.standard_normal((rows, *spec.observation.shape), np.float32),
        "actions": rng.uniform(-1, 1, (rows, *spec.action.shape)).astype(np.float32),
        "rewards": rng.standard_normal(rows, np.float32),
        "masks": np.ones(rows, np.float32),
        "terminals": terminals.reshape(-1),
    }


def synthetic_dataset(spec: Spec, episodes: int = 1000) -> Dataset:
    """Returns such noise on the device, with the returns and the compact goals that some agents read."""
    arrays = synthetic_arrays(spec, episodes)
    if spec.goal is not None and spec.goal.shape != spec.observation.shape:
        rng, rows = np.random.default_rng(1), len(arrays["rewards"])
        arrays["oracle_reps"] = rng.standard_normal((rows, *spec.goal.shape), np.float32)
    return from_arrays(arrays | returns.of_dataset(arrays, discount=0.99))


def rate(advance: Callable[[int], None], seconds: float) -> float:
    """Returns calls per second of something that can be done `n` times, in a run of about the given length."""
    count = 1
    while True:
        began = time.perf_counter()
        advance(count)
        elapsed = time.perf_counter() - began
        if elapsed >= seconds / 2:
            return count / elapsed
        count = max(2 * count, round(0.8 * count * seconds / max(elapsed, 1e-6)))


def acting_times(agent: Agent[Any], spec: Spec, policy: Policy[Any], seconds: float) -> tuple[float, float]:
    """Returns the seconds to compile acting on one observation, and those of one action, host and device together.

    Of an agent that chooses several actions at a time it is the share of one of them.

    Args:
        agent: Whose actions they are.
        spec: Its shapes.
        policy: Of one run, with the configuration that acts.
        seconds: Length of the measurement.
    """
    observation, _, goal, _ = (jnp.zeros(shape.shape, shape.dtype) for shape in spec.inputs())
    arguments = (policy, {"observations": observation, "goals": goal}, jax.random.key(0))
    began = time.perf_counter()
    act = jax.jit(functools.partial(acting.act, agent)).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - began

    def advance(count: int) -> None:
        for _ in range(count):
            act(*arguments).block_until_ready()

    return compile_seconds, 1 / rate(advance, seconds) / (agent.batch(policy.config).chunk or 1)


def action_seconds(plan: Plan, spec: Spec, seconds: float) -> float:
    """Returns the seconds of an action of a plan's agent as it is scored: by the best of N, where it chooses."""
    agent = agents.build(plan.settings.agent, plan.config, spec)
    evaluated = agent.evaluations(plan.config)
    configured = evaluated[configured_among(evaluated)]
    state = agent.init(jax.random.key(0), plan.config)
    policy = agent.policy(state.replace(config=configs.as_arrays(configured)))
    return acting_times(agent, spec, policy, seconds)[1]


class Pace(NamedTuple):
    """How fast a training would be.

    Attributes:
        updates: A second, of each of its runs.
        action: Seconds of an action.
        step: Seconds of an environment's step.
        turn: The update from which on others are made, where values learn alone before; else 0.
        later: Updates a second from there on.
    """

    updates: float
    action: float
    step: float
    turn: int = 0
    later: float = math.inf

    def seconds(self, first: int, last: int) -> float:
        """Returns how long the updates from one to another take."""
        before = max(0, min(last, self.turn) - first) if self.turn else last - first
        return before / self.updates + (last - first - before) / self.later


def pace(plan: Plan, seconds: float) -> Pace:
    """Measures how fast a plan would be trained, all of its runs together, without its data.

    Raises:
        UserError: Its environment cannot be made.
    """
    env, facts = plan.env, plan.env.facts()
    agent, runs = agents.build(plan.settings.agent, plan.config, facts.spec), len(plan.runs)
    dataset = synthetic_dataset(facts.spec, episodes=20)
    program = compiled.build(agent, plan.config.batch_size, dataset, plan.settings.map)
    keys = root_keys(jnp.arange(runs))
    states, totals = program.start(keys, configs.stacked(plan.config, [{}] * runs))
    chunk = program.chunk.lower(states, totals, keys, dataset, jnp.int32(1)).compile()

    def advance(count: int) -> None:
        nonlocal states, totals
        states, totals = jax.block_until_ready(chunk(states, totals, keys, dataset, jnp.int32(count)))

    acting_seconds, step_seconds = action_seconds(plan, facts.spec, seconds / 4), _step_seconds(env.make(), facts)
    found = Pace(rate(advance, seconds), acting_seconds, step_seconds)
    if not (turn := configs.values(plan.config).get("value.steps", 0)):
        return found
    states = states.replace(step=jnp.full_like(states.step, turn))
    return found._replace(turn=turn, later=rate(advance, seconds))


def _step_seconds(env: SeededEpisodes, facts: Facts) -> float:
    env.reset(seed=0, options={"task_id": 1} if facts.tasks else None)
    action, done, began = np.zeros(facts.spec.action.shape, np.float32), 0, time.perf_counter()
    for _ in range(STEPS):
        _, _, terminated, truncated, _ = env.step(action)
        done += 1
        if terminated or truncated:
            break
    elapsed = (time.perf_counter() - began) / done
    env.close()
    return elapsed


def training_seconds(plan: Plan, found: Pace, done: int = 0) -> float:
    """Returns how long the updates of a plan's runs take that are left after step `done`."""
    settings = plan.settings
    online = settings.total - max(done, settings.steps)
    each = settings.online.updates_per_step / found.updates + len(plan.runs) * found.step + found.action
    return found.seconds(min(done, settings.steps), settings.steps) + online * each


def evaluation_seconds(plan: Plan, found: Pace, limit: int, tasks: int, modes: int, done: int = 0) -> float:
    """Returns how long the evaluations left after step `done` take at most, where no episode ends before its limit.

    Args:
        plan: What is trained.
        found: How fast it is.
        limit: Steps of an episode.
        tasks: On which it is evaluated.
        modes: As what it is evaluated.
        done: The step that has been reached.
    """
    settings = plan.settings
    ends = sum(-(-steps // settings.eval.interval) for steps in (settings.steps, settings.online.steps))
    count = max(0, ends - done // settings.eval.interval) if settings.eval.episodes else 0
    episodes = len(plan.runs) * tasks * settings.eval.episodes
    cores = min(usable_cores(), settings.workers or usable_cores())
    at_once = max(1, min(episodes, plan.env.most))
    return count * modes * episodes * limit * (found.step / cores + found.action / at_once)
