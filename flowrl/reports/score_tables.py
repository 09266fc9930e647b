"""Tables of agents compared: what each reached where, how surely one beats another, and how fast they are."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowrl.reports import comparisons
from flowrl.reports.comparisons import number_text
from flowrl.reports.curves import Group, bounds, data_name, final_text, group_runs, panels, unsuccessful
from flowrl.reports.published import Curve, beside
from flowrl.run_folder import logs, statistics
from flowrl.run_folder.evaluations import LeftOut, RunDir, configured_mode, read_runs
from flowrl.run_folder.summary import SINGLE, scale, shown

_MEAN_Q = "train/critic/q_mean"


class Entry(NamedTuple):
    """An agent in an environment.

    Attributes:
        group: Its seeds, evaluated as the agent is configured to act.
        mode: Which evaluations these are.
        one_draw: The same seeds with one draw, where they are configured to act with the best of several.
        speed: Milliseconds `per_action` for one observation and `per_update` of one seed, where known.
    """

    group: Group
    mode: str
    one_draw: Group | None
    speed: Mapping[str, float]

    @property
    def agent(self) -> str:
        """Its name."""
        return str(self.group.identity["agent"])

    @property
    def environment(self) -> str:
        """That of the environment."""
        return str(self.group.identity["env"])


def read(folders: Sequence[Path], speeds: Mapping[Path, Mapping[str, float]]) -> tuple[list[Entry], list[str]]:
    """Reads run folders, one for each agent and environment.

    Returns:
        What has evaluations, and why the rest is left out.

    Raises:
        UserError: A file is damaged, or runs in one environment are judged by different metrics.
    """
    runs, singles, modes, left_out = [], [], dict[Path, str](), list[str]()
    for folder in folders:
        try:
            mode = configured_mode(folder)
            runs += read_runs(folder, with_minutes=False, mode=mode)
            singles += read_runs(folder, with_minutes=False, mode=SINGLE) if mode != SINGLE else []
            modes[folder] = mode
        except LeftOut as error:
            left_out.append(f"left out: {str(error).replace(str(folder), folder.name)}")
    drawn = {group.runs[0].folder: group for group in group_runs(_alike(singles))}
    found = [
        Entry(group, modes[folder], drawn.get(folder), speeds.get(folder, {}))
        for group in group_runs(_alike(runs))
        for folder in [group.runs[0].folder]
    ]
    return found, left_out


def _alike(runs: Sequence[RunDir]) -> list[RunDir]:
    """Returns runs with success 0 where others in their environment were told one: none of theirs has reached it."""
    told = {run.config["settings"]["env"] for run in runs if run.metric == "success"}
    return [
        unsuccessful(run) if run.metric != "success" and run.config["settings"]["env"] in told else run for run in runs
    ]


# ------------------------------------------------------------------------------------------------------- rows


def rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Returns the numbers of each entry, with the probabilities that its runs beat those of the others."""
    return [_row(entry, [other for other in entries if other.environment == entry.environment]) for entry in entries]


def _row(entry: Entry, row: Sequence[Entry]) -> dict[str, Any]:
    group, one = entry.group, entry.one_draw
    scores = np.array([*group.final.values()])[:, None]
    iqm = statistics.interval(statistics.iqm, scores)
    improvement = {
        other.agent: float(
            statistics.probability_of_improvement(scores, np.array([*other.group.final.values()])[:, None])
        )
        for other in row
        if other is not entry
    }
    return {
        "environment": entry.environment,
        "agent": entry.agent,
        "preset": group.identity["preset"],
        "data": data_name(group.runs[0].config),
        group.unit: group.steps[-1],
        "metric": group.metric,
        "mode": entry.mode,
        "per_seed": group.final,
        "diverged": sorted(group.diverged),
        "mean": group.final_interval.mean,
        "mean_interval_95": bounds(group.final_interval),
        "iqm": iqm.mean,
        "iqm_interval_95": bounds(iqm),
        "one_draw": None if one is None else one.final_interval.mean,
        "improvement": improvement,
        "speed": entry.speed,
    }


def released(entries: Sequence[Entry]) -> tuple[dict[str, list[Curve]], list[str]]:
    """Returns by environment the released curves of the compared agents that may stand beside ours.

    Returns:
        The curves, and why others may not, or have no number at the updates of our scores.
    """
    found, reasons = dict[str, list[Curve]](), list[str]()
    for environment, row in panels([entry.group for entry in entries]).items():
        found[environment], told = beside(row)
        reasons += told + [
            f"{environment}: {curve.name}: no number for evaluations after {group.unit} {group.headline_steps}"
            for group in row
            for curve in found[environment]
            if curve.agent == group.identity["agent"] and curve.final(group.headline_steps) is None
        ]
    return found, reasons


def theirs(entry: Entry, curves: Sequence[Curve]) -> list[tuple[str, statistics.Interval]]:
    """Returns what others reached with the same method at the same updates as ours, by who that was."""
    own = [(curve.name, curve.final(entry.group.headline_steps)) for curve in curves if curve.agent == entry.agent]
    return [(name, interval) for name, interval in own if interval is not None]


# ------------------------------------------------------------------------------------------------------- text


def markdown(entries: Sequence[Entry], command: str, notes: Sequence[str]) -> str:
    """Returns the tables for people."""
    curves, reasons = released(entries)
    lines = ["# Comparison", "", f"`{command}`", ""]
    for environment, row in panels([entry.group for entry in entries]).items():
        own = [entry for entry in entries if entry.environment == environment]
        lines += [f"## {environment}", "", *_scores(own, curves[environment]), "", f"Score: {row[0].rule}.", ""]
    groups = [entry.group for entry in entries]
    lines += [*_all_environments(groups), *_pairs(groups)]
    known = list(dict.fromkeys([*notes, *_differences(entries), *reasons]))
    lines += ["## Notes", "", *(f"- {note}" for note in known), ""] if known else []
    return "\n".join(lines)


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]


def _scores(entries: Sequence[Entry], curves: Sequence[Curve]) -> list[str]:
    """Returns the table of an environment; columns in which nothing would stand are left out."""
    metric, body = entries[0].group.metric, []
    for entry, row in zip(entries, rows(entries), strict=True):
        seeds = ", ".join(f"{seed}: {scale(metric) * value:.1f}" for seed, value in row["per_seed"].items())
        told = [f"{who}: {final_text(metric, interval)}" for who, interval in theirs(entry, curves)]
        one = "" if row["one_draw"] is None else shown(metric, row["one_draw"])
        acts = f"best of {entry.group.identity.get('agent.choice.num_samples', 'n')}" if entry.one_draw else "one draw"
        numbers = [number_text(metric, row, prefix) for prefix in ("mean", "iqm")]
        speeds = [f"{entry.speed[name]:.2f}" if name in entry.speed else "" for name in ("per_action", "per_update")]
        body.append([f"`{entry.agent}`", acts, *numbers, one, seeds, *speeds, "; ".join(told)])
    head = ["agent", "acts with", f"{metric}, mean", "interquartile mean", "one draw", "seeds"]
    head += ["ms per action", "ms per update", "released by others"]
    kept = [place for place in range(len(head)) if any(cells[place] for cells in body)]
    return _table([head[place] for place in kept], [[cells[place] for place in kept] for cells in body])


def _all_environments(groups: Sequence[Group]) -> list[str]:
    lines = []
    for panel in comparisons.pooled(groups):
        numbers = [
            [row["name"], *(number_text(panel["metric"], row, prefix) for prefix in ("mean", "median", "iqm"))]
            for row in panel["configurations"]
        ]
        head = ["agent", f"{panel['metric']}, mean", "median of environments", "interquartile mean"]
        lines += [f"## {panel['panel'].capitalize()}", "", *_table(head, numbers), ""]
    return lines


def _pairs(groups: Sequence[Group]) -> list[str]:
    body = []
    for panel in comparisons.pairs(groups):
        for pair in panel["pairs"]:
            interval = pair["probability_interval_95"]
            told = f"{pair['probability']:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")
            body.append([panel["panel"], pair["better"], pair["than"], told])
    if not body:
        return []
    head = ["where", "a run of", "beats one of", "with probability"]
    return ["## Probability of improvement", "", *_table(head, body), ""]


def _differences(entries: Sequence[Entry]) -> list[str]:
    """Says in what the entries of an environment differ beside the agent."""
    found = []
    for environment, row in panels([entry.group for entry in entries]).items():
        if len({group.identity["data"] for group in row}) > 1:
            told = ", ".join(f"{group.identity['agent']}: {data_name(group.runs[0].config)}" for group in row)
            found.append(f"{environment}: trained on different data ({told})")
        if len({group.sparse for group in row}) > 1:
            told = ", ".join(group.identity["agent"] for group in row if group.sparse)
            found.append(f"{environment}: rewards differ, those of {told} are sparse")
        if len({tuple(group.headline_steps) for group in row}) > 1:
            told = ", ".join(f"{group.identity['agent']}: {group.headline_steps}" for group in row)
            found.append(f"{environment}: scores come from different evaluations ({told})")
        found += [f"{environment}: {group.identity['agent']}: {group.unfinished}" for group in row if group.unfinished]
        diverged = [(group.identity["agent"], text) for group in row for text in group.diverged.values()]
        found += [f"{environment}: {agent} diverged: {text}" for agent, text in diverged]
    return found


def _mean_q(runs: Sequence[RunDir]) -> float | None:
    """Returns the mean over seeds of the mean Q that a training's log ends with, or nothing where it has none."""
    lines = [line for run in runs for line in logs.read_lines(run.folder / "metrics.jsonl") if _MEAN_Q in line]
    last = {line["seed"]: line[_MEAN_Q] for line in lines}  # the later over the earlier
    return float(np.mean([*last.values()])) if last else None


def comma_separated(entries: Sequence[Entry]) -> str:
    """Returns the table as CSV, a row for each agent and environment; success as a share, not in per cent."""
    curves, _ = released(entries)
    file, found = io.StringIO(), rows(entries)
    agents = list(dict.fromkeys(entry.agent for entry in entries))
    head = ["environment", "agent", "preset", "data", "updates", "metric", "mode", "seeds", "mean", "mean_low"]
    head += ["mean_high", "iqm", "iqm_low", "iqm_high", "one_draw", "mean_q", "ms_per_action", "ms_per_update"]
    head += ["per_seed", *(f"beats_{agent}" for agent in agents), "released"]
    table = csv.writer(file, lineterminator="\n")
    table.writerow(head)
    for entry, row in zip(entries, found, strict=True):
        intervals = [row[f"{prefix}_interval_95"] or (None, None) for prefix in ("mean", "iqm")]
        told = [f"{who}: {interval.mean:.4f}" for who, interval in theirs(entry, curves[entry.environment])]
        table.writerow(
            [row[name] for name in ("environment", "agent", "preset", "data")]
            + [entry.group.steps[-1], row["metric"], row["mode"], len(row["per_seed"])]
            + [row["mean"], *intervals[0], row["iqm"], *intervals[1], row["one_draw"]]
            + [_mean_q(entry.group.runs), entry.speed.get("per_action"), entry.speed.get("per_update")]
            + [" ".join(f"{seed}:{value!r}" for seed, value in row["per_seed"].items())]
            + [row["improvement"].get(agent) for agent in agents]
            + ["; ".join(told)]
        )
    return file.getvalue()
