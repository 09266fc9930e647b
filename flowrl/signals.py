"""Stopping a run on SIGINT and SIGTERM."""

import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any


class Signals:
    """Notes the first SIGINT or SIGTERM; a second one acts as usual."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, _: Any) -> None:
        self.received = number
        self._restore()
        os.write(2, b"\nstopping: saving a checkpoint (once more to quit without)\n")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def run_program(arguments: Sequence[str]) -> int:
    """Runs another program to its end and returns its exit status; Ctrl-C reaches it too, and it stops by itself."""
    process = subprocess.Popen(arguments)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
