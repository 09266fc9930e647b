"""SAC and TD3: their parts by hand, their updates against references in numpy, and a bandit with a known answer."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flowrl.gaussian import draw, squash
from offline_references import (
    A,
    Case,
    Critics,
    D,
    Field,
    GaussianField,
    batch_of,
    close,
    critics,
    field,
    finite_differences,
    gradients,
    squashed,
)

from flowrl import agent as agents
from flowrl import config as configs
from flowrl.agent import Spec
from flowrl.agents import sac, td3
from flowrl.optim import every
from flowrl.train_state import Params, TrainState, new_state

NAMES = ("sac", "td3")
TARGETS = {"sac": ("critic",), "td3": ("actor", "critic")}
SHARED = {"learning_rate": 0.01, "discount": 0.9, "critic_target_rate": 0.2}
HYPER = {
    "sac": {**SHARED, "target_entropy": -0.7, "initial_temperature": 0.6},
    "td3": {**SHARED, "target_noise": 0.8, "noise_clip": 0.5, "explore_noise": 0.3},
}


NETWORKS: dict[str, Any] = {"sac": sac.Networks(GaussianField(), Critics()), "td3": td3.Networks(Field(), Critics())}


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def config_of(name: str, **fields: Any) -> Any:
    return agents.load(name).Config(**{**HYPER[name], **fields})


def state_of(name: str, seed: int = 0) -> TrainState:
    """A state with slow copies unlike the trained networks, float64."""
    rng = np.random.default_rng([seed, len(name)])

    def params() -> dict[str, Any]:
        size = 2 * A if name == "sac" else A
        actor = {"kernel": rng.normal(0, 0.6, (D, size)), "bias": rng.normal(0, 0.3, size)}
        shapes = {"weight": (2, D + A), "curve": (2, A), "bias": (2,)}
        critic = {leaf: rng.normal(0, 0.7, shape) for leaf, shape in shapes.items()}
        extra = {"temperature": {"log": rng.normal(-1, 0.3)}} if name == "sac" else {}
        return jax.tree.map(jnp.asarray, {"actor": actor, "critic": critic, **extra})

    config, trained, slow = config_of(name), params(), params()
    hyper = {field: jnp.asarray(getattr(config, field), float) for field in configs.hyper(config)}
    state = new_state(trained, TARGETS[name], hyper)
    return state.replace(target_params={network: slow[network] for network in TARGETS[name]})


@functools.cache
def step_of(name: str, mapped: bool = False, **fields: Any) -> Callable[..., Any]:
    module, config = agents.load(name), config_of(name, **fields)
    static = (NETWORKS[name], config, *([Spec(D, A, 0)] if name == "sac" else []))
    update = functools.partial(module.update, *static)
    axes = (state_of(name).replace(step=None), None, 0)
    if mapped:
        stacked = jax.tree.map(lambda _: 0, axes[0])
        update = jax.vmap(update, in_axes=(stacked, None, 0), out_axes=((stacked), 0))
    return jax.jit(update)  # unoptimised, XLA 0.10 gives NaN for a gradient here


# ------------------------------------------------------------------------------------------- squashed Gaussian


@pytest.mark.parametrize("variant", [lambda f: f, jax.jit, jax.vmap], ids=["plain", "jit", "vmap"])
def test_squashed_gaussian_by_hand(variant: Any) -> None:
    """At the mode 0: −½ log 2π = −0.918939 for each action, and tanh's slope is 1. With μ = ½, σ = 2 and noise 1 the
    action is tanh 2.5 = 0.986614 with slope 1 − tanh² 2.5 = 0.0265922: −½ − 0.918939 − log 2 + 3.627131 = 1.515045."""
    means, log_stds = jnp.array([[0.0, 0.0], [0.5, 0.0]]), jnp.array([[0.0, 0.0], [np.log(2), 0.0]])
    actions, log_probs = variant(squash)(means, log_stds, jnp.array([[0.0, 0.0], [1.0, 0.0]]))
    np.testing.assert_allclose(actions, [[0, 0], [0.986614, 0]], atol=1e-6)
    np.testing.assert_allclose(log_probs, [-1.837877, 1.515045 - 0.918939], atol=1e-5)


def test_squashed_density_integrates_to_one() -> None:
    before = jnp.linspace(-12.0, 12.0, 20_001)[:, None]
    actions, log_probs = squash(jnp.array([0.3]), jnp.array([-0.2]), (before - 0.3) / jnp.exp(-0.2))
    total = jnp.trapezoid(jnp.exp(log_probs), actions[:, 0])
    np.testing.assert_allclose(total, 1, atol=1e-4)


def test_saturated_actions_have_finite_densities() -> None:
    with jax.enable_x64(False):
        far = jnp.array([[30.0], [-30.0]], jnp.float32)
        grads = jax.grad(lambda means: squash(means, jnp.zeros_like(means), jnp.zeros_like(means))[1].sum())(far)
        _, log_probs = squash(far, jnp.zeros_like(far), jnp.zeros_like(far))
    np.testing.assert_allclose(log_probs, [60 - 0.918939 - 2 * np.log(2)] * 2, rtol=1e-5)
    np.testing.assert_allclose(grads, [[2], [-2]], rtol=1e-5)


def test_evaluation_takes_the_mode_and_exploration_samples() -> None:
    means, log_stds = jnp.full((4000, 1), 0.4), jnp.full((4000, 1), -1.0)
    np.testing.assert_allclose(draw(means, log_stds, jax.random.key(0), "eval"), np.tanh(0.4), rtol=1e-6)
    before = jnp.arctanh(draw(means, log_stds, jax.random.key(0), "explore"))
    np.testing.assert_allclose([before.mean(), before.std()], [0.4, np.exp(-1)], atol=0.02)


# ----------------------------------------------------------------------------------------------------- updates


def sac_reference(case: Case, _: Any) -> Callable[[Params], dict[str, Any]]:
    critic_key, actor_key = jax.random.split(case.key)
    s, after = case.batch["observations"], case.batch["next_observations"]
    next_noise, noise = case.normal(critic_key), case.normal(actor_key)
    alpha = np.exp(case.params["temperature"]["log"])
    next_actions, next_log_probs = squashed(case.params["actor"], after, next_noise)
    soft = np.minimum(*critics(np, case.slow["critic"], after, next_actions)) - alpha * next_log_probs

    def metrics(params: Params) -> dict[str, Any]:
        actions, log_probs = squashed(params["actor"], s, noise)
        entropy = -squashed(case.params["actor"], s, noise)[1].mean()
        values = np.minimum(*critics(np, case.params["critic"], s, actions))
        learnt_alpha = np.exp(params["temperature"]["log"])
        return {
            "critic/loss": case.td_loss(params, soft),
            "actor/loss": (alpha * log_probs - values).mean(),
            "actor/temperature": learnt_alpha,
            "total": learnt_alpha * (entropy - case.hyper["target_entropy"] * A),
        }

    return metrics


def td3_reference(case: Case, moved_critic: Any) -> Callable[[Params], dict[str, Any]]:
    s, after = case.batch["observations"], case.batch["next_observations"]
    noise = np.clip(case.hyper["target_noise"] * case.normal(case.key), -0.5, 0.5)
    next_actions = np.clip(np.tanh(field(np, case.slow["actor"], after)) + noise, -1, 1)
    next_values = np.minimum(*critics(np, case.slow["critic"], after, next_actions))

    def metrics(params: Params) -> dict[str, Any]:
        values = critics(np, moved_critic, s, np.tanh(field(np, params["actor"], s)))
        # Twice as large, since it counts at every second update.
        return {"critic/loss": case.td_loss(params, next_values), "actor/loss": -2 * values[0].mean(), "total": 0.0}

    return metrics


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_equal_their_references(name: str, seed: int) -> None:
    state, batch, key = state_of(name, seed), batch_of(seed), jax.random.key(seed)
    after, metrics = step_of(name)(state, batch, key)
    case = Case(config_of(name), state, batch, key)
    moved_critic = jax.tree.map(np.asarray, after.params["critic"])
    reference = {"sac": sac_reference, "td3": td3_reference}[name](case, moved_critic)
    expected = reference(case.params)
    for metric in expected.keys() - {"total"}:
        np.testing.assert_allclose(metrics[metric], expected[metric], rtol=1e-6, err_msg=metric)
    weight = 0.5 if name == "td3" else 1.0

    def total(params: Params) -> float:
        found = reference(params)
        return found["critic/loss"] + weight * found["actor/loss"] + found["total"]

    close(gradients(after), finite_differences(total, case.params))


@pytest.mark.parametrize(("q_agg", "slow_value", "value"), [("min", 3, 1), ("mean", 4, 1.5)])
def test_sac_by_hand(q_agg: str, slow_value: float, value: float) -> None:
    """Critics 1 and 2, slow ones 3 and 5, α = ½, log densities known, r = 1, γ = ½, masks 1 and 0.

    With μ = 0, log σ = −5 and the update's own noise n the density is −½ Σ n² − log 2π + 10 − Σ log(1 − a²).
    """
    state, key = state_of("sac"), jax.random.key(2)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    actor = {**zeros["actor"], "bias": jnp.array([0.0, 0.0, -5.0, -5.0])}
    constant = {**zeros["critic"], "bias": jnp.array([1.0, 2.0])}
    hyper = {**state.hyper, "discount": jnp.asarray(0.5), "target_entropy": jnp.asarray(-1.0)}
    state = state.replace(
        params={"actor": actor, "critic": constant, "temperature": {"log": jnp.log(0.5)}},
        target_params={"critic": {**zeros["critic"], "bias": jnp.array([3.0, 5.0])}},
        hyper=hyper,
    )

    class Plain:
        def apply(self, params: Any, observations: jax.Array) -> Any:
            return jnp.split(jnp.broadcast_to(params["bias"], (len(observations), 4)), 2, axis=-1)

    batch = {name: array[:2] for name, array in batch_of().items()} | {"rewards": jnp.ones(2)}
    batch["masks"] = jnp.array([1.0, 0.0])
    networks = sac.Networks(Plain(), Critics())
    _, metrics = sac.update(networks, sac.Config(q_agg=q_agg), Spec(D, A, 0), state, batch, key)
    noise, own = (np.asarray(jax.random.normal(k, (2, 2))) for k in jax.random.split(key))

    def log_density(n: np.ndarray) -> np.ndarray:
        return (-0.5 * n**2 - 0.5 * np.log(2 * np.pi) + 5 - np.log(1 - np.tanh(np.exp(-5) * n) ** 2)).sum(axis=-1)

    target = 1 + 0.5 * (slow_value - 0.5 * log_density(noise)[0])
    np.testing.assert_allclose(metrics["critic/loss"], ((target - 1) ** 2 + (target - 2) ** 2 + 0 + 1) / 4)
    np.testing.assert_allclose(metrics["actor/loss"], 0.5 * log_density(own).mean() - value)
    np.testing.assert_allclose(metrics["actor/entropy"], -log_density(own).mean())


@pytest.mark.parametrize(("target", "sign"), [(-50.0, -1), (50.0, 1)])
def test_the_temperature_falls_while_there_is_too_much_entropy(target: float, sign: int) -> None:
    state = state_of("sac")
    state = state.replace(hyper={**state.hyper, "target_entropy": jnp.asarray(target)})
    after, _ = step_of("sac")(state, batch_of(), jax.random.key(0))
    change = after.params["temperature"]["log"] - state.params["temperature"]["log"]
    np.testing.assert_allclose(change, sign * 0.01, rtol=1e-4)


def test_td3_moves_policy_and_targets_at_every_second_update() -> None:
    states = [state_of("td3")]
    for seed in range(3):
        states.append(step_of("td3")(states[-1], batch_of(seed), jax.random.key(seed))[0])
    for before, after, due in zip(states, states[1:], (True, False, True), strict=False):
        same = jax.tree.map(
            lambda x, y: bool((x == y).all()),
            (before.params, before.target_params),
            (after.params, after.target_params),
        )
        assert not any(jax.tree.leaves(same[0]["critic"]))
        for part in (same[0]["actor"], same[1]["actor"], same[1]["critic"]):
            assert all(jax.tree.leaves(part)) is not due
    new, old = states[1].params, states[0].target_params
    close(states[1].target_params, jax.tree.map(lambda p, slow: 0.2 * p + 0.8 * slow, new, old))


def test_ddpg_is_a_setting_of_td3() -> None:
    """Slow critic 3, one critic 1, r = 1, γ = ½, masks 1 and 0: targets 2.5 and 1, errors 2.25 and 0."""
    config = config_of("td3", critics=1, policy_delay=1)
    state = state_of("td3")
    zeros = jax.tree.map(lambda x: jnp.zeros_like(x[:1]), state.params["critic"])
    hyper = {**state.hyper, "discount": jnp.asarray(0.5), "target_noise": jnp.asarray(0.0)}
    moments = jax.tree.map(lambda x: x[:1] if x.ndim else x, state.opt_state["critic"])
    state = state.replace(
        params={**state.params, "critic": {**zeros, "bias": jnp.array([1.0])}},
        target_params={**state.target_params, "critic": {**zeros, "bias": jnp.array([3.0])}},
        opt_state={**state.opt_state, "critic": moments},
        hyper=hyper,
    )
    batch = {name: array[:2] for name, array in batch_of().items()} | {"rewards": jnp.ones(2)}
    batch["masks"] = jnp.array([1.0, 0.0])
    _, metrics = td3.update(NETWORKS["td3"], config, state, batch, jax.random.key(0))
    np.testing.assert_allclose(metrics["critic/loss"], 1.125)


@pytest.mark.parametrize("name", NAMES)
def test_mapped_updates_equal_single_ones(name: str) -> None:
    states, keys = [state_of(name, seed) for seed in (0, 1)], jax.random.split(jax.random.key(3))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states).replace(step=states[0].step)
    after, _ = step_of(name, mapped=True)(stacked, batch_of(), keys)
    for i, state in enumerate(states):
        alone, _ = step_of(name)(state, batch_of(), keys[i])
        close(jax.tree.map(lambda x, i=i: x[i], after.params), alone.params, rtol=1e-9)


def test_every_does_what_is_due_and_keeps_the_mean_of_metrics() -> None:
    state, seen = new_state({}, (), {}, {"count": jnp.zeros(())}), []

    def move(state: TrainState) -> Any:
        count = state.extras["count"] + 1
        return state.replace(extras={"count": count}), {"count": count}

    for _ in range(6):
        state, metrics = jax.jit(functools.partial(every, 3, move=move))(state)
        state = state.replace(step=state.step + 1)
        seen.append(float(metrics["count"]))
    assert float(state.extras["count"]) == 2
    assert seen == [3, 0, 0, 6, 0, 0]  # mean 1.5, that of 1 and 2


# ------------------------------------------------------------------------------------------------------- probe


@pytest.mark.parametrize("name", NAMES)
def test_a_bandit_with_a_known_answer(name: str) -> None:
    """r = −4 (a − s/2)² at states −1 and 1, then the episode is over: the best action is s/2, and Q its reward."""
    with jax.enable_x64(False):
        config = agents.load(name).Config(hidden_dims=(32, 32), batch_size=64, learning_rate=3e-3)
        agent = agents.load(name).make(config, Spec(1, 1, 0))

        def train(key: jax.Array) -> TrainState:
            def body(i: jax.Array, state: TrainState) -> TrainState:
                state_key, action_key, update_key = jax.random.split(jax.random.fold_in(key, i), 3)
                s = jax.random.rademacher(state_key, (64, 1), jnp.float32)
                a = jax.random.uniform(action_key, (64, 1), minval=-1.0)
                rewards = -4 * (a - s / 2)[:, 0] ** 2
                batch = {
                    "observations": s,
                    "actions": a,
                    "rewards": rewards,
                    "masks": jnp.zeros(64),
                    "next_observations": s,
                }
                return agent.update(state, batch, update_key)[0]

            return jax.lax.fori_loop(0, 1000, body, agent.init(key))

        state = jax.jit(train)(jax.random.key(0))
        states = jnp.array([[-1.0], [1.0]])
        actions = agent.act(agent.policy(state), states, jnp.zeros((2, 0)), jax.random.key(1), mode="eval")
    np.testing.assert_allclose(actions[:, 0], [-0.5, 0.5], atol=0.12)
