"""Command lines from dataclasses: flags, their help, and errors of one line that name the remedy."""

import dataclasses
import io
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from flowrl.errors import SharedError, UserError, suggestion
from flowrl.signals import exit_on_sigterm

T = typing.TypeVar("T")


def define(values: flags.FlagValues, config: type, prefix: str = "") -> None:
    """Defines one flag `--<prefix><field>` per field of a dataclass, with the help text from the field's metadata."""
    for field in dataclasses.fields(config):
        name, text = prefix + field.name, field.metadata["help"]
        default: Any = _text(field.default)
        kind = _bare(field.type)
        if kind is bool:
            flags.DEFINE_boolean(name, default, text, flag_values=values)
        elif kind is int:
            flags.DEFINE_integer(name, default, text, flag_values=values)
        elif kind is float:
            flags.DEFINE_float(name, default, text, flag_values=values)
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
        near = suggestion(f"--{error.flagname}", [f"--{name}" for name in values if len(name) > 1])
        raise UserError(f"unknown flag --{error.flagname}{near if '?' in near else ''}; --help lists all") from error
    except flags.IllegalFlagValueError as error:
        setting = str(error).removeprefix("flag ").split(": ")[0]
        kind = values[setting.lstrip("-").split("=")[0]].flag_type()
        raise UserError(f"{setting} is not of type {kind}; see --help") from error
    except flags.Error as error:
        raise UserError(f"{str(error).replace(chr(10), ' ')}; see --help") from error
    if rest and not known_only and not positional:
        raise UserError(f"unexpected argument {rest[0]!r}; flags are written --name=value, see --help")
    return rest


def read(config: type[T], arguments: Sequence[str], description: str) -> T | None:
    """Returns the settings, an instance of `config`, that a command line gives; prints help instead if it asks for it.

    Raises:
        UserError: A flag is unknown or has a bad value, or there is an argument that is no flag.
    """
    if wants_help(arguments):
        print(f"{description}\n{help_text(config)}")
        return None
    values = flags.FlagValues()
    define(values, config)
    parse(values, arguments)
    return config(**given(values, config))


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether a command line, program name first, asks for help."""
    return any(argument in ("-h", "-help", "--h", "--help") for argument in arguments[1:])


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
    exit_on_sigterm()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a batch job's log shows what has happened
    try:
        sys.exit(main(sys.argv))
    except SharedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        _leave(130)
    except Exception:
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
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
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
        raise UserError(f"{flag}={text} is not of type {kind.__name__}, or a list of that; see --help") from error


def _parse(flag: str, kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is not tuple:
        return value
    try:
        return tuple(int(part) for part in value.strip("()").removesuffix(",").split(","))
    except ValueError as error:
        raise UserError(f"{flag}={value} is not a list of integers; write for example {flag}=256,256") from error
