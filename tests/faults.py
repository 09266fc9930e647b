"""Plants faults in copies of the repository, each of which tests must notice: `python -m tests.faults [FILE …]`.

They stand in `mutations.py`. With names of files, of the product or of tests, only theirs are planted.
"""

import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest
from tqdm import tqdm

from tests.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parent.parent
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


def spoiled(base: Path, mutations: Sequence[Mutation]) -> list[str]:
    """Returns which of the tests that faults name fail without any: those would notice whatever is planted."""
    selections: dict[str, set[str]] = defaultdict(set)
    for mutation in mutations:
        selections[mutation.tests].add(f"({mutation.select})")

    def fails(tests: str) -> str | None:
        status, output = run(
            copy_to(base / f"whole-{Path(tests).stem}"), [tests], " or ".join(sorted(selections[tests]))
        )
        return f"{tests} fails without a fault:\n{output[-3000:]}" if status else None

    with ThreadPoolExecutor(2) as pool:
        return [*filter(None, pool.map(fails, selections))]


def main(names: Sequence[str]) -> int:
    """Plants the faults of these files, or all, and returns the exit status: 1 where one goes unnoticed."""
    wanted = [m for m in MUTATIONS if not names or any(name in (m.path, m.tests) for name in names)]
    if not wanted:
        print(f"no faults are known of {', '.join(names)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        problems = spoiled(Path(folder), wanted)
        whole = len(problems)
        tried = pool.map(lambda pair: attempt(Path(folder), *pair), enumerate(wanted))
        for mutation, problem in zip(
            tqdm(wanted, desc="planted faults", unit="fault", disable=None), tried, strict=True
        ):
            if problem is not None:
                problems.append(f"{mutation.path}: {mutation.old!r} -> {mutation.new!r} was not noticed; {problem}")
    print("\n\n".join(problems))
    print(f"faults: {len(wanted) - len(problems) + whole} passed, {len(problems)} failed")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
