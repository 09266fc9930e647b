"""Runs that have begun: their plans, read back from their folders to go on, and the commands that repeat them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowrl import agents, tasks
from flowrl import config as configs
from flowrl.errors import UserError, suggestion
from flowrl.experiment import presets
from flowrl.experiment.settings import Plan, Settings, check, check_devices, check_goals
from flowrl.machine import schema
from flowrl.run_folder import formats, texts
from flowrl.run_folder.layout import CONFIG
from flowrl.run_folder.runs import Run, seeds
from flowrl.training.compiled import resolve_map


def resumed_plan(given: Mapping[str, Any], agent_given: Mapping[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """Resolves the plan of a run to continue: its own settings, but for those that may change.

    Args:
        given: Settings of the run that were given, by dotted name.
        agent_given: Settings of the agent that were given.

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
        given = {**given, "env": tasks.parse(given["env"]).name}
    _require_same(folder, before.settings, given)
    _require_same(folder, before.config, agent_given, "agent.")
    settings = configs.put(before.settings, {"data": stored["data"]["path"], **given})
    settings = configs.put(settings, {"map": resolve_map(settings.map, len(before.runs))})
    if settings.online.steps and settings.steps != before.settings.steps:
        raise UserError(f"the run in {folder} goes on online; its --steps={before.settings.steps} cannot change")
    if settings.steps < before.settings.steps:
        raise UserError(
            f"the run in {folder} is for {before.settings.steps} updates, more than --steps={settings.steps}; "
            "give a larger --steps, or start a new run in another --run_dir"
        )
    plan = dataclasses.replace(before, settings=settings, config=configs.put(before.config, agent_given))
    check(plan, dict.fromkeys(configs.values(settings), "the run's own") | dict.fromkeys(given, ""))
    check_devices(plan)
    return plan, stored


def _require_same(folder: Path, own: Any, given: Mapping[str, Any], prefix: str = "") -> None:
    """Raises if a setting is given that a run has otherwise, and that may not change."""
    for entry in configs.flatten(own):
        value = given.get(entry.name, entry.value)
        if value != entry.value and not entry.field.metadata["resumable"]:
            raise UserError(
                f"the run in {folder} has --{prefix}{entry.name}={entry.value}, not {value}; leave the flag out, or "
                "start a new run in another --run_dir"
            )


def read_plan(folder: Path) -> tuple[Plan, dict[str, Any]]:
    """Returns the plan of the run in a folder, and its `config.json`.

    Raises:
        UserError: There is no run, or its `config.json` is not as flowrl writes it.
    """
    stored = read_config(folder)
    path, told = folder / CONFIG, stored["settings"]
    try:
        usual, env = agents.default(told["agent"]), tasks.parse(told["env"])
        check_goals(told["agent"], usual, env)
        schema.of_settings(Settings())("settings", told)
        schema.of_settings(usual)("agent_config", stored["agent_config"])
        settings, config = texts.of_json(Settings(), told), texts.of_json(usual, stored["agent_config"])
        grid = tuple(Run.of(labels) for labels in stored.get("grid", ()))
        _require_traced(usual, grid)
        env = env.limited(settings.max_episode_steps)
        runs = grid or tuple(Run(seed, {}) for seed in settings.seeds)
        made = Plan(settings, config, env, stored["preset"]["source"], folder, runs, swept=bool(grid))
        check(made)
        if seeds(runs) != stored["seeds"]:
            raise schema.Mismatch(f"seeds are {stored['seeds']}, but those of its runs are {seeds(runs)}")
    except schema.Mismatch as error:
        commit = f", or check out its commit {stored['git_commit']}" if stored["git_commit"] else ""
        raise UserError(f"{path}: {error}; put the right file back{commit}") from error
    except UserError as error:
        raise UserError(f"{path} holds what no run can have; put the right file back: {error}") from error
    return made, stored


def _require_traced(config: Any, grid: Sequence[Run]) -> None:
    """Checks that runs differ in what runs of one program may differ in."""
    known = {entry.name for entry in configs.flatten(config) if entry.traced}
    for index, one in enumerate(grid):
        if unknown := sorted(one.values.keys() - known):
            raise schema.Mismatch(f"grid[{index}].agent.{unknown[0]} is no field that a sweep varies")


def command(config: Mapping[str, Any]) -> str:
    """Returns the command line that makes the runs of a `config.json`; data from a file is named `--data=FILE`.

    A part of a sweep is named by the sweep over its values.
    """
    told, origin = config["settings"], config["data"]["origin"]
    preset = presets.lookup(
        told["preset"], told["agent"], tasks.parse(told["env"]).published, online=told["online.steps"] > 0
    )
    usual = configs.values(Settings()) | texts.read(Settings(), preset.run) | {"data": None}
    shown = {**told, "data": "FILE" if origin == "file" else origin}
    flags = [
        f"--{entry.name}={shown[entry.name]}"
        for entry in configs.flatten(Settings())
        if shown[entry.name] != usual[entry.name] and (entry.name == "data" or not _incidental(entry))
    ]
    agent_usual = agents.default(told["agent"])
    agent_usual = configs.put(agent_usual, texts.read(agent_usual, preset.agent))
    runs = [Run.of(labels) for labels in config.get("grid", ())]
    for entry in configs.flatten(agent_usual, "agent."):
        name = entry.name.removeprefix("agent.")
        if swept := list(dict.fromkeys(one.values[name] for one in runs if name in one.values)):
            flags.append(f"--{entry.name}={texts.shown(swept)}")
        elif (value := texts.shown(config["agent_config"][name])) != texts.shown(entry.value):
            flags.append(f"--{entry.name}={value}")
    return " ".join([f"python experiments/{'sweep' if runs else 'main'}.py", *flags])


def _incidental(entry: configs.Entry) -> bool:
    """Whether a setting says where and how a run is done alone, and could be another in the middle of it."""
    return bool(entry.field.metadata["resumable"] and not entry.field.metadata["learning"])


def read_config(folder: Path) -> dict[str, Any]:
    """Returns a run's `config.json`, whose settings `read_plan` checks.

    Raises:
        UserError: The folder holds no run, or the file is not as flowrl writes it, or names no agent.
    """
    config = formats.read_config(folder)
    require_agent(folder / CONFIG, config["settings"]["agent"])
    return config


def require_agent(path: Path, name: str) -> None:
    """Checks that a file names an agent.

    Raises:
        UserError: It does not.
    """
    if name not in agents.names():
        raise UserError(f"{path}: settings.agent is {name!r}{suggestion(name, agents.names())}; {schema.REMEDY}")
