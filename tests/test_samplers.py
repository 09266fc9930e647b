"""Kinds of batches by hand: transitions, and segments at ends of episodes and after terminations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowrl import agents
from flowrl.config import put
from flowrl.data.dataset import Dataset, from_arrays, longest_episode
from flowrl.data.goals import GoalMix
from flowrl.data.samplers import Goals, Horizon, Transitions, require
from flowrl.data.segments import Plans, Segments
from flowrl.data.stretches import of_episodes, sums
from flowrl.errors import UserError
from flowrl.networks import Spec
from flowrl.train_state import TrainState

GAMMA = 0.5


@pytest.fixture
def dataset() -> Dataset:
    """Two episodes: rows 0 to 4 with four transitions, of which the third terminates a task; rows 5 to 7 with two.

    Rewards of transitions are 1, 2, 4, 8 and 16, 32; observations are row numbers, actions their negatives.
    """
    rows = np.arange(8, dtype=np.float32)[:, None]
    return from_arrays(
        {
            "observations": rows,
            "actions": -rows,
            "rewards": np.array([1, 2, 4, 8, 99, 16, 32, 99], np.float32),
            "masks": np.array([1, 1, 0, 1, 1, 1, 1, 1], np.float32),
            "terminals": np.array([0, 0, 0, 0, 1, 0, 0, 1], bool),
            "returns": np.arange(0, 80, 10, dtype=np.float32),
        }
    )


def at(dataset: Dataset, length: int, *rows: int) -> dict[str, np.ndarray]:
    """Segments, and what is summed along them."""
    kind = Segments(Plans(length=length))

    def look(rows: jax.Array) -> dict[str, jax.Array]:
        along = sums(dataset.fields, of_episodes(dataset, rows, length), jnp.float32(GAMMA), stops=True)
        return along | kind.with_returns(dataset, rows)

    return {name: np.asarray(x) for name, x in jax.jit(look)(jnp.array(rows, jnp.int32)).items()}


def test_a_segment_within_an_episode(dataset: Dataset) -> None:
    found = at(dataset, 2, 0, 5)
    np.testing.assert_array_equal(found["observations"], [[0], [5]])
    np.testing.assert_array_equal(found["states"], [[[0], [1]], [[5], [6]]])
    np.testing.assert_array_equal(found["actions"], [[[0], [-1]], [[-5], [-6]]])
    np.testing.assert_array_equal(found["returns"], [0, 50])
    np.testing.assert_array_equal(found["rewards"], [1 + 2 / 2, 16 + 32 / 2])
    np.testing.assert_array_equal(found["discounts"], [0.25, 0.25])  # γ²
    np.testing.assert_array_equal(found["valid"], [1, 1])
    np.testing.assert_array_equal(found["actions_valid"], [[1, 1], [1, 1]])


def test_nothing_counts_after_a_termination(dataset: Dataset) -> None:
    found = at(dataset, 3, 0, 1, 2)
    np.testing.assert_array_equal(found["rewards"], [1 + 2 / 2 + 4 / 4, 2 + 4 / 2, 4])
    np.testing.assert_array_equal(found["discounts"], [0, 0, 0])  # nothing is bootstrapped
    np.testing.assert_array_equal(found["valid"], [1, 1, 1])
    np.testing.assert_array_equal(found["actions_valid"], [[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(found["states"][:, :, 0], [[0, 1, 2], [1, 2, 2], [2, 2, 2]])  # row 3 is a new task's
    np.testing.assert_array_equal(found["actions"], -found["states"])


def test_a_segment_stays_in_its_episode_and_has_no_value_where_that_only_ended(dataset: Dataset) -> None:
    found = at(dataset, 3, 3, 5, 6)
    np.testing.assert_array_equal(found["states"][:, :, 0], [[3, 3, 3], [5, 6, 6], [6, 6, 6]])
    np.testing.assert_array_equal(found["actions_valid"], [[1, 0, 0], [1, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(found["rewards"], [8, 16 + 32 / 2, 32])  # each once
    np.testing.assert_array_equal(found["valid"], [0, 0, 0])  # what lies three steps ahead is not known


def test_an_episode_that_terminates_before_its_segment_is_over_is_known(dataset: Dataset) -> None:
    """From row 2 the task terminates at once, though the rows of the episode end before five steps are over."""
    found = at(dataset, 5, 1, 2)
    np.testing.assert_array_equal(found["valid"], [1, 1])
    np.testing.assert_array_equal(found["discounts"], [0, 0])
    np.testing.assert_array_equal(found["rewards"], [2 + 4 / 2, 4])
    np.testing.assert_array_equal(found["actions_valid"], [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])


def test_segments_of_one_step_are_transitions(dataset: Dataset) -> None:
    segments = at(dataset, 1, 0, 2, 3, 6)
    rows = np.array([0, 2, 3, 6])
    whole = {name: np.asarray(array)[rows] for name, array in dataset.fields.items()}
    transitions = Transitions(GAMMA).complete({name: jnp.asarray(array) for name, array in whole.items()})
    for name in ("observations", "rewards", "discounts", "valid"):
        np.testing.assert_array_equal(segments[name], transitions[name])
    np.testing.assert_array_equal(segments["actions"][:, 0], transitions["actions"])
    np.testing.assert_array_equal(transitions["discounts"], [0.5, 0, 0.5, 0.5])


def test_a_segment_ends_in_its_goal_and_stays_there(dataset: Dataset) -> None:
    """Goals lie 3, 1, 2 and 3 steps ahead; the last two would be beyond the episode."""
    kind, rows, reach = Segments(Plans(length=4), goals=True), jnp.array([0, 1, 6, 5]), jnp.array([3, 1, 2, 3])
    found = jax.jit(lambda rows, reach: kind.with_goals(dataset, rows, reach))(rows, reach)
    np.testing.assert_array_equal(found["states"][:, :, 0], [[0, 1, 2, 3], [1, 2, 2, 2], [6, 6, 6, 6], [5, 6, 6, 6]])
    np.testing.assert_array_equal(found["actions_valid"], [[1, 1, 1, 0], [1, 0, 0, 0], [0] * 4, [1, 0, 0, 0]])
    np.testing.assert_array_equal(found["valid"], [1, 1, 0, 0])
    assert "returns" not in found


@pytest.mark.parametrize(("early", "reached"), [(False, {3}), (True, {1, 2, 3})])
def test_goals_lie_at_the_end_of_segments_or_anywhere_in_them(dataset: Dataset, early: bool, reached: set[int]) -> None:
    kind = Segments(Plans(length=4), goals=True, early=early)
    batch = jax.jit(lambda key: kind.sample(key, dataset, 500))(jax.random.key(0))
    steps = np.asarray(batch["states"][:, -1] - batch["states"][:, 0])[np.asarray(batch["valid"]) > 0]
    assert {*steps[:, 0].tolist()} == reached
    assert kind.goals
    assert [Segments(Plans(played=n)).chunk for n in (1, 2)] == [0, 2]


def ahead(dataset: Dataset, horizon: Horizon, *rows: int) -> dict[str, np.ndarray]:
    kind = Transitions(jnp.float32(GAMMA), horizon)
    found = jax.jit(lambda rows: kind.at(dataset, rows))(jnp.array(rows, jnp.int32))
    return {name: np.asarray(x) for name, x in found.items()}


def test_a_chunk_is_one_action_and_counts_as_in_qc(dataset: Dataset) -> None:
    """Rewards are summed beyond the termination in row 2, to the end of the episode, and nothing is bootstrapped."""
    found = ahead(dataset, Horizon(steps=2, chunk=True), 0, 1, 2, 3, 5, 6)
    np.testing.assert_array_equal(found["observations"][:, 0], [0, 1, 2, 3, 5, 6])
    np.testing.assert_array_equal(found["actions"], [[0, -1], [-1, -2], [-2, -3], [-3, -3], [-5, -6], [-6, -6]])
    np.testing.assert_array_equal(found["rewards"], [2, 4, 8, 8, 32, 32])
    np.testing.assert_array_equal(found["discounts"], [0.25, 0, 0, 0.25, 0.25, 0.25])
    np.testing.assert_array_equal(found["valid"], [1, 1, 1, 0, 1, 0])
    np.testing.assert_array_equal(found["actions_valid"], [[1, 1], [1, 1], [1, 1], [1, 0], [1, 1], [1, 0]])
    np.testing.assert_array_equal(found["next_observations"][:, 0], [2, 3, 4, 4, 7, 7])
    # A termination on the way does not make known what the end of the episode hides.
    np.testing.assert_array_equal(ahead(dataset, Horizon(steps=3, chunk=True), 1, 2)["valid"], [1, 0])


def test_a_chunk_that_stops_ends_with_the_task(dataset: Dataset) -> None:
    found = ahead(dataset, Horizon(steps=3, chunk=True, stops=True), 1, 2, 3)
    np.testing.assert_array_equal(found["rewards"], [4, 4, 8])
    np.testing.assert_array_equal(found["discounts"][:2], [0, 0])
    np.testing.assert_array_equal(found["valid"], [1, 1, 0])
    np.testing.assert_array_equal(found["actions_valid"], [[1, 1, 0], [1, 0, 0], [1, 0, 0]])


def test_n_steps_have_the_first_action(dataset: Dataset) -> None:
    found = ahead(dataset, Horizon(steps=3), 0, 3, 5)
    np.testing.assert_array_equal(found["actions"], [[0], [-3], [-5]])
    np.testing.assert_array_equal(found["actions_valid"], [[1], [1], [1]])
    np.testing.assert_array_equal(found["rewards"], [3, 8, 32])
    np.testing.assert_array_equal(found["discounts"], [0, 0.125, 0.125])
    np.testing.assert_array_equal(found["valid"], [1, 0, 0])
    assert Transitions(0.5, Horizon(steps=3)).chunk == 0
    assert Transitions(0.5, Horizon(steps=3, chunk=True)).chunk == 3


def test_looking_beyond_every_episode_is_refused() -> None:
    fields = ("observations", "actions", "rewards", "masks")
    require(Transitions(0.9, Horizon(steps=4)), fields, longest=4)
    require(Segments(Plans(length=9)), (*fields, "returns"), longest=4)
    with pytest.raises(UserError, match="looks 5 steps ahead, but the longest episode of the data has 4; give a small"):
        require(Transitions(0.9, Horizon(steps=5)), fields, longest=4)
    assert longest_episode(np.array([0, 0, 0, 0, 1, 0, 0, 1], bool)) == 4


def test_batches_come_from_rows_with_a_transition(dataset: Dataset) -> None:
    for kind in (Transitions(GAMMA), Segments(Plans(length=2))):
        batch = jax.jit(lambda key, kind=kind: kind.sample(key, dataset, 500))(jax.random.key(0))
        assert {*np.asarray(batch["observations"])[:, 0].tolist()} == {0, 1, 2, 3, 5, 6}
        assert not kind.goals


def test_what_data_lack_is_named() -> None:
    require(Transitions(), ("observations", "actions", "rewards", "masks", "more"))
    require(Goals(GoalMix()), ("observations", "actions"))
    require(Segments(Plans(), goals=True), ("observations", "actions"))
    with pytest.raises(UserError, match="the data lack goals that are states, which"):
        require(Segments(Plans(), goals=True), ("observations", "actions", "oracle_reps"))
    for kind, lacking in (
        (Transitions(), "rewards, masks"),
        (Transitions(returns=True), "rewards, masks, returns"),
        (Segments(Plans()), "rewards, masks, returns"),
    ):
        with pytest.raises(UserError, match=f"the data lack {lacking}, which this agent reads; they have actions, obs"):
            require(kind, ("observations", "actions"))


def test_ogbenchs_batches_of_goals_are_completed_by_hand() -> None:
    rows = {"masks": jnp.array([1.0, 0.0]), "next_observations": jnp.array([[3.0], [5.0]])}
    found = Goals(GoalMix(), discount=0.9).complete(rows | {"rewards": jnp.array([-1.0, 0.0])})
    np.testing.assert_allclose(found["discounts"], [0.9, 0])
    np.testing.assert_array_equal(found["valid"], [1, 1])
    np.testing.assert_array_equal(found["value_next_observations"], [[3], [5]])
    np.testing.assert_array_equal(found["rewards"], [-1, 0])
    with pytest.raises(ValueError, match="values bootstrap after 10 steps; rows of one step do not tell where"):
        Goals(GoalMix(), horizon=10).complete(rows)


@pytest.mark.parametrize("name", ["gcbc", "gcivl", "gciql", "qrl", "crl", "hiql", "gc_sscp"])
def test_agents_of_goals_read_what_ogbenchs_batches_hold(name: str) -> None:
    config = put(agents.default(name), {"hidden_dims": (4,)})
    agent = agents.build(name, config, Spec.of_sizes(3, 2, 3))
    states = "next_observations", "value_goals", "actor_goals", "low_actor_goals", "high_actor_goals"
    rows = dict.fromkeys(("observations", *states, "high_actor_targets"), jnp.zeros((5, 3)))
    rows |= {"actions": jnp.zeros((5, 2)), "rewards": -jnp.ones(5), "masks": jnp.ones(5)}

    def step(key: jax.Array) -> TrainState:
        return agent.update(agent.init(key, config), agent.batch(config).complete(rows), key)[0]

    assert jax.eval_shape(step, jax.random.key(0)).params


FAULTS = {
    "flowrl/data/samplers.py": [
        (
            '"discounts": self.discount * masks,',
            '"discounts": masks,',
            "test_ogbenchs_batches_of_goals_are_completed_by_hand",
        ),
        ("if self.horizon > 1:", "if False:", "test_ogbenchs_batches_of_goals_are_completed_by_hand"),
        ("self.discount, self.horizon.stops)", "self.discount, False)", "test_a_chunk_that_stops_ends_with_the_task"),
        (
            'jnp.broadcast_to(valid[..., None], batch["actions"].shape)',
            'jnp.ones_like(batch["actions"])',
            "test_a_chunk_is_one_action_and_counts_as_in_qc",
        ),
        ("kind.steps > longest", "kind.steps > longest + 1", "test_looking_beyond_every_episode_is_refused"),
        (
            '"discounts": self.discount * rows["masks"]',
            '"discounts": self.discount * jnp.ones_like(rows["masks"])',
            "test_segments_of_one_step_are_transitions",
        ),
        ('("returns",) if self.returns else ()', "()", "test_what_data_lack_is_named"),
    ],
    "flowrl/data/segments.py": [
        ('fields["returns"][rows]', 'fields["rewards"][rows]', "test_a_segment_within_an_episode"),
        (
            "1, most + 1) if self.early",
            "1, most) if self.early",
            "test_goals_lie_at_the_end_of_segments_or_anywhere_in_them",
        ),
        ("jnp.minimum(ahead, last[:, None])", "ahead", "test_a_segment_ends_in_its_goal_and_stays_there"),
        ("ahead < last[:, None]", "ahead <= last[:, None]", "test_a_segment_ends_in_its_goal_and_stays_there"),
        ("jnp.minimum(stretch.rows, last[:, None])", "stretch.rows", "test_nothing_counts_after_a_termination"),
        ("(rows + reach == last)", "(rows < last)", "test_a_segment_ends_in_its_goal_and_stays_there"),
    ],
    "flowrl/data/stretches.py": [
        (
            "powers * counted * fields",
            "powers * fields",
            "test_a_segment_stays_in_its_episode_and_has_no_value_where_that_only_ended",
        ),
        (
            "inside & (before > 0) if stops else inside",
            "inside & (before > 0)",
            "test_a_chunk_is_one_action_and_counts_as_in_qc",
        ),
        (
            "(alive[:, -1] == 0) if stops else inside[:, -1]",
            "(alive[:, -1] == 0)",
            "test_a_chunk_is_one_action_and_counts_as_in_qc",
        ),
        (
            'alive = jnp.cumprod(jnp.where(inside, fields["masks"][rows], 1.0), axis=1)',
            'alive = jnp.where(inside, fields["masks"][rows], 1.0)',
            "test_nothing_counts_after_a_termination",
        ),
        (
            "before = jnp.concatenate([jnp.ones_like(alive[:, :1]), alive[:, :-1]], axis=1)",
            "before = alive",
            "test_nothing_counts_after_a_termination",
        ),
        (
            "Stretch(jnp.minimum(ahead, ends), ",
            "Stretch(ahead, ",
            "test_a_chunk_is_one_action_and_counts_as_in_qc",
        ),
        ("rows.shape[1] * alive[:, -1]", "rows.shape[1]", "test_nothing_counts_after_a_termination"),
        (
            "inside[:, -1] | (alive[:, -1] == 0) if stops",
            "inside[:, -1] if stops",
            "test_an_episode_that_terminates_before_its_segment_is_over_is_known",
        ),
        (
            "jnp.asarray(discount) ** jnp.arange(rows.shape[1])",
            "jnp.ones(rows.shape[1])",
            "test_a_segment_within_an_episode",
        ),
    ],
}
