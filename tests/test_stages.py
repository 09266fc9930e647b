"""Training in two stages: values alone, then policies alone on values that stay."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goal_references import NAMES, config_of
from small_agents import GOAL_SPEC, state_with
from small_agents import config_of as small
from small_agents import goal_transitions as batch_of
from ways import Way, each_way

from flowrl import agents
from flowrl.config import check, config, notes, traced
from flowrl.errors import UserError
from flowrl.optim import Stage, descend, in_stages, stage
from flowrl.train_state import Loss, Params, TrainState


@config
class Settings:
    rate: float = traced(0.1, "Something that losses may read.")


PARTS = ("value", "goal_rep", "actor")
"""Networks, of which two are values, and one of these the policy's too."""


def stages() -> tuple[Stage, Stage]:
    """Losses of values with a slope of 2, those of policies with 5 in all."""
    policies = Stage([sloped("one", 4.0), sloped("two", 1.0)], ("goal_rep", "actor"))
    return Stage([sloped("values", 2.0)], ("value", "goal_rep")), policies


def sloped(name: str, slope: float) -> Callable[..., Loss]:
    """A loss with this slope by all networks, which tells its key."""

    def loss(nets: Any, params: Params, state: TrainState, batch: Any, key: jax.Array) -> Loss:
        return slope * sum(params[network].sum() for network in PARTS), {name: 1 + jax.random.uniform(key)}

    return loss


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("at", [0, 1, 2, 9])
def test_values_learn_alone_and_then_policies_do(at: int, mapped: bool) -> None:
    key = jax.random.key(3)
    state = state_with(Settings(), {name: jnp.full(2, 3.0) for name in PARTS}, {}).replace(step=jnp.int32(at))
    axes = jax.tree.map(lambda _: 0, state).replace(step=None)  # the step counter is shared by mapped runs

    def update(state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
        return in_stages(2, None, state, {}, key, stages(), dict.fromkeys(PARTS, 0.1))

    if mapped:
        several = jax.tree.map(lambda x: jnp.stack([x, x]), state).replace(step=state.step)
        update = jax.vmap(update, in_axes=(axes,), out_axes=(axes, 0))
        after, metrics = jax.tree.map(lambda x: x[1] if x.ndim else x, jax.jit(update)(several))
    else:
        after, metrics = update(state)
    for name in PARTS:  # Adam's first mean is a tenth of the slope, 2 or 4 + 1
        trained = name in (("value", "goal_rep") if at < 2 else ("goal_rep", "actor"))
        np.testing.assert_allclose(after.opt_state[name].mu, (0.2 if at < 2 else 0.5) * trained, rtol=1e-6)
        np.testing.assert_allclose(after.params[name], 2.9 if trained else 3, rtol=1e-5)
        assert int(after.opt_state[name].count) == trained
    drawn = 1 + jax.vmap(jax.random.uniform)(jax.random.split(key, 3))
    expected = drawn * jnp.array([at < 2, at >= 2, at >= 2])
    np.testing.assert_allclose([metrics[name] for name in ("values", "one", "two")], expected, rtol=1e-6)


@each_way
@pytest.mark.parametrize(
    ("steps", "expected"), [(0, [(1, 0), (1, 2), (1, 3), (1, 7)]), (3, [(1, 0), (1, 2), (0, 0), (0, 4)])]
)
def test_a_stage_ends_where_values_come_to_stay(way: Way, steps: int, expected: list[tuple[int, int]]) -> None:
    for step, (learn, done) in zip((0, 2, 3, 7), expected, strict=True):
        found = way(lambda step: stage(steps, step))(jnp.int32(step))
        assert (float(found[0]), int(found[1])) == (learn, done)


def test_values_and_policies_learn_together_without_stages() -> None:
    rates = dict.fromkeys(PARTS, 0.1)
    state = state_with(Settings(), {name: jnp.full(2, 3.0) for name in PARTS}, {})
    found = in_stages(0, None, state, {}, jax.random.key(3), stages(), rates)
    losses = [loss for stage in stages() for loss in stage.losses]
    jax.tree.map(np.testing.assert_array_equal, found, descend(None, state, {}, jax.random.key(3), losses, rates))
    for name in PARTS:
        np.testing.assert_allclose(found[0].opt_state[name].mu, 0.7, rtol=1e-6)


# --- agents ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gcivl", "hiql", "gc_sscp", "lavl"])
def test_policies_begin_where_values_come_to_stay(name: str) -> None:
    # That of GC-SSCP trains the goal representation that it reads further, and values keep a copy.
    apart = {"value.steps": 2, "low_actor_rep_grad": False, "high_actor_rep_grad": False}
    config = config_of(name, {"value.steps": 2}) if name in NAMES else small("lavl", apart)
    agent, read = agents.build(name, config, GOAL_SPEC), {"goal_rep"} if name == "gc_sscp" else set[str]()
    states = [jax.jit(agent.init)(jax.random.key(0), config)]
    values = {"value", "goal_rep"} & set(states[0].params)
    policies = set(states[0].params) - values
    batch = jax.tree.map(jnp.asarray, batch_of() | {"more_goals": batch_of()["value_goals"]})
    for step in range(4):
        before, first = states[-1], step < 2
        state, metrics = jax.jit(agent.update)(before, batch, jax.random.key(step))
        moved = {name for name, params in state.params.items() if furthest(params, before.params[name]) > 0}
        assert moved == (values if first else policies | read)
        counts = {name: int(adam.count) for name, adam in state.opt_state.items()}
        expected = dict.fromkeys(policies, max(0, step - 1)) | dict.fromkeys(values, min(2, step + 1))
        assert counts == expected | dict.fromkeys(read, step + 1)
        policy_losses = {metric for metric in metrics if metric.endswith("loss")} - {"value/loss"}
        assert [float(metrics[metric]) > 0 for metric in sorted(policy_losses)] == [not first] * len(policy_losses)
        assert (float(metrics["value/loss"]) > 0) == first
        if state.extras:  # the mean value
            assert (furthest(state.extras, before.extras) > 0) == first
        states.append(state)
    for policy in policies & set(state.target_params):
        slow = [furthest(one.target_params[policy], states[0].params[policy]) > 1e-6 for one in states]
        assert slow == [False, False, False, not config.lagging_targets, True]
    for network in read:
        copies = [one.target_params[network] for one in states]
        assert [furthest(copy, states[2].params[network]) == 0 for copy in copies] == [False, False, True, True, True]


@pytest.mark.slow
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


def test_when_policies_begin_is_noted() -> None:
    until = "until update 9,000 (--agent.value.steps)"
    late = f"{until} values learn alone: evaluations say nothing yet, and updates take less time than later"
    assert notes(small("hiql", {"value.steps": 9_000}), "agent.") == (late,)
    assert notes(small("hiql", {}), "agent.") == ()
    fallen = "after 70 steps (--agent.decay.steps), of a stage where there are two, the step size has fallen to 0"
    assert notes(small("gc_sscp", {"decay.steps": 70}), "agent.") == (fallen,)
    assert notes(small("gc_sscp", {}), "agent.") == ()


@pytest.mark.parametrize(
    ("name", "told", "remedy"),
    [
        ("hiql", {"low_actor_rep_grad": True}, "--agent.low_actor_rep_grad=False"),
        ("lavl", {}, "--agent.low_actor_rep_grad=False --agent.high_actor_rep_grad=False"),
        ("lavl", {"low_actor_rep_grad": False}, "--agent.high_actor_rep_grad=False"),
    ],
)
def test_policies_do_not_train_what_stays(name: str, told: dict[str, bool], remedy: str) -> None:
    check(small(name, told), "agent.")
    message = f"--agent.value.steps=9 keeps the representation from policies; give {remedy}, or leave the first out"
    with pytest.raises(UserError, match=f"^{message}$"):
        check(small(name, told | {"value.steps": 9}), "agent.")


FAULTS = {
    "flowrl/losses.py": [
        ("if not self.steps:", "if self.steps < 0:", "test_when_policies_begin_is_noted"),
        ("if self.steps and on else", "if on else", "test_policies_do_not_train_what_stays"),
        ("for name, told in trains.items() if told)", "for name in trains)", "test_policies_do_not_train_what_stays"),
    ],
    "flowrl/optim.py": [
        ("the step size has fallen to {final}", "the step size has fallen", "test_when_policies_begin_is_noted"),
        (
            "alone(stages[1], keys[values:])",
            "alone(stages[1], keys[:-values])",
            "test_values_learn_alone_and_then_policies_do",
        ),
        ("for name in stage.networks}", "for name in rates}", "test_values_learn_alone_and_then_policies_do"),
        ("state.step < steps", "state.step <= steps", "test_values_learn_alone_and_then_policies_do"),
        (
            "return moved, resting | metrics",
            "return moved, metrics | resting",
            "test_values_learn_alone_and_then_policies_do",
        ),
        ("    if not steps:\n", "    if steps < 0:\n", "test_values_and_policies_learn_together_without_stages"),
        (
            "jnp.logical_or(steps == 0, step < steps)",
            "jnp.logical_or(steps == 0, step <= steps)",
            "test_a_stage_ends_where_values_come_to_stay",
        ),
        ("jnp.where(learn, step, step - steps)", "step", "test_a_stage_ends_where_values_come_to_stay"),
    ],
    "agents/hiql.py": [
        ("in_stages(config.value.steps,", "in_stages(0,", "test_policies_begin_where_values_come_to_stay and hiql"),
        ('("goal_rep", "value"))', '("value",))', "test_policies_begin_where_values_come_to_stay and hiql"),
    ],
    "agents/gcivl.py": [
        ("in_stages(config.value.steps,", "in_stages(0,", "test_policies_begin_where_values_come_to_stay and gcivl"),
    ],
    "agents/lavl.py": [
        ("in_stages(config.value.steps,", "in_stages(0,", "test_policies_begin_where_values_come_to_stay and lavl"),
        ('("goal_rep", "value"))', '("value",))', "test_policies_begin_where_values_come_to_stay and lavl"),
        ("+ values_learn * rate", "+ rate", "test_policies_begin_where_values_come_to_stay and lavl"),
    ],
    "agents/gc_sscp.py": [
        ("goal_rep=values_learn)", "goal_rep=1.0)", "test_policies_begin_where_values_come_to_stay and gc_sscp"),
        ('("goal_rep", "actor"))', '("actor",))', "test_policies_begin_where_values_come_to_stay and gc_sscp"),
        ('("goal_rep", "value"))', '("value",))', "test_policies_begin_where_values_come_to_stay and gc_sscp"),
        ("in_stages(config.value.steps,", "in_stages(0,", "test_policies_begin_where_values_come_to_stay and gc_sscp"),
        (
            "config.decay(config.learning_rate, done)",
            "config.learning_rate",
            "test_gc_sscps_step_size_falls_in_each_stage",
        ),
    ],
}
