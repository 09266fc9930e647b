"""Users' own files of transitions or episodes, and the layout that all data without goals are brought into.

**The layout.** Episodes lie end to end. The next observation of a row is that of the row after it; `terminals` marks
the last row of each episode, which has no transition. Where the file holds what an episode's last transition led to, or
no update can depend on it because the mask is 0, it gets a row of its own.

**Flat files** (.npz or HDF5) have N rows, one per transition:

- `observations` `[N, D]`, `actions` `[N, A]`, `rewards` `[N]`, `terminals` `[N]`: whether the transition ended its
  episode by a true termination, after which nothing can be earned (not by a limit of time);
- `timeouts` or `truncations` `[N]`, optional: whether the episode ends here for another reason;
- `next_observations` `[N, D]`, optional: an episode also ends wherever they are not the next row's observations. Where
  they are missing, the transition at a timeout and the file's last one are dropped, since what they led to is unknown,
  and it is noted where observations jump;
- `masks` `[N]` in [0, 1], optional: what the next value is multiplied by. Where they are missing they are
  1 - terminals; where given, they alone say which transitions terminate, and `terminals` only where episodes end.

Other usual names of the ends, and fields that tell of them otherwise, are what `flowrl.tasks.ends` is about.

**Episode files** (HDF5, Minari's form) have one group `episode_<i>` per episode, each with `observations` `[T + 1, D]`,
`actions` `[T, A]`, `rewards` `[T]`, `terminations` `[T]` and, optional, `truncations` `[T]`.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from flowrl.tasks import ends as marks
from flowrl.tasks.fields import Arrays, Expected, Fields, Reading, told
from flowrl.tasks.storage import Hdf5, opened

REMEDY = "mend the file; docs/data.md says which fields it needs"
OPTIONAL = ("timeouts", "next_observations", "masks")
EPISODE_FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")
_EPISODE = re.compile(r"episode_(\d+)")


def read(path: Path, expected: Expected) -> Arrays:
    """Returns the arrays that `examine` does, and prints what there is to note."""
    return told(examine(path, expected)).arrays


def examine(path: Path, expected: Expected, remedy: str = REMEDY) -> Reading:
    """Reads a user's own file, of transitions or of episodes.

    Args:
        path: The file.
        expected: What it must fit.
        remedy: What messages advise where they know nothing better.

    Returns:
        `observations`, `actions`, `rewards`, `masks` float32 and `terminals` bool, `[N, ...]`, in the layout above.

    Raises:
        UserError: The file is not of this form.
    """
    with opened(path, remedy) as file:
        names = [name for name in file.names() if _EPISODE.fullmatch(name)] if isinstance(file, Hdf5) else []
        if not names or "observations" in file:
            return _flat(file, expected)
        ordered = sorted(names, key=lambda name: int(name.removeprefix("episode_")))
        found = [episode(file, f"{name}/", expected) for name in ordered]
        note_ends_amid(file, [end for name in ordered for end in ends_amid(file, f"{name}/")])
        reading = file.reading(join(file, found), sum(len(one["actions"]) for one in found))
        inside = (f"{ordered[0]}/{name}" for name in file.names(f"{ordered[0]}/") if name not in EPISODE_FIELDS)
        return reading._replace(unread=(*reading.unread, *inside))


def _flat(file: Fields, expected: Expected) -> Reading:
    """Reads a file of transitions."""
    terminals = marks.terminations(file)
    rows, like = len(terminals), "as many as 'terminals' has"
    if rows == 0:
        raise file.error("'terminals' leaves no transition, since there are no rows")
    arrays = {
        "observations": file.matrix("observations", rows, like, expected.observation_dim),
        "actions": file.actions("actions", rows, like, expected),
        "rewards": file.vector("rewards", rows, like),
        "masks": file.vector("masks", rows, like) if "masks" in file else 1 - terminals.astype(np.float32),
    }
    outside = (arrays["masks"] < 0) | (arrays["masks"] > 1)
    if outside.any():
        row = int(np.argmax(outside))
        raise file.error(f"'masks' is {arrays['masks'][row]} in row {row}, but only numbers in [0, 1] are allowed")
    ends = terminals.copy()
    if (cut := marks.truncations(file, rows)) is not None:
        ends |= cut
    ends[-1] = True
    observations, kept = arrays["observations"], np.ones(rows, bool)
    if "next_observations" in file:
        unmarked, finals = marks.successors(file, observations, ends, wanted=ends)
        ends |= unmarked
    else:
        kept = ~ends | (arrays["masks"] == 0)
        finals = observations[kept & ends]
    marks.check_other_names(file, ends)
    if "next_observations" not in file:
        marks.note_jumps(file, observations, ends)
    return file.reading(lay_out(file, arrays, kept, ends, finals), rows, OPTIONAL)


def lay_out(file: Fields, arrays: Arrays, kept: np.ndarray, ends: np.ndarray, finals: np.ndarray) -> Arrays:
    """Brings N rows, each of which may have a transition, into the layout.

    Args:
        file: Where they come from.
        arrays: `observations`, `actions`, `rewards` and `masks` `[N, ...]`.
        kept: Which rows have a transition `[N]`; those that have none end their episode.
        ends: Which rows are the last of their episode in the file `[N]`, the very last among them.
        finals: What the transitions of rows that are both led to `[M, D]`.

    Raises:
        UserError: No row has a transition.
    """
    if not kept.any():
        raise file.error("no row has a transition, since every one ends an episode without saying what it led to")
    firsts = np.concatenate([[True], ends[:-1]])
    copies = np.where(firsts & ~kept, 0, 1 + (kept & ends))  # an episode without any transition leaves nothing
    source = np.repeat(np.arange(len(kept)), copies)
    added = np.concatenate([[False], source[1:] == source[:-1]])
    laid = {name: array[source] for name, array in arrays.items()}
    laid["observations"][added] = finals
    for name in ("actions", "rewards", "masks"):
        laid[name][added] = 0
    return laid | {"terminals": added | ~kept[source]}


def episode(file: Fields, prefix: str, expected: Expected) -> Arrays:
    """Reads one episode of T transitions.

    Args:
        file: Holds the fields.
        prefix: What stands before their names.
        expected: What they must fit.

    Returns:
        `observations` `[T + 1, D]`; `actions` `[T, A]`; `rewards` and `masks` `[T]`.
    """
    terminations = file.flags(f"{prefix}terminations")
    steps, like = len(terminations), f"as many as '{prefix}terminations' has"
    more = f"one more than '{prefix}terminations' has"
    return {
        "observations": file.matrix(f"{prefix}observations", steps + 1, more, expected.observation_dim),
        "actions": file.actions(f"{prefix}actions", steps, like, expected),
        "rewards": file.vector(f"{prefix}rewards", steps, like),
        "masks": 1 - terminations.astype(np.float32),
    }


def ends_amid(file: Fields, prefix: str) -> list[str]:
    """Returns which ends of an episode, whose fields have this prefix, are marked before its last transition."""
    found = []
    for field in (f"{prefix}terminations", f"{prefix}truncations"):
        if field in file and (flags := file.flags(field))[:-1].any():
            found.append(f"{field!r} is set in row {int(np.argmax(flags))}")
    return found


def note_ends_amid(file: Fields, found: list[str]) -> None:
    """Notes what `ends_amid` has found in all episodes."""
    if found:
        more = f", and {len(found) - 1:,} times more so" if len(found) > 1 else ""
        file.notes.append(f"{found[0]}, and the episode goes on after it{more}")


def join(file: Fields, episodes: Iterable[Arrays]) -> Arrays:
    """Lays episodes end to end; those without a transition leave nothing.

    Raises:
        UserError: There is no transition, or observations or actions differ in size between episodes.
    """
    found = [one for one in episodes if len(one["actions"])]
    if not found:
        raise file.error("no episode has a transition")
    for field in ("observations", "actions"):
        if len(sizes := {one[field].shape[1] for one in found}) > 1:
            raise file.error(f"{field!r} have sizes {sorted(sizes)} in different episodes, but they must be the same")
    ends = np.cumsum([len(one["observations"]) for one in found]) - 1
    terminals = np.zeros(ends[-1] + 1, bool)
    terminals[ends] = True
    arrays = {"observations": np.concatenate([one["observations"] for one in found])}
    for field in ("actions", "rewards", "masks"):
        arrays[field] = np.zeros((len(terminals), *found[0][field].shape[1:]), np.float32)
        arrays[field][~terminals] = np.concatenate([one[field] for one in found])
    return arrays | {"terminals": terminals}
