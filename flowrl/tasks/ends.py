"""Where episodes end in files of rows: marked under many names, or seen where nothing marks it.

Only two marks say all that must be known: that an episode truly ended (`terminals`), and that it was cut off
(`timeouts`). Fields of other names that tell where episodes end or begin are compared with what is known: a file is
refused where they tell of an end that would otherwise be overlooked.
"""

import re

import numpy as np

from flowrl.errors import UserError
from flowrl.tasks.columns import extent, vector
from flowrl.tasks.fields import Fields

_TERMINATIONS = {"terminal", "termination", "terminated"}
_TRUNCATIONS = {"timeout", "truncation", "truncated", "trunc", "timelimit", "timelimittruncated"}
_REMEDY = "mark where episodes truly end in 'terminals' and where they are cut off in 'timeouts'"
# The words, in the singular, of names that speak of where episodes end or begin.
_ENDS = {"done", "end", "ended", "last", "final", "terminal", "terminate", "terminated", "termination"}
_ENDS |= {"truncate", "truncated", "truncation", "trunc", "timeout"}
_STARTS = {"start", "started", "begin", "first", "reset", "init"}
_EPISODES = {"episode", "traj", "trajectory", "path", "rollout"}
_COUNTERS = {"step", "timestep", "time", "elapsed"}
_LENGTHS = {"length", "len"}
_NUMBERS = {"id", "ids", "idx", "index", "indice", "number"}
_FILLING = {"is", "not", "non", "of", "the", "at", "float", "bool", "flag", "mask", "ep", "eps"}
_TYPES = {"step_type", "step_types"}  # dm_env: 0 first, 1 within, 2 last
_FEW = 100  # steps, of which jumps may be many
_MANY_USUAL, _MANY_FAR = 0.97, 6.0  # a jump is so many times the change that this share of the steps does not exceed
_FEW_USUAL, _FEW_FAR = 0.5, 20.0  # where there are few
_STRETCH = 1 << 12  # rows that are searched for jumps together
_SAMPLE = 8  # blocks of rows from which the usual change is taken


def terminations(file: Fields) -> np.ndarray:
    """Reads which rows truly ended their episode, bool `[N]`, under any name that certainly means that.

    Raises:
        UserError: There is none, or two of them differ.
    """
    names = sorted(_named(file, _TERMINATIONS), key=lambda name: (name != "terminals", name))
    if not names:
        vague = [name for name in file.names() if _words(name) & {"done", "dones", "last", "end", "ends"}]
        problem = f"{vague[0]!r} does not tell what truly ended from what was cut off; {_REMEDY}" if vague else None
        raise file.missing("terminals", problem)
    found = file.flags(names[0])
    for name in names[1:]:
        other = file.flags(name, len(found))
        if (other != found).any():
            row = int(np.argmax(other != found))
            raise file.error(f"{names[0]!r} and {name!r} mean the same and differ in row {row}", "remove the wrong one")
    return found


def truncations(file: Fields, rows: int) -> np.ndarray | None:
    """Reads which rows were the last of an episode that was cut off, bool `[N]`; None where no field tells."""
    found = [file.flags(name, rows) for name in _named(file, _TRUNCATIONS)]
    return np.logical_or.reduce(found) if found else None


def check_other_names(file: Fields, known: np.ndarray, remedy: str = _REMEDY) -> None:
    """Compares the ends `known` `[N]` with what other fields say, under whichever name.

    Raises:
        UserError: One of them tells of an end that is not known, or cannot be understood.
    """
    for name in file.names():
        if name in file.used or not (words := _words(name)):
            continue
        told = _told(file, name, words, len(known))
        if told is None:
            continue
        unknown = told & ~known
        if unknown.any():
            row = int(np.argmax(unknown))
            raise file.error(f"{name!r} says that an episode ends in row {row}, which nothing else does", remedy)


def _named(file: Fields, meanings: set[str]) -> list[str]:
    """Returns the fields whose names, apart from case, signs and a plural, are among these."""
    return [name for name in file.names() if _plain(name) in meanings]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower()).removesuffix("s")


def _words(name: str) -> set[str]:
    """Returns the words of a field's name if it speaks of where episodes end or begin, or nothing."""
    if name in _TYPES:
        return {name}
    if _plain(name) in _TRUNCATIONS:
        return {"timeout"}
    split = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    words = {word.lower().replace("ies", "y").removesuffix("s" if len(word) > 3 else "") for word in split}
    known = _ENDS | _STARTS | _EPISODES | _COUNTERS | _LENGTHS
    return words if words <= known | _NUMBERS | _FILLING and words & known else set()


def _told(file: Fields, name: str, words: set[str], rows: int) -> np.ndarray | None:
    """Returns which rows are the last of an episode by a field, bool `[N]`, or None where it does not speak of that."""
    try:
        shape = file.header(name).shape
        values = vector(file.raw(name)) if len(shape) in (1, 2) and shape[1:] in ((), (1,)) else None
    except UserError:
        values = None  # what cannot be read is not read
    told = None
    if values is not None:
        told = _of_rows(words, values) if len(values) == rows else _of_list(words, values, rows)
        if told is None and words & (_ENDS | _STARTS):
            raise file.error(f"{name!r} speaks of where episodes end and is not understood", f"{_REMEDY}, or remove it")
    if told is None:
        file.used.discard(name)
    return told


def _of_rows(words: set[str], values: np.ndarray) -> np.ndarray | None:
    """Understands a field of N rows."""
    last = np.zeros(len(values), bool)
    if words & _TYPES:
        return values == 2
    if words & (_ENDS | _STARTS):
        if not np.isin(values, (0, 1)).all():
            return None
        marked = values == (0 if words & {"not", "non"} else 1)
        if words & _ENDS:
            return marked
        last[:-1] = marked[1:]
        return last
    if words & _COUNTERS:
        last[:-1] = values[1:] < values[:-1]
        return last
    if words & _EPISODES and not words & _LENGTHS:
        last[:-1] = values[1:] != values[:-1]
        return last
    return None


def _of_list(words: set[str], values: np.ndarray, rows: int) -> np.ndarray | None:
    """Understands a list of places or lengths."""
    if values.dtype.kind not in "iu" or not len(values):
        return None
    places = values.astype(np.int64)
    if words & _LENGTHS:
        places = np.cumsum(places)
    elif words & _STARTS:
        places = np.append(places[1:], rows) if places[0] == 0 else np.zeros(0, np.int64)
    elif places[-1] == rows - 1:
        places = places + 1
    if not len(places) or places[-1] != rows or (np.diff(places, prepend=0) < 0).any():
        return None
    last = np.zeros(rows, bool)
    last[places[places > 0] - 1] = True
    return last


# -------------------------------------------------------------------------------------------- what nothing marks


def successors(
    file: Fields, observations: np.ndarray, ends: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compares `next_observations` with the rows that follow.

    They are equal where they differ by no more than rounding, of the less exact of both fields.

    Args:
        file: Where they come from.
        observations: float32 `[N, D]`.
        ends: Rows that are known to be the last of an episode, the last of the file among them, bool `[N]`.
        wanted: Rows whose next observations are wanted, bool `[N]`.

    Returns:
        The ends that nothing marks, bool `[N]`; and the next observations of these and of the `wanted` rows, float32
        `[M, D]`.

    Raises:
        UserError: They have another shape, or are not finite where they are wanted.
    """
    fields = ("observations", "next_observations")
    rounding = max(np.finfo(dtype).eps for dtype in (*_floats(file, fields), np.dtype(np.float32)))
    tolerance = 8 * rounding * np.abs(extent(observations)).max(axis=0)
    unmarked, found, first = np.zeros(len(observations), bool), [observations[:0]], 0
    for block in file.blocks(fields[1], observations.shape):
        rows = slice(first, first + len(block))
        following = observations[first + 1 : first + 1 + len(block)]
        (odd,) = np.nonzero((block[: len(following)] != following).any(axis=1))
        with np.errstate(invalid="ignore"):
            close = (np.abs(block[odd] - following[odd]) <= tolerance).all(axis=1)
        unmarked[first + odd[~close]] = True
        unmarked[rows] &= ~ends[rows]
        chosen = block[unmarked[rows] | wanted[rows]]
        good = np.isfinite(chosen).all(axis=1)
        if not good.all():
            place = np.flatnonzero(unmarked[rows] | wanted[rows])[int(np.argmin(good))]
            raise file.not_finite(fields[1], first + int(place))
        found.append(chosen)
        first += len(block)
    _note_unmarked(file, unmarked, int(np.count_nonzero(~ends)))
    return unmarked, np.concatenate(found)


def _floats(file: Fields, fields: tuple[str, ...]) -> list[np.dtype]:
    return [header.dtype for header in map(file.header, fields) if header.dtype.kind == "f"]


def _note_unmarked(file: Fields, unmarked: np.ndarray, possible: int) -> None:
    count = int(np.count_nonzero(unmarked))
    if not count:
        return
    row = int(np.argmax(unmarked))
    if 2 * count > possible:
        file.notes.append(
            f"'next_observations' are not the observations of the next row in {count:,} of {possible:,} rows, first in "
            f"row {row}: each of those is the end of an episode; are rows in another order, or scaled otherwise?"
        )
    else:
        file.notes.append(
            f"{count:,} more ends of episodes, first in row {row}, found where 'next_observations' are not the next row"
        )


def note_jumps(file: Fields, observations: np.ndarray, ends: np.ndarray) -> None:
    """Notes where observations `[N, D]` jump between rows of one episode, of which `ends` `[N]` are the last ones."""
    jumps = find_jumps(observations, ends)
    if len(jumps):
        file.notes.append(
            f"observations jump {len(jumps):,} times within episodes, first from row {jumps[0]} to the next: if one "
            "ends there, mark it in 'timeouts'"
        )


def find_jumps(observations: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns the rows `[J]` from which observations `[N, D]` jump to the next row, though no episode ends there.

    A number jumps where it changes by more than its standard deviation and 6 times as much as in 97 % of the steps,
    but not in the step before or after. A row jumps if two of its numbers do, or one of fewer than four that move.
    Changes of sign alone, as of quaternions and of angles that wrap around, do not count. Among fewer than 100 steps
    a jump is 20 times as far as the median.
    """
    far, deviation = _far_and_deviation(observations, ends)
    moving = far > 0
    needed = 2 if np.count_nonzero(moving) >= 4 else 1
    if not moving.any():
        return np.zeros(0, np.int64)
    least = np.where(moving, np.maximum(far, deviation), np.inf).astype(np.float32)
    found = []
    for first in range(0, len(observations) - 1, _STRETCH):
        # One step more on either side, to compare with.
        start = max(first - 1, 0)
        sizes = np.abs(observations[start : first + _STRETCH + 2])
        changes = np.abs(np.diff(sizes, axis=0))
        changes[ends[start : start + len(changes)]] = 0
        for row in np.flatnonzero((changes > least).sum(axis=1) >= needed):
            around = np.zeros_like(least)
            for other in (row - 1, row + 1):
                if 0 <= other < len(changes):
                    around = np.maximum(around, changes[other])
            jumped = (changes[row] > least) & (around < changes[row] / 4)
            if jumped.sum() >= needed and first <= start + row < first + _STRETCH:
                found.append(start + int(row))
    return np.array(found, np.int64)


def _far_and_deviation(observations: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what is many times the usual change of each number, and its standard deviation, `[D]`; from a sample."""
    size = 512
    blocks = -(-len(observations) // size)
    changes, values = [], []
    for block in np.unique(np.linspace(0, blocks - 1, min(blocks, _SAMPLE)).astype(int)):
        rows = observations[size * block : size * (block + 1) + 1]
        values.append(rows)
        changes.append(np.abs(np.diff(np.abs(rows), axis=0))[~ends[size * block :][: len(rows) - 1]])
    every = np.concatenate(changes)
    if not len(every):
        return np.zeros(observations.shape[1]), np.zeros(observations.shape[1])
    share, times = (_FEW_USUAL, _FEW_FAR) if len(every) < _FEW else (_MANY_USUAL, _MANY_FAR)
    far = times * np.quantile(every, share, axis=0, method="lower")
    return far, np.concatenate(values).std(axis=0, dtype=np.float64)
