"""What a plan asks of the machine at the very least, so that what cannot be is refused before anything is begun.

All numbers are lower bounds: what is refused cannot work, and what passes may still be too much.
"""

import os
import shutil
from typing import Any, NamedTuple

import jax

from flowrl import agent as agents
from flowrl import devices, envs, memory
from flowrl.agent import Spec
from flowrl.data import replay
from flowrl.errors import UserError
from flowrl.machine import available_memory
from flowrl.provenance import usable_cores
from flowrl.settings import MOST_ENVIRONMENTS, Plan

PROCESS = 50e6
"""Bytes of a process with an environment: Python and its libraries."""
ENVIRONMENT, MANIPULATION = 20e3, 100e6
"""Bytes of one environment more; OGBench's manipulation ones are the largest."""
EPISODE = 0.01
"""Seconds of an evaluation episode on one core; the shortest take milliseconds, most of them seconds."""
EVALUATION, CHECKPOINT, LOG_LINE, FILM = 0.05, 0.02, 1e-4, 5.0
"""Seconds of an evaluation beside its episodes, of a checkpoint, of a run's log line and of an episode's video."""
LOG_BYTES = 200
"""Bytes of a run's log line."""
CORE_FLOPS, ACCELERATOR_FLOPS = 4e11, 1e15
"""Operations per second of a processor core and of an accelerator, at most."""
DAY = 86_400.0
MOST_DAYS = 366
"""Of a whole training; of one evaluation, and of the videos, a day."""


LEAST = Spec(1, 1, 1)
"""Sizes of observations, goals and actions before they are known."""


class Need(NamedTuple):
    """A part of what is needed.

    Attributes:
        amount: Bytes or seconds.
        cause: What needs them.
        flag: The flag to give a smaller, or with `larger` a larger number with.
        larger: Whether it is a larger one.
    """

    amount: float
    cause: str
    flag: str
    larger: bool = False

    @property
    def remedy(self) -> str:
        """What the user can do."""
        return f"{self.cause}; give a {'larger' if self.larger else 'smaller'} {self.flag}"


def require(plan: Plan, spec: Spec = LEAST, *, runs: int | None = None, begun: bool = False) -> None:
    """Checks that a plan can fit into the memory and onto the disk, and end within a year.

    Args:
        plan: What is to be done.
        spec: Sizes of observations, goals and actions; the least that they can be where they are not known yet.
        runs: How many of its runs are trained at once; by default all.
        begun: Whether the run is resumed, with checkpoints on the disk.

    Raises:
        UserError: It cannot; the message names the largest need and the flag to lower it by.
    """
    runs = len(plan.trials) if runs is None else runs
    _require_environments(plan, runs)
    state = jax.eval_shape(_module(plan).make(plan.agent_config, spec).init, jax.random.key(0))
    _require_time(plan, runs, memory.size_of(state.params))
    _require_memory(plan, spec, runs, memory.size_of(state))
    if not begun:
        _require_disk(plan, runs, memory.size_of(state) + _replay_bytes(plan, spec))


def _module(plan: Plan) -> Any:
    return agents.load(str(plan.settings.agent))


def _evaluations(plan: Plan) -> int:
    settings: Any = plan.settings
    if not settings.eval_episodes:
        return 0
    return -(-settings.steps // settings.eval_interval) + -(-settings.online_steps // settings.eval_interval)


def _tasks(plan: Plan) -> int:
    return 1 if plan.env.goals == "none" else 5


# ------------------------------------------------------------------------------------------------------- memory


def _replay_bytes(plan: Plan, spec: Spec) -> int:
    """Returns the bytes of one run's replay buffer."""
    if not plan.settings.online_steps:
        return 0
    names = replay.stored(_module(plan).make(plan.agent_config, spec).needs)
    return memory.size_of(jax.eval_shape(lambda: replay.empty(spec, plan.online.capacity, names)))


def _require_memory(plan: Plan, spec: Spec, runs: int, state: int) -> None:
    settings: Any = plan.settings
    free, config = memory.free_bytes(), plan.agent_config
    rows = devices.layout(runs, settings.shard, padded=not settings.online_steps).rows_each
    share = jax.device_count() if settings.shard == "batch" else 1
    at_once = rows if settings.map == "vmap" else 1
    batch = 4 * config.batch_size // share * (spec.observation_dim + sum(config.hidden_dims)) * at_once
    many = f" of {rows:,} runs" if rows > 1 else ""
    buffers = f"replay buffers of {plan.online.capacity:,} transitions{many}"
    needs = [
        Need(state * rows, f"the networks and their optimizers{many}", _networks(plan, rows, 4 * state < (free or 0))),
        Need(batch, f"batches of {config.batch_size:,} transitions", "--agent.batch_size"),
        Need(_replay_bytes(plan, spec) * rows, buffers, "--buffer_size"),
    ]
    if jax.default_backend() == "cpu":
        _require_room(needs + _host_needs(plan, runs), free)
    else:
        _require_room(needs, free)
        _require_room(_host_needs(plan, runs), available_memory())


def _networks(plan: Plan, rows: int, small: bool) -> str:
    """Returns the flag to lower where networks take too much; they may be small, but of many runs."""
    if rows == 1 or not small:
        return "--agent.hidden_dims"
    return "--runs_at_once" if plan.grid else "--num_seeds"


def _host_needs(plan: Plan, runs: int) -> list[Need]:
    """Returns what environments and their processes need."""
    settings: Any = plan.settings
    each = MANIPULATION if plan.env.env_id is not None and envs.most(plan.env) < 100 else ENVIRONMENT
    needs = []
    if settings.eval_episodes and plan.env.env_id is not None:
        slots = runs * max(1, min(_tasks(plan) * settings.eval_episodes, envs.most(plan.env) // runs))
        workers = min(settings.workers or usable_cores(), slots)
        needs.append(Need(workers * PROCESS, f"{workers:,} processes for evaluation", "--workers"))
        needs.append(Need(slots * each, f"{slots:,} environments for evaluation", "--num_seeds"))
    if settings.online_steps:
        count = runs * settings.num_envs
        kind = "processes with environments" if settings.vectorization == "async" else "environments"
        size = each + (PROCESS if settings.vectorization == "async" else 0)
        needs.append(Need(count * size, f"{count:,} {kind}", "--num_envs"))
    return needs


def _require_room(needs: list[Need], free: int | None) -> None:
    total = sum(need.amount for need in needs)
    if free is not None and total > free:
        raise UserError(
            f"not enough memory: at least {_bytes(total)} are needed, {_bytes(free)} are free; most of it is for "
            f"{max(needs).remedy}"
        )


def _require_environments(plan: Plan, runs: int) -> None:
    settings: Any = plan.settings
    if settings.online_steps and runs * settings.num_envs > MOST_ENVIRONMENTS:
        raise UserError(
            f"{runs:,} runs with --num_envs={settings.num_envs} come to {runs * settings.num_envs:,} environments; the "
            f"most is {MOST_ENVIRONMENTS:,}"
        )


# --------------------------------------------------------------------------------------------------------- time


def _require_time(plan: Plan, runs: int, parameters: int) -> None:
    settings: Any = plan.settings
    cores = min(usable_cores(), settings.workers or usable_cores())
    episodes = runs * _tasks(plan) * (settings.eval_episodes or 0)
    one = Need(episodes * EPISODE / cores, f"the {episodes:,} episodes of each evaluation", "--eval_episodes")
    films = Need(_tasks(plan) * settings.video_episodes * FILM, "the videos", "--video_episodes")
    for need in (one, films):
        if need.amount > DAY:
            raise UserError(f"{need.cause} would take at least {_time(need.amount)}; give a smaller {need.flag}")
    evaluations = _evaluations(plan)
    steps, online = int(settings.steps), int(settings.online_steps)
    updates = steps + online * settings.updates_per_step
    flops = 2 * plan.agent_config.batch_size * parameters / 4  # four bytes each
    flops_per_second = CORE_FLOPS * usable_cores() if jax.default_backend() == "cpu" else ACCELERATOR_FLOPS
    spread = max(1, jax.device_count()) if jax.default_backend() != "cpu" else 1
    of_runs = f" of {runs:,} runs" if runs > 1 else ""
    chunks = (steps + online) / settings.checkpoint_interval
    lines = runs * (steps + online) / settings.log_interval
    needs = [
        Need(evaluations * one.amount, f"{evaluations:,} evaluations of {episodes:,} episodes", "--eval_episodes"),
        Need(evaluations * EVALUATION, f"{evaluations:,} evaluations", "--eval_interval", larger=True),
        Need(chunks * CHECKPOINT, f"{chunks:,.0f} checkpoints", "--checkpoint_interval", larger=True),
        Need(lines * LOG_LINE, f"{lines:,.0f} log lines", "--log_interval", larger=True),
        Need(updates * runs * flops / flops_per_second / spread, f"{updates:,.0f} updates{of_runs}", "--steps"),
    ]
    total = sum(need.amount for need in needs)
    if total > MOST_DAYS * DAY:
        raise UserError(f"the training would take at least {_time(total)}, most of it for {max(needs).remedy}")


# --------------------------------------------------------------------------------------------------------- disk


def _require_disk(plan: Plan, runs: int, each: int) -> None:
    settings: Any = plan.settings
    place = plan.folder.absolute()
    while not os.path.exists(place) and place != place.parent:
        place = place.parent
    total, _, free = shutil.disk_usage(place)
    if not total:
        return  # nothing that holds files; making the folder will tell
    steps = settings.steps + settings.online_steps
    written = steps // settings.checkpoint_interval + 2  # the first and the last
    kept = min(written, settings.keep_checkpoints + 1 if settings.keep_checkpoints else written)  # one under way
    lines = runs * steps / settings.log_interval
    needs = [
        Need(kept * runs * each, f"{kept:,} checkpoints of {_bytes(runs * each)}", *_fewer(settings, kept)),
        Need(lines * LOG_BYTES, f"{lines:,.0f} log lines", "--log_interval", larger=True),
    ]
    if (needed := sum(need.amount for need in needs)) > free:
        raise UserError(
            f"no disk space in {place}: at least {_bytes(needed)} are needed, {_bytes(free)} are free; "
            f"most of it is for {max(needs).remedy}, or free space"
        )


def _fewer(settings: Any, kept: int) -> tuple[str, bool]:
    """Returns the flag that makes checkpoints take less, and whether it is to be larger."""
    if kept <= 3:
        return "--num_seeds" if settings.num_seeds > 1 else "--agent.hidden_dims", False
    return ("--keep_checkpoints", False) if settings.keep_checkpoints else ("--checkpoint_interval", True)


def _bytes(amount: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if amount >= size:
            return f"{amount / size:,.1f} {unit}"
    return f"{amount / 1e6:,.1f} MB"


def _time(seconds: float) -> str:
    days = seconds / DAY
    return f"{days / 365:,.1f} years" if days > 730 else f"{days:,.0f} days"
