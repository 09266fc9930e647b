"""What a run's evaluations come to: lines of `eval.jsonl`, and the headline number with the rule it was formed by."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowrl import stats
from flowrl.data import d4rl
from flowrl.envs import EnvName
from flowrl.evaluate import Evaluation
from flowrl.settings import Plan, Trial, points
from flowrl.train_state import Mode

HEADLINE_EVALUATIONS = 3


METRICS = ("success", "normalized_score", "return")
"""What an evaluation may be judged by, the first of those that it has."""


def evaluation_lines(
    step: int, trials: Sequence[Trial], mode: Mode, outcome: Evaluation, env: EnvName, *, first_run: int = 0
) -> list[dict[str, Any]]:
    """One line per run and task, runs counted from `first_run`; what the environment does not tell is left out."""
    lines = []
    for row, trial in enumerate(trials):
        for task, successes in enumerate(outcome.successes[row]):
            returns, run = outcome.returns[row, task], first_run + row
            line: dict[str, Any] = {"step": step, "run": run, **trial.labels, "task": task + 1, "mode": mode}
            if not np.isnan(successes).any():
                line["success"] = float(successes.mean())
            if env.d4rl:
                line["normalized_score"] = float(d4rl.normalized_score(env.d4rl, returns).mean())
            line |= {"return": float(returns.mean()), "episodes": len(successes)}
            lines.append(line | {"length": float(outcome.lengths[row, task].mean())})
    return lines


def evaluation_text(step: int, lines: list[dict[str, Any]], unit: str = "update") -> str:
    """Returns what the terminal shows of one evaluation in one mode: means over runs, in all and per task."""
    metric = metric_of(lines[-1])
    tasks = sorted({line["task"] for line in lines})
    means = [float(np.mean([line[metric] for line in lines if line["task"] == task])) for task in tasks]
    label = f"{metric}{' best of n' if lines[-1]['mode'] == 'best_of_n' else ''}"
    each = "   " + "  ".join(f"task{task} {shown(metric, mean)}" for task, mean in zip(tasks, means, strict=True))
    return f"{unit} {step:>9,}  {label} {shown(metric, float(np.mean(means)))}{each if len(tasks) > 1 else ''}"


def summarize(plan: Plan, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the summary of a run directory from its evaluation lines; of a part of a sweep by configuration.

    The headline follows OGBench: success (where the environment does not tell it, D4RL's normalised score or the
    return) averaged over tasks and over the last three evaluations, for each seed; then the mean over seeds with its
    95 % bootstrap interval. It is of single actions; a choice among several by Q is reported apart.
    """
    summary: dict[str, Any] = {
        "agent": plan.settings.agent,
        "environment": plan.env.env_id,
        "dataset": plan.env.dataset,
        "preset": plan.preset.name,
        "steps": plan.settings.steps,
        "online_steps": plan.settings.online_steps,
        "seeds": plan.seeds,
    }
    if not lines:
        return summary | {"metric": None, "rule": "no evaluation was asked for"}
    if not plan.grid:
        return summary | _configuration(plan, {}, lines)
    configurations = [Trial(0, values).swept | _configuration(plan, values, lines) for values in points(plan.trials)]
    return summary | {"metric": metric_of(lines[-1]), "configurations": configurations}


def _configuration(plan: Plan, values: Mapping[str, float], lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the numbers of the runs that have these values of the sweepable fields."""
    runs = [run for run, trial in enumerate(plan.trials) if trial.values == values]
    of_mode = {mode: [line for line in lines if line["mode"] == mode] for mode in ("eval", "best_of_n")}
    found = _headline(plan, of_mode["eval"], runs)
    if diverged := sorted({line["seed"] for line in lines if line["run"] in runs and "diverged" in line}):
        found["diverged"] = diverged
    if of_mode["best_of_n"]:
        note = {"candidates": plan.agent_config.candidates}
        found["best_of_n"] = note | _headline(plan, of_mode["best_of_n"], runs)
    return found


def _headline(plan: Plan, lines: list[dict[str, Any]], runs: Sequence[int]) -> dict[str, Any]:
    lines = [line for line in lines if line["run"] in runs]
    steps = sorted({line["step"] for line in lines})[-HEADLINE_EVALUATIONS:]
    metric = metric_of(lines[-1])

    def mean(**where: int) -> float:
        kept = [line for line in lines if line["step"] in steps and where.items() <= line.items()]
        return float(np.mean([line[metric] for line in kept]))

    per_seed = [mean(run=run) for run in runs]
    tasks = sorted({line["task"] for line in lines})
    interval = stats.mean_interval(np.array(per_seed))
    known = len(per_seed) > 1
    rule = f"{metric} averaged over tasks and the last {len(steps)} evaluations ({plan.unit}s {steps}), then over seeds"
    return {
        "metric": metric,
        metric: interval.mean,
        f"{metric}_interval_95": [interval.low, interval.high] if known else None,
        "rule": f"{rule}; interval: percentile bootstrap over seeds",
        f"{metric}_per_seed": per_seed,
        f"{metric}_per_task": {f"task{task}": mean(task=task) for task in tasks},
        "episodes_per_task": lines[-1]["episodes"],
    }


def metric_of(line: dict[str, Any]) -> str:
    """Returns what an evaluation line is judged by."""
    return next(metric for metric in METRICS if metric in line)


def scale(metric: str) -> float:
    """Returns the factor by which people see a metric: success in per cent."""
    return 100.0 if metric == "success" else 1.0


def shown(metric: str, value: float) -> str:
    """Returns a number as people read it."""
    return f"{scale(metric) * value:.1f}{' %' if metric == 'success' else ''}"


def print_summary(summary: dict[str, Any]) -> None:
    """Prints the headline and the numbers per task; of a part of a sweep nothing, for its table says it all."""
    metric = summary["metric"]
    if "configurations" in summary:
        return
    if metric is None:
        print(f"done; {summary['rule']}")
        return
    parts = {"": summary}
    if "best_of_n" in summary:
        parts[f", best of {summary['best_of_n']['candidates']} by Q"] = summary["best_of_n"]
    for label, part in parts.items():
        bounds = part[f"{metric}_interval_95"]
        spread = f" (95 % interval {shown(metric, bounds[0])} to {shown(metric, bounds[1])})" if bounds else ""
        print(f"{metric}{label} {shown(metric, part[metric])}{spread}: {part['rule']}")
        for task, value in part[f"{metric}_per_task"].items():
            print(f"    {task}  {shown(metric, value):>7}")
