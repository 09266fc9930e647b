"""Cal-QL: the conservative term by hand, updates against a reference in numpy, and a bandit."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from offline_references import Case, finite_differences
from small_agents import (
    SPEC,
    A,
    B,
    assert_close,
    check_mapped,
    compiled,
    followed,
    gradients,
    networks_of,
    transitions,
    with_config,
)
from stub_agents import agent_of as stub_agent
from stub_agents import config_of as stub_config
from stub_agents import critics, squashed
from stub_agents import state_of as stub_state

from flowrl import agents
from flowrl.agents import cal_ql
from flowrl.agents.cal_ql import Config
from flowrl.config import check, put
from flowrl.critics import conservative_gap
from flowrl.data.samplers import Transitions
from flowrl.errors import UserError
from flowrl.networks import Spec
from flowrl.policies import LooseGaussian
from flowrl.train_state import Batch, Params, TrainState

N = 3
"""Proposals of each kind."""

pytestmark = pytest.mark.usefixtures("x64")

agent_of, state_of = functools.partial(stub_agent, "cal_ql"), functools.partial(stub_state, "cal_ql")


def update_of(told: dict[str, Any]) -> Callable[..., Any]:
    return compiled(agent_of(told))


def with_returns(seed: int = 0) -> Batch:
    """Returns that are not known, below all values, among them, and above all."""
    return {**transitions(seed), "returns": jnp.array([-jnp.inf, -50.0, 0.0, 0.5, 1.0, 30.0])}


# ------------------------------------------------------------------------------------------- conservative term


@pytest.mark.parametrize("variant", [lambda f: f, jax.jit, jax.vmap], ids=["plain", "jit", "vmap"])
@pytest.mark.parametrize(
    ("returns", "first", "second"),
    [
        # exp(Q − log p) for Q = log 1 | log 5 and p = ½ (uniform), 1 and 2:
        (-np.inf, [2, 1, 0.5], [10, 5, 2.5]),
        (-7.0, [2, 1, 0.5], [10, 5, 2.5]),
        (np.log(3), [2, 3, 1.5], [10, 5, 2.5]),  # above the first critic's, below the second's; never the uniform one
        (np.log(8), [2, 8, 4], [10, 8, 4]),
    ],
)
def test_conservative_gap_by_hand(variant: Any, returns: float, first: Any, second: Any) -> None:
    values = jnp.log(jnp.array([1.0, 5.0]))[:, None, None] * jnp.ones((2, 3, 1))
    densities, data = jnp.log(jnp.array([[0.5], [1.0], [2.0]])), jnp.array([[1.0], [-2.0]])
    arguments = (values, densities, data, jnp.array([returns]))
    if variant is jax.vmap:
        arguments = jax.tree.map(lambda x: x[None], arguments)
    gap = variant(lambda *arrays: conservative_gap(*arrays, 1))(*arguments)
    np.testing.assert_allclose(gap.reshape(2), [np.log(sum(first)) - 1, np.log(sum(second)) + 2], rtol=1e-6)


def test_nothing_pushes_a_calibrated_value_down() -> None:
    """Gradients of the gap are a softmax over the values; those below the return have none, and −∞ gives no NaN."""
    values, densities = jnp.zeros((2, 3, 2)), jnp.zeros((3, 2))
    data = jnp.zeros((2, 2))

    def total(values: jax.Array, data: jax.Array) -> jax.Array:
        return conservative_gap(values, densities, data, jnp.array([-jnp.inf, 1.0]), 1).sum()

    by_values, by_data = jax.grad(total, argnums=(0, 1))(values, data)
    np.testing.assert_allclose(by_values[:, :, 0], np.full((2, 3), 1 / 3))
    np.testing.assert_allclose(by_values[:, :, 1], [[1 / (1 + 2 * np.e), 0, 0]] * 2)
    np.testing.assert_allclose(by_data, -np.ones((2, 2)))


@pytest.mark.slow
def test_only_critics_receive_gradients_of_their_loss() -> None:
    state, nets = state_of(), networks_of(agent_of())

    def loss(params: Params) -> jax.Array:
        keys = jax.random.split(jax.random.key(0))
        return cal_ql.critic_loss(nets, params, state, with_returns(), keys)[0]

    grads = jax.grad(loss)(state.params)
    assert not any(np.any(leaf) for name in ("actor", "temperature") for leaf in jax.tree.leaves(grads[name]))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads["critic"]))


# ----------------------------------------------------------------------------------------------------- updates


def keys_of(case: Case) -> list[jax.Array]:
    """Of the actor, the temperature, either critic and the multiplier."""
    return [case.key] * 5 if case.config.one_draw else [*jax.random.split(case.key, 5)]


def reference_of(case: Case) -> Callable[[Params], dict[str, Any]]:
    actor_key, temperature_key, *critic_keys, multiplier_key = keys_of(case)
    s, a, after, returns, r, m = (
        case.batch[n] for n in ("observations", "actions", "next_observations", "returns", "rewards", "masks")
    )
    actor, hyper, lagrange = case.params["actor"], case.hyper, case.config.lagrange
    alpha = np.exp(case.params["temperature"]["log"])
    # log densities of other actions than those of the policy's loss, unless all losses share one draw
    entropy = -squashed(actor, s, case.normal(temperature_key))[1].mean()

    def targets(key: jax.Array) -> np.ndarray:
        best = np.full(B, -np.inf)
        for noise in case.normal(key, N if case.config.max_target_backup else 1, B, A):
            best = np.maximum(
                best, np.minimum(*critics(np, case.slow["critic"], after, squashed(actor, after, noise)[0]))
            )
        return r + hyper["discount"] * m * best

    def gap(critic: Params, head: int, key: jax.Array) -> tuple[float, int]:
        uniform_key, next_key, now_key = jax.random.split(key, 3)
        proposals = [(u, -A * np.log(2), False) for u in np.asarray(jax.random.uniform(uniform_key, (N, B, A))) * 2 - 1]
        proposals += [(*squashed(actor, after, noise), True) for noise in case.normal(next_key, N, B, A)]
        proposals += [(*squashed(actor, s, noise), True) for noise in case.normal(now_key, N, B, A)]
        total, below = np.zeros(B), 0
        for actions, log_density, of_policy in proposals:
            values = critics(np, critic, s, actions)[head]
            below += (values < returns).sum() if of_policy else 0
            total += np.exp((np.maximum(values, returns) if of_policy else values) - log_density)
        return (np.log(total) - critics(np, critic, s, a)[head]).mean(), below

    def metrics(params: Params) -> dict[str, Any]:
        learnt = np.exp(params["multiplier"]["log"]) if lagrange else 1.0
        held = np.exp(case.params["multiplier"]["log"]) if lagrange else 1.0
        target, weight = hyper["target_gap"] if lagrange else 0.0, hyper["conservative_weight"]
        loss, td, gaps, below, excess = 0.0, 0.0, 0.0, 0, 0.0
        for head, key in enumerate(critic_keys):
            target_key, gap_key = jax.random.split(key)
            error = ((targets(target_key) - critics(np, params["critic"], s, a)[head]) ** 2).mean()
            own, count = gap(params["critic"], head, gap_key)
            td, gaps, below = td + error, gaps + own / 2, below + count
            loss += error + held * weight * (own - target)
            excess += (gap(case.params["critic"], head, jax.random.split(multiplier_key)[1])[0] - target) / 2
        actions, log_probs = squashed(params["actor"], s, case.normal(actor_key))
        values = np.minimum(*critics(np, case.params["critic"], s, actions))
        temperature_loss = params["temperature"]["log"] * (entropy - hyper["target_entropy"] * A)
        of_multiplier = {"critic/multiplier_loss": -learnt * weight * excess} if lagrange else {}
        return {
            "critic/gap": gaps,
            "critic/td_loss": td,
            "critic/loss": loss,
            "critic/calibrated": below / (2 * 2 * N * B),
            "actor/loss": (alpha * log_probs - values).mean(),
            "actor/temperature_loss": temperature_loss,
            **of_multiplier,
        }

    return metrics


LOSSES = ("critic/loss", "actor/loss", "actor/temperature_loss", "critic/multiplier_loss")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "told"),
    [
        (5, {}),
        (1, {"max_target_backup": False}),
        (0, {"one_draw": True}),
        (1, {"lagrange": True, "target_gap": 0.3}),
    ],
    ids=["released", "plain_backup", "one_draw", "lagrange"],
)
def test_losses_and_gradients_equal_their_references(seed: int, told: dict[str, Any]) -> None:
    state, batch, key = state_of(seed, told), with_returns(seed), jax.random.key(seed)
    after, metrics = update_of(told)(state, batch, key)
    reference = reference_of(Case(stub_config("cal_ql", told), state, batch, key))
    params = jax.tree.map(np.asarray, state.params)
    expected = reference(params)
    assert 0 < expected["critic/calibrated"] < 1
    for metric, value in expected.items():
        np.testing.assert_allclose(metrics[metric], value, rtol=1e-6, err_msg=metric)

    def total(params: Params) -> float:
        found = reference(params)
        return sum(found[name] for name in LOSSES if name in found)

    assert_close(gradients(after), finite_differences(total, params), rtol=1e-5)
    assert all(np.isfinite(value) for value in metrics.values())


def test_every_loss_has_draws_of_its_own_unless_told() -> None:
    """Twin critics with equal parameters: at the same draws their gradients are equal, at others they are not."""
    for one_draw in (True, False):
        state = state_of(0, {"one_draw": one_draw})
        twins = jax.tree.map(lambda x: jnp.stack([x[0]] * 2), state.params["critic"])
        state = state.replace(params={**state.params, "critic": twins})
        after, _ = update_of({"one_draw": one_draw})(state, with_returns(), jax.random.key(0))
        same = jax.tree.map(lambda g: np.allclose(g[0], g[1]), gradients(after)["critic"])
        assert all(jax.tree.leaves(same)) is one_draw


def test_there_may_be_any_number_of_critics_combined_in_any_way() -> None:
    config = put(Config(), {"critic.heads": 3, "critic.aggregate": "mean", "lagrange": True, "hidden_dims": (8,)})
    agent = agents.build("cal_ql", config, SPEC)
    state = jax.eval_shape(agent.init, jax.random.key(0), config)
    after, metrics = jax.eval_shape(agent.update, state, with_returns(), jax.random.key(0))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(after.params["critic"])} == {3}
    assert metrics["critic/gap"].shape == ()


def test_the_multiplier_rises_while_gaps_are_above_their_target() -> None:
    for target, sign in ((-50.0, 1), (50.0, -1)):
        state = with_config(state_of(0, {"lagrange": True}), {"target_gap": target})
        after, metrics = update_of({"lagrange": True})(state, with_returns(), jax.random.key(0))
        change = after.params["multiplier"]["log"] - state.params["multiplier"]["log"]
        np.testing.assert_allclose(change, sign * 0.01, rtol=1e-3)  # the critics' step size
        np.testing.assert_allclose(metrics["critic/multiplier"], np.exp(state.params["multiplier"]["log"]), rtol=1e-6)


def test_the_policys_scale_and_offset_of_log_sigma_are_learnt() -> None:
    """−1 at first, whatever the state; then multiplier · output + offset, cut to [−20, 2]."""
    with jax.enable_x64(False):
        policy, states = LooseGaussian((8,), 2), jnp.eye(3)
        params = policy.init(jax.random.key(0), states)["params"]
        means, log_stds = policy.apply({"params": params}, states)
        np.testing.assert_allclose(log_stds, -1, atol=0.05)
        np.testing.assert_allclose(means, 0, atol=0.05)
        assert (params["log_std_multiplier"], params["log_std_offset"]) == (1, -1)
        raw = log_stds + 1
        moved = {**params, "log_std_multiplier": jnp.float32(3.0), "log_std_offset": jnp.float32(0.5)}
        np.testing.assert_allclose(policy.apply({"params": moved}, states)[1], 3 * raw + 0.5, atol=1e-6)
        for offset, bound in ((50.0, 2.0), (-50.0, -20.0)):
            far = {**params, "log_std_offset": jnp.float32(offset)}
            np.testing.assert_allclose(policy.apply({"params": far}, states)[1], bound)


@pytest.mark.slow
def test_kernels_are_orthogonal_and_the_last_ones_small() -> None:
    with jax.enable_x64(False):
        config = put(Config(), {"hidden_dims": (8, 8), "critic.hidden_dims": (8, 8)})
        params = agents.build("cal_ql", config, Spec.of_sizes(8, 4)).init(jax.random.key(0), config).params
        for tree in (params["actor"], jax.tree.map(lambda x: x[1], params["critic"])):
            layers = tree["params"]["MLP_0"]
            hidden, last = layers["Dense_0"]["kernel"], layers["Dense_1"]["kernel"]
            np.testing.assert_allclose(hidden.T @ hidden, 2 * np.eye(8), atol=1e-5)
            np.testing.assert_allclose(last.T @ last, 1e-4 * np.eye(last.shape[1]), atol=1e-7)


def test_critics_have_a_step_size_of_their_own_and_slow_copies_follow() -> None:
    state = state_of()
    after, _ = update_of({})(state, with_returns(), jax.random.key(0))
    assert int(after.step) == 1
    for name, rate in (("critic", 0.01), ("actor", 0.002), ("temperature", 0.002)):
        moves = jax.tree.map(lambda x, y: np.abs(x - y).ravel(), after.params[name], state.params[name])
        np.testing.assert_allclose(np.concatenate(jax.tree.leaves(moves)), rate, rtol=1e-3)
    assert_close(after.target_params, followed(state.target_params, after.params, {"critic": 0.2}))


@pytest.mark.slow
def test_mapped_updates_equal_single_ones() -> None:
    check_mapped(agent_of({}), [state_of(seed) for seed in (0, 1)], with_returns(), rtol=1e-9)


def test_the_discount_of_the_returns_is_that_of_the_targets() -> None:
    config = Config(discount=0.8)
    agent = agents.build("cal_ql", config, Spec.of_sizes(2, 1))
    assert agent.batch(config) == Transitions(0.8, returns=True)
    with pytest.raises(ValueError, match="other static settings"):  # returns would belong to another one
        agent.init(jax.random.key(0), Config(discount=0.9))
    with pytest.raises(UserError, match=r"--agent.discount=1.0 is out of range; give a value in \[0, 0.99999\]"):
        check(Config(discount=1.0), "agent.")


# ------------------------------------------------------------------------------------------------------- probe


@pytest.mark.slow
def test_a_bandit_whose_values_stay_at_the_returns() -> None:
    """Actions about ½ earn 2, about −½ they earn 1, and nothing follows; hardly any others are in the data.

    Cal-QL's policy takes ½, Q of what it does is near 2, and Q of what was never tried below it. Without returns, as
    CQL, the same policy's values sink further.
    """
    with jax.enable_x64(False):
        config = put(Config(), {
            "hidden_dims": (32,), "critic.hidden_dims": (32, 32), "learning_rate": 3e-3, "actor_learning_rate": 3e-3,
            "proposals": 4, "initial_temperature": 0.05, "max_target_backup": False,
        })  # fmt: skip
        agent = agents.build("cal_ql", config, Spec.of_sizes(1, 1))
        states = jnp.zeros((64, 1))

        def train(key: jax.Array, calibrated: jax.Array) -> TrainState:
            def body(i: jax.Array, state: TrainState) -> TrainState:
                arm_key, action_key, update_key = jax.random.split(jax.random.fold_in(key, i), 3)
                good = jax.random.bernoulli(arm_key, 0.5, (64,))
                actions = jnp.where(good, 0.5, -0.5) + 0.2 * jax.random.normal(action_key, (64,))
                rewards = jnp.where(good, 2.0, 1.0)
                rows = {
                    "observations": states,
                    "next_observations": states,
                    "actions": jnp.clip(actions, -1, 1)[:, None],
                }
                rows |= {
                    "rewards": rewards,
                    "masks": jnp.zeros(64),
                    "returns": jnp.where(calibrated, rewards, -jnp.inf),
                }
                return agent.update(state, agent.batch(config).complete(rows), update_key)[0]

            state = jax.lax.fori_loop(0, 800, body, agent.init(key, config))
            policy, inputs = agent.policy(state), {"observations": states}
            values = functools.partial(networks_of(agent).critic, state.params, states)
            mode = agent.act(policy, inputs, key)[0, 0]
            own = values(agent.act(policy, inputs, key, explore=True)).mean()
            untried = jnp.stack([values(jnp.full((64, 1), end)).mean() for end in (-1.0, 1.0)])
            return mode, own, untried

        keys = jnp.stack([jax.random.key(0)] * 2 + [jax.random.key(1)] * 2)
        modes, own, untried = jax.jit(jax.vmap(train))(keys, jnp.array([True, False] * 2))
    np.testing.assert_allclose(modes, 0.5, atol=0.15)
    np.testing.assert_allclose(own[::2], 2, atol=0.2)
    assert (own[1::2] < own[::2] - 0.25).all()
    assert (untried < own[:, None] - 0.4).all()


FAULTS = {
    "flowrl/critics.py": [
        ("jnp.maximum(proposal_values", "jnp.minimum(proposal_values", "test_conservative_gap_by_hand"),
        ("values - log_densities, axis=1", "values + log_densities, axis=1", "test_conservative_gap_by_hand"),
    ],
    "flowrl/policies.py": [
        ("constant(-1.0)", "constant(0.0)", "test_the_policys_scale_and_offset_of_log_sigma_are_learnt"),
        (
            "log_stds + offset, -20.0, 2.0",
            "log_stds + offset, -5.0, 2.0",
            "test_the_policys_scale_and_offset_of_log_sigma_are_learnt",
        ),
        (
            "squashed(gaussian, k, (number,))",
            "squashed(gaussian, keys[0], (number,))",
            "test_losses_and_gradients_equal_their_references and released",
        ),
    ],
    "agents/cal_ql.py": [
        (
            "jax.vmap(lambda a: critics.combine(config.critic, nets.critic(state.target_params, next_s, a)))(next_a)",
            (
                "critics.combine(config.critic, jax.vmap(lambda a: nets.critic(state.target_params, "
                "next_s, a))(next_a).max(axis=0))[None]"
            ),
            "test_losses_and_gradients_equal_their_references and released",
        ),
        (
            'params["temperature"]["log"] * (',
            "multiplier(params) * (",
            "test_losses_and_gradients_equal_their_references and plain",
        ),
        (
            "loss = jnp.sum(td",
            "loss = jnp.mean(td",
            "test_losses_and_gradients_equal_their_references and plain_backup",
        ),
        ("if config.one_draw else jax", "if True else jax", "test_every_loss_has_draws_of_its_own_unless_told"),
        (
            "loss = -jnp.mean(weight_of_gaps",
            "loss = jnp.mean(weight_of_gaps",
            "test_the_multiplier_rises_while_gaps_are_above_their_target",
        ),
        ("orthogonal(0.01)", "orthogonal(1.0)", "test_kernels_are_orthogonal_and_the_last_ones_small"),
        (
            "nets.critic(state.target_params, next_s, a)",
            "nets.critic(state.params, next_s, a)",
            "test_losses_and_gradients_equal_their_references and released",
        ),
        ('batch["discounts"] * next_q', "next_q", "test_losses_and_gradients_equal_their_references and released"),
        (
            "nets.critic(state.params, s, a)",
            "nets.critic(params, s, a)",
            "test_losses_and_gradients_equal_their_references and released",
        ),
    ],
}
