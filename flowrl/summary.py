"""What a run's evaluations come to: lines of `eval.jsonl`, and the headline number with the rule it was formed by."""

from typing import Any

import numpy as np

from flowrl import stats
from flowrl.evaluate import Evaluation
from flowrl.settings import Plan

HEADLINE_EVALUATIONS = 3


def evaluation_lines(step: int, seeds: list[int], outcome: Evaluation) -> list[dict[str, Any]]:
    """One line per run and task."""
    return [
        {
            "step": step,
            "run": run,
            "seed": seed,
            "task": task + 1,
            "success": float(successes.mean()),
            "episodes": len(successes),
            "length": float(outcome.lengths[run, task].mean()),
        }
        for run, seed in enumerate(seeds)
        for task, successes in enumerate(outcome.successes[run])
    ]


def summarize(plan: Plan, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the summary of a run from its evaluation lines.

    The headline is OGBench's: success averaged over tasks and over the last three evaluations, for each seed; then the
    mean over seeds with its 95 % bootstrap interval.
    """
    steps = sorted({line["step"] for line in lines})[-HEADLINE_EVALUATIONS:]
    summary: dict[str, Any] = {
        "agent": plan.settings.agent,
        "environment": plan.env.env_id,
        "dataset": plan.env.dataset,
        "preset": plan.preset.name,
        "steps": plan.settings.steps,
        "seeds": plan.seeds,
    }
    if not steps:
        return summary | {"success": None, "rule": "no evaluation was asked for"}

    def mean(**where: int) -> float:
        kept = [line for line in lines if line["step"] in steps and where.items() <= line.items()]
        return float(np.mean([line["success"] for line in kept]))

    per_seed = [mean(seed=seed) for seed in plan.seeds]
    tasks = sorted({line["task"] for line in lines})
    interval = stats.mean_interval(np.array(per_seed))
    known = len(per_seed) > 1
    return summary | {
        "success": interval.mean,
        "success_interval_95": [interval.low, interval.high] if known else None,
        "rule": f"success averaged over tasks and the last {len(steps)} evaluations (updates {steps}), then over seeds; "  # noqa: E501
        "interval: percentile bootstrap over seeds",
        "success_per_seed": per_seed,
        "success_per_task": {f"task{task}": mean(task=task) for task in tasks},
        "episodes_per_task": lines[-1]["episodes"],
    }


def print_summary(summary: dict[str, Any]) -> None:
    """Prints the headline and the success per task."""
    if summary["success"] is None:
        print(f"done; {summary['rule']}")
        return
    bounds = summary["success_interval_95"]
    spread = f" (95 % interval {100 * bounds[0]:.1f} to {100 * bounds[1]:.1f})" if bounds else ""
    print(f"success {100 * summary['success']:.1f} %{spread}: {summary['rule']}")
    for task, success in summary["success_per_task"].items():
        print(f"    {task}  {100 * success:5.1f} %")
