"""The planted faults, which `python -m tests.faults` plants, fit the files as they are."""

from pathlib import Path

import pytest

from tests.faults import ROOT, TYPES, all_stated, copy_to, stale

STATED = all_stated()


@pytest.mark.parametrize("file", dict.fromkeys(fault.file for fault in STATED))
def test_faults_fit_their_files_and_name_a_test(file: str) -> None:
    own = [fault for fault in STATED if fault.file == file]
    assert [*filter(None, map(stale, own))] == []
    assert len({*own}) == len(own)


def test_what_computes_has_faults() -> None:
    paths = {fault.path for fault in STATED}
    for folder in ("agents", "flowrl", "flowrl/data", "flowrl/training"):
        files = {f"{folder}/{file.name}" for file in (ROOT / folder).glob("[a-z]*.py")}
        assert files - paths <= {f"flowrl/{name}.py" for name in ("train_state", "random_streams", "version")}
    assert any(fault.test == TYPES for fault in STATED)


def test_a_stale_fault_is_said() -> None:
    fault = STATED[0]
    assert stale(fault) is None
    assert "occurs 0 times" in str(stale(fault._replace(old="no such text")))
    for test in ("no_test", "test_that_there_is_not", f"{fault.test} or test_that_there_is_not"):
        assert "names no test" in str(stale(fault._replace(test=test)))


def test_a_fault_goes_into_a_copy(tmp_path: Path) -> None:
    copy = copy_to(tmp_path / "copy")
    assert (copy / "flowrl" / "agents" / "fql.py").read_bytes() == (ROOT / "agents" / "fql.py").read_bytes()
