"""Configurations as frozen dataclasses: which fields a sweep may vary, their ranges and their help text."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flowrl.errors import UserError


def setting(default: Any, help: str) -> Any:
    """Declares a field of a program's own settings, with its help text."""
    return dataclasses.field(default=default, metadata={"help": help})


def static(
    default: Any, help: str, choices: tuple[Any, ...] = (), low: float = float("-inf"), high: float = float("inf")
) -> Any:
    """Declares a field that shapes the program; another value compiles another program.

    A number with a fraction must lie in [`low`, `high`], a whole one must be at least `low`, or by default 1.
    """
    metadata = {"help": help, "sweepable": False, "choices": choices, "range": (low, high)}
    return dataclasses.field(default=default, metadata=metadata)


def sweepable(default: float | int, help: str, low: float = 0.0, high: float = float("inf")) -> Any:
    """Declares a traced scalar that mapped runs may differ in; it must lie in [`low`, `high`]."""
    return dataclasses.field(default=default, metadata={"help": help, "sweepable": True, "range": (low, high)})


def targets_lag() -> Any:
    """Declares the field of agents whose authors' code averages the parameters from before the step."""
    return static(True, "Targets move toward the parameters before each step, as the authors' do; else those after it.")


def hyper(config: Any, replacements: Mapping[str, Any] | None = None) -> dict[str, jax.Array]:
    """Returns the sweepable fields of a configuration as strongly typed scalars: int32 or float32, as declared.

    A weakly typed scalar in the state would cost a second trace.

    Args:
        config: An agent's configuration.
        replacements: Values, possibly traced, to use instead of the configuration's.

    Raises:
        KeyError: A replacement is not a sweepable field.
    """
    fields = {field.name: field for field in dataclasses.fields(config) if field.metadata["sweepable"]}
    values = {name: getattr(config, name) for name in fields} | dict(replacements or {})
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise KeyError(f"not sweepable fields of {type(config).__module__}.Config: {', '.join(unknown)}")
    return {
        name: jnp.asarray(value, jnp.int32 if fields[name].type is int else jnp.float32)
        for name, value in values.items()
    }


def hypers(config: Any, values: Sequence[Mapping[str, float]]) -> dict[str, jax.Array]:
    """Returns the sweepable fields of R runs, each `[R]`, one mapping of values other than the configuration's per run.

    Raises:
        KeyError: A value is not of a sweepable field.
    """
    names = [field.name for field in dataclasses.fields(config) if field.metadata["sweepable"]]
    names += sorted({name for own in values for name in own} - set(names))
    return hyper(config, {name: [own.get(name, getattr(config, name, None)) for own in values] for name in names})


def check(config: Any) -> None:
    """Checks declared ranges; static sizes must be positive or as declared, and shares of goals at most 1 in all.

    Raises:
        UserError: A value is out of range; the message names its flag.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata["sweepable"] or field.type is float:
            low, high = field.metadata["range"]
            if not (low <= value <= high and math.isfinite(value)):
                interval = f"[{low:g}, {high:g}" + ("]" if math.isfinite(high) else ")")
                raise UserError(f"--agent.{field.name}={value} is out of range; give a value in {interval}")
        elif field.metadata["choices"]:
            if value not in field.metadata["choices"]:
                known = " or ".join(map(str, field.metadata["choices"]))
                raise UserError(f"--agent.{field.name}={value} must be {known}")
        elif not isinstance(value, bool):
            sizes = value if isinstance(value, tuple) else (value,)
            least = max(field.metadata["range"][0], 0 if math.isfinite(field.metadata["range"][0]) else 1)
            if any(isinstance(size, int) and size < least for size in sizes):
                raise UserError(f"--agent.{field.name}={value} is too small; the least is {least:g}")
    for role in ("actor", "value"):
        shares = {
            f"--agent.{role}_p_{kind}": getattr(config, f"{role}_p_{kind}", 0) for kind in ("trajectory", "random")
        }
        if sum(shares.values()) > 1 + 1e-6:
            given = " and ".join(f"{flag}={share}" for flag, share in shares.items())
            raise UserError(f"{given} are shares of the same goals; leave at most 1 in all")


@dataclasses.dataclass(frozen=True)
class GoalConditioned:
    """Settings that every goal-conditioned agent has; the defaults are OGBench's."""

    hidden_dims: tuple[int, ...] = static((512, 512, 512), "Hidden layers of every network.")
    batch_size: int = static(1024, "Transitions per update.")
    learning_rate: float = sweepable(3e-4, "Adam's step size, for every network.")
    actor_p_trajectory: float = sweepable(1.0, "Share of actor goals from the rest of the episode.", 0, 1)
    actor_p_random: float = sweepable(
        0.0, "Share of actor goals from anywhere; what remains is the state itself.", 0, 1
    )


@dataclasses.dataclass(frozen=True)
class GoalValue(GoalConditioned):
    """Settings of agents with a goal-conditioned value function; the defaults are OGBench's."""

    discount: float = sweepable(0.99, "Discount per environment step.", 0, 1)
    expectile: float = sweepable(0.7, "Expectile of the value loss; 0.5 is the mean.", 0, 1)
    value_target_rate: float = sweepable(0.005, "Polyak rate of the target value network.", 0, 1)
    lagging_targets: bool = targets_lag()
    value_p_trajectory: float = sweepable(0.5, "Share of value goals from the rest of the episode.", 0, 1)
    value_p_random: float = sweepable(
        0.3, "Share of value goals from anywhere; what remains is the state itself.", 0, 1
    )


@dataclasses.dataclass(frozen=True)
class Offline:
    """Settings that every agent for a single task has; the defaults are FQL's."""

    hidden_dims: tuple[int, ...] = static((512, 512, 512, 512), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.")
    learning_rate: float = sweepable(3e-4, "Adam's step size, for every network.")


@dataclasses.dataclass(frozen=True)
class OfflineQ(Offline):
    """Settings of agents with a critic and a policy that maps noise to actions."""

    discount: float = sweepable(0.99, "Discount per environment step.", 0, 1)
    critic_target_rate: float = sweepable(0.005, "Polyak rate of the target critics.", 0, 1)
    q_agg: str = static("min", "How the target critics' values are combined in the TD target.", ("min", "mean"))
    candidates: int = static(1, "With more than 1, also evaluates the best of that many actions by Q.")
    candidate_temperature: float = sweepable(
        0.0, "Candidates are drawn by softmax(temperature x Q), as in DQL's code; 0 takes the best."
    )


@dataclasses.dataclass(frozen=True)
class Online:
    """Settings that every agent made for online learning has; the defaults are SAC's."""

    hidden_dims: tuple[int, ...] = static((256, 256), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.")
    critic_layer_norm: bool = static(False, "LayerNorm after each hidden layer of the critics.")
    learning_rate: float = sweepable(3e-4, "Adam's step size, for every network.")
    discount: float = sweepable(0.99, "Discount per environment step.", 0, 1)
    critic_target_rate: float = sweepable(0.005, "Polyak rate of the target critics.", 0, 1)
