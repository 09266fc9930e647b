"""Goal relabelling against an independent statement of OGBench's samplers: one row at a time, in plain loops.

Observations are row numbers, so that a goal shows where it came from. Statistical tests use fixed keys and reject at a
level of 1e-6 for all their rows together.
"""

import functools
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl.config import as_arrays
from flowrl.data.dataset import Dataset, from_arrays, gather, sample_rows
from flowrl.data.goals import GoalMix, draw, geometric_offsets, trajectory_rows
from flowrl.data.samplers import Goals

GOALS = ("value_goals", "actor_goals", "low_actor_goals", "high_actor_goals", "high_actor_targets")
SCALARS = ("rewards", "masks", "discounts", "valid")
TIMES = ("value_steps", "value_reached")
AHEAD = "value_next_observations"
FALSE_ALARM = 1e-6
LENGTHS = (1, 4, 9, 2, 1, 6, 1)
Pmf = dict[Any, float]


def terminals_of(lengths: tuple[int, ...]) -> np.ndarray:
    terminals = np.zeros(sum(lengths), bool)
    terminals[np.cumsum(lengths) - 1] = True
    return terminals


def dataset_of(lengths: tuple[int, ...]) -> Dataset:
    rows = np.arange(sum(lengths), dtype=np.float32)[:, None]
    return from_arrays({"observations": rows, "actions": -rows, "terminals": terminals_of(lengths)})


def layout(lengths: tuple[int, ...]) -> tuple[list[int], dict[int, int]]:
    """The rows that have a transition, and for each the last row of its episode that has one."""
    valid, ends, first = [], {}, 0
    for length in lengths:
        for row in range(first, first + length - 1):
            valid.append(row)
            ends[row] = first + length - 2
        first += length
    return valid, ends


def mix(p_trajectory: float, p_random: float, *, geometric: bool = False) -> GoalMix:
    return as_arrays(GoalMix(p_trajectory=p_trajectory, p_random=p_random, geometric=geometric))


VALUE = mix(0.5, 0.3, geometric=True)


def kind_of(
    actor: GoalMix | None = None, value: GoalMix = VALUE, discount: float = 0.8, subgoal_steps: int = 3
) -> Goals:
    return Goals(mix(1.0, 0.0) if actor is None else actor, value, jnp.float32(discount), jnp.int32(subgoal_steps))


# --- the independent statement ---


def future_pmf(row: int, end: int, discount: float | None) -> Pmf:
    """Goals within the episode: geometric offsets capped at the end, or (discount None) uniform over the future."""
    pmf: Pmf = Counter()
    if discount == 1:
        return {end: 1.0}
    if discount is not None:
        for k in range(1, 400):
            pmf[min(row + k, end)] += (1 - discount) * discount ** (k - 1)
        return pmf
    # round(d·min(t + 1, end) + (1 − d)·end) over a grid of d that resolves every rounding boundary exactly.
    first = min(row + 1, end)
    grid = 2 * max(end - first, 1) * 10
    for i in range(grid):
        d = (i + 0.5) / grid
        pmf[round(d * first + (1 - d) * end)] += 1 / grid
    return pmf


def goal_pmf(row: int, valid: list[int], end: int, p_future: float, p_random: float, discount: float | None) -> Pmf:
    """Keys are pairs (goal, whether it was drawn from anywhere)."""
    pmf: Pmf = Counter()
    pmf[row, False] += 1 - p_future - p_random
    for goal, p in future_pmf(row, end, discount).items():
        pmf[goal, False] += p_future * p
    for goal in valid:
        pmf[goal, True] += p_random / len(valid)
    return pmf


def target_pmf(row: int, end: int, steps: int, goals: Pmf) -> Pmf:
    """Keys are pairs (high goal, high target)."""
    pmf: Pmf = Counter()
    for (goal, is_random), p in goals.items():
        pmf[goal, min(row + steps, end if is_random else goal)] += p
    return pmf


def marginal(pmf: Pmf) -> Pmf:
    merged: Pmf = Counter()
    for (goal, _), p in pmf.items():
        merged[goal] += p
    return merged


def p_value(draws: list[Any], pmf: Pmf) -> float:
    """Chi-square test of draws against a distribution; cells expecting fewer than 5 draws are pooled."""
    pmf = {cell: p for cell, p in pmf.items() if p > 1e-12}
    counts = Counter(draws)
    assert set(counts) <= set(pmf), f"impossible draws: {set(counts) - set(pmf)}"
    expected = {cell: p * len(draws) for cell, p in pmf.items()}
    big = [cell for cell in expected if expected[cell] >= 5]
    observed_cells = [counts[cell] for cell in big]
    expected_cells = [expected[cell] for cell in big]
    rest = len(draws) - sum(expected_cells)
    if rest >= 5:
        observed_cells.append(len(draws) - sum(observed_cells))
        expected_cells.append(rest)
    if len(expected_cells) == 1:
        return 1.0
    scale = sum(observed_cells) / sum(expected_cells)
    return float(scipy.stats.chisquare(observed_cells, np.array(expected_cells) * scale).pvalue)


DRAWS = 10_000


@functools.partial(jax.jit, static_argnames="horizon")
def relabel_over(key: jax.Array, dataset: Dataset, rows: jax.Array, kind: Goals, horizon: int) -> dict[str, jax.Array]:
    return kind._replace(horizon=horizon).relabel(key, dataset, rows)


def relabel(key: jax.Array, dataset: Dataset, rows: jax.Array, kind: Goals) -> dict[str, jax.Array]:
    return relabel_over(key, dataset, rows, kind, kind.horizon)


def sampled(kind: Goals, seed: int) -> tuple[list[int], dict[str, np.ndarray]]:
    """The rows of the standard layout that have a transition, and for each `DRAWS` relabellings [rows, draws]."""
    valid, _ = layout(LENGTHS)
    rows = jnp.repeat(jnp.array(valid, jnp.int32), DRAWS)
    fields = relabel(jax.random.key(seed), dataset_of(LENGTHS), rows, kind)
    return valid, {name: np.asarray(field).reshape(len(valid), DRAWS).astype(int) for name, field in fields.items()}


# --- distributions ---


@pytest.mark.parametrize(
    ("p_future", "p_random", "discount"),
    [(0.5, 0.3, 0.8), (1.0, 0.0, 0.8), (0.0, 1.0, 0.8), (0.0, 0.0, 0.8), (0.5, 0.5, 0.3), (0.5, 0.3, 1.0)],
)
def test_value_goals(p_future: float, p_random: float, discount: float) -> None:
    kind = kind_of(value=mix(p_future, p_random, geometric=True), discount=discount)
    valid, fields = sampled(kind, seed=1)
    _, ends = layout(LENGTHS)
    for row, draws in zip(valid, fields["value_goals"], strict=True):
        expected = goal_pmf(row, valid, ends[row], p_future, p_random, discount)
        assert p_value(draws.tolist(), marginal(expected)) > FALSE_ALARM / len(valid), row


@pytest.mark.parametrize(("p_future", "p_random"), [(1.0, 0.0), (0.5, 0.5), (0.3, 0.2)])
@pytest.mark.parametrize("steps", [1, 3, 50])
def test_actor_goals_and_high_targets(p_future: float, p_random: float, steps: int) -> None:
    valid, fields = sampled(kind_of(mix(p_future, p_random), subgoal_steps=steps), seed=2)
    _, ends = layout(LENGTHS)
    for i, row in enumerate(valid):
        goals = goal_pmf(row, valid, ends[row], p_future, p_random, None)
        assert p_value(fields["actor_goals"][i].tolist(), marginal(goals)) > FALSE_ALARM / len(valid), row
        pairs = list(zip(fields["high_actor_goals"][i].tolist(), fields["high_actor_targets"][i].tolist(), strict=True))
        assert p_value(pairs, target_pmf(row, ends[row], steps, goals)) > FALSE_ALARM / len(valid), row


def test_any_kind_of_goal_may_be_geometric() -> None:
    valid, fields = sampled(kind_of(mix(1.0, 0.0, geometric=True), mix(1.0, 0.0)), seed=3)
    _, ends = layout(LENGTHS)
    for i, row in enumerate(valid):
        for name, discount in {"value_goals": None, "actor_goals": 0.8, "high_actor_goals": 0.8}.items():
            assert p_value(fields[name][i].tolist(), future_pmf(row, ends[row], discount)) > FALSE_ALARM / len(valid)


def test_kinds_of_goals_are_drawn_independently() -> None:
    # Whether the value goal is the row itself or comes from elsewhere says nothing about the policies' goals.
    valid, fields = sampled(kind_of(mix(0.5, 0.5)), seed=4)
    middle = valid.index(8)
    names = ("value_goals", "actor_goals", "high_actor_goals")
    for one, other in ((0, 1), (0, 2), (1, 2)):
        table = np.zeros((2, 2))
        np.add.at(
            table, ((fields[names[one]][middle] > 8).astype(int), (fields[names[other]][middle] > 8).astype(int)), 1
        )
        assert scipy.stats.chi2_contingency(table).pvalue > FALSE_ALARM


def test_the_kind_of_goal_is_independent_of_the_draw_within_the_episode() -> None:
    # Were one uniform used for both, goals of the trajectory would come from a part of the future only; the tests above
    # would notice it in the marginals, this one in two draws of one call.
    drawn = draw(jax.random.key(5), dataset_of((40,)), jnp.zeros(DRAWS, jnp.int32), mix(0.5, 0.5), jnp.float32(0.8))
    random, future = (np.asarray(drawn.rows)[np.asarray(drawn.is_random) == flag] for flag in (True, False))
    assert abs(len(random) - DRAWS / 2) < 5 * np.sqrt(DRAWS / 4)
    assert set(random) == set(range(39))
    assert set(future) == set(range(1, 39))


def test_random_rows_are_uniform_over_rows_with_a_transition() -> None:
    valid, _ = layout(LENGTHS)
    draws = sample_rows(jax.random.key(6), dataset_of(LENGTHS), (100, 1000))
    assert draws.dtype == jnp.int32
    assert p_value(np.asarray(draws).ravel().tolist(), {row: 1 / len(valid) for row in valid}) > FALSE_ALARM


@pytest.mark.parametrize("discount", [0.995, 0.99, 0.5, 0.01])
def test_geometric_offsets_follow_the_geometric_distribution(discount: float) -> None:
    draws = np.asarray(geometric_offsets(jax.random.key(7), jnp.float32(discount), (200_000,)))
    law = scipy.stats.geom(1 - discount)
    assert draws.min() == 1
    # Cells of about equal probability; the discrete distribution has fewer cells where one value holds more.
    edges = np.unique(law.ppf(np.linspace(0, 1, 101)[1:-1]))
    probabilities = np.diff(np.concatenate([[0.0], law.cdf(edges), [1.0]]))
    counts = np.bincount(np.searchsorted(edges, draws), minlength=len(probabilities))
    big = probabilities * len(draws) >= 5
    assert (
        scipy.stats.chisquare(counts[big], probabilities[big] * counts[big].sum() / probabilities[big].sum()).pvalue
        > 1e-6
    )
    # Two further moments of the tail: the standard error of the mean is σ/√n.
    assert abs(draws.mean() - law.mean()) < 5 * law.std() / np.sqrt(len(draws)) + 1e-12


def test_geometric_offsets_at_the_extremes() -> None:
    key = jax.random.key(8)
    np.testing.assert_array_equal(geometric_offsets(key, jnp.float32(0), (10_000,)), 1)
    assert (np.asarray(geometric_offsets(key, jnp.float32(1), (10_000,))) > 1_000_000).all()
    # The closest float32 below 1, 1 − 2⁻²⁴, has a mean offset of 2²⁴.
    offsets = np.asarray(geometric_offsets(key, jnp.nextafter(jnp.float32(1), jnp.float32(0)), (10_000,)), np.float64)
    assert abs(offsets.mean() / 2**24 - 1) < 0.05
    assert offsets.min() >= 1


# --- structure of any layout ---

ROWS, BATCH = 24, 64


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, ...]:
    """Lengths of episodes that fill 24 rows, with at least one transition."""
    cuts = draw(st.sets(st.integers(1, ROWS - 1), max_size=ROWS - 2))
    return tuple(np.diff([0, *sorted(cuts), ROWS]).tolist())


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(layouts())
def test_transitions_and_ends(lengths: tuple[int, ...]) -> None:
    dataset, (valid, ends) = dataset_of(lengths), layout(lengths)
    assert np.asarray(dataset.transitions).tolist() == valid
    assert dataset.ends.shape == (ROWS,)
    assert {row: int(dataset.ends[row]) for row in valid} == ends
    assert (dataset.transitions.dtype, dataset.ends.dtype) == (jnp.int32, jnp.int32)
    assert set(dataset.fields) == {"observations", "actions"}
    batch = gather(dataset, dataset.transitions)
    np.testing.assert_array_equal(batch["observations"][:, 0], valid)
    np.testing.assert_array_equal(batch["actions"][:, 0], -np.array(valid))
    np.testing.assert_array_equal(batch["next_observations"][:, 0], np.array(valid) + 1)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(layouts(), st.integers(0, 2**31 - 1), st.integers(1, 40), st.sampled_from([(1.0, 0.0), (0.5, 0.5), (0.2, 0.3)]))
def test_goals_keep_to_their_episodes(
    lengths: tuple[int, ...], seed: int, steps: int, shares: tuple[float, float]
) -> None:
    p_future, p_random = shares
    dataset, (valid, ends) = dataset_of(lengths), layout(lengths)
    rows = np.random.default_rng(seed).choice(valid, BATCH)
    kind = kind_of(mix(*shares), mix(*shares, geometric=True), subgoal_steps=steps)
    fields = relabel(jax.random.key(seed), dataset, jnp.asarray(rows, jnp.int32), kind)
    assert set(fields) == {*GOALS, *SCALARS, *TIMES, AHEAD}
    assert {fields[name].dtype for name in SCALARS} == {jnp.dtype(jnp.float32)}
    assert {fields[name].shape for name in GOALS} == {(BATCH, 1)}
    np.testing.assert_allclose(fields["discounts"], 0.8 * fields["masks"])
    np.testing.assert_array_equal(fields["valid"], 1)
    numbers = {name: np.asarray(field).ravel() for name, field in fields.items()}
    for i, row in enumerate(rows):
        value, actor, high = (int(numbers[name][i]) for name in ("value_goals", "actor_goals", "high_actor_goals"))
        low, target = int(numbers["low_actor_goals"][i]), int(numbers["high_actor_targets"][i])
        # The reward is 0, and nothing follows, exactly where the goal is the row itself.
        assert (numbers["rewards"][i], numbers["masks"][i]) == ((0, 0) if value == row else (-1, 1))
        assert numbers[AHEAD][i] == row + (value != row)
        reached = row <= value <= ends[row]
        expected = (reached, (value if reached else ends[row]) - row)
        assert (bool(fields["value_reached"][i]), int(fields["value_steps"][i])) == expected
        assert low == min(row + steps, ends[row])
        for goal in (value, actor, high):
            assert goal in valid
            inside = row <= goal <= ends[row]
            assert inside or p_random > 0
            assert goal != row or row == ends[row] or p_random > 0 or p_future < 1
        within, beyond = min(row + steps, high), min(row + steps, ends[row])
        if not row <= high <= ends[row]:
            assert target == beyond
        elif p_random == 0:
            assert target == within
        else:
            assert target in (within, beyond)


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [2, 3, 50])
def test_values_over_a_horizon_stop_at_the_goal_and_at_the_end(horizon: int) -> None:
    valid, ends = layout(LENGTHS)
    rows, kind = np.repeat(valid, 50), kind_of()._replace(horizon=horizon)
    found = relabel(jax.random.key(3), dataset_of(LENGTHS), jnp.asarray(rows), kind)
    met = Counter()
    for i, row in enumerate(rows):
        # One step after another: the goal ends the return, the last stored row only the horizon.
        at, reward, power = row, 0.0, 1.0
        while at != found["value_goals"][i, 0] and at - row < horizon and at <= ends[row]:
            at, reward, power = at + 1, reward - power, power * 0.8
        at_goal = at == found["value_goals"][i, 0] and at - row < horizon
        assert (found[AHEAD][i, 0], found["masks"][i]) == (at, 1 - at_goal)
        np.testing.assert_allclose(found["rewards"][i], reward, rtol=1e-6)
        np.testing.assert_allclose(found["discounts"][i], 0 if at_goal else power, rtol=1e-6)
        met[bool(at_goal), at - row == horizon] += 1
    assert len(met) == 2 + (horizon < 9)  # the goal, the end and, where episodes are long enough, the horizon


@pytest.mark.slow
def test_a_batch_is_drawn_and_relabelled_by_its_key() -> None:
    dataset, kind, key = dataset_of(LENGTHS), kind_of(), jax.random.key(9)
    rows_key, goals_key = jax.random.split(key)
    rows, batch = sample_rows(rows_key, dataset, (5,)), kind.sample(key, dataset, 5)
    expected = {**gather(dataset, rows), **relabel(goals_key, dataset, rows, kind)}
    jax.tree.map(np.testing.assert_array_equal, batch, expected)
    flat = kind._replace(subgoal_steps=None).sample(key, dataset, 5)
    assert batch.keys() - flat.keys() == {"low_actor_goals", "high_actor_goals", "high_actor_targets"}
    for name, array in flat.items():
        np.testing.assert_array_equal(array, batch[name])


@pytest.mark.slow
def test_compact_goals_are_goals_and_states_are_subgoals() -> None:
    dataset = dataset_of(LENGTHS)
    compact = dataset.replace(fields={**dataset.fields, "oracle_reps": 100 + dataset.fields["observations"]})
    rows = jnp.array([1, 5, 6], jnp.int32)
    plain, found = (relabel(jax.random.key(9), one, rows, kind_of()) for one in (dataset, compact))
    for name in GOALS:
        np.testing.assert_array_equal(found[name], plain[name] + 100 * (name in ("value_goals", "actor_goals")))
    assert kind_of().lacking(compact.fields) == ["low_actor_goals", "high_actor_goals", "high_actor_targets"]
    assert kind_of()._replace(subgoal_steps=None).lacking(compact.fields) == []


def test_shares_of_goals_are_at_most_all() -> None:
    assert GoalMix(p_trajectory=0.5, p_random=0.5).problem("--agent.actor_goals.") == ""
    told = GoalMix(p_trajectory=0.8, p_random=0.3).problem("--agent.actor_goals.")
    assert "--agent.actor_goals.p_trajectory=0.8 and --agent.actor_goals.p_random=0.3" in told


def test_goals_differ_between_keys_and_rows() -> None:
    dataset, rows = dataset_of((1001,)), jnp.zeros(50, jnp.int32)
    one, other = (relabel(jax.random.key(seed), dataset, rows, kind_of()) for seed in (0, 1))
    for name in ("value_goals", "actor_goals", "high_actor_goals"):
        assert len(np.unique(one[name])) > 5
        assert not np.array_equal(one[name], other[name])
    assert not np.array_equal(one["actor_goals"], one["high_actor_goals"])


# --- more rows than float32 can number ---

FAR = 30_000_001


class Constant:
    """Stands for an array of any length that holds one value."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __getitem__(self, rows: jax.Array) -> jax.Array:
        return jnp.full_like(rows, self.value)


class Counting:
    """Stands for the array 0, 1, 2, ... of a given length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, rows: jax.Array) -> jax.Array:
        return rows


def far_dataset(end: int) -> Dataset:
    return Dataset(fields={}, transitions=Counting(2 * FAR), ends=Constant(end))  # type: ignore[arg-type]


@pytest.mark.parametrize("geometric", [True, False])
def test_rows_beyond_float32_stay_exact(geometric: bool) -> None:
    # Between 2²⁴ and 2²⁵ float32 holds even numbers only: odd rows would be lost.
    assert int(np.float32(FAR)) != FAR
    rows, end = jnp.full(DRAWS, FAR, jnp.int32), FAR + 6
    goals = trajectory_rows(jax.random.key(10), far_dataset(end), rows, geometric=geometric, discount=jnp.float32(0.8))
    assert goals.dtype == jnp.int32
    expected = {FAR + k: p for k, p in future_pmf(0, 6, 0.8 if geometric else None).items()}
    assert p_value(np.asarray(goals).tolist(), expected) > FALSE_ALARM


def test_the_last_row_beyond_float32_is_its_own_goal() -> None:
    rows = jnp.full(100, FAR, jnp.int32)
    for geometric in (True, False):
        goals = trajectory_rows(
            jax.random.key(11), far_dataset(FAR), rows, geometric=geometric, discount=jnp.float32(0.99)
        )
        np.testing.assert_array_equal(goals, FAR)


def test_random_rows_beyond_float32_are_odd_and_even() -> None:
    draws = np.asarray(sample_rows(jax.random.key(12), far_dataset(0), (DRAWS,)))
    assert draws.max() < 2 * FAR
    far = draws[draws > 2**25]
    assert len(far) > DRAWS / 3
    assert abs((far % 2).mean() - 0.5) < 5 * 0.5 / np.sqrt(len(far))


FAULTS = {
    "flowrl/data/dataset.py": [
        ("(last_rows - 1).astype", "last_rows.astype", "test_transitions_and_ends"),
        ("(last_rows, prepend=-1)", "(last_rows, prepend=0)", "test_transitions_and_ends"),
        ("np.flatnonzero(~terminals)", "np.arange(len(terminals))", "test_transitions_and_ends"),
        ("[name][rows + 1] for name", "[name][rows] for name", "test_transitions_and_ends"),
        (
            "0, len(dataset.transitions))",
            "0, len(dataset.transitions) - 1)",
            "test_random_rows_are_uniform_over_rows_with_a_transition",
        ),
    ],
    "flowrl/data/goals.py": [
        ("jnp.ceil(jnp.log1p", "jnp.floor(jnp.log1p", "test_geometric_offsets_follow_the_geometric_distribution"),
        (
            "jnp.minimum(jnp.log(jnp.asarray(discount)), -1e-15)",
            "jnp.log(jnp.asarray(discount))",
            "test_geometric_offsets_at_the_extremes",
        ),
        ("jnp.minimum(rows + 1, ends)", "rows", "test_actor_goals_and_high_targets"),
        (
            "return ends - jnp.round(jax.random.uniform(key, rows.shape) * spans).astype(jnp.int32)",
            "return jnp.round(ends - jax.random.uniform(key, rows.shape) * spans).astype(jnp.int32)",
            (
                "test_random_rows_beyond_float32_are_odd_and_even or test_rows_beyond_float32_stay_exact "
                "or test_the_last_row_beyond_float32_is_its_own_goal"
            ),
        ),
        (
            "jnp.minimum(rows + geometric_offsets(key, discount, rows.shape), ends)",
            "rows + geometric_offsets(key, discount, rows.shape)",
            "test_value_goals or test_goals_keep_to_their_episodes",
        ),
        ("jnp.round(jax.random.uniform", "jnp.floor(jax.random.uniform", "test_actor_goals_and_high_targets"),
        ("uniform < mix.p_random + mix.p_trajectory", "uniform < mix.p_trajectory", "test_value_goals"),
        (
            "kind_key, trajectory_key, random_key = jax.random.split(key, 3)",
            "kind_key = trajectory_key = random_key = key",
            "test_value_goals or test_any_kind_of_goal_may_be_geometric",
        ),
    ],
    "flowrl/data/samplers.py": [
        ("(value >= rows) & (value <= ends)", "value >= rows", "test_goals_keep_to_their_episodes"),
        (
            "jnp.where(reached, value, ends) - rows",
            "jnp.where(reached, value, ends)",
            "test_goals_keep_to_their_episodes",
        ),
        (
            "reached & (value < rows + steps)",
            "value < rows + steps",
            "test_goals_keep_to_their_episodes or test_values_over_a_horizon_stop_at_the_goal_and_at_the_end",
        ),
        (
            "reached & (value < rows + steps)",
            "reached & (value <= rows + steps)",
            "test_goals_keep_to_their_episodes or test_values_over_a_horizon_stop_at_the_goal_and_at_the_end",
        ),
        (
            "jnp.minimum(self.horizon, ends + 1 - rows)",
            "jnp.minimum(self.horizon, ends - rows)",
            "test_goals_keep_to_their_episodes or test_values_over_a_horizon_stop_at_the_goal_and_at_the_end",
        ),
        (
            "jnp.where(at_goal, value - rows, steps)",
            "steps",
            "test_goals_keep_to_their_episodes or test_values_over_a_horizon_stop_at_the_goal_and_at_the_end",
        ),
        ("-jnp.sum(powers[:-1]", "-jnp.sum(powers[1:]", "test_goals_keep_to_their_episodes"),
        ("-jnp.sum(powers[:-1]", "jnp.sum(powers[:-1]", "test_goals_keep_to_their_episodes"),
        (
            '"value_next_observations": states[rows + steps]',
            '"value_next_observations": states[rows + 1]',
            "test_goals_keep_to_their_episodes or test_values_over_a_horizon_stop_at_the_goal_and_at_the_end",
        ),
        ("jnp.where(high.is_random, ends, high.rows)", "ends", "test_actor_goals_and_high_targets"),
        ("jnp.where(high.is_random, ends, high.rows)", "high.rows", "test_actor_goals_and_high_targets"),
        ("states[jnp.minimum(ahead, ends)]", "states[ahead]", "test_goals_keep_to_their_episodes"),
        (
            '"discounts": powers[steps] * masks',
            '"discounts": powers[steps]',
            "test_goals_keep_to_their_episodes",
        ),
    ],
}
