"""What this process may take of the machine."""

import contextlib
import resource
from pathlib import Path


def available_memory() -> int | None:
    """Returns the main memory that this process may still take, on Linux: by the machine, its cgroup and `ulimit`."""
    try:
        told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(told["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None
    return max(0, min([free, *_left_of_cgroups(), *_left_of_ulimit()]))


def _left_of_cgroups() -> list[int]:
    """Returns what the limits of this process's cgroups leave; files that are only cached give way."""
    root, left = Path("/sys/fs/cgroup"), []
    folders = {root: ("memory.max", "memory.current"), root / "memory": _VERSION_1}
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            base = root if not controllers else root / "memory"
            for own in [Path(path.lstrip("/")), *Path(path.lstrip("/")).parents]:
                folders[base / own] = _VERSION_1 if controllers else ("memory.max", "memory.current")
    for folder, (most, used) in folders.items():
        with contextlib.suppress(OSError, ValueError, KeyError):  # "max" is no number
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken = int((folder / used).read_text()) - int(stat["inactive_file"])
            left.append(int((folder / most).read_text()) - taken)
    return left


_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def _left_of_ulimit() -> list[int]:
    """Returns what `ulimit -v` leaves."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return []
    with contextlib.suppress(OSError, ValueError):
        return [limit - resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])]
    return []
