"""HSVL: hazards, values and likelihoods by hand, what a step moves, and what it learns on a line of cells."""

import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lines import CELLS, GAMMA, cell_pairs, line, steps_toward, trained
from small_agents import A, D, compiled, config_of, goal_transitions, state_with
from ways import Way, array, each_way

from flowrl import agents
from flowrl.agents import hsvl
from flowrl.encoders import Hazards
from flowrl.experiment import presets
from flowrl.networks import PreNormMLP, Spec

KEY = jax.random.key(0)
BINS = hsvl.edges(4, 2)
HAZARDS = jnp.array([1 / 2, 1 / 2, 1 / 4, 2 / 3])  # of time 0, and of the bins 0-1, 1-2 and 2-4
LOGITS = jnp.log(HAZARDS / (1 - HAZARDS))


def test_edges_of_bins() -> None:
    assert list(BINS) == [0, 1, 2, 4]
    assert list(hsvl.edges(8, 3)) == [0, 1, 2, 4, 8]
    assert list(hsvl.edges(8, 8)) == list(hsvl.edges(8, 99)) == list(range(9))
    usual = hsvl.edges(10_000, 800)
    assert (len(usual), usual[0], usual[-1]) == (500, 0, 10_000)  # 800 but for those between the first few steps
    assert (np.diff(usual) > 0).all()


@each_way
def test_the_value_by_hand(way: Way) -> None:
    # S = 1/2, 1/4, 3/16 at the bins' beginnings, 1/16 at the end; γ = 1/2 makes them count 1, 1/2, 3/8 and 1/8.
    value = way(lambda logits: hsvl.values(logits, BINS, 0.5))(jnp.stack([LOGITS, LOGITS]))
    np.testing.assert_allclose(value, [-0.703125] * 2, rtol=1e-6)


@each_way
def test_likelihoods_by_hand(way: Way) -> None:
    # Reached at 0, 1 and 3; not until 1, not until 3, whose bin counts as survived; reached too late to tell.
    steps = jnp.array([0, 1, 3, 1, 3, 9])
    reached = jnp.array([True, True, True, False, False, True])
    logits = jnp.broadcast_to(LOGITS, (2, 6, 4))
    found = way(lambda *x: hsvl.log_likelihood(x[0], BINS, x[1], x[2]))(logits, steps, reached)
    expected = [1 / 2, 1 / 2 * 1 / 2 * 1 / 4, 1 / 2 * 1 / 2 * 3 / 4 * 2 / 3, 1 / 4, 1 / 16, 1 / 16]
    np.testing.assert_allclose(jnp.exp(found), [expected] * 2, rtol=1e-5)


NETS: Any = SimpleNamespace(
    goal_rep=lambda params, s, g: g,  # the heads' logits are those above, the second's ones higher
    value=lambda params, s, x: jnp.stack([LOGITS + 0 * x, LOGITS + params * x]),
)
CONFIG = config_of("hsvl", {"longest": 4, "num_bins": 2, "discount": 0.5})


@each_way
def test_the_loss_is_the_sum_of_both_heads_means(way: Way) -> None:
    batch = {
        "observations": jnp.zeros((2, 1)), "value_goals": jnp.zeros((2, 1)), "value_steps": jnp.array([0, 3]),
        "value_reached": jnp.array([True, False]),
    }  # fmt: skip
    state = state_with(CONFIG, {"value": array(0.0)}, {}, {})
    loss = way(lambda batch: hsvl.value_loss(NETS, jnp.float32(0), state, batch, KEY)[0])(batch)
    np.testing.assert_allclose(loss, np.log(2) + np.log(16), rtol=1e-5)


@pytest.mark.parametrize("aggregate", ["min", "mean"])
def test_advantages_are_of_the_lower_value_or_of_the_mean(aggregate: str) -> None:
    config = config_of("hsvl", {"longest": 4, "num_bins": 2, "discount": 0.5, "aggregate": aggregate})
    g = jnp.ones((1, 1))
    found = hsvl.v(config, NETS, jnp.float32(-1), g, g)  # type: ignore[arg-type]
    both = hsvl.values(jnp.stack([LOGITS, LOGITS - 1]), BINS, 0.5)  # lower hazards, a lower value
    assert found.shape == (1, 1)
    np.testing.assert_allclose(found[0, 0], both[1] if aggregate == "min" else both.mean(), rtol=1e-6)


TOLD = {
    "hidden_dims": (16, 16), "rep_dim": 4, "bases": 3, "basis_dim": 5, "longest": 20, "num_bins": 9,
    "learning_rate": 1e-2,
}  # fmt: skip


def drawn_batch() -> dict[str, jax.Array]:
    batch = dict(goal_transitions())
    rows = len(batch["rewards"])
    return batch | {"value_steps": jnp.arange(rows) * 5, "value_reached": jnp.arange(rows) % 2 == 0}


@pytest.mark.slow
@pytest.mark.parametrize("trains", [True, False])
def test_what_a_policy_trains(trains: bool) -> None:
    config, batch = config_of("hsvl", {**TOLD, "low_actor_rep_grad": trains}), drawn_batch()
    agent = agents.build("hsvl", config, Spec.of_sizes(D, A, D))
    state = agent.init(KEY, config)
    step = compiled(agent)
    one, _ = step(state, batch, KEY)
    two, _ = step(state, batch | {"actions": -batch["actions"]}, KEY)
    same = {name: jax.tree.all(jax.tree.map(jnp.array_equal, x, two.params[name])) for name, x in one.params.items()}
    assert same == {"goal_rep": not trains, "value": True, "low_actor": False, "high_actor": True}
    assert not one.target_params


@pytest.mark.slow
def test_blocks_stand_behind_their_norm() -> None:
    s, g = jnp.ones((3, 4)), jnp.arange(12.0).reshape(3, 4)
    for parts, first in (((s, g), []), ((s, g[:, :2]), ["Dense_1"])):
        module = PreNormMLP((8, 6, 8), 5)
        params = module.init(KEY, *parts)["params"]
        assert len([name for name in params if name.startswith("Dense")]) == 1 + len(first)
        # Blocks that end in zero leave what enters them, so what follows is one layer behind LayerNorm.
        for i in range(2):
            last = params[f"MLP_{i}"]["Dense_1"]
            last["kernel"] = jnp.zeros_like(last["kernel"])
        x = jnp.concatenate(parts, -1)
        if first:
            x = x @ params["Dense_0"]["kernel"]
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
        found = module.apply({"params": params}, *parts)
        np.testing.assert_allclose(found, x @ params["Dense_1" if first else "Dense_0"]["kernel"], atol=1e-5)


@pytest.mark.slow
def test_hazards_mix_their_bases() -> None:
    module, s = Hazards((8,), bins=6, bases=3, basis_dim=4), jax.random.normal(KEY, (5, 2))
    params = module.init(KEY, s)["params"]
    params["bias"] = jnp.arange(6.0)
    last, hidden = params["MLP_0"]["Dense_0"], s @ params["MLP_0"]["SplitDense_0"]["kernel"]
    hidden = jax.nn.gelu(hidden)
    hidden = (hidden - hidden.mean(-1, keepdims=True)) / jnp.sqrt(hidden.var(-1, keepdims=True) + 1e-6)
    heads = hidden @ last["kernel"]
    for row, found in zip(heads, module.apply({"params": params}, s), strict=True):
        shares = np.exp(row[1:4]) / np.exp(row[1:4]).sum()
        later = sum(share * (basis @ row[4:]) for share, basis in zip(shares, params["bases"], strict=True))
        np.testing.assert_allclose(found, [row[0], *(later + np.arange(6))], atol=1e-4)


# ------------------------------------------------------------------------------------------------- a line of cells


TRAJECTORY = 0.75
"""Share of goals from the walk itself."""


@functools.cache
def on_a_line() -> Any:
    told = {
        "hidden_dims": (32, 32), "rep_dim": 8, "learning_rate": 3e-3, "discount": GAMMA, "subgoal_steps": 2,
        "bases": 4, "basis_dim": 16, "longest": 8, "num_bins": 8,
        "value_goals.p_trajectory": TRAJECTORY, "value_goals.p_random": 1 - TRAJECTORY,
    }  # fmt: skip
    return trained("hsvl", told, line())


def counted() -> tuple[np.ndarray, np.ndarray]:
    """The most likely survival for each pair of cells, by the weights with which rows and goals are drawn.

    And how much weight there is to tell it; beyond the ends of walks there is none. Each `[pairs, 9]`.
    """
    dataset = line()
    cells, ends = np.asarray(dataset.fields["observations"]).argmax(-1), np.asarray(dataset.ends)
    starts = [row for row in range(len(cells)) if row <= ends[row]]
    survival, known = [], []
    for pair in zip(*cell_pairs(), strict=True):
        reached, survived = np.zeros(9), np.zeros(9)  # at time 0, and in the bins 0-1, ..., 7-8
        for row in starts:
            drawn = dict.fromkeys(starts, (1 - TRAJECTORY) / len(starts))
            for steps in range(1, 200):
                drawn[min(row + steps, int(ends[row]))] += TRAJECTORY * (1 - GAMMA) * GAMMA ** (steps - 1)
            for goal, weight in drawn.items():
                if (cells[row], cells[goal]) != pair:
                    continue
                ahead = row <= goal <= ends[row]
                reached[goal - row + (goal > row) if ahead else 0] += weight * ahead
                survived[: goal - row + (goal > row) if ahead else ends[row] - row + 1] += weight
        survival.append(np.cumprod(survived / np.maximum(reached + survived, 1e-9)))
        known.append(reached + survived)
    return np.stack(survival), np.stack(known)


@pytest.mark.slow
def test_survival_on_a_line_is_the_most_likely_one() -> None:
    agent, state = on_a_line()
    (s, g), eye, (expected, known) = cell_pairs(), jnp.eye(CELLS), counted()
    logits = hsvl.represented_value(agent.act.args[-1], state.params, eye[s], eye[g])
    for found in jnp.exp(hsvl.log_survival(logits)):
        errors = np.abs(found - expected)[known > 0.02]
        assert errors.max() < 0.25
        assert errors.mean() < 0.03


@pytest.mark.slow
def test_the_value_on_a_line_is_that_of_the_most_likely_survival() -> None:
    """In the bins that the data tell about, of γ^t for each step t of theirs; all lie between −1.9 and −4."""
    agent, state = on_a_line()
    (s, g), eye, (expected, known) = cell_pairs(), jnp.eye(CELLS), counted()
    logits = hsvl.represented_value(agent.act.args[-1], state.params, eye[s], eye[g])
    untold = jnp.where(known > 0.02, logits, np.inf)  # of which nothing survives
    told = np.minimum.accumulate(np.where(known > 0.02, expected, 0), axis=1)
    steps = np.append(GAMMA ** np.arange(8), GAMMA**8 / (1 - GAMMA))
    for found in hsvl.values(untold, hsvl.edges(8, 8), GAMMA):
        np.testing.assert_allclose(found, -(told * steps).sum(axis=1), atol=0.2)


@pytest.mark.slow
def test_nearer_goals_are_worth_more() -> None:
    agent, state = on_a_line()
    (s, g), eye = cell_pairs(), jnp.eye(CELLS)
    found = hsvl.v(state.config, agent.act.args[-1], state.params, eye[s], eye[g])[0]
    assert np.corrcoef(found, -np.abs(s - g))[0, 1] > 0.9


@pytest.mark.slow
def test_policies_on_a_line_go_toward_the_goal() -> None:
    np.testing.assert_allclose(steps_toward(*on_a_line()), 0.8, atol=0.3)


def test_published_settings() -> None:
    assert presets.datasets("hsvl") == {
        "antmaze-large-navigate", "humanoidmaze-large-navigate", "humanoidmaze-giant-navigate"
    }  # fmt: skip
    giant = presets.lookup("paper", "hsvl", "humanoidmaze-giant-navigate").agent
    assert giant == {"discount": "0.999", "subgoal_steps": "100", "num_bins": "500"}


FAULTS = {
    "agents/hsvl.py": [
        ("np.unique([0, *np.round", "np.unique([*np.round", "test_edges_of_bins"),
        ("if num_bins < longest", "if num_bins <= longest", "test_edges_of_bins"),
        ("log_sigmoid(-logits)", "log_sigmoid(logits)", "test_the_value_by_hand and jit"),
        (
            "later[:-1] - later[1:], later[-1]",
            "later[:-1] - later[1:], 0 * later[-1]",
            "test_the_value_by_hand and jit",
        ),
        ("return -jnp.exp(", "return jnp.exp(", "test_the_value_by_hand and jit"),
        ("reached & (steps <= bins[-1])", "reached", "test_likelihoods_by_hand and jit"),
        ("jnp.where(steps == 0, 0, ", "jnp.where(steps == 0, 1, ", "test_likelihoods_by_hand and jit"),
        ('side="right"', 'side="left"', "test_likelihoods_by_hand and jit"),
        ('side="left"', 'side="right"', "test_likelihoods_by_hand and jit"),
        ("survived + event * logit", "survived + logit", "test_likelihoods_by_hand and jit"),
        (".mean(axis=-1).sum()", ".mean()", "test_the_loss_is_the_sum_of_both_heads_means and jit"),
        ("both.min(axis=0)", "both.max(axis=0)", "test_advantages_are_of_the_lower_value_or_of_the_mean"),
        ("(value_loss, *both)", "(value_loss, both[1])", "test_what_a_policy_trains"),
    ],
    "flowrl/networks.py": [
        ("x = x + MLP(self.hidden_dims[:-1]", "x = MLP(self.hidden_dims[:-1]", "test_blocks_stand_behind_their_norm"),
        ("(self.final_scale))(nn.LayerNorm()(x))", "(self.final_scale))(x)", "test_blocks_stand_behind_their_norm"),
    ],
    "flowrl/encoders.py": [
        ("jax.nn.softmax(chosen)", "chosen", "test_hazards_mix_their_bases"),
        ("later + bias", "later", "test_hazards_mix_their_bases"),
    ],
}
