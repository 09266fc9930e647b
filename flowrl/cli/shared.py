"""For programs beside experiments/main.py: train with it, passing flags on, and load what a run has learnt."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags as absl_flags

from flowrl import agents, config
from flowrl.cli import flags
from flowrl.errors import UserError
from flowrl.experiment.settings import Settings
from flowrl.machine import schema
from flowrl.machine.signals import run_program
from flowrl.run_folder import formats
from flowrl.run_folder.layout import CONFIG, SUMMARY

T = TypeVar("T")


def given(
    arguments: Sequence[str], records: Sequence[Any], read: Callable[[Path], dict[str, Any]], *, several: bool = False
) -> list[dict[str, Any]]:
    """Reads the command line of a program that trains.

    Args:
        arguments: The command line, the program first.
        records: Its settings.
        read: Returns what a folder to resume records of itself, whose agent is meant where none is named.
        several: Whether each setting of the agent may have several values.

    Returns:
        What is given of each record, and last of the agent's settings, by dotted name.

    Raises:
        UserError: A flag is unknown or has a bad value.
    """
    values = absl_flags.FlagValues()
    for record in records:
        flags.define(values, record)
    name = _agent_name(arguments, read)
    usual = agents.default(name) if name else None
    if usual is not None:
        (flags.define_lists if several else flags.define)(values, usual, "agent.")
    flags.parse(values, arguments, known_only=usual is None)  # without an agent its flags are not known yet
    found = [flags.given(values, record) for record in records]
    if usual is None:
        return [*found, {}]
    return [*found, (flags.given_lists if several else flags.given)(values, usual, "agent.")]


def given_of_several(
    arguments: Sequence[str], records: Sequence[Any], names: Callable[[Sequence[dict[str, Any]]], Sequence[str]]
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Reads the command line of a program that trains several agents.

    A setting of one agent is `--NAME.setting`; as `--agent.setting` it is of all of them, which must all have it.

    Args:
        arguments: The command line, the program first.
        records: Its settings.
        names: Returns the agents that are meant, of what is given of each record.

    Returns:
        What is given of each record, and by agent what is given of its settings.

    Raises:
        UserError: A flag is unknown or has a bad value, or there is no such agent.
    """
    values = absl_flags.FlagValues()
    for record in records:
        flags.define(values, record)
    flags.parse(values, arguments, known_only=True)
    usual = {name: agents.default(name) for name in names([flags.given(values, record) for record in records])}
    entries = [{entry.name: entry for entry in config.flatten(record)} for record in usual.values()]
    common = [
        name
        for name, entry in entries[0].items()
        if all(name in other and other[name].kind == entry.kind for other in entries)
    ]
    first = next(iter(usual.values()))
    flags.define(values, first, "agent.", only=common)
    for name, record in usual.items():
        flags.define(values, record, f"{name}.")
    flags.parse(values, arguments)
    of_all = flags.given(values, first, "agent.", only=common)
    of_agents = {name: of_all | flags.given(values, record, f"{name}.") for name, record in usual.items()}
    return [flags.given(values, record) for record in records], of_agents


def _agent_name(arguments: Sequence[str], read: Callable[[Path], dict[str, Any]]) -> str | None:
    """Returns the agent whose flags are to be defined: the one named, or that of the folder to resume."""
    values = absl_flags.FlagValues()
    flags.define(values, Settings())
    flags.parse(values, arguments, known_only=True)
    if values.agent is None and values.resume and values.run_dir:
        return str(read(Path(values.run_dir).expanduser())["settings"]["agent"])
    return None if values.agent is None else str(values.agent)


def help_text(description: str, arguments: Sequence[str], tables: Mapping[str, Any]) -> str:
    """Returns the help of a program that trains: its flags, and those of the agent that the command line names.

    Args:
        description: What it is for.
        arguments: The command line, the program first.
        tables: Records of settings under their headings; the first needs none.

    Raises:
        UserError: There is no such agent.
    """
    parts = [f"{description}\nagents: {', '.join(agents.names())}"]
    parts += [f"{heading and f'{heading}:'}\n{flags.help_text(table)}".strip("\n") for heading, table in tables.items()]
    if name := _named(arguments):
        parts.append(f"{name}:\n{flags.help_text(agents.default(name), 'agent.')}")
    return "\n\n".join(parts)


def _named(arguments: Sequence[str]) -> str | None:
    """Returns what a command line, however wrong the rest of it is, gives as --agent."""
    for argument, following in zip(arguments[1:], [*arguments[2:], ""], strict=True):
        name, _, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "agent":
            return value or following
    return None


def own_and_other(
    settings: T, arguments: Sequence[str], description: str, fixed: Sequence[str] = ()
) -> tuple[T, list[str]] | None:
    """Splits a command line into a program's own settings and flags for the training.

    Args:
        settings: The program's own settings by default.
        arguments: The command line, the program first.
        description: For `--help`.
        fixed: Names of flags of the training that the program sets itself.

    Returns:
        The settings and the other flags; None where help was asked for and printed.

    Raises:
        UserError: A flag is malformed, or fixed.
    """
    found = flags.read_with_rest(settings, arguments, description, known_only=True)
    if found is None:
        return None
    own, others = found
    if wrong := [flag for flag in others if not re.fullmatch(r"--?[\w.]+=.*", flag)]:
        raise UserError(f"{wrong[0]!r} cannot be passed on; write --name=value")
    for flag in others:
        if (name := flag.lstrip("-").split("=")[0]) in fixed:
            raise UserError(f"--{name} is set by this program; leave it out")
    return own, others


def train(main: Path, folder: Path, arguments: Sequence[str]) -> None:
    """Trains to the end, from the newest checkpoint where there is one; a finished run is left as it is.

    Args:
        main: experiments/main.py.
        folder: Of the run.
        arguments: Flags of the training.

    Raises:
        UserError: The run failed or was stopped.
    """
    if (folder / SUMMARY).exists():
        schema.read(folder / SUMMARY, formats.SUMMARY)
        return
    resume = ["--resume"] if (folder / CONFIG).exists() else []
    if status := run_program([sys.executable, str(main), *arguments, f"--run_dir={folder}", *resume]):
        raise UserError(f"the training in {folder} ended with status {status}; the same command continues")
