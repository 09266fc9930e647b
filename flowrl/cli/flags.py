"""Command lines from records of settings: flags, their help, and errors of one line that name the remedy."""

import sys
import traceback
import typing
from collections.abc import Callable, Collection, Sequence
from typing import Any

from absl import flags

from flowrl import agents, config
from flowrl.errors import SharedError, UserError, explained, suggestion
from flowrl.machine import terminal
from flowrl.machine.signals import orderly
from flowrl.run_folder import texts

T = typing.TypeVar("T")
MOST_SHOWN = 80
"""Signs of a flag with its value that a message repeats."""


class _Parser(flags.ArgumentParser):
    """Reads the texts of one declared type."""

    def __init__(self, kind: Any):
        self.kind = kind

    def parse(self, argument: Any) -> Any:
        """Returns the value that a text stands for."""
        return texts.read_text(self.kind, argument)

    def flag_type(self) -> str:
        """Returns the name of the type."""
        return str(self.kind)


def define(values: flags.FlagValues, record: Any, prefix: str = "", only: Collection[str] | None = None) -> None:
    """Defines one flag `--<prefix><name>` for each setting of a record, or `only` for some, with its help text."""
    for entry in config.flatten(record, prefix):
        if only is not None and entry.name.removeprefix(prefix) not in only:
            continue
        if entry.kind is bool:
            flags.DEFINE_boolean(entry.name, None, entry.field.metadata["help"], flag_values=values)
        else:
            flags.DEFINE(
                _Parser(entry.kind), entry.name, None, entry.field.metadata["help"], values, flags.ArgumentSerializer()
            )


def given(
    values: flags.FlagValues, record: Any, prefix: str = "", only: Collection[str] | None = None
) -> dict[str, Any]:
    """Returns the settings of a record, or `only` of some, whose flags stood on the command line, by dotted name."""
    names = [entry.name for entry in config.flatten(record) if only is None or entry.name in only]
    flagged = {name: values[prefix + name] for name in names}
    return {name: flag.value for name, flag in flagged.items() if flag.present}


def define_lists(values: flags.FlagValues, record: Any, prefix: str = "") -> None:
    """Defines the same flags, each for several values."""
    for entry in config.flatten(record, prefix):
        flags.DEFINE_string(entry.name, None, entry.field.metadata["help"], flag_values=values)


def given_lists(values: flags.FlagValues, record: Any, prefix: str = "") -> dict[str, list[Any]]:
    """Returns the settings whose flags stood on the command line, each with its values.

    Values are separated by commas; those that are lists of integers, with commas of their own, by colons.

    Raises:
        UserError: A value is missing, or not of the declared type.
    """
    flagged = [(entry, values[prefix + entry.name]) for entry in config.flatten(record)]
    return {
        entry.name: _values(f"--{flag.name}={flag.value}", entry, str(flag.value))
        for entry, flag in flagged
        if flag.present
    }


def _values(setting: str, entry: config.Entry, text: str) -> list[Any]:
    lists = isinstance(entry.value, tuple)
    parts = [part.strip() for part in text.split(":" if lists else ",")]
    if "" in parts:
        raise UserError(f"{setting} lacks a value; write for example {'256,256:512,512' if lists else '0.1,0.2'}")
    try:
        return [texts.read_text(entry.kind, part) for part in parts]
    except ValueError as error:
        raise UserError(f"{setting} {error}") from error


def parse(
    values: flags.FlagValues, arguments: Sequence[str], *, known_only: bool = False, positional: bool = False
) -> list[str]:
    """Parses a command line, program name first.

    Args:
        values: The defined flags.
        arguments: `sys.argv`.
        known_only: Whether to leave out what is not defined.
        positional: Whether arguments other than flags are allowed.

    Returns:
        The arguments other than flags; with `known_only` also the flags left out.

    Raises:
        UserError: A flag is unknown or has a bad value, or there is an argument where none is allowed.
    """
    values.set_gnu_getopt(True)  # flags may also follow other arguments
    try:
        rest: list[str] = values(list(arguments), known_only=known_only)[1:]
    except flags.UnrecognizedFlagError as error:
        near = _nearest_flag(error.flagname, values)
        raise UserError(f"unknown flag --{error.flagname}{near}; --help lists all") from error
    except flags.IllegalFlagValueError as error:
        setting = str(error).removeprefix("flag ").split(": ")[0]
        told = str(error.__context__)
        raise UserError(
            f"{_short(setting)} {told if told.startswith('is ') else 'is not of type bool; see --help'}"
        ) from error
    except flags.Error as error:
        raise UserError(f"{str(error).replace(chr(10), ' ')}; see --help") from error
    if empty := [name for name in values if values[name].present and values[name].value == "" and "." not in name]:
        raise UserError(f"--{empty[0]}= is empty; give a value, or leave it out")
    if rest and not known_only and not positional:
        raise UserError(f"unexpected argument {rest[0]!r}; flags are written --name=value, see --help")
    return rest


def _short(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _settings(agent: str, flag: str) -> Collection[str]:
    """Returns the settings that an agent has, where a flag is that of an agent."""
    return config.values(agents.default(agent)) if flag.startswith("agent.") else ()


def _nearest_flag(name: str, values: flags.FlagValues) -> str:
    """Returns a suggestion for an unknown flag: who has it, what is called so in another record or is spelt alike."""
    if owners := [agent for agent in agents.names() if name.removeprefix("agent.") in _settings(agent, name)]:
        told = f"{', '.join(owners[:5])} and {len(owners) - 5} others" if len(owners) > 6 else ", ".join(owners)
        return f" (a setting of {told})"
    if nested := sorted((known for known in values if known.endswith(f".{name}")), key=len):
        return f"; did you mean --{nested[0]}?"
    near = suggestion(f"--{name}", [f"--{known}" for known in values if len(known) > 1])
    return near if "?" in near else ""


def read(record: T, arguments: Sequence[str], description: str) -> T | None:
    """Returns a program's settings with what a command line gives; prints help instead if that asks for it.

    Args:
        record: The settings by default.
        arguments: The command line, the program first.
        description: For `--help`.

    Raises:
        UserError: A flag is unknown or has a bad value, or there is an argument that is no flag.
    """
    found = read_with_rest(record, arguments, description)
    return None if found is None else found[0]


def read_with_rest(
    record: T, arguments: Sequence[str], description: str, *, known_only: bool = False, positional: bool = False
) -> tuple[T, list[str]] | None:
    """Returns the same, with the arguments that `parse` leaves over.

    Raises:
        UserError: As `parse` raises it, or a value is out of range.
    """
    if informed(arguments, lambda: f"{description}\n{help_text(record)}"):
        return None
    values = flags.FlagValues()
    define(values, record)
    rest = parse(values, arguments, known_only=known_only, positional=positional)
    settings = config.put(record, given(values, record))
    config.check(settings)
    return settings, rest


def asks(arguments: Sequence[str], *names: str) -> bool:
    """Whether one of some flags without a value stands on a command line, program name first."""
    return any(argument.lstrip("-") in names for argument in arguments[1:] if argument[:1] == "-" != argument)


def informed(arguments: Sequence[str], text: Callable[[], str]) -> bool:
    """Prints the help or the version that a command line, program name first, asks for; whether it did."""
    if asks(arguments, "h", "help"):
        print(text())
        return True
    if asks(arguments, "version"):
        from flowrl.machine.provenance import version_text

        print(version_text())
        return True
    return False


def help_text(record: Any, prefix: str = "") -> str:
    """Returns one line per setting: flag, default, of an agent's whether a sweep may map over it, and meaning."""
    lines = []
    for entry in config.flatten(record, prefix):
        shown = "" if entry.value is None else texts.shown(entry.value)
        note = f" [{'sweepable' if entry.traced else 'static'}]" if prefix else ""
        lines.append(f"  --{entry.name}{shown and f'={shown}'}{note}\n        {entry.field.metadata['help']}")
    return "\n".join(lines)


def run(main: Callable[[Sequence[str]], int]) -> typing.NoReturn:
    """Runs a program's `main(sys.argv)` and exits with its status; a `UserError` is one line and status 2.

    Ctrl-C and SIGTERM are one line too, and 128 + the signal. With several hosts, one that fails leaves at once.
    """
    with orderly():
        terminal.prepare()
        try:
            status = main(sys.argv)
            terminal.flush()
            sys.exit(status)
        except SharedError as error:
            terminal.complain(f"error: {error}")
            sys.exit(2)
        except UserError as error:
            terminal.complain(f"error: {error}")
            _leave(2)
        except KeyboardInterrupt:
            terminal.complain("interrupted")
            _leave(130)
        except terminal.Closed as error:
            _leave(terminal.give_up(error))
        except Exception as error:
            if (line := explained(error)) is not None:
                terminal.complain(f"error: {line}")
                _leave(2)
            traceback.print_exc()
            _leave(1)


def _leave(status: int) -> typing.NoReturn:
    """Ends a program after an error, also where other hosts wait for it."""
    hosts = sys.modules.get("flowrl.machine.hosts")  # which imports JAX; environment workers import this module without
    if hosts is not None:
        hosts.leave(status)
    sys.exit(status)
