"""Published settings per dataset and agent, each with its source, and the quick settings for two CPU cores."""

import csv
import functools
from importlib import resources


@functools.cache
def _rows(table: str) -> tuple[dict[str, str], ...]:
    with (resources.files(__package__) / table).open(newline="") as lines:
        return tuple(csv.DictReader(lines))


def ogbench_datasets() -> frozenset[str]:
    """Returns the names of OGBench's datasets, without versions."""
    return frozenset(row["dataset"] for row in _rows("ogbench_goal_conditioned.csv"))
