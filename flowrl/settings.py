"""The settings of a run: resolved from command line, preset and defaults, or read back to resume."""

import dataclasses
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowrl import agent as agents
from flowrl import config as configs
from flowrl import devices, envs, hosts, loop, normalize, presets, run_files, schema
from flowrl.agent import Spec
from flowrl.errors import UserError, nearby, suggestion
from flowrl.files import CONFIG
from flowrl.online import Options

OUTPUTS = ("csv", "tensorboard", "wandb", "video_episodes")
"""Settings that show a run in other ways as well, and change nothing else of it."""
RESUMABLE = ("run_dir", "resume", "steps", "workers", "vectorization", "data", "keep_checkpoints", *OUTPUTS)
"""Settings that may differ when a run is resumed; data is checked by its hash."""
_ELSEWHERE = ("run_dir", "resume", "workers", "vectorization", "map", "keep_checkpoints", *OUTPUTS)
"""Settings that do not change what a run learns."""
MAX_SEED = 2**32 - 1
MOST_RUNS = 10_000
"""The most runs of a program, or of a sweep."""
MOST_ENVIRONMENTS = 10_000
"""The most environments that all runs together act in at a time."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a run apart from its agent's; None stands for the preset's value."""

    agent: str | None = configs.setting(None, "Algorithm; --agent=NAME --help lists its own flags.")
    env: str | None = configs.setting(
        None,
        "Dataset or environment: pointmaze-medium-navigate, cube-single-play-singletask, hopper-medium-v2, "
        "collected:hopper-medium, minari:ID, Pendulum-v1.",
    )
    preset: str = configs.setting("paper", "Settings to start from: paper, quick or none.", ("paper", "quick", "none"))
    data: str = configs.setting("auto", "auto, official, collected, none, or the path of a file or its folder.")
    steps: int | None = configs.setting(None, "Updates on offline data.", low=0, high=configs.MOST_COUNT)
    online_steps: int = configs.setting(
        0, "Environment steps of each run, after the offline updates.", low=0, high=configs.MOST_COUNT
    )
    num_envs: int = configs.setting(1, "Environments that each run acts in at a time.", low=1, high=MOST_ENVIRONMENTS)
    updates_per_step: float = configs.setting(
        1.0, "Updates for each environment step.", low=0.0, high=configs.MOST_COUNT
    )
    warmup_steps: int = configs.setting(
        0, "First environment steps: uniform actions, no updates.", low=0, high=configs.MOST_COUNT
    )
    buffer_size: int = configs.setting(
        1_000_000, "The most transitions that the replay buffer keeps.", low=1, high=configs.MOST_COUNT
    )
    offline_share: float | None = configs.setting(
        None, "Share of each online batch from the offline data; absent, as if these lay in the buffer.", low=0, high=1
    )
    vectorization: str = configs.setting(
        "sync", "Training environments: sync (one process) or async (one each).", ("sync", "async")
    )
    num_seeds: int = configs.setting(1, "Runs, with seeds seed ... seed+n-1, in one program.", low=1, high=MOST_RUNS)
    seed: int = configs.setting(0, "Seed of the first run.", low=0, high=MAX_SEED)
    eval_interval: int | None = configs.setting(None, "Updates between evaluations.", low=1, high=configs.MOST_COUNT)
    eval_episodes: int | None = configs.setting(
        None, "Episodes per task and evaluation; 0 for no evaluation.", low=0, high=configs.MOST_COUNT
    )
    log_interval: int | None = configs.setting(
        None, "Updates that one log line averages.", low=1, high=configs.MOST_COUNT
    )
    checkpoint_interval: int | None = configs.setting(
        None, "Updates between checkpoints.", low=1, high=configs.MOST_COUNT
    )
    keep_checkpoints: int = configs.setting(
        2, "The newest checkpoints that are kept, at least 2; 0 keeps all.", low=0, high=configs.MOST_COUNT
    )
    max_episode_steps: int | None = configs.setting(
        None,
        "Steps after which an episode is cut off, acting and in evaluations; the environment's own if absent.",
        low=1,
        high=configs.MOST_COUNT,
    )
    normalize_observations: bool = configs.setting(False, "Bring the data's observations to mean 0 and deviation 1.")
    normalize_rewards: bool = configs.setting(False, "Scale rewards by 1000 / (best - worst episode return), as IQL.")
    reward_scale: float = configs.setting(1.0, "Factor of rewards.", zero="makes all rewards equal")
    reward_shift: float = configs.setting(0.0, "Added to rewards after scaling; the return in evaluations is unscaled.")
    csv: bool = configs.setting(False, "Also write metrics.csv and eval.csv.")
    tensorboard: bool = configs.setting(False, "Also write event files for TensorBoard; needs the extra tensorboard.")
    wandb: bool = configs.setting(False, "Also log to Weights & Biases, project flowrl; needs the extra wandb.")
    video_episodes: int = configs.setting(
        0,
        "Episodes per task of the first run's last evaluation to make videos of; needs the extra video.",
        low=0,
        high=configs.MOST_COUNT,
    )
    map: str = configs.setting(
        "auto", "How runs are mapped: vmap, serial, or auto (serial on CPUs).", ("auto", "vmap", "serial")
    )
    shard: str = configs.setting(
        "runs", "What is spread over several devices: runs, or the batch of each run.", ("runs", "batch")
    )
    workers: int | None = configs.setting(
        None, "Processes for environments; one per core if absent.", low=1, high=configs.MOST_WORKERS
    )
    run_dir: str | None = configs.setting(None, "Folder of the run; a new one under runs/ if absent.")
    resume: bool = configs.setting(False, "Continue the run in --run_dir from its newest checkpoint.")


class Trial(NamedTuple):
    """One of the runs that a program trains together.

    Attributes:
        seed: Its key is `jax.random.key(seed)`, whatever its values.
        values: Its values of the agent's sweepable fields, where they are its own.
    """

    seed: int
    values: Mapping[str, float]

    @property
    def swept(self) -> dict[str, float]:
        """Its own values under the names of their flags."""
        return {f"agent.{name}": value for name, value in self.values.items()}

    @property
    def labels(self) -> dict[str, Any]:
        """What tells it from the others in a log line."""
        return {"seed": self.seed} | self.swept


def points(trials: Sequence[Trial]) -> list[Mapping[str, float]]:
    """Returns the different values of some runs, in their order."""
    return list({tuple(trial.values.items()): trial.values for trial in trials}.values())


def trial(labels: Mapping[str, Any]) -> Trial:
    """Returns the trial with these labels."""
    values = {name.removeprefix("agent."): value for name, value in labels.items() if name != "seed"}
    return Trial(labels["seed"], values)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that defines the runs in one directory; every setting has its value.

    Attributes:
        settings: The settings apart from the agent's.
        agent_config: The agent's.
        env: The environment.
        preset: Where the settings started from.
        folder: The run directory.
        grid: The runs, where they are a part of a sweep; none of them ends the others by diverging.
    """

    settings: Settings
    agent_config: Any
    env: envs.EnvName
    preset: presets.Preset
    folder: Path
    grid: tuple[Trial, ...] = ()

    def schedule(self, *, online: bool) -> loop.Schedule:
        """When things happen, in the offline or the online part; online steps are counted on from the updates."""
        settings: Any = self.settings
        last = settings.steps + settings.online_steps * online
        return loop.Schedule(last, settings.log_interval, settings.eval_interval, settings.checkpoint_interval)

    @property
    def unit(self) -> str:
        """What is counted: updates, or with an online part steps, which count on from the updates."""
        return "step" if self.settings.online_steps else "update"

    @property
    def online(self) -> Options:
        """How experience is gathered."""
        settings = self.settings
        capacity = max(settings.num_envs, min(settings.buffer_size, settings.online_steps))
        return Options(settings.num_envs, settings.updates_per_step, settings.warmup_steps, capacity)

    @property
    def normalization(self) -> normalize.Options:
        """What to normalise."""
        settings = self.settings
        return normalize.Options(
            settings.normalize_observations,
            settings.normalize_rewards,
            settings.reward_scale,
            settings.reward_shift,
        )

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The runs: those of the grid, or one for each seed."""
        return self.grid or tuple(Trial(seed, {}) for seed in seeds(self.settings))

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs."""
        return list(dict.fromkeys(trial.seed for trial in self.trials))


def seeds(settings: Settings) -> list[int]:
    """Returns the seeds that were asked for."""
    return list(range(settings.seed, settings.seed + settings.num_seeds))


def plan(given: dict[str, Any], agent_given: dict[str, Any], grid: Sequence[Trial] = ()) -> Plan:
    """Resolves what the command line gave to a complete plan.

    Args:
        given: Fields of `Settings` that were given.
        agent_given: Fields of the agent's `Config` that were given.
        grid: The runs, if these are a part of a sweep.

    Raises:
        UserError: A name is unknown or a value out of range.
    """
    require_names(given)
    module, env = agents.load(given["agent"]), envs.limited(envs.parse(given["env"]), given.get("max_episode_steps"))
    _check_goals(given["agent"], module, env)
    configs.check(Settings(**given))
    online = bool(given.get("online_steps"))
    preset = presets.lookup(given.get("preset", "paper"), given["agent"], env.name, online=online)
    settings = _with_data_or_without(Settings(**(preset.run | given)), env, given)
    fields = {field.name for field in dataclasses.fields(module.Config)}
    preset_fields = {name: value for name, value in preset.agent.items() if name in fields}
    agent_config = module.Config(**(preset_fields | agent_given))
    origins = dict.fromkeys(preset.run, "the preset's") | dict.fromkeys(given, "")
    made = Plan(settings, agent_config, env, preset, _folder(settings), tuple(grid))
    check(made, origins)
    _check_devices(made)
    if not grid:  # of a sweep's waves one may be smaller
        devices.check_runs(len(made.trials), settings.shard)  # type: ignore[arg-type]
    mode = loop.resolve_map(settings.map, len(made.trials))  # type: ignore[arg-type]
    return dataclasses.replace(made, settings=dataclasses.replace(settings, env=env.name, map=mode))


def check(plan: Plan, origins: Mapping[str, str] | None = None) -> None:
    """Checks that all values of a plan are in their ranges and go together.

    Args:
        plan: What to check.
        origins: Where settings come from, as `_told` says it; by default all are those of a stored run.

    Raises:
        UserError: One is not; the message names its flag.
    """
    origins = dict.fromkeys(dataclasses.asdict(plan.settings), "the run's own") if origins is None else origins
    _check(plan.settings, origins)
    _check_online(plan.settings, plan.env, origins)
    _check_evaluation(plan.settings, plan.env)
    configs.check(plan.agent_config)
    for values in points(plan.grid):
        configs.check(dataclasses.replace(plan.agent_config, **values))


def require_names(given: Mapping[str, Any]) -> None:
    """Checks that agent and environment are named.

    Raises:
        UserError: One is missing.
    """
    for name in ("agent", "env"):
        if not given.get(name):
            choices = ", ".join(agents.names()) if name == "agent" else "for example pointmaze-medium-navigate"
            raise UserError(f"--{name} is missing: {choices}")


def _with_data_or_without(settings: Settings, env: envs.EnvName, given: dict[str, Any]) -> Settings:
    """Resolves `--data=auto` of an environment without a dataset; without data there are no offline updates."""
    if settings.data == "auto" and env.family == "gymnasium" and settings.online_steps:
        settings = dataclasses.replace(settings, data="none")
    if settings.data != "none":
        return settings
    if settings.normalize_observations or settings.normalize_rewards:
        raise UserError(
            "--normalize_observations and --normalize_rewards take their numbers from offline data, and there are "
            "none; leave them out"
        )
    if given.get("steps"):
        raise UserError(f"--steps={settings.steps} are updates on offline data; add --data=PATH, or leave it out")
    if not settings.online_steps:
        raise UserError("without offline data the agent learns from its own steps; add --online_steps=N")
    return dataclasses.replace(settings, steps=0)


def _check(settings: Any, origins: Mapping[str, str]) -> None:
    """Checks the settings by themselves, and against each other; for `origins` see `_told`."""
    configs.check(settings)
    if not settings.steps and not settings.online_steps:
        raise UserError("--steps=0 is too small; the least is 1")
    updates = settings.steps + settings.online_steps * max(1.0, settings.updates_per_step)
    if updates > configs.MOST_COUNT:
        raise UserError(
            f"{_told(settings, origins, 'steps', 'online_steps', 'updates_per_step')} come to {updates:.3g} steps and "
            f"updates; the most is {configs.MOST_COUNT:,}"
        )
    if settings.keep_checkpoints == 1:
        raise UserError("--keep_checkpoints=1 could leave none after a kill; give 2 or more, or 0 for all")
    if settings.video_episodes > (settings.eval_episodes or 0):
        raise UserError(
            f"--video_episodes={settings.video_episodes} is more than the "
            f"{_told(settings, origins, 'eval_episodes')} whose first ones are filmed; give fewer, or train with more "
            "--eval_episodes"
        )
    if settings.seed + settings.num_seeds - 1 > MAX_SEED:
        raise UserError(
            f"--seed={settings.seed} with --num_seeds={settings.num_seeds} goes beyond the last seed, {MAX_SEED}; give "
            "a smaller --seed"
        )


def _told(settings: Any, origins: Mapping[str, str], *names: str) -> str:
    """Returns settings as flags, those that the user has not given with where they come from.

    Args:
        settings: Where they are.
        origins: For the names of some where they come from, empty where the user gave them; others are defaults.
        names: Which; those that are 0 count for nothing beside others.
    """
    texts = []
    for name in names:
        origin, value = origins.get(name, "the default"), getattr(settings, name)
        if value or len(names) == 1:
            texts.append(f"{origin} --{name}={value}" if origin else f"--{name}={value}")
    return " and ".join(texts)


def _check_devices(plan: Plan) -> None:
    settings: Any = plan.settings
    devices.require_platform()
    devices.check_batch(settings.shard, plan.agent_config.batch_size)
    if hosts.count() == 1:
        return
    if settings.online_steps:
        raise UserError("--online_steps works on one host only, with all its devices; start one process")
    hosts.require_folder(settings.run_dir)


def _check_goals(name: str, module: Any, env: envs.EnvName) -> None:
    """Raises if a goal-conditioned agent has no goals in `env`, or another one would be asked to reach some."""
    wants_goals = module.make(module.Config(), Spec(1, 1, 1)).needs.goals
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


def _check_online(settings: Any, env: envs.EnvName, origins: Mapping[str, str]) -> None:
    if settings.offline_share is not None and settings.data == "none":
        raise UserError("--offline_share needs offline data; add --data=PATH, or leave it out")
    if not settings.online_steps:
        return
    if settings.updates_per_step and settings.warmup_steps >= settings.online_steps:
        raise UserError(
            f"{_told(settings, origins, 'warmup_steps')} leaves nothing of "
            f"{_told(settings, origins, 'online_steps')} to learn in; give fewer --warmup_steps or more --online_steps"
        )
    if (count := settings.num_envs * settings.num_seeds) > MOST_ENVIRONMENTS:
        raise UserError(
            f"{_told(settings, origins, 'num_envs', 'num_seeds')} come to {count:,} environments; the most is "
            f"{MOST_ENVIRONMENTS:,}"
        )
    if env.goals != "none":
        raise UserError(
            f"{env.name} has goals, and goal-conditioned agents learn offline only; leave out --online_steps"
        )
    if env.env_id is None:
        raise UserError(f"flowrl cannot learn online in {env.name}; give a Gymnasium environment, or no --online_steps")
    for name in ("steps", "online_steps", "log_interval", "eval_interval", "checkpoint_interval"):
        if getattr(settings, name) % settings.num_envs:
            raise UserError(
                f"{_told(settings, origins, name)} is no multiple of {_told(settings, origins, 'num_envs')}, the steps "
                "that are made at a time; choose one that is"
            )


def _check_evaluation(settings: Settings, env: envs.EnvName) -> None:
    if env.env_id is None and env.family == "d4rl" and settings.eval_episodes:
        raise UserError(f"{env.name} cannot be evaluated here: {env.note}; or train only, with --eval_episodes=0")


def _folder(settings: Settings) -> Path:
    if settings.run_dir:
        return Path(settings.run_dir).expanduser()
    place = re.sub("[:/]", "-", str(settings.env))
    moment = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return Path("runs") / f"{settings.agent}-{place}-seed{settings.seed}-{moment}"


def resumed_plan(given: dict[str, Any], agent_given: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """Resolves the plan of a run to continue: its own settings, but for those that may change.

    Returns:
        The plan, and the run's `config.json`.

    Raises:
        UserError: There is no run to continue, or the command line contradicts it.
    """
    if not given.get("run_dir"):
        raise UserError("--resume needs --run_dir=DIR, the folder of the run to continue")
    folder = Path(given["run_dir"]).expanduser()
    before, stored = read_plan(folder)
    if "env" in given:
        given = {**given, "env": envs.parse(given["env"]).name}
    for name, value in (given | {f"agent.{name}": value for name, value in agent_given.items()}).items():
        holder = before.agent_config if name.startswith("agent.") else before.settings
        own = getattr(holder, name.removeprefix("agent."), None)
        if name not in RESUMABLE and not (name == "map" and value == "auto") and value != own:
            raise UserError(
                f"the run in {folder} has --{name}={own}, not {value}; leave the flag out, or start a new run in "
                "another --run_dir"
            )
    changed = {name: given[name] for name in RESUMABLE if name in given}
    settings = dataclasses.replace(before.settings, **({"data": stored["data"]["path"]} | changed))
    if settings.online_steps and settings.steps != before.settings.steps:
        raise UserError(f"the run in {folder} goes on online; its --steps={before.settings.steps} cannot change")
    if (settings.steps or 0) < (before.settings.steps or 0):
        raise UserError(
            f"the run in {folder} is for {before.settings.steps} updates, more than --steps={settings.steps}; "
            "give a larger --steps, or start a new run in another --run_dir"
        )
    plan = dataclasses.replace(before, settings=settings)
    check(plan, dict.fromkeys(dataclasses.asdict(settings), "the run's own") | dict.fromkeys(given, ""))
    _check_devices(plan)
    return plan, stored


def read_plan(folder: Path) -> tuple[Plan, dict[str, Any]]:
    """Returns the plan of the run in a folder, and its `config.json`.

    Raises:
        UserError: There is no run, or its `config.json` is not as flowrl writes it.
    """
    stored = read_config(folder)
    path, fields = folder / CONFIG, stored["settings"]
    try:
        module, env = agents.load(fields["agent"]), envs.parse(fields["env"])
        _check_goals(fields["agent"], module, env)
        configs_of = {"settings": Settings, "agent_config": module.Config}
        for name, kind in configs_of.items():
            schema.of_dataclass(kind)(name, stored[name])
        schema.record(dict.fromkeys(_RESOLVED, schema.number(whole=True)))("settings", fields)
        settings, agent_config = (_of_json(kind, stored[name]) for name, kind in configs_of.items())
        grid = tuple(map(trial, stored.get("grid", ())))
        _require_sweepable(module.Config, grid)
        preset = presets.Preset(stored["preset"]["name"], stored["preset"]["source"], {}, {})
        env = envs.limited(env, settings.max_episode_steps)
        made = Plan(dataclasses.replace(settings, env=env.name), agent_config, env, preset, folder, grid)
        check(made)
        if made.seeds != stored["seeds"]:
            raise schema.Mismatch(f"seeds are {stored['seeds']}, but those of its runs are {made.seeds}")
    except schema.Mismatch as error:
        commit = f", or check out its commit {stored['git_commit']}" if stored["git_commit"] else ""
        raise UserError(f"{path}: {error}; put the right file back{commit}") from error
    except UserError as error:
        raise UserError(f"{path} holds what no run can have; put the right file back: {error}") from error
    return made, stored


_RESOLVED = ("steps", "eval_interval", "eval_episodes", "log_interval", "checkpoint_interval")
"""Settings that every plan has its value of."""


def _of_json(kind: type, fields: Mapping[str, Any]) -> Any:
    """Returns a configuration, with tuples again where JSON has lists, and numbers of the declared type."""
    types = {field.name: field.type for field in dataclasses.fields(kind)}

    def value(name: str) -> Any:
        found = fields[name]
        return tuple(found) if isinstance(found, list) else float(found) if types[name] is float else found

    return kind(**{name: value(name) for name in types})


def _require_sweepable(config: type, grid: Sequence[Trial]) -> None:
    """Checks that runs differ in what runs of one program may differ in."""
    known = {field.name for field in dataclasses.fields(config) if field.metadata["sweepable"]}
    for index, one in enumerate(grid):
        if unknown := sorted(one.values.keys() - known):
            raise schema.Mismatch(f"grid[{index}].agent.{unknown[0]} is no field that a sweep varies")


def command(config: dict[str, Any]) -> str:
    """Returns the command line that makes the runs of a `config.json`; data from a file is named `--data=FILE`.

    A part of a sweep is named by the sweep over its values.
    """
    settings, origin = config["settings"], config["data"]["origin"]
    online = bool(settings.get("online_steps"))
    preset = presets.lookup(config["preset"]["name"], settings["agent"], settings["env"], online=online)
    usual = dataclasses.asdict(Settings()) | preset.run | {"data": None, "preset": "paper"}
    shown = settings | {"data": "FILE" if origin == "file" else origin}
    told = {name: value for name, value in shown.items() if name not in _ELSEWHERE and value != usual.get(name)}
    flags = [f"--{name}={value}" for name, value in told.items()]
    agent_usual = dataclasses.asdict(agents.load(settings["agent"]).Config()) | preset.agent
    trials = [trial(labels) for labels in config.get("grid", ())]
    for name, value in config["agent_config"].items():
        value = tuple(value) if isinstance(value, list) else value
        if swept := list(dict.fromkeys(trial.values[name] for trial in trials if name in trial.values)):
            flags.append(f"--agent.{name}={','.join(map(str, swept))}")
        elif value != agent_usual.get(name):
            flags.append(f"--agent.{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}")
    return " ".join([f"python experiments/{'sweep' if trials else 'main'}.py", *flags])


def read_config(folder: Path) -> dict[str, Any]:
    """Returns a run's `config.json`, whose settings `read_plan` checks.

    Raises:
        UserError: The folder holds no run, or the file is not as flowrl writes it.
    """
    if not (folder / CONFIG).exists():
        near = nearby(folder) if not folder.exists() else ""
        raise UserError(f"{folder} holds no run (no {CONFIG}){near or '; start one without --resume'}")
    config = schema.read(folder / CONFIG, run_files.CONFIG)
    require_agent(folder / CONFIG, config["settings"]["agent"])
    return config


def require_agent(path: Path, name: str) -> None:
    """Checks that a file names an agent.

    Raises:
        UserError: It does not.
    """
    if name not in agents.names():
        raise UserError(f"{path}: settings.agent is {name!r}{suggestion(name, agents.names())}; {schema.REMEDY}")
