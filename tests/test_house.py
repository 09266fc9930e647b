"""The tree shows the architecture: what may import what, and how long things may be."""

from pathlib import Path

import pytest
from commands import load

house = load("experiments/evidence/house.py")
ROOT = Path(__file__).parents[1]
ORDER = (
    "machine", "data", "agents", "envs", "collection", "tasks", "training", "run_folder", "reports", "experiment",
    "cli",
)  # fmt: skip
"""The folders of flowrl: each imports the root and those before it."""


def folder(module: str) -> str:
    """Returns the folder of a module; empty at the root."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or (ROOT / "flowrl" / parts[1]).is_dir() else ""


def test_the_root_imports_no_folder_and_folders_none_below() -> None:
    ranks = {"": -1} | {name: rank for rank, name in enumerate(ORDER)}
    wrong = [
        f"{module} imports {other}"
        for module, others in house.imports(ROOT).items()
        for other in others
        if module != "flowrl" and (other == "flowrl" or ranks[folder(module)] < ranks[folder(other)])
    ]
    assert wrong == []


@pytest.mark.slow
def test_no_circles() -> None:
    assert house.circles(house.imports(ROOT)) == []


@pytest.mark.slow
def test_lengths() -> None:
    found = house.measure(ROOT)
    assert found[f"files over {house.LONG_FILE} lines"] == []
    assert found[f"functions over {house.LONG_FUNCTION} lines"] == []
    assert found["modules at the root"] <= 19


@pytest.mark.parametrize("path", house.agents(ROOT).values(), ids=lambda path: path.stem)
def test_agents_are_their_equations(path: Path) -> None:
    assert house.plumbing(path) <= 0.15
    assert len(path.read_text().splitlines()) <= 150


def test_agents_do_not_copy_each_other() -> None:
    assert house.copies(ROOT, 0) <= 0.03


FAULTS = {
    "agents/gc_sscp.py": [
        ("def update(nets: Networks,", "\n\ndef update(nets: Networks,", "test_agents_are_their_equations and gc_sscp"),
    ],
    "flowrl/losses.py": [
        (
            "import chex\n",
            "import chex\nimport flowrl.data.goals\n",
            "test_the_root_imports_no_folder_and_folders_none_below",
        ),
    ],
    "flowrl/errors.py": [
        ("    known = sorted(known)\n", "    import flowrl.config\n\n    known = sorted(known)\n", "test_no_circles"),
    ],
}
