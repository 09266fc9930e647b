"""Values of settings as text, which stands on command lines and in presets, and as JSON."""

import decimal
import math
import typing
from collections.abc import Mapping
from typing import Any

from flowrl.config import T, flatten, put

MOST_DIGITS = 40
"""Of an integer; ranges tell what is too large, this only keeps `1e999999999` from being written out."""


def shown(value: Any) -> str:
    """Returns a value as it stands on a command line, or in a preset."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def read(record: Any, texts: Mapping[str, str]) -> dict[str, Any]:
    """Returns the values of settings of a record that stand in texts, by dotted name.

    Raises:
        KeyError: A name is none of the record's settings.
        ValueError: A text stands for no value of the declared type.
    """
    kinds = {entry.name: entry.kind for entry in flatten(record)}
    return {name: read_text(kinds[name], text) for name, text in texts.items()}


def read_text(kind: Any, text: str) -> Any:
    """Returns the value of a declared type that a text stands for.

    Raises:
        ValueError: It stands for none; the message follows on `--flag=text`.
    """
    if kind is str:
        return text
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind is int:
        return _integer(text)
    if kind is float:
        return _float(text)
    if typing.get_origin(kind) is tuple:
        try:
            return tuple(_integer(part.strip()) for part in text.strip("()").removesuffix(",").split(","))
        except ValueError:
            raise ValueError("is not a list of integers; write for example 256,256") from None
    raise ValueError(f"is not of type {kind.__name__}; see --help")


def _integer(text: str) -> int:
    """Reads integers, also where they are written as `1e5` or `1_000`."""
    try:
        return int(text)
    except ValueError:
        number = _decimal(text, "int")
    if not number.is_finite() or (number.adjusted() < MOST_DIGITS and number != number.to_integral_value()):
        raise ValueError("is not of type int; see --help")
    if number.adjusted() >= MOST_DIGITS:
        raise ValueError("is too large")
    return int(number)


def _float(text: str) -> float:
    """Reads finite numbers; 0 has no sign."""
    number = _decimal(text, "float")
    value = float(number)
    if not math.isfinite(value):
        raise ValueError("is not a finite number")
    if value == 0 and number != 0:
        raise ValueError("is too small to be told from 0; give 0 or a larger number")
    return value + 0.0


def _decimal(text: str, kind: str) -> decimal.Decimal:
    try:
        return decimal.Decimal(text)
    except decimal.InvalidOperation:
        raise ValueError(f"is not of type {kind}; see --help") from None


def of_json(record: T, stored: Mapping[str, Any]) -> T:
    """Returns a record with values from JSON, tuples again where that has lists, and numbers of the declared type.

    Raises:
        KeyError: A name is none of the record's settings.
    """
    kinds = {entry.name: entry.kind for entry in flatten(record)}
    return put(record, {name: json_value(kinds[name], value) for name, value in stored.items()})


def json_value(kind: Any, value: Any) -> Any:
    """Returns a value of a declared type from what JSON has of it."""
    if isinstance(value, list):
        return tuple(value)
    return float(value) if kind is float and value is not None else value
