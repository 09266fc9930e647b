"""The machine that this process runs on."""

import contextlib
from pathlib import Path


def available_memory() -> int | None:
    """Returns the bytes of main memory that this process may still take, or None where nobody tells."""
    try:
        told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = 1024 * int(told["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None
    limits = [Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current")]
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        most, used = (int(path.read_text()) for path in limits)
        available = min(available, most - used)
    return available
