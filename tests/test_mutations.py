"""The tests themselves: each fault in `mutations.py`, planted in a copy of the repository, must make its tests fail."""

import multiprocessing
import os
import re
import shutil
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
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
    (folder / "experiments").mkdir()
    for program in (ROOT / "experiments").glob("*.py"):
        shutil.copy(program, folder / "experiments")
    for name in ("setup.cfg", "pyproject.toml", "requirements.txt", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "conftest.py").write_text(GUARD)
    return folder


# Forked from a process that has imported what takes long, and nothing of the repository.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["jax", "flax.linen", "optax", "chex", "orbax.checkpoint", "pytest", "gymnasium"])


def run(folder: Path, tests: list[str], select: str) -> tuple[int, str]:
    """Runs tests of a copy until the first failure; returns pytest's exit status and what it printed."""
    arguments = ["-n0", "-x", "-q", "-p", "no:cacheprovider", "-k", select, *tests]
    process = PROCESSES.Process(target=run_here, args=(folder, arguments))
    process.start()
    process.join(timeout=600)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode or 0, (folder / "output").read_text()


def run_here(folder: Path, arguments: list[str]) -> None:
    """Ends this process with what pytest says of a copy."""
    os.chdir(folder)
    with open("output", "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.path[:] = [str(folder), *(path for path in sys.path if path not in ("", str(ROOT), str(ROOT / "tests")))]
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"}
    # What most copies compile is the same.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder.parent / "cache")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(folder.parent / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    os._exit(int(pytest.main(arguments)))


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
