"""Stopping on SIGINT and SIGTERM: programs end with status 128 + the signal, runs with a checkpoint."""

import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any


class Signals:
    """Notes the first SIGINT or SIGTERM inside its block; a second one, or one outside, acts as usual.

    Attributes:
        received: The signal, also after the block; it may have come too late to be acted upon inside.
    """

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


def exit_on_sigterm() -> None:
    """Makes SIGTERM end the program in order: temporary files are removed, child processes ended; a second one kills.

    By default it kills at once, or does nothing at all to the first process of a container.
    """
    signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.write(2, b"terminated\n")
    raise SystemExit(128 + number)


def run_program(arguments: Sequence[str]) -> int:
    """Runs another program to its end and returns its exit status.

    Ctrl-C reaches it too, and it stops by itself; SIGTERM, which may not, is passed on.

    Raises:
        SystemExit: It was stopped by one of them, and this program is to end likewise.
    """
    process = subprocess.Popen(arguments)
    try:
        status = _wait(process)
    except SystemExit:
        process.terminate()
        process.wait()
        raise
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        print("stopped; the same command continues")
        raise SystemExit(status)
    return status


def _wait(process: subprocess.Popen) -> int:
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
