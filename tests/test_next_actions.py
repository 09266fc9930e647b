"""The actions of the steps that follow, of data and of what is experienced."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowrl.data import replay
from flowrl.data.dataset import from_arrays
from flowrl.data.samplers import Horizon, Transitions
from flowrl.networks import Spec

# -------------------------------------------------------------------------------------------------- next actions


def test_next_actions_are_those_of_the_steps_that_follow() -> None:
    """Episodes of rows 0 … 4 and 5 … 8, the last of each without a transition; actions are their rows' numbers."""
    numbers = np.arange(9, dtype=np.float32)
    dataset = from_arrays({
        "observations": numbers[:, None], "actions": numbers[:, None], "rewards": numbers, "masks": np.ones(9),
        "terminals": np.isin(numbers, [4, 8]),
    })  # fmt: skip

    def found(horizon: Horizon, *rows: int) -> Any:
        return Transitions(0.9, horizon).at(dataset, jnp.array(rows))["next_actions"]

    np.testing.assert_array_equal(found(Horizon(), 0, 3, 5), [[1], [4], [6]])
    np.testing.assert_array_equal(found(Horizon(steps=2), 0, 1, 5), [[2], [3], [7]])
    np.testing.assert_array_equal(found(Horizon(steps=2, chunk=True), 0, 5), [[2, 3], [7, 7]])


@pytest.mark.parametrize("horizon", [Horizon(), Horizon(steps=2), Horizon(steps=2, chunk=True)], ids=str)
def test_next_actions_of_what_is_experienced(horizon: Horizon) -> None:
    """Two environments in turns: the next step of either lies two rows ahead."""
    kind = Transitions(0.9, horizon)
    buffer = replay.empty(Spec.of_sizes(1, 1), 12, kind, num_envs=2)
    for step in range(6):
        numbers = jnp.array([2.0 * step, 2.0 * step + 1])
        fields = {"observations": numbers[:, None], "actions": numbers[:, None], "rewards": numbers}
        fields |= {"masks": jnp.ones(2), "next_observations": numbers[:, None] + 2, "ended": jnp.zeros(2, bool)}
        buffer = replay.add(buffer, fields)
    batch = replay.sample(jax.random.key(0), buffer, 200, kind)
    first, after = np.asarray(batch["observations"][:, 0]), np.asarray(batch["next_actions"])
    ahead = first + 2 * horizon.steps
    np.testing.assert_array_equal(after[ahead < 12, 0], ahead[ahead < 12])
    assert after.shape[1] == (2 if horizon.chunk else 1)
    if horizon.chunk:
        np.testing.assert_array_equal(after[ahead < 10, 1], ahead[ahead < 10] + 2)


FAULTS = {
    "flowrl/data/dataset.py": [
        (
            'for name in ("observations", "actions")}',
            'for name in ("observations",)} | {"next_actions": batch["actions"]}',
            "test_next_actions_are_those_of_the_steps_that_follow",
        ),
    ],
    "flowrl/data/samplers.py": [
        (
            'fields["actions"][later.rows[:, 0]]',
            'fields["actions"][stretch.rows[:, -1]]',
            "test_next_actions_are_those_of_the_steps_that_follow",
        ),
        (
            '"next_actions": fields["actions"][later.rows]',
            '"next_actions": fields["actions"][stretch.rows]',
            "test_next_actions_are_those_of_the_steps_that_follow",
        ),
    ],
    "flowrl/data/replay.py": [
        ("(drawn + replay.num_envs) %", "(drawn + 1) %", "test_next_actions_of_what_is_experienced"),
    ],
}
