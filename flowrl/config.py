"""Configurations as frozen dataclasses: which fields a sweep may vary, their ranges and their help text."""

import dataclasses
import math
import struct
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flowrl.errors import UserError, suggestion

if TYPE_CHECKING:
    import jax

MOST_COUNT = 2**31 - 1
"""The largest number that counters of programs hold, int32."""
MOST_FLOAT = (2 - 2**-23) * 2.0**127
"""The largest number of float32, in which programs compute."""
MOST_OF_SIZE = 4096
"""The most of anything that shapes a program beside its layers and batches; steps of a flow are written out in it."""
MOST_EPISODES = 1_000_000
"""The most episodes, or other things of the kind, that a program is asked for."""
MOST_WORKERS = 1024
"""The most processes that a program is asked for."""
MOST_UNITS, MOST_LAYERS = 1_000_000, 100
"""The most units of a hidden layer, and the most layers."""


def setting(
    default: Any,
    help: str,
    choices: tuple[str, ...] = (),
    low: float = float("-inf"),
    high: float = float("inf"),
    zero: str = "",
) -> Any:
    """Declares a field of a program's own settings, with its help text.

    Args:
        default: Its value if it is not given.
        help: For `--help`.
        choices: What a text may be, where not anything.
        low: The least that a number may be.
        high: The most.
        zero: Why a number may not be 0, where that is so.
    """
    return dataclasses.field(
        default=default, metadata={"help": help, "choices": choices, "range": (low, high), "zero": zero}
    )


def static(
    default: Any, help: str, choices: tuple[Any, ...] = (), low: float = float("-inf"), high: float = float("inf")
) -> Any:
    """Declares a field that shapes the program; another value compiles another program.

    A number with a fraction must lie in [`low`, `high`], a whole one in [1, `MOST_OF_SIZE`], or from `low` or to `high`
    where given.
    """
    metadata = {"help": help, "sweepable": False, "choices": choices, "range": (low, high)}
    return dataclasses.field(default=default, metadata=metadata)


def sweepable(default: float | int, help: str, low: float = 0.0, high: float = float("inf")) -> Any:
    """Declares a traced scalar that mapped runs may differ in; it must lie in [`low`, `high`]."""
    return dataclasses.field(default=default, metadata={"help": help, "sweepable": True, "range": (low, high)})


def targets_lag() -> Any:
    """Declares the field of agents whose authors' code averages the parameters from before the step."""
    return static(True, "Targets move toward the parameters before each step, as the authors' do; else those after it.")


def hyper(config: Any, replacements: Mapping[str, Any] | None = None) -> "dict[str, jax.Array]":
    """Returns the sweepable fields of a configuration as strongly typed scalars: int32 or float32, as declared.

    A weakly typed scalar in the state would cost a second trace.

    Args:
        config: An agent's configuration.
        replacements: Values, possibly traced, to use instead of the configuration's.

    Raises:
        KeyError: A replacement is not a sweepable field.
    """
    import jax.numpy as jnp  # here, so that a program's --help needs no JAX

    fields = {field.name: field for field in dataclasses.fields(config) if field.metadata["sweepable"]}
    values = {name: getattr(config, name) for name in fields} | dict(replacements or {})
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise KeyError(f"not sweepable fields of {type(config).__module__}.Config: {', '.join(unknown)}")
    return {
        name: jnp.asarray(value, jnp.int32 if fields[name].type is int else jnp.float32)
        for name, value in values.items()
    }


def hypers(config: Any, values: Sequence[Mapping[str, float]]) -> "dict[str, jax.Array]":
    """Returns the sweepable fields of R runs, each `[R]`, one mapping of values other than the configuration's per run.

    Raises:
        KeyError: A value is not of a sweepable field.
    """
    names = [field.name for field in dataclasses.fields(config) if field.metadata["sweepable"]]
    names += sorted({name for own in values for name in own} - set(names))
    return hyper(config, {name: [own.get(name, getattr(config, name, None)) for own in values] for name in names})


def check(config: Any) -> None:
    """Checks declared ranges and choices, of an agent's configuration or of a program's settings.

    Shares of goals must be at most 1 in all.

    Raises:
        UserError: A value is out of range; the message names its flag.
    """
    for field in dataclasses.fields(config):
        _check_value(field, getattr(config, field.name))
    for role in ("actor", "value"):
        shares = {
            f"--agent.{role}_p_{kind}": getattr(config, f"{role}_p_{kind}", 0) for kind in ("trajectory", "random")
        }
        if sum(shares.values()) > 1 + 1e-6:
            given = " and ".join(f"{flag}={share}" for flag, share in shares.items())
            raise UserError(f"{given} are shares of the same goals; leave at most 1 in all")


def _check_value(field: dataclasses.Field, value: Any) -> None:
    of_agent = "sweepable" in field.metadata
    flag, choices = f"--{'agent.' * of_agent}{field.name}", field.metadata.get("choices", ())
    if value is None:
        return
    if choices:
        if value not in choices:
            known = " or ".join(map(str, choices)) if of_agent else f"{', '.join(choices[:-1])} or {choices[-1]}"
            near = "" if of_agent or "?" not in (told := suggestion(str(value), choices)) else told
            raise UserError(f"{flag}={value} {'must be' if of_agent else 'is unknown; choose'} {known}{near}")
    elif isinstance(value, tuple):
        if len(value) > MOST_LAYERS:
            raise UserError(f"{flag} has {len(value)} layers; the most is {MOST_LAYERS}")
        for size in value:
            _check_count(f"{flag}={value}", size, 1, MOST_UNITS)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = field.metadata["range"]
        if value == 0 and (reason := field.metadata.get("zero")):
            raise UserError(f"{flag}=0 {reason}; give another number, or leave it out")
        if field.metadata.get("sweepable") or _is_float(field.type):
            _check_number(f"{flag}={value}", value, low, min(high, MOST_COUNT if field.type is int else MOST_FLOAT))
        elif of_agent:
            least, most = (1 if low == -math.inf else low), (MOST_OF_SIZE if high == math.inf else high)
            _check_count(f"{flag}={value}", value, least, most)
        else:
            _check_count(f"{flag}={value}", value, low, high)


def _is_float(kind: Any) -> bool:
    return kind is float or (isinstance(kind, types.UnionType) and float in kind.__args__)


def _check_count(setting: str, value: float, low: float, high: float) -> None:
    if value < low:
        raise UserError(f"{setting} is too small; the least is {low}")
    if value > high:
        raise UserError(f"{setting} is too large; the most is {high:,}")


def _check_number(setting: str, value: float, low: float, high: float) -> None:
    """Checks a number that programs hold as float32 or int32."""
    if not max(low, -MOST_FLOAT) <= value <= high:  # nor for NaN
        interval = f"[{max(low, -MOST_FLOAT):g}, {high:g}]" if high != MOST_COUNT else f"[{low:g}, {MOST_COUNT}]"
        raise UserError(f"{setting} is out of range; give a value in {interval}")
    if value and isinstance(value, float) and struct.unpack("f", struct.pack("f", value))[0] == 0:
        raise UserError(f"{setting} is too small to be told from 0; give 0 or a larger number")


@dataclasses.dataclass(frozen=True)
class GoalConditioned:
    """Settings that every goal-conditioned agent has; the defaults are OGBench's."""

    hidden_dims: tuple[int, ...] = static((512, 512, 512), "Hidden layers of every network.")
    batch_size: int = static(1024, "Transitions per update.", high=MOST_COUNT)
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
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
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
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    critic_layer_norm: bool = static(False, "LayerNorm after each hidden layer of the critics.")
    learning_rate: float = sweepable(3e-4, "Adam's step size, for every network.")
    discount: float = sweepable(0.99, "Discount per environment step.", 0, 1)
    critic_target_rate: float = sweepable(0.005, "Polyak rate of the target critics.", 0, 1)
