"""Configuration records: frozen dataclasses that nest, and are pytrees.

A `static` field is structure: another value compiles another program. A `traced` field is a leaf: runs that are mapped
together may differ in it. A `nested` field is a record of its own, declared beside the functions that read it. What an
agent can be told, and what a run can be told, are compositions of such records; `flatten` is the one source of their
flags, help, ranges, labels, presets and JSON.
"""

import dataclasses
import math
import struct
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, dataclass_transform, get_origin

from flowrl.errors import UserError, suggestion

T = TypeVar("T")

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


# ------------------------------------------------------------------------------------------------------- records


def static(
    default: Any,
    help: str,
    *,
    choices: tuple[Any, ...] = (),
    low: float = 1,
    high: float = MOST_OF_SIZE,
    zero: str = "",
    resumable: bool = False,
    learning: bool = True,
    acting: bool = False,
) -> Any:
    """Declares a field that shapes the program, or stays outside of it.

    Args:
        default: Its value if it is not given.
        help: For `--help`.
        choices: What it may be, where not anything.
        low: The least that a number may be.
        high: The most.
        zero: Why a number may not be 0, where that is so.
        resumable: Whether it may be another when a run is resumed.
        learning: Whether what a seed learns, or how that is evaluated, depends on it.
        acting: Whether a trained policy may act with another value.
    """
    told: dict[str, Any] = {"kind": "static", "help": help, "choices": choices, "range": (low, high), "zero": zero}
    told |= {"resumable": resumable, "learning": learning, "acting": acting}
    return dataclasses.field(default=default, metadata=told)


def traced(default: float | int, help: str, *, low: float = 0.0, high: float = math.inf, acting: bool = False) -> Any:
    """Declares a number in [`low`, `high`] that mapped runs may differ in, and a sweep may vary."""
    told: dict[str, Any] = {"kind": "traced", "help": help, "choices": (), "range": (low, high), "zero": ""}
    told |= {"resumable": False, "learning": True, "acting": acting}
    return dataclasses.field(default=default, metadata=told)


def nested(default: Any, help: str = "") -> Any:
    """Declares a record in a record, whose settings are told by dotted names: `--agent.critic.heads=10`."""
    return dataclasses.field(default=default, metadata={"kind": "nested", "help": help})


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """Makes a class of annotated fields a frozen record of settings.

    Nothing is checked when one is made; `check` does that. A record whose fields must agree with each other has a
    method `problem(self, prefix: str) -> str`, which says what is wrong with them; flags begin with `prefix`.
    What a user should know of its values before a training, its method `note(self, prefix: str) -> str` says.
    """
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """Makes a record that is a pytree too: what an agent reads, and the state of a training holds."""
    import jax  # here, so that programs which only read run folders do without

    made = record(cls)
    kinds = {field.name: field.metadata["kind"] for field in dataclasses.fields(made)}  # type: ignore[arg-type]
    leaves = [name for name, kind in kinds.items() if kind != "static"]
    structure = [name for name, kind in kinds.items() if kind == "static"]
    return jax.tree_util.register_dataclass(made, leaves, structure)


# ------------------------------------------------------------------------------------------------ names and values


class Entry(NamedTuple):
    """One setting of a record, or of a record in it.

    Attributes:
        name: With dots: `critic.heads`.
        field: Its declaration.
        value: Its value.
    """

    name: str
    field: "dataclasses.Field[Any]"
    value: Any

    @property
    def kind(self) -> Any:
        """The declared type, without `None` where that is allowed too."""
        return bare(self.field.type)

    @property
    def traced(self) -> bool:
        """Whether mapped runs may differ in it."""
        return bool(self.field.metadata["kind"] == "traced")


def bare(kind: Any) -> Any:
    """Returns the type inside an optional one, and that of the values of a `Literal`."""
    if isinstance(kind, types.UnionType):
        (kind,) = [option for option in kind.__args__ if option is not type(None)]
    return type(kind.__args__[0]) if get_origin(kind) is Literal else kind


def flatten(record: Any, prefix: str = "") -> Iterator[Entry]:
    """Yields all that can be set in a record, by dotted name."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.metadata["kind"] == "nested":
            yield from flatten(value, f"{prefix}{field.name}.")
        else:
            yield Entry(prefix + field.name, field, value)


def values(record: Any) -> dict[str, Any]:
    """Returns all values of a record by dotted name."""
    return {entry.name: entry.value for entry in flatten(record)}


def put(record: T, values: Mapping[str, Any]) -> T:
    """Returns a record with other values: `put(config, {"critic.heads": 10})`.

    Raises:
        KeyError: A name is none of the record's settings.
    """
    if unknown := values.keys() - {entry.name for entry in flatten(record)}:
        raise KeyError(f"no such settings: {', '.join(sorted(unknown))}")
    own: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        first, _, rest = name.partition(".")
        own.setdefault(first, {})[rest] = value
    changed = {name: new[""] if "" in new else put(getattr(record, name), new) for name, new in own.items()}
    return dataclasses.replace(record, **changed)  # type: ignore[type-var]


# ------------------------------------------------------------------------------------------------------- arrays


def as_arrays(config: T) -> T:
    """Returns a configuration whose traced fields are strongly typed arrays, int32 or float32, as declared.

    So `alpha=10` and `alpha=10.0` share a program, and nothing is traced twice.
    """
    import jax.numpy as jnp

    def cast(entry: Entry) -> Any:
        return jnp.asarray(entry.value, jnp.int32 if entry.kind is int else jnp.float32)

    return put(config, {entry.name: cast(entry) for entry in flatten(config) if entry.traced})


def stacked(config: T, values: Sequence[Mapping[str, float]]) -> T:
    """Returns the configurations of R runs in one, its traced fields `[R]`.

    Args:
        config: What they have in common.
        values: For each run the values of traced fields, by dotted name, where they are its own.

    Raises:
        KeyError: A value is not of a traced field.
    """
    shared = {entry.name: entry.value for entry in flatten(config) if entry.traced}
    if unknown := {name for own in values for name in own} - shared.keys():
        raise KeyError(f"not traced fields of {type(config).__module__}: {', '.join(sorted(unknown))}")
    rows = {name: [own.get(name, value) for own in values] for name, value in shared.items()}
    return as_arrays(put(config, rows))


# ------------------------------------------------------------------------------------------------------- ranges


def check(record: Any, prefix: str = "") -> None:
    """Checks declared ranges and choices, and what records say themselves.

    Args:
        record: Settings of a run, or an agent's.
        prefix: What stands before their names in flags: `agent.`.

    Raises:
        UserError: A value is out of range; the message names its flag.
    """
    for entry in flatten(record, prefix):
        _check_value(entry)
    for start, part in _records(record, f"--{prefix}"):
        if hasattr(part, "problem") and (problem := part.problem(start)):
            raise UserError(problem)


def notes(record: Any, prefix: str = "") -> tuple[str, ...]:
    """Returns what records say of themselves that one may not expect, by their methods `note`; arguments as `check`."""
    parts = [(start, part) for start, part in _records(record, f"--{prefix}") if hasattr(part, "note")]
    return tuple(filter(None, (part.note(start) for start, part in parts)))


def _records(record: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    yield prefix, record
    for field in dataclasses.fields(record):
        if field.metadata["kind"] == "nested":
            yield from _records(getattr(record, field.name), f"{prefix}{field.name}.")


def _check_value(entry: Entry) -> None:
    field, value, flag = entry.field, entry.value, f"--{entry.name}"
    low, high = field.metadata["range"]
    if value is None:
        return
    if choices := field.metadata["choices"]:
        if value not in choices:
            near = told if "?" in (told := suggestion(str(value), [str(choice) for choice in choices])) else ""
            known = " or ".join(filter(None, [", ".join(map(str, choices[:-1])), str(choices[-1])]))
            raise UserError(f"{flag}={value} is unknown; choose {known}{near}")
    elif isinstance(value, tuple):
        if len(value) > MOST_LAYERS:
            raise UserError(f"{flag} has {len(value)} layers; the most is {MOST_LAYERS}")
        for size in value:
            _check_count(f"{flag}={value}", size, 1, MOST_UNITS)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if value == 0 and (reason := field.metadata["zero"]):
            raise UserError(f"{flag}=0 {reason}; give another number, or leave it out")
        if entry.traced or entry.kind is float:
            _check_number(f"{flag}={value}", value, low, min(high, MOST_COUNT if entry.kind is int else MOST_FLOAT))
        else:
            _check_count(f"{flag}={value}", value, low, high)


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
