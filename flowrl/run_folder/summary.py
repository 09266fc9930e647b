"""What a run's evaluations come to: lines of `eval.jsonl`, and the headline number with the rule it was formed by."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from flowrl import config
from flowrl.run_folder import statistics
from flowrl.run_folder.runs import Run, points, seeds

HEADLINE_EVALUATIONS = 3
SINGLE = "eval"
"""The evaluation that counts: of the agent as it acts by itself."""
BEST = "best_of_n"
"""The evaluation of an agent that is configured to act with the best of several actions."""

METRICS = ("success", "normalized_score", "return")
"""What an evaluation may be judged by, the first of those that it has."""


Score = Callable[[np.ndarray], np.ndarray | None]
"""Normalised scores of returns, or None where there are none."""


class Outcome(Protocol):
    """What episodes came to, `[R, K, N]` each: see `flowrl.training.evaluation`."""

    @property
    def successes(self) -> np.ndarray:
        """Whether each reached its goal, NaN where nobody says."""

    @property
    def returns(self) -> np.ndarray:
        """Sums of rewards, NaN where one was not finite."""

    @property
    def lengths(self) -> np.ndarray:
        """Environment steps."""


def evaluation_lines(
    step: int, runs: Sequence[Run], mode: str, outcome: Outcome, score: Score, *, first_run: int = 0
) -> list[dict[str, Any]]:
    """One line per run and task, runs counted from `first_run`; what the environment does not tell is left out.

    So are episodes with numbers that are not finite; `not_finite` counts them. A line whose episodes are all like that
    has no numbers.
    """
    lines = []
    for row, run in enumerate(runs):
        for task, returns in enumerate(outcome.returns[row]):
            line: dict[str, Any] = {"step": step, "run": first_run + row, **run.labels}
            line |= {"task": task + 1, "mode": mode}
            good = np.isfinite(returns)
            returns, told = returns[good], outcome.successes[row, task][good]
            if not np.isnan(told).all():
                line["success"] = float(np.nan_to_num(told).mean())
            if (scores := score(returns)) is not None and good.any():
                line["normalized_score"] = float(scores.mean())
            if good.any():
                line["return"] = float(returns.mean())
            line |= {"episodes": len(good), "length": float(outcome.lengths[row, task].mean())}
            lines.append(line if good.all() else line | {"not_finite": int((~good).sum())})
    return lines


def with_success(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns lines with success 0 where an environment did not tell it, though it has a return: none was reached."""
    order = ("normalized_score", "return", "episodes", "length")

    def filled(line: dict[str, Any]) -> dict[str, Any]:
        if "success" in line or "return" not in line:
            return line
        later = {name: value for name, value in line.items() if name in order}
        return {name: value for name, value in line.items() if name not in order} | {"success": 0.0} | later

    return [filled(line) for line in lines]


def judged(lines: Sequence[dict[str, Any]]) -> tuple[str | None, list[dict[str, Any]]]:
    """Returns what a run's evaluation lines are judged by, chosen once for all of them, and those that have it.

    Environments may tell success only where it was reached; once any line has it, it is 0 in those that have not.
    """
    told = with_success(lines) if any("success" in line for line in lines) else [*lines]
    metric = next((name for name in METRICS if any(name in line for line in told)), None)
    return metric, [line for line in told if metric in line]


def evaluation_text(step: int, lines: list[dict[str, Any]], unit: str = "update") -> str:
    """Returns what the terminal shows of one evaluation in one mode: means over runs, in all and per task."""
    mode = lines[-1]["mode"]
    metric, lines = judged(lines)
    if metric is None:
        return f"{unit} {step:>9,}  no episode had finite numbers"
    tasks = sorted({line["task"] for line in lines})
    means = [float(np.mean([line[metric] for line in lines if line["task"] == task])) for task in tasks]
    label = metric if mode == SINGLE else f"{metric} {mode.replace('_', ' ')}"
    each = "   " + "  ".join(f"task{task} {shown(metric, mean)}" for task, mean in zip(tasks, means, strict=True))
    return f"{unit} {step:>9,}  {label} {shown(metric, float(np.mean(means)))}{each if len(tasks) > 1 else ''}"


def summarize(
    settings: Mapping[str, Any],
    environment: str | None,
    dataset: str,
    runs: Sequence[Run],
    lines: list[dict[str, Any]],
    notes: Mapping[str, Mapping[str, Any]],
    *,
    swept: bool,
) -> dict[str, Any]:
    """Returns the summary of a run directory from its evaluation lines; of a part of a sweep by configuration.

    The headline follows OGBench: success (where the environment does not tell it, D4RL's normalised score or the
    return) averaged over tasks and over the last three evaluations, for each seed; then the mean over seeds with its
    95 % bootstrap interval. It is of the agent as it acts by itself; others of its evaluations are reported apart.

    Args:
        settings: Of the runs, by dotted name.
        environment: Where they are evaluated.
        dataset: What they learn from.
        runs: The runs.
        lines: Their evaluations.
        notes: For each other evaluation of the agent the settings that it acts with, from `acting_notes`.
        swept: Whether the runs are a part of a sweep.
    """
    summary: dict[str, Any] = {
        "agent": settings["agent"],
        "environment": environment,
        "dataset": dataset,
        "preset": settings["preset"],
        "steps": settings["steps"],
        "online_steps": settings["online.steps"],
        "seeds": seeds(runs),
    }
    if not lines:
        return summary | {"metric": None, "rule": "no evaluation was asked for"}
    metric, told = judged(lines)
    if metric is None:
        return summary | {"metric": None, "rule": "no evaluation episode had finite numbers"}
    lines = [line for line in lines if "return" not in line] + told
    found = []
    for values in points(runs):
        chosen = [index for index, run in enumerate(runs) if run.values == values]
        own = [line for line in lines if line["run"] in chosen]
        found.append(
            Run(0, values).swept
            | _configuration(own, chosen, metric, "step" if settings["online.steps"] else "update", notes)
        )
    return summary | ({"metric": metric, "configurations": found} if swept else found[0])


def acting_notes(evaluations: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns for each evaluation of an agent but the first in what the configuration that acts differs from that."""
    first, *others = evaluations.items()
    usual = config.values(first[1])
    return {
        name: {key: value for key, value in config.values(own).items() if value != usual[key]} for name, own in others
    }


def _configuration(
    lines: list[dict[str, Any]],
    runs: Sequence[int],
    metric: str,
    unit: str,
    notes: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns the numbers of runs of one configuration."""
    found = _headline([line for line in lines if line["mode"] == SINGLE], runs, metric, unit)
    if diverged := sorted({line["seed"] for line in lines if "diverged" in line}):
        found["diverged"] = diverged
    for mode, note in notes.items():
        if own := [line for line in lines if line["mode"] == mode]:
            found[mode] = dict(note) | _headline(own, runs, metric, unit)
    return found


def _headline(lines: list[dict[str, Any]], runs: Sequence[int], metric: str, unit: str) -> dict[str, Any]:
    lacking = {line["step"] for line in lines if metric not in line}  # no number of theirs was finite
    if not (steps := sorted({line["step"] for line in lines} - lacking)[-HEADLINE_EVALUATIONS:]):
        return {"metric": None, "rule": "no evaluation had finite numbers of all runs and tasks"}

    def mean(**where: int) -> float:
        kept = [line for line in lines if line["step"] in steps and where.items() <= line.items()]
        return float(np.mean([line[metric] for line in kept]))

    per_seed = [mean(run=run) for run in runs]
    tasks = sorted({line["task"] for line in lines})
    interval = statistics.mean_interval(np.array(per_seed))
    known = len(per_seed) > 1
    rule = f"{metric} averaged over tasks and the last {len(steps)} evaluations ({unit}s {steps}), then over seeds"
    broken = sum(line.get("not_finite", 0) for line in lines)
    if broken:
        rule += f"; {broken} evaluation episodes with numbers that are not finite are left out"
    return {
        "metric": metric,
        metric: interval.mean,
        f"{metric}_interval_95": [interval.low, interval.high] if known else None,
        "rule": f"{rule}; interval: percentile bootstrap over seeds",
        f"{metric}_per_seed": per_seed,
        f"{metric}_per_task": {f"task{task}": mean(task=task) for task in tasks},
        "episodes_per_task": lines[-1]["episodes"],
    }


def scale(metric: str) -> float:
    """Returns the factor by which people see a metric: success in per cent."""
    return 100.0 if metric == "success" else 1.0


def shown(metric: str, value: float) -> str:
    """Returns a number as people read it."""
    return f"{scale(metric) * value:.1f}{' %' if metric == 'success' else ''}"


def print_summary(summary: Mapping[str, Any], notes: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints the headline and the numbers per task; of a part of a sweep nothing, for its table says it all."""
    metric = summary["metric"]
    if "configurations" in summary:
        return
    if metric is None:
        print(f"done; {summary['rule']}")
        return
    parts = {"": summary}
    for mode, note in notes.items():
        told = ", ".join(f"{name}={value}" for name, value in note.items())
        parts |= {f" {mode.replace('_', ' ')} ({told})": summary[mode]} if mode in summary else {}
    for label, part in parts.items():
        if part["metric"] is None:
            print(f"{metric}{label}: {part['rule']}")
            continue
        bounds = part[f"{metric}_interval_95"]
        spread = f" (95 % interval {shown(metric, bounds[0])} to {shown(metric, bounds[1])})" if bounds else ""
        print(f"{metric}{label} {shown(metric, part[metric])}{spread}: {part['rule']}")
        for task, value in part[f"{metric}_per_task"].items():
            print(f"    {task}  {shown(metric, value):>7}")
