"""Checks of what is read from JSON, so that a file that people or a crash have changed is one line of error.

A check takes a value read from JSON and the place where it stood, and raises `Mismatch` where the value cannot be.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from flowrl.config import bare, flatten
from flowrl.errors import UserError

REMEDY = "put the right file back, or do without this folder"
Check = Callable[[str, Any], None]
"""`(place, value)`; raises `Mismatch`."""


class Mismatch(Exception):
    """A value that cannot be; the message names its place."""


# ------------------------------------------------------------------------------------------------------ checks


def _wrong(place: str, value: Any, expected: str) -> Mismatch:
    shown = json.dumps(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return Mismatch(f"{place or 'all of it'} is {shown}, not {expected}")


def anything(place: str, value: Any) -> None:
    """Takes any value."""


def number(low: float = -math.inf, high: float = math.inf, *, whole: bool = False) -> Check:
    """Takes finite numbers in [`low`, `high`]; whole ones only if asked for."""
    kind = "a whole number" if whole else "a number"
    if math.isfinite(high):
        kind += f" in [{low:g}, {high:g}]"
    elif math.isfinite(low):
        kind += f" of at least {low:g}"

    def check(place: str, value: Any) -> None:
        good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not (good and low <= value <= high and abs(value) <= sys.float_info.max):
            raise _wrong(place, value, kind)

    return check


def text(pattern: str = "(?s).*", expected: str = "text") -> Check:
    """Takes text that is as a whole of a pattern."""

    def check(place: str, value: Any) -> None:
        if not (isinstance(value, str) and re.fullmatch(pattern, value)):
            raise _wrong(place, value, expected)

    return check


def boolean(place: str, value: Any) -> None:
    """Takes true and false."""
    if not isinstance(value, bool):
        raise _wrong(place, value, "true or false")


def nullable(check: Check) -> Check:
    """Takes null too."""
    return lambda place, value: None if value is None else check(place, value)


def either(one: Check, other: Check) -> Check:
    """Takes what either of both takes."""

    def check(place: str, value: Any) -> None:
        try:
            one(place, value)
        except Mismatch:
            other(place, value)

    return check


def listing(each: Check, least: int = 0) -> Check:
    """Takes lists of at least so many of these."""

    def check(place: str, value: Any) -> None:
        if not isinstance(value, list) or len(value) < least:
            raise _wrong(place, value, "a list" if least == 0 else f"a list of at least {least}")
        for index, item in enumerate(value):
            each(f"{place}[{index}]", item)

    return check


def record(fields: Mapping[str, Check], *, optional: Collection[str] = (), others: Check = anything) -> Check:
    """Takes objects with these fields, of which the optional ones may be absent; all others must pass `others`."""

    def check(place: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise _wrong(place, value, "an object with fields")
        prefix = f"{place}." if place else ""
        for name, field in fields.items():
            if name in value:
                field(prefix + name, value[name])
            elif name not in optional:
                raise Mismatch(f"{prefix}{name} is missing")
        for name in value.keys() - fields.keys():
            others(prefix + name, value[name])

    return check


def of_settings(settings: Any, *, partial: bool = False, several: bool = False) -> Check:
    """Takes objects with the settings of a record by dotted name, of their types, and no others.

    Args:
        settings: The record.
        partial: Whether settings may be absent.
        several: Whether each setting has a list of values.
    """
    fields = {entry.name: of_type(entry.field.type, int(entry.field.default != ())) for entry in flatten(settings)}
    if several:
        fields = {name: listing(check, least=1) for name, check in fields.items()}

    def unknown(place: str, value: Any) -> None:
        raise Mismatch(f"{place} is no setting")

    return record(fields, optional=fields if partial else (), others=unknown)


_PLAIN: dict[Any, Check] = {bool: boolean, int: number(whole=True), float: number(), str: text()}


def of_type(declared: Any, least: int = 1) -> Check:
    """Takes values of the types that settings have: bool, int, float, str, tuples of `least` or more, or None too."""
    kind = bare(declared)
    check = listing(_PLAIN[int], least) if get_origin(kind) is tuple else _PLAIN[kind]
    return nullable(check) if type(None) in get_args(declared) else check


# ----------------------------------------------------------------------------------------------------- reading


def parsed(written: str) -> Any:
    """Returns the value of a JSON text; NaN and Infinity are none.

    Raises:
        ValueError: It is none.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    try:
        return json.loads(written, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read(path: Path, check: Check = anything, *, remedy: str = REMEDY) -> Any:
    """Returns the value of a JSON file.

    Raises:
        UserError: The file is missing, damaged, or holds something else.
    """
    try:
        value = parsed(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; {remedy}") from error
    try:
        check("", value)
    except Mismatch as error:
        raise UserError(f"{path}: {error}; {remedy}") from error
    return value
