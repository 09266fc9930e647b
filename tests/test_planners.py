"""Planners: networks over time, losses and guided denoising by hand."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_agents import config_of, state_with
from stub_agents import network
from ways import Way, each_way

from flowrl import agents
from flowrl.agents import decision_diffuser, diffuser
from flowrl.config import as_arrays, check, put
from flowrl.diffusion import Diffusion, step_sizes
from flowrl.errors import UserError
from flowrl.networks import Spec
from flowrl.temporal import PlanValue, TemporalUNet, doubled, neighbours, pinned
from flowrl.train_state import Batch, Policy, TrainState

D, A, H, B = 2, 1, 3, 4
SPEC = Spec.of_sizes(D, A)
KEY = jax.random.key(5)
SMALL = {"hidden_dims": (8, 16), "plans.length": H}


def segments(seed: int = 0) -> Batch:
    """Random plans; the third ends in a termination, the last does not count."""
    rng = np.random.default_rng(seed)
    states, actions = rng.normal(size=(B, H, D)), rng.uniform(-1, 1, (B, H, A))
    fields = {"states": states, "observations": states[:, 0], "actions": actions, "returns": rng.normal(size=B)}
    fields |= {"valid": np.array([1, 1, 1, 0]), "actions_valid": np.array([[1, 1, 1]] * 2 + [[1, 0, 0]] * 2)}
    return {name: jnp.asarray(x, jnp.float32) for name, x in fields.items()}


# ----------------------------------------------------------------------------------------------------- networks


def test_a_convolution_sees_neighbours_and_zeros_beyond_the_ends() -> None:
    x = jnp.arange(1.0, 5)[:, None]
    np.testing.assert_array_equal(neighbours(x, 3), [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 0]])
    np.testing.assert_array_equal(neighbours(x, 3, stride=2), [[0, 1, 2], [2, 3, 4]])
    np.testing.assert_array_equal(neighbours(x[:3], 3, stride=2), [[0, 1, 2], [2, 3, 0]])


def test_a_transposed_convolution_writes_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of steps 1, 2: each is followed by what lies toward the next."""
    monkeypatch.setattr("flowrl.temporal.dense", lambda x, *_: x @ jnp.array([[10.0], [1.0]]))
    np.testing.assert_array_equal(doubled(jnp.array([[1.0], [2.0]]), 4)[:, 0], [10, 12, 21, 20])
    assert doubled(jnp.ones((3, 2, 1)), 3).shape == (3, 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("length", [4, 7])
def test_networks_take_plans_of_any_length_and_batch(length: int) -> None:
    """Rows do not see each other, and each condition changes what is said."""
    x, level = jax.random.normal(KEY, (2, 3, length, 5)), jnp.array([[[0.0]], [[3.0]]])
    told = (jnp.ones((3, 1)), jnp.ones(1))
    for net, more in ((TemporalUNet((8, 12, 16), attention=True), told), (PlanValue((8, 16)), ())):
        params = jax.jit(net.init)(KEY, x, level, *more)
        apply = jax.jit(net.apply)
        found = apply(params, x, level, *more)
        assert found.shape == (x.shape if more else (2, 3))
        alone = apply(params, x[1, 2], level[1, 0], *(() if not more else (jnp.ones(1), jnp.ones(1))))
        np.testing.assert_allclose(found[1, 2], alone, rtol=1e-4, atol=1e-5)
        assert np.abs(apply(params, x, level + 1, *more) - found).max() > 1e-4
        if more:
            unknown, other = (apply(params, x, level, jnp.full((3, 1), r), jnp.zeros(1)) for r in (1.0, 2.0))
            np.testing.assert_array_equal(unknown, other)
            assert np.abs(unknown - found).max() > 1e-4


def test_what_is_given_stands_in_plans() -> None:
    plans, s, g = jnp.zeros((2, 3, 4, 3)), jnp.array([[1.0, 2]] * 3), jnp.array([[3.0, 4]] * 3)
    np.testing.assert_array_equal(pinned(plans, s, g)[1, 2], [[0, 1, 2], [0, 0, 0], [0, 0, 0], [0, 3, 4]])
    np.testing.assert_array_equal(pinned(plans, s)[1, 2, -1], 0)


# ------------------------------------------------------------------------------------------------------- losses


def linear(params: Any, x: jax.Array, level: jax.Array) -> jax.Array:
    return params * x + 0.1 * level[..., None]


def total(params: Any, x: jax.Array, level: jax.Array) -> jax.Array:
    return params * x.sum(axis=(-2, -1)) + level[..., 0]


def told_linear(params: Any, x: jax.Array, level: jax.Array, returns: jax.Array, told: jax.Array) -> jax.Array:
    return params * x + x[..., :1, :] + 0.1 * level[..., None] + (told * returns)[..., None]


DIFFUSER = diffuser.Networks(SPEC, network("plan", linear), network("value", total))
DECISION = decision_diffuser.Networks(
    SPEC, network("plan", told_linear), network("inverse", lambda params, s, later: params * (later - s)[..., :A])
)
PARAMS = {"plan": jnp.float32(0.3), "value": jnp.float32(0.2), "inverse": jnp.float32(2)}


def small_state(name: str, told: Mapping[str, Any]) -> TrainState:
    return state_with(config_of(name, {"plans.length": H, **told}), PARAMS, PARAMS)


def drawn(config: Diffusion, x: np.ndarray, key: jax.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noised plans, their noise and levels, from the definition √ᾱ x + √(1 − ᾱ) ε."""
    noise_key, level_key = jax.random.split(key)
    noise = np.asarray(jax.random.normal(noise_key, x.shape))
    levels = np.asarray(jax.random.randint(level_key, (B, 1, 1), 0, config.levels))
    left = config.variance_left()[levels]
    return np.sqrt(left) * x + np.sqrt(1 - left) * noise, noise, levels


def stored(batch: Batch) -> np.ndarray:
    """Plans as they are learnt: the actions of steps that count, and the states."""
    return np.concatenate([batch["actions"] * batch["actions_valid"][..., None], batch["states"]], axis=-1)


@each_way
@pytest.mark.parametrize("name", ["diffuser", "diffuser_goal"])
def test_the_loss_of_plans_by_hand(way: Way, name: str) -> None:
    state, batch = small_state(name, {"action_weight": 7.0}), segments()

    def loss(key: jax.Array, params: Any, batch: Batch) -> Any:
        return diffuser.plan_loss(DIFFUSER, params, state, batch, key)[0]

    x, weights = stored(batch), np.ones((H, A + D))
    points, _, levels = drawn(state.config.diffusion, x, KEY)
    points[:, 0, A:] = x[:, 0, A:]
    weights[0] = [7, 0, 0]
    if name == "diffuser_goal":
        points[:, -1, A:], weights[-1, A:] = x[:, -1, A:], 0
    errors = (weights * (0.3 * points + 0.1 * levels - x) ** 2).mean(axis=(1, 2))
    found = way(lambda seed, params, batch: loss(jax.random.key(seed[0]), params, batch))(
        jnp.array([5], jnp.uint32), PARAMS, batch
    )
    np.testing.assert_allclose(found, errors[:3].sum() / B, rtol=1e-4)


@each_way
def test_the_loss_of_the_return_by_hand(way: Way) -> None:
    state, batch = small_state("diffuser", {}), segments()
    points, _, levels = drawn(state.config.diffusion, stored(batch), KEY)
    points[:, 0, A:] = batch["observations"]
    errors = (0.2 * points.sum(axis=(1, 2)) + levels[:, 0, 0] - batch["returns"]) ** 2
    found = way(lambda p, b: diffuser.value_loss(DIFFUSER, p, state, b, KEY)[0])(PARAMS, batch)
    np.testing.assert_allclose(found, errors[:3].sum() / B, rtol=1e-4)


@each_way
def test_decision_diffusers_losses_by_hand(way: Way) -> None:
    state, batch = small_state("decision_diffuser", {"unknown": 0.3, "return_scale": 4.0}), segments()
    told_key, noise_key = jax.random.split(KEY)
    told = np.asarray(jax.random.bernoulli(told_key, 0.7, (B, 1)))
    assert 0 < told[:3].sum() < 3
    points, noise, levels = drawn(state.config.diffusion, np.asarray(batch["states"]), noise_key)
    points[:, 0] = batch["observations"]
    seen = 0.3 * points + points[:, :1] + 0.1 * levels + (told * np.asarray(batch["returns"])[:, None] / 4)[..., None]
    errors = ((seen - noise) ** 2)[:, 1:].sum(axis=(1, 2)) / (H * D)
    found = way(lambda p, b: decision_diffuser.plan_loss(DECISION, p, state, b, KEY)[0])(PARAMS, batch)
    np.testing.assert_allclose(found, 0.5 * errors[:3].sum() / B, rtol=1e-4)
    # Where a plan stays, its last step is none.
    steps = np.diff(batch["states"], axis=1)[..., :A]
    errors = ((2 * steps - batch["actions"][:, :-1]) ** 2 * batch["actions_valid"][:, 1:, None]).mean(axis=(1, 2))
    found = way(lambda p, b: decision_diffuser.inverse_loss(DECISION, p, state, b, KEY)[0])(PARAMS, batch)
    np.testing.assert_allclose(found, 0.5 * errors[:3].sum() / B, rtol=1e-4)


@pytest.mark.parametrize("name", ["diffuser", "decision_diffuser"])
def test_slow_copies_are_copies_at_first_and_follow_every_tenth_update(name: str) -> None:
    nets, update = (DIFFUSER, diffuser.update) if name == "diffuser" else (DECISION, decision_diffuser.update)
    own = [net for net in ("plan", "value", "inverse") if net in nets._fields]
    params = {net: PARAMS[net] for net in own}
    state = state_with(config_of(name, {"plans.length": H}), params, {net: jnp.float32(9) for net in own})
    run = jax.jit(functools.partial(update, nets))
    for step, rate in ((0, 1.0), (7, 0.0), (1990, 1.0), (2000, 0.005), (2005, 0.0)):
        after, _ = run(state.replace(step=jnp.int32(step)), segments(), KEY)
        for net in own:
            assert abs(float(after.params[net] - params[net])) > 1e-4
            np.testing.assert_allclose(after.target_params[net], 9 + rate * (after.params[net] - 9), rtol=1e-5)
    acting = getattr(agents.load(name), "make").acting(state)  # noqa: B009
    assert all(float(acting[net]) == 9 for net in own)


# ----------------------------------------------------------------------------------------------------- planning

SPREAD = 0.6
"""Deviation of every number of Gaussian plans, whose mean is 0."""


def seen_data(schedule: np.ndarray, x: jax.Array, level: jax.Array) -> jax.Array:
    """What Gaussian plans are expected to be without noise."""
    left = jnp.asarray(schedule)[level.astype(int)][..., None]
    return jnp.sqrt(left) * SPREAD**2 * x / (left * SPREAD**2 + 1 - left)


def gaussian_policy(told: Mapping[str, Any]) -> tuple[diffuser.Networks, Policy[diffuser.Config]]:
    """Exact networks for Gaussian plans whose return is 2 a₀."""
    config = as_arrays(config_of("diffuser", {"plans.length": H, **told}))
    schedule = config.diffusion.variance_left()
    plan_net = network("plan", lambda params, x, level: seen_data(schedule, x, level))
    value = network("value", lambda params, x, level: 2 * x[..., 0, 0])
    return diffuser.Networks(SPEC, plan_net, value), Policy(config, {"plan": None, "value": None})


@pytest.mark.parametrize(("stop", "steps"), [(0, 2), (3, 1)])
def test_the_guide_moves_plans_as_far_as_it_must(stop: int, steps: int) -> None:
    """The mean goes through the same linear steps, m ← (c₁ k + c₂)(m + n scale σ² 2), and a₀ alone moves."""
    told = {"diffusion.levels": 6, "guide.scale": 1.5, "guide.stop": stop, "guide.steps": steps, "candidates": 20_000}
    nets, policy = gaussian_policy(told)
    plans = jax.jit(functools.partial(diffuser.plan, nets))(policy, jnp.ones(D), None, KEY)
    schedule, mean = policy.config.diffusion.variance_left(), 0.0
    levels, sizes = step_sizes(schedule, 6, "ancestral", "nothing")
    for level, (_, _, to_data, to_points, whole, std) in zip(levels, sizes, strict=True):
        mean += steps * 1.5 * std**2 * 2 * (level >= stop)
        kept = np.sqrt(schedule[level]) * SPREAD**2 / (schedule[level] * SPREAD**2 + 1 - schedule[level])
        mean *= (to_data * kept + to_points) / whole
    assert mean > 0.3
    np.testing.assert_allclose(plans[:, 0, 0].mean(), mean, atol=0.02)
    np.testing.assert_allclose(plans[:, 1:].mean(axis=0), 0, atol=0.02)


def test_a_guide_without_noise_to_go_by_is_refused() -> None:
    for sampler in ("ddim", "dpm"):
        told = {"diffusion.sampler": sampler, "diffusion.schedule": "ddpm", "diffusion.levels": 100}
        config = put(agents.default("diffuser"), told)
        with pytest.raises(UserError, match=rf"guide.steps needs noise, which .*{sampler} adds none of; give"):
            check(config, "agent.")
        check(put(config, {"guide.steps": 0}), "agent.")
        check(put(agents.default("diffuser_goal"), told), "agent.")


@pytest.mark.slow
def test_the_plan_of_the_best_return_is_played() -> None:
    """Unguided plans are N(0, 0.6²) in a₀: the best of 64 is near its 2.4 deviations, and guided ones are better."""
    found = []
    for told in ({"candidates": 1, "guide.steps": 0}, {"guide.steps": 0}, {"guide.scale": 0.5}):
        nets, policy = gaussian_policy({"diffusion.levels": 6, **told})
        inputs = {"observations": jnp.ones((300, D))}
        plans = jax.jit(functools.partial(diffuser.plan, nets))(policy, inputs["observations"], None, KEY)
        actions = jax.jit(functools.partial(diffuser.act, nets))(policy, inputs, KEY)
        np.testing.assert_array_equal(actions[:, 0], jnp.clip(plans[:, :, 0, 0].max(axis=0), -1, 1))
        found.append(float(plans[:, :, 0, 0].max(axis=0).mean()))
    assert abs(found[0]) < 0.2
    assert 0.9 < found[1] < 1.8
    assert found[2] > found[1] + 0.1


@pytest.mark.parametrize("name", ["diffuser", "diffuser_goal", "decision_diffuser"])
def test_networks_meet_what_is_given_at_every_level(name: str) -> None:
    """Whatever is drawn, the first state of all plans, and their goal, are exactly the given ones."""
    s, g = jnp.array([[0.3, -0.7]] * 2), jnp.array([[1.5, 2.5]] * 2)
    config, met, asked = as_arrays(config_of(name, {"plans.length": H, "diffusion.levels": 4})), [], []

    def spy(params: Any, x: jax.Array, level: jax.Array, *told: jax.Array) -> jax.Array:
        jax.debug.callback(lambda x, level: met.append((np.asarray(x), float(level.max()))), x, level)
        jax.debug.callback(lambda *told: asked.append(told), *told)
        return 0.3 * x

    policy = Policy(config, {"plan": None, "value": None})
    value = network("value", lambda params, x, level: x.sum(axis=(-2, -1)))
    if name == "decision_diffuser":
        nets = DECISION._replace(plan=network("plan", spy))
        plans = jax.jit(functools.partial(decision_diffuser.plan, nets))(policy, s, KEY)
        assert sorted(float(told[1][0]) for told in asked) == [0] * 4 + [1] * 4
        np.testing.assert_allclose([told[0] for told in asked], 0.9, rtol=1e-6)
    else:
        nets, goals = diffuser.Networks(SPEC, network("plan", spy), value), g if "goal" in name else None
        plans = jax.jit(functools.partial(diffuser.plan, nets))(policy, s, goals, KEY)
    jax.block_until_ready(plans)
    jax.effects_barrier()
    assert {level for _, level in met} == {0, 1, 2, 3}
    for x in (plans, *(x for x, _ in met)):
        np.testing.assert_array_equal(x[..., 0, -D:], jnp.broadcast_to(s, x[..., 0, -D:].shape))
        assert (x[..., -1, -D:] == g).all() == (name == "diffuser_goal")


def test_the_return_is_weighed_by_how_much_it_changes() -> None:
    """The network says x₀-noise of a plan that is R where it is told and 0 elsewhere: the plan is w R, cut at 5."""
    config = config_of("decision_diffuser", {"plans.length": H, "diffusion.levels": 5, "target_return": 0.5})
    left = jnp.asarray(config.diffusion.variance_left())

    def noise(params: Any, x: jax.Array, level: jax.Array, returns: jax.Array, told: jax.Array) -> jax.Array:
        kept = left[level.astype(int)][..., None]
        return (x - jnp.sqrt(kept) * (told * returns)[..., None]) / jnp.sqrt(1 - kept)

    nets = DECISION._replace(plan=network("plan", noise))
    for w, expected in ((1.2, 0.6), (3.0, 1.5), (20.0, 5.0)):
        policy = Policy(as_arrays(put(config, {"guidance": w})), PARAMS)
        plans = decision_diffuser.plan(nets, policy, jnp.zeros((1, D)), KEY)
        np.testing.assert_allclose(plans[:, 1:], expected, rtol=2e-3)
    actions = decision_diffuser.act(nets, policy, {"observations": jnp.full((1, D), 4.8)}, KEY)
    np.testing.assert_allclose(actions, 2 * (5 - 4.8), rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diffuser", "diffuser_goal", "decision_diffuser"])
def test_several_actions_may_be_played(name: str) -> None:
    told = {"hidden_dims": (8,), "plans.length": 5, "plans.played": 3, "diffusion.levels": 2}
    told |= {} if name == "decision_diffuser" else {"candidates": 2}
    config, spec = config_of(name, told), Spec.of_sizes(D, A, D)
    agent = agents.build(name, config, spec)
    policy, inputs = agent.policy(jax.jit(agent.init)(KEY, config)), {"observations": jnp.ones((4, D))}
    assert jax.jit(agent.act)(policy, inputs | {"goals": jnp.ones((4, D))}, KEY).shape == (4, 3, A)
    with pytest.raises(UserError, match="played=5 actions lie between more states than"):
        check(put(config, {"plans.played": 5}), "agent.")


FAULTS = {
    "agents/diffuser.py": [
        ("self.guide.steps > 0", "False", "test_a_guide_without_noise_to_go_by_is_refused"),
        (
            "net(params, pinned(x, s, g), level[..., 0])",
            "net(params, x, level[..., 0])",
            "test_networks_meet_what_is_given_at_every_level",
        ),
        ("pinned(x, s, g)", "pinned(x, s)", "test_networks_meet_what_is_given_at_every_level"),
        ('batch["actions"] * batch["actions_valid"][..., None]', 'batch["actions"]', "test_the_loss_of_plans_by_hand"),
        (".set(config.action_weight)", ".set(1.0)", "test_the_loss_of_plans_by_hand"),
        ("weights = pinned(jnp.ones(", "weights = (lambda ones, *_: ones)(jnp.ones(", "test_the_loss_of_plans_by_hand"),
        ('(batch["valid"] * errors)', "(errors)", "test_the_loss_of_plans_by_hand"),
        ('(batch["valid"] * (values', "((values", "test_the_loss_of_the_return_by_hand"),
        ("guide.scale * variance", "guide.scale * jnp.sqrt(variance)", "test_the_guide_moves_plans_as_far_as_it_must"),
        ("x = x + rate", "x = x - rate", "test_the_guide_moves_plans_as_far_as_it_must"),
        ("level >= guide.stop", "level > guide.stop", "test_the_guide_moves_plans_as_far_as_it_must"),
        ("returns.argmax(axis=0)", "returns.argmin(axis=0)", "test_the_plan_of_the_best_return_is_played"),
        (
            "config.slow.at(state.step)",
            "config.slow.rate",
            "test_slow_copies_are_copies_at_first_and_follow_every_tenth_update and diffuser",
        ),
    ],
    "agents/decision_diffuser.py": [
        ("1 - config.unknown", "config.unknown", "test_decision_diffusers_losses_by_hand"),
        (
            'batch["returns"][:, None] / config.return_scale',
            'batch["returns"][:, None]',
            "test_decision_diffusers_losses_by_hand",
        ),
        (
            "errors(field, x, noise_key, weights)",
            "errors(field, x, noise_key)",
            "test_decision_diffusers_losses_by_hand",
        ),
        (
            'batch["actions_valid"][:, 1:, None]',
            'batch["actions_valid"][:, :-1, None]',
            "test_decision_diffusers_losses_by_hand",
        ),
        ("nets.plan(params, pinned(x, s)", "nets.plan(params, (x)", "test_decision_diffusers_losses_by_hand"),
        (
            "without + config.guidance * (within",
            "within + config.guidance * (within",
            "test_the_return_is_weighed_by_how_much_it_changes",
        ),
        (
            "pinned(x, s), level[..., 0]\n        without",
            "x, level[..., 0]\n        without",
            "test_networks_meet_what_is_given_at_every_level",
        ),
        (
            "config.slow.at(state.step)",
            "config.slow.rate",
            "test_slow_copies_are_copies_at_first_and_follow_every_tenth_update and decision",
        ),
    ],
    "flowrl/temporal.py": [
        ("(before, after)]", "(after, before)]", "test_a_transposed_convolution_writes_between_steps"),
        ("known * perceptron(", "perceptron(", "test_networks_take_plans_of_any_length_and_batch"),
        ("reduction_axes=(-2, -1)", "", "test_networks_take_plans_of_any_length_and_batch"),
    ],
    "flowrl/diffusion.py": [
        (
            "jnp.clip(data, -bound, bound)",
            "jnp.clip(data, -1.0, 1.0)",
            "test_the_return_is_weighed_by_how_much_it_changes",
        ),
        ("std**2)", "std)", "test_the_guide_moves_plans_as_far_as_it_must"),
    ],
}
