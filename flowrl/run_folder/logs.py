"""Where a run's numbers go: one JSON object per line."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flowrl.errors import UserError
from flowrl.machine import schema
from flowrl.machine.files import replacing
from flowrl.run_folder import formats


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Appends one JSON line per record, in a single write.

    Raises:
        UserError: The disk is full or the file cannot be written.
    """
    append_text(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))


def append_text(path: Path, text: str) -> None:
    """Appends text in a single write.

    Raises:
        UserError: The disk is full or the file cannot be written.
    """
    try:
        with path.open("a") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free space and continue with --resume") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a file, checked by its name; a last line torn by a kill is left out.

    Raises:
        UserError: Any other line is damaged, or not what such a file holds.
    """
    return [line.record for line in formats.read_log(path).lines]


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Writes an indented JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file.

    Raises:
        UserError: The file is missing or damaged.
    """
    return schema.read(path)
