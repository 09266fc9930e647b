"""What a sweep came to: each configuration's scores with intervals, and the best one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowrl.experiment.grids import SELECT, Sweep, read_record
from flowrl.reports import curves
from flowrl.reports.comparisons import ONE_SEED, best
from flowrl.reports.curves import bounds
from flowrl.run_folder import evaluations, statistics, texts
from flowrl.run_folder.summary import scale, shown


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
    folders = evaluations.expand([sweep.folder])
    if not any((folder / "eval.jsonl").exists() for folder in folders):
        return summary | {"metric": None, "rule": "no evaluation was asked for", "configurations": []}
    groups = curves.group_runs([one for folder in folders for one in evaluations.read_runs(folder, with_minutes=False)])
    rows = [_row(group, sweep.swept, options.select) for group in groups]
    steps = groups[0].headline_steps if options.select == "final" else groups[0].steps[-1:]
    told = f" (after {groups[0].unit} {', '.join(f'{step:,}' for step in steps)})"
    at = "" if options.select == "best" else told
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
    mean, iqm = statistics.interval(statistics.mean, matrix), statistics.interval(statistics.iqm, matrix)
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
        cells = [texts.shown(value) for value in row["values"].values()]
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
    return [f"Best: {', '.join(f'{name}={texts.shown(value)}' for name, value in summary['best'].items())}."]


def _number(metric: str, row: Mapping[str, Any], prefix: str) -> str:
    interval = row[f"{prefix}_interval_95"]
    text = shown(metric, row[prefix])
    return text if interval is None else f"{text} [{', '.join(f'{scale(metric) * bound:.1f}' for bound in interval)}]"
