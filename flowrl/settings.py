"""The settings of a run: resolved from command line, preset and defaults, or read back to resume."""

import dataclasses
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowrl import agent as agents
from flowrl import config as configs
from flowrl import devices, envs, hosts, loggers, loop, normalize, presets
from flowrl.agent import Spec
from flowrl.errors import UserError
from flowrl.online import Options

OUTPUTS = ("csv", "tensorboard", "wandb", "video_episodes")
"""Settings that show a run in other ways as well, and change nothing else of it."""
RESUMABLE = ("run_dir", "resume", "steps", "workers", "vectorization", "data", "keep_checkpoints", *OUTPUTS)
"""Settings that may differ when a run is resumed; data is checked by its hash."""
_ELSEWHERE = ("run_dir", "resume", "workers", "vectorization", "map", "keep_checkpoints", *OUTPUTS)
"""Settings that do not change what a run learns."""
MAX_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a run apart from its agent's; None stands for the preset's value."""

    agent: str | None = configs.setting(None, "Algorithm; --agent=NAME --help lists its own flags.")
    env: str | None = configs.setting(
        None,
        "Dataset or environment: pointmaze-medium-navigate, cube-single-play-singletask, hopper-medium-v2, "
        "collected:hopper-medium, minari:ID, Pendulum-v1.",
    )
    preset: str = configs.setting("paper", "Settings to start from: paper, quick or none.")
    data: str = configs.setting("auto", "auto, official, collected, none, or the path of a file or its folder.")
    steps: int | None = configs.setting(None, "Updates on offline data.")
    online_steps: int = configs.setting(0, "Environment steps of each run, after the offline updates.")
    num_envs: int = configs.setting(1, "Environments that each run acts in at a time.")
    updates_per_step: float = configs.setting(1.0, "Updates for each environment step.")
    warmup_steps: int = configs.setting(0, "First environment steps: uniform actions, no updates.")
    buffer_size: int = configs.setting(1_000_000, "The most transitions that the replay buffer keeps.")
    offline_share: float | None = configs.setting(
        None, "Share of each online batch from the offline data; absent, as if these lay in the buffer."
    )
    vectorization: str = configs.setting("sync", "Training environments: sync (one process) or async (one each).")
    num_seeds: int = configs.setting(1, "Runs, with seeds seed ... seed+n-1, in one program.")
    seed: int = configs.setting(0, "Seed of the first run.")
    eval_interval: int | None = configs.setting(None, "Updates between evaluations.")
    eval_episodes: int | None = configs.setting(None, "Episodes per task and evaluation; 0 for no evaluation.")
    log_interval: int | None = configs.setting(None, "Updates that one log line averages.")
    checkpoint_interval: int | None = configs.setting(None, "Updates between checkpoints.")
    keep_checkpoints: int = configs.setting(2, "The newest checkpoints that are kept, at least 2; 0 keeps all.")
    normalize_observations: bool = configs.setting(False, "Bring the data's observations to mean 0 and deviation 1.")
    normalize_rewards: bool = configs.setting(False, "Scale rewards by 1000 / (best - worst episode return), as IQL.")
    reward_scale: float = configs.setting(1.0, "Factor of rewards.")
    reward_shift: float = configs.setting(0.0, "Added to rewards after scaling; the return in evaluations is unscaled.")
    csv: bool = configs.setting(False, "Also write metrics.csv and eval.csv.")
    tensorboard: bool = configs.setting(False, "Also write event files for TensorBoard; needs the extra tensorboard.")
    wandb: bool = configs.setting(False, "Also log to Weights & Biases, project flowrl; needs the extra wandb.")
    video_episodes: int = configs.setting(
        0,
        "Episodes per task of the first run's last evaluation to make videos of; needs the extra video.",
    )
    map: str = configs.setting("auto", "How runs are mapped: vmap, serial, or auto (serial on CPUs).")
    shard: str = configs.setting("runs", "What is spread over several devices: runs, or the batch of each run.")
    workers: int | None = configs.setting(None, "Processes for environments; one per core if absent.")
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
    module, env = agents.load(given["agent"]), envs.parse(given["env"])
    _check_goals(given["agent"], module, env)
    online = bool(given.get("online_steps"))
    preset = presets.lookup(given.get("preset", "paper"), given["agent"], env.name, online=online)
    settings = _with_data_or_without(Settings(**(preset.run | given)), env, given)
    fields = {field.name for field in dataclasses.fields(module.Config)}
    preset_fields = {name: value for name, value in preset.agent.items() if name in fields}
    agent_config = module.Config(**(preset_fields | agent_given))
    _check(settings)
    _check_online(settings, env)
    _check_evaluation(settings, env)
    configs.check(agent_config)
    for values in points(grid):
        configs.check(dataclasses.replace(agent_config, **values))
    made = Plan(settings, agent_config, env, preset, _folder(settings), tuple(grid))
    _check_devices(made)
    if not grid:  # of a sweep's waves one may be smaller
        devices.check_runs(len(made.trials), settings.shard)  # type: ignore[arg-type]
    mode = loop.resolve_map(settings.map, len(made.trials))  # type: ignore[arg-type]
    return dataclasses.replace(made, settings=dataclasses.replace(settings, env=env.name, map=mode))


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


def _check(settings: Any) -> None:
    minima = dict(num_seeds=1, seed=0, eval_interval=1, eval_episodes=0, log_interval=1, checkpoint_interval=1)
    minima |= dict(steps=0 if settings.online_steps else 1, online_steps=0, num_envs=1, updates_per_step=0)
    minima |= dict(warmup_steps=0, buffer_size=1, offline_share=0, workers=1, keep_checkpoints=0)
    minima |= dict(video_episodes=0)
    for name, minimum in minima.items():
        value = getattr(settings, name)
        if value is not None and value < minimum:
            raise UserError(f"--{name}={value} is too small; the least is {minimum}")
    if settings.keep_checkpoints == 1:
        raise UserError("--keep_checkpoints=1 could leave none after a kill; give 2 or more, or 0 for all")
    if settings.video_episodes > (settings.eval_episodes or 0):
        raise UserError(
            f"--video_episodes={settings.video_episodes} is more than the --eval_episodes={settings.eval_episodes} "
            "whose first ones are filmed; give fewer, or train with more --eval_episodes"
        )
    if settings.seed + settings.num_seeds > MAX_SEED:
        raise UserError(f"--seed={settings.seed} is too large; seeds end at {MAX_SEED}")
    if settings.map not in ("auto", "vmap", "serial"):
        raise UserError(f"--map={settings.map} is unknown; choose auto, vmap or serial")


def _check_devices(plan: Plan) -> None:
    settings: Any = plan.settings
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


def _check_online(settings: Any, env: envs.EnvName) -> None:
    if (settings.offline_share or 0) > 1:
        raise UserError(f"--offline_share={settings.offline_share} is too large; it is a share, at most 1")
    if settings.vectorization not in ("sync", "async"):
        raise UserError(f"--vectorization={settings.vectorization} is unknown; choose sync or async")
    if settings.offline_share is not None and settings.data == "none":
        raise UserError("--offline_share needs offline data; add --data=PATH, or leave it out")
    if not math.isfinite(settings.updates_per_step):
        raise UserError(f"--updates_per_step={settings.updates_per_step} must be a finite number")
    if not settings.online_steps:
        return
    if settings.updates_per_step and settings.warmup_steps >= settings.online_steps:
        raise UserError(
            f"--warmup_steps={settings.warmup_steps} leaves nothing of --online_steps={settings.online_steps} to learn "
            "in; give fewer, or more steps"
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
                f"--{name}={getattr(settings, name)} is no multiple of --num_envs={settings.num_envs}, the steps that "
                "are made at a time; choose one that is"
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
    stored = read_config(folder)
    if "env" in given:
        given = {**given, "env": envs.parse(given["env"]).name}
    for name, value in (given | {f"agent.{name}": value for name, value in agent_given.items()}).items():
        before = stored["agent_config"].get(name[6:]) if name.startswith("agent.") else stored["settings"].get(name)
        before = tuple(before) if isinstance(before, list) else before
        if name not in RESUMABLE and not (name == "map" and value == "auto") and value != before:
            raise UserError(
                f"the run in {folder} has --{name}={before}, not {value}; leave the flag out, or start a new run in "
                "another --run_dir"
            )
    changed = {name: given[name] for name in RESUMABLE if name in given}
    fields = stored["settings"] | {"data": stored["data"]["path"]} | changed
    lists = {name: tuple(v) if isinstance(v, list) else v for name, v in stored["agent_config"].items()}
    preset = presets.Preset(stored["preset"]["name"], stored["preset"]["source"], {}, {})
    module = agents.load(fields["agent"])
    try:
        settings, agent_config = Settings(**fields), module.Config(**lists)
    except TypeError as error:
        raise UserError(f"the run in {folder} is of another flowrl: {error}; check out its commit to go on") from error
    _check(settings)
    if settings.online_steps and settings.steps != stored["settings"]["steps"]:
        raise UserError(f"the run in {folder} goes on online; its --steps={stored['settings']['steps']} cannot change")
    if (settings.steps or 0) < stored["settings"]["steps"]:
        raise UserError(
            f"the run in {folder} is for {stored['settings']['steps']} updates, more than --steps={settings.steps}; "
            "give a larger --steps, or start a new run in another --run_dir"
        )
    grid = tuple(map(trial, stored.get("grid", ())))
    plan = Plan(settings, agent_config, envs.parse(fields["env"]), preset, folder, grid)
    _check_devices(plan)
    return plan, stored


def command(config: dict[str, Any]) -> str:
    """Returns the command line that makes the runs of a `config.json`; data from a file is named `--data=FILE`.

    A part of a sweep is named by the sweep over its values.
    """
    settings, origin = config["settings"], config["data"]["origin"]
    online = bool(settings["online_steps"])
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
    """Returns a run's `config.json`.

    Raises:
        UserError: The folder holds no run.
    """
    records = folder / "config.json"
    if not records.exists():
        raise UserError(f"{folder} holds no run (no config.json); start one without --resume")
    config = loggers.read_json(records)
    if not isinstance(config, dict) or not {"settings", "agent_config", "preset", "data"} <= set(config):
        raise UserError(f"{records} is not the record of a run; put the right file back, or start without --resume")
    return config
