"""A run at work: what its checkpoints hold, and what is got back from them."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from flowrl import agents
from flowrl.config import stacked
from flowrl.experiment import run, settings, stored
from flowrl.experiment.loading import load_states
from flowrl.networks import Spec
from flowrl.run_folder import logs
from flowrl.run_folder.runs import Run
from flowrl.training.checkpoint import Checkpoints

SMALL = {"steps": 4, "eval.interval": 4, "eval.episodes": 0, "log.interval": 2, "checkpoint.interval": 2}


def plan_of(folder: Path, **given: Any) -> settings.Plan:
    """Two runs of behaviour cloning on Pendulum's transitions, with other step sizes."""
    rng, data = np.random.default_rng(0), folder.parent / "own.npz"
    fields = {"observations": rng.normal(3, 2, (40, 3)), "actions": rng.uniform(-2, 2, (40, 1))}
    np.savez(data, **fields, rewards=np.ones(40), terminals=np.zeros(40), timeouts=np.arange(40) % 20 == 19)
    named = {"agent": "bc", "env": "Pendulum-v1", "preset": "none", "data": str(data), "run_dir": str(folder)}
    runs = (Run(0, {"learning_rate": 1e-3}), Run(0, {"learning_rate": 1e-2}))
    return settings.plan(named | SMALL | given, {"hidden_dims": (8,), "batch_size": 8}, runs)


def states_of(plan: settings.Plan, agent: Any) -> Any:
    configs = stacked(plan.config, [run.values for run in plan.runs])
    return load_states(plan.folder, "bc", agent, configs, len(plan.runs), goals_are_states=False)


@pytest.mark.slow
def test_checkpoints_hold_no_configuration_but_what_observations_are_normalised_by(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "run", **{"normalize.observations": True})
    assert run.execute(plan) == 0
    checkpoints = Checkpoints(plan.folder / "checkpoints", read_only=True)
    arrays = checkpoints.raw()
    checkpoints.close()
    assert set(arrays) == {"states", "totals", "normalizer"}
    assert not jax.tree.leaves(arrays["states"].get("config"))
    data = np.load(tmp_path / "own.npz")["observations"].astype(np.float32)
    agent = agents.build("bc", plan.config, Spec.of_sizes(3, 1))
    step, states, normalizer = states_of(plan, agent)
    assert step == 4
    assert normalizer is not None
    np.testing.assert_allclose(normalizer.std, data.std(axis=0) + 1e-3, rtol=0.1)  # of the rows that were kept
    assert not normalizer.goals_are_states
    np.testing.assert_array_equal(states.config.learning_rate, np.float32([1e-3, 1e-2]))
    assert (jax.tree.leaves(states.params)[0][0] != jax.tree.leaves(states.params)[0][1]).any()
    assert agent.policy(jax.tree.map(lambda x: x[0] if x.ndim else x, states)).params.keys() == {"actor"}


@pytest.mark.slow
def test_a_run_goes_on_with_the_configuration_of_its_folder(tmp_path: Path) -> None:
    """Half of the way and the rest are the whole; runs keep their own values."""
    whole, half = plan_of(tmp_path / "whole", steps=8), plan_of(tmp_path / "half")
    assert run.execute(whole) == run.execute(half) == 0
    assert run.execute(*stored.resumed_plan({"run_dir": str(half.folder), "resume": True, "steps": 8}, {})) == 0
    assert logs.read_lines(half.folder / "metrics.jsonl") == logs.read_lines(whole.folder / "metrics.jsonl")
    agent = agents.build("bc", whole.config, Spec.of_sizes(3, 1))
    one, other = (states_of(plan, agent)[1] for plan in (whole, half))
    jax.tree.map(np.testing.assert_array_equal, one, other)
