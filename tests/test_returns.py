"""Monte-Carlo returns by hand and against a plain definition, and their way into the ring of a replay buffer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowrl.data import replay, returns
from flowrl.data.samplers import Transitions
from flowrl.errors import UserError
from flowrl.networks import Spec
from flowrl.normalize import Normalizer


def laid_out(*episodes: tuple[list[float], list[float]]) -> dict[str, np.ndarray]:
    """Episodes of rewards and masks, each with a last row that would spoil every sum that it entered."""
    rewards = np.concatenate([[*rewards, 99.0] for rewards, _ in episodes])
    masks = np.concatenate([[*masks, 1.0] for _, masks in episodes])
    terminals = np.concatenate([[*[False] * len(rewards), True] for rewards, _ in episodes])
    return {"rewards": rewards, "masks": masks, "terminals": terminals}


@pytest.mark.parametrize(
    ("rewards", "masks", "expected", "horizons"),
    [
        ([1, 2, 4], [1, 1, 0], [3, 4, 4], [1.75, 1.5, 1]),  # terminated
        ([1, 2, 4], [1, 1, 1], [3, 4, 4], [1.75, 1.5, 1]),  # out of time: 0 after the last one
        ([1, 2, 4], [0, 1, 1], [1, 4, 4], [1, 1.5, 1]),  # nothing follows a termination
        ([2, 4], [0.5, 1], [3, 4], [1.25, 1]),
        ([-1, -1], [1, 1], [-2, -2], [2, 2]),  # never solved: −1/(1 − γ)
        ([-1, -1], [1, 0], [-1.5, -1], [1.5, 1]),  # solved
        ([-1, 0], [1, 1], [-1, 0], [1.5, 1]),
        ([-3, -1], [1, 1], [-3.5, -1], [1.5, 1]),
        ([0, 0], [1, 1], [0, 0], [2, 2]),
        ([1, 1], [1, 1], [1.5, 1], [1.5, 1]),  # a constant that is no failure
        ([-4], [1], [-8], [2]),
        ([-1, 0, -1, -1], [1, 0, 1, 1], [-1, 0, -2, -2], [1.5, 1, 2, 2]),  # solved, and then not once more
    ],
)
def test_returns_by_hand(rewards: list[float], masks: list[float], expected: Any, horizons: Any) -> None:
    found = returns.of_dataset(laid_out((rewards, masks)), 0.5)
    np.testing.assert_array_equal(found["returns"], [*expected, 0])
    np.testing.assert_array_equal(found["horizons"], [*horizons, 0])


def test_a_termination_may_have_a_price() -> None:
    """γ = ½: 1 + ½ (2 − 8) and 2 − 8 where the episode terminates; out of time as it was."""
    terminated, out_of_time = (returns.of_dataset(laid_out(([1, 2], [1, m])), 0.5, -8.0)["returns"] for m in (0, 1))
    np.testing.assert_array_equal(terminated, [-2, -6, 0])
    np.testing.assert_array_equal(out_of_time, [2, 2, 0])


def test_episodes_do_not_touch() -> None:
    found = returns.of_dataset(laid_out(([1, 2], [1, 1]), ([-1, -1, -1], [1, 1, 1]), ([], []), ([8], [0])), 0.5)
    np.testing.assert_array_equal(found["returns"], [2, 2, 0, -2, -2, -2, 0, 0, 8, 0])
    assert all(values.dtype == np.float32 for values in found.values())


def test_returns_are_the_sums_that_they_stand_for() -> None:
    rng, gamma = np.random.default_rng(0), 0.9
    episodes = [(rng.normal(size=n).tolist(), (rng.uniform(size=n) < 0.8).astype(float).tolist()) for n in (1, 7, 30)]
    found = returns.of_dataset(laid_out(*episodes), gamma)
    start = 0
    for rewards, masks in episodes:
        for i in range(len(rewards)):
            weights = [gamma ** (j - i) * np.prod(masks[i:j]) for j in range(i, len(rewards))]
            np.testing.assert_allclose(found["returns"][start + i], np.dot(weights, rewards[i:]), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found["horizons"][start + i], sum(weights), rtol=1e-5)
        start += len(rewards) + 1


def seen_by(scale: float, shift: float, found: dict[str, Any]) -> Any:
    """The returns that an agent behind a normaliser reads."""
    numbers = (jnp.asarray(x, jnp.float32) for x in (scale, shift))
    normalizer = Normalizer(jnp.zeros(1), jnp.ones(1), *numbers)
    return jax.jit(normalizer.returns)(*(jnp.asarray(found[name], jnp.float32) for name in ("returns", "horizons")))


@pytest.mark.parametrize(("scale", "shift"), [(10.0, -5.0), (0.5, 0.0), (1.0, -1.0), (0.1, 2.0)])
def test_normalised_returns_are_returns_of_normalised_rewards(scale: float, shift: float) -> None:
    """D4RL's AntMaze: rewards 0 and 1, of which 10 r − 5 is a sparse task; only there is the unsolved episode one."""
    arrays = laid_out(([0, 0, 1], [1, 1, 0]), ([1, -2, 0.5, 2], [1, 0, 1, 1]), *[([0, 0], [1, 1])] * (shift <= 0))
    found = returns.of_dataset(arrays, 0.5)
    expected = returns.of_dataset({**arrays, "rewards": scale * arrays["rewards"] + shift}, 0.5)
    np.testing.assert_allclose(seen_by(scale, shift, found), expected["returns"], rtol=1e-6)


@pytest.mark.parametrize(("scale", "shift"), [(10.0, -5.0), (0.0, 1.0), (-1.0, 0.0)])
def test_unknown_returns_stay_unknown(scale: float, shift: float) -> None:
    found = seen_by(scale, shift, {"returns": [-np.inf, 2.0], "horizons": [0.0, 3.0]})
    np.testing.assert_array_equal(found, [-np.inf, 2 * scale + 3 * shift])


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "num_envs", "capacity"), [(1, 1, 5), (2, 3, 10), (1, 4, 4), (2, 2, 64)])
def test_returns_reach_the_rows_where_their_transitions_lie(runs: int, num_envs: int, capacity: int) -> None:
    """Against a list of everything: the ring holds the newest, episodes are as long as two rings, rewards tell rows."""
    rng, spec = np.random.default_rng(capacity), Spec.of_sizes(1, 1)
    empty = jax.vmap(lambda _: replay.empty(spec, capacity, Transitions(returns=True)))
    buffers = empty(jnp.arange(runs))
    add, record = jax.jit(jax.vmap(replay.add)), jax.jit(jax.vmap(replay.record))
    episodes = returns.OpenEpisodes(runs, num_envs, capacity, 0.5)
    history: list[list[tuple[int, float, float]]] = [[] for _ in range(runs * num_envs)]
    known: dict[int, float] = {}
    sizes = set()
    left = rng.integers(1, 2 * capacity, runs * num_envs)
    for step in range(6 * capacity // num_envs + 10):
        numbers = 1 + step * runs * num_envs + np.arange(runs * num_envs)  # of which each is the reward of one row
        left -= 1
        ended, masks = left == 0, np.ones(runs * num_envs)
        masks[ended] = rng.integers(0, 2, ended.sum())
        left[ended] = rng.integers(1, 2 * capacity, ended.sum())
        for i, number in enumerate(numbers):
            history[i].append((int(number), float(number), masks[i]))
            if ended[i]:
                total = 0.0
                for row, reward, mask in reversed(history[i]):
                    total = known[row] = reward + 0.5 * mask * total
                history[i] = []
        rows = {"rewards": numbers, "masks": masks}
        rows |= {name: np.zeros((runs * num_envs, 1)) for name in ("observations", "next_observations", "actions")}
        shaped = {name: jnp.asarray(x, jnp.float32).reshape(runs, num_envs, *x.shape[1:]) for name, x in rows.items()}
        buffers = add(buffers, shaped)
        found = episodes.add(numbers.astype(np.float32), masks, ended, (step + 1) * num_envs)
        assert (found is not None) == ended.any()
        if found is not None:
            sizes.add(found.places.shape)
            assert (found.horizons[found.places < capacity] >= 1).all()
            buffers = record(buffers, found.places, found.returns)
        fields = jax.device_get(buffers.fields)
        for run in range(runs):
            for place in range(int(buffers.size[run])):
                row = int(fields["rewards"][run, place])
                np.testing.assert_allclose(fields["returns"][run, place], known.get(row, -np.inf), rtol=1e-6)
    assert sizes == {(runs, 256)}


def test_long_episodes_come_in_few_sizes() -> None:
    episodes = returns.OpenEpisodes(1, 1, 10_000, 0.5)
    one, sizes = np.ones(1), []
    for step in range(1, 1101):
        found = episodes.add(one, one, np.array([step in (100, 400, 1100)]), step)
        sizes += [] if found is None else [found.places.shape[1]]
        if found is not None:
            assert (found.places == 10_000).sum() == sizes[-1] - {100: 100, 400: 300, 1100: 700}[step]
    assert sizes == [256, 512, 1024]


def test_returns_that_are_not_finite_are_refused() -> None:
    arrays = {"rewards": np.array([3e38, 3e38, 0.0]), "masks": np.ones(3), "terminals": np.array([0, 0, 1])}
    with pytest.raises(UserError, match=r"returns of rewards up to 3e\+38 are not finite with a discount of 0.9"):
        returns.of_dataset(arrays, 0.9)


FAULTS = {
    "flowrl/data/returns.py": [
        ("if not np.isfinite(found[name]).all():", "if False:", "test_returns_that_are_not_finite_are_refused"),
        ("discount * masks * steps", "discount * masks", "test_episodes_do_not_touch"),
        ("(least == most) & (most <= 0)", "least == most", "test_returns_by_hand"),
        ("kept = age <= self._capacity", "kept = age > 0", "test_returns_reach_the_rows_where_their_transitions_lie"),
    ],
    "flowrl/data/replay.py": [
        (
            "rows.get(name, UNKNOWN)",
            "rows.get(name, array[places])",
            "test_returns_reach_the_rows_where_their_transitions_lie",
        ),
    ],
    "flowrl/normalize.py": [
        (
            "self.reward_shift * horizons",
            "self.reward_shift",
            "test_normalised_returns_are_returns_of_normalised_rewards",
        ),
    ],
}
