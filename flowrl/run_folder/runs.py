"""The runs that one program trains together: what each is told apart by."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Run(NamedTuple):
    """One of the runs that a program trains together.

    Attributes:
        seed: Its key is `jax.random.key(seed)`, whatever its values.
        values: Its values of traced fields of the agent's configuration, by dotted name, where they are its own.
    """

    seed: int
    values: Mapping[str, float]

    @property
    def swept(self) -> dict[str, float]:
        """Its own values under the names of their flags."""
        return {f"agent.{name}": value for name, value in self.values.items()}

    @property
    def labels(self) -> dict[str, Any]:
        """What tells it from the others in a log line."""
        return {"seed": self.seed} | self.swept

    @classmethod
    def of(cls, labels: Mapping[str, Any]) -> "Run":
        """Returns the run with these labels."""
        values = {name.removeprefix("agent."): value for name, value in labels.items() if name != "seed"}
        return cls(labels["seed"], values)


def points(runs: Sequence[Run]) -> list[Mapping[str, float]]:
    """Returns the different values of some runs, in their order."""
    return list({tuple(run.values.items()): run.values for run in runs}.values())


def seeds(runs: Sequence[Run]) -> list[int]:
    """Returns the different seeds of some runs, in their order."""
    return list(dict.fromkeys(run.seed for run in runs))
