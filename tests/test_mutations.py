"""The tests themselves: each fault in `mutations.py`, planted in a copy of the repository, must make its tests fail."""

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow
# Makes a run of pytest end with an error of usage, not with failed tests, where it would test another copy.
GUARD = """
from pathlib import Path
import flowrl, flowrl.agents.gc_sscp
for module in (flowrl, flowrl.agents.gc_sscp):
    assert Path(module.__file__).resolve().is_relative_to(Path(__file__).resolve().parent), module.__file__
"""


def stale(mutation: Mutation) -> str | None:
    """Says why a mutation no longer fits its file, or nothing."""
    count = (ROOT / mutation.path).read_text().count(mutation.old)
    return None if count == 1 else f"the table is stale: {mutation.old!r} occurs {count} times in {mutation.path}"


def copy_to(folder: Path) -> Path:
    """Copies what the tests need."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("flowrl", "agents", "tests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
    shutil.copy(ROOT / "setup.cfg", folder)
    (folder / "conftest.py").write_text(GUARD)
    return folder


def run(folder: Path, tests: list[str], select: str) -> tuple[int, str]:
    """Runs tests of a copy until the first failure; returns pytest's exit status and what it printed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", select, *tests]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu"}
    # What most copies compile is the same.
    environment["JAX_COMPILATION_CACHE_DIR"] = str(folder.parent / "cache")
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    return done.returncode, done.stdout


def attempt(base: Path, index: int, mutation: Mutation) -> str | None:
    """Plants one fault; returns what is wrong with the tests, or nothing."""
    if problem := stale(mutation):
        return problem
    folder = copy_to(base / str(index))
    file = folder / mutation.path
    file.write_text(file.read_text().replace(mutation.old, mutation.new))
    status, output = run(folder, [mutation.tests], mutation.select)
    shutil.rmtree(folder)
    # 1: tests failed. Any other status means that none were selected or that the copy could not be imported.
    if status == 1 and re.search(r"^FAILED ", output, re.MULTILINE):
        return None
    return f"pytest ended with {status}:\n{output[-3000:]}"


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> list[str | None]:
    base = tmp_path_factory.mktemp("mutants")
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda pair: attempt(base, *pair), enumerate(MUTATIONS)))


def test_the_copy_passes_without_a_fault(tmp_path: Path) -> None:
    selections: dict[str, set[str]] = defaultdict(set)
    for mutation in MUTATIONS:
        selections[mutation.tests].add(f"({mutation.select})")
    for tests, selected in selections.items():
        status, output = run(copy_to(tmp_path / Path(tests).stem), [tests], " or ".join(sorted(selected)))
        assert status == 0, output[-3000:]


def test_all_files_have_faults() -> None:
    paths = {mutation.path for mutation in MUTATIONS}
    assert {"flowrl/losses.py", "flowrl/optim.py", "flowrl/networks.py"} <= paths
    assert {"flowrl/data/goals.py", "flowrl/data/dataset.py"} <= paths
    assert {f"agents/{file.name}" for file in (ROOT / "agents").glob("[a-z]*.py")} <= paths


@pytest.mark.parametrize(
    "index", range(len(MUTATIONS)), ids=[f"{i}-{Path(m.path).stem}" for i, m in enumerate(MUTATIONS)]
)
def test_the_fault_is_noticed(verdicts: list[str | None], index: int) -> None:
    problem, mutation = verdicts[index], MUTATIONS[index]
    assert problem is None, f"{mutation.path}: {mutation.old!r} -> {mutation.new!r} was not noticed; {problem}"
