"""The comparison of collected data with a reference set."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import load

from flowrl import tasks
from flowrl.collection import collect

STITCH = "pointmaze-medium-stitch"


@pytest.mark.slow
def test_comparison_tells_the_same_procedure_from_another(tmp_path: Path) -> None:
    compare, recipe = load("experiments/evidence/compare_data.py"), tasks.parse(STITCH).recipe()
    reference = collect.collect(recipe, tmp_path / "reference", episodes=20, seed=3, workers=1)
    other = collect.collect(recipe, tmp_path / "same", episodes=20, seed=4, workers=1)
    with np.load(other) as file:
        tampered = dict(file)
    tampered["actions"] = 0.9 * tampered["actions"]
    (tmp_path / "tampered").mkdir()
    np.savez(tmp_path / "tampered" / other.name, **tampered)
    found = {}
    for folder in ("same", "tampered"):
        out = tmp_path / "results" / folder
        paths = (f"--collected={tmp_path / folder / other.name}", f"--reference={reference}", f"--out={out}")
        assert compare.main(["compare_data.py", *paths]) == 0
        assert {path.name for path in out.iterdir()} == {"comparison.json", "comparison.md", "comparison.png"}
        written = (out / "comparison.json").read_text()
        assert str(tmp_path) not in written
        found[folder] = json.loads(written)["comparison"]
    assert min(row["p value"] for row in found["same"].values()) > 0.003
    assert found["tampered"]["action norm"]["p value"] < 0.003
    assert found["tampered"]["distance per step"] == found["same"]["distance per step"]


def test_distances_between_histograms() -> None:
    compare = load("experiments/evidence/compare_data.py")
    table = np.array([[4.0, 0.0, 0.0], [0.0, 2.0, 2.0]])
    sides = np.array([[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(compare.distances(table, sides, "ks"), [1.0, 1.0])
    table = np.array([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0]])
    np.testing.assert_allclose(compare.distances(table, sides, "ks"), [0.25, 0.25])
    np.testing.assert_allclose(compare.distances(table, sides, "total variation"), [0.25, 0.25])
