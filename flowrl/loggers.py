"""Where a run's numbers go: one JSON object per line."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from flowrl.errors import UserError
from flowrl.files import replacing


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Appends one JSON line per record, in a single write.

    Raises:
        UserError: The disk is full or the file cannot be written.
    """
    text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    try:
        with path.open("a") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free space and continue with --resume") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a file; a last line torn by a kill is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def keep_steps(path: Path, wanted: Callable[[int], bool]) -> None:
    """Rewrites a file with the records of the wanted steps only."""
    if path.exists():
        records = [record for record in read_lines(path) if wanted(record["step"])]
        write_text(path, "".join(json.dumps(record) + "\n" for record in records))


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
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
