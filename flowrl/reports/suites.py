"""Published rows of a suite of tasks: a file of lines, one for each task, agent and preset, and the page made of it.

Rows of different presets or sizes never stand in one table.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowrl.errors import UserError
from flowrl.machine import schema
from flowrl.machine.schema import Mismatch, boolean, listing, nullable, number, record, text
from flowrl.reports.comparisons import number_text
from flowrl.reports.curves import bounds, traces
from flowrl.reports.published import canonical
from flowrl.reports.score_tables import Entry, rows
from flowrl.run_folder import logs
from flowrl.run_folder.evaluations import identity
from flowrl.run_folder.summary import scale

ROWS, PAGE = "rows.jsonl", "README.md"
"""The file of the rows, and the page made of it."""
KEY = ("task", "agent", "preset")
"""What there is one row of."""
_NUMBERS = listing(number(), least=1)
_BOUNDS = nullable(listing(number(), least=2))
ROW = record(
    dict.fromkeys((*KEY, "command", "hardware", "metric", "mode"), text())
    | {
        "git_commit": nullable(text()),
        "run": text("[0-9a-f]{64}", "a SHA-256 in hexadecimal digits"),
        "data": record({"from": text(), "sha256": text()}),
        "size": record({"updates": number(1, whole=True)}),
        "sparse": boolean,
        "episodes_per_task": number(1, whole=True),
        "per_seed": record({}, others=number()),
        "mean": number(),
        "mean_interval_95": _BOUNDS,
        "iqm": number(),
        "iqm_interval_95": _BOUNDS,
        "one_draw": nullable(number()),
        "curve": record({"updates": _NUMBERS, "per_seed": record({}, others=_NUMBERS)}),
        "speed": record({}, others=number(0)),
    }
)
"""A line."""


def fingerprint(config: Mapping[str, Any]) -> str:
    """Returns what tells a run from all others, wherever its folder lies: settings, data, seeds, commit, hardware."""
    told = [identity(dict(config)), config["seeds"], config["git_commit"], config["hardware"]]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def row(entry: Entry) -> dict[str, Any]:
    """Returns the line of a finished run.

    Raises:
        UserError: It has not come to its end.
    """
    group, (run,) = entry.group, entry.group.runs
    if group.unfinished:
        raise UserError(f"{run.folder} is {group.unfinished}; only finished runs become rows")
    trace, (numbers,) = traces(run), rows([entry])
    size = {name: group.identity[f"agent.{name}"] for name in ("batch_size", "hidden_dims")}
    return {
        "task": canonical(entry.environment),
        "agent": entry.agent,
        "preset": group.identity["preset"],
        "command": trace["command"],
        "git_commit": trace["git_commit"],
        "hardware": trace["hardware"],
        "data": trace["data"],
        "run": fingerprint(run.config),
        "size": {"updates": group.total} | size,
        "sparse": group.sparse,
        "episodes_per_task": run.episodes,
        **{name: numbers[name] for name in ("metric", "mode", "mean", "mean_interval_95", "iqm", "iqm_interval_95")},
        "one_draw": numbers["one_draw"],
        "per_seed": {str(seed): score for seed, score in group.final.items()},
        "curve": {
            "updates": group.steps,
            "per_seed": {str(seed): [curve[step] for step in group.steps] for seed, curve in group.curves.items()},
            "mean": [interval.mean for interval in group.intervals],
            "interval_95": [bounds(interval) for interval in group.intervals],
        },
        "speed": dict(entry.speed),
    }


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file; none where there is no file.

    Raises:
        UserError: A line is damaged, or two are of the same task, agent and preset.
    """
    found: list[dict[str, Any]] = []
    for place, line in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        try:
            value = schema.parsed(line)
            ROW("", value)
        except (ValueError, Mismatch) as error:
            raise UserError(f"{path}, line {place}: {error}; put the right file back") from error
        if any(key(value) == key(other) for other in found):
            raise UserError(f"{path}, line {place}: {', '.join(key(value))} is there twice; take one out")
        found.append(value)
    return found


def key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what there may be one row of."""
    return tuple(row[name] for name in KEY)


class Claim(NamedTuple):
    """A row that a run has or is to have.

    Attributes:
        task: Of the row.
        agent: Of the row.
        preset: Of the row.
        updates: In all.
        run: The run's fingerprint; None before it has begun.
        told: What tells the run to a reader.
    """

    task: str
    agent: str
    preset: str
    updates: int
    run: str | None
    told: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Claim":
        """Returns the claim of a line."""
        told = f"{row['command']}, commit {(row['git_commit'] or 'unknown')[:9]}"
        return cls(row["task"], row["agent"], row["preset"], row["size"]["updates"], row["run"], told)


def require(path: Path, claims: Sequence[Claim]) -> None:
    """Checks that a file may have these rows beside its own.

    Raises:
        UserError: Another run has one of them, or rows of a task and preset would differ in their size.
    """
    held = [Claim.of(row) for row in read(path)]
    for count, claim in enumerate(claims):
        for other in held:
            if other[:3] == claim[:3] and other.run != claim.run:
                raise UserError(
                    f"{path} has a row of {claim.agent} on {claim.task} with --preset={claim.preset} already, of "
                    f"another run ({other.told}); take that out first, or leave this one out"
                )
        for other in (*held, *claims[:count]):
            if (other.preset, other.task) == (claim.preset, claim.task) and other.updates != claim.updates:
                raise UserError(
                    f"{claim.agent} on {claim.task} has {claim.updates:,} updates, {other.agent} "
                    f"{other.updates:,}; the table of --preset={claim.preset} in {path} does not mix sizes"
                )


def add(folder: Path, new: Sequence[dict[str, Any]]) -> None:
    """Adds rows to the file in a folder, in the place of those of the same runs, and writes its page anew.

    Raises:
        UserError: As `require`.
    """
    path = folder / ROWS
    require(path, [Claim.of(row) for row in new])
    found = {key(row): row for row in (*read(path), *new)}
    ordered = [found[place] for place in sorted(found)]
    folder.mkdir(parents=True, exist_ok=True)
    logs.write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in ordered))
    logs.write_text(folder / PAGE, page(folder.name, ordered))


# ------------------------------------------------------------------------------------------------------- page


def page(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the page of a suite's rows, a part for each preset and number of updates."""
    lines = [f"# {name}", ""]
    lines += [f"Made from `{ROWS}` by `experiments/compare.py --suite=…`, which adds the rows; not to be edited.", ""]
    lines += [
        "A score is a seed's mean over its last three evaluations, of the agent as it is configured to act; brackets "
        "hold 95 % bootstrap intervals over seeds. Rows of different presets or sizes never stand in one table. A run "
        "is told by its number below its table.",
        "",
    ]
    lines += [] if rows else ["No rows yet.", ""]
    for preset, updates in sorted({(row["preset"], row["size"]["updates"]) for row in rows}):
        own = [row for row in rows if (row["preset"], row["size"]["updates"]) == (preset, updates)]
        lines += [f"## Preset {preset}: {updates:,} updates", "", *_overview(own), ""]
        head = ("task", "agent", "mean", "interquartile mean", "one draw", "seeds", "curve", "data", "run")
        lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        lines += [f"| {' | '.join(_cells(row, number))} |" for number, row in enumerate(own, 1)]
        lines += ["", "Runs:", ""]
        lines += [f"{number}. {_origin(row)}" for number, row in enumerate(own, 1)] + [""]
    return "\n".join(lines)


def _overview(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the means of each task, an agent a column."""
    agents = sorted({row["agent"] for row in rows})
    lines = [f"| task | {' | '.join(f'`{agent}`' for agent in agents)} |", "|---" * (len(agents) + 1) + "|"]
    for task in sorted({_task(row) for row in rows}):
        own = {row["agent"]: number_text(row["metric"], dict(row), "mean") for row in rows if _task(row) == task}
        lines.append(f"| {task} | {' | '.join(own.get(agent, '') for agent in agents)} |")
    return lines


def _task(row: Mapping[str, Any]) -> str:
    """Returns the task of a row, which is another one where its rewards were made sparse."""
    return row["task"] + ", sparse rewards" * row["sparse"]


def _cells(row: Mapping[str, Any], number: int) -> list[str]:
    factor, metric = scale(row["metric"]), row["metric"]
    seeds = ", ".join(f"{seed}: {factor * score:.1f}" for seed, score in row["per_seed"].items())
    one = "" if row["one_draw"] is None else f"{factor * row['one_draw']:.1f}"
    curve = " → ".join(f"{factor * mean:.0f}" for mean in row["curve"]["mean"])
    means = [number_text(metric, dict(row), prefix) for prefix in ("mean", "iqm")]
    agent = f"`{row['agent']}`" + (", best of n" if one else "")
    return [_task(row), agent, *means, one, seeds, curve, row["data"]["from"], str(number)]


def _origin(row: Mapping[str, Any]) -> str:
    speed = "".join(f", {row['speed'][name]:.2f} ms {name.replace('_', ' ')}" for name in sorted(row["speed"]))
    return f"`{row['command']}`: commit {row['git_commit'] or 'unknown'}, {row['hardware']}{speed}"
