"""How far something that takes minutes has got: a bar on a terminal, elsewhere a line every half minute."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from tqdm import tqdm

EVERY = 30.0
"""Seconds between lines where there is no terminal."""
MANY = 10_000_000
"""Units from which on a bar shows them in thousands and millions."""


class Progress:
    """Shows on standard error how many units are done, until it is closed.

    Attributes:
        n: Units done, those from before included.
    """

    def __init__(
        self,
        what: str,
        unit: str,
        total: int | None,
        done: int = 0,
        *,
        hidden: bool | None = None,
        leave: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Shows the bar, or waits to print the first line.

        Args:
            what: What is done, such as `collect pointmaze-medium-navigate`.
            unit: What is counted, in the singular.
            total: How many there are, where known.
            done: How many were done before, which no rate counts.
            hidden: True to show nothing, as on other hosts than the first.
            leave: Whether the bar stays when it is closed.
            clock: Gives the time in seconds.
        """
        self.n, self._what, self._unit, self._total = done, what, unit, total
        scaled = total is None or total > MANY
        self._bar = tqdm(
            total=total, initial=done, unit=unit, desc=what, disable=hidden, smoothing=0.1, leave=leave,
            unit_scale=scaled,
        )  # fmt: skip
        self._clock, self._told, self._lines = clock, clock(), bool(self._bar.disable and not hidden)
        self._start: tuple[float, int] | None = None

    def advance(self, more: int) -> None:
        """Shows that so many more units are done."""
        self.to(self.n + more)

    def to(self, n: int, note: str = "") -> None:
        """Shows that `n` units are done, with a note beside the rate on a terminal."""
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(n - self.n)
        self.n, now = n, self._clock()
        self._start = self._start or (now, n)  # until then something may have been compiled
        if self._lines and now - self._told >= EVERY:
            self._told = now
            print(self._line(now - self._start[0], n - self._start[1]), file=sys.stderr, flush=True)

    def _line(self, seconds: float, done: int) -> str:
        of = "" if self._total is None else f" of {self._total:,}"
        told = f"{self._what}: {self.n:,}{of} {self._unit}s"
        if done and seconds:
            told += f", {done / seconds:,.3g} a second"
            if self._total is not None:
                told += f", about {duration((self._total - self.n) * seconds / done)} to go"
        return told

    def close(self) -> None:
        """Ends it."""
        self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def duration(seconds: float) -> str:
    """Returns a time in words."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"


@contextmanager
def waiting(what: str, *, hidden: bool | None = None) -> Iterator[None]:
    """Shows on a terminal how long something takes that cannot tell how far it is."""
    with tqdm(total=1, desc=what, disable=hidden, leave=False, bar_format="{desc} … {elapsed}"):
        yield
