"""The program that tells how well values know a maze, on mazes of a few cells."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from commands import load

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
    found: np.ndarray = program.maps(lambda p, s, g: jnp.stack([p - s[:, 0] - g[:, 0], p + s[:, 0]]), 10.0, s, goals)
    np.testing.assert_allclose(found, np.array([[10, 10], [9.5, 9.5]]))  # ((10 − s − g) + (10 + s)) / 2
    found = program.maps(lambda p, s, g: (p - s[:, 0] * g[:, 0])[None], 10.0, s, goals)
    np.testing.assert_allclose(found, np.array([[10, 10], [8, 6]]))


def test_which_run_must_be_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--run_dir"):
        program.main(["maze_values.py"])


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
        (".mean(0)", ".max(0)", "test_states_of_a_cell_count_by_their_mean"),
    ],
}
