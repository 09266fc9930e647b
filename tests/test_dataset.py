"""Memory of a dataset as large as OGBench's antmaze sets: 1M transitions of 29 numbers, actions of 8."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

MEASURE = """
import re, sys
from pathlib import Path
import jax, jax.numpy as jnp

def peak():  # getrusage would count what the parent had before exec
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

jnp.ones(3).block_until_ready()
before = peak()
from flowrl.data.dataset import from_arrays
from flowrl import tasks
from flowrl.tasks.fields import Expected
env = tasks.parse("antmaze-large-navigate")
source = env.locate(sys.argv[1])
dataset = jax.block_until_ready(from_arrays(env.read(source, Expected(29, 8))))
assert dataset.transitions.shape == (1_000_000,)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_an_antmaze_sized_dataset_takes_less_than_a_gigabyte(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), 1000 * 1001
    terminals = np.zeros((1000, 1001), bool)
    terminals[:, -1] = True
    np.savez(
        tmp_path / "large.npz",
        observations=rng.standard_normal((rows, 29), np.float32),
        actions=rng.uniform(-1, 1, (rows, 8)).astype(np.float32),
        terminals=terminals.ravel(),
    )
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "large.npz")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert 148e6 < float(output) < 1e9
