"""Comparisons of configurations by their final scores: numbers for tables and pictures, ready for a JSON file.

A score is a seed's mean over tasks and over its last evaluations. The goals of one environment are all of one trained
policy, thus no independent samples: they are averaged first, and the tasks of `run_folder.statistics` are environments.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flowrl.errors import UserError
from flowrl.reports.curves import Group, bounds, final_text, label, name, panels
from flowrl.run_folder import statistics
from flowrl.run_folder.statistics import Interval
from flowrl.run_folder.texts import shown

TARGETS = {"success": 1.0, "normalized_score": 100.0}
"""Where a metric that environments share has its optimum; returns are shared by none."""
PAIRS = 15
"""How many pairs are compared at most, but for those with the best."""
NOT_SWEPT = ("agent", "env", "preset", "data")
"""What no sensitivity is shown of: each stands for more than one value."""
ONE_SEED = "of the two highest one has a single seed, which may be chance; train both with several, by --num_seeds"
"""Why no configuration is called best."""


class NothingToCompare(UserError):
    """Runs that do not suffice for a comparison."""


class Panel(NamedTuple):
    """Configurations that can be compared.

    Attributes:
        title: The environment, or how many of them.
        metric: What they are judged by.
        scores: For each configuration its final scores `[seeds, environments]`.
    """

    title: str
    metric: str
    scores: dict[str, np.ndarray]


def _panels(groups: Sequence[Group]) -> list[Panel]:
    """Returns a panel per environment, and one of all together where they can be pooled."""
    single = _single(groups)
    return single + _pooled(single)


def _single(groups: Sequence[Group]) -> list[Panel]:
    """Returns a panel per environment."""
    found = []
    for environment, row in panels(groups).items():
        scores = {name(group, row): np.array([*group.final.values()])[:, None] for group in row}
        found.append(Panel(environment, row[0].metric, scores))
    return found


def _pooled(single: Sequence[Panel]) -> list[Panel]:
    """Returns a panel of all environments if they share a metric with an optimum, configurations and seed counts."""
    first = single[0]
    shapes = [{key: scores.shape for key, scores in panel.scores.items()} for panel in single]
    same = all(shape == shapes[0] for shape in shapes) and len({panel.metric for panel in single}) == 1
    if len(single) < 2 or not same or first.metric not in TARGETS:
        return []
    scores = {key: np.concatenate([panel.scores[key] for panel in single], axis=1) for key in first.scores}
    return [Panel(f"all {len(single)} environments", first.metric, scores)]


def _numbers(interval: Interval, prefix: str) -> dict[str, Any]:
    return {prefix: interval.mean, f"{prefix}_interval_95": bounds(interval)}


def _statistic(statistic: statistics.Statistic, prefix: str, *scores: np.ndarray) -> dict[str, Any]:
    return _numbers(statistics.interval(statistic, *scores), prefix)


# ------------------------------------------------------------------------------------------------------ tables


def final(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Returns per environment each configuration's final scores with mean and interquartile mean."""
    return [
        {
            "panel": environment,
            "metric": row[0].metric,
            "configurations": [
                {
                    "label": label(group, row),
                    "name": name(group, row),
                    "rule": group.rule,
                    "per_seed": group.final,
                    "diverged": sorted(group.diverged),
                    **_numbers(group.final_interval, "mean"),
                    **_statistic(statistics.iqm, "iqm", np.array([*group.final.values()])[:, None]),
                }
                for group in row
            ],
        }
        for environment, row in panels(groups).items()
    ]


def pooled(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Returns each configuration's statistics over all environments; none where these cannot be pooled."""
    found = []
    for panel in _pooled(_single(groups)):
        gap = functools.partial(statistics.optimality_gap, target=TARGETS[panel.metric])
        chosen: dict[str, statistics.Statistic] = {
            "mean": statistics.mean,
            "median": statistics.median,
            "iqm": statistics.iqm,
            "optimality_gap": gap,
        }
        rows = []
        for key, scores in panel.scores.items():
            row: dict[str, Any] = {"name": key, "shape": [*scores.shape]}
            for prefix, statistic in chosen.items():
                row |= _statistic(statistic, prefix, scores)
            rows.append(row)
        found.append({"panel": panel.title, "metric": panel.metric, "configurations": rows})
    return found


def best(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the configuration with the highest mean of scores over seeds.

    It is None where this, or the second, which it is compared with, has a single seed: that may be chance alone.
    """
    first, *rest = sorted(rows, key=lambda row: -row["mean"])
    return first if all(len(row["per_seed"]) > 1 for row in (first, *rest[:1])) else None


# --------------------------------------------------------------------------------------------------- profiles


def profile(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Returns the share of runs above each threshold, with bands, per environment and over all of them."""
    found = []
    for panel in _panels(groups):
        thresholds = _thresholds(panel)
        share = functools.partial(statistics.performance_profile, thresholds=thresholds)
        rows = []
        for key, scores in panel.scores.items():
            low, high = statistics.bootstrap(share, scores)
            known = len(scores) > 1
            band = {"low": low.tolist(), "high": high.tolist()} if known else {"low": None, "high": None}
            rows.append({"name": key, "shape": [*scores.shape], "share": share(scores).tolist(), **band})
        found.append(
            {
                "panel": panel.title,
                "metric": panel.metric,
                "thresholds": thresholds.tolist(),
                "configurations": rows,
            }
        )
    return found


def _thresholds(panel: Panel, most: int = 200) -> np.ndarray:
    """Returns the scores, where alone profiles change, and ends beyond them; a grid where these would be too many."""
    scores = np.unique(np.concatenate([scores.ravel() for scores in panel.scores.values()]))
    margin = 0.05 * (np.ptp(scores) or abs(scores[0]) or 1.0)
    low, high = (0.0, 1.0) if panel.metric == "success" else (scores[0] - margin, scores[-1] + margin)
    return np.unique([low, *scores, high]) if len(scores) <= most else np.linspace(low, high, most)


def improvement(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Returns for pairs of configurations the probability that a run of the first beats one of the second.

    Raises:
        NothingToCompare: No environment has two configurations.
    """
    found = pairs(groups)
    if not found:
        raise NothingToCompare("no environment has two configurations; give the runs of another one to compare with")
    return found


def pairs(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Returns the same, or nothing.

    The first of a pair has the higher mean. Where there are too many pairs, those of the highest mean are left.
    """
    found = []
    for panel in _panels(groups):
        ordered = sorted(panel.scores, key=lambda key: -float(panel.scores[key].mean()))
        everyone = [*itertools.combinations(ordered, 2)]
        compared = [
            {"better": ours, "than": theirs, "seeds": [len(panel.scores[ours]), len(panel.scores[theirs])]}
            | _statistic(statistics.probability_of_improvement, "probability", panel.scores[ours], panel.scores[theirs])
            for ours, theirs in (everyone if len(everyone) <= PAIRS else everyone[: len(ordered) - 1])
        ]
        if compared:
            found.append({"panel": panel.title, "metric": panel.metric, "pairs": compared})
    return found


# ------------------------------------------------------------------------------------------------- sensitivity


def sensitivity(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Returns final scores by the value of each setting that varies while all others stay the same.

    Raises:
        NothingToCompare: No two configurations differ in one setting only.
    """
    found = []
    for environment, row in panels(groups).items():
        for field in dict.fromkeys(field for group in row for field in group.identity if field not in NOT_SWEPT):
            lines = _lines(row, field)
            agents = dict.fromkeys(line["agent"] for line in lines)
            found += [
                {
                    "panel": f"{environment}: {agent}",
                    "metric": row[0].metric,
                    "field": field,
                    "lines": [line for line in lines if line["agent"] == agent],
                }
                for agent in agents
            ]
    if not found:
        raise NothingToCompare("no two configurations differ in one setting only; give runs that sweep a field")
    return found


def _lines(row: Sequence[Group], field: str) -> list[dict[str, Any]]:
    """Returns the families of groups that differ in `field` alone."""
    families: dict[str, list[Group]] = {}
    for group in row:
        if field in group.identity:
            rest = {key: value for key, value in group.identity.items() if key != field}
            families.setdefault(repr(sorted(rest.items())), []).append(group)
    varied = [_sorted(family, field) for family in families.values() if len(family) > 1]
    return [
        {
            "agent": family[0].identity["agent"],
            "fixed": _fixed(family[0], varied, field),
            "values": [group.identity[field] for group in family],
            "per_seed": [group.final for group in family],
            "diverged": [sorted(group.diverged) for group in family],
            "mean": [group.final_interval.mean for group in family],
            "interval_95": [bounds(group.final_interval) for group in family],
        }
        for family in varied
    ]


def _sorted(family: list[Group], field: str) -> list[Group]:
    """Returns numbers by size; other values as they came."""
    numbers = all(numeric(group.identity[field]) for group in family)
    return sorted(family, key=lambda group: group.identity[field]) if numbers else family


def numeric(value: Any) -> bool:
    """Whether a setting's value has a place on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fixed(group: Group, families: Sequence[Sequence[Group]], field: str) -> dict[str, str]:
    """Returns in what a family of one agent differs from the others."""
    others = [family[0].identity for family in families if family[0].identity["agent"] == group.identity["agent"]]
    return {
        key: shown(value)
        for key, value in group.identity.items()
        if key != field and any(other.get(key) != value for other in others)
    }


# -------------------------------------------------------------------------------------------------------- text


def number_text(metric: str, row: dict[str, Any], prefix: str) -> str:
    """Writes a number of a row with its interval; success in per cent."""
    low, high = row[f"{prefix}_interval_95"] or (math.nan, math.nan)
    return final_text(metric, Interval(row[prefix], low, high))
