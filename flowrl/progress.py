"""How far something that takes minutes has got: a bar on a terminal, elsewhere a line every half minute."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

EVERY = 30.0
"""Seconds between two lines."""


@contextlib.contextmanager
def progress(
    what: str,
    unit: str,
    total: int | None,
    done: int = 0,
    *,
    every: float = EVERY,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[int], None]]:
    """Shows on standard error how far something has got.

    Args:
        what: What is done, such as `collect pointmaze-medium-navigate`.
        unit: What is counted, in the singular.
        total: How many there are, where known.
        done: How many were done before.
        every: Seconds between two lines where there is no terminal.
        clock: Gives the time in seconds.

    Yields:
        A function to call with the number of units that have been done since its last call.
    """
    with tqdm(total=total, initial=done, unit=unit, unit_scale=True, desc=what, disable=None) as bar:
        if not bar.disable:
            yield lambda more: bar.update(more) and None
            return
        began = last = clock()
        now_done = done

        def advance(more: int) -> None:
            nonlocal now_done, last
            now_done += more
            if clock() - last < every:
                return
            last = clock()
            line = _line(what, unit, now_done, total, last - began, (now_done - done) / (last - began))
            print(line, file=sys.stderr, flush=True)

        yield advance


def _line(what: str, unit: str, done: int, total: int | None, seconds: float, rate: float) -> str:
    """Returns the line on what is done, with what is left where that is known."""
    if total is None:
        return f"{what}: {done:,} {unit}s after {_minutes(seconds)}"
    left = f", about {_minutes((total - done) / rate)} to go" if rate else ""
    return f"{what}: {done:,} of {total:,} {unit}s after {_minutes(seconds)}{left}"


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
