"""Training in two stages: values and policies together, then policies alone, anew, on values that stay."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goal_references import NAMES, config_of
from small_agents import GOAL_SPEC, state_with
from small_agents import config_of as small
from small_agents import goal_transitions as batch_of
from ways import Way, array, each_way

from flowrl import agents
from flowrl.config import config, traced
from flowrl.networks import Network, vector
from flowrl.optim import ADAM, anew_at, descend, descend_until, stage
from flowrl.train_state import Loss, Params, TrainState


@config
class Settings:
    rate: float = traced(0.1, "Something that losses may read.")


PARTS = ("value", "goal_rep", "actor")
"""Networks, of which two are values; a policy's losses have a slope of 5 in all."""


def sloped(name: str, slope: float) -> Callable[..., Loss]:
    """A loss with this slope by all networks, which tells its key."""

    def loss(nets: Any, params: Params, state: TrainState, batch: Any, key: jax.Array) -> Loss:
        return slope * sum(params[network].sum() for network in PARTS), {name: 1 + jax.random.uniform(key)}

    return loss


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("at", [0, 1, 2, 9])
def test_values_stay_after_their_updates_and_policies_go_on(at: int, mapped: bool) -> None:
    losses, key = ((sloped("values", 2.0),), (sloped("one", 4.0), sloped("two", 1.0))), jax.random.key(3)
    state = state_with(Settings(), {name: jnp.full(2, 3.0) for name in PARTS}, {}).replace(step=jnp.int32(at))
    axes = jax.tree.map(lambda _: 0, state).replace(step=None)  # the step counter is shared by mapped runs

    def update(state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
        return descend_until(2, None, state, {}, key, losses, dict.fromkeys(PARTS, 0.1), ("actor",))

    if mapped:
        several = jax.tree.map(lambda x: jnp.stack([x, x]), state).replace(step=state.step)
        update = jax.vmap(update, in_axes=(axes,), out_axes=(axes, 0))
        after, metrics = jax.tree.map(lambda x: x[1] if x.ndim else x, jax.jit(update)(several))
    else:
        after, metrics = update(state)
    for name in PARTS:  # Adam's first mean is a tenth of the slope, 2 + 4 + 1 or 4 + 1
        trained = at < 2 or name == "actor"
        np.testing.assert_allclose(after.opt_state[name].mu, (0.7 if at < 2 else 0.5) * trained, rtol=1e-6)
        np.testing.assert_allclose(after.params[name], 2.9 if trained else 3, rtol=1e-5)
    drawn = 1 + jax.vmap(jax.random.uniform)(jax.random.split(key, 3))
    expected = drawn * jnp.array([at < 2, 1, 1])
    np.testing.assert_allclose([metrics[name] for name in ("values", "one", "two")], expected, rtol=1e-6)


@each_way
@pytest.mark.parametrize(
    ("steps", "expected"), [(0, [(1, 0), (1, 2), (1, 3), (1, 7)]), (3, [(1, 0), (1, 2), (0, 0), (0, 4)])]
)
def test_a_stage_ends_where_values_come_to_stay(way: Way, steps: int, expected: list[tuple[int, int]]) -> None:
    for step, (learn, done) in zip((0, 2, 3, 7), expected, strict=True):
        found = way(lambda step: stage(steps, step))(jnp.int32(step))
        assert (float(found[0]), int(found[1])) == (learn, done)


class Nets(NamedTuple):
    """Networks, of which the policy alone may begin anew."""

    actor: Network = Network("actor", nn.Dense(2), (vector(1, 4),))


@each_way
@pytest.mark.parametrize(("at", "steps"), [(1, 2), (2, 2), (3, 2), (0, 0)])
def test_policies_begin_anew_once_where_values_come_to_stay(way: Way, at: int, steps: int) -> None:
    before = Nets().actor.init(jax.random.key(0))
    params = {"value": {"x": array(1, 2)}, "actor": before}
    state = state_with(Settings(), params, params).replace(step=jnp.int32(at))
    used = ADAM.update(before, state.opt_state["actor"])[1]
    state = state.replace(opt_state={"value": used, "actor": used})
    begin = way(lambda data: anew_at(steps, Nets(), state, jax.random.wrap_key_data(data), ("actor",)))
    after = begin(jax.random.key_data(jax.random.key(5)))
    anew = at == steps > 0
    (own,) = jax.random.split(jax.random.fold_in(jax.random.key(5), steps), 1)
    expected = Nets().actor.init(own) if anew else before
    same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    same(after.params, {"value": params["value"], "actor": expected})
    same(after.target_params, after.params)
    same(after.opt_state, {"value": used, "actor": ADAM.init(expected) if anew else used})
    assert (int(after.step), int(after.opt_state["actor"].count)) == (at, not anew)


def test_values_and_policies_learn_together_where_values_never_stay() -> None:
    losses, rates = ((sloped("values", 2.0),), (sloped("one", 4.0),)), dict.fromkeys(PARTS, 0.1)
    state = state_with(Settings(), {name: jnp.full(2, 3.0) for name in PARTS}, {})
    found = descend_until(0, None, state, {}, jax.random.key(3), losses, rates, ("actor",))
    expected = descend(None, state, {}, jax.random.key(3), (*losses[0], *losses[1]), rates)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    np.testing.assert_allclose(found[0].opt_state["value"].mu, 0.6, rtol=1e-6)


# --- agents ---


@pytest.mark.parametrize("name", ["gcivl", "hiql", "gc_sscp", "lavl"])
def test_values_may_stay_while_policies_begin_anew(name: str) -> None:
    # Goal representations are part of the values, also where policies train them before. That of GC-SSCP goes on with
    # its policy, and values keep a copy.
    config = config_of(name, {"value.steps": 1}) if name in NAMES else small("lavl", {"value.steps": 1})
    agent, read = agents.build(name, config, GOAL_SPEC), {"goal_rep"} if name == "gc_sscp" else set[str]()
    states, values = [jax.jit(agent.init)(jax.random.key(0), config)], {"value", "goal_rep"} - read
    batch = jax.tree.map(jnp.asarray, batch_of() | {"more_goals": batch_of()["value_goals"]})
    moved = list[dict[str, float]]()
    for step in range(3):
        state, metrics = jax.jit(agent.update)(states[-1], batch, jax.random.key(step))
        moved.append({network: furthest(state.params[network], states[-1].params[network]) for network in state.params})
        assert (float(metrics["value/loss"]) > 0) == (step == 0)
        counts = {network: int(adam.count) for network, adam in state.opt_state.items()}
        anew = dict.fromkeys(state.params, max(1, step))
        assert counts == anew | dict.fromkeys(values & set(counts), 1) | dict.fromkeys(read, step + 1)
        states.append(state)
    assert [{network for network, by in one.items() if by > 0} for one in moved] == [
        set(state.params), set(state.params) - values, set(state.params) - values
    ]  # fmt: skip
    rate = 1.01 * float(state.config.learning_rate)  # Adam's steps are no longer, at first
    for policy in set(state.params) - values - read:
        assert moved[1][policy] > 10 * rate >= 10 * moved[2][policy] > 0
        if policy in state.target_params:  # the slow copy begins where its policy does
            assert 0 < furthest(states[2].target_params[policy], states[2].params[policy]) <= rate
    for network in read:
        copies = [state.target_params[network] for state in states]
        assert [furthest(copy, states[1].params[network]) == 0 for copy in copies] == [False, True, True, True]


@pytest.mark.parametrize(("step", "done"), [(0, 0), (2, 2), (4, 0), (9, 5), (14, 10)])
def test_gc_sscps_step_size_falls_in_each_stage(step: int, done: int) -> None:
    # Adam's first step is as long as the rate, of which (1 + cos(π/10 · done)) / 2 is left.
    config = config_of("gc_sscp", {"value.steps": 4, "decay.steps": 10})
    agent = agents.build("gc_sscp", config, GOAL_SPEC)
    state = jax.jit(agent.init)(jax.random.key(0), config).replace(step=jnp.int32(step))
    after, _ = jax.jit(agent.update)(state, batch_of(), jax.random.key(1))
    expected = {0: 1.0, 2: 0.9045085, 5: 0.5, 10: 0.0}[done] * float(config.learning_rate)
    longest = furthest(after.params["goal_rep"], state.params["goal_rep"])
    np.testing.assert_allclose(longest, expected, rtol=2e-3, atol=1e-6)


def furthest(one: Params, other: Params) -> float:
    """The largest difference between parameters."""
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), one, other)))


FAULTS = {
    "flowrl/optim.py": [
        (
            "{name: rates[name] for name in policies}",
            "rates",
            "test_values_stay_after_their_updates_and_policies_go_on",
        ),
        (
            "jnp.logical_or(steps == 0, step < steps)",
            "jnp.logical_or(steps == 0, step <= steps)",
            "test_a_stage_ends_where_values_come_to_stay",
        ),
        ("jnp.where(learn, step, step - steps)", "step", "test_a_stage_ends_where_values_come_to_stay"),
        (
            "state.step == steps, anew",
            "state.step >= steps, anew",
            "test_policies_begin_anew_once_where_values_come_to_stay",
        ),
        ("fold_in(key, steps)", "fold_in(key, 0)", "test_policies_begin_anew_once_where_values_come_to_stay"),
        (
            "**state.target_params, **slow",
            "**state.target_params",
            "test_policies_begin_anew_once_where_values_come_to_stay",
        ),
        (
            "ADAM.init(params) for name, params in fresh.items()",
            "state.opt_state[name] for name in fresh",
            "test_policies_begin_anew_once_where_values_come_to_stay",
        ),
        ("state.step < steps", "state.step <= steps", "test_values_stay_after_their_updates_and_policies_go_on"),
        ("keys[values:], losses", "keys[:-values], losses", "test_values_stay_after_their_updates_and_policies_go_on"),
    ],
    "agents/hiql.py": [
        ("anew_at(state.config.value.steps,", "anew_at(0,", "test_values_may_stay_while_policies_begin_anew and hiql"),
        (
            "descend_until(config.value.steps,",
            "descend_until(0,",
            "test_values_may_stay_while_policies_begin_anew and hiql",
        ),
    ],
    "agents/gcivl.py": [
        ("anew_at(state.config.value.steps,", "anew_at(0,", "test_values_may_stay_while_policies_begin_anew and gcivl"),
        (
            "descend_until(config.value.steps,",
            "descend_until(0,",
            "test_values_may_stay_while_policies_begin_anew and gcivl",
        ),
    ],
    "agents/lavl.py": [
        ("anew_at(config.value.steps,", "anew_at(0,", "test_values_may_stay_while_policies_begin_anew and lavl"),
        (
            "descend_until(config.value.steps,",
            "descend_until(0,",
            "test_values_may_stay_while_policies_begin_anew and lavl",
        ),
    ],
    "agents/gc_sscp.py": [
        (
            "goal_rep=values_learn)",
            "goal_rep=1.0)",
            "test_values_may_stay_while_policies_begin_anew and gc_sscp",
        ),
        (
            'nets, state, batch, key, losses, rates, ("goal_rep", "actor"))',
            'nets, state, batch, key, losses, rates, ("actor",))',
            "test_values_may_stay_while_policies_begin_anew and gc_sscp",
        ),
        (
            "config.decay(config.learning_rate, done)",
            "config.learning_rate",
            "test_gc_sscps_step_size_falls_in_each_stage",
        ),
        (
            "anew_at(steps,",
            "anew_at(0,",
            "test_values_may_stay_while_policies_begin_anew and gc_sscp",
        ),
        (
            "descend_until(steps,",
            "descend_until(0,",
            "test_values_may_stay_while_policies_begin_anew and gc_sscp",
        ),
    ],
}
