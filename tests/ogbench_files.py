"""Small datasets in OGBench's format, for tests of what reads them."""

import io

import numpy as np


def rows(n=40, **changed):
    """Returns the fields of four episodes of ten rows; a field that is changed to None is left out."""
    generator = np.random.default_rng(0)
    terminals = np.zeros(n, bool)
    terminals[9::10] = True
    data = {
        "observations": generator.normal(size=(n, 2)).astype(np.float32),
        "actions": generator.uniform(-1, 1, (n, 2)).astype(np.float32),
        "terminals": terminals,
        "qpos": generator.normal(size=(n, 2)).astype(np.float32),
    }
    return {field: array for field, array in (data | changed).items() if array is not None}


def packed(**changed):
    """Returns the bytes of an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **rows(**changed))
    return buffer.getvalue()


def with_value(field, row, value):
    """Returns one field of which one row has another value, as float64."""
    array = rows()[field].astype(np.float64)
    array[row] = value
    return {field: array}
