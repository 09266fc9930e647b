"""Writes rliable's own numbers for some scores to rliable_values.json, which test_stats.py compares with ours.

rliable is needed here only, in an environment of its own; arch, which it builds on, wants an older pandas:

    python3 -m venv .venv-rliable && .venv-rliable/bin/pip install rliable==1.2.0 'pandas<3'
    .venv-rliable/bin/python tests/rliable_values.py
"""

import importlib.metadata
import json
from pathlib import Path

import numpy as np

REPETITIONS = 20_000


def cases() -> list[dict[str, np.ndarray]]:
    """Scores of two methods: several tasks and runs, a single task with ties, unequal numbers of runs."""
    rng = np.random.default_rng(7)
    return [
        {"x": rng.uniform(0.2, 1.3, (5, 4)), "y": rng.uniform(0, 1, (4, 4))},
        {"x": np.array([[0.5], [0.5], [0.9]]), "y": np.array([[0.5], [0.4], [0.9]])},
        {"x": rng.normal(0.6, 0.3, (10, 6)), "y": rng.normal(0.5, 0.3, (7, 6))},
    ]


def values(x: np.ndarray, y: np.ndarray) -> dict[str, object]:
    """Returns what rliable says of two methods."""
    from rliable import library, metrics

    # rliable draws from numpy's global generator.
    np.random.seed(0)  # noqa: NPY002

    def statistics(scores: np.ndarray) -> np.ndarray:
        functions = (
            metrics.aggregate_mean,
            metrics.aggregate_median,
            metrics.aggregate_iqm,
            metrics.aggregate_optimality_gap,
        )
        return np.array([function(scores) for function in functions])

    points, bounds = library.get_interval_estimates({"x": x}, statistics, reps=REPETITIONS)
    thresholds = np.round(np.linspace(x.min() - 0.1, x.max() + 0.1, 9), 3)
    profile, bands = library.create_performance_profile({"x": x}, thresholds, reps=REPETITIONS)
    better, better_bounds = library.get_interval_estimates(
        {"pair": (x, y)}, metrics.probability_of_improvement, reps=REPETITIONS // 10
    )
    return {
        "x": x.tolist(),
        "y": y.tolist(),
        **{
            name: {"value": float(point), "interval": [float(low), float(high)]}
            for name, point, low, high in zip(
                ("mean", "median", "iqm", "optimality_gap"), points["x"], *bounds["x"], strict=True
            )
        },
        "profile": {
            "thresholds": thresholds.tolist(),
            "value": profile["x"].tolist(),
            "interval": bands["x"].tolist(),
        },
        "improvement": {"value": float(better["pair"]), "interval": better_bounds["pair"].ravel().tolist()},
    }


if __name__ == "__main__":
    found = [values(**{name: np.round(scores, 3) for name, scores in case.items()}) for case in cases()]
    table = {"rliable": importlib.metadata.version("rliable"), "repetitions": REPETITIONS, "cases": found}
    Path(__file__).with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")
