"""Plants faults in copies of the repository, each of which a test must notice: `python -m tests.faults [FILE …]`.

Each stands in the file of the test that must catch it, in a list at its end:

    FAULTS = {
        "flowrl/losses.py": [
            ("(advantages < 0)", "(advantages > 0)", "test_expectile_weight"),
        ],
    }

That is: a file of the product, text that occurs exactly once in it, what replaces it, and the test's name, or which of
its cases as for `pytest -k`: "test_expectile_weight and jit". Where types must catch it, it says "mypy".
With names of files, of the product or of tests, only their faults are planted. With --passed the tests are taken to
pass without faults, which is tried first otherwise: a test that fails anyway would notice everything.
"""

import ast
import gc
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
COMPILED = ROOT / ".pytest_cache" / "d" / "compiled"
"""Programs that a run of the tests has compiled (conftest.py): most are the same with a fault."""
SLOTS = (os.cpu_count() or 1) + 1
"""Faults that are tried at a time: one more than there are cores, since tests of processes mostly wait."""
PASSED = "--passed"
TYPES = "mypy"
"""What stands for a test where a fault is one of types."""
# Makes a run of pytest end with an error of usage, not with failed tests, where it would test another copy.
GUARD = """
from pathlib import Path
import flowrl, flowrl.agents.gc_sscp
for module in (flowrl, flowrl.agents.gc_sscp):
    assert Path(module.__file__).resolve().is_relative_to(Path(__file__).resolve().parent), module.__file__
"""


class Fault(NamedTuple):
    """One fault.

    Attributes:
        path: File of the product, from the repository's root.
        old: Text that occurs exactly once in it.
        new: What replaces it.
        file: File of the test that must catch it.
        test: Which test, as for `pytest -k`, or `mypy`.
    """

    path: str
    old: str
    new: str
    file: str
    test: str


def stated(file: Path) -> list[Fault]:
    """Returns the faults that stand in a file of tests, which is not imported."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["FAULTS"]:
            table = ast.literal_eval(node.value)
            name = file.relative_to(ROOT).as_posix()
            return [Fault(path, old, new, name, test) for path, rows in table.items() for old, new, test in rows]
    return []


def all_stated() -> list[Fault]:
    """Returns the faults of all files of tests."""
    return [fault for file in sorted((ROOT / "tests").glob("test_*.py")) for fault in stated(file)]


def stale(fault: Fault) -> str | None:
    """Says why a fault no longer fits the file that it goes into or the test that is to catch it, or nothing."""
    count = (ROOT / fault.path).read_text().count(fault.old)
    if count != 1:
        return f"{fault.file} is stale: {fault.old!r} occurs {count} times in {fault.path}"
    named = re.findall(r"\btest_\w+", fault.test)
    known = re.findall(r"^ *(?:async )?def (test_\w+)", (ROOT / fault.file).read_text(), re.MULTILINE)
    if fault.test != TYPES and (not named or not set(named) <= set(known)):
        return f"{fault.file} is stale: {fault.test!r} names no test of it"
    return None


def copy_to(folder: Path) -> Path:
    """Copies what the tests need, with the bytecode that fits it."""
    for name in ("flowrl", "agents", "tests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True)
    for name in ("experiments", "experiments/evidence"):
        (folder / name).mkdir()
        for program in (ROOT / name).glob("*.py"):
            shutil.copy2(program, folder / name)
    for name in ("setup.cfg", "pyproject.toml", "requirements.txt", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "conftest.py").write_text(GUARD)
    return folder


# Forked from a process that has imported what takes long, and nothing of the repository.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "absl.flags", "chex", "flax.linen", "gymnasium", "h5py", "hypothesis", "jax", "jax.numpy", "mujoco", "optax",
        "orbax.checkpoint", "pytest", "tqdm", "xdist.plugin",
    ]
)  # fmt: skip


QUIET = "ignore::pytest.PytestAssertRewriteWarning"
"""What pytest says of plugins that were imported before forking."""


def run(folder: Path, tests: list[str], select: str) -> tuple[int, str]:
    """Runs tests of a copy until the first failure; returns pytest's exit status and what it printed."""
    arguments = ["-n0", "-x", "-q", "-m", "", "-p", "no:cacheprovider", "-W", QUIET, "-k", select, *tests]
    process = PROCESSES.Process(target=run_here, args=(folder, arguments))
    process.start()
    process.join(timeout=600)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode or 0, (folder / "output").read_text()


def run_here(folder: Path, arguments: list[str]) -> None:
    """Ends this process with what pytest says of a copy."""
    gc.freeze()  # what it was forked with is there to stay
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
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # as in conftest.py, whose programs it reads
    os._exit(int(pytest.main(arguments)))


def run_types(folder: Path) -> tuple[int, str]:
    """Checks the types of a copy; returns mypy's exit status and what it printed."""
    if (ROOT / ".mypy_cache").is_dir():  # of which most still holds in a copy
        shutil.copytree(ROOT / ".mypy_cache", folder / ".mypy_cache")
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def attempt(base: Path, index: int, fault: Fault) -> str | None:
    """Plants one fault; returns what is wrong with the tests, or nothing."""
    if problem := stale(fault):
        return problem
    folder = copy_to(base / str(index))
    file = folder / fault.path
    file.write_text(file.read_text().replace(fault.old, fault.new))
    if fault.test == TYPES:
        status, output = run_types(folder)
    else:
        status, output = run(folder, [fault.file], fault.test)
    shutil.rmtree(folder)
    # 1: tests failed. Any other status means that none were selected or that the copy could not be imported.
    if status == 1 and re.search(f": error: |^FAILED {re.escape(fault.file)}", output, re.MULTILINE):
        return None
    return f"{fault.test} ended with {status}:\n{output[-3000:]}"


def spoiled(base: Path, faults: Sequence[Fault]) -> list[str]:
    """Returns which of the tests that faults name fail without any: those would notice whatever is planted."""
    selections: dict[str, set[str]] = defaultdict(set)
    for fault in faults:
        selections[TYPES if fault.test == TYPES else fault.file].add(f"({fault.test})")

    def fails(tests: str) -> str | None:
        folder = copy_to(base / f"whole-{Path(tests).stem}")
        chosen = " or ".join(sorted(selections[tests]))
        status, output = run_types(folder) if tests == TYPES else run(folder, [tests], chosen)
        return f"{tests} fails without a fault:\n{output[-3000:]}" if status else None

    with ThreadPoolExecutor(SLOTS) as pool:
        return [*filter(None, pool.map(fails, selections))]


def main(arguments: Sequence[str]) -> int:
    """Plants the faults of these files, or all, and returns the exit status: 1 where one goes unnoticed."""
    names = [argument for argument in arguments if argument != PASSED]
    wanted = [fault for fault in all_stated() if not names or any(name in (fault.path, fault.file) for name in names)]
    if not wanted:
        print(f"no faults are known of {', '.join(names)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(SLOTS) as pool:
        if COMPILED.is_dir():
            shutil.copytree(COMPILED, Path(folder) / "cache")
        problems = [] if PASSED in arguments else spoiled(Path(folder), wanted)
        whole = len(problems)
        tried = pool.map(lambda pair: attempt(Path(folder), *pair), enumerate(wanted))
        for fault, problem in zip(tqdm(wanted, desc="planted faults", unit="fault", disable=None), tried, strict=True):
            if problem is not None:
                problems.append(f"{fault.path}: {fault.old!r} -> {fault.new!r} was not noticed; {problem}")
    print("\n\n".join(problems))
    print(f"faults: {len(wanted) - len(problems) + whole} passed, {len(problems)} failed")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
