"""What can be trained on: one module a family of names, each with its datasets and environments."""

from flowrl.errors import UserError, suggestion
from flowrl.tasks.collected import Collected
from flowrl.tasks.d4rl import D4RL
from flowrl.tasks.minari import Minari
from flowrl.tasks.ogbench import OGBench
from flowrl.tasks.registered import Registered
from flowrl.tasks.task import Facts, Task

__all__ = ["FAMILIES", "Facts", "Task", "parse"]

FAMILIES: tuple[type[Task], ...] = (Minari, D4RL, Collected, OGBench, Registered)
"""Whose names there are; the first that knows one has it."""


def parse(name: str) -> Task:
    """Resolves the name of an OGBench, D4RL or Minari dataset, of one of our own, or of a Gymnasium environment.

    Raises:
        UserError: The name is unknown, or names something flowrl cannot train on.
    """
    for family in FAMILIES:
        if (found := family.parse(name)) is not None:
            return found
    known = [known for family in FAMILIES for known in family.names()]
    raise UserError(
        f"unknown environment {name!r}{suggestion(name.removesuffix('-v0'), known)}; one of your own is named "
        "module:Name-v0, after the module that registers it (docs/data.md)"
    )
