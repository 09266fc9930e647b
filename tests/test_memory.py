"""How many runs fit: sizes by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flowrl.experiment import runs_at_once, settings


def plan_of(folder: Path, runs: int, mode: str, **given: Any) -> settings.Plan:
    rng, data = np.random.default_rng(0), folder / "own.npz"
    fields = {"observations": rng.normal(size=(40, 3)), "actions": rng.uniform(-2, 2, (40, 1)), "rewards": np.ones(40)}
    np.savez(data, **fields, terminals=np.zeros(40), timeouts=np.arange(40) % 20 == 19)
    named = {"agent": "bc", "env": "Pendulum-v1", "preset": "none", "data": str(data), "run_dir": str(folder / "run")}
    named |= {"num_seeds": runs, "map": mode, "eval.episodes": 0}
    return settings.plan(named | given, {"hidden_dims": (64, 64), "batch_size": 16})


PARAMETERS = (3 + 1) * 64 + (64 + 1) * 64 + (64 + 1)
OUTPUTS = 64 + 64 + 1


@pytest.mark.parametrize("mode", ["serial", "vmap"])
def test_memory_is_that_of_states_batches_and_layers(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, asked = plan_of(tmp_path, 8, mode), list[Any]()
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 1000, "bytes_in_use": 400})
    monkeypatch.setattr("flowrl.machine.memory.jax.local_devices", lambda: [device])
    monkeypatch.setattr(runs_at_once, "fitting", lambda *sizes: asked.append(sizes) or 5)
    assert runs_at_once.runs_that_fit(plan) == 5
    ((free, fixed, per_run, runs),) = asked
    assert (free, runs) == (600, 8)
    kept = 4 * 4 * PARAMETERS  # parameters, two moments, the policy
    work = 4 * 3 * PARAMETERS + runs_at_once.PASSES * 4 * 16 * OUTPUTS  # a new state, layers of a batch
    batch = 4 * 16 * (3 + 3 + 1 + 1 + 1 + 1 + 1)
    scalars = 200  # counters, and the numbers of the configuration
    if mode == "serial":  # one run at a time works
        assert kept < per_run < kept + scalars
        assert work + batch < fixed < work + batch + scalars
    else:
        assert kept + work + batch < per_run < kept + work + batch + 2 * scalars
        assert fixed == 0


def test_a_replay_buffer_belongs_to_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_at_once, "fitting", lambda free, fixed, per_run, runs: per_run)
    sizes = []
    for steps in (0, 1000):
        online = {"online.steps": steps, "steps": 0, "data": "none"} if steps else {}
        plan = plan_of(tmp_path, 2, "serial", **({"agent": "td3", "steps": 1} | online))
        sizes.append(runs_at_once.runs_that_fit(plan))
    assert sizes[1] - sizes[0] == 4 * 1000 * (3 + 1 + 1 + 1 + 3) + 8 + 4  # and three counters


def test_one_run_needs_no_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_at_once, "prepare", None)
    assert runs_at_once.runs_that_fit(plan_of(tmp_path, 1, "serial")) == 1
    monkeypatch.setattr(runs_at_once, "free_bytes", lambda: None)
    assert runs_at_once.runs_that_fit(plan_of(tmp_path, 3, "serial")) == 3
