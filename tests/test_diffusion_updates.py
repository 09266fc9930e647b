"""DQL, EDP, CAC and SORL: constants by hand, routes of gradients, and what a step moves."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from diffusion_agents import agent_of, each_agent, nets_of, state_of
from offline_references import finite_differences
from small_agents import A, B, assert_close, assert_same, compiled, followed, gradients, with_config
from small_agents import transitions as batch_of

from flowrl import agents, optim
from flowrl.agents import shortcut
from flowrl.config import values
from flowrl.train_state import Params, TrainState

pytestmark = pytest.mark.usefixtures("x64")


# -------------------------------------------------------------------------------------------- constants by hand


def flat(state: TrainState, q: list[float], slow: list[float]) -> TrainState:
    """All networks are 0 but for the critics, which are these constants."""
    zero = jax.tree.map(jnp.zeros_like, state).replace(config=state.config)
    for params, bias in ((zero.params, q), (zero.target_params, slow)):
        params["critic"]["bias"] = jnp.array(bias)
    return zero


@pytest.mark.parametrize("name", ["dql", "cac", "edp"])
def test_a_coin_chooses_the_critic_and_the_one_that_scales_it(name: str) -> None:
    """Critics 1 and 4; DQL's family divides one by the other, −1/4 or −4, EDP each by itself, −1; both heads count."""
    state = with_config(flat(state_of(name), [1.0, 4.0], [3.0, 5.0]), {"learning_rate": 0.0})
    batch = {**batch_of(), "rewards": jnp.ones(B), "discounts": jnp.array([0.5, 0, 0.5, 0, 0.5, 0])}
    found, metric = set(), "actor/improvement_loss" if name == "edp" else "actor/q_loss"
    for key in range(8):
        _, metrics = compiled(agent_of(name))(state, batch, jax.random.key(key))
        # targets 1 + ½·3 and 1: (2.25 + 0)/2 for the first critic, (2.25 + 9)/2 for the second
        np.testing.assert_allclose(metrics["critic/loss"], 1.125 + 5.625)
        found.add(round(float(metrics[metric]), 6))
    assert found == ({-1.0} if name == "edp" else {-0.25, -4.0})


def test_sorl_divides_q_by_its_own_size_and_means_over_critics() -> None:
    state = flat(state_of("shortcut"), [1.0, 4.0], [3.0, 5.0])
    batch = {**batch_of(), "rewards": jnp.ones(B), "discounts": jnp.array([0.5, 0, 0.5, 0, 0.5, 0])}
    _, metrics = compiled(agent_of("shortcut"))(state, batch, jax.random.key(0))
    # targets 1 + ½·4 and 1: (4 + 0)/2 and (1 + 9)/2, their mean
    np.testing.assert_allclose([metrics["critic/loss"], metrics["actor/q_loss"]], [3.5, -1.0])


def test_normalized_targets_have_unit_deviation_among_rows_that_count() -> None:
    """r = 2, 4, 6 and rows that do not count, nothing after: deviation 2, targets 1, 2, 3."""
    state = flat(state_of("cac", told={"normalize_targets": True}), [0.0, 0.0], [0.0, 0.0])
    state = state.replace(params=jax.tree.map(lambda x: x, state.params))
    batch = {**batch_of(), "rewards": jnp.array([2.0, 4, 6, 100, -100, 100]), "discounts": jnp.zeros(B)}
    batch["valid"] = jnp.array([1.0, 1, 1, 0, 0, 0])
    _, metrics = compiled(agent_of("cac", {"normalize_targets": True}))(state, batch, jax.random.key(0))
    np.testing.assert_allclose(metrics["critic/loss"], 2 * (1 + 4 + 9) / 6, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------- routes


@each_agent
def test_nothing_follows_a_terminal_and_rows_and_entries_may_not_count(name: str) -> None:
    state, batch, key = state_of(name), batch_of(), jax.random.key(5)
    base = compiled(agent_of(name))(state, batch, key)[1]
    for mask, same in ((0, True), (1, False)):
        rows = (batch["masks"] == mask)[:, None]
        moved = {**batch, "next_observations": batch["next_observations"] + 5.0 * rows}
        after = compiled(agent_of(name))(state, moved, key)[1]
        assert (float(base["critic/loss"]) == float(after["critic/loss"])) is same
    clone = {"cac": "consistency_loss", "shortcut": "flow_loss"}.get(name, "noise_loss")
    none = {**batch, "valid": jnp.zeros(B), "actions_valid": jnp.zeros((B, A))}
    nothing = compiled(agent_of(name))(state, none, key)[1]
    assert (nothing["critic/loss"], nothing[f"actor/{clone}"]) == (0, 0)
    if name == "edp_iql":
        assert nothing["value/loss"] == 0
    if name == "shortcut":
        assert nothing["actor/consistency_loss"] == 0


@each_agent
def test_policies_without_q_clone_whatever_the_critics_say(name: str) -> None:
    state = with_config(state_of(name), {"q_alpha": 0.0})
    params = {**state.params, "critic": jax.tree.map(lambda leaf: leaf + 0.3, state.params["critic"])}
    one, other = (compiled(agent_of(name))(start, batch_of(), jax.random.key(1))[0] for start in (
        state, state.replace(params=params),
    ))  # fmt: skip
    assert_same(one.params["actor"], other.params["actor"])
    with_q = [with_config(start, {"q_alpha": 1.0}) for start in (state, state.replace(params=params))]
    after = [
        compiled(agent_of(name))(start, batch_of(), jax.random.key(1))[0].opt_state["actor"].mu for start in with_q
    ]
    if name != "edp_iql":  # whose weights are of the slow critics
        assert np.abs(after[0]["kernel"] - after[1]["kernel"]).max() > 1e-6


@each_agent
def test_which_critics_the_policy_meets(name: str) -> None:
    """The rewards change the critics' step: DQL and CAC meet the moved critics, EDP and SORL those before."""
    state, batch = state_of(name), batch_of()
    poorer = {**batch, "rewards": batch["rewards"] - 20}
    one, other = (compiled(agent_of(name))(state, data, jax.random.key(5))[0] for data in (batch, poorer))
    assert np.abs(one.params["critic"]["bias"] - other.params["critic"]["bias"]).max() > 1e-9
    same = np.array_equal(one.opt_state["actor"].mu["kernel"], other.opt_state["actor"].mu["kernel"])
    assert same is (name not in ("dql", "cac"))


# ---------------------------------------------------------------------------------------------------- one step


@pytest.mark.parametrize("name", ["dql", "edp", "edp_iql", "cac"])
def test_a_step_is_adam_and_slow_copies_follow_the_new_parameters(name: str) -> None:
    state = state_of(name)
    after, _ = compiled(agent_of(name))(state, batch_of(), jax.random.key(0))
    for net, grad in gradients(after).items():
        rate = 0.02 if net == "actor" and name in ("dql", "cac") else 0.01
        direction, _ = (adam := optax.adam(rate)).update(grad, adam.init(state.params[net]))
        assert_close(after.params[net], optax.apply_updates(state.params[net], direction), rtol=1e-7)
    expected = followed(state.target_params, after.params, {"critic": 0.2, "actor": 0.3})
    assert_close(after.target_params, expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["dql", "edp", "cac"])
def test_the_slow_policy_moves_late_and_rarely(name: str) -> None:
    """EDP counts from 1, and has the first move after its thousandth update."""
    counted = int(name == "edp")
    late = {"actor_target.start": 1000 + counted, "actor_target.interval": 5}
    assert late.items() <= values(agents.default(name)).items()
    state = with_config(state_of(name), late)
    known = ((995, False), (999, False), (1000, not counted), (1001, False), (1004, counted), (1005, not counted))
    for step, due in known:
        after, _ = compiled(agent_of(name))(state.replace(step=jnp.int32(step)), batch_of(), jax.random.key(0))
        moved = not np.array_equal(after.target_params["actor"]["kernel"], state.target_params["actor"]["kernel"])
        assert moved == due


def norms(grads: Params) -> dict[str, np.ndarray]:
    """The norm of each network's gradient, of the critics one for each head."""
    squares = {net: [jnp.sum(g**2, axis=tuple(range(1, g.ndim))) for g in grads[net].values()] for net in grads}
    return {net: np.sqrt(sum(s if net == "critic" else s.sum() for s in parts)) for net, parts in squares.items()}


@pytest.mark.parametrize("name", ["dql", "cac", "edp", "edp_iql"])
def test_gradients_are_clipped_by_network_and_in_edp_by_head(name: str) -> None:
    state = state_of(name)
    state.params["critic"]["bias"] = state.params["critic"]["bias"] + jnp.array([0.0, 2.0])  # type: ignore[index]
    step = functools.partial(compiled(agent_of(name)), batch=batch_of(), key=jax.random.key(2))
    plain = norms(gradients(step(state)[0]))
    assert abs(plain["critic"][0] / plain["critic"][1] - 1) > 0.05
    bound = 0.5 * min(plain["critic"].min(), plain["actor"])
    found = norms(gradients(step(with_config(state, {"max_grad_norm": bound}))[0]))
    np.testing.assert_allclose(found["actor"], bound, rtol=1e-4)
    if name.startswith("edp"):
        np.testing.assert_allclose(found["critic"], [bound, bound], rtol=1e-4)
    else:
        np.testing.assert_allclose(np.sqrt((found["critic"] ** 2).sum()), bound, rtol=1e-4)
        np.testing.assert_allclose(found["critic"][0] / found["critic"][1], plain["critic"][0] / plain["critic"][1])


@functools.cache
def sorls_gradients(leaks: bool, policy: bool) -> Any:
    """The compiled gradients of one of SORL's losses by both networks, and that loss: of a state, one before, a key."""
    nets = nets_of("shortcut")

    def found(state: TrainState, before: TrainState, key: jax.Array) -> Any:
        loss = functools.partial(shortcut.actor_loss, before=before) if policy else shortcut.critic_loss
        grads, _ = optim.gradients(nets, state, batch_of(), key, (loss,), ("actor", "critic"))
        return grads, loss(nets, state.params, state, batch_of(), key)[0]

    return jax.jit(found)


def shortcut_by_hand(state: TrainState, leaks: bool, bound: float) -> TrainState:
    """SORL's update from its two gradients: one Adam and one norm for all networks, slow copies a step behind."""
    adam, params = optax.chain(optax.clip_by_global_norm(bound), optax.adam(0.3)), state.params
    moments = adam.init(params)
    for policy, key in enumerate(jax.random.split(jax.random.key(2))):
        grads, _ = sorls_gradients(leaks, bool(policy))(state.replace(params=params), state, key)
        assert float(optax.global_norm(grads)) > 1.2 * bound
        updates, moments = adam.update(grads, moments)
        params = optax.apply_updates(params, updates)
    slow = followed(state.target_params, state.params, {"critic": 0.2, "actor": 0.3})
    return state.replace(params=params, target_params=slow)


@pytest.mark.slow
@pytest.mark.parametrize("leaks", [False, True])
def test_sorl_has_one_adam_of_two_steps_an_update(leaks: bool) -> None:
    state = with_config(
        state_of("shortcut", 0, {"target_gradients": leaks}), {"max_grad_norm": 0.5, "learning_rate": 0.3}
    )
    after, _ = compiled(agent_of("shortcut", {"target_gradients": leaks}))(state, batch_of(), jax.random.key(2))
    expected = shortcut_by_hand(state, leaks, 0.5)
    assert_close((after.params, after.target_params), (expected.params, expected.target_params), rtol=1e-5)


def test_sorls_targets_may_pass_gradients_into_the_policy() -> None:
    """As released, the policy is moved to where targets agree with Q; by default they are constants."""
    key, found = jax.random.key(2), {}
    for leaks in (False, True):
        state = state_of("shortcut", 0, {"target_gradients": leaks})
        found[leaks], _ = sorls_gradients(leaks, False)(state, state, key)

    def loss(params: Params) -> float:
        moved = state.replace(params={**state.params, **jax.tree.map(jnp.asarray, params)})
        return float(sorls_gradients(True, False)(moved, state, key)[1])

    whole = finite_differences(loss, {"actor": jax.tree.map(np.asarray, state.params["actor"])})
    assert_close(found[True]["actor"], whole["actor"], rtol=1e-5, atol=1e-7)
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(found[False]["actor"]))
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(found[True]["actor"]))
    assert_same(found[False]["critic"], found[True]["critic"])


FAULTS = {
    "agents/dql.py": [
        (
            'batch["discounts"] * critics',
            "config.discount * critics",
            "test_nothing_follows_a_terminal_and_rows_and_entries_may_not_count and dql",
        ),
        (
            'batch["actions"], noise_key, valid)',
            'batch["actions"], noise_key)',
            "test_nothing_follows_a_terminal_and_rows_and_entries_may_not_count and dql",
        ),
    ],
    "agents/edp.py": [
        ("coin_q(q, q[::-1]", "coin_q(q, q", "test_a_coin_chooses_the_critic_and_the_one_that_scales_it and edp"),
        (
            ', ensembles=("critic",), slack',
            ", slack",
            "test_gradients_are_clipped_by_network_and_in_edp_by_head and edp",
        ),
    ],
    "agents/cac.py": [
        ("std(ddof=1", "std(ddof=0", "test_normalized_targets_have_unit_deviation_among_rows_that_count"),
        (', where=batch["valid"] > 0', "", "test_normalized_targets_have_unit_deviation_among_rows_that_count"),
        (
            'clone_key, done, batch["actions_valid"])',
            "clone_key, done)",
            "test_nothing_follows_a_terminal_and_rows_and_entries_may_not_count and cac",
        ),
        (
            '{"actor": config.actor_learning_rate}',
            '{"actor": config.learning_rate}',
            "test_a_step_is_adam_and_slow_copies_follow_the_new_parameters and cac",
        ),
    ],
    "agents/shortcut.py": [
        (
            "q_loss = -q.mean() / q_size(q)",
            "q_loss = -q.mean()",
            "test_sorl_divides_q_by_its_own_size_and_means_over_critics",
        ),
        (
            "rates, Clip(config.max_grad_norm, jointly=True, slack=0.0))",
            "rates)",
            "test_sorl_has_one_adam_of_two_steps_an_update",
        ),
        ("polyak(moved, state.params", "polyak(moved, moved.params", "test_sorl_has_one_adam_of_two_steps_an_update"),
        (
            "params if config.target_gradients else state.params",
            "state.params",
            "test_sorls_targets_may_pass_gradients_into_the_policy",
        ),
    ],
}
