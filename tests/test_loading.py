"""A trained policy in three lines: from its run folder alone, in NumPy and as a pure function."""

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import main, save_walks

import flowrl
from flowrl.errors import UserError

TINY = ("--preset=none", "--agent.hidden_dims=4", "--agent.batch_size=8", "--steps=4", "--eval.episodes=0")
MEAN, DEVIATION = np.float32([1.0, -2.0, 3.0]), np.float32([2.0, 1.0, 4.0])


def trained(folder: Path, *arguments: str) -> Path:
    assert main(*TINY, *arguments, f"--run_dir={folder}") == 0
    return folder


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of behaviour cloning on normalised transitions of Pendulum, whose torques are in [−2, 2]."""
    place, rng = tmp_path_factory.mktemp("pendulum"), np.random.default_rng(0)
    fields = {"observations": MEAN + DEVIATION * rng.normal(size=(400, 3)), "actions": rng.uniform(-2, 2, (400, 1))}
    data = place / "own.npz"
    np.savez(data, **fields, rewards=np.ones(400), terminals=np.zeros(400), timeouts=np.arange(400) % 20 == 19)
    flags = ("--agent=bc", "--env=Pendulum-v1", f"--data={data}", "--normalize.observations", "--num_seeds=2")
    folder = trained(place / "run", *flags, "--agent.learning_rate=0.01")
    data.unlink()  # it is not needed
    return folder


@pytest.fixture(scope="module")
def maze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("maze")
    data = save_walks(place / "walks.npz")
    return trained(place / "run", "--agent=gc_sscp", "--env=pointmaze-medium-navigate", f"--data={data}")


@pytest.mark.slow
def test_actions_are_in_the_environments_units(pendulum: Path) -> None:
    policy = flowrl.load(pendulum)
    mean = np.asarray(policy.agent.act(policy.policy, {"observations": jnp.zeros((1, 3))}, jax.random.key(0)))[0]
    # The mean of the data is 0 once it is normalised; behaviour cloning is deterministic.
    action = policy.act(policy.policy.normalizer.mean)  # type: ignore[union-attr]
    assert action.shape == (1,)
    assert abs(mean[0]) > 1e-4
    np.testing.assert_allclose(action, 2 * mean, rtol=1e-4)
    far = policy.act(np.float32([1e4, 1e4, 1e4]))
    assert abs(far[0]) <= 2


@pytest.mark.slow
def test_one_or_many_and_which_run(pendulum: Path) -> None:
    observations = MEAN + DEVIATION * np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    first, second = flowrl.load(pendulum), flowrl.load(str(pendulum), run=1)
    actions = first.act(observations)
    assert actions.shape == (5, 1)
    np.testing.assert_allclose(first.act(observations[2]), actions[2], rtol=1e-4, atol=1e-6)
    assert (np.abs(actions - second.act(observations)) > 1e-5).any()


@pytest.mark.slow
def test_as_a_pure_function(pendulum: Path) -> None:
    loaded = flowrl.load(pendulum)
    act, policy = loaded.pure()
    s = MEAN + DEVIATION * jnp.ones((4, 3))
    unit = jax.jit(act)(policy, {"observations": s}, jax.random.key(0))
    np.testing.assert_allclose(2 * unit, loaded.act(np.asarray(s)), rtol=1e-5)
    slope = jax.grad(lambda s: act(policy, {"observations": s}, jax.random.key(0)).sum())(s)
    assert (np.abs(slope) > 0).any()


@pytest.mark.slow
def test_goals_noise_and_ways_of_acting(maze: Path) -> None:
    policy, hops = flowrl.load(maze), flowrl.load(maze, hops=2)
    s, g = np.float32([1, 2]), np.float32([3, 4])
    same = [policy.act(s, g, seed=3) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert (policy.act(s, g) != policy.act(s, g)).any()  # noise of its own in each call
    np.testing.assert_array_equal(flowrl.load(maze, seed=5).act(s, g), flowrl.load(maze, seed=5).act(s, g))
    assert (hops.act(s, g, seed=3) != same[0]).any()
    assert (policy.act(s, g + 5, seed=3) != same[0]).any()


@pytest.mark.slow
def test_no_simulator_is_imported(pendulum: Path) -> None:
    code = (
        "import sys, flowrl, flowrl.agents.fql\n"
        f"print(flowrl.load({str(pendulum)!r}).act([0.0, 0.0, 0.0]).shape)\n"
        "print([name for name in ('gymnasium', 'mujoco', 'ogbench') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "(1,)\n[]\n"


@pytest.mark.slow
def test_what_cannot_be(pendulum: Path, maze: Path, tmp_path: Path) -> None:
    policy, reacher = flowrl.load(pendulum), flowrl.load(maze)
    with pytest.raises(UserError, match=r"an observation is 3 numbers here, .*, not \(2,\)"):
        policy.act([0.0, 0.0])
    with pytest.raises(UserError, match="takes no goal"):
        policy.act([0.0] * 3, [1.0])
    with pytest.raises(UserError, match="needs a goal"):
        reacher.act([0.0] * 2)
    with pytest.raises(UserError, match="there are 3 goals, not one for each"):
        reacher.act(np.zeros((2, 2)), np.zeros((3, 2)))
    with pytest.raises(UserError, match="has 2 runs, from 0 to 1; there is no run 2"):
        flowrl.load(pendulum, run=2)
    with pytest.raises(UserError, match="alpha is no setting that acting alone reads; its settings are hops"):
        flowrl.load(maze, alpha=1.0)
    with pytest.raises(UserError, match="no checkpoint at step 3; give"):
        flowrl.load(maze, step=3)
    with pytest.raises(UserError, match="holds no run"):
        flowrl.load(tmp_path)
    shutil.copytree(maze, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        flowrl.load(tmp_path / "run")
