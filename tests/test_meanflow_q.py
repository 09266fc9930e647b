"""MeanFlowQL: its target on a linear field, its loss, its weight and its step size by hand, and a bandit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bandits import actions_of, anywhere, near_half, trained, two_modes
from small_agents import SPEC, A, B, compiled, config_of, gradients, state_with, with_config
from small_agents import transitions as batch_of
from stub_agents import ACTOR, CRITIC, critics, drawn_params, field
from ways import Way, array, each_way

from flowrl import agents
from flowrl.agents import meanflow_q
from flowrl.config import check
from flowrl.encoders import RMSNorm, TimedTransformer
from flowrl.errors import UserError
from flowrl.losses import Balance
from flowrl.networks import Networks
from flowrl.optim import Clip, CosineDecay
from flowrl.train_state import TrainState

NETS = Networks(SPEC, ACTOR, CRITIC)
TINY = {"hidden_dims": (8,), "width": 8, "depth": 1}


def stub_state(told: dict[str, Any]) -> Any:
    rng, config = np.random.default_rng(3), config_of("meanflow_q", {"alpha": 1.7, **told})
    own, slow = (drawn_params(rng, times=1, spread=0.6) for _ in range(2))
    return state_with(config, own, {"critic": slow["critic"]}, config.balance.start(1.7))


# ------------------------------------------------------------------------------------------------------- the flow


@pytest.mark.parametrize("levels", [0, 3])
@each_way
def test_targets_on_a_linear_field(way: Way, levels: int) -> None:
    """Where g = p x + q t, dg/dt = p v + q; large targets are cut to ±5."""
    p, q, key = 1.3, 9.0, jax.random.key(2)
    a = array(*np.linspace(-1, 1, 2 * B).reshape(B, 2).tolist())
    valid = array(*(np.arange(2 * B).reshape(B, 2) % 5 > 0).tolist())
    time_key, noise_key = jax.random.split(key)
    if levels:
        t = (1 + np.asarray(jax.random.randint(time_key, (B, 1), 0, levels))) / levels
    else:
        t = np.asarray(jax.random.uniform(time_key, (B, 1)))
    e, data = np.asarray(jax.random.normal(noise_key, (B, 2))), np.asarray(a)
    x, v = (1 - t) * data + t * e, e - data
    targets = x + (t - 1) * v - t * (p * v + q)
    assert (np.abs(targets) > 5).any()
    errors = (np.asarray(valid) * (p * x + q * t - np.clip(targets, -5, 5)) ** 2).mean(axis=1)
    found = way(lambda a, valid: meanflow_q.flow_errors(lambda x, t: p * x + q * t, a, key, levels, valid))(a, valid)
    np.testing.assert_allclose(found, errors / (errors + 1e-4) ** 0.2, rtol=2e-5)


def test_where_the_flow_ends_has_no_error() -> None:
    # With all data at 0.3 velocities are constant along a path: u = v, and g = x − u is right where (x − 0.3)/t = u.
    errors = meanflow_q.flow_errors(lambda x, t: x - (x - 0.3) / t, jnp.full((B, 1), 0.3), jax.random.key(0), 5)
    np.testing.assert_allclose(errors, 0, atol=1e-6)


def test_targets_and_weights_are_constants() -> None:
    # By its only parameter, g = c: the gradient of ½-th of … is 2 w (c − target), w as it is.
    a, key = array([0.5], [-0.2], [0.1]), jax.random.key(4)

    def loss(c: jax.Array) -> jax.Array:
        return meanflow_q.flow_errors(lambda x, t: c + c * 0 * x, a, key, 0).mean()

    time_key, noise_key = jax.random.split(key)
    t, e = jax.random.uniform(time_key, (3, 1)), jax.random.normal(noise_key, (3, 1))
    targets = (1 - t) * a + t * e + (t - 1) * (e - a)
    rows = 0.4 - targets
    expected = jnp.mean(2 * rows / (rows**2 + 1e-4) ** 0.2)
    np.testing.assert_allclose(jax.grad(loss)(0.4), expected, rtol=1e-5)


@pytest.mark.slow
@each_way
def test_the_policys_loss_by_hand(x64: None, way: Way) -> None:
    state, batch, key = stub_state({"normalize_q": True}), batch_of(), jax.random.key(7)
    batch = {**batch, "actions_valid": jnp.asarray(np.arange(B * A).reshape(B, A) % 3 > 0, float)}
    flow_key, z_key = jax.random.split(key)
    actor, s = state.params["actor"], np.asarray(batch["observations"])
    g = field(np, actor, s, np.asarray(jax.random.normal(z_key, (B, A))), np.ones((B, 1)))
    outside = np.maximum(g - 1, 0).mean() + np.maximum(-1 - g, 0).mean()
    assert outside > 0
    q = critics(np, jax.tree.map(np.asarray, state.params["critic"]), s, np.clip(g, -1, 1)).mean(axis=0)
    flow = meanflow_q.flow_errors(
        lambda x, t: field(jnp, actor, batch["observations"], x, t), batch["actions"], flow_key, 0,
        batch["actions_valid"],
    )  # fmt: skip
    expected = -q.mean() / np.abs(q).mean() + outside + 1.7 * flow.mean()

    def loss(batch: Any) -> jax.Array:
        return meanflow_q.actor_loss(NETS, state.params, state, batch, key)[0]

    np.testing.assert_allclose(way(loss)(batch), expected, rtol=1e-6)


def test_a_target_takes_the_best_by_slow_critics(x64: None) -> None:
    state, batch, key = stub_state({}), batch_of(), jax.random.key(9)
    s, next_s = np.asarray(batch["observations"]), np.asarray(batch["next_observations"])
    keys = jax.random.split(jax.random.split(key)[0], 5)
    z = [np.asarray(jax.random.normal(k, (B, A))) for k in keys]
    actor, slow = (jax.tree.map(np.asarray, tree) for tree in (state.params["actor"], state.target_params["critic"]))
    a = [np.clip(field(np, actor, next_s, own, np.ones((B, 1))), -1, 1) for own in z]
    fast = jax.tree.map(np.asarray, state.params["critic"])
    by_slow, by_fast = (np.stack([critics(np, own, next_s, x).mean(axis=0) for x in a]) for own in (slow, fast))
    chosen, going_on = by_slow.argmax(axis=0), np.asarray(batch["discounts"]) > 0
    assert 4 in chosen[going_on]
    assert (chosen != by_fast.argmax(axis=0))[going_on].any()
    targets = batch["rewards"] + batch["discounts"] * by_slow.max(axis=0)
    expected = ((critics(np, fast, s, np.asarray(batch["actions"])) - targets) ** 2).mean()
    np.testing.assert_allclose(meanflow_q.critic_loss(NETS, state.params, state, batch, key)[0], expected, rtol=1e-6)


# ------------------------------------------------------------------------------------------- weight and step size


@each_way
def test_the_weight_follows_the_loss(way: Way) -> None:
    balance = Balance(window=4)

    def weight(weight: jax.Array, losses: jax.Array, count: jax.Array, loss: jax.Array, update: jax.Array) -> Any:
        return balance.weight({"weight": weight, "losses": losses, "count": count}, 10.0, loss, update, 3000)

    full = array(1, 2, 3, 2)  # mean 2: above 10 it rises, below 0.4 it falls
    cases = [
        (10, 4, 11, 4000, 12), (10, 4, 9, 4000, 10), (10, 4, 0.3, 4000, 8), (10, 4, 0.5, 4000, 10),
        (10, 4, 11, 4001, 10), (10, 4, 11, 2000, 10), (10, 1, 11, 4000, 10), (95, 4, 11, 4000, 100),
        (1.1, 4, 0.3, 4000, 1), (10, 3, 9, 4000, 10),
    ]  # fmt: skip
    for kept, count, loss, update, expected in cases:
        found = way(weight)(*(jnp.float32(x) for x in (kept,)), full, *map(jnp.float32, (count, loss, update)))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    # As long as less than half is filled, from the end, the mean is 0 and the weight rises.
    found = way(weight)(jnp.float32(10), array(0, 0, 5, 5), *map(jnp.float32, (2, 0.1, 4000)))
    np.testing.assert_allclose(found, 12, rtol=1e-6)


@each_way
def test_losses_are_remembered_at_due_updates(way: Way) -> None:
    balance = Balance(window=3, interval=5)
    before = {"weight": jnp.float32(1), "losses": array(1, 2, 3), "count": jnp.float32(2)}
    after = way(lambda m, loss, update: balance.remember(m, loss * 0 + 7, loss, update))(
        before, jnp.float32(9), jnp.float32(10)
    )  # fmt: skip
    np.testing.assert_array_equal(after["losses"], [2, 3, 9])
    assert (after["weight"], after["count"]) == (7, 3)
    after = way(lambda m, loss, update: balance.remember(m, loss, loss, update))(before, jnp.float32(9), jnp.float32(4))
    np.testing.assert_array_equal(after["losses"], [1, 2, 3])
    assert after["count"] == 2
    assert not Balance(interval=0).due(4000)


@each_way
def test_the_step_size_rises_and_falls(way: Way) -> None:
    decay = CosineDecay(final=0.2, warmup=0.1, steps=100)
    found = [way(lambda done: decay(1.0, done))(jnp.float32(done)) for done in (0, 5, 10, 55, 100, 1000)]
    np.testing.assert_allclose(found, [0, 0.5, 1, 0.6, 0.2, 0.2], rtol=1e-5, atol=1e-7)
    flat = CosineDecay(final=0.2, warmup=0.1, steps=5)  # a rise of less than one step is none
    np.testing.assert_allclose(way(lambda done: flat(1.0, done))(jnp.float32(0)), 1, rtol=1e-6)


def real_state(told: dict[str, Any]) -> tuple[Any, TrainState]:
    config = config_of("meanflow_q", {**TINY, **told})
    agent = agents.build("meanflow_q", config, SPEC)
    return agent, jax.jit(agent.init)(jax.random.key(0), config)


@pytest.mark.slow
def test_what_an_update_moves() -> None:
    agent, state = real_state({"balance.interval": 1})
    first, metrics = compiled(agent)(state, batch_of(), jax.random.key(1))
    second, _ = compiled(agent)(first, batch_of(), jax.random.key(2))
    # The policy's first step has size 0; its own count of steps begins the rise.
    for after, moved in ((first, False), (second, True)):
        same = jax.tree.map(lambda x, y: bool((x == y).all()), after.params["actor"], state.params["actor"])
        assert all(jax.tree.leaves(same)) is not moved
    assert (first.extras["count"], second.extras["count"]) == (1, 2)
    assert first.extras["losses"][-1] == metrics["actor/flow_loss"]
    # Each gradient has norm 1 at most, and the targets follow what the step has made.
    norms = {
        name: float(np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(tree))))
        for name, tree in gradients(first).items()
    }
    assert all(norm < 1 + 1e-5 for norm in norms.values())
    assert norms["critic"] > 1 - 1e-5
    slow, fast, was = (
        jax.tree.leaves(tree["critic"]) for tree in (first.target_params, first.params, state.target_params)
    )
    for one, new, old in zip(slow, fast, was, strict=True):
        np.testing.assert_allclose(one, 0.995 * old + 0.005 * new, atol=1e-7)


@pytest.mark.slow
def test_the_weight_acts_in_the_update_that_moves_it() -> None:
    agent, state = real_state({"balance.interval": 1, "schedule.steps": 10})
    filled = {"weight": jnp.float32(10), "losses": jnp.full(20, 1e-9), "count": jnp.float32(20)}
    state = state.replace(extras=filled, step=jnp.int32(5))
    after, metrics = compiled(agent)(state, batch_of(), jax.random.key(1))
    np.testing.assert_allclose(metrics["actor/alpha"], 12, rtol=1e-6)
    np.testing.assert_allclose(after.extras["weight"], 12, rtol=1e-6)
    rest = metrics["actor/q_loss"] + metrics["actor/bound_loss"]
    np.testing.assert_allclose(metrics["actor/loss"] - rest, 12 * metrics["actor/flow_loss"], rtol=1e-4)
    kept = with_config(state, {"schedule.steps": 1000})  # not within the first tenth
    assert compiled(agent)(kept, batch_of(), jax.random.key(1))[1]["actor/alpha"] == 10


def test_a_gradient_clipped_without_slack_has_the_norm_asked_for() -> None:
    grads = {"a": array(3, 4)}
    np.testing.assert_allclose(Clip(2.0, slack=0.0)(grads)["a"], [1.2, 1.6], rtol=1e-7)
    np.testing.assert_array_equal(Clip(2.0, slack=0.0)({"a": array(0, 0)})["a"], 0)


# ----------------------------------------------------------------------------------------------------- the network


def test_the_normalisation_has_a_root_on_top() -> None:
    x = array(3, 4)
    params = {"params": {"scale": array(1, 2)}}
    np.testing.assert_allclose(RMSNorm().apply(params, x), np.array([3, 8]) / np.sqrt(12.5) * np.sqrt(2), rtol=1e-5)


def test_the_network_has_the_papers_size() -> None:
    def dense(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    params = jax.eval_shape(TimedTransformer(6).init, jax.random.key(0), *map(jnp.ones, ((4, 17), (4, 6), (4, 1))))
    block = dense(256, 6 * 256) + dense(256, 3 * 256) + dense(256, 256) + dense(256, 1024) + dense(1024, 256)
    block += 2 * 256 + 2 * 128
    outer = dense(23, 256) + 256 + 2 * dense(256, 256) + dense(256, 512) + dense(256, 6) + 256
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 3 * block + outer


def test_the_network_begins_at_zero_and_broadcasts() -> None:
    net = TimedTransformer(2, 8, 1)
    s, x, t, apply = jnp.ones((4, 3)), jnp.ones((4, 2)), jnp.full((4, 1), 0.3), jax.jit(net.apply)
    params = jax.jit(net.init)(jax.random.key(0), s, x, t)
    np.testing.assert_array_equal(apply(params, s, x, t), jnp.zeros((4, 2)))
    params = jax.tree.map(lambda p: p + 0.1, params)
    np.testing.assert_allclose(apply(params, s, jnp.stack([x, 2 * x]), t)[1], apply(params, s, 2 * x, t), rtol=1e-4)


def test_heads_share_the_token() -> None:
    with pytest.raises(UserError, match=r"--agent\.heads=3 does not divide --agent\.width=256"):
        check(config_of("meanflow_q", {"heads": 3}), "agent.")


# --------------------------------------------------------------------------------------------------------- a bandit


@pytest.mark.slow
def test_a_bandit_and_two_modes() -> None:
    """With little weight of the flow the best action, with much of it both modes of the data."""
    told = {"hidden_dims": (32, 32), "width": 16, "depth": 1, "critic_learning_rate": 3e-3, "schedule.steps": 400}
    told |= {"choice.num_samples": 1, "choice.target_samples": 1}
    actions = actions_of(*trained("meanflow_q", {**told, "alpha": 0.02}, anywhere, near_half, 400))
    assert abs(actions.mean() - 0.5) < 0.12
    assert near_half(actions).mean() > 0.9
    actions = actions_of(*trained("meanflow_q", {**told, "alpha": 10.0}, two_modes, jnp.zeros_like, 400))
    assert 0.3 < (actions > 0).mean() < 0.7
    assert np.abs(actions).mean() > 0.35


FAULTS = {
    "agents/meanflow_q.py": [
        (
            "(t - 1) * path.velocities - t * slopes",
            "(t - 1) * path.velocities + t * slopes",
            "test_targets_on_a_linear_field and plain",
        ),
        ("jnp.clip(targets, -BOUND, BOUND)", "targets", "test_targets_on_a_linear_field and plain"),
        ("(1 + jax.random.randint", "(jax.random.randint", "test_targets_on_a_linear_field and plain"),
        ("-BOUND, BOUND), valid)", "-BOUND, BOUND))", "test_targets_on_a_linear_field and plain"),
        ("jnp.maximum(jnp.abs(a) - 1, 0)", "jnp.maximum(a - 1, 0)", "test_the_policys_loss_by_hand and plain"),
        ("extras), moved.params", "extras), state.params", "test_what_an_update_moves"),
        ("slack=0.0)", "slack=0.1)", "test_what_an_update_moves"),
        ('state.opt_state["actor"].count', "state.step + 1", "test_what_an_update_moves"),
        ("target_samples=5", "target_samples=4", "test_a_target_takes_the_best_by_slow_critics"),
        ('critics="target")', 'critics="online")', "test_a_target_takes_the_best_by_slow_critics"),
    ],
    "flowrl/losses.py": [
        ("loss < mean / self.factor", "loss < mean", "test_the_weight_follows_the_loss and plain"),
        ("(update >= since)", "(update > 0)", "test_the_weight_follows_the_loss and plain"),
        ("jnp.roll(losses, -1).at[-1]", "losses.at[-1]", "test_losses_are_remembered_at_due_updates and plain"),
        ("jax.lax.stop_gradient(errors) + constant", "errors + constant", "test_targets_and_weights_are_constants"),
    ],
    "flowrl/optim.py": [
        ("(1 + jnp.cos(jnp.pi * fallen))", "(1 - jnp.cos(jnp.pi * fallen))", "test_the_step_size_rises_and_falls"),
    ],
    "flowrl/encoders.py": [
        ("* x.shape[-1] ** 0.5 * g", "* g", "test_the_normalisation_has_a_root_on_top"),
    ],
}
