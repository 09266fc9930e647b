"""The toys: their measures on samples with known answers, and one run end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
from programs import load

from flowrl.errors import UserError

toys = load("experiments/toys.py")
NAMES = toys.Settings.datasets.split(",")


def data(name: str, count: int, seed: int) -> np.ndarray:
    return toys.draw_data(name, count, np.random.default_rng(seed))


@pytest.mark.parametrize("name", NAMES)
def test_data_is_covered_by_itself_and_nothing_else(name: str) -> None:
    pool, fresh = data(name, 20_000, 0), data(name, 5000, 1)
    assert pool.shape == (20_000, 2)
    assert np.abs(pool).max() <= 1
    same = toys.measure(name, data(name, 5000, 2), pool, fresh)
    assert same["coverage"] > 0.98
    assert same["on_support"] > 0.99
    assert same["sliced_wasserstein"] < 0.03
    corner = toys.measure(name, np.full((5000, 2), [0.97, -0.97], np.float32), pool, fresh)
    assert corner["coverage"] == corner["on_support"] == corner["reward_on_support"] == 0


def test_one_mode_of_two_is_half_of_the_data() -> None:
    pool, fresh = data("two_modes", 20_000, 0), data("two_modes", 5000, 1)
    upper = np.tile(np.float32([[0.5, 0.5]]), (5000, 1))
    found = toys.measure("two_modes", upper, pool, fresh)
    assert found["coverage"] == 0.5
    assert found["on_support"] == 1
    assert found["reward"] == pytest.approx(1)
    few = np.concatenate([upper[:4800], -upper[:200]])  # 4 % is less than a tenth of a half
    assert toys.coverage("two_modes", few, pool) == 0.5
    enough = np.concatenate([upper[:4700], -upper[:300]])
    assert toys.coverage("two_modes", enough, pool) == 1


def test_sliced_wasserstein_of_a_shift() -> None:
    points = data("ring", 1000, 0)
    assert toys.sliced_wasserstein(points, points) == 0
    shifted = toys.sliced_wasserstein(points, points + np.float32([0.3, 0]))
    assert shifted == pytest.approx(0.3 * 2 / np.pi, rel=1e-3)  # the mean of |cos|


def test_a_run_end_to_end(tmp_path: Path) -> None:
    tiny = ("--steps=2", "--num_seeds=2", "--width=4", "--batch_size=8", "--samples=50", "--datasets=two_modes")
    assert toys.main(["toys.py", *tiny, f"--out={tmp_path}", "--parts=bc"]) == 0
    report = json.loads((tmp_path / "toys.json").read_text())
    methods = [record["method"] for record in report["results"] if record["part"] == "bc"]
    assert methods == ["bc gaussian", "bc flow, 10 steps", "sscp", "sscp, 10 steps", "ofql", "fql"]
    record = report["results"][-1]
    values = [numbers["on_support"] for numbers in record["per_seed"].values()]
    assert record["mean"]["on_support"] == pytest.approx(np.mean(values))
    assert str(tmp_path) not in json.dumps(report)
    assert (tmp_path / "bc.png").read_bytes().startswith(b"\x89PNG")
    assert toys.main(["toys.py", "--draw_only", f"--out={tmp_path}"]) == 0


def test_unknown_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--datasets: unknown moons"):
        toys.main(["toys.py", "--datasets=moons", f"--out={tmp_path}"])
