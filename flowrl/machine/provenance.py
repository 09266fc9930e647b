"""Facts that make a result traceable: versions, commit and hardware."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from flowrl.machine.version import __version__

HERE = Path(__file__).resolve().parents[2]
"""flowrl's own checkout, if it is one."""


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of flowrl, Python and those of the named packages that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return {"flowrl": __version__, "python": platform.python_version(), **found}


def version_text() -> str:
    """Returns what `--version` says."""
    found = versions("jax", "jaxlib", "flax", "optax", "numpy")
    commit = git_commit()
    own = f"flowrl {found.pop('flowrl')}{f' (commit {commit})' if commit else ''}"
    return ", ".join([own, *(f"{name} {version}" for name, version in found.items())])


@functools.cache
def git_commit(folder: Path = HERE) -> str | None:
    """Returns the commit of a checkout, with `-dirty` after local changes; None where there is no checkout."""
    folder = folder.resolve()
    git = functools.partial(subprocess.run, cwd=folder, capture_output=True, text=True, check=True)
    try:
        if Path(git(["git", "rev-parse", "--show-toplevel"]).stdout.strip()) != folder:
            return None  # installed somewhere inside another project's checkout
        commit = git(["git", "rev-parse", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


def usable_cores() -> int:
    """Returns the number of processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> str:
    """Returns the processor, the number of usable cores and, if jax runs on others, the accelerators."""
    import jax

    text = f"{_processor()}, {usable_cores()} cores"
    if jax.default_backend() != "cpu":
        text += f", {jax.device_count()} × {jax.devices()[0].device_kind}"
    return text


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
