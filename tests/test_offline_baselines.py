"""TD3+BC, ReBRAC, IQL, IFQL and IDQL: losses by hand and against numpy, what moves when, problems with an answer."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from offline_references import Case, finite_differences
from small_agents import (
    SPEC,
    A,
    B,
    D,
    assert_close,
    compiled,
    compiled_mapped,
    config_of,
    followed,
    gradients,
    stack,
    state_with,
    transitions,
)
from stub_agents import ACTOR, CRITIC, field, network
from stub_agents import critics as twins
from ways import Way, array, each_way

from flowrl import agents, critics
from flowrl.agent import Agent
from flowrl.agents import idql, ifql, iql, rebrac, td3
from flowrl.config import check, put
from flowrl.critics import ImplicitValue
from flowrl.data import replay
from flowrl.data.dataset import from_arrays
from flowrl.data.samplers import Horizon, Transitions
from flowrl.diffusion import Diffusion
from flowrl.errors import UserError
from flowrl.experiment import presets
from flowrl.networks import Networks, Spec, dropout
from flowrl.run_folder import texts
from flowrl.train_state import Batch, Params, TrainState

NAMES = ("td3_bc", "rebrac", "iql", "ifql", "idql")


# ------------------------------------------------------------------------------------------------ tiny networks


def value(params: Any, observations: Any) -> Any:
    """b + w·s + (c·s)²: `[...]`."""
    return observations @ params["weight"] + (observations @ params["curve"]) ** 2 + params["bias"]


def gaussian(params: Any, observations: Any, key: Any = None) -> Any:
    """Means of one field, and log standard deviations of their own."""
    means = field(jnp, params, observations)
    return means, jnp.broadcast_to(params["log_stds"], means.shape)


def denoiser(params: Any, *inputs: Any, key: Any = None) -> Any:
    """A field of everything."""
    return field(jnp, params, *inputs)


VALUE = network("value", value)
STUBS: dict[str, Any] = {
    "td3_bc": Networks(SPEC, ACTOR, CRITIC),
    "rebrac": Networks(SPEC, ACTOR, CRITIC),
    "iql": iql.Networks(network("actor", gaussian), VALUE, CRITIC),
    "ifql": ifql.Networks(SPEC, network("actor", denoiser), VALUE, CRITIC),
    "idql": idql.Networks(SPEC, network("actor", denoiser), VALUE, CRITIC),
}
SHARED = {"learning_rate": 0.01, "discount": 0.9, "critic.target_rate": 0.2}
TOLD: dict[str, dict[str, Any]] = {
    "td3_bc": {**SHARED, "alpha": 1.7, "target_noise": 0.8},
    "rebrac": {
        **SHARED, "actor_learning_rate": 0.02, "alpha_actor": 0.6, "alpha_critic": 0.3, "target_noise": 0.8,
    },
    "iql": {**SHARED, "value.expectile": 0.8, "alpha": 0.7, "decay.steps": 4},
    "ifql": {**SHARED, "value.expectile": 0.8},
    "idql": {
        **SHARED, "value.expectile": 0.8, "value.temperature": 0.9, "decay.steps": 4, "weight_decay": 0.3,
        "actor_target_rate": 0.1,
    },
}  # fmt: skip
TARGETS = {"td3_bc": ("actor", "critic"), "rebrac": ("actor", "critic"), "iql": ("critic",), "ifql": ("critic",)}
TARGETS["idql"] = ("actor", "critic")


def told_of(name: str, told: dict[str, Any] | None = None) -> Any:
    return config_of(name, TOLD[name] | (told or {}))


@functools.cache
def _agent(name: str, structure: Any) -> Agent:
    config = jax.tree.unflatten(structure, [0.0] * structure.num_leaves)
    return dataclasses.replace(agents.load(name).make, networks=lambda config, spec: STUBS[name])(config, SPEC)


def agent_of(name: str, told: dict[str, Any] | None = None) -> Agent:
    return _agent(name, jax.tree.structure(told_of(name, told)))


def state_of(name: str, told: dict[str, Any] | None = None, seed: int = 0) -> TrainState:
    rng = np.random.default_rng([seed, len(name)])

    def drawn() -> Params:
        inputs = D + A + 1 if name in ("ifql", "idql") else D
        params: dict[str, Any] = {"actor": {"kernel": rng.normal(0, 0.6, (inputs, A)), "bias": rng.normal(0, 0.3, A)}}
        if name == "iql":
            params["actor"]["log_stds"] = rng.normal(-0.5, 0.3, A)
        shapes = {"weight": (2, D + A), "curve": (2, A), "bias": (2,)}
        params["critic"] = {leaf: rng.normal(0, 0.7, shape) for leaf, shape in shapes.items()}
        if name in ("iql", "ifql", "idql"):
            params["value"] = {leaf: rng.normal(0, 0.5, D) for leaf in ("weight", "curve")} | {"bias": np.asarray(0.1)}
        return jax.tree.map(jnp.asarray, params)

    params, slow = drawn(), drawn()
    return state_with(told_of(name, told), params, {target: slow[target] for target in TARGETS[name]})


def batch_of(seed: int = 0) -> Batch:
    """Transitions with the data's next actions, of which one row does not count."""
    batch, rng = transitions(seed), np.random.default_rng(seed + 100)
    return {**batch, "next_actions": jnp.asarray(rng.uniform(-1, 1, (B, A))), "valid": jnp.arange(B) != 4.0}


def run(name: str, told: dict[str, Any] | None = None, step: int = 0, seed: int = 0) -> Any:
    """States before and after an update, its metrics, and what a reference holds constant."""
    state, batch, key = state_of(name, told, seed).replace(step=jnp.int32(step)), batch_of(seed), jax.random.key(seed)
    after, metrics = compiled(agent_of(name, told))(state, batch, key)
    return state, after, metrics, Case(told_of(name, told), state, batch, key)


# ------------------------------------------------------------------------------------------------- losses by hand


class Plain:
    """Stands for a state: a configuration and parameters."""

    def __init__(self, name: str, told: dict[str, Any], params: Params, targets: Params) -> None:
        self.config, self.params, self.target_params = config_of(name, told), params, targets


def nets(**functions: Callable[..., Any]) -> Any:
    """Networks that are functions `(params, *inputs)` of their own entries, and the spec."""
    made = {
        name: lambda params, *inputs, name=name, f=f, **options: f(params[name], *inputs, **options)
        for name, f in functions.items()
    }
    return type("Nets", (), {name: staticmethod(f) for name, f in made.items()} | {"spec": SPEC})


def constant(params: jax.Array, *inputs: jax.Array) -> jax.Array:
    """The same values for all rows: `[heads]` to `[heads, B]`, or a scalar to `[B]`."""
    return jnp.broadcast_to(params[..., None], (*params.shape, len(inputs[0])))


def rows(**fields: Any) -> Batch:
    """Two transitions with rewards 1, of which the second terminates, γ = ½, and the actions (½, 0) and (0, −½)."""
    batch = {"observations": jnp.zeros((2, D)), "next_observations": jnp.zeros((2, D)), "rewards": jnp.ones(2)}
    batch |= {"actions": array([0.5, 0], [0, -0.5]), "discounts": array(0.5, 0), "valid": jnp.ones(2)}
    return batch | {"actions_valid": jnp.ones((2, 2))} | fields


@each_way
def test_errors_of_the_implicit_value_by_hand(way: Way) -> None:
    """κ = 0.8 at u = 2 and −1: 0.8 · 4 and 0.2 · 1, or 0.8 · 2 and 0.2 · 1; α = ½: (e − 1) · 2, (e^−½ − 1) · −1."""
    found = {
        objective: way(lambda u, k, t, o=objective: ImplicitValue(objective=o, expectile=k, temperature=t).errors(u))(
            array(2, -1, 9), jnp.float32(0.8), jnp.float32(0.5)
        )
        for objective in ("expectile", "quantile", "exponential")
    }
    np.testing.assert_allclose(found["expectile"], [3.2, 0.2, 64.8], rtol=1e-5)
    np.testing.assert_allclose(found["quantile"], [1.6, 0.2, 7.2], rtol=1e-5)
    # e^4.5 is cut to 6
    np.testing.assert_allclose(found["exponential"], [2 * (np.e - 1), 1 - np.exp(-0.5), 45], rtol=1e-5)


@pytest.mark.parametrize(("objective", "slopes"), [("quantile", [0.8, -0.2]), ("exponential", [np.e - 1, -0.393469])])
def test_slopes_of_idqls_objectives(objective: str, slopes: list[float]) -> None:
    def total(u: jax.Array) -> jax.Array:
        value = ImplicitValue(objective=objective, expectile=jnp.float32(0.8), temperature=jnp.float32(0.5))
        return value.errors(u).sum()

    np.testing.assert_allclose(jax.grad(total)(array(2, -1)), slopes, rtol=1e-5)


@each_way
def test_losses_of_implicit_q_learning_by_hand(way: Way) -> None:
    """Slow critics 3 and 5, V = 1, so that u = 2; κ = 0.8: 3.2 in each row, of which only the first counts, mean 1.6.

    Critics 1 and 2 against 1 + ½ · 1 = 1.5 and 1: squares 0.25, 0 and 0.25, 1, of which the first column counts.
    """

    def losses(critic: jax.Array, slow: jax.Array, v: jax.Array, valid: jax.Array) -> tuple[Any, Any]:
        state: Any = Plain("iql", {"value.expectile": 0.8}, {"value": v}, {"critic": slow})
        own, batch = nets(critic=constant, value=constant), rows(valid=valid)
        params, key = {"critic": critic, "value": v}, jax.random.key(0)
        return tuple(
            loss(own, params, state, batch, key)[0]
            for loss in (critics.implicit_value_loss, critics.implicit_critic_loss)
        )

    arguments = array(1, 2), array(3, 5), jnp.float32(1)
    np.testing.assert_allclose(way(losses)(*arguments, array(1, 0)), [1.6, 0.25], rtol=1e-5)
    np.testing.assert_allclose(way(losses)(*arguments, array(1, 1)), [3.2, 0.75], rtol=1e-5)


@each_way
def test_losses_of_iqls_policy_by_hand(way: Way) -> None:
    """μ = 0, σ = ½: −log π is 2 · ½² + log 2π − 2 log 2 in both rows; the weights e^{β (min Q − V)}, at most 100.

    Slow critics 3 and 5, critics 1 and 2, V = 1, β = ½: weights e and 1; with β = 5 the first is 100.
    """
    nll = 0.5 + np.log(2 * np.pi) - 2 * np.log(2)

    def loss(which: str, told: tuple[Any, ...], beta: jax.Array, valid: jax.Array) -> jax.Array:
        def policy(params: Any, s: jax.Array, key: jax.Array) -> Any:  # which is that of dropout
            return jnp.zeros((len(s), A)), jnp.full((len(s), A), params)

        state: Any = Plain("iql", dict(told), {"value": jnp.float32(1), "critic": array(1, 2)}, {"critic": array(3, 5)})
        state.config = put(state.config, {"alpha": beta})
        own, params = nets(critic=constant, value=constant, actor=policy), {"actor": jnp.log(0.5)}
        return getattr(iql, which)(own, params, state, rows(actions_valid=valid), jax.random.key(0))[0]

    all_valid, half = jnp.ones((2, 2)), array([0, 1], [1, 1])
    for told, beta, weight in (((), 0.5, np.e), ((), 5, 100), ((("advantage", "online"),), 5, 1)):
        found = way(functools.partial(loss, "awr_loss", told))(jnp.float32(beta), all_valid)
        np.testing.assert_allclose(found, weight * nll, rtol=1e-5)
    # Without the first action of the first row there is no (½ / ½)² / 2, and half of the constants.
    found = way(functools.partial(loss, "awr_loss", ()))(jnp.float32(0.5), half)
    np.testing.assert_allclose(found, np.e * (nll + (nll / 2 - 0.25)) / 2, rtol=1e-5)
    # Q of constant critics is 1, and so is its size.
    found = way(functools.partial(loss, "ddpgbc_loss", ()))(jnp.float32(0.3), all_valid)
    np.testing.assert_allclose(found, -1 + 0.3 * nll, rtol=1e-5)


@each_way
def test_losses_of_the_deterministic_policies_by_hand(way: Way) -> None:
    """π = tanh(θ) = (½, 0) where the data are (½, 0) and (0, −½); critics 2 and 3 times a₀.

    Squared distances 0 and ½: per dimension 0.125 on average, and 0.25 as their sum. Q₁ = 1 and min Q = 1 wherever
    π acts; divided by its size it is 1.
    """

    def losses(theta: jax.Array, weights: jax.Array) -> tuple[Any, ...]:
        own = nets(
            actor=lambda params, s: jnp.broadcast_to(params, (len(s), A)),
            critic=lambda params, s, a: params[:, None] * a[:, 0],
        )
        constants = {"critic": weights}
        cloning: Any = Plain("td3_bc", {"alpha": 1.7}, constants, {})
        other: Any = Plain("rebrac", {"alpha_actor": 0.6}, constants, {})
        arguments = rows(), jax.random.key(0)
        return (
            td3.actor_loss(own, {"actor": theta}, cloning, *arguments)[0],
            rebrac.actor_loss(own, {"actor": theta}, other, *arguments)[0],
        )

    found = way(losses)(jnp.arctanh(array(0.5, 0)), array(2, 3))
    np.testing.assert_allclose(found, [0.125 - 1.7, 0.6 * 0.25 - 1], rtol=1e-5)


@each_way
def test_rebracs_critics_by_hand(way: Way) -> None:
    """Slow critics 3 and 5; a' = (½, 0) without noise where the data go on with (0, 0): ‖·‖² = ¼, times β₂ = 2: ½.

    y = 1 + ½ (3 − ½) = 2.25 and 1; critics 1 and 2: squares 1.5625, 0.0625 and 0, 1.
    """

    def loss(joint: bool, critic: jax.Array, slow: jax.Array) -> jax.Array:
        told = {"alpha_critic": 2.0, "target_noise": 0.0, "joint": joint}
        targets = {"critic": slow, "actor": jnp.arctanh(array(0.5, 0))}
        own = nets(critic=constant, actor=lambda params, s: jnp.broadcast_to(params, (len(s), A)))
        batch = rows(next_actions=jnp.zeros((2, A)))
        state: Any = Plain("rebrac", told, {}, targets)
        return rebrac.critic_loss(own, {"critic": critic}, state, batch, jax.random.key(0))[0]

    for joint, expected in ((False, 2.625 / 2), (True, 2.625 / 4)):
        found = way(functools.partial(loss, joint))(array(1, 2), array(3, 5))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@each_way
def test_behaviour_losses_by_hand(way: Way) -> None:
    """Networks that give zeros: the flow's error is a − z, whose square is averaged; the noise's own is summed."""
    key = jax.random.key(3)
    a = rows()["actions"]
    noise = {
        "ifql": jax.random.normal(jax.random.split(key)[0], (2, A)),
        "idql": jax.random.normal(jax.random.split(jax.random.split(key)[0])[0], (2, A)),
    }

    def loss(name: str, theta: jax.Array, valid: jax.Array) -> jax.Array:
        plain = {"ifql": lambda params, s, x, t: params * x, "idql": lambda params, s, x, t, key: params * x}
        own = nets(actor=plain[name])
        state: Any = Plain(name, {}, {}, {})
        batch = rows(actions_valid=valid)
        return agents.load(name).actor_loss(own, {"actor": theta}, state, batch, key)[0]

    for valid in (jnp.ones((2, 2)), array([1, 0], [0, 1])):
        for name, expected in (
            ("ifql", (valid * (a - noise["ifql"]) ** 2).mean()),
            ("idql", (valid * noise["idql"] ** 2).sum() / 2),
        ):
            found = way(functools.partial(loss, name))(jnp.float32(0), valid)
            np.testing.assert_allclose(found, expected, rtol=1e-5)


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


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
def test_mapped_updates_equal_single_ones(name: str) -> None:
    states, keys = [state_of(name, None, seed) for seed in (0, 1)], jax.random.split(jax.random.key(3))
    after, _ = compiled_mapped(agent_of(name))(stack(states), batch_of(), keys)
    for i, state in enumerate(states):
        alone, _ = compiled(agent_of(name))(state, batch_of(), keys[i])
        assert_close(jax.tree.map(lambda x, i=i: x[i], after.params), alone.params, rtol=1e-9)


# ---------------------------------------------------------------------------------------------- what moves when


def same(one: Any, other: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), one, other)))


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


def test_the_variance_preserving_schedule_by_hand() -> None:
    """T = 2: β = 1 − exp(−0.05 − 4.95/4) and 1 − exp(−0.05 − 4.95 · 3/4), so that ᾱ ends at e^−5.05, as for any T."""
    np.testing.assert_allclose(Diffusion(levels=2, schedule="vp", schedule_scale=1.0).variance_left(), np.exp([
        -1.2875, -5.05,
    ]))  # fmt: skip
    np.testing.assert_allclose(
        Diffusion(levels=9, schedule="vp", schedule_scale=1.0).variance_left()[-1], np.exp(-5.05)
    )


@each_way
def test_steps_whose_points_are_cut_by_hand(way: Way) -> None:
    """x ← clip((x − β/√(1 − ᾱ) ε̂) / √(1 − β) + √β z), z only where a level follows; ε̂ = x/2 + 0.1 t here."""
    model = Diffusion(levels=3, schedule="vp", schedule_scale=1.0, clip="points")
    x, key = array([0.4, -2], [0.1, 3]), jax.random.key(2)
    found = way(functools.partial(model.sample, lambda x, t: x / 2 + 0.1 * t))(x, key)
    left, draws = model.variance_left(), np.asarray(jax.random.normal(key, (3, 2, 2)))
    expected = np.asarray(x)
    for draw, t in zip(draws, (2, 1, 0), strict=True):
        beta = 1 - left[t] / (left[t - 1] if t else 1)
        expected = (expected - beta / np.sqrt(1 - left[t]) * (expected / 2 + 0.1 * t)) / np.sqrt(1 - beta)
        expected = np.clip(expected + (np.sqrt(beta) * draw if t else 0), -1, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert (np.abs(expected) < 1).any()


# -------------------------------------------------------------------------------------------------- next actions


def test_next_actions_are_those_of_the_steps_that_follow() -> None:
    """Episodes of rows 0 … 4 and 5 … 8, the last of each without a transition; actions are their rows' numbers."""
    numbers = np.arange(9, dtype=np.float32)
    dataset = from_arrays({
        "observations": numbers[:, None], "actions": numbers[:, None], "rewards": numbers, "masks": np.ones(9),
        "terminals": np.isin(numbers, [4, 8]),
    })  # fmt: skip

    def found(horizon: Horizon, *rows: int) -> Any:
        return Transitions(0.9, horizon).at(dataset, jnp.array(rows))["next_actions"]

    np.testing.assert_array_equal(found(Horizon(), 0, 3, 5), [[1], [4], [6]])
    np.testing.assert_array_equal(found(Horizon(steps=2), 0, 1, 5), [[2], [3], [7]])
    np.testing.assert_array_equal(found(Horizon(steps=2, chunk=True), 0, 5), [[2, 3], [7, 7]])


@pytest.mark.parametrize("horizon", [Horizon(), Horizon(steps=2), Horizon(steps=2, chunk=True)], ids=str)
def test_next_actions_of_what_is_experienced(horizon: Horizon) -> None:
    """Two environments in turns: the next step of either lies two rows ahead."""
    kind = Transitions(0.9, horizon)
    buffer = replay.empty(Spec.of_sizes(1, 1), 12, kind, num_envs=2)
    for step in range(6):
        numbers = jnp.array([2.0 * step, 2.0 * step + 1])
        fields = {"observations": numbers[:, None], "actions": numbers[:, None], "rewards": numbers}
        fields |= {"masks": jnp.ones(2), "next_observations": numbers[:, None] + 2, "ended": jnp.zeros(2, bool)}
        buffer = replay.add(buffer, fields)
    batch = replay.sample(jax.random.key(0), buffer, 200, kind)
    first, after = np.asarray(batch["observations"][:, 0]), np.asarray(batch["next_actions"])
    ahead = first + 2 * horizon.steps
    np.testing.assert_array_equal(after[ahead < 12, 0], ahead[ahead < 12])
    assert after.shape[1] == (2 if horizon.chunk else 1)
    if horizon.chunk:
        np.testing.assert_array_equal(after[ahead < 10, 1], ahead[ahead < 10] + 2)


@pytest.mark.parametrize("name", ["td3_bc", "rebrac"])
def test_masked_actions_are_not_cloned(name: str) -> None:
    """With no action valid, none matters to the policy's loss."""
    losses = []
    for shift in (0.0, 0.3):
        state: Any = Plain(name, {}, {"critic": array(1, 2)}, {})
        own = nets(actor=lambda params, s: jnp.broadcast_to(params, (len(s), A)), critic=constant)
        batch = rows(actions_valid=jnp.zeros((2, 2)))
        batch["actions"] = batch["actions"] + shift
        actor_loss = agents.load(name).actor_loss
        losses.append(actor_loss(own, {"actor": array(0.2, 0.1)}, state, batch, jax.random.key(0))[0])
    assert losses[0] == losses[1]


# ------------------------------------------------------------------------------------------------------ networks


def leaf(tree: Any, *names: str) -> Any:
    return functools.reduce(lambda part, name: part[name], ("params", *names), tree)


def test_networks_are_the_authors() -> None:
    """Of a state of 17 and an action of 6."""

    def sizes(name: str, **told: Any) -> dict[str, int]:
        config = config_of(name, told)
        state = jax.eval_shape(agents.build(name, config, Spec.of_sizes(17, 6)).init, jax.random.key(0), config)
        return {entry: sum(x.size for x in jax.tree.leaves(params)) for entry, params in state.params.items()}

    def mlp(*widths: int) -> int:
        return sum((one + 1) * other for one, other in itertools.pairwise(widths))

    q = 2 * mlp(23, 256, 256, 1)
    assert sizes("td3_bc") == {"actor": mlp(17, 256, 256, 6), "critic": q}
    norms = 2 * 2 * 3 * 256
    assert sizes("rebrac") == {
        "actor": mlp(17, 256, 256, 256, 6),
        "critic": 2 * mlp(23, 256, 256, 256, 1) + norms,
    }
    assert sizes("iql") == {"actor": mlp(17, 256, 256, 6) + 6, "value": mlp(17, 256, 256, 1), "critic": q}
    embedding = 64 + mlp(128, 256, 256)
    blocks = 3 * (2 * 256 + mlp(256, 1024, 256))
    assert sizes("idql") == {
        "actor": embedding + (6 + 17 + 256 + 1) * 256 + blocks + 257 * 6,
        "value": 2 * 17 + mlp(17, 256, 256, 1),
        "critic": q,
    }


def test_networks_start_as_the_authors_do() -> None:
    def params(name: str, **told: Any) -> Any:
        config = config_of(name, {"hidden_dims": (64, 64)} | told)
        agent = agents.build(name, config, Spec.of_sizes(25, 6))
        return jax.jit(agent.init)(jax.random.key(0), config).params

    found = params("rebrac")
    for entry, limit, inputs in (("actor", 1e-3, 25), ("critic", 3e-3, 31)):
        mlp = leaf(found[entry], "MLP_0") if entry == "critic" else leaf(found[entry])
        assert np.abs(mlp["SplitDense_0"]["kernel"]).max() == pytest.approx(inputs**-0.5, rel=0.02)
        assert np.abs(mlp["Dense_1"]["kernel"]).max() == pytest.approx(limit, rel=0.1)
        assert 0 < np.abs(mlp["Dense_1"]["bias"]).max() <= limit
        np.testing.assert_allclose(mlp["Dense_0"]["bias"], 0.1)
    found = params("iql")
    kernel = leaf(found["actor"], "MLP_0", "Dense_0", "kernel")
    np.testing.assert_allclose(kernel @ kernel.T, 2 * np.eye(64), atol=1e-4)
    last = leaf(found["actor"], "MLP_0", "Dense_1", "kernel")
    np.testing.assert_allclose(last.T @ last, 2 * np.eye(6), atol=1e-4)
    np.testing.assert_array_equal(leaf(found["actor"], "log_stds"), np.zeros(6))


def policy_of(name: str, **told: Any) -> Callable[..., Any]:
    """A fresh policy, a function of its inputs and of what replaces some of its parameters."""
    actor = agents.load(name).networks(config_of(name, told), SPEC).actor
    params = jax.jit(actor.init)(jax.random.key(0))
    return lambda *inputs, key=None, **other: actor({"actor": {"params": params["params"] | other}}, *inputs, key=key)


def test_deviations_stay_in_their_range_and_means_in_theirs() -> None:
    policy, s = policy_of("iql", hidden_dims=(8,)), 100 * jnp.ones((1, D))
    for log, expected in ((9.0, 2.0), (-9.0, -5.0)):
        means, log_stds = policy(s, log_stds=jnp.full(A, log))
        np.testing.assert_array_equal(log_stds, np.full((1, A), expected))
        assert 0.5 < np.abs(means).max() <= 1
    means, log_stds = policy_of("iql", hidden_dims=(8,), tanh_mean=False, learnt_std=False)(s)
    np.testing.assert_array_equal(log_stds, np.zeros((1, A)))
    assert np.abs(means).max() > 1


@each_way
def test_dropout_by_hand(way: Way) -> None:
    x = jnp.full(4000, 3.0)
    found = way(lambda x, key: dropout(x, 0.25, key))(x, jax.random.key(0))
    assert set(np.asarray(found)) == {0, 4}
    assert abs(found.mean() - 3) < 0.1
    np.testing.assert_array_equal(dropout(x, 0.25, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, jax.random.key(0)), x)


@pytest.mark.parametrize("name", ["iql", "idql"])
def test_numbers_are_dropped_where_a_key_is_given(name: str) -> None:
    inputs = [jnp.ones((1, D)), *([jnp.ones((1, A)), jnp.ones((1, 1))] if name == "idql" else [])]
    policy = policy_of(name, hidden_dims=(16, 16), dropout=0.5)
    plain, again, one, other = (jax.tree.leaves(policy(*inputs, key=key))[0] for key in (
        None, None, jax.random.key(1), jax.random.key(2)
    ))  # fmt: skip
    assert same(plain, again)
    assert not same(plain, one)
    assert not same(one, other)


def test_blocks_of_several_widths_are_refused() -> None:
    with pytest.raises(UserError, match=r"--agent\.hidden_dims=64,32 has several widths"):
        check(config_of("idql", {"hidden_dims": (64, 32)}), "agent.")


# ------------------------------------------------------------------------------------------------------- presets


def published(name: str, dataset: str) -> dict[str, str]:
    """The flags of a row, those of the run and the agent's."""
    preset = presets.lookup("paper", name, dataset)
    return preset.run | {f"agent.{flag}": text for flag, text in preset.agent.items()}


@pytest.mark.parametrize(("name", "rows"), [("td3_bc", 15), ("rebrac", 106), ("iql", 90), ("ifql", 88), ("idql", 87)])
def test_published_rows_build(name: str, rows: int) -> None:
    known = presets.datasets(name)
    assert len(known) == rows
    structures = set()
    for dataset in known:
        preset = presets.lookup("paper", name, dataset)
        config = put(agents.default(name), texts.read(agents.default(name), preset.agent))
        check(config, "agent.")
        structures.add(jax.tree.structure(config))
    for structure in structures:
        config = jax.tree.unflatten(structure, [0.5] * structure.num_leaves)
        agent = agents.build(name, config, SPEC)
        state = jax.eval_shape(agent.init, jax.random.key(0), config)
        after, _ = jax.eval_shape(agent.update, state, batch_of(), jax.random.key(0))
        assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)


@pytest.mark.parametrize(
    ("name", "dataset", "flags"),
    [
        ("td3_bc", "hopper-medium-v2", {"normalize.observations": "True", "agent.alpha": "2.5"}),
        ("rebrac", "hopper-medium-v2", {"agent.alpha_actor": "0.01", "agent.alpha_critic": "0.01", "steps": "1000000"}),
        (
            "rebrac",
            "antmaze-large-diverse-v2",
            {"agent.learning_rate": "5e-05", "agent.discount": "0.999", "normalize.reward_scale": "100"},
        ),
        (
            "rebrac",
            "cube-double-play-singletask",
            {"agent.alpha_actor": "0.1", "agent.alpha_critic": "0", "agent.joint": "True"},
        ),
        (
            "iql",
            "antmaze-umaze-v2",
            {"agent.value.expectile": "0.9", "agent.alpha": "10", "normalize.reward_shift": "-1"},
        ),
        ("iql", "kitchen-mixed-v0", {"agent.value.expectile": "0.7", "agent.alpha": "0.5", "agent.dropout": "0.1"}),
        ("iql", "puzzle-4x4-play-singletask", {"agent.alpha": "3", "agent.hidden_dims": "256,256,256,256"}),
        ("ifql", "antsoccer-arena-navigate-singletask", {"agent.choice.num_samples": "64", "agent.discount": "0.995"}),
        ("ifql", "antmaze-umaze-v2", {"steps": "500000", "normalize.reward_shift": "-1"}),
        ("idql", "hopper-medium-v2", {"steps": "3000000", "normalize.rewards": "True", "agent.value.expectile": "0.7"}),
        ("idql", "scene-play-singletask", {"agent.choice.num_samples": "32", "agent.critic.hidden_dims": "256,256"}),
    ],
)
def test_published_values(name: str, dataset: str, flags: dict[str, str]) -> None:
    assert flags.items() <= published(name, dataset).items()


# ------------------------------------------------------------------------------------- problems with known answers


def expectile_of(values: np.ndarray, kappa: float) -> float:
    """The number m at which κ Σ (x − m)₊ = (1 − κ) Σ (m − x)₊, by bisection."""
    low, high = values.min(), values.max()
    for _ in range(60):
        m = (low + high) / 2
        rises = kappa * np.maximum(values - m, 0).sum() > (1 - kappa) * np.maximum(m - values, 0).sum()
        low, high = (m, high) if rises else (low, m)
    return float(low)


@pytest.mark.parametrize("kappa", [0.5, 0.8, 0.99])
def test_a_table_has_the_expectiles_of_its_values(kappa: float) -> None:
    """State 0 leads to state 1 and that to the end, γ = ½; in each the data have four actions, three of them alike.

    Q(1, a) = r and V(1) is the κ-expectile of the data's; Q(0, a) = r + ½ V(1), V(0) likewise. At κ = ½ V is the mean,
    near 1 the greatest value.
    """
    rewards = np.array([[1.0, 1, 2, 0], [0, 3, 3, -1]])
    columns = np.array([[0, 0, 1, 2], [0, 1, 1, 2]])
    later = expectile_of(rewards[1], kappa)
    expected = [expectile_of(rewards[0] + 0.5 * later, kappa), later]
    states = np.repeat([0, 1], 4)
    batch = Transitions(0.5).complete({
        "observations": jnp.eye(2)[states], "actions": jnp.eye(3)[columns.ravel()], "rewards": rewards.ravel(),
        "masks": 1.0 - states, "next_observations": jnp.eye(2)[np.ones(8, int)],
    })  # fmt: skip
    table = iql.Networks(
        network("actor", gaussian),
        network("value", lambda params, s: s @ params),
        network("critic", lambda params, s, a: jnp.einsum("hij,bi,bj->hb", params, s, a)),
    )
    make = dataclasses.replace(iql.make, networks=lambda config, spec: table)
    told = {"value.expectile": kappa, "discount": 0.5, "critic.target_rate": 0.05, "alpha": 0.0}
    config = config_of("iql", told)
    agent = make(config, Spec.of_sizes(2, 3))
    actor = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3), "log_stds": jnp.zeros(3)}
    params = {"actor": actor, "value": jnp.zeros(2), "critic": jnp.zeros((2, 2, 3))}
    state = state_with(config, params, {"critic": params["critic"]})

    def step(i: jax.Array, state: TrainState) -> TrainState:
        rate = 0.03 * 0.5 ** (i / 500)
        state = state.replace(config=put(state.config, {"learning_rate": rate}))
        return agent.update(state, batch, jax.random.key(0))[0]

    trained = jax.jit(lambda state: jax.lax.fori_loop(0, 4000, step, state))(state)
    np.testing.assert_allclose(trained.params["value"], expected, atol=0.02)
    if kappa == 0.99:
        np.testing.assert_allclose(trained.params["value"], [3.5, 3], atol=0.15)


PROBE: dict[str, dict[str, Any]] = {
    "td3_bc": {"alpha": 40.0},
    "rebrac": {"alpha_actor": 0.02, "alpha_critic": 0.0, "actor_learning_rate": 3e-3},
    "iql": {"alpha": 10.0, "value.expectile": 0.9, "decay.steps": 0},
    "ifql": {"flow.steps": 4},
    "idql": {"hidden_dims": (32,), "time_dim": 16, "decay.steps": 0, "actor_target_rate": 0.02, "dropout": 0.0},
}


@pytest.mark.parametrize("name", NAMES)
def test_a_bandit_with_a_known_answer(name: str) -> None:
    """r = −4 (a − s/2)² at states −1 and 1, then the episode is over; the data's actions are uniform."""
    told = {"hidden_dims": (32, 32), "critic.hidden_dims": (32, 32), "learning_rate": 3e-3, "batch_size": 64}
    config = config_of(name, told | {"critic.target_rate": 0.05} | PROBE[name])
    agent = agents.build(name, config, Spec.of_sizes(1, 1))

    @jax.jit
    def train(key: jax.Array) -> jax.Array:
        def body(i: jax.Array, state: TrainState) -> TrainState:
            state_key, action_key, update_key = jax.random.split(jax.random.fold_in(key, i), 3)
            s = jax.random.rademacher(state_key, (64, 1), jnp.float32)
            a = jax.random.uniform(action_key, (64, 1), minval=-1.0)
            fields = {"observations": s, "actions": a, "rewards": -4 * (a - s / 2)[:, 0] ** 2, "next_actions": a}
            batch = agent.batch(config).complete({**fields, "masks": jnp.zeros(64), "next_observations": s})
            return agent.update(state, batch, update_key)[0]

        state = jax.lax.fori_loop(0, 600, body, agent.init(key, config))
        inputs = {"observations": jnp.tile(jnp.array([[-1.0], [1.0]]), (50, 1))}
        return agent.act(agent.policy(state), inputs, jax.random.key(1)).reshape(50, 2)

    actions = train(jax.random.key(0))
    np.testing.assert_allclose(actions.mean(axis=0), [-0.5, 0.5], atol=0.12)
    np.testing.assert_allclose(actions, np.broadcast_to([-0.5, 0.5], (50, 2)), atol=0.4)


FAULTS = {
    "flowrl/critics.py": [
        ("config.value.errors(q - v)", "config.value.errors(v - q)", "test_losses_of_implicit_q_learning_by_hand"),
        ('(batch["valid"] * config.value', "(config.value", "test_losses_of_implicit_q_learning_by_hand"),
        (
            "nets.critic(state.target_params, s, *g, batch",
            "nets.critic(state.params, s, *g, batch",
            "test_losses_and_gradients_equal_their_references and iql",
        ),
        ('batch["discounts"] * nets.value(', "nets.value(", "test_losses_of_implicit_q_learning_by_hand"),
        ("loss = errors.mean(axis=-1).sum()", "loss = errors.mean()", "test_losses_of_implicit_q_learning_by_hand"),
    ],
    "flowrl/losses.py": [
        (
            "expectile_weight(errors, quantile) * jnp.abs(errors)",
            "expectile_weight(errors, quantile) * errors",
            "test_errors_of_the_implicit_value_by_hand",
        ),
        (
            "jax.lax.stop_gradient(jnp.exp(jnp.minimum(temperature * errors, jnp.log(6.0))) - 1)",
            "(jnp.exp(jnp.minimum(temperature * errors, jnp.log(6.0))) - 1)",
            "test_slopes_of_idqls_objectives",
        ),
        (
            "jnp.minimum(temperature * errors, jnp.log(6.0))",
            "temperature * errors",
            "test_errors_of_the_implicit_value_by_hand",
        ),
        ("squares + 2 * log_stds", "squares - 2 * log_stds", "test_losses_of_iqls_policy_by_hand"),
        (
            "jax.lax.stop_gradient(jnp.abs(q).mean() + constant)",
            "(jnp.abs(q).mean() + constant)",
            "test_losses_and_gradients_equal_their_references and rebrac",
        ),
    ],
    "flowrl/optim.py": [
        ("d + decay * p", "d - decay * p", "test_idqls_policy_decays_and_its_slow_copies_follow"),
        ("jnp.cos(jnp.pi * fallen)", "jnp.cos(fallen)", "test_iqls_policy_slows_down_along_a_cosine"),
        (
            "jnp.clip((done - rise) / jnp.maximum(self.steps - rise, 1), 0.0, 1.0)",
            "(done - rise) / jnp.maximum(self.steps - rise, 1)",
            "test_iqls_policy_slows_down_along_a_cosine",
        ),
    ],
    "flowrl/policies.py": [
        (
            "jnp.tanh(means) if self.tanh",
            "means if self.tanh",
            "test_deviations_stay_in_their_range_and_means_in_theirs",
        ),
        (
            "jnp.clip(log_stds, *LOG_STD_RANGE), means.shape",
            "log_stds, means.shape",
            "test_deviations_stay_in_their_range_and_means_in_theirs",
        ),
        ("jnp.exp(log_stds) * unit_gaussian(", "unit_gaussian(", "test_gaussians_and_noise_when_exploring and iql"),
        ("loss = -(weights *", "loss = (weights *", "test_losses_of_iqls_policy_by_hand"),
        (
            "gaussian_log_prob(actions, *gaussian, valid)).mean()",
            "gaussian_log_prob(actions, *gaussian)).mean()",
            "test_losses_of_iqls_policy_by_hand",
        ),
        ("q_loss = -relative(", "q_loss = relative(", "test_losses_of_iqls_policy_by_hand"),
        ("cloning = -alpha", "cloning = alpha", "test_losses_of_iqls_policy_by_hand"),
    ],
    "flowrl/networks.py": [
        ("x / (1 - rate), 0.0", "x, 0.0", "test_dropout_by_hand"),
        ("if self.input_norm:", "if False:", "test_networks_are_the_authors"),
        (
            "uniform_within(shape[-2] ** -0.5)",
            "uniform_within(shape[-1] ** -0.5)",
            "test_networks_start_as_the_authors_do",
        ),
    ],
    "flowrl/encoders.py": [
        (
            "h = dropout(x, self.dropout, ",
            "h = dropout(x, 0.0, ",
            "test_numbers_are_dropped_where_a_key_is_given and idql",
        ),
        ("nn.Dense(4 * width)", "nn.Dense(2 * width)", "test_networks_are_the_authors"),
    ],
    "flowrl/data/dataset.py": [
        (
            'for name in ("observations", "actions")}',
            'for name in ("observations",)} | {"next_actions": batch["actions"]}',
            "test_next_actions_are_those_of_the_steps_that_follow",
        ),
    ],
    "flowrl/data/samplers.py": [
        (
            'fields["actions"][later.rows[:, 0]]',
            'fields["actions"][stretch.rows[:, -1]]',
            "test_next_actions_are_those_of_the_steps_that_follow",
        ),
        (
            '"next_actions": fields["actions"][later.rows]',
            '"next_actions": fields["actions"][stretch.rows]',
            "test_next_actions_are_those_of_the_steps_that_follow",
        ),
    ],
    "flowrl/data/replay.py": [
        ("(drawn + replay.num_envs) %", "(drawn + 1) %", "test_next_actions_of_what_is_experienced"),
    ],
    "agents/td3.py": [
        (
            "cloning - state.config.alpha * q.mean()",
            "cloning + state.config.alpha * q.mean()",
            "test_losses_of_the_deterministic_policies_by_hand",
        ),
        (
            "jax.lax.stop_gradient(jnp.abs(q).mean())",
            "jnp.abs(q).mean()",
            "test_losses_and_gradients_equal_their_references and td3_bc",
        ),
        (
            'mse(a, batch["actions"], batch["actions_valid"])',
            'mse(a, batch["actions"])',
            "test_masked_actions_are_not_cloned and td3_bc",
        ),
        (
            "q = nets.critic(state.params, s, a)[0]",
            "q = nets.critic(state.params, s, a).min(axis=0)",
            "test_losses_and_gradients_equal_their_references and td3_bc",
        ),
    ],
    "agents/rebrac.py": [
        ("- config.alpha_critic * distances", "+ config.alpha_critic * distances", "test_rebracs_critics_by_hand"),
        ('batch["discounts"] * next_q', "next_q", "test_rebracs_critics_by_hand"),
        (
            "nets.critic(slow, next_s, next_a)",
            "nets.critic(state.params, next_s, next_a)",
            "test_losses_and_gradients_equal_their_references and rebrac",
        ),
        (
            "errors.mean() if config.joint else",
            "errors.mean() if not config.joint else",
            "test_rebracs_critics_by_hand",
        ),
        ("nets.spec.action_dim * mse(", "mse(", "test_losses_of_the_deterministic_policies_by_hand"),
        (
            'mse(a, batch["actions"], batch["actions_valid"])',
            'mse(a, batch["actions"])',
            "test_masked_actions_are_not_cloned and rebrac",
        ),
        ("q_loss = -relative(q)", "q_loss = relative(q)", "test_losses_of_the_deterministic_policies_by_hand"),
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
        ("- nets.value(state.params, s)", "+ nets.value(state.params, s)", "test_losses_of_iqls_policy_by_hand"),
        ('if config.advantage == "target"', 'if config.advantage == "online"', "test_losses_of_iqls_policy_by_hand"),
        (
            ', config.alpha, batch["actions_valid"])\n\n\ndef ddpgbc',
            ", config.alpha)\n\n\ndef ddpgbc",
            "test_losses_of_iqls_policy_by_hand",
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
        ('batch["actions"], key, batch["actions_valid"]', 'batch["actions"], key', "test_behaviour_losses_by_hand"),
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
        ("nets.spec.action_dim * errors", "errors", "test_behaviour_losses_by_hand"),
        (', model_key, batch["actions_valid"]', ", model_key", "test_behaviour_losses_by_hand"),
        (", key=dropout_key", "", "test_behaviour_losses_by_hand"),
        (
            "model_key, dropout_key = jax.random.split(key)",
            "model_key = dropout_key = key",
            "test_behaviour_losses_by_hand",
        ),
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
    "flowrl/diffusion.py": [
        ("4.95 * (2 * t - 1)", "4.95 * (2 * t)", "test_the_variance_preserving_schedule_by_hand"),
        ("else beta * (before < 1)", "else beta", "test_steps_whose_points_are_cut_by_hand"),
        (
            'jnp.clip(points, -bound, bound) if clip == "points" else points',
            "points",
            "test_steps_whose_points_are_cut_by_hand",
        ),
    ],
    "flowrl/choice.py": [
        (
            'one | {"critic": choice.ranking(state)["critic"]}',
            'one | {"critic": state.target_params["critic"]}',
            "test_acting_with_the_best_of_several",
        ),
        (
            "partial(nets.critic, params, s), key)",
            "lambda a: -nets.critic(params, s, a), key)",
            "test_a_bandit_with_a_known_answer and ifql",
        ),
    ],
}
