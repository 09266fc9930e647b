"""The project's programs and examples as modules, and a small dataset to run them on."""

import importlib.util
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np

from flowrl.cli import flags

ROOT = Path(__file__).parents[1]


def load(path: str) -> ModuleType:
    """Imports a program by its path from the repository's root."""
    specification = importlib.util.spec_from_file_location(f"loaded_{Path(path).stem}", ROOT / path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def main(*arguments: object) -> int:
    """Calls `main` of experiments/main.py in this process."""
    return load("experiments/main.py").main(["main.py", *map(str, arguments)])


def sweep(*arguments: object) -> int:
    """Calls `main` of experiments/sweep.py in this process."""
    return load("experiments/sweep.py").main(["sweep.py", *map(str, arguments)])


def status(path: str, *arguments: object) -> Any:
    """Runs a program by its path in this process, as a shell would, and returns its exit status."""
    program, handlers = load(path).main, {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        with mock.patch.object(sys, "argv", [path, *map(str, arguments)]):
            flags.run(program)
    except SystemExit as ended:
        return ended.code
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)


def save_walks(path: Path, **changed: Any) -> Path:
    """Writes 6 episodes of 20 rows of pointmaze, with some fields replaced, or left out where None."""
    rng = np.random.default_rng(0)
    terminals = np.zeros((6, 20), bool)
    terminals[:, -1] = True
    observations = rng.uniform(0, 20, size=(120, 2)).astype(np.float32)
    fields: dict[str, Any] = {
        "observations": observations,
        "actions": rng.uniform(-1, 1, (120, 2)).astype(np.float32),
        "terminals": terminals.ravel(),
        "qpos": observations,
        "qvel": np.zeros_like(observations),
    }
    np.savez(path, **{name: value for name, value in (fields | changed).items() if value is not None})
    return path
