"""What the files in the folder of a run, or of a sweep, may hold, and how its logs are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flowrl.errors import UserError, nearby
from flowrl.machine import schema
from flowrl.machine.schema import (
    REMEDY,
    Check,
    Mismatch,
    anything,
    boolean,
    either,
    listing,
    nullable,
    number,
    parsed,
    record,
    text,
)
from flowrl.run_folder import layout

_COUNT, _STEP, _NUMBER = number(0, whole=True), number(1, whole=True), number()
_HASH = text("([0-9a-f]{64})?", "a SHA-256 in hexadecimal digits")
_SCORES = dict.fromkeys(("success", "normalized_score", "return"), _NUMBER)

_SCHEDULE = {"steps": _COUNT, "online.steps": _COUNT, "eval.episodes": _COUNT}
_SCHEDULE |= dict.fromkeys(("log.interval", "eval.interval", "checkpoint.interval"), _STEP)

LABELS = record({"seed": _COUNT}, others=_NUMBER)
"""What tells one of the runs of a folder from the others."""

CONFIG = record(
    {
        "command": text(),
        "settings": record({"agent": text(), "env": text(), "preset": text(), **_SCHEDULE}),
        "agent_config": record({}),
        "seeds": listing(_COUNT, least=1),
        "preset": record({"name": text(), "source": text()}),
        "data": record({"path": text(), "origin": text(), "detail": text(), "sha256": _HASH}),
        "grid": listing(LABELS, least=1),
        "task": record(
            {
                "observation": listing(_STEP, least=1),
                "action": listing(_STEP, least=1),
                "goal": nullable(listing(_STEP, least=1)),
                "goals_are_states": boolean,
                "action_low": listing(_NUMBER),
                "action_high": listing(_NUMBER),
            }
        ),
        "hardware": text(),
        "devices": _STEP,
        "hosts": _STEP,
        "versions": record({}),
        "git_commit": nullable(text()),
        "incidental": listing(text()),
    },
    optional=("grid", "devices", "hosts"),
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
                optional=("return", "success"),
            )
        ),
    }
)
"""`videos/videos.json`."""

WANDB = record({"ids": listing(text())})
"""`wandb.json`."""


class Lines(NamedTuple):
    """A file of lines, each a JSON object.

    Attributes:
        check: Of one line.
        key: The fields by which lines of one step differ.
    """

    check: Check
    key: tuple[str, ...]


def _scored(place: str, value: Any) -> None:
    if not _SCORES.keys() & value.keys() and "not_finite" not in value:
        raise Mismatch(f"{' or '.join(_SCORES)} is missing")


def _all(*checks: Check) -> Check:
    def check(place: str, value: Any) -> None:
        for each in checks:
            each(place, value)

    return check


_EVALUATION = record(
    {"step": _STEP, "run": _COUNT, "seed": _COUNT, "task": _STEP, "episodes": _STEP, "length": number(0)}
    | {"mode": text(r"\w+", "the name of an evaluation, such as eval"), **_SCORES},
    optional=_SCORES,
    others=either(_NUMBER, text()),
)
LINES = {
    "metrics.jsonl": Lines(record({"step": _STEP, "run": _COUNT, "seed": _COUNT}, others=_NUMBER), ("run",)),
    "eval.jsonl": Lines(_all(_EVALUATION, _scored), ("mode", "run", "task")),
    "time.jsonl": Lines(record({"step": _STEP, "steps_per_second": number(0)}), ()),
}
"""The logs of a run by their names."""


# -------------------------------------------------------------------------------------------------------- logs


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
    key = tuple(line[name] for name in kind.key)
    if line["step"] <= newest.get(key, 0):
        what = ", ".join(f"{name} {value}" for name, value in zip(kind.key, key, strict=True))
        raise Mismatch(f"step {line['step']}{what and f' of {what}'} comes after step {newest[key]}")
    newest[key] = line["step"]


def read_config(folder: Path) -> dict[str, Any]:
    """Returns a run's `config.json`.

    Raises:
        UserError: The folder holds no run, or the file is not as flowrl writes it.
    """
    if not (folder / layout.CONFIG).exists():
        near = nearby(folder) if not folder.exists() else ""
        raise UserError(f"{folder} holds no run (no {layout.CONFIG}){near or '; start one without --resume'}")
    config: dict[str, Any] = schema.read(folder / layout.CONFIG, CONFIG)
    return config
