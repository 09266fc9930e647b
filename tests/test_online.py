"""Online learning: episodes, counters, the buffer, and what an agent does not notice."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from own_envs import make_counter
from small_agents import networks_of

from flowrl import agents
from flowrl.config import put, stacked
from flowrl.data import replay
from flowrl.data.dataset import Dataset
from flowrl.networks import Spec
from flowrl.normalize import Normalizer
from flowrl.training import compiled, online
from flowrl.training.online import Environments, Online

SPEC = Spec.of_sizes(2, 1)
BATCH = 8


def keys_of(*seeds: int) -> jax.Array:
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def environments(*seeds: int, num_envs: int = 2, **kwargs: Any) -> Environments:
    return Environments(make_counter, keys_of(*seeds), num_envs, **kwargs)


def numbers_of(acted: Environments, steps: int) -> np.ndarray:
    """The number of the episode under way at each step `[steps, N]`."""
    found = []
    for _ in range(steps):
        found.append(acted.observations[:, 1].copy())
        acted.step(np.zeros((len(acted.observations), 1), np.float32))
    return np.array(found)


def test_episodes_are_fixed_by_run_slot_and_number() -> None:
    one = numbers_of(environments(0, 1), 9)
    assert (one[0:3] == one[0]).all()  # one episode
    drawn = one[::3]
    assert len(np.unique(drawn)) == drawn.size  # another one in each run, slot and episode
    np.testing.assert_array_equal(numbers_of(environments(0, 1), 9), one)
    np.testing.assert_array_equal(numbers_of(environments(1), 9), one[:, 2:])
    later = environments(0, 1, episodes=np.array([[2, 1], [1, 1]]))
    np.testing.assert_array_equal(later.observations[:, 1], [drawn[2, 0], *drawn[1, 1:]])


def test_limits_of_time_bootstrap_and_terminations_do_not() -> None:
    acted = environments(0, num_envs=8)
    odd = 1024 * acted.observations[:, 1] % 2 == 1
    assert {*odd.tolist()} == {True, False}
    first = acted.observations[:, 1].copy()
    moves = [acted.step(np.zeros((8, 1), np.float32)) for _ in range(3)]
    for step, moved in enumerate(moves):
        np.testing.assert_array_equal(moved.observations[:, 0], step)
        np.testing.assert_array_equal(moved.next_observations[:, 0], step + 1)  # also where the episode ended
        np.testing.assert_array_equal(moved.next_observations[:, 1], first)  # never the next one's
        np.testing.assert_array_equal(moved.rewards, step + 1)
        np.testing.assert_array_equal(moved.masks, 1.0 if step < 2 else 1 - odd)
        np.testing.assert_array_equal(moved.ended, step == 2)
    np.testing.assert_array_equal(acted.observations[:, 0], 0)
    np.testing.assert_array_equal(acted.episodes, np.ones((1, 8)))
    assert acted.drain() == [{"return": 6.0, "length": 3.0}]
    assert acted.drain() == [{}]


def test_processes_do_not_change_what_is_seen() -> None:
    kept, apart = environments(0, 1), environments(0, 1, vectorization="async")
    try:
        for _ in range(5):
            np.testing.assert_array_equal(kept.observations, apart.observations)
            kept.step(np.ones((4, 1), np.float32))
            apart.step(np.ones((4, 1), np.float32))
    finally:
        apart.close()


@pytest.mark.parametrize(
    ("options", "due"),
    [
        (Online(), [0, 1, 2, 3, 4, 5]),
        (Online(warmup_steps=2), [0, 0, 0, 1, 2, 3]),
        (Online(updates_per_step=0.5), [0, 0, 1, 1, 2, 2]),
        (Online(updates_per_step=0.29, warmup_steps=1), [0, 0, 0, 0, 0, 1]),
        (Online(updates_per_step=3), [0, 3, 6, 9, 12, 15]),
        (Online(updates_per_step=0), [0] * 6),
    ],
)
def test_updates_due(options: Online, due: list[int]) -> None:
    assert [online.updates_due(options, step) for step in range(6)] == due


def test_no_update_is_lost_to_rounding() -> None:
    assert online.updates_due(Online(updates_per_step=0.29), 100) == 29
    assert online.updates_due(Online(updates_per_step=0.1), 1_000_000) == 100_000


class Session:
    """One online run, with what its collector holds."""

    def __init__(
        self,
        *seeds: int,
        options: Online,
        mode: str = "serial",
        dataset: Any = None,
        agent: str = "td3",
        normalizer: Normalizer | None = None,
        explores: Callable[[Any], Any] | None = None,
        told: Mapping[str, Any] | None = None,
    ) -> None:
        told = {"hidden_dims": (4,), "critic.hidden_dims": (), "batch_size": BATCH, **(told or {})}
        config = put(agents.default(agent), told)
        made, self.keys = agents.build(agent, config, SPEC), keys_of(*seeds)
        made, self.networks = made._replace(explores=explores or made.explores), networks_of(made)
        kind = made.batch(config)
        buffer = jax.eval_shape(lambda: replay.empty(SPEC, options.capacity, kind, options.num_envs))
        program = compiled.build(made, BATCH, dataset, mode, buffer)
        acted = Environments(make_counter, self.keys, options.num_envs)
        self.resume = functools.partial(
            online.Collector, made, SPEC, program, acted, self.keys, options, kind, dataset, normalizer
        )
        self.collector = self.resume()
        self.states, self.totals = program.start(self.keys, stacked(config, [{}] * len(seeds)))

    def program_params(self) -> Any:
        """Returns the parameters of the first run."""
        return jax.tree.map(lambda x: x[0], self.states.params)

    def advance(self, *steps: int) -> "Session":
        for count in steps:
            self.states, self.totals = self.collector.advance(self.states, self.totals, count)
        return self


@pytest.mark.slow
def test_counters_buffer_and_updates_agree() -> None:
    options = Online(num_envs=2, updates_per_step=0.5, warmup_steps=4, buffer_size=40, steps=1000)
    session = Session(0, 1, options=options).advance(10)
    assert session.collector.step == 10
    assert int(session.states.step) == online.updates_due(options, 8)  # the newest transitions are still to be used
    np.testing.assert_array_equal(session.collector.replays.size, [10, 10])
    fields = session.collector.replays.fields
    np.testing.assert_array_equal(fields["next_observations"][:, :10, 0], fields["observations"][:, :10, 0] + 1)
    np.testing.assert_array_equal(fields["observations"][:, :10, 0], [[0, 0, 1, 1, 2, 2, 0, 0, 1, 1]] * 2)
    actions = np.asarray(fields["actions"])
    assert len(np.unique(actions[:, :10])) == 20
    assert np.abs(actions[:, :10]).max() <= 1
    session.advance(34)
    np.testing.assert_array_equal(session.collector.replays.size, [40, 40])


def test_chunks_are_played_to_their_end_or_the_episodes() -> None:
    """The counter's episodes have three steps. Chunks of two: what is chosen in 0 is played in 0 and 1, then in 2."""
    told = {"horizon.steps": 2, "horizon.chunk": True, "target_noise": 0.0, "explore_noise": 0.0}
    options = Online(num_envs=2, updates_per_step=0, buffer_size=40, steps=1000)
    session = Session(0, options=options, told=told).advance(12)
    fields = jax.tree.map(lambda x: np.asarray(x)[0, :12].reshape(6, 2, -1), dict(session.collector.replays.fields))
    params = session.program_params()
    for env in range(2):
        shown = jnp.asarray(fields["observations"][:, env])
        chunks = np.tanh(session.networks.actor(params, shown))  # [6, 2]
        expected = [chunks[0, 0], chunks[0, 1], chunks[2, 0], chunks[3, 0], chunks[3, 1], chunks[5, 0]]
        np.testing.assert_allclose(fields["actions"][:, env, 0], expected, rtol=1e-5)
    assert fields["ended"][:, 0, 0].tolist() == [False, False, True] * 2


@pytest.mark.slow
def test_an_agent_learns_from_its_own_chunks() -> None:
    told = {"horizon.steps": 2, "horizon.chunk": True}
    options = Online(num_envs=2, warmup_steps=6, buffer_size=40, steps=1000)
    session = Session(0, 1, options=options, told=told).advance(20)
    assert int(session.states.step) == 12
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(session.totals.sums))


@pytest.mark.slow
def test_returns_are_written_when_their_episode_has_ended() -> None:
    """Rewards 1, 2, 3: G = 1 + .99·2 + .9801·3 = 5.9203, 4.97, 3."""
    session = Session(
        0, 1, options=Online(num_envs=2, updates_per_step=0, buffer_size=14, steps=1000), agent="cal_ql"
    ).advance(10)
    known, open_ = np.repeat([5.9203, 4.97, 3], 2), [-np.inf] * 4
    fields = session.collector.replays.fields
    np.testing.assert_allclose(fields["returns"][:, :10], [[*known, *open_]] * 2, rtol=1e-6)
    # Those of the episode under way where the run was stopped are never known; nor are they mixed with the next's.
    resumed = session.resume(step=10, replays=session.collector.replays)
    resumed.environments._begin(np.ones(4, bool))
    resumed.advance(session.states, session.totals, 6)
    np.testing.assert_allclose(resumed.replays.fields["returns"][1], [3, 3, *known[2:], *open_, *known[:4]], rtol=1e-6)


def test_the_buffer_holds_what_the_agent_sees() -> None:
    """Observations and rewards are normalised as they are stored: 4 r − 2, whose returns are 4 G − 2 H."""
    normalizer = Normalizer(jnp.array([1.0, 0.0]), jnp.array([2.0, 1.0]), jnp.float32(4), jnp.float32(-2))
    options = Online(updates_per_step=0, buffer_size=14, steps=1000)
    plain, seen = (Session(0, 1, options=options, agent="cal_ql", normalizer=n).advance(4) for n in (None, normalizer))
    before, after = plain.collector.replays.fields, seen.collector.replays.fields
    for name in ("observations", "next_observations"):
        np.testing.assert_array_equal(after[name][0, :4, 0], (before[name][0, :4, 0] - 1) / 2)
        np.testing.assert_array_equal(after[name][0, :4, 1], before[name][0, :4, 1])
    np.testing.assert_array_equal(after["rewards"][0, :4], [2, 6, 10, 2])
    horizons = [2.9701, 1.99, 1]
    np.testing.assert_allclose(after["returns"][0, :3], 4 * np.array([5.9203, 4.97, 3]) - 2 * np.array(horizons))
    np.testing.assert_array_equal(after["returns"][0, 3:], -np.inf)
    assert float(np.abs(after["actions"] - before["actions"]).max()) > 0  # the policy acts on what it sees


@pytest.mark.slow
def test_the_warm_up_is_uniform_and_the_policy_follows() -> None:
    session = Session(0, options=Online(warmup_steps=200, buffer_size=40, steps=1000))
    actions = np.concatenate([session.advance(40).collector.replays.fields["actions"][0, :, 0] for _ in range(6)])
    assert abs(np.abs(actions[:200]).mean() - 0.5) < 0.1
    assert np.abs(actions[200:220]).mean() < 0.3  # an untrained policy is near 0, with noise of 0.1


def test_an_agent_explores_as_it_says() -> None:
    """Without the noise of TD3's exploration, the actions are its policy's."""
    session = Session(
        0,
        options=Online(updates_per_step=0, buffer_size=20, steps=1000),
        explores=lambda config: put(config, {"explore_noise": jnp.zeros(1)}),
    ).advance(20)
    fields, params = session.collector.replays.fields, jax.tree.map(lambda leaf: leaf[0], session.states.params)
    expected = jnp.tanh(session.networks.actor(params, fields["observations"][0]))
    np.testing.assert_allclose(fields["actions"][0], expected, atol=1e-6)


@pytest.mark.slow
def test_the_buffer_keeps_exploration_that_left_the_box() -> None:
    """Mirror descent's noise is clipped neither in the policy nor in the buffer, only by the environment."""
    session = Session(0, options=Online(updates_per_step=0, buffer_size=60, steps=1000), agent="fpmd_m").advance(60)
    actions = np.abs(session.collector.replays.fields["actions"])
    assert 0.05 < (actions > 1).mean() < 0.95


def test_chunks_do_not_change_what_is_learnt() -> None:
    options = Online(warmup_steps=4, buffer_size=40, steps=1000)
    one, other = Session(3, options=options).advance(50), Session(3, options=options).advance(4, 1, 38, 7)
    jax.tree.map(np.testing.assert_array_equal, (one.states, one.totals), (other.states, other.totals))
    jax.tree.map(np.testing.assert_array_equal, one.collector.replays, other.collector.replays)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["serial", "vmap"])
def test_a_run_among_others_agrees_with_the_run_alone(mode: Any) -> None:
    options = Online(warmup_steps=4, buffer_size=40, steps=1000)
    both, alone = Session(3, 4, options=options, mode=mode).advance(40), Session(4, options=options).advance(40)
    compare = (
        np.testing.assert_array_equal if mode == "serial" else functools.partial(np.testing.assert_allclose, atol=1e-4)
    )
    jax.tree.map(lambda x, y: compare(x[1], y[0]), both.states.params, alone.states.params)
    jax.tree.map(lambda x, y: compare(x[1], y[0]), both.collector.replays, alone.collector.replays)


@pytest.mark.slow
def test_offline_data_take_part(walks: Dataset) -> None:
    fields = {**walks.fields, "actions": walks.fields["actions"][:, :1]}
    rewards = {"rewards": jnp.full(len(fields["actions"]), 100.0), "masks": jnp.zeros(len(fields["actions"]))}
    session = Session(
        0, options=Online(buffer_size=20, steps=1000), dataset=walks.replace(fields={**fields, **rewards})
    ).advance(10)
    assert float(session.totals.sums["critic/loss"][0]) / 9 > 5000  # 580 of 590 transitions have the reward 100


FAULTS = {
    "flowrl/training/online.py": [
        ("1 - terminated.astype", "1 - ended.astype", "test_limits_of_time_bootstrap_and_terminations_do_not"),
        (
            "return Moves(before, after,",
            "return Moves(before, self.observations,",
            "test_limits_of_time_bootstrap_and_terminations_do_not",
        ),
        ("step - options.warmup_steps", "step", "test_updates_due"),
        ("self._agent.explores(states.config)", "states.config", "test_an_agent_explores_as_it_says"),
        (
            "seen = rows if normalizer is None else normalizer.transitions(rows)",
            "seen = rows",
            "test_the_buffer_holds_what_the_agent_sees",
        ),
    ],
    "agents/fpmd.py": [
        (
            'inputs["observations"], key, explore)',
            'inputs["observations"], key, explore).clip(-1, 1)',
            "test_the_buffer_keeps_exploration_that_left_the_box",
        ),
    ],
}
