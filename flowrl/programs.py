"""For programs that train with experiments/main.py and work on the run: flags of their own, the rest passed on."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from flowrl import flags
from flowrl.errors import UserError
from flowrl.signals import run_program


def own_and_other(settings: type, arguments: Sequence[str], description: str) -> tuple[Any, list[str]] | None:
    """Splits a command line into a program's own settings and flags for the training.

    Args:
        settings: Dataclass of the program's own flags.
        arguments: The command line, the program first.
        description: For `--help`.

    Returns:
        The settings and the other flags; None where help was asked for and printed.

    Raises:
        UserError: A flag is malformed.
    """
    if flags.wants_help(arguments):
        print(f"{description}\n{flags.help_text(settings)}")
        return None
    values = absl_flags.FlagValues()
    flags.define(values, settings)
    others = flags.parse(values, arguments, known_only=True)
    if wrong := [flag for flag in others if not re.fullmatch(r"--?[\w.]+=.*", flag)]:
        raise UserError(f"{wrong[0]!r} cannot be passed on; write --name=value")
    return settings(**flags.given(values, settings)), list(others)


def train(main: Path, folder: Path, arguments: Sequence[str]) -> None:
    """Trains to the end, from the newest checkpoint where there is one; a finished run is left as it is.

    Args:
        main: experiments/main.py.
        folder: Of the run.
        arguments: Flags of the training.

    Raises:
        UserError: The run failed or was stopped.
    """
    if (folder / "summary.json").exists():
        return
    resume = ["--resume"] if (folder / "config.json").exists() else []
    if status := run_program([sys.executable, str(main), *arguments, f"--run_dir={folder}", *resume]):
        raise UserError(f"the training in {folder} ended with status {status}; the same command continues")
