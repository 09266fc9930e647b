"""The runs that one program trains together: what each is told apart by."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Trial(NamedTuple):
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


def points(trials: Sequence[Trial]) -> list[Mapping[str, float]]:
    """Returns the different values of some runs, in their order."""
    return list({tuple(trial.values.items()): trial.values for trial in trials}.values())


def seeds(trials: Sequence[Trial]) -> list[int]:
    """Returns the different seeds of some runs, in their order."""
    return list(dict.fromkeys(trial.seed for trial in trials))


def trial(labels: Mapping[str, Any]) -> Trial:
    """Returns the trial with these labels."""
    values = {name.removeprefix("agent."): value for name, value in labels.items() if name != "seed"}
    return Trial(labels["seed"], values)
