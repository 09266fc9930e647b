import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from altered_files import RUN
from commands import main

from flowrl.data.dataset import Dataset, from_arrays

IN_HASTE = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if jax.__version_info__ < (0, 11):  # later ones do not know it, and a flag that XLA does not know ends the process
    IN_HASTE += " --xla_cpu_use_fusion_emitters=false"
"""What XLA leaves out: most of the tests' time is compilation, and what runs a few times need not run fast."""
COMPILED = ".pytest_cache/d/compiled"
"""Where compiled programs are kept, which `--cache-clear` empties."""
MOST = 2**30
"""Bytes of them that are kept."""
LONG = 0.05
"""Seconds of compilation from which a program is kept: what is compiled sooner costs as much to write as to compile."""


def pytest_configure() -> None:
    """Compiles in haste, and heeds Ctrl-C also where the caller ignores it, as in a shell's background.

    The programs that tests start inherit both.
    """
    if IN_HASTE not in (flags := os.environ.get("XLA_FLAGS", "")):
        os.environ["XLA_FLAGS"] = f"{flags} {IN_HASTE}".strip()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(pytestconfig: pytest.Config) -> None:
    """Programs that several tests build, in whichever process, are compiled once, and not again by the next run.

    A program that a change touches has another key. What is not whole, since its writer was killed, is compiled anew.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    settings = {
        "jax_compilation_cache_dir": str(pytestconfig.rootpath / COMPILED),
        "jax_persistent_cache_min_compile_time_secs": LONG,
        "jax_persistent_cache_enable_xla_caches": "none",  # of GPUs: their folder would be part of every key
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for the command lines that tests start


def pytest_sessionstart(session: pytest.Session) -> None:
    """Drops all compiled programs where changes of the product have left more than `MOST` behind."""
    folder = session.config.rootpath / COMPILED
    if "PYTEST_XDIST_WORKER" not in os.environ and sum(file.stat().st_size for file in folder.glob("*")) > MOST:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """Forgets what a file of tests has traced and compiled, which otherwise fills gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64() -> Iterator[None]:
    """Computes in float64, for comparisons that leave no room for an error of formulas."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def walks() -> Dataset:
    """Random walks in the plane: 20 episodes of 30 rows, actions in [−1, 1]."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (20, 30, 2)).astype(np.float32)
    observations = np.cumsum(actions, axis=1) - actions
    terminals = np.zeros((20, 30), bool)
    terminals[:, -1] = True
    return from_arrays(
        {
            "observations": observations.reshape(-1, 2),
            "actions": actions.reshape(-1, 2),
            "terminals": terminals.reshape(-1),
        }
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The flag of a file of Pendulum's transitions."""
    path = tmp_path_factory.mktemp("data") / "own.npz"
    rng = np.random.default_rng(0)
    fields = {"observations": rng.normal(size=(60, 3)), "actions": rng.uniform(-2, 2, (60, 1)), "rewards": np.ones(60)}
    np.savez(path, **fields, terminals=np.zeros(60, bool), timeouts=np.arange(60) % 20 == 19)
    return f"--data={path}"


@pytest.fixture(scope="module")
def finished(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of 20 updates, with checkpoints at 10 and 20."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(*RUN, data, "--steps=20", f"--run_dir={folder}") == 0
    return folder


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return shutil.copytree(finished, tmp_path / "run")
