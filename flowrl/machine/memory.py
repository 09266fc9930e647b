"""The memory of the devices, and how much fits into it."""

from typing import Any

import jax

from flowrl.machine.limits import available_memory

SHARE = 0.9
"""Of the memory that is free; the rest is for evaluation and for what the allocator loses."""


def fitting(free: float, fixed: float, per_run: float, runs: int) -> int:
    """Returns how many of `runs` fit into `free` bytes, at least one, where `fixed` bytes are needed once."""
    return max(1, min(runs, int((SHARE * free - fixed) // per_run)))


def free_bytes() -> int | None:
    """Returns the memory that is free on each device, or None where nobody tells."""
    device = jax.local_devices()[0]
    if stats := device.memory_stats():
        return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
    free = available_memory() if device.platform == "cpu" else None
    return None if free is None else free // jax.local_device_count()


def size_of(tree: Any) -> int:
    """Returns the bytes of arrays, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
