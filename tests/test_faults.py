"""The table of planted faults, which `python -m tests.faults` plants, fits the files as they are."""

from pathlib import Path

import pytest

from tests.faults import ROOT, copy_to, stale
from tests.mutations import MUTATIONS


@pytest.mark.parametrize("path", sorted({mutation.path for mutation in MUTATIONS}))
def test_faults_fit_their_file(path: str) -> None:
    assert [*filter(None, map(stale, (mutation for mutation in MUTATIONS if mutation.path == path)))] == []


def test_all_files_have_faults() -> None:
    paths = {mutation.path for mutation in MUTATIONS}
    assert {"flowrl/losses.py", "flowrl/optim.py", "flowrl/networks.py"} <= paths
    assert {"flowrl/data/goals.py", "flowrl/data/dataset.py"} <= paths
    assert {f"agents/{file.name}" for file in (ROOT / "agents").glob("[a-z]*.py")} <= paths


def test_a_fault_goes_into_a_copy(tmp_path: Path) -> None:
    copy = copy_to(tmp_path / "copy")
    assert (copy / "flowrl" / "agents" / "fql.py").read_bytes() == (ROOT / "agents" / "fql.py").read_bytes()
