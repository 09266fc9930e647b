"""Normalisation as a wrapper: statistics by hand, and an agent that sees them in training and in acting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowrl.agent import Spec
from flowrl.agents import bc, gcbc, sscp
from flowrl.errors import UserError
from flowrl.normalize import Options, episode_returns, fit, normalized

ARRAYS = {
    "observations": np.array([[0.0, 10.0], [2.0, 10.0], [4.0, 10.0], [6.0, 10.0]], np.float32),
    "rewards": np.array([1.0, 100.0, 3.0, 100.0], np.float32),
    "terminals": np.array([False, True, False, True]),
}
BATCH = {
    "observations": jnp.array([[3.0, 10.0]]),
    "next_observations": jnp.array([[5.0, 11.0]]),
    "actions": jnp.array([[0.5]]),
    "rewards": jnp.array([2.0]),
    "masks": jnp.array([1.0]),
    "actor_goals": jnp.array([[6.0, 10.0]]),
}


def test_nothing_asked_is_nothing_done() -> None:
    assert fit(ARRAYS, Options()) is None


def test_statistics_by_hand() -> None:
    normalizer = fit(ARRAYS, Options(observations=True, rewards=True, reward_scale=0.5, reward_shift=-1.0))
    assert normalizer is not None
    np.testing.assert_allclose(normalizer.mean, [3.0, 10.0])
    np.testing.assert_allclose(normalizer.std, [np.sqrt(5.0) + 1e-3, 1e-3], rtol=1e-6)
    np.testing.assert_allclose(normalizer.reward_scale, 0.5 * 1000 / (3 - 1))  # not of last rows
    np.testing.assert_allclose(normalizer.reward_shift, -1.0)


def test_equal_returns_have_no_spread_to_divide_by() -> None:
    with pytest.raises(UserError, match="every episode of the data has the return -1"):
        fit(ARRAYS | {"rewards": np.array([-1.0, 5.0, -1.0, 7.0], np.float32)}, Options(rewards=True))


def test_rewards_alone_leave_observations_alone() -> None:
    normalizer = fit(ARRAYS, Options(reward_scale=4.0, reward_shift=-2.0))
    assert normalizer is not None
    np.testing.assert_array_equal(normalizer.mean, [0.0, 0.0])
    np.testing.assert_array_equal(normalizer.std, [1.0, 1.0])


def test_returns_of_episodes() -> None:
    rewards, terminals = np.array([1.0, 2.0, 9.0, 4.0, 9.0]), np.array([0, 0, 1, 0, 1], bool)
    np.testing.assert_allclose(episode_returns(rewards, terminals), [3.0, 4.0])


def test_an_update_sees_normalised_states_and_rewards() -> None:
    plain = sscp.make(sscp.Config(hidden_dims=(8,)), Spec(2, 1, 0))
    normalizer = fit(ARRAYS, Options(observations=True, reward_scale=4.0, reward_shift=-2.0))
    assert normalizer is not None
    wrapped = normalized(plain, normalizer)
    by_hand = dict(BATCH)
    for name in ("observations", "next_observations"):
        by_hand[name] = (BATCH[name] - normalizer.mean) / normalizer.std
    by_hand["rewards"] = jnp.array([6.0])  # 4 · 2 − 2
    key = jax.random.key(1)
    expected, metrics = plain.update(plain.init(jax.random.key(0)), by_hand, key)
    state, seen = wrapped.update(wrapped.init(jax.random.key(0)), BATCH, key)
    assert metrics == seen
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), expected.params, state.params))
    np.testing.assert_array_equal(state.extras["normalizer"].mean, [3.0, 10.0])  # saved with the state


def test_acting_sees_normalised_states() -> None:
    plain = bc.make(bc.Config(hidden_dims=(8,)), Spec(2, 1, 0))
    normalizer = fit(ARRAYS, Options(observations=True))
    assert normalizer is not None
    wrapped = normalized(plain, normalizer)
    state, goals, key = wrapped.init(jax.random.key(0)), jnp.zeros((1, 0)), jax.random.key(2)
    states = (BATCH["observations"] - normalizer.mean) / normalizer.std
    expected = plain.act(plain.policy(state), states, goals, key, mode="eval")
    actions = wrapped.act(wrapped.policy(state), BATCH["observations"], goals, key, mode="eval")
    np.testing.assert_array_equal(actions, expected)
    assert not np.array_equal(actions, plain.act(plain.policy(state), BATCH["observations"], goals, key, mode="eval"))


def test_goals_that_are_states_are_normalised_and_others_are_not() -> None:
    plain = gcbc.make(gcbc.Config(hidden_dims=(8,)), Spec(2, 1, 2))
    normalizer = fit(ARRAYS, Options(observations=True))
    assert normalizer is not None
    states = {name: (BATCH[name] - normalizer.mean) / normalizer.std for name in ("observations", "actor_goals")}
    start, key = plain.init(jax.random.key(0)), jax.random.key(1)
    for flag in (True, False):
        wrapped = normalized(plain, normalizer, goals_are_states=flag)
        seen = BATCH | states if flag else BATCH | {"observations": states["observations"]}
        _, expected = plain.update(start, seen, key)
        _, metrics = wrapped.update(wrapped.init(jax.random.key(0)), BATCH, key)
        assert metrics == expected


def test_runs_map_over_seeds() -> None:
    normalizer = fit(ARRAYS, Options(observations=True))
    assert normalizer is not None
    wrapped = normalized(bc.make(bc.Config(hidden_dims=(8,)), Spec(2, 1, 0)), normalizer)
    states = jax.vmap(wrapped.init)(jax.random.split(jax.random.key(0), 3))
    assert states.extras["normalizer"].mean.shape == (3, 2)
    policies = jax.vmap(wrapped.policy)(states)
    act = jax.vmap(lambda policy: wrapped.act(policy, BATCH["observations"], None, jax.random.key(0), mode="eval"))
    assert act(policies).shape == (3, 1, 1)


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({"rewards": 1e30}, Options(reward_scale=1e20), r"rewards are not finite once they are multiplied by 1e\+20"),
        ({"rewards": 1.0}, Options(reward_scale=1e39), "rewards are not finite once they are multiplied by inf"),
        ({"rewards": 1.0}, Options(reward_shift=-1e39), "rewards are not finite once .* and -inf is added"),
        ({"observations": 3e38}, Options(observations=True), r"normalised observations .* column 0, .* reach 3e\+38"),
        ({"returns": 1e30, "horizons": 1.0}, Options(reward_scale=1e20), "returns are not finite once"),
        ({"returns": 1.0, "horizons": 1e30}, Options(reward_shift=1e20), "returns are not finite once"),
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
        fit(arrays, Options(rewards=True))
