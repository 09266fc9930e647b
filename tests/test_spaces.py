"""Observations become vectors, actions are played inside their bounds; others are refused."""

import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import own_envs
import pytest
from gymnasium import spaces
from test_episodes import MATRIX, begun, own

from flowrl import tasks
from flowrl.envs.spaces import vector
from flowrl.errors import UserError
from flowrl.tasks.fields import Expected

# ---------------------------------------------------------------------------------------------------- observations


@pytest.mark.parametrize(
    ("space", "observation", "expected"),
    [
        (spaces.Box(0, 1, (), np.float32), 0.5, [0.5]),
        (spaces.Box(-9, 9, (2,), np.int64), np.array([3, 4]), [3, 4]),
        (MATRIX, np.array([[1, 2], [3, 4]], np.float32), [1, 2, 3, 4]),
        (spaces.Discrete(3, start=5), 6, [0, 1, 0]),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
        (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (spaces.Tuple((spaces.Discrete(2), MATRIX)), (1, np.eye(2, dtype=np.float32)), [0, 1, 1, 0, 0, 1]),
        (
            spaces.Dict(z=spaces.Box(0, 1, ()), a=spaces.Dict(b=spaces.Discrete(2), c=MATRIX)),
            {"z": np.float32(0.25), "a": {"b": 0, "c": np.zeros((2, 2), np.float32)}, "more": "text"},
            [1, 0, 0, 0, 0, 0, 0.25],
        ),
        (
            spaces.Dict(
                observation=own_envs.NUMBERS, achieved_goal=own_envs.UNIT, desired_goal=spaces.Box(-1, 1, (1,))
            ),
            {"observation": np.array([1, 2]), "achieved_goal": np.array([3]), "desired_goal": np.array([4])},
            [1, 2, 4],
        ),
    ],
)
def test_observations_become_vectors(space: Any, observation: Any, expected: list[float]) -> None:
    found = vector(space, observation)
    np.testing.assert_array_equal(found, expected)
    made = own(own_envs.Sampling(space))
    assert made.observation_space.shape == found.shape == made.reset(seed=0)[0].shape
    assert made.step([0.0])[0].shape == found.shape


def test_batches_of_observations_keep_their_leading_axes() -> None:
    space = spaces.Dict(b=spaces.Discrete(2), a=MATRIX, c=spaces.Box(0, 1, ()))
    batch = {"a": np.arange(12).reshape(3, 2, 2), "b": np.array([0, 1, 0]), "c": np.array([7, 8, 9])}
    expected = [[0, 1, 2, 3, 1, 0, 7], [4, 5, 6, 7, 0, 1, 8], [8, 9, 10, 11, 1, 0, 9]]
    np.testing.assert_array_equal(vector(space, batch), expected)
    assert vector(MATRIX, np.zeros((0, 2, 2))).shape == (0, 4)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), "pixels are not supported"),
        (spaces.Box(0, 255, (8, 8), np.uint8), "pixels are not supported"),
        (spaces.Dict(view=spaces.Box(0, 1, (8, 8, 3)), at=own_envs.NUMBERS), r"with \['view'\] of Box.*pixels"),
        (spaces.Dict(word=spaces.Text(5), at=own_envs.NUMBERS), r"with \['word'\] of Text.*vector of numbers"),
        (spaces.Tuple((own_envs.NUMBERS, spaces.Sequence(spaces.Discrete(2)))), r"with \[1\] of Sequence"),
        (spaces.Discrete(10**9), "1,000,000,000 numbers"),
        (spaces.Dict(), "0 numbers"),
    ],
)
def test_other_observations_are_refused_by_name(space: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"Own-v0 has observations {re.escape(str(space)[:5])}.*{message}") as caught:
        own(own_envs.Sampling(space))
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------- actions


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Box(0, 10, (1,), np.int64), "a Box of fractions"),
        (spaces.Discrete(3), "a Box of fractions"),
        (spaces.Dict(a=own_envs.UNIT), "a Box of fractions"),
        (spaces.Box(np.float32([-2, 0.5]), np.float32([2, 0.5])), "number 1 has the bounds 0.5 and 0.5"),
        (spaces.Box(np.float32([[-2], [-np.inf]]), np.float32([[2], [1]])), "number 1 has no finite bounds"),
        (spaces.Box(-3e38, 3e38, (2,), np.float32), "number 0 has no finite bounds"),
        (spaces.Box(0, 1e-44, (1,), np.float32), "number 0 has the bounds 0.0 and"),
        (spaces.Box(0, 1, (0,), np.float32), "at least one number"),
    ],
)
def test_actions_that_cannot_be_played_are_refused_by_name(space: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"Own-v0 has actions .*{message}"):
        own(own_envs.Own(action_space=space))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (2,), np.float32),
        spaces.Box(-1, 1, (), np.float32),
        spaces.Box(-2, 2, (3,), np.float64),
        spaces.Box(-0.1, 0.3, (2, 3), np.float32),
        spaces.Box(-0.1, 0.3, (2,), np.float64),
        spaces.Box(-0.7, 0.1, (2,), np.float64),
        spaces.Box(np.float32([0.1, 1e-3, -7.3]), np.float32([0.7, 1e6, 1e-6])),
        spaces.Box(0.1, 0.7, (1,), np.float16),
    ],
)
def test_what_is_played_lies_inside_the_bounds_to_the_last_bit(space: Any) -> None:
    env = own_envs.Own(action_space=space)
    made, size = begun(env), int(np.prod(space.shape))
    assert made.action_space == spaces.Box(-1, 1, (size,), np.float32)
    for value in (-1.0, 1.0, 0.0, np.nextafter(np.float32(1), np.float32(2)), -1.5, 0.3):
        made.reset(seed=0)
        made.step(np.full(size, value, np.float32))
        played = env.played[-1]
        assert space.contains(played)
        if abs(value) >= 1:
            np.testing.assert_array_equal(played, space.high if value > 0 else space.low)
    made.reset(seed=0)
    made.step(np.zeros(size, np.float32))
    middle = (space.low.astype(float) + space.high) / 2
    np.testing.assert_allclose(env.played[-1], middle, rtol=1e-3 if space.dtype == np.float16 else 1e-6)


def test_a_matrix_of_actions_is_filled_row_by_row() -> None:
    env = own_envs.Own(action_space=spaces.Box(0, np.float32([[2, 4], [6, 8]]), dtype=np.float32))
    begun(env).step(np.array([-1, 0, 0.5, 1]))
    np.testing.assert_array_equal(env.played[-1], [[0, 2], [4.5, 8]])


def test_bounds_are_those_that_users_see(tmp_path: Path) -> None:
    """Below its wrapper the environment has twice the bounds; data in a user's file are in those seen from outside."""
    env = own_envs.Own(action_space=spaces.Box(-2, 2, (1,), np.float32))
    seen = gymnasium.wrappers.RescaleAction(env, np.float32(-0.5), np.float32(0.5))
    gymnasium.register("own/Halved-v0", entry_point=lambda: seen, max_episode_steps=4)
    name = tasks.parse("own/Halved-v0")
    sizes = name.facts()
    assert (sizes.action_low, sizes.action_high) == ((-0.5,), (0.5,))
    rows = np.linspace(-0.5, 0.5, 6)[:, None]
    fields = {"observations": np.random.default_rng(0).normal(size=(6, 2)), "actions": rows, "rewards": np.zeros(6)}
    fields |= {"next_observations": fields["observations"], "terminals": np.zeros(6)}
    np.savez(tmp_path / "own.npz", **fields)
    source = name.locate(str(tmp_path / "own.npz"))
    read = name.read(source, Expected(action_low=sizes.action_low, action_high=sizes.action_high))
    policy = read["actions"][~read["terminals"]]
    made = name.make()
    for action, given in zip(policy, rows, strict=True):
        made.reset(seed=0)
        made.step(action)
        np.testing.assert_allclose(env.played[-1], 4 * given, atol=1e-4)  # as an action of the file is played


FAULTS = {
    "flowrl/envs/episodes.py": [
        ("Actions(env.action_space,", "Actions(env.unwrapped.action_space,", "test_bounds_are_those_that_users_see"),
    ],
    "flowrl/envs/spaces.py": [
        (
            "np.minimum(np.maximum(action, self.low), self.high)",
            "action",
            "test_what_is_played_lies_inside_the_bounds_to_the_last_bit",
        ),
        (
            "low * (1.0 - share) + high * share",
            "low + (high - low) * share",
            "test_what_is_played_lies_inside_the_bounds_to_the_last_bit",
        ),
        (".astype(self._dtype)", "", "test_what_is_played_lies_inside_the_bounds_to_the_last_bit"),
        ("played.reshape(self._shape)", "played", "test_what_is_played_lies_inside_the_bounds_to_the_last_bit"),
        (
            "played.reshape(self._shape)",
            "played.reshape(self._shape, order='F')",
            "test_a_matrix_of_actions_is_filled_row_by_row",
        ),
        (
            " or not np.issubdtype(space.dtype, np.floating)",
            "",
            "test_actions_that_cannot_be_played_are_refused_by_name",
        ),
        ("    if flat.any():", "    if False:", "test_actions_that_cannot_be_played_are_refused_by_name"),
        ("if not np.isfinite(room).all():", "if False:", "test_actions_that_cannot_be_played_are_refused_by_name"),
        ("2 / room", "room", "test_actions_that_cannot_be_played_are_refused_by_name"),
        ("sorted(space.spaces, key=str)", "[*space.spaces][::-1]", "test_observations_become_vectors"),
        ("array - space.start, int(space.n)", "array, int(space.n)", "test_observations_become_vectors"),
        (
            "if len(space.shape) > 2 or",
            "if len(space.shape) > 3 or",
            "test_actions_that_cannot_be_played_are_refused_by_name or test_other_observations_are_refused_by_name",
        ),
        (
            "0 < size <= LARGEST",
            "0 < size",
            "test_actions_that_cannot_be_played_are_refused_by_name or test_other_observations_are_refused_by_name",
        ),
        ("array.shape[: array.ndim - len(shape)]", "()", "test_batches_of_observations_keep_their_leading_axes"),
    ],
}
