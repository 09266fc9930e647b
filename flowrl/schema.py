"""What the files in the folder of a run may hold; a file that people or a crash have changed is one line of error.

A check takes a value read from JSON and the place where it stood, and raises `Mismatch` where the value cannot be.
"""

import dataclasses
import json
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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


def of_dataclass(config: type, *, partial: bool = False, several: bool = False) -> Check:
    """Takes objects with the fields of a dataclass and of their types, and no others.

    Args:
        config: The dataclass.
        partial: Whether fields may be absent.
        several: Whether each field has a list of values.
    """
    fields = {field.name: of_type(field.type) for field in dataclasses.fields(config)}
    if several:
        fields = {name: listing(check, least=1) for name, check in fields.items()}

    def unknown(place: str, value: Any) -> None:
        raise Mismatch(f"{place} is no setting")

    return record(fields, optional=fields if partial else (), others=unknown)


_PLAIN: dict[Any, Check] = {bool: boolean, int: number(whole=True), float: number(), str: text()}


def of_type(kind: Any) -> Check:
    """Takes values of the types that settings have: bool, int, float, str, tuples of one of these, or None too."""
    if isinstance(kind, types.UnionType):
        (kind,) = [option for option in kind.__args__ if option is not type(None)]
        return nullable(of_type(kind))
    if typing.get_origin(kind) is tuple:
        return listing(of_type(typing.get_args(kind)[0]), least=1)
    return _PLAIN[kind]


# ------------------------------------------------------------------------------------------------------- files

_COUNT, _STEP, _NUMBER = number(0, whole=True), number(1, whole=True), number()
_HASH = text("([0-9a-f]{64})?", "a SHA-256 in hexadecimal digits")
_SCORES = dict.fromkeys(("success", "normalized_score", "return"), _NUMBER)

_SCHEDULE = {"online_steps": _COUNT, "eval_episodes": _COUNT}
_SCHEDULE |= dict.fromkeys(("log_interval", "eval_interval", "checkpoint_interval"), _STEP)

LABELS = record({"seed": _COUNT}, others=_NUMBER)
"""What tells one of the runs of a folder from the others."""

CONFIG = record(
    {
        "command": text(),
        "settings": record(
            {"agent": text(), "env": text(), "preset": text(), "steps": _COUNT, **_SCHEDULE}, optional=_SCHEDULE
        ),
        "agent_config": record({}),
        "seeds": listing(_COUNT, least=1),
        "preset": record({"name": text(), "source": text()}),
        "data": record({"path": text(), "origin": text(), "detail": text(), "sha256": _HASH}),
        "grid": listing(LABELS, least=1),
        "hardware": text(),
        "devices": _STEP,
        "hosts": _STEP,
        "versions": record({}),
        "git_commit": nullable(text()),
    },
    optional=("command", "grid", "devices", "hosts"),
)
"""`config.json` of a run, but for the values of its settings, which only its agent knows."""

SWEEP = record(
    {
        "command": text(),
        "settings": record({"agent": text(), "env": text()}),
        "grid": record({}, others=listing(anything, least=1)),
        "parts": listing(
            record(
                {
                    "folder": text(r"group\d+(-wave\d+)?", "the name of a part, such as group1"),
                    "fixed": record({}),
                    "runs": listing(LABELS, least=1),
                }
            ),
            least=1,
        ),
    }
)
"""`sweep.json`, but for the values of its settings."""

SUMMARY = record({"metric": nullable(text()), "rule": text()}, optional=("rule",))
"""`summary.json` of a run or of a sweep."""

DIVERGED = listing(record({"step": _STEP, "metric": text(), "run": _COUNT, "seed": _COUNT}, others=_NUMBER))
"""`diverged.json`."""

VIDEOS = record(
    {
        "step": _COUNT,
        "unit": text(),
        "seed": _COUNT,
        "episodes": _STEP,
        "videos": listing(
            record(
                {"file": text(r"[\w.-]+", "the name of a file"), "task": _STEP, "episode": _COUNT, "length": _STEP}
                | {"return": _NUMBER, "success": number(0, 1)},
                optional=("success",),
            )
        ),
    }
)
"""`videos/videos.json`."""

WANDB = record({"ids": listing(text())})
"""`wandb.json`."""

FACTS = record(
    {"agent": text(), "evaluated": boolean, "episodes": listing(listing(_COUNT, least=1), least=1)},
    optional=("episodes",),
)
"""What a checkpoint says of itself beside its arrays."""


class Lines(NamedTuple):
    """A file of lines, each a JSON object.

    Attributes:
        check: Of one line.
        key: The fields, with values for where they are absent, by which lines of one step differ.
    """

    check: Check
    key: Mapping[str, Any]


def _scored(place: str, value: Any) -> None:
    if not _SCORES.keys() & value.keys():
        raise Mismatch(f"{' or '.join(_SCORES)} is missing")


def _all(*checks: Check) -> Check:
    def check(place: str, value: Any) -> None:
        for each in checks:
            each(place, value)

    return check


_EVALUATION = record(
    {"step": _STEP, "run": _COUNT, "seed": _COUNT, "task": _STEP, "episodes": _STEP, "length": number(0)}
    | {"mode": text("eval|best_of_n", "eval or best_of_n"), **_SCORES},
    optional=("mode", *_SCORES),
    others=either(_NUMBER, text()),
)
LINES = {
    "metrics.jsonl": Lines(record({"step": _STEP, "run": _COUNT, "seed": _COUNT}, others=_NUMBER), {"run": None}),
    "eval.jsonl": Lines(_all(_EVALUATION, _scored), {"mode": "eval", "run": None, "task": None}),
    "time.jsonl": Lines(record({"step": _STEP, "steps_per_second": number(0)}), {}),
}
"""The logs of a run by their names."""


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


class Line(NamedTuple):
    """A line of a log.

    Attributes:
        number: Its place in the file, from 1.
        text: As it stands there, without its end.
        record: What it says.
    """

    number: int
    text: str
    record: dict[str, Any]


class Log(NamedTuple):
    """What a log holds.

    Attributes:
        lines: Its whole lines.
        torn: The beginning of a last line that a kill, or a full disk, has left; mostly nothing.
    """

    lines: list[Line]
    torn: str


def read_log(path: Path) -> Log:
    """Reads a log, whose last line alone may be torn; a file that is not there is an empty one.

    Raises:
        UserError: A line is damaged, of another kind, out of order or there twice.
    """
    if not path.exists():
        return Log([], "")
    try:
        # A byte that is no text is kept as what no line may hold.
        *texts, last = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {REMEDY}") from error
    torn = ""
    if last and _parses(last):
        texts.append(last)  # but for its end it is whole
    elif last.startswith("{") and last.isascii() and last.isprintable():
        torn = last
    elif last:
        texts.append(last)
    kind, newest, lines = LINES.get(path.name), dict[tuple[Any, ...], int](), []
    for place, each in enumerate(texts, 1):
        try:
            line = Line(place, each, _record(each))
            if kind is not None:
                kind.check("", line.record)
                _require_later(line.record, kind, newest)
        except (ValueError, Mismatch) as error:
            raise UserError(f"{path}, line {place}: {error}; {REMEDY}") from error
        lines.append(line)
    return Log(lines, torn)


def _parses(written: str) -> bool:
    try:
        return isinstance(parsed(written), dict)
    except ValueError:
        return False


def _record(written: str) -> dict[str, Any]:
    try:
        value = parsed(written)
    except ValueError as error:
        raise Mismatch(f"it is damaged ({error})") from error
    record({})("", value)
    return value


def _require_later(line: Mapping[str, Any], kind: Lines, newest: dict[tuple[Any, ...], int]) -> None:
    """Checks that a line is of a later step than those before it with the same key."""
    key = tuple(line.get(name, usual) for name, usual in kind.key.items())
    if line["step"] <= newest.get(key, 0):
        what = ", ".join(f"{name} {value}" for name, value in zip(kind.key, key, strict=True))
        raise Mismatch(f"step {line['step']}{what and f' of {what}'} comes after step {newest[key]}")
    newest[key] = line["step"]
