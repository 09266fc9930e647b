"""Command lines from dataclasses: flags, their help, and errors of one line that name the remedy."""

import dataclasses
import decimal
import math
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from flowrl import terminal
from flowrl.config import check
from flowrl.errors import SharedError, UserError, explained, suggestion
from flowrl.machine.signals import orderly

T = typing.TypeVar("T")
MOST_DIGITS = 40
"""Of an integer; ranges tell what is too large, this only keeps `1e999999999` from being written out."""


MOST_SHOWN = 80
"""Signs of a flag with its value that a message repeats."""


class _Integer(flags.IntegerParser):
    """Reads integers, also where they are written as `1e5` or `1_000`."""

    def convert(self, argument: Any) -> int:
        try:
            return super().convert(argument)
        except ValueError:
            number = _decimal(argument)
            if not number.is_finite() or (number.adjusted() < MOST_DIGITS and number != number.to_integral_value()):
                raise
            if number.adjusted() >= MOST_DIGITS:
                raise ValueError("is too large") from None
            return int(number)


class _Float(flags.FloatParser):
    """Reads finite numbers; 0 has no sign."""

    def convert(self, argument: Any) -> float:
        value = super().convert(argument)
        if not math.isfinite(value):
            raise ValueError("is not a finite number")
        if value == 0 and _decimal(argument) != 0:
            raise ValueError("is too small to be told from 0; give 0 or a larger number")
        return value + 0.0


def _decimal(text: Any) -> decimal.Decimal:
    try:
        return decimal.Decimal(text)
    except decimal.InvalidOperation as error:
        raise ValueError(str(error)) from error


def define(values: flags.FlagValues, config: type, prefix: str = "") -> None:
    """Defines one flag `--<prefix><field>` per field of a dataclass, with the help text from the field's metadata."""
    for field in dataclasses.fields(config):
        name, text = prefix + field.name, field.metadata["help"]
        default: Any = _text(field.default)
        kind = _bare(field.type)
        if kind is bool:
            flags.DEFINE_boolean(name, default, text, flag_values=values)
        elif kind in (int, float):
            flags.DEFINE(_PARSERS[kind], name, default, text, flag_values=values)
        else:
            flags.DEFINE_string(name, default, text, flag_values=values)


def given(values: flags.FlagValues, config: type, prefix: str = "") -> dict[str, Any]:
    """Returns the fields of a dataclass whose flags stood on the command line, with their values.

    Raises:
        UserError: A list of integers cannot be read.
    """
    found = {}
    for field in dataclasses.fields(config):
        flag = values[prefix + field.name]
        if flag.present:
            found[field.name] = _parse(f"--{flag.name}", field.type, flag.value)
    return found


def define_lists(values: flags.FlagValues, config: type, prefix: str = "") -> None:
    """Defines the same flags, each for several values."""
    for field in dataclasses.fields(config):
        flags.DEFINE_string(prefix + field.name, None, field.metadata["help"], flag_values=values)


def given_lists(values: flags.FlagValues, config: type, prefix: str = "") -> dict[str, list[Any]]:
    """Returns the fields whose flags stood on the command line, each with its values.

    Values are separated by commas; those that are lists of integers, with commas of their own, by colons.

    Raises:
        UserError: A value is missing, or not of the field's type.
    """
    flagged = {field: values[prefix + field.name] for field in dataclasses.fields(config)}
    return {
        field.name: _values(f"--{flag.name}", field.type, str(flag.value))
        for field, flag in flagged.items()
        if flag.present
    }


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
        kind = values[setting.lstrip("-").split("=")[0]].flag_type()
        raise UserError(f"{_short(setting)} {_reason(error, kind)}") from error
    except flags.Error as error:
        raise UserError(f"{str(error).replace(chr(10), ' ')}; see --help") from error
    if empty := [name for name in values if values[name].present and values[name].value == "" and "." not in name]:
        raise UserError(f"--{empty[0]}= is empty; give a value, or leave it out")
    if rest and not known_only and not positional:
        raise UserError(f"unexpected argument {rest[0]!r}; flags are written --name=value, see --help")
    return rest


def _short(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _nearest_flag(name: str, values: flags.FlagValues) -> str:
    """Returns a suggestion for an unknown flag: the agent's field of that name, or what is spelt alike."""
    if f"agent.{name}" in values:
        return f"; did you mean --agent.{name}?"
    near = suggestion(f"--{name}", [f"--{known}" for known in values if len(known) > 1])
    return near if "?" in near else ""


def _reason(error: BaseException, kind: str) -> str:
    """Says what is wrong with a flag's value: what our parsers said of it, or that its type is another."""
    told = str(error.__context__)
    return told if told.startswith("is ") else f"is not of type {kind}; see --help"


def read(config: type[T], arguments: Sequence[str], description: str) -> T | None:
    """Returns the settings, an instance of `config`, that a command line gives; prints help instead if it asks for it.

    Raises:
        UserError: A flag is unknown or has a bad value, or there is an argument that is no flag.
    """
    if informed(arguments, lambda: f"{description}\n{help_text(config)}"):
        return None
    values = flags.FlagValues()
    define(values, config)
    parse(values, arguments)
    settings = config(**given(values, config))
    check(settings)
    return settings


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


def help_text(config: type, prefix: str = "") -> str:
    """Returns one line per field: flag, default, whether a sweep may map over it, and meaning."""
    lines = []
    for field in dataclasses.fields(config):
        shown = "" if field.default is None else f"={_text(field.default)}"
        note = {True: " [sweepable]", False: " [static]", None: ""}[field.metadata.get("sweepable")]
        lines.append(f"  --{prefix}{field.name}{shown}{note}\n        {field.metadata['help']}")
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
    hosts = sys.modules.get("flowrl.hosts")  # which imports JAX; environment workers import this module without
    if hosts is not None:
        hosts.leave(status)
    sys.exit(status)


def _bare(kind: Any) -> Any:
    """Returns the type inside an optional one."""
    if isinstance(kind, types.UnionType):
        (kind,) = [option for option in kind.__args__ if option is not type(None)]
    return kind


def _text(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


_PARSERS: dict[Any, flags.ArgumentParser] = {
    bool: flags.BooleanParser(),
    int: _Integer(),
    float: _Float(),
    str: flags.ArgumentParser(),
}


def _values(flag: str, kind: Any, text: str) -> list[Any]:
    parts = [part.strip() for part in text.split("," if kind in _PARSERS else ":")]
    if "" in parts:
        example = "0.1,0.2" if kind in _PARSERS else "256,256:512,512"
        raise UserError(f"{flag}={text} lacks a value; write for example {flag}={example}")
    if kind not in _PARSERS:
        return [_parse(flag, kind, part) for part in parts]
    try:
        return [_PARSERS[kind].parse(part) for part in parts]
    except (ValueError, TypeError) as error:
        told = str(error) if str(error).startswith("is ") else f"is not of type {kind.__name__}, or a list of that"
        raise UserError(f"{flag}={text} {told}; see --help") from error


def _parse(flag: str, kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is not tuple:
        return value
    try:
        return tuple(_PARSERS[int].parse(part.strip()) for part in value.strip("()").removesuffix(",").split(","))
    except (ValueError, TypeError) as error:
        raise UserError(f"{flag}={value} is not a list of integers; write for example {flag}=256,256") from error
