"""TD3+BC, ReBRAC, IQL, IFQL and IDQL: updates against numpy, what moves when, and how they act."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from baselines import NAMES, agent_of, batch_of, run, same, state_of, value
from offline_references import Case, finite_differences
from small_agents import A, B, assert_close, check_mapped, compiled, followed, gradients
from stub_agents import critics as twins
from stub_agents import field

from flowrl.train_state import Params, TrainState

# ------------------------------------------------------------------------------------- updates against references


def smooth(case: Case, key: jax.Array) -> np.ndarray:
    """The slow policy's next actions with noise of deviation 0.8, cut to ½."""
    noise = np.clip(0.8 * case.normal(key), -0.5, 0.5)
    return np.clip(np.tanh(field(np, case.slow["actor"], case.batch["next_observations"])) + noise, -1, 1)


def td_loss(case: Case, params: Params, next_values: np.ndarray, weight: float) -> float:
    """Weight × the sum over heads of the mean over rows, of which row 4 does not count, of squared TD errors."""
    b, total = case.batch, 0.0
    for j in [0, 1, 2, 3, 5]:
        target = b["rewards"][j] + (0.9 * next_values[j] if b["masks"][j] else 0.0)
        total += sum((target - q) ** 2 for q in twins(np, params["critic"], b["observations"][j], b["actions"][j]))
    return weight * total / B


def deterministic(name: str, case: Case, after: TrainState, told: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    """Losses of the networks; the policy meets the critics after their step, or where it is joint before it."""
    critic = case.params["critic"] if told.get("joint") else jax.tree.map(np.asarray, after.params["critic"])
    b, bc = case.batch, name == "td3_bc"
    next_a = smooth(case, jax.random.split(case.key)[0] if told.get("joint") else case.key)
    next_q = np.minimum(*twins(np, case.slow["critic"], b["next_observations"], next_a))
    if not bc:
        next_q = next_q - 0.3 * ((next_a - b["next_actions"]) ** 2).sum(axis=-1)

    def q_of(params: Params) -> tuple[np.ndarray, np.ndarray]:
        a = np.tanh(field(np, params["actor"], b["observations"]))
        q = twins(np, critic, b["observations"], a)
        return a, q[0] if bc else np.minimum(*q)

    size = np.abs(q_of(case.params)[1]).mean()

    def policy(params: Params) -> float:
        a, q = q_of(params)
        squares = (a - b["actions"]) ** 2
        return squares.mean() - 1.7 * q.mean() / size if bc else 0.6 * squares.sum(axis=-1).mean() - q.mean() / size

    # td3's loss, and a joint one, are means over heads
    weight = 0.5 if bc or told.get("joint") else 1.0
    return {"critic": lambda params: td_loss(case, params, next_q, weight), "actor": policy}


def implicit(name: str, case: Case, after: TrainState, told: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    """Losses of the networks; what moved before is met as it is then."""
    b, joint = case.batch, told.get("joint", name == "ifql")
    moved = case.params["value"] if joint else jax.tree.map(np.asarray, after.params["value"])
    q = np.minimum(*twins(np, case.slow["critic"], b["observations"], b["actions"]))
    keys = jax.random.split(case.key, 3)

    def value_loss(params: Params) -> float:
        u = q - value(params["value"], b["observations"])
        above, objective = u >= 0, told.get("value.objective", "expectile")
        weights = np.where(above, 0.8, 0.2)
        if objective == "exponential":
            held = q - value(case.params["value"], b["observations"])
            errors = (np.exp(np.minimum(0.9 * held, np.log(6))) - 1) * u
        else:
            errors = weights * (u**2 if objective == "expectile" else np.abs(u))
        return errors[[0, 1, 2, 3, 5]].sum() / B

    def gaussian_loss(params: Params) -> float:
        actor = params["actor"]
        means, log_stds = field(np, actor, b["observations"]), actor["log_stds"]
        ranking = case.params["critic"] if told.get("advantage") == "online" else case.slow["critic"]
        v = value(moved, b["observations"])
        advantages = np.minimum(*twins(np, ranking, b["observations"], b["actions"])) - v
        z = (b["actions"] - means) / np.exp(log_stds)
        log_probs = np.log(np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi) / np.exp(log_stds)).sum(axis=-1)
        return -(np.minimum(np.exp(0.7 * advantages), 100) * log_probs).mean()

    def noise_loss(params: Params) -> float:
        noise_key, level_key = jax.random.split(jax.random.split(keys[0])[0])
        noise = case.normal(noise_key)
        t = np.asarray(jax.random.randint(level_key, (B, 1), 0, 5))
        left = np.cumprod(np.exp(-0.1 / 5 - 0.5 * (10 - 0.1) * (2 * np.arange(1, 6) - 1) / 25))[t]
        x = np.sqrt(left) * b["actions"] + np.sqrt(1 - left) * noise
        return ((field(np, params["actor"], b["observations"], x, t) - noise) ** 2).sum(axis=-1).mean()

    def q_loss(params: Params) -> float:
        return td_loss(case, params, value(moved, b["next_observations"]), 1.0)

    return {"value": value_loss, "actor": noise_loss if name == "idql" else gaussian_loss, "critic": q_loss}


VARIANTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "td3_bc": ("td3_bc", {}, 0),
    "rebrac": ("rebrac", {}, 0),
    "rebrac-joint": ("rebrac", {"joint": True}, 1),
    "iql": ("iql", {}, 0),
    "iql-online": ("iql", {"advantage": "online", "joint": True}, 0),
    "idql": ("idql", {}, 0),
    "idql-quantile": ("idql", {"value.objective": "quantile"}, 0),
    "idql-exponential": ("idql", {"value.objective": "exponential"}, 0),
}


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_equal_their_references(variant: str) -> None:
    name, told, step = VARIANTS[variant]
    for seed in (0, 1):
        _, after, metrics, case = run(name, told, step, seed)
        losses = (deterministic if name in ("td3_bc", "rebrac") else implicit)(name, case, after, told)
        found = gradients(after)
        for entry, loss in losses.items():
            # At every second update the policy's metric counts twice.
            weight = 2 if entry == "actor" and name in ("td3_bc", "rebrac") else 1
            np.testing.assert_allclose(metrics[f"{entry}/loss"], weight * loss(case.params), rtol=1e-6, err_msg=entry)
            differences = finite_differences(loss, case.params)[entry]
            assert_close(found[entry], differences)
            assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(differences)) > 1e-2


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
def test_mapped_updates_equal_single_ones(name: str) -> None:
    states = [state_of(name, None, seed) for seed in (0, 1)]
    check_mapped(agent_of(name), states, batch_of(), rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_rebracs_targets_follow_the_moved_critics_and_the_policy_before_its_step() -> None:
    before, after, _, _ = run("rebrac")
    toward = {"critic": after.params["critic"], "actor": before.params["actor"]}
    assert_close(after.target_params, followed(before.target_params, toward, {"critic": 0.2, "actor": 0.2}))
    before, after, _, _ = run("rebrac", step=1)
    assert same(before.target_params, after.target_params)
    assert same(before.params["actor"], after.params["actor"])


@pytest.mark.usefixtures("x64")
def test_rebracs_joint_step_moves_the_policy_in_the_second_update_then_by_momentum() -> None:
    told = {"joint": True}
    states = [state_of("rebrac", told)]
    for seed in range(3):
        states.append(compiled(agent_of("rebrac", told))(states[-1], batch_of(seed), jax.random.key(seed))[0])
    for (before, after), (moves, due) in zip(itertools.pairwise(states), ((0, 0), (1, 1), (1, 0)), strict=True):
        assert same(before.params["actor"], after.params["actor"]) is not bool(moves)
        assert same(before.target_params, after.target_params) is not bool(due)
    expected = followed(states[1].target_params, states[1].params, {"critic": 0.2, "actor": 0.2})
    assert_close(states[2].target_params, expected)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "told", "lagging"),
    [("iql", {}, False), ("iql", {"joint": True, "advantage": "online"}, True), ("ifql", {}, True)],
)
def test_slow_critics_follow_the_moved_ones_unless_the_step_is_joint(name: str, told: Any, lagging: bool) -> None:
    before, after, _, _ = run(name, told)
    assert not any(same(before.params[entry], after.params[entry]) for entry in before.params)
    toward = (before if lagging else after).params
    assert_close(after.target_params, followed(before.target_params, toward, {"critic": 0.2}))


@pytest.mark.usefixtures("x64")
def test_idqls_policy_decays_and_its_slow_copies_follow() -> None:
    """As by optax's AdamW, at a rate of 0.01 · ½ (1 + cos(π/4)) after one of four steps."""
    before, after, _, _ = run("idql", step=1)
    optimizer = optax.adamw(0.005 * (1 + np.cos(np.pi / 4)), weight_decay=0.3)
    actor = before.params["actor"]
    updates, _ = optimizer.update(gradients(after)["actor"], optimizer.init(actor), actor)
    assert_close(after.params["actor"], optax.apply_updates(actor, updates))
    plain = optax.adam(0.01)
    for entry in ("critic", "value"):
        updates, _ = plain.update(gradients(after)[entry], plain.init(before.params[entry]))
        assert_close(after.params[entry], optax.apply_updates(before.params[entry], updates))
    expected = followed(before.target_params, after.params, {"critic": 0.2, "actor": 0.1})
    assert_close(after.target_params, expected)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("step", "share"), [(0, 1.0), (2, 0.5), (4, 0.0), (9, 0.0)])
def test_iqls_policy_slows_down_along_a_cosine(step: int, share: float) -> None:
    before, after, _, _ = run("iql", step=step)
    moves = jax.tree.map(lambda x, y: jnp.abs(x - y), before.params, after.params)
    np.testing.assert_allclose(moves["actor"]["bias"], 0.01 * share, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(moves["value"]["bias"], 0.01, rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["iql", "idql"])
def test_online_the_policy_keeps_the_step_size_that_would_have_fallen_to_nothing(name: str) -> None:
    agent, state = agent_of(name), state_of(name).replace(step=jnp.int32(9))
    for config, moved in ((state.config, False), (agent.online(state.config), True)):
        after, _ = compiled(agent)(state.replace(config=config), batch_of(), jax.random.key(0))
        steps = np.abs(after.params["actor"]["bias"] - state.params["actor"]["bias"])
        assert ((steps > 0.009) & (steps < 0.02) if moved else steps == 0).all()
    several = jax.tree.map(lambda x: jnp.stack([x, x]), state.config)
    assert agent.online(several).decay.steps.tolist() == [0, 0]


# ---------------------------------------------------------------------------------------------------- acting


def test_acting_with_the_best_of_several() -> None:
    """IDQL ranks the slow copy's draws by slow critics; IFQL its own by its own."""
    for name, slow in (("idql", True), ("ifql", False)):
        state = state_of(name)
        policy = agent_of(name).policy(state)
        assert set(policy.params) == {"actor", "critic"}
        expected = (state.target_params if slow else state.params)["critic"]
        assert same(policy.params["critic"], expected)
        assert same(policy.params["actor"], (state.target_params if slow else state.params)["actor"])
        modes = agent_of(name).evaluations(state.config)
        assert {mode: config.choice.num_samples for mode, config in modes.items()} == {
            "eval": 1, "best_of_n": 64 if slow else 32,
        }  # fmt: skip
        assert agent_of(name).explores(state.config).choice.num_samples > 1


@pytest.mark.parametrize("name", ["td3_bc", "rebrac", "iql"])
def test_gaussians_and_noise_when_exploring(name: str) -> None:
    state, s = state_of(name), 0.2 * batch_of()["observations"]
    act = functools.partial(agent_of(name).act, agent_of(name).policy(state), {"observations": s}, jax.random.key(4))
    noise = jax.random.normal(jax.random.key(4), (B, A))
    means = field(jnp, state.params["actor"], s) if name == "iql" else jnp.tanh(field(jnp, state.params["actor"], s))
    scaled = {"td3_bc": 0.1 * noise, "rebrac": jnp.clip(0.8 * noise, -0.5, 0.5)}
    np.testing.assert_allclose(act(), jnp.clip(means, -1, 1), rtol=1e-5)
    added = jnp.exp(state.params["actor"]["log_stds"]) * noise if name == "iql" else scaled[name]
    np.testing.assert_allclose(act(explore=True), jnp.clip(means + added, -1, 1), rtol=1e-4, atol=1e-6)


FAULTS = {
    "flowrl/critics.py": [
        (
            "nets.critic(state.target_params, s, *g, batch",
            "nets.critic(state.params, s, *g, batch",
            "test_losses_and_gradients_equal_their_references and iql",
        ),
    ],
    "flowrl/losses.py": [
        (
            "jax.lax.stop_gradient(jnp.abs(q).mean() + constant)",
            "(jnp.abs(q).mean() + constant)",
            "test_losses_and_gradients_equal_their_references and td3_bc",
        ),
        (
            "jax.lax.stop_gradient(jnp.abs(q).mean() + constant)",
            "(jnp.abs(q).mean() + constant)",
            "test_losses_and_gradients_equal_their_references and rebrac",
        ),
    ],
    "flowrl/optim.py": [
        (
            "config.decay.steps * 0",
            "0",
            "test_online_the_policy_keeps_the_step_size_that_would_have_fallen_to_nothing",
        ),
        ("d + decay * p", "d - decay * p", "test_idqls_policy_decays_and_its_slow_copies_follow"),
        ("jnp.cos(jnp.pi * fallen)", "jnp.cos(fallen)", "test_iqls_policy_slows_down_along_a_cosine"),
        (
            "jnp.clip((done - rise) / jnp.maximum(self.steps - rise, 1), 0.0, 1.0)",
            "(done - rise) / jnp.maximum(self.steps - rise, 1)",
            "test_iqls_policy_slows_down_along_a_cosine",
        ),
    ],
    "flowrl/policies.py": [
        ("jnp.exp(log_stds) * unit_gaussian(", "unit_gaussian(", "test_gaussians_and_noise_when_exploring and iql"),
    ],
    "agents/td3.py": [
        (
            "q = nets.critic(state.params, s, a)[0]",
            "q = nets.critic(state.params, s, a).min(axis=0)",
            "test_losses_and_gradients_equal_their_references and td3_bc",
        ),
    ],
    "agents/rebrac.py": [
        (
            "nets.critic(slow, next_s, next_a)",
            "nets.critic(state.params, next_s, next_a)",
            "test_losses_and_gradients_equal_their_references and rebrac",
        ),
        (
            "return polyak(moved, state.params, critic=rate, actor=rate), metrics\n\n\ndef move_jointly",
            "return polyak(moved, moved.params, critic=rate, actor=rate), metrics\n\n\ndef move_jointly",
            "test_rebracs_targets_follow_the_moved_critics_and_the_policy_before_its_step",
        ),
        (
            "(state.step + 1) %",
            "state.step %",
            "test_rebracs_joint_step_moves_the_policy_in_the_second_update_then_by_momentum",
        ),
        (
            "due * config.critic.target_rate",
            "config.critic.target_rate",
            "test_rebracs_joint_step_moves_the_policy_in_the_second_update_then_by_momentum",
        ),
    ],
    "agents/iql.py": [
        (
            ", online=undecayed",
            "",
            "test_online_the_policy_keeps_the_step_size_that_would_have_fallen_to_nothing and not idql",
        ),
        (
            "toward = state if config.joint else moved",
            "toward = moved",
            "test_slow_critics_follow_the_moved_ones_unless_the_step_is_joint and iql",
        ),
        (
            "(descend if config.joint else in_turn)",
            "(in_turn if config.joint else descend)",
            "test_losses_and_gradients_equal_their_references and iql-online",
        ),
    ],
    "agents/ifql.py": [
        (
            "polyak(moved, state.params,",
            "polyak(moved, moved.params,",
            "test_slow_critics_follow_the_moved_ones_unless_the_step_is_joint and ifql",
        ),
        (
            "(implicit_value_loss, implicit_critic_loss, actor_loss)",
            "(implicit_value_loss, implicit_critic_loss)",
            "test_slow_critics_follow_the_moved_ones_unless_the_step_is_joint and ifql",
        ),
    ],
    "agents/idql.py": [
        (
            "polyak(moved, moved.params, **slow)",
            "polyak(moved, state.params, **slow)",
            "test_idqls_policy_decays_and_its_slow_copies_follow",
        ),
        (
            '{"actor": config.weight_decay}',
            '{"critic": config.weight_decay}',
            "test_idqls_policy_decays_and_its_slow_copies_follow",
        ),
        (
            "with_critic(state, state.target_params)",
            "with_critic(state, state.params)",
            "test_acting_with_the_best_of_several",
        ),
        (
            "(actor_loss, implicit_value_loss, implicit_critic_loss)",
            "(actor_loss, implicit_critic_loss, implicit_value_loss)",
            "test_losses_and_gradients_equal_their_references and idql",
        ),
    ],
    "flowrl/choice.py": [
        (
            'one | {"critic": choice.ranking(state)["critic"]}',
            'one | {"critic": state.target_params["critic"]}',
            "test_acting_with_the_best_of_several",
        ),
    ],
}
