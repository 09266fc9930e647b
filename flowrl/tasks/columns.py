"""What is done with columns of numbers, many rows at a time."""

import numpy as np

BLOCK = 1 << 16
"""Rows that are looked at together."""


def vector(array: np.ndarray) -> np.ndarray:
    """Returns a column `[N, 1]` as `[N]`, and any other array as it is."""
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def extent(array: np.ndarray) -> np.ndarray:
    """Returns the least and the largest number of each column of `[N, C]`, as `[2, C]`; 0 without rows.

    What is NaN stays so.
    """
    rows, width = array.shape
    if not array.size:
        return np.zeros((2, width), array.dtype)
    together = max(1, 512 // width)  # short rows side by side are faster
    whole = rows // together * together
    found = []
    for least in (np.minimum, np.maximum):
        parts = array[whole:]
        if whole:
            many = least.reduce(array[:whole].reshape(-1, together * width), axis=0).reshape(together, width)
            parts = np.concatenate([parts, many])
        found.append(least.reduce(parts, axis=0))
    return np.stack(found)


def float32(array: np.ndarray) -> np.ndarray:
    """Returns numbers as float32, the same array where they are; what does not fit becomes infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)
