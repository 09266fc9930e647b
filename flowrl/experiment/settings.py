"""The settings of a run: resolved from command line, preset and defaults, and checked."""

import dataclasses
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from flowrl import agents, config, normalize, tasks
from flowrl.config import MOST_COUNT, MOST_WORKERS, nested, record, static
from flowrl.errors import UserError
from flowrl.experiment import presets
from flowrl.experiment.sinks import Log
from flowrl.machine import devices, hosts
from flowrl.networks import Spec
from flowrl.normalize import Normalization
from flowrl.run_folder import texts
from flowrl.run_folder.runs import Run, points
from flowrl.tasks import Task
from flowrl.training.compiled import resolve_map
from flowrl.training.online import MOST_ENVIRONMENTS, Online

MAX_SEED = 2**32 - 1
MOST_RUNS = 10_000
"""The most runs of a program, or of a sweep."""
LEAST = Spec.of_sizes(1, 1, 1)
"""Sizes of observations, actions and goals before they are known."""


@record
class Evaluation:
    """When agents are evaluated, and in how many episodes."""

    interval: int = static(100_000, "Updates, or online steps, between evaluations.", high=MOST_COUNT)
    episodes: int = static(50, "Episodes per task and evaluation; 0 for no evaluation.", low=0, high=MOST_COUNT)


@record
class Checkpointing:
    """When all is saved, and how much of that is kept."""

    interval: int = static(50_000, "Updates, or online steps, between checkpoints.", high=MOST_COUNT, learning=False)
    keep: int = static(
        2, "The newest checkpoints that are kept, at least 2; 0 keeps all.", low=0, high=MOST_COUNT,
        resumable=True, learning=False,
    )  # fmt: skip

    def problem(self, prefix: str) -> str:
        """Says that one checkpoint is too few."""
        told = f"{prefix}keep=1 could leave none after a kill; give 2 or more, or 0 for all"
        return told if self.keep == 1 else ""


@record
class Settings:
    """The settings of a run apart from its agent's; a preset's values stand before these defaults."""

    agent: str = static("", "Algorithm; --agent=NAME --help lists its own flags.")
    env: str = static(
        "",
        "Dataset or environment: pointmaze-medium-navigate, cube-single-play-singletask, hopper-medium-v2, "
        "collected:hopper-medium, minari:ID, Pendulum-v1.",
    )
    preset: str = static("paper", "Settings to start from: paper, quick or none.", choices=presets.NAMES)
    data: str = static(
        "auto", "auto, official, collected, none, or the path of a file or its folder.", resumable=True, learning=False
    )
    steps: int = static(1_000_000, "Updates on offline data.", low=0, high=MOST_COUNT, resumable=True)
    seed: int = static(0, "Seed of the first run.", low=0, high=MAX_SEED, learning=False)
    num_seeds: int = static(1, "Runs, with seeds seed ... seed+n-1, in one program.", high=MOST_RUNS, learning=False)
    map: Literal["auto", "vmap", "serial"] = static(
        "auto", "How runs are mapped: vmap, serial, or auto (serial on CPUs).", choices=("auto", "vmap", "serial"),
        resumable=True, learning=False,
    )  # fmt: skip
    shard: Literal["runs", "batch"] = static(
        "runs", "What is spread over several devices: runs, or the batch of each run.", choices=("runs", "batch")
    )
    workers: int | None = static(
        None, "Processes for environments; one per core if absent.", high=MOST_WORKERS, resumable=True, learning=False
    )
    max_episode_steps: int | None = static(
        None, "Steps after which an episode is cut off, acting and in evaluations; the environment's own if absent.",
        high=MOST_COUNT,
    )  # fmt: skip
    run_dir: str = static("", "Folder of the run; a new one under runs/ if absent.", resumable=True, learning=False)
    resume: bool = static(
        False, "Continue the run in --run_dir from its newest checkpoint.", resumable=True, learning=False
    )
    online: Online = nested(Online())
    eval: Evaluation = nested(Evaluation())
    log: Log = nested(Log())
    checkpoint: Checkpointing = nested(Checkpointing())
    normalize: Normalization = nested(Normalization())

    @property
    def total(self) -> int:
        """The updates on data and the online steps, which are counted on from them."""
        return self.steps + self.online.steps

    @property
    def unit(self) -> str:
        """What is counted: updates, or with an online part steps."""
        return "step" if self.online.steps else "update"

    @property
    def seeds(self) -> list[int]:
        """The seeds that are asked for."""
        return list(range(self.seed, self.seed + self.num_seeds))


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that defines the runs in one directory; every setting has its value.

    Attributes:
        settings: The settings apart from the agent's.
        config: The agent's.
        env: The environment.
        source: Where the settings started from, a citation.
        folder: The run directory.
        runs: The runs.
        swept: Whether these are a part of a sweep; none of them ends the others by diverging.
    """

    settings: Settings
    config: Any
    env: Task
    source: str
    folder: Path
    runs: tuple[Run, ...]
    swept: bool = False


def plan(given: Mapping[str, Any], agent_given: Mapping[str, Any], runs: Sequence[Run] = ()) -> Plan:
    """Resolves what the command line gave to a complete plan.

    Args:
        given: Settings of the run that were given, by dotted name.
        agent_given: Settings of the agent that were given.
        runs: The runs, if these are a part of a sweep; otherwise there is one for each seed.

    Raises:
        UserError: A name is unknown or a value out of range.
    """
    require_names(given)
    usual, env = agents.default(given["agent"]), tasks.parse(given["env"])
    env = env.limited(given.get("max_episode_steps"))
    check_goals(given["agent"], usual, env)
    asked = config.put(Settings(), given)
    config.check(asked)
    preset = presets.lookup(asked.preset, asked.agent, env.published, online=asked.online.steps > 0)
    settings = config.put(Settings(), texts.read(Settings(), preset.run) | dict(given))
    settings = _with_data_or_without(settings, env, given)
    agent_config = config.put(usual, _of_agent(preset.agent, asked, usual) | dict(agent_given))
    all_runs = tuple(runs) or tuple(Run(seed, {}) for seed in settings.seeds)
    made = Plan(settings, agent_config, env, preset.source, _folder(settings), all_runs, swept=bool(runs))
    check(made, dict.fromkeys(preset.run, "the preset's") | dict.fromkeys(given, ""))
    check_devices(made)
    if not runs:  # of a sweep's waves one may be smaller
        devices.check_runs(len(all_runs), settings.shard)
    changed = {"env": env.name, "map": resolve_map(settings.map, len(all_runs))}
    return dataclasses.replace(made, settings=config.put(settings, changed))


def _of_agent(of_preset: Mapping[str, str], asked: Settings, usual: Any) -> dict[str, Any]:
    """Returns a preset's values of the agent's settings."""
    try:
        return texts.read(usual, of_preset)
    except KeyError as error:
        raise UserError(
            f"the preset {asked.preset} sets --agent.{error.args[0]}, which {asked.agent} has not; give --preset=none, "
            f"or the agent a row of its own in flowrl/experiment/presets/{asked.preset}/"
        ) from error


def require_names(given: Mapping[str, Any]) -> None:
    """Checks that agent and environment are named.

    Raises:
        UserError: One is missing.
    """
    for name in ("agent", "env"):
        if not given.get(name):
            choices = ", ".join(agents.names()) if name == "agent" else "for example pointmaze-medium-navigate"
            raise UserError(f"--{name} is missing: {choices}")


def _with_data_or_without(settings: Settings, env: Task, given: Mapping[str, Any]) -> Settings:
    """Resolves `--data=auto` of an environment without a dataset; without data there are no offline updates."""
    if settings.data == "auto" and not env.has_data and settings.online.steps:
        settings = config.put(settings, {"data": "none"})
    if settings.data != "none":
        return settings
    if settings.normalize.observations or settings.normalize.rewards != "none":
        raise UserError(
            "--normalize.observations and --normalize.rewards take their numbers from offline data, and there are "
            "none; leave them out"
        )
    if given.get("steps"):
        raise UserError(f"--steps={settings.steps} are updates on offline data; add --data=PATH, or leave it out")
    if not settings.online.steps:
        raise UserError("without offline data the agent learns from its own steps; add --online.steps=N")
    return config.put(settings, {"steps": 0})


def _folder(settings: Settings) -> Path:
    if settings.run_dir:
        return Path(settings.run_dir).expanduser()
    place = re.sub("[:/]", "-", settings.env)
    moment = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return Path("runs") / f"{settings.agent}-{place}-seed{settings.seed}-{moment}"


# ------------------------------------------------------------------------------------------------------- checks


def check(plan: Plan, origins: Mapping[str, str] | None = None) -> None:
    """Checks that all values of a plan are in their ranges and go together.

    Args:
        plan: What to check.
        origins: Where settings come from, as `_told` says it; by default all are those of a stored run.

    Raises:
        UserError: One is not; the message names its flag.
    """
    settings, env = plan.settings, plan.env
    origins = dict.fromkeys(config.values(settings), "the run's own") if origins is None else origins
    _check_run(settings, origins)
    _check_online(settings, env, origins)
    if env.unevaluated and settings.eval.episodes:
        raise UserError(
            f"{env.name} cannot be evaluated here: {env.unevaluated}; or train only, with --eval.episodes=0"
        )
    normalize.check(settings.normalize, settings.agent, goals=env.goals != "none", maze="maze" in env.name)
    config.check(plan.config, "agent.")
    for values in points(plan.runs):
        config.check(config.put(plan.config, values), "agent.")


def _check_run(settings: Settings, origins: Mapping[str, str]) -> None:
    """Checks the settings by themselves, and against each other; for `origins` see `_told`."""
    config.check(settings)
    if not settings.total:
        raise UserError("--steps=0 is too small; the least is 1")
    updates = settings.steps + settings.online.steps * max(1.0, settings.online.updates_per_step)
    if updates > MOST_COUNT:
        raise UserError(
            f"{_told(settings, origins, 'steps', 'online.steps', 'online.updates_per_step')} come to {updates:.3g} "
            f"steps and updates; the most is {MOST_COUNT:,}"
        )
    if settings.log.video_episodes > settings.eval.episodes:
        raise UserError(
            f"--log.video_episodes={settings.log.video_episodes} is more than the "
            f"{_told(settings, origins, 'eval.episodes')} whose first ones are filmed; give fewer, or train with more "
            "--eval.episodes"
        )
    if settings.seed + settings.num_seeds - 1 > MAX_SEED:
        raise UserError(
            f"--seed={settings.seed} with --num_seeds={settings.num_seeds} goes beyond the last seed, {MAX_SEED}; give "
            "a smaller --seed"
        )


def _told(settings: Settings, origins: Mapping[str, str], *names: str) -> str:
    """Returns settings as flags, those that the user has not given with where they come from.

    Args:
        settings: Where they are.
        origins: For the names of some where they come from, empty where the user gave them; others are defaults.
        names: Which; those that are 0 count for nothing beside others.
    """
    values, found = config.values(settings), []
    for name in names:
        origin, value = origins.get(name, "the default"), values[name]
        if value or len(names) == 1:
            found.append(f"{origin} --{name}={value}" if origin else f"--{name}={value}")
    return " and ".join(found)


def check_devices(plan: Plan) -> None:
    """Checks that a plan suits the devices and hosts.

    Raises:
        UserError: It does not.
    """
    devices.require_platform()
    devices.check_batch(plan.settings.shard, plan.config.batch_size)
    if hosts.count() == 1:
        return
    if plan.settings.online.steps:
        raise UserError("--online.steps works on one host only, with all its devices; start one process")
    hosts.require_folder(plan.settings.run_dir)


def check_goals(name: str, usual: Any, env: Task) -> None:
    """Checks that a goal-conditioned agent has goals in `env`, and that another one need not reach any.

    Raises:
        UserError: It is not so.
    """
    wants_goals = agents.build(name, usual, LEAST).batch(usual).goals
    if wants_goals and env.goals == "none":
        raise UserError(
            f"{name} is goal-conditioned, but {env.name} has a single task; choose an agent for single tasks, such as "
            "sscp, or an OGBench name without -singletask"
        )
    if not wants_goals and env.goals != "none":
        raise UserError(
            f"{name} learns a single task, but {env.name} has goals; choose a goal-conditioned agent, such as gc_sscp, "
            f"or --env={env.name.removesuffix('-oraclerep')}-singletask"
        )


def _check_online(settings: Settings, env: Task, origins: Mapping[str, str]) -> None:
    online = settings.online
    if online.offline_share is not None and settings.data == "none":
        raise UserError("--online.offline_share needs offline data; add --data=PATH, or leave it out")
    if not online.steps:
        return
    if online.updates_per_step and online.warmup_steps >= online.steps:
        raise UserError(
            f"{_told(settings, origins, 'online.warmup_steps')} leaves nothing of "
            f"{_told(settings, origins, 'online.steps')} to learn in; give fewer --online.warmup_steps or more "
            "--online.steps"
        )
    if (count := online.num_envs * settings.num_seeds) > MOST_ENVIRONMENTS:
        raise UserError(
            f"{_told(settings, origins, 'online.num_envs', 'num_seeds')} come to {count:,} environments; the most is "
            f"{MOST_ENVIRONMENTS:,}"
        )
    if env.goals != "none":
        raise UserError(
            f"{env.name} has goals, and goal-conditioned agents learn offline only; leave out --online.steps"
        )
    if env.env_id is None:
        raise UserError(f"flowrl cannot learn online in {env.name}; give a Gymnasium environment, or no --online.steps")
    counts = config.values(settings)
    for name in ("steps", "online.steps", "log.interval", "eval.interval", "checkpoint.interval"):
        if counts[name] % online.num_envs:
            raise UserError(
                f"{_told(settings, origins, name)} is no multiple of {_told(settings, origins, 'online.num_envs')}, "
                "the steps that are made at a time; choose one that is"
            )
