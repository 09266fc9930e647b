"""Losses, gradients, targets and steps of the goal-conditioned agents against their papers."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from goal_references import (
    NAMES,
    RATES,
    REP,
    TRAINED,
    Reference,
    agent_of,
    config_of,
    double,
    losses_of,
    sscp_two_hops,
    state_of,
)
from small_agents import (
    A,
    B,
    D,
    assert_same,
    compiled,
    compiled_mapped,
    followed,
    networks_of,
    stack,
    with_config,
)
from small_agents import assert_close as closer
from small_agents import goal_transitions as batch_of

from flowrl import agents
from flowrl.agents import gc_sscp
from flowrl.config import as_arrays, put, values
from flowrl.data.dataset import from_arrays
from flowrl.data.goals import GoalMix
from flowrl.data.samplers import Goals
from flowrl.train_state import Batch, Params, TrainState

assert_close = functools.partial(closer, rtol=2e-4, atol=2e-5)

CASES = [(name, loss) for name in NAMES for loss in losses_of(name)]
each_loss = pytest.mark.parametrize(("name", "loss"), CASES, ids=["-".join(case) for case in CASES])
each_agent = pytest.mark.parametrize("name", NAMES)


# --- losses and gradients ---


@functools.cache
def graded(name: str, loss: str, mapped: bool = False) -> Callable[..., Any]:
    """A loss of an agent with its gradients, compiled once."""
    function = jax.value_and_grad(losses_of(name)[loss][0], has_aux=True)
    return jax.jit(jax.vmap(function) if mapped else function)


@pytest.mark.slow
@each_loss
def test_losses_and_gradients_equal_their_references(name: str, loss: str) -> None:
    _, reference = losses_of(name)[loss]
    states, batches = [state_of(name, seed) for seed in (0, 1)], [batch_of(seed) for seed in (0, 1)]
    mapped = graded(name, loss, mapped=True)(
        *(jax.tree.map(lambda *x: jnp.stack(x), *trees) for trees in ([s.params for s in states], states, batches))
    )
    for i, (state, batch) in enumerate(zip(states, batches, strict=True)):
        ref = Reference(name, state, batch)
        expected, expected_grads = jax.value_and_grad(functools.partial(reference, ref))(state.params)
        (value, metrics), grads = graded(name, loss)(state.params, state, batch)
        assert_close(value, expected)
        assert_close(grads, expected_grads)
        assert_close(metrics[f"{loss}/loss"], expected)
        assert_close(jax.tree.map(lambda x, i=i: x[i], mapped), ((value, metrics), grads))


def test_the_fixed_batches_reach_all_branches() -> None:
    # Both signs of the advantage, both masks, clipped and unclipped actions: else the references would prove less.
    ref = Reference("gc_sscp", state_of("gc_sscp"), batch_of())
    slow = ref.state.params, ref.state.target_params["value"]
    now, then = (double(ref.values(*slow, s, "value_goals")) for s in ("observations", "value_next_observations"))
    advantages = ref.hand["rewards"] + 0.9 * ref.hand["masks"] * then.min(axis=0) - now.mean(axis=0)
    assert (advantages < 0).any()
    assert (advantages > 0).any()
    assert set(ref.hand["masks"]) == {0, 1}
    actions, _ = sscp_two_hops(ref)
    assert (np.abs(actions) == 1).any()
    assert (np.abs(actions) < 1).any()


def test_weights_are_cut_at_one_hundred() -> None:
    # With α = 1000 about half of the weights would overflow.
    for name, loss, alpha in (
        ("gcivl", "actor", "alpha"),
        ("hiql", "low_actor", "low_alpha"),
        ("gc_sscp", "high", "high_alpha"),
    ):
        (_, reference), largest = losses_of(name)[loss], 0.0
        for seed in range(3):
            state = state_of(name, seed)
            state = with_config(state, {alpha: 1000})
            (value, metrics), _ = graded(name, loss)(state.params, state, batch_of(seed))
            assert_close(value, reference(Reference(name, state, batch_of(seed)), state.params), rtol=2e-3)
            largest = max(largest, float(metrics[f"{loss}/weight"]))
        assert 10 < largest <= 100


ROUTES = {
    ("gcbc", "actor"): {"actor"},
    ("gcivl", "value"): {"value"},
    ("gcivl", "actor"): {"actor"},
    ("hiql", "value"): {"value", "goal_rep"},
    ("hiql", "low_actor"): {"low_actor"},
    ("hiql", "high_actor"): {"high_actor"},
    ("gc_sscp", "value"): {"value", "goal_rep"},
    ("gc_sscp", "low"): {"actor"},
    ("gc_sscp", "high"): {"actor", "goal_rep"},
    ("gc_sscp", "shortcut"): {"actor", "goal_rep"},
}


def receivers(grads: Params) -> set[str]:
    """The networks whose gradients are not zero."""
    return {network for network in grads if any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads[network]))}


@each_loss
def test_gradients_reach_the_right_networks(name: str, loss: str) -> None:
    state = state_of(name)
    assert receivers(graded(name, loss)(state.params, state, batch_of())[1]) == ROUTES[name, loss]


def test_hiql_low_actor_may_train_the_representation() -> None:
    told = {"low_actor_rep_grad": True}
    function, _ = losses_of("hiql", told)["low_actor"]
    state = state_of("hiql")
    other = state.replace(config=as_arrays(config_of("hiql", told)))
    (value, _), grads = jax.jit(jax.value_and_grad(function, has_aux=True))(state.params, other, batch_of())
    assert receivers(grads) == {"low_actor", "goal_rep"}
    np.testing.assert_allclose(value, graded("hiql", "low_actor")(state.params, state, batch_of())[0][0])


# --- one step ---


@pytest.mark.slow
@pytest.mark.parametrize("lagging", [True, False])
@pytest.mark.parametrize("name", ["gcivl", "hiql", "gc_sscp"])
def test_targets_move_toward_the_parameters_before_the_step_or_after_it(name: str, lagging: bool) -> None:
    told = {"lagging_targets": lagging}
    state = state_of(name).replace(config=as_arrays(config_of(name, told)))
    after, _ = compiled(agent_of(name, told))(state, batch_of(), jax.random.key(0))
    toward = toward_params(state if lagging else after, after)
    expected = followed(state.target_params, toward, RATES[name])
    assert_close(after.target_params, expected, rtol=1e-6, atol=1e-6)


def toward_params(state: TrainState, after: TrainState) -> Params:
    """What slow copies move toward; that of a representation, which only values have, is as fast as the trained one."""
    return {**state.params, **{network: params for network, params in after.params.items() if network == "goal_rep"}}


NOISE = {"low_loss": "x", "high_loss": "x", "shortcut_loss": "x"}
LOSSES = {name: vars(gc_sscp)[name] for name in NOISE}


def update_with_noise(name: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The update, which also returns the noise that GC-SSCP's update hands to each of its losses."""
    record: dict[str, Any] = {}

    def recorded(loss: str, original: Callable[..., Any], *args: Any, **noise: Any) -> Any:
        (record[loss],) = noise.values()
        return original(*args, **noise)

    for loss in LOSSES:
        monkeypatch.setattr(gc_sscp, loss, functools.partial(recorded, loss, LOSSES[loss]))
    update = agent_of(name).update
    return lambda *arguments: (*update(*arguments), record)


@pytest.mark.slow
def test_gc_sscp_draws_its_noise_as_the_paper_does(monkeypatch: pytest.MonkeyPatch) -> None:
    many = {name: jnp.tile(field, (500, *[1] * (field.ndim - 1))) for name, field in batch_of().items()}
    update = update_with_noise("gc_sscp", monkeypatch)
    record = jax.jit(lambda *arguments: update(*arguments)[-1])(state_of("gc_sscp"), many, jax.random.key(0))
    first, second = record["shortcut_loss"]
    assert_close(record["low_loss"], record["high_loss"], rtol=0, atol=0)
    arrays = [double(array) for pair in (record["low_loss"], first, second) for array in pair]
    for i, array in enumerate(arrays):
        assert array.shape == (500 * B, 2 if i % 2 == 0 else REP)
        # Standard errors with 6000 numbers or more: 0.013 for the mean, 0.009 for the deviation.
        assert abs(array.mean()) < 0.08
        assert abs(array.std() - 1) < 0.06
    # Eighteen columns of noise without correlation (standard error 0.018): the hop's, the two of the shortcut.
    correlations = np.corrcoef(np.concatenate(arrays, axis=1).T) - np.eye(3 * (2 + REP))
    assert np.abs(correlations).max() < 0.12
    # One key used for two shapes would give the same numbers in another layout (standard error 0.013).
    prefixes = np.corrcoef([array.ravel()[: 500 * B * 2] for array in arrays]) - np.eye(len(arrays))
    assert np.abs(prefixes).max() < 0.08


@pytest.mark.slow
@each_agent
def test_a_step_is_adam_on_the_sum_of_all_gradients_at_the_same_parameters(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = jax.jit(update_with_noise(name, monkeypatch))
    originals = losses_of(name)
    state, networks = state_of(name), networks_of(agent_of(name))

    @jax.jit
    def summed(state: TrainState, batch: Batch, noise: dict[str, Any]) -> Any:
        functions = {loss: function for loss, (function, _) in originals.items()}
        for loss in noise:
            functions[loss.removesuffix("_loss")] = functools.partial(
                lambda loss, p, s, b: LOSSES[loss](networks, p, s, b, jax.random.key(0), **{NOISE[loss]: noise[loss]}),
                loss,
            )
        grads, metrics = jax.tree.map(jnp.zeros_like, state.params), {}
        for function in functions.values():
            one, own = jax.grad(function, has_aux=True)(state.params, state, batch)
            grads, metrics = jax.tree.map(jnp.add, grads, one), metrics | own
        return grads, metrics

    optimizer = optax.adam(1e-2, b1=0.9, b2=0.999, eps=1e-8)
    moments = optimizer.init(state.params)
    for step in range(3):
        batch = batch_of(step)
        after, metrics, noise = update(state, batch, jax.random.key(step))
        grads, total = summed(state, batch, noise)
        direction, moments = optimizer.update(grads, moments)
        assert_close(after.params, optax.apply_updates(state.params, direction), rtol=1e-4, atol=1e-4)
        # Logged losses are those at the parameters before the step.
        assert set(metrics) == set(total)
        assert_close(metrics, total)
        assert all(metric.shape == () and jnp.isfinite(metric) for metric in metrics.values())
        moved = {
            network
            for network in state.params
            if jax.tree.leaves(state.params[network])[0].tolist() != jax.tree.leaves(after.params[network])[0].tolist()
        }
        assert moved == TRAINED[name] == set(state.params)
        # Slow copies move toward the parameters before the step, each at its own rate.
        assert_close(
            after.target_params, followed(state.target_params, toward_params(state, after), RATES[name]), atol=1e-6
        )
        assert int(after.step) == step + 1
        assert after.step.dtype == jnp.int32
        assert_same(after.config, state.config)
        state = after


@each_agent
def test_a_new_state_starts_with_copies_as_targets(name: str) -> None:
    state = agent_of(name).init(jax.random.key(3), config_of(name, {"learning_rate": 0.5}))
    assert state.config.learning_rate == 0.5
    assert int(state.step) == 0
    assert set(state.params) == set(state.opt_state) == TRAINED[name]
    assert set(state.target_params) == set(RATES[name])
    for network in RATES[name]:
        assert_same(state.target_params[network], state.params[network])
        for copy, own in zip(
            jax.tree.leaves(state.target_params[network]), jax.tree.leaves(state.params[network]), strict=True
        ):
            assert copy.unsafe_buffer_pointer() != own.unsafe_buffer_pointer()
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state.config))
    one, other = (jax.tree.leaves(state_of(name, seed).params) for seed in (0, 1))
    assert not any(np.allclose(x, y) for x, y in zip(one, other, strict=True))


@pytest.mark.slow
@each_agent
def test_mapped_runs_with_different_hyperparameters_equal_separate_runs(name: str) -> None:
    agent, config = agent_of(name), as_arrays(config_of(name))
    configs = [config, jax.tree.map(lambda value: (0.7 * value).astype(value.dtype), config)]

    def train(state: TrainState) -> TrainState:
        for step in range(5):
            state, _ = compiled(agent)(state, batch_of(step), jax.random.key(step))
        return state

    starts = [state_of(name, seed).replace(config=one) for seed, one in enumerate(configs)]
    mapped = stack(starts)
    for step in range(5):
        mapped, _ = compiled_mapped(agent)(mapped, batch_of(step), jnp.stack([jax.random.key(step)] * 2))
    alone = [train(start) for start in starts]
    for i, state in enumerate(alone):
        run = jax.tree.map(lambda x, i=i: x[i], mapped.replace(step=None))
        assert_close((run.params, run.target_params), (state.params, state.target_params), atol=1e-3)
    # A learning rate of 0.7 against 1 from the same start: the parameters cannot agree.
    same = train(starts[0].replace(config=configs[1]))
    assert np.abs(jax.tree.leaves(same.params)[0] - jax.tree.leaves(alone[0].params)[0]).max() > 1e-3


@pytest.mark.slow
@each_agent
def test_an_update_reads_what_its_batches_hold(name: str) -> None:
    agent, config = agent_of(name), config_of(name)
    kind = agent.batch(config)
    rows = {"observations": np.zeros((20, D), np.float32), "actions": np.zeros((20, A), np.float32)}
    dataset = from_arrays(rows | {"terminals": np.arange(20) % 10 == 9})
    batch = jax.eval_shape(lambda key: kind.sample(key, dataset, B), jax.random.key(0))
    reads = {
        "gcbc": {"observations", "actions", "actor_goals"},
        "gcivl": {"observations", "next_observations", "actions", "rewards", "discounts", "value_goals", "actor_goals"},
    }
    reads["gcivl"].add("value_next_observations")
    levels = {"low_actor_goals", "high_actor_goals", "high_actor_targets"}
    reads["hiql"] = reads["gc_sscp"] = reads["gcivl"] - {"actor_goals"} | levels
    assert kind.goals
    traced = functools.partial(jax.eval_shape, agent.update, state_of(name))
    traced({field: batch[field] for field in reads[name]}, jax.random.key(0))
    for field in reads[name]:
        with pytest.raises(KeyError, match=field):
            traced({f: batch[f] for f in reads[name] - {field}}, jax.random.key(0))


def test_goals_are_drawn_as_the_configuration_says() -> None:
    value, actor = GoalMix(p_trajectory=0.5, p_random=0.3, geometric=True), GoalMix(p_trajectory=1.0, p_random=0.0)
    for name in NAMES:
        config = put(agents.default(name), {} if name == "gcbc" else {"discount": 0.7, "value.horizon": 3})
        expected = Goals(actor) if name == "gcbc" else Goals(actor, value, 0.7, horizon=3)
        subgoals = {"subgoal_steps": 25} if name in ("hiql", "gc_sscp") else {}
        assert agent_of(name).batch(config) == expected._replace(**subgoals)


def test_defaults_are_the_published_ones() -> None:
    shared = {"learning_rate": 3e-4, "batch_size": 1024, "hidden_dims": (512, 512, 512)}
    shared |= {"actor_goals.p_trajectory": 1.0, "actor_goals.p_random": 0.0, "actor_goals.geometric": False}
    value = {"discount": 0.99, "value.target_rate": 0.005, "value.horizon": 1, "value.steps": 0}
    value["lagging_targets"] = True
    value |= {"value_goals.p_trajectory": 0.5, "value_goals.p_random": 0.3, "value_goals.geometric": True}
    hierarchy = {"subgoal_steps": 25, "rep_dim": 10, "value.expectile": 0.7}
    weights = {"low_alpha": 3.0, "high_alpha": 3.0}
    published = {
        "gcbc": shared,
        "gcivl": {**shared, **value, "value.expectile": 0.9, "alpha": 10.0},
        "hiql": {**shared, **value, **hierarchy, **weights, "low_actor_rep_grad": False},
        "gc_sscp": {
            **shared, **value, **hierarchy, "low_alpha": 5.0, "high_alpha": 5.0, "actor_target_rate": 0.001, "hops": 1,
            "time_dim": 128, "decay.final": 0.0, "decay.warmup": 0.0, "decay.steps": 0,
        },
    }  # fmt: skip
    for name, expected in published.items():
        assert values(agents.default(name)) == expected


FAULTS = {
    "flowrl/losses.py": [
        (
            '"goal_rep": state.target_params["goal_rep"]',
            '"goal_rep": state.params["goal_rep"]',
            "test_losses_and_gradients_equal_their_references and gc_sscp-low",
        ),
    ],
    "flowrl/agent.py": [
        (
            "jax.tree.map(jnp.copy, params[name])",
            "params[name]",
            "test_a_new_state_starts_with_copies_as_targets and gcivl",
        ),
    ],
    "agents/gcbc.py": [
        ("loss = -unit", "loss = unit", "test_losses_and_gradients_equal_their_references and gcbc"),
        (
            'batch["actions"], means).mean()',
            'batch["actions"], means).sum()',
            "test_losses_and_gradients_equal_their_references and gcbc",
        ),
    ],
    "agents/gcivl.py": [
        (
            'goal_advantage(v, nets, state.params, s, batch["next_observations"], g)',
            'goal_advantage(v, nets, state.params, batch["next_observations"], s, g)',
            "test_losses_and_gradients_equal_their_references and gcivl-actor",
        ),
        (
            "Stage([actor_loss], ",
            "Stage([], ",
            "test_a_step_is_adam_on_the_sum_of_all_gradients_at_the_same_parameters and gcivl",
        ),
        (
            "goal_advantage(v, nets, state.params,",
            "goal_advantage(v, nets, state.target_params,",
            "test_losses_and_gradients_equal_their_references and gcivl-actor",
        ),
        (
            "toward = state if config.lagging_targets else moved",
            "toward = state",
            "test_targets_move_toward_the_parameters_before_the_step_or_after_it and gcivl",
        ),
    ],
    "flowrl/policies.py": [
        (
            "params if config.low_actor_rep_grad else state.params",
            "params",
            "test_gradients_reach_the_right_networks and hiql-low",
        ),
        (
            "state.config.high_alpha",
            "state.config.low_alpha",
            "test_losses_and_gradients_equal_their_references and hiql-high",
        ),
        (
            "params if rep_grad else state.params",
            "params",
            "test_gradients_reach_the_right_networks and hiql-high",
        ),
        (
            "goal_advantage(value, nets, state.params, s, w, g)",
            "goal_advantage(value, nets, state.params, w, s, g)",
            "test_losses_and_gradients_equal_their_references and hiql-high",
        ),
    ],
    "agents/gc_sscp.py": [
        ("s, w), x, 1, 1)", "s, w), x, 0, 1)", "test_losses_and_gradients_equal_their_references and gc_sscp-low"),
        (
            "hop = jump(nets, params, s, nets.goal_rep(own, s, w)",
            "hop = jump(nets, params, s, nets.goal_rep(params, s, w)",
            "test_gradients_reach_the_right_networks and gc_sscp-low",
        ),
        (
            "nets.goal_rep(params, s, g), x, 0, 1)",
            "nets.goal_rep(state.params, s, g), x, 0, 1)",
            "test_gradients_reach_the_right_networks and gc_sscp-high",
        ),
        (
            '(weights * (mse(hop.a, batch["actions"]) + rep_errors)).mean()',
            '(weights * mse(hop.a, batch["actions"]) + rep_errors).mean()',
            "test_losses_and_gradients_equal_their_references and gc_sscp-high",
        ),
        (
            "two_hops(nets, state.target_params, s",
            "two_hops(nets, params, s",
            "test_losses_and_gradients_equal_their_references and gc_sscp-shortcut",
        ),
        (
            "x[0], 0, 2)",
            "x[1], 0, 2)",
            "test_losses_and_gradients_equal_their_references and gc_sscp-shortcut",
        ),
        (
            "subgoal = jump(nets, params, s, goal_rep, noises[0], 0, 1).bounded()",
            "subgoal = jump(nets, params, s, goal_rep, noises[0], 0, 1)",
            "test_losses_and_gradients_equal_their_references and gc_sscp-shortcut",
        ),
        (
            "actor=config.actor_target_rate",
            "actor=config.value.target_rate",
            "test_a_step_is_adam_on_the_sum_of_all_gradients_at_the_same_parameters and gc_sscp",
        ),
        ("partial(high_loss, x=hop)", "partial(high_loss, x=first)", "test_gc_sscp_draws_its_noise_as_the_paper_does"),
        ("jax.random.normal(rep_key", "jax.random.normal(a_key", "test_gc_sscp_draws_its_noise_as_the_paper_does"),
    ],
}
