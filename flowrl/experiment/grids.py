"""Grids of hyperparameters × seeds, split into programs and waves, and the record of that in a sweep's folder."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowrl import agents, tasks
from flowrl import config as configs
from flowrl.config import record, static
from flowrl.errors import UserError
from flowrl.experiment import estimates
from flowrl.experiment.settings import MOST_RUNS, Plan, Settings, plan, require_names
from flowrl.experiment.stored import require_agent
from flowrl.machine import devices, hosts, schema
from flowrl.run_folder import formats, texts
from flowrl.run_folder.layout import SWEEP
from flowrl.run_folder.runs import Run

SELECT = {
    "final": "mean over tasks and the last three evaluations",
    "last": "mean over tasks at the last evaluation",
    "best": "mean over tasks at each run's best evaluation, which is higher than what its policy can do",
}
"""What a run's score can be."""


@record
class SweepSettings:
    """Settings of a sweep beside those of its runs."""

    runs_at_once: int | None = static(
        None, "Runs of one program; absent, as many as fit into the memory of the devices.", high=MOST_RUNS
    )
    select: str = static(
        "final", "Score of a run: final (its last three evaluations), last, or best, which flatters.",
        choices=tuple(SELECT),
    )  # fmt: skip


class Group(NamedTuple):
    """Runs that are trained together in one program, in a run directory of their own.

    Attributes:
        folder: The directory, inside that of the sweep.
        fixed: Values of the agent's settings that all its runs share.
        runs: The runs.
    """

    folder: str
    fixed: Mapping[str, Any]
    runs: Sequence[Run]


class Sweep(NamedTuple):
    """What is swept.

    Attributes:
        given: Settings of the runs that were given, by dotted name.
        grid: For each setting of the agent that was given its values, one or several.
        options: The settings of the sweep itself.
    """

    given: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]]
    options: SweepSettings

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return Path(self.given["run_dir"]).expanduser()

    @property
    def seeds(self) -> list[int]:
        """The seeds of each grid point."""
        return configs.put(Settings(), self.given).seeds

    @property
    def swept(self) -> list[str]:
        """The settings with several values."""
        return [name for name, values in self.grid.items() if len(values) > 1]

    @property
    def kept(self) -> dict[str, Any]:
        """What was given that may not be otherwise when the sweep is continued; nor may its updates."""
        fixed = {entry.name for entry in configs.flatten(Settings()) if not entry.field.metadata["resumable"]}
        return {name: value for name, value in self.given.items() if name in fixed or name == "steps"}

    @property
    def free(self) -> dict[str, Any]:
        """The rest of what was given."""
        return {name: value for name, value in self.given.items() if name not in self.kept}


# -------------------------------------------------------------------------------------------------------- parts


def _product(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def split(config: Any, grid: Mapping[str, Sequence[Any]], seeds: Sequence[int]) -> list[Group]:
    """Splits the grid × seeds into groups, each of the runs that differ in traced settings only.

    Args:
        config: The agent's configuration.
        grid: For each of its settings the values.
        seeds: Of every grid point.
    """
    traced = {entry.name for entry in configs.flatten(config) if entry.traced}
    mapped = {name: values for name, values in grid.items() if name in traced and len(values) > 1}
    static = {name: values for name, values in grid.items() if name not in mapped}
    runs = [Run(seed, point) for point in _product(mapped) for seed in seeds]
    return [Group(f"group{index}", fixed, runs) for index, fixed in enumerate(_product(static), 1)]


def waves(part: Group, runs_at_once: int) -> list[Group]:
    """Splits a group into the fewest waves of at most so many runs, as equal as can be."""
    ends = _ends(len(part.runs), runs_at_once)
    if len(ends) == 2:
        return [part]
    return [
        Group(f"{part.folder}-wave{index}", part.fixed, part.runs[begin:end])
        for index, (begin, end) in enumerate(itertools.pairwise(ends), 1)
    ]


def _ends(runs: int, runs_at_once: int) -> list[int]:
    """Returns where the waves of some runs begin and end."""
    count = math.ceil(runs / runs_at_once)
    return [round(index * runs / count) for index in range(count + 1)]


def at_once(settings: Settings, runs: int, each: int) -> int:
    """Returns how many of some runs go at once where each device has memory for so many.

    Args:
        settings: Of the runs.
        runs: How many there are.
        each: Runs that fit into a device.
    """

    def fits(count: int) -> bool:
        return devices.layout(count, settings.shard, padded=not settings.online.steps).rows_each <= each

    for most in range(runs, 1, -1):
        if all(map(fits, {end - begin for begin, end in itertools.pairwise(_ends(runs, most))})):
            return most
    return 1


def groups(sweep: Sweep) -> list[Group]:
    """Returns the groups of a sweep."""
    return split(agents.default(sweep.given["agent"]), sweep.grid, sweep.seeds)


def group_plan(sweep: Sweep, part: Group) -> Plan:
    """Returns the plan of a part.

    Raises:
        UserError: A setting, or a value of the grid, cannot be.
    """
    given = {**sweep.given, "run_dir": str(sweep.folder / part.folder), "resume": False}
    return plan(given, {**part.fixed, **part.runs[0].values}, part.runs)


def check(sweep: Sweep) -> None:
    """Checks all that can be said before anything is written.

    Raises:
        UserError: A value cannot be or is given twice, the grid is too large, or an option has no meaning.
    """
    require_names(sweep.given)
    given = configs.put(Settings(), sweep.given)
    configs.check(given)
    configs.check(sweep.options)
    hosts.on_first(given.log.require_packages)
    points = math.prod(len(values) for values in sweep.grid.values())
    if points * given.num_seeds > MOST_RUNS:
        raise UserError(
            f"{points:,} grid points × {given.num_seeds:,} seeds are more than {MOST_RUNS:,} runs; give fewer values"
        )
    for name, values in sweep.grid.items():
        # What is equal in the program's precision would be trained twice.
        kept = [np.float32(value).item() if isinstance(value, float) else value for value in values]
        if twice := [value for index, value in enumerate(values) if kept[index] in kept[:index]]:
            raise UserError(f"--agent.{name} has {texts.shown(twice[0])} twice; leave one out")
    for group in groups(sweep):
        made = group_plan(sweep, group)
        devices.check_runs(len(group.runs), made.settings.shard)
        estimates.require(dataclasses.replace(made, runs=made.runs[:1]))  # waves can be small


# ------------------------------------------------------------------------------------------------------- record


def command(sweep: Sweep) -> str:
    """Returns the command line of the sweep; data from a file is named `--data=FILE`."""
    told = dict(sweep.kept)
    if data := sweep.given.get("data"):
        told["data"] = "FILE" if any(sign in data for sign in "/.~") else data
    told |= {f"agent.{name}": flag_text(values) for name, values in sweep.grid.items()}
    return " ".join(["python experiments/sweep.py", *(f"--{name}={value}" for name, value in told.items())])


def flag_text(values: Sequence[Any]) -> str:
    """Returns values as on the command line."""
    lists = any(isinstance(value, tuple) for value in values)
    return (":" if lists else ",").join(map(texts.shown, values))


def read_record(folder: Path) -> dict[str, Any]:
    """Returns a sweep's `sweep.json`.

    Raises:
        UserError: The folder holds no sweep.
    """
    path = folder / SWEEP
    if not path.exists():
        raise UserError(f"{folder} holds no sweep (no {SWEEP}); start one without --resume")
    found: dict[str, Any] = schema.read(path, formats.SWEEP)
    require_agent(path, found["settings"]["agent"])
    try:
        schema.of_settings(Settings(), partial=True)("settings", found["settings"])
        _require_values(agents.default(found["settings"]["agent"]), found)
    except schema.Mismatch as error:
        raise UserError(f"{path}: {error}; {schema.REMEDY}") from error
    return found


def _require_values(config: Any, record: Mapping[str, Any]) -> None:
    """Checks that the values of a record are of the agent's settings, and that its parts are made of them.

    Raises:
        Mismatch: They are not.
    """
    schema.of_settings(config, partial=True, several=True)("grid", record["grid"])
    of_settings = schema.of_settings(config, partial=True)
    for index, part in enumerate(record["parts"]):
        of_settings(f"parts[{index}].fixed", part["fixed"])
        for number, labels in enumerate(part["runs"]):
            of_settings(f"parts[{index}].runs[{number}]", dict(Run.of(labels).values))


def resumed(given: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], options: SweepSettings) -> Sweep:
    """Returns the sweep in a folder, to be continued with what was given now; `recorded` checks that this agrees.

    Raises:
        UserError: There is no folder, or no sweep in it.
    """
    if not given.get("run_dir"):
        raise UserError("--resume needs --run_dir=DIR, the folder of the sweep to continue")
    record = read_record(Path(given["run_dir"]).expanduser())
    return Sweep({**record["settings"], **given}, _grid(record) | dict(grid), options)


def _grid(record: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Returns the grid of a record, with tuples again where JSON has lists."""
    return {name: [_value(value) for value in values] for name, values in record["grid"].items()}


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def recorded(sweep: Sweep) -> list[Group]:
    """Returns the parts of a sweep that its folder records.

    Raises:
        UserError: They are those of another sweep.
    """
    record = read_record(sweep.folder)
    before = Sweep(record["settings"], _grid(record), sweep.options)
    if _identity(before) != _identity(sweep):
        raise UserError(
            f"{sweep.folder} holds another sweep: {record['command']}; give its flags, or choose another --run_dir"
        )
    parts = [
        Group(
            part["folder"], {name: _value(value) for name, value in part["fixed"].items()}, [*map(Run.of, part["runs"])]
        )
        for part in record["parts"]
    ]
    if _runs(parts) != _runs(groups(before)):
        raise UserError(f"{sweep.folder / SWEEP}: parts are not those of its grid and seeds; {schema.REMEDY}")
    most = max(len(part.runs) for part in parts)
    if sweep.options.runs_at_once is not None and most > sweep.options.runs_at_once:
        raise UserError(
            f"{sweep.folder} holds a sweep with {most} runs at once, not {sweep.options.runs_at_once}; leave "
            "--runs_at_once out, or choose another --run_dir"
        )
    return parts


def _runs(parts: Sequence[Group]) -> list[str]:
    """Returns what tells each run of some parts from all others, sorted."""
    return sorted(repr((sorted(part.fixed.items()), run.labels)) for part in parts for run in part.runs)


def _identity(sweep: Sweep) -> dict[str, Any]:
    """Returns what a sweep continued must have in common with the sweep begun."""
    grid = {f"agent.{name}": list(values) for name, values in sweep.grid.items()}
    seeds = {"seeds": sweep.seeds, "num_seeds": None, "seed": None}
    return sweep.kept | grid | seeds | {"env": tasks.parse(sweep.given["env"]).name}
