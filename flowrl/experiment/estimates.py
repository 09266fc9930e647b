"""What runs ask of the machine at the very least, so that what cannot be is refused before anything is begun.

All numbers are lower bounds: what is refused cannot work, and what passes may still be too much.
"""

import math
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import jax

from flowrl import agents
from flowrl.errors import UserError
from flowrl.experiment.settings import LEAST, MOST_ENVIRONMENTS, Online, Plan, Settings
from flowrl.machine import devices, memory
from flowrl.machine.limits import available_memory
from flowrl.machine.provenance import usable_cores
from flowrl.networks import Spec
from flowrl.tasks import Task

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


def require(plan: Plan, *, spec: Spec = LEAST, begun: bool = False) -> None:
    """Checks that runs can fit into the memory and onto the disk, and end within a year.

    Args:
        plan: The runs, which are trained at once.
        spec: Shapes of observations, actions and goals; the least that they can be where they are not known yet.
        begun: Whether the run is resumed, with checkpoints on the disk.

    Raises:
        UserError: They cannot; the message names the largest need and the flag to lower it by.
    """
    settings, config, runs = plan.settings, plan.config, len(plan.runs)
    _require_environments(settings.online, runs)
    agent = agents.build(settings.agent, config, spec)
    state = jax.eval_shape(agent.init, jax.random.key(0), config)
    parameters, each = memory.size_of(state.params), memory.size_of(state.replace(config=None))
    _require_time(settings, _tasks(plan.env), runs, 2 * config.batch_size * parameters / 4)  # four bytes each
    _require_memory(_device_needs(plan, spec, each), _host_needs(settings, plan.env, runs))
    if not begun:
        _require_disk(settings, plan.folder, runs, each + _replay_bytes(settings.online, spec))


def _tasks(env: Task) -> int:
    return 1 if env.goals == "none" else 5


# ------------------------------------------------------------------------------------------------------- memory


def _replay_bytes(online: Online, spec: Spec) -> int:
    """Returns the bytes of one run's replay buffer: two observations, an action, a reward and a mask in each row."""
    if not online.steps:
        return 0
    numbers = 2 * math.prod(spec.observation.shape) + math.prod(spec.action.shape) + 2
    return 4 * online.capacity * numbers


def _device_needs(plan: Plan, spec: Spec, state: int) -> list[Need]:
    """Returns what states, batches and buffers need on each device, states of `state` bytes each."""
    settings, config = plan.settings, plan.config
    rows = devices.layout(len(plan.runs), settings.shard, padded=not settings.online.steps).rows_each
    share = jax.device_count() if settings.shard == "batch" else 1
    at_once = rows if settings.map == "vmap" else 1
    batch = 4 * config.batch_size // share * (math.prod(spec.observation.shape) + sum(config.hidden_dims)) * at_once
    many = f" of {rows:,} runs" if rows > 1 else ""
    buffers = f"replay buffers of {settings.online.capacity:,} transitions{many}"
    lower = "--agent.hidden_dims"
    if rows > 1 and 4 * state < (memory.free_bytes() or 0):  # they are small, but many
        lower = "--runs_at_once" if plan.swept else "--num_seeds"
    return [
        Need(state * rows, f"the networks and their optimizers{many}", lower),
        Need(batch, f"batches of {config.batch_size:,} transitions", "--agent.batch_size"),
        Need(_replay_bytes(settings.online, spec) * rows, buffers, "--online.buffer_size"),
    ]


def _host_needs(settings: Settings, env: Task, runs: int) -> list[Need]:
    """Returns what environments and their processes need."""
    each = MANIPULATION if env.env_id is not None and env.most < 100 else ENVIRONMENT
    needs = []
    if settings.eval.episodes and env.env_id is not None:
        slots = runs * max(1, min(_tasks(env) * settings.eval.episodes, env.most // runs))
        workers = min(settings.workers or usable_cores(), slots)
        needs.append(Need(workers * PROCESS, f"{workers:,} processes for evaluation", "--workers"))
        needs.append(Need(slots * each, f"{slots:,} environments for evaluation", "--num_seeds"))
    if settings.online.steps:
        count, apart = runs * settings.online.num_envs, settings.online.vectorization == "async"
        kind = "processes with environments" if apart else "environments"
        needs.append(Need(count * (each + PROCESS * apart), f"{count:,} {kind}", "--online.num_envs"))
    return needs


def _require_memory(of_device: list[Need], of_host: list[Need]) -> None:
    if jax.default_backend() == "cpu":
        _require_room(of_device + of_host, memory.free_bytes())
    else:
        _require_room(of_device, memory.free_bytes())
        _require_room(of_host, available_memory())


def _require_room(needs: list[Need], free: int | None) -> None:
    total = sum(need.amount for need in needs)
    if free is not None and total > free:
        raise UserError(
            f"not enough memory: at least {_bytes(total)} are needed, {_bytes(free)} are free; most of it is for "
            f"{max(needs).remedy}"
        )


def _require_environments(online: Online, runs: int) -> None:
    if online.steps and runs * online.num_envs > MOST_ENVIRONMENTS:
        raise UserError(
            f"{runs:,} runs with --online.num_envs={online.num_envs} come to {runs * online.num_envs:,} environments; "
            f"the most is {MOST_ENVIRONMENTS:,}"
        )


# --------------------------------------------------------------------------------------------------------- time


def _require_time(settings: Settings, tasks: int, runs: int, flops: float) -> None:
    """Checks how long runs take at least, with so many operations in an update of one."""
    cores = min(usable_cores(), settings.workers or usable_cores())
    episodes = runs * tasks * settings.eval.episodes
    one = Need(episodes * EPISODE / cores, f"the {episodes:,} episodes of each evaluation", "--eval.episodes")
    films = Need(tasks * settings.log.video_episodes * FILM, "the videos", "--log.video_episodes")
    for need in (one, films):
        if need.amount > DAY:
            raise UserError(f"{need.cause} would take at least {_time(need.amount)}; give a smaller {need.flag}")
    evaluations = sum(-(-steps // settings.eval.interval) for steps in (settings.steps, settings.online.steps))
    evaluations = evaluations if settings.eval.episodes else 0
    updates = settings.steps + settings.online.steps * settings.online.updates_per_step
    on_cpu = jax.default_backend() == "cpu"
    flops_per_second = CORE_FLOPS * usable_cores() if on_cpu else ACCELERATOR_FLOPS * max(1, jax.device_count())
    of_runs = f" of {runs:,} runs" if runs > 1 else ""
    chunks = settings.total / settings.checkpoint.interval
    lines = runs * settings.total / settings.log.interval
    needs = [
        Need(evaluations * one.amount, f"{evaluations:,} evaluations of {episodes:,} episodes", "--eval.episodes"),
        Need(evaluations * EVALUATION, f"{evaluations:,} evaluations", "--eval.interval", larger=True),
        Need(chunks * CHECKPOINT, f"{chunks:,.0f} checkpoints", "--checkpoint.interval", larger=True),
        Need(lines * LOG_LINE, f"{lines:,.0f} log lines", "--log.interval", larger=True),
        Need(updates * runs * flops / flops_per_second, f"{updates:,.0f} updates{of_runs}", "--steps"),
    ]
    total = sum(need.amount for need in needs)
    if total > MOST_DAYS * DAY:
        raise UserError(f"the training would take at least {_time(total)}, most of it for {max(needs).remedy}")


# --------------------------------------------------------------------------------------------------------- disk


def _require_disk(settings: Settings, folder: Path, runs: int, each: int) -> None:
    """Checks that the disk has room for logs and checkpoints, of `each` bytes for each run."""
    place = folder.absolute()
    while not os.path.exists(place) and place != place.parent:
        place = place.parent
    total, _, free = shutil.disk_usage(place)
    if not total:
        return  # nothing that holds files; making the folder will tell
    keep, written = settings.checkpoint.keep, settings.total // settings.checkpoint.interval + 2  # the first, the last
    kept = min(written, keep + 1 if keep else written)  # one under way
    lines = runs * settings.total / settings.log.interval
    needs = [
        Need(kept * runs * each, f"{kept:,} checkpoints of {_bytes(runs * each)}", *_fewer(settings, kept)),
        Need(lines * LOG_BYTES, f"{lines:,.0f} log lines", "--log.interval", larger=True),
    ]
    if (needed := sum(need.amount for need in needs)) > free:
        raise UserError(
            f"no disk space in {place}: at least {_bytes(needed)} are needed, {_bytes(free)} are free; "
            f"most of it is for {max(needs).remedy}, or free space"
        )


def _fewer(settings: Settings, kept: int) -> tuple[str, bool]:
    """Returns the flag that makes checkpoints take less, and whether it is to be larger."""
    if kept <= 3:
        return "--num_seeds" if settings.num_seeds > 1 else "--agent.hidden_dims", False
    return ("--checkpoint.keep", False) if settings.checkpoint.keep else ("--checkpoint.interval", True)


def _bytes(amount: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if amount >= size:
            return f"{amount / size:,.1f} {unit}"
    return f"{amount / 1e6:,.1f} MB"


def _time(seconds: float) -> str:
    days = seconds / DAY
    return f"{days / 365:,.1f} years" if days > 730 else f"{days:,.0f} days"
