"""Sweeps: grids of hyperparameters × seeds, split into programs and waves, and the table of what they came to."""

import contextlib
import dataclasses
import gc
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowrl import agent as agents
from flowrl import config as configs
from flowrl import (
    curves,
    devices,
    envs,
    estimates,
    extras,
    hosts,
    loggers,
    memory,
    run,
    run_files,
    schema,
    stats,
    videos,
)
from flowrl.comparisons import ONE_SEED, best
from flowrl.curves import bounds
from flowrl.errors import UserError
from flowrl.files import CONFIG, SUMMARY, SWEEP, unused
from flowrl.provenance import git_commit, hardware, versions
from flowrl.settings import (
    MOST_RUNS,
    RESUMABLE,
    Plan,
    Settings,
    Trial,
    plan,
    require_agent,
    require_names,
    resumed_plan,
    seeds,
    trial,
)
from flowrl.signals import Signals
from flowrl.summary import scale, shown

SELECT = {
    "final": "mean over tasks and the last three evaluations",
    "last": "mean over tasks at the last evaluation",
    "best": "mean over tasks at each run's best evaluation, which is higher than what its policy can do",
}
"""What a run's score can be."""
FREE = tuple(name for name in RESUMABLE if name != "steps")
"""Settings that may differ when a sweep is continued."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of a sweep beside those of its runs."""

    runs_at_once: int | None = configs.setting(
        None, "Runs of one program; absent, as many as fit into the memory of the devices.", low=1
    )
    select: str = configs.setting(
        "final", "Score of a run: final (its last three evaluations), last, or best, which flatters.", (*SELECT,)
    )


class Part(NamedTuple):
    """Runs that are trained together in one program, in a run directory of their own.

    Attributes:
        folder: The directory, inside that of the sweep.
        fixed: Values of the agent's fields that all its runs share.
        trials: The runs.
    """

    folder: str
    fixed: Mapping[str, Any]
    trials: Sequence[Trial]


class Sweep(NamedTuple):
    """What is swept.

    Attributes:
        given: Fields of `Settings` that were given.
        grid: For each field of the agent that was given its values, one or several.
        options: The settings of the sweep itself.
    """

    given: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]]
    options: Options

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return Path(self.given["run_dir"]).expanduser()

    @property
    def seeds(self) -> list[int]:
        """The seeds of each grid point."""
        return seeds(Settings(**self.given))

    @property
    def swept(self) -> list[str]:
        """The fields with several values."""
        return [name for name, values in self.grid.items() if len(values) > 1]


# -------------------------------------------------------------------------------------------------------- grid


def _product(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def split(config: type, grid: Mapping[str, Sequence[Any]], seeds: Sequence[int]) -> list[Part]:
    """Splits the grid × seeds into groups, each of the runs that differ in sweepable fields only.

    Args:
        config: The agent's `Config`.
        grid: For each field its values.
        seeds: Of every grid point.
    """
    traced = {field.name for field in dataclasses.fields(config) if field.metadata["sweepable"]}
    mapped = {name: values for name, values in grid.items() if name in traced and len(values) > 1}
    static = {name: values for name, values in grid.items() if name not in mapped}
    trials = [Trial(seed, point) for point in _product(mapped) for seed in seeds]
    return [Part(f"group{index}", fixed, trials) for index, fixed in enumerate(_product(static), 1)]


def waves(part: Part, runs_at_once: int) -> list[Part]:
    """Splits a group into the fewest waves of at most so many runs, as equal as can be."""
    ends = _ends(len(part.trials), runs_at_once)
    if len(ends) == 2:
        return [part]
    return [
        Part(f"{part.folder}-wave{index}", part.fixed, part.trials[begin:end])
        for index, (begin, end) in enumerate(itertools.pairwise(ends), 1)
    ]


def _ends(runs: int, runs_at_once: int) -> list[int]:
    """Returns where the waves of some runs begin and end."""
    count = math.ceil(runs / runs_at_once)
    return [round(index * runs / count) for index in range(count + 1)]


def at_once(plan: Plan, each: int) -> int:
    """Returns how many of a plan's runs go at once where each device has memory for so many.

    Args:
        plan: Of all the runs.
        each: Runs that fit into a device.
    """
    settings: Any = plan.settings

    def fits(runs: int) -> bool:
        return devices.layout(runs, settings.shard, padded=not settings.online_steps).rows_each <= each

    runs = len(plan.trials)
    for most in range(runs, 1, -1):
        if all(map(fits, {end - begin for begin, end in itertools.pairwise(_ends(runs, most))})):
            return most
    return 1


def groups(sweep: Sweep) -> list[Part]:
    """Returns the groups of a sweep."""
    return split(agents.load(sweep.given["agent"]).Config, sweep.grid, sweep.seeds)


def check(sweep: Sweep) -> None:
    """Checks all that can be said before anything is written.

    Raises:
        UserError: A value cannot be or is given twice, the grid is too large, or an option has no meaning.
    """
    require_names(sweep.given)
    given: Any = Settings(**sweep.given)
    configs.check(given)
    configs.check(sweep.options)
    hosts.agreed(lambda: extras.check(given) if hosts.first() else None)
    points = math.prod(len(values) for values in sweep.grid.values())
    if points * given.num_seeds > MOST_RUNS:
        raise UserError(
            f"{points:,} grid points × {given.num_seeds:,} seeds are more than {MOST_RUNS:,} runs; give fewer values"
        )
    for name, values in sweep.grid.items():
        # What is equal in the program's precision would be trained twice.
        kept = [np.float32(value).item() if isinstance(value, float) else value for value in values]
        if twice := [value for index, value in enumerate(values) if kept[index] in kept[:index]]:
            raise UserError(f"--agent.{name} has {curves.value_text(twice[0])} twice; leave one out")
    for group in groups(sweep):
        made = part_plan(sweep, group)
        devices.check_runs(len(group.trials), made.settings.shard)  # type: ignore[arg-type]
        estimates.require(made, runs=1)  # waves can be that small


def part_plan(sweep: Sweep, part: Part) -> Plan:
    """Returns the plan of a part.

    Raises:
        UserError: A setting, or a value of the grid, cannot be.
    """
    given = {**sweep.given, "run_dir": str(sweep.folder / part.folder), "resume": False}
    return plan(given, {**part.fixed, **part.trials[0].values}, part.trials)


# ------------------------------------------------------------------------------------------------------ records


def read_record(folder: Path) -> dict[str, Any]:
    """Returns a sweep's `sweep.json`.

    Raises:
        UserError: The folder holds no sweep.
    """
    path = folder / SWEEP
    if not path.exists():
        raise UserError(f"{folder} holds no sweep (no {SWEEP}); start one without --resume")
    found = schema.read(path, run_files.SWEEP)
    require_agent(path, found["settings"]["agent"])
    try:
        schema.of_dataclass(Settings, partial=True)("settings", found["settings"])
        _require_values(agents.load(found["settings"]["agent"]).Config, found)
    except schema.Mismatch as error:
        raise UserError(f"{path}: {error}; {schema.REMEDY}") from error
    return found


def _require_values(config: type, record: Mapping[str, Any]) -> None:
    """Checks that the values of a record are of the agent's fields, and that its parts are made of them.

    Raises:
        Mismatch: They are not.
    """
    schema.of_dataclass(config, partial=True, several=True)("grid", record["grid"])
    of_fields = schema.of_dataclass(config, partial=True)
    for index, part in enumerate(record["parts"]):
        of_fields(f"parts[{index}].fixed", part["fixed"])
        for number, labels in enumerate(part["runs"]):
            of_fields(f"parts[{index}].runs[{number}]", dict(trial(labels).values))


def resumed(given: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], options: Options) -> Sweep:
    """Returns the sweep in a folder, to be continued with what was given now; `begin` checks that this agrees.

    Raises:
        UserError: There is no folder, or no sweep in it.
    """
    if not given.get("run_dir"):
        raise UserError("--resume needs --run_dir=DIR, the folder of the sweep to continue")
    record = read_record(Path(given["run_dir"]).expanduser())
    return Sweep({**record["settings"], **given}, _of_json(record["grid"]) | dict(grid), options)


def _of_json(grid: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Returns a grid with tuples again where JSON has lists."""
    return {name: [_value(value) for value in values] for name, values in grid.items()}


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def command(sweep: Sweep) -> str:
    """Returns the command line of the sweep; data from a file is named `--data=FILE`."""
    told = {name: value for name, value in sweep.given.items() if name not in FREE}
    if data := sweep.given.get("data"):
        told["data"] = "FILE" if any(sign in data for sign in "/.~") else data
    told |= {f"agent.{name}": flag_text(values) for name, values in sweep.grid.items()}
    return " ".join(["python experiments/sweep.py", *(f"--{name}={value}" for name, value in told.items())])


def flag_text(values: Sequence[Any]) -> str:
    """Returns values as on the command line."""
    lists = any(isinstance(value, tuple) for value in values)
    return (":" if lists else ",").join(map(curves.value_text, values))


def begin(sweep: Sweep) -> None:
    """Splits a sweep into parts and records them in its folder, unless that was done before.

    Raises:
        UserError: The folder holds something else, or a grid point cannot be trained.
    """
    if (sweep.folder / SWEEP).exists():
        return
    if not unused(sweep.folder):
        raise UserError(f"{sweep.folder} is not empty and holds no sweep; choose another --run_dir")
    parts = [
        part
        for group in groups(sweep)
        for part in waves(group, sweep.options.runs_at_once or _at_once(part_plan(sweep, group)))
    ]
    record = {
        "command": command(sweep),
        "settings": {name: value for name, value in sweep.given.items() if name not in ("run_dir", "resume")},
        "grid": sweep.grid,
        "seeds": sweep.seeds,
        "parts": [
            {"folder": part.folder, "fixed": part.fixed, "runs": [trial.labels for trial in part.trials]}
            for part in parts
        ],
        "git_commit": git_commit(),
        "hardware": hardware(),
        "versions": versions("jax", "jaxlib", "flax", "optax", "numpy"),
    }
    loggers.write_json(sweep.folder / SWEEP, record)


def _at_once(plan: Plan) -> int:
    return at_once(plan, memory.runs_that_fit(plan))


def recorded(sweep: Sweep) -> list[Part]:
    """Returns the parts of a sweep that its folder records.

    Raises:
        UserError: They are those of another sweep.
    """
    record = read_record(sweep.folder)
    before = Sweep(record["settings"], _of_json(record["grid"]), sweep.options)
    if _identity(before) != _identity(sweep):
        raise UserError(
            f"{sweep.folder} holds another sweep: {record['command']}; give its flags, or choose another --run_dir"
        )
    parts = [
        Part(
            part["folder"], {name: _value(value) for name, value in part["fixed"].items()}, [*map(trial, part["runs"])]
        )
        for part in record["parts"]
    ]
    if _runs(parts) != _runs(groups(before)):
        raise UserError(f"{sweep.folder / SWEEP}: parts are not those of its grid and seeds; {schema.REMEDY}")
    most = max(len(part.trials) for part in parts)
    if sweep.options.runs_at_once is not None and most > sweep.options.runs_at_once:
        raise UserError(
            f"{sweep.folder} holds a sweep with {most} runs at once, not {sweep.options.runs_at_once}; leave "
            "--runs_at_once out, or choose another --run_dir"
        )
    return parts


def _runs(parts: Sequence[Part]) -> list[str]:
    """Returns what tells each run of some parts from all others, sorted."""
    return sorted(repr((sorted(part.fixed.items()), trial.labels)) for part in parts for trial in part.trials)


def _identity(sweep: Sweep) -> dict[str, Any]:
    """Returns what a sweep continued must have in common with the sweep begun."""
    given = {name: value for name, value in sweep.given.items() if name not in FREE}
    grid = {f"agent.{name}": list(values) for name, values in sweep.grid.items()}
    return given | grid | {"env": envs.parse(given["env"]).name, "seeds": sweep.seeds, "num_seeds": None, "seed": None}


# ----------------------------------------------------------------------------------------------------- training


def execute(sweep: Sweep) -> int:
    """Trains all parts to their end, those that were broken off from their newest checkpoints, and writes the table.

    Returns:
        An exit status: 0, or 128 + the signal that stopped it.

    Raises:
        UserError: The folder holds another sweep, or a part cannot be trained.
    """
    check(sweep)
    told = {f"--{name}": value for name, value in dataclasses.asdict(sweep.options).items()}
    hosts.require_same(told | {"the sweep": command(sweep), "--run_dir": str(sweep.folder.absolute())})
    with run.claimed(sweep.folder), _forgotten_unless_begun(sweep.folder):
        hosts.agreed(lambda: begin(sweep) if hosts.first() else None)
        parts, signals = hosts.agreed(lambda: recorded(sweep)), Signals()
        total = sum(len(part.trials) for part in parts)
        print(f"sweep of {total} runs in {len(parts)} programs, in {sweep.folder}")
        for index, part in enumerate(parts, 1):
            values = ", ".join(
                f"{name}={curves.value_text(part.fixed[name])}" for name in sweep.swept if name in part.fixed
            )
            print(
                f"[{index}/{len(parts)}] {part.folder}: {len(part.trials)} runs{values and f', {values}'}", flush=True
            )
            status = _train(sweep, part, signals)
            stopped = max(hosts.gather(signals.received or 0))
            if status or stopped:  # by a signal that may have come when there was nothing left to stop in the part
                print(f"the same command, or --resume --run_dir={sweep.folder}, continues the sweep")
                return status or 128 + stopped
        if hosts.first():
            summary = summarize(sweep)
            loggers.write_json(sweep.folder / SUMMARY, summary)
            loggers.write_text(sweep.folder / "summary.md", markdown(summary))
            print(markdown(summary))
            print(f"wrote {sweep.folder}/summary.json and summary.md")
    return 0


@contextlib.contextmanager
def _forgotten_unless_begun(folder: Path) -> Iterator[None]:
    """Takes the record of a new sweep back where an error keeps its first part from beginning."""
    new = not (folder / SWEEP).exists()
    try:
        yield
    except UserError:
        if new and hosts.first() and not any(folder.glob(f"*/{CONFIG}")):
            (folder / SWEEP).unlink(missing_ok=True)
        raise


def _train(sweep: Sweep, part: Part, signals: Signals) -> int:
    """Trains a part to its end and returns an exit status; a finished part is left as it is, unless it lacks videos."""
    folder = sweep.folder / part.folder
    if hosts.gather(_finished(sweep, folder))[0]:
        print("finished before")
        return 0
    if not hosts.gather((folder / CONFIG).exists())[0]:
        return _run(signals, part_plan(sweep, part))
    changes = {name: sweep.given[name] for name in FREE if name in sweep.given}
    plan, stored = resumed_plan(changes | {"run_dir": str(folder), "resume": True}, {})
    if plan.trials != tuple(part.trials):
        raise UserError(f"{folder / CONFIG} is not of the runs that {sweep.folder / SWEEP} has there; {schema.REMEDY}")
    return _run(signals, plan, stored)


def _finished(sweep: Sweep, folder: Path) -> bool:
    """Whether a part has come to its end, with the videos that are asked for now."""
    asked = sweep.given.get("video_episodes")
    lacks_videos = asked and videos.index(folder).get("episodes") != asked
    if lacks_videos or not (folder / SUMMARY).exists():
        return False
    schema.read(folder / SUMMARY, run_files.SUMMARY)
    return True


def _run(signals: Signals, plan: Plan, stored: dict[str, Any] | None = None) -> int:
    status = run.execute(plan, stored, signals)
    gc.collect()  # the device's memory is for the next part
    return status


# -------------------------------------------------------------------------------------------------------- table


def score(group: curves.Group, select: str) -> dict[int, float]:
    """Returns each seed's score of a configuration."""
    if select == "final":
        return group.final
    if select == "last":
        return {seed: curve[group.steps[-1]] for seed, curve in group.curves.items()}
    return {seed: max(curve[step] for step in group.steps) for seed, curve in group.curves.items()}


def summarize(sweep: Sweep) -> dict[str, Any]:
    """Returns the table of a finished sweep: each configuration's scores with intervals, and the best one."""
    record, options = read_record(sweep.folder), sweep.options
    summary = {"command": record["command"], "agent": sweep.given["agent"], "environment": sweep.given["env"]}
    folders = curves.expand([sweep.folder])
    if not any((folder / "eval.jsonl").exists() for folder in folders):
        return summary | {"metric": None, "rule": "no evaluation was asked for", "configurations": []}
    groups = curves.group_runs([one for folder in folders for one in curves.read_runs(folder, with_minutes=False)])
    rows = [_row(group, sweep.swept, options.select) for group in groups]
    evaluations = groups[0].headline_steps if options.select == "final" else groups[0].steps[-1:]
    at = (
        ""
        if options.select == "best"
        else f" (after {groups[0].unit} {', '.join(f'{step:,}' for step in evaluations)})"
    )
    return summary | {
        "metric": groups[0].metric,
        "select": options.select,
        "rule": f"score of a run: {SELECT[options.select]}{at}; best: the configuration with the highest mean of "
        "scores over seeds; intervals: 95 % stratified percentile bootstrap over seeds",
        "best": None if (first := best(rows)) is None else first["values"],
        "configurations": rows,
    }


def _row(group: curves.Group, swept: Sequence[str], select: str) -> dict[str, Any]:
    scores = score(group, select)
    matrix = np.array([*scores.values()])[:, None]
    mean, iqm = stats.interval(stats.mean, matrix), stats.interval(stats.iqm, matrix)
    return {
        "values": {name: group.identity[f"agent.{name}"] for name in swept},
        "mean": mean.mean,
        "mean_interval_95": bounds(mean),
        "iqm": iqm.mean,
        "iqm_interval_95": bounds(iqm),
        "per_seed": scores,
        "diverged": [*group.diverged.values()],
        "folders": [one.folder.name for one in group.runs],
    }


def markdown(summary: Mapping[str, Any]) -> str:
    """Returns the table for people, the best configuration in bold."""
    metric = summary["metric"]
    if metric is None:
        return f"{summary['rule']}\n"
    swept = [*summary["configurations"][0]["values"]]
    head = [*(f"`{name}`" for name in swept), f"{metric}, mean", "interquartile mean", "seeds"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in summary["configurations"]:
        cells = [curves.value_text(value) for value in row["values"].values()]
        cells += [_number(metric, row, prefix) for prefix in ("mean", "iqm")]
        cells.append(", ".join(f"{seed}: {scale(metric) * value:.1f}" for seed, value in row["per_seed"].items()))
        if row["diverged"]:
            cells[-1] += f" (diverged: {'; '.join(row['diverged'])})"
        mark = "**" if row["values"] == summary["best"] and len(summary["configurations"]) > 1 else ""
        lines.append(f"| {' | '.join(f'{mark}{cell}{mark}' for cell in cells)} |")
    rule = summary["rule"][0].upper() + summary["rule"][1:]
    return "\n".join([*lines, "", *_verdict(summary), f"{rule}.", "", f"`{summary['command']}`", ""])


def _verdict(summary: Mapping[str, Any]) -> list[str]:
    """Says which configuration is best, or why none is named."""
    if len(summary["configurations"]) == 1 and not summary["best"]:
        return []
    if summary["best"] is None:
        return [f"No best: {ONE_SEED}."]
    return [f"Best: {', '.join(f'{name}={curves.value_text(value)}' for name, value in summary['best'].items())}."]


def _number(metric: str, row: Mapping[str, Any], prefix: str) -> str:
    interval = row[f"{prefix}_interval_95"]
    text = shown(metric, row[prefix])
    return text if interval is None else f"{text} [{', '.join(f'{scale(metric) * bound:.1f}' for bound in interval)}]"
