"""D4RL's datasets: where they are, how their HDF5 files are read, and their normalised scores."""

from typing import NamedTuple


class Set(NamedTuple):
    """One D4RL dataset.

    Attributes:
        url: Where its HDF5 file was published.
        env_id: The Gymnasium environment that its policies are evaluated in, or None where none is known to be equal.
        note: What people must know about that environment, or empty.
    """

    url: str
    env_id: str | None
    note: str


SETS: dict[str, Set] = {}
