"""The program that tells how well values know a maze, on mazes of a few cells."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import load, main, save_walks
from small_agents import GOAL_SPEC, B, D

from flowrl import agents
from flowrl.errors import UserError

program = load("experiments/evidence/maze_values.py")
# A corridor bent around a wall, of five cells in a row: (0, 0) (0, 1) (0, 2) (1, 2) (2, 2), and one that stands alone.
MAZE = np.array([[0, 0, 0], [1, 1, 0], [0, 1, 0]])
CELLS = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 0), (2, 2)]


def test_steps_go_around_walls() -> None:
    cells, steps, around = program.distances(MAZE)
    assert cells == CELLS
    assert steps[0].tolist() == [0, 1, 2, 3, np.inf, 4]
    assert around == [[1], [2, 0], [3, 1], [5, 2], [], [3]]


def test_true_values_arrive_from_everywhere() -> None:
    _, steps, around = program.distances(MAZE)
    assert program.measure(-steps, steps, around) == {"nearer": 1.0, "arrives": 1.0}


def test_values_that_leak_through_a_wall_stop_on_the_way() -> None:
    # To (2, 2) the first cell seems as near as the last but one: from it and the next one goes to and fro.
    _, steps, around = program.distances(MAZE)
    found = -steps
    found[5, 0] = -1.5
    told = program.measure(found, steps, around)
    assert told["nearer"] == pytest.approx(19 / 20)  # at (0, 1) alone; from 5 cells to 4 goals each
    assert told["arrives"] == pytest.approx(18 / 20)  # nor from (0, 0)


def test_states_of_a_cell_count_by_their_mean() -> None:
    s, goals = jnp.array([[[1.0], [2.0]], [[3.0], [6.0]]]), jnp.array([[0.0], [1.0]])
    found: np.ndarray = program.maps(lambda s, g: jnp.stack([10 - s[:, 0] - g[:, 0], 10 + s[:, 0]]), s, goals)
    np.testing.assert_allclose(found, np.array([[10, 10], [9.5, 9.5]]))  # ((10 − s − g) + (10 + s)) / 2
    found = program.maps(lambda s, g: (10 - s[:, 0] * g[:, 0])[None], s, goals)
    np.testing.assert_allclose(found, np.array([[10, 10], [8, 6]]))


def test_subgoals_point_to_the_cell_that_is_most_like_them() -> None:
    # Cells at angles 0, 1 and 2, two states in each; the subgoal is one cell beyond the state, toward no goal at all.
    s = jnp.array([[[0.0], [1.0], [2.0]], [[0.1], [1.1], [2.1]]])

    def rep(s: jax.Array, g: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.cos(g), jnp.sin(g)], axis=-1)

    found: np.ndarray = program.pointed(lambda s, g: rep(s, s + 1.0), rep, s, s[0])
    assert found.tolist() == [[[1] * 3, [2] * 3, [2] * 3]] * 2
    steps = np.array([[0, 1, 2], [1, 0, 1], [2, 1, 0]])
    # From 0 to 1 and to 2, and from 1 to 2 it is nearer; from 1 to 0 and from 2 it is not.
    assert program.lead(found, steps) == pytest.approx(3 / 6)


@pytest.mark.slow
def test_a_run_without_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--run_dir"):
        program.main(["maze_values.py"])
    data, folder = save_walks(tmp_path / "tiny.npz"), tmp_path / "run"
    tiny = ("--agent.hidden_dims=4", "--agent.batch_size=4", "--steps=1", "--eval.episodes=0", "--preset=none")
    assert main("--agent=gcbc", "--env=pointmaze-medium-navigate", f"--data={data}", *tiny, f"--run_dir={folder}") == 0
    with pytest.raises(UserError, match="gcbc has no values"):
        program.main(["maze_values.py", f"--run_dir={folder}"])


@pytest.mark.parametrize("name", sorted(program.VALUES))
def test_agents_have_the_values_that_are_asked_for(name: str) -> None:
    (module, v), config = program.VALUES[name], agents.default(name)
    nets, agent = module.networks(config, GOAL_SPEC), agents.build(name, config, GOAL_SPEC)
    params = jax.eval_shape(agent.init, jax.random.key(0), config).params
    s = jax.ShapeDtypeStruct((B, D), jnp.float32)
    found = jax.eval_shape(lambda params, s, g: v(nets, params, s, g), params, s, s)
    assert found.shape in ((1, B), (2, B))
    if name in program.SUBGOALS:
        reps = [jax.eval_shape(lambda params, s, f=f: f(nets, params, s, s), params, s)  # compared by their products
                for f in (program.SUBGOALS[name], program.represented)]  # fmt: skip
        assert [rep.shape for rep in reps] == [(B, config.rep_dim)] * 2


TINY = (
    "--agent.hidden_dims=4", "--agent.batch_size=4", "--agent.rep_dim=3", "--checkpoint.interval=1", "--num_seeds=2",
    "--env=pointmaze-medium-navigate", "--preset=none", "--eval.episodes=0",
)  # fmt: skip


def measured(tmp_path: Path, *told: str) -> list[dict[str, Any]]:
    """What is measured of a tiny run's checkpoints, two seeds each."""
    data, folder, out = save_walks(tmp_path / "tiny.npz"), tmp_path / "run", tmp_path / "out.json"
    assert main(*TINY, *told, f"--data={data}", f"--run_dir={folder}") == 0
    assert program.main(["maze_values.py", f"--run_dir={folder}", "--states=1", f"--out={out}"]) == 0
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return list(json.loads(out.read_text())["results"])


@pytest.mark.slow
def test_the_checkpoints_of_a_run_are_measured(tmp_path: Path) -> None:
    rows = measured(tmp_path, "--agent=hiql", "--steps=2")
    assert [(row["step"], row["seed"]) for row in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert all(0 <= row[name] <= 1 for row in rows for name in ("nearer", "arrives", "subgoals"))
    assert len({row["lowest"] for row in rows}) == 4  # each of its own parameters


@pytest.mark.slow
def test_values_that_stay_are_measured_as_they_are_while_the_policy_reads_goals_otherwise(tmp_path: Path) -> None:
    rows = measured(tmp_path, "--agent=gc_sscp", "--agent.learning_rate=0.1", "--agent.value.steps=1", "--steps=3")
    for seed in (0, 1):
        assert len({row["lowest"] for row in rows if row["seed"] == seed}) == 1


@pytest.mark.slow
def test_normalised_runs_see_what_they_were_trained_on(tmp_path: Path) -> None:
    data, folder = save_walks(tmp_path / "tiny.npz"), tmp_path / "run"
    tiny = ("--agent.hidden_dims=4", "--agent.batch_size=4", "--steps=1", "--eval.episodes=0", "--preset=none")
    where = ("--env=pointmaze-medium-navigate", f"--data={data}", f"--run_dir={folder}")
    assert main("--agent=gcivl", *tiny, *where, "--normalize.observations=True") == 0
    plan, stored = program.readable(program.Settings(run_dir=str(folder)))
    *_, (_, params, told_by) = program.checkpoints(plan, program.stored_spec(stored))
    observations = np.load(data)["observations"]
    s = observations[:5]
    seen = (s - observations.mean(axis=0)) / (observations.std(axis=0) + 1e-3)
    module, v = program.VALUES["gcivl"]
    own = jax.tree.map(lambda x: x[0], params["value"])
    expected = v(module.networks(plan.config, program.stored_spec(stored)), own, seen, seen[::-1])
    np.testing.assert_allclose(told_by["value"](own, s, s[::-1]), expected, rtol=1e-4, atol=1e-5)


FAULTS = {
    "experiments/evidence/maze_values.py": [
        ("steps[start, cell] + 1", "steps[start, cell] + 2", "test_steps_go_around_walls"),
        (
            "steps[best[start], goal] < steps",
            "steps[best[start], goal] > steps",
            "test_values_that_leak_through_a_wall_stop_on_the_way",
        ),
        (
            "cell = best[cell] if cell != goal else cell",
            "cell = goal",
            "test_values_that_leak_through_a_wall_stop_on_the_way",
        ),
        ("x[index], params)", "x[0], params)", "test_the_checkpoints_of_a_run_are_measured"),
        (
            "value_params(states) if module is gc_sscp else states.params",
            "states.params",
            "test_values_that_stay_are_measured_as_they_are_while_the_policy_reads_goals_otherwise",
        ),
        ("inputs = shown if", "inputs = shown if True or", "test_normalised_runs_see_what_they_were_trained_on"),
        ("(steps > 0)", "(steps >= 0)", "test_subgoals_point_to_the_cell_that_is_most_like_them"),
        (
            ", axis=-1) % s.shape[1]",
            ", axis=-1) // s.shape[1]",
            "test_subgoals_point_to_the_cell_that_is_most_like_them",
        ),
        (".mean(0)", ".max(0)", "test_states_of_a_cell_count_by_their_mean"),
    ],
}
