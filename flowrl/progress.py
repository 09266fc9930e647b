"""How far something is: a bar on a terminal, elsewhere a line now and then."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from flowrl import hosts

EVERY = 30.0
"""Seconds between lines where there is no terminal."""


class Progress:
    """Counts units until it is closed; of several hosts the first shows it.

    Attributes:
        n: Units done, those from before included.
    """

    def __init__(self, total: int, unit: str, what: str, *, begun: int = 0, leave: bool = False):
        """Shows the bar, or waits to print the first line.

        Args:
            total: Units there are.
            unit: What they are called.
            what: What goes on.
            begun: Units that were done before, which no rate counts.
            leave: Whether the bar stays when it is closed.
        """
        self.n, self._total, self._unit, self._what = begun, total, unit, what
        self._bar = tqdm(
            total=total, initial=begun, unit=unit, desc=what, disable=hosts.no_bars(), smoothing=0.1, leave=leave
        )
        self._told = time.monotonic()
        self._start: tuple[float, int] | None = None

    def to(self, n: int, note: str = "") -> None:
        """Shows that `n` units are done, with a note beside the rate on a terminal."""
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(n - self.n)
        self.n, now = n, time.monotonic()
        self._start = self._start or (now, n)  # until then something may have been compiled
        if self._bar.disable and now - self._told >= EVERY:
            self._told = now
            print(self._line(now - self._start[0], n - self._start[1]), flush=True)

    def _line(self, seconds: float, done: int) -> str:
        told = f"{self._what}: {self.n:,} of {self._total:,} {self._unit}s"
        if not done:
            return told
        return f"{told}, {done / seconds:.3g} a second, about {duration((self._total - self.n) * seconds / done)} to go"

    def close(self) -> None:
        """Ends it."""
        self._bar.close()


def duration(seconds: float) -> str:
    """Returns a time in words."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows on a terminal how long something takes that cannot tell how far it is."""
    with tqdm(total=1, desc=what, disable=hosts.no_bars(), leave=False, bar_format="{desc} … {elapsed}"):
        yield
