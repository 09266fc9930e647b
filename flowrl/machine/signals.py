"""Stopping on SIGINT and SIGTERM: programs end with status 128 + the signal, runs with a checkpoint.

Python hears of a signal between two of its own instructions only. While compiled code is at work - XLA compiles for
minutes - a thread watches, and ends the process where the signal is not heeded in time.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

PROMPT = 10.0
"""Seconds in which SIGTERM ends a program that has nothing to save."""
AT_ONCE = 3.0
"""Seconds in which a second signal ends it."""
SAVING = 30.0
"""Seconds in which a run comes to where it can save what it has learnt."""
_TOLD = {signal.SIGINT: b"interrupted\n", signal.SIGTERM: b"terminated\n"}


class _Watch:
    """Ends the process where a signal goes unheeded.

    Attributes:
        limit: Seconds that what is under way may take after a signal; None where it may take as long as it wants.
        since: When that began.
        heeded: Whether Python has heard of the signal.
    """

    def __init__(self) -> None:
        self.limit: float | None = PROMPT
        self.since = time.monotonic()
        self.heeded = False

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Watches during the block, in the main thread of a program."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before, self.heeded = signal.set_wakeup_fd(writer, warn_on_full_buffer=False), False
        self.limit = PROMPT
        thread = threading.Thread(target=self._run, args=(reader,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(writer)  # by which the thread ends
            thread.join()
            os.close(reader)

    def _run(self, reader: int) -> None:
        first = second = None
        number = 0
        while True:
            ready, _, _ = select.select([reader], [], [], None if first is None else 0.1)
            now, found = time.monotonic(), os.read(reader, 64) if ready else None
            if found == b"":
                return
            for received in found or b"":
                if received in _TOLD:
                    first, second, number = (now, None, received) if first is None else (first, now, received)
            if first is not None and self._overdue(now, first, second, number):
                os.write(2, _TOLD[signal.Signals(number)])
                os._exit(128 + number)

    def _overdue(self, now: float, first: float, second: float | None, number: int) -> bool:
        if second is not None and now - second > AT_ONCE:
            return True
        if self.limit is None or (number == signal.SIGINT and self.heeded):
            return False  # who presses Ctrl-C can do so again
        return now - max(first, self.since) > self.limit


_watch = _Watch()


@contextlib.contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """Sets how long what happens in the block may go on after a signal; None is as long as it wants."""
    before = _watch.limit
    _watch.limit, _watch.since = seconds, time.monotonic()
    try:
        yield
    finally:
        _watch.limit, _watch.since = before, time.monotonic()


def promptly() -> contextlib.AbstractContextManager[None]:
    """Gives what happens in the block the time of what has nothing to save."""
    return within(PROMPT)


def saving() -> contextlib.AbstractContextManager[None]:
    """Gives what happens in the block the time until all can be saved."""
    return within(SAVING)


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
        _watch.heeded = True
        self._restore()
        os.write(2, b"\nstopping: saving a checkpoint (once more to quit without)\n")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def abrupt() -> None:
    """Makes SIGINT and SIGTERM end the program at once: for while it imports, when there is nothing to tidy up.

    An interrupt is an exception, which may be lost or shown with its traceback where it hits an import.
    """
    for number in _TOLD:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _quit)


def _quit(number: int, _: Any) -> None:
    os.write(2, _TOLD[signal.Signals(number)])
    os._exit(128 + number)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Inside the block signals end a program at once, as `abrupt` says; other threads leave them alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _TOLD}
    abrupt()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def orderly() -> Iterator[None]:
    """Makes SIGINT and SIGTERM end the program in the block in order: files tidied up, child processes ended.

    A second one ends it at once. By default SIGTERM kills at once, or does nothing at all to the first process of a
    container.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is for a job in the background
        signal.signal(signal.SIGINT, _interrupt)
    exit_on_sigterm()
    with _watch.on():
        yield


def exit_on_sigterm() -> None:
    """Makes SIGTERM end the program in order; a second one kills."""
    signal.signal(signal.SIGTERM, _exit)


def _interrupt(number: int, _: Any) -> None:
    _watch.heeded = True
    raise KeyboardInterrupt


def _exit(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_DFL)
    _watch.heeded = True
    os.write(2, b"terminated\n")
    raise SystemExit(128 + number)


def run_program(arguments: Sequence[str]) -> int:
    """Runs another program to its end and returns its exit status.

    Ctrl-C reaches it too, and it stops by itself; SIGTERM, which may not, is passed on.

    Raises:
        SystemExit: It was stopped by one of them, and this program is to end likewise.
    """
    import subprocess

    process = subprocess.Popen(arguments)
    try:
        with within(None):  # it may have to save
            status = _wait(process)
    except SystemExit:
        process.terminate()
        with within(None):
            process.wait()
        raise
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        print("stopped; the same command continues")
        raise SystemExit(status)
    return status


def _wait(process: Any) -> int:
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
