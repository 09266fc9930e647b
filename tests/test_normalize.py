"""Normalisation: statistics by hand, and what they make of data, of a buffer's rows and of what a policy acts on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowrl.errors import UserError
from flowrl.normalize import Normalization, Normalizer, episode_returns, fit

ARRAYS = {
    "observations": np.array([[0.0, 10.0], [2.0, 10.0], [4.0, 10.0], [6.0, 10.0]], np.float32),
    "rewards": np.array([1.0, 100.0, 3.0, 100.0], np.float32),
    "terminals": np.array([False, True, False, True]),
}


def test_nothing_asked_is_nothing_done() -> None:
    assert fit(ARRAYS, Normalization()) is None


def test_statistics_by_hand() -> None:
    normalizer = fit(ARRAYS, Normalization(observations=True, rewards="returns", reward_scale=0.5, reward_shift=-1.0))
    assert normalizer is not None
    np.testing.assert_allclose(normalizer.mean, [3.0, 10.0])
    np.testing.assert_allclose(normalizer.std, [np.sqrt(5.0) + 1e-3, 1e-3], rtol=1e-6)
    np.testing.assert_allclose(normalizer.reward_scale, 0.5 * 1000 / (3 - 1))  # not of last rows
    np.testing.assert_allclose(normalizer.reward_shift, -1.0)


def test_a_position_may_count_for_more_than_the_body() -> None:
    arrays = ARRAYS | {"observations": np.array([[0, 4, 1], [2, 8, 5]], np.float32)}
    normalizer = fit(arrays, Normalization(observations=True, position_scale=4.0))
    assert normalizer is not None
    np.testing.assert_allclose(normalizer.std, [1.001 / 4, 2.001 / 4, 2.001], rtol=1e-6)
    found = normalizer.inputs({"observations": arrays["observations"], "goals": arrays["observations"]})
    for own in found.values():
        np.testing.assert_allclose(own, [[-4, -4, -1], [4, 4, 1]], rtol=2e-3)


def test_equal_returns_have_no_spread_to_divide_by() -> None:
    with pytest.raises(UserError, match="every episode of the data has the return -1"):
        fit(ARRAYS | {"rewards": np.array([-1.0, 5.0, -1.0, 7.0], np.float32)}, Normalization(rewards="returns"))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", np.array([1, 3, 8])),
        ("returns", np.array([1, 3, 8]) * 1000 / 4),  # the episodes' are 4 and 8
        ("deviation", (np.array([1, 3, 8]) - 4) / np.sqrt(26 / 3)),
        ("range", np.array([-1, 2 * 2 / 7 - 1, 1])),
    ],
)
def test_rewards_are_brought_to_a_scale_of_their_own(kind: str, expected: np.ndarray) -> None:
    """And scaled and shifted after that; the last rows of episodes have no transition, and tell nothing."""
    rewards, terminals = np.array([1, 3, -99, 8, 99], np.float32), np.array([0, 0, 1, 0, 1], bool)
    arrays = {"observations": np.zeros((5, 1), np.float32), "rewards": rewards, "terminals": terminals}
    normalizer = fit(arrays, Normalization(rewards=kind, reward_scale=2.0, reward_shift=-0.5))
    assert normalizer is not None
    np.testing.assert_allclose(normalizer.arrays(arrays)["rewards"][~terminals], 2 * expected - 0.5, rtol=1e-5)
    equal = arrays | {"rewards": np.where(terminals, rewards, 3)}
    if kind in ("deviation", "range"):
        with pytest.raises(UserError, match=f"has the reward 3: --normalize.rewards={kind} has no spread"):
            fit(equal, Normalization(rewards=kind))


def test_rewards_alone_leave_observations_alone() -> None:
    normalizer = fit(ARRAYS, Normalization(reward_scale=4.0, reward_shift=-2.0))
    assert normalizer is not None
    np.testing.assert_array_equal(normalizer.mean, [0.0, 0.0])
    np.testing.assert_array_equal(normalizer.std, [1.0, 1.0])


def test_sparse_rewards_tell_success_alone() -> None:
    arrays = ARRAYS | {"rewards": np.array([-3.0, 0.0, -0.5, 0.0], np.float32)}
    normalizer = fit(arrays, Normalization(sparse=True, reward_scale=2.0))
    assert normalizer is not None
    found = normalizer.arrays(arrays)["rewards"]
    np.testing.assert_array_equal(found, [-2, 0, -2, 0])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(normalizer.transitions({"rewards": jnp.array([0.0, 7.0])})["rewards"], [0, -2])
    spread = fit(
        arrays | {"rewards": np.array([-3, 9, 0, 9], np.float32)}, Normalization(sparse=True, rewards="returns")
    )
    assert spread is not None
    np.testing.assert_allclose(spread.reward_scale, 1000.0)  # returns −1 and 0
    with pytest.raises(UserError, match=r"--normalize\.sparse changes rewards, and this agent reads returns"):
        fit(arrays | {"returns": np.zeros(4, np.float32)}, Normalization(sparse=True))


def test_returns_of_episodes() -> None:
    rewards, terminals = np.array([1.0, 2.0, 9.0, 4.0, 9.0]), np.array([0, 0, 1, 0, 1], bool)
    np.testing.assert_allclose(episode_returns(rewards, terminals), [3.0, 4.0])


NORMALIZER = Normalizer(jnp.array([1.0, 2.0]), jnp.array([2.0, 4.0]), jnp.float32(4), jnp.float32(-2))


def test_a_dataset_is_normalised_once() -> None:
    arrays = {
        "observations": np.array([[1, 2], [3, 6]], np.float32),
        "rewards": np.array([1, 2], np.float32),
        "returns": np.array([3, 2], np.float32),
        "horizons": np.array([1.5, 1], np.float32),
        "actions": np.ones((2, 1), np.float32),
        "terminals": np.array([False, True]),
    }
    found = NORMALIZER.arrays(arrays)
    np.testing.assert_array_equal(found["observations"], [[0, 0], [1, 1]])
    np.testing.assert_array_equal(found["rewards"], [2, 6])
    np.testing.assert_array_equal(found["returns"], [4 * 3 - 2 * 1.5, 4 * 2 - 2])
    assert all(type(array) is np.ndarray for array in found.values())
    assert found["observations"].dtype == found["rewards"].dtype == found["returns"].dtype == np.float32
    assert found["actions"] is arrays["actions"]
    np.testing.assert_array_equal(arrays["observations"], [[1, 2], [3, 6]])  # as it was


def test_rows_for_a_buffer_are_normalised_as_the_dataset_is() -> None:
    rows = {
        "observations": jnp.array([[[1.0, 2.0]], [[3.0, 6.0]]]),
        "next_observations": jnp.array([[[3.0, 6.0]], [[5.0, 10.0]]]),
        "rewards": jnp.array([[1.0], [2.0]]),
        "masks": jnp.array([[1.0], [0.0]]),
    }
    found = jax.jit(NORMALIZER.transitions)(rows)
    np.testing.assert_array_equal(found["observations"], [[[0, 0]], [[1, 1]]])
    np.testing.assert_array_equal(found["next_observations"], [[[1, 1]], [[2, 2]]])
    np.testing.assert_array_equal(found["rewards"], [[2], [6]])
    np.testing.assert_array_equal(found["masks"], rows["masks"])


def test_goals_that_are_states_are_normalised_and_others_are_not() -> None:
    inputs = {"observations": jnp.array([[3.0, 6.0]]), "goals": jnp.array([[5.0, 2.0]])}
    np.testing.assert_array_equal(NORMALIZER.inputs(inputs)["goals"], [[2, 0]])
    others = NORMALIZER.replace(goals_are_states=False).inputs(inputs)
    np.testing.assert_array_equal(others["goals"], [[5, 2]])
    np.testing.assert_array_equal(others["observations"], [[1, 1]])
    assert fit(ARRAYS, Normalization(observations=True), goals_are_states=False).goals_are_states is False


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        (
            {"rewards": 1e30},
            Normalization(reward_scale=1e20),
            r"rewards are not finite once they are multiplied by 1e\+20",
        ),
        ({"rewards": 1.0}, Normalization(reward_scale=1e39), "rewards are not finite once they are multiplied by inf"),
        ({"rewards": 1.0}, Normalization(reward_shift=-1e39), "rewards are not finite once .* and -inf is added"),
        (
            {"observations": 3e38},
            Normalization(observations=True),
            r"observations .* column 0, .* reach 3e\+38",
        ),
        ({"returns": 1e30, "horizons": 1.0}, Normalization(reward_scale=1e20), "returns are not finite once"),
        ({"returns": 1.0, "horizons": 1e30}, Normalization(reward_shift=1e20), "returns are not finite once"),
    ],
)
def test_what_is_not_finite_after_rescaling_is_refused(changed, options, message) -> None:
    arrays = {name: array.copy() for name, array in ARRAYS.items()}
    for name, value in changed.items():
        arrays.setdefault(name, np.zeros(4, np.float32)).flat[0] = value
    if "observations" in changed:
        arrays["observations"][1:, 0] = -3e38
    with pytest.raises(UserError, match=message):
        fit(arrays, options)


def test_returns_that_are_equal_but_for_rounding_have_no_spread() -> None:
    rewards = np.tile(np.float32([1e-5, 1e7, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 0]), 5)
    arrays = {"observations": np.ones((40, 1)), "rewards": rewards, "terminals": np.arange(40) % 8 == 7}
    assert np.ptp(episode_returns(rewards, arrays["terminals"])) > 0
    with pytest.raises(UserError, match=r"every episode of the data has the return 1e\+07"):
        fit(arrays, Normalization(rewards="returns"))


FAULTS = {
    "flowrl/normalize.py": [
        ("rewards[~terminals.astype(bool)]", "rewards", "test_rewards_are_brought_to_a_scale_of_their_own"),
        ("- scale * middle", "- middle", "test_rewards_are_brought_to_a_scale_of_their_own and range"),
        ("else ((high + low) / 2,", "else (low,", "test_rewards_are_brought_to_a_scale_of_their_own and range"),
        ("if not self.sparse else", "if True else", "test_sparse_rewards_tell_success_alone"),
        ("        rewards = -(rewards != 0)", "        _ = -(rewards != 0)", "test_sparse_rewards_tell_success_alone"),
        ("std[:2] /=", "std[1:] /=", "test_a_position_may_count_for_more_than_the_body"),
        ("std[:2] /=", "std[:2] *=", "test_a_position_may_count_for_more_than_the_body"),
        ("_require_finite(arrays, *values)", "", "test_what_is_not_finite_after_rescaling_is_refused"),
        ("1e-10 * np.abs(own).sum()", "0", "test_returns_that_are_equal_but_for_rounding_have_no_spread"),
        ("np.where(terminals, 0.0, rewards)", "rewards", "test_returns_of_episodes"),
        (
            "(x - self.mean) / self.std if name in _STATES",
            "x / self.std if name in _STATES",
            "test_a_dataset_is_normalised_once",
        ),
        ("own.transitions(arrays)", "dict(arrays)", "test_a_dataset_is_normalised_once"),
        (
            'names = ("observations", "goals") if self.goals_are_states else',
            'names = ("observations", "goals") if True else',
            "test_goals_that_are_states_are_normalised_and_others_are_not",
        ),
    ],
}
