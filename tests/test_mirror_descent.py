"""Flow policy mirror descent: its parts by hand, both generators against closed forms, a bandit with a known answer."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowrl import agent as agents
from flowrl import config as configs
from flowrl import mirror_descent
from flowrl.agent import Agent, Spec
from flowrl.agents import fpmd_m, fpmd_r
from flowrl.errors import UserError
from flowrl.train_state import Batch, TrainState

NAMES = ("fpmd_r", "fpmd_m", "dpmd")
SPEC = Spec(3, 2, 0)
TINY: dict[str, Any] = {"hidden_dims": (8,), "batch_size": 6, "candidates": 4, "temperature_delay": 3}
# unrolled, 20 take long to compile
STEPS: dict[str, dict[str, Any]] = {
    "fpmd_r": {"flow_steps": 2},
    "fpmd_m": {},
    "dpmd": {"diffusion_steps": 2, "eval_steps": 2},
}
each_agent = pytest.mark.parametrize("name", NAMES)


def make(name: str, **fields: Any) -> tuple[Any, Agent]:
    module = agents.load(name)
    config = module.Config(**{**TINY, **STEPS[name], **fields})
    return config, module.make(config, SPEC)


def batch_of(seed: int = 0, rows: int = 6) -> Batch:
    rng = np.random.default_rng(seed)
    fields = {"observations": rng.normal(size=(rows, 3)), "next_observations": rng.normal(size=(rows, 3))}
    fields |= {"actions": rng.uniform(-1, 1, (rows, 2)), "rewards": rng.normal(size=rows), "masks": np.arange(rows) % 2}
    return {name: jnp.asarray(field, jnp.float32) for name, field in fields.items()}


def with_statistics(state: TrainState, mean: float, std: float, alpha: float) -> TrainState:
    extras = {"q_mean": jnp.float32(mean), "q_std": jnp.float32(std)}
    return state.replace(extras=extras, params={**state.params, "temperature": {"log": jnp.log(jnp.float32(alpha))}})


# ------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("variant", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_weights_by_hand(variant: Any) -> None:
    """Mean 4, deviation 2, α ½. As released, Q = 5, 4, 14 are Q − 4 / 2 = 3, 2 and 12, clipped to 3: e⁶, e⁴ and e⁶."""
    config, agent = make("fpmd_r")
    state, values = with_statistics(agent.init(jax.random.key(0)), 4, 2, 0.5), jnp.array([5.0, 4.0, 14.0])
    weights, clipped = variant(functools.partial(mirror_descent.weights_of, config))(state, values)
    np.testing.assert_allclose(weights, np.exp([6, 4, 6]), rtol=1e-5)
    np.testing.assert_allclose(clipped, 2 / 3, rtol=1e-6)
    # As it was meant: (Q − 4) / 2 = ½, 0 and 5.
    weights, clipped = mirror_descent.weights_of(dataclasses.replace(config, standardization="full"), state, values)
    np.testing.assert_allclose(weights, np.exp([1, 0, 6]), rtol=1e-5)
    np.testing.assert_allclose(clipped, 1 / 3, rtol=1e-6)


def test_entropy_of_the_noise() -> None:
    # Deviation 0.1·2: ½·3·log(2πe·0.04) = 1.5·(2.837877 − 3.218876).
    np.testing.assert_allclose(mirror_descent.noise_entropy(jnp.float32(2), 0.1, 3), -0.571498, rtol=1e-5)


def test_the_policys_step_size_falls_linearly() -> None:
    config, agent = make("fpmd_r")
    hyper = {"learning_rate": 1.0, "final_learning_rate": 0.2, "decay_begin": 10, "decay_updates": 20}
    state = agent.init(jax.random.key(0), hyper)
    # Steps count updates of the critics, two for each of the policy.
    for step, expected in ((0, 1.0), (20, 1.0), (40, 0.6), (60, 0.2), (1000, 0.2)):
        rate = mirror_descent.learning_rate(config, state.replace(step=jnp.int32(step)))
        np.testing.assert_allclose(rate, expected, rtol=1e-6)


def test_the_temperature_seeks_the_target_entropy() -> None:
    _, agent = make("fpmd_m", temperature_delay=1)
    for alpha, sign in ((5.0, -1), (0.2, 1)):  # the noise's entropy is −1.5 per dimension at α = 0.54
        state = with_statistics(agent.init(jax.random.key(0)), 0, 1, alpha)
        after, _ = jax.jit(agent.update)(state, batch_of(), jax.random.key(1))
        change = after.params["temperature"]["log"] - state.params["temperature"]["log"]
        np.testing.assert_allclose(change, sign * 7e-3, rtol=1e-3)
    still = np.exp(-1.5 - 0.5 * np.log(2 * np.pi * np.e)) / 0.1
    np.testing.assert_allclose(mirror_descent.noise_entropy(jnp.float32(still), 0.1, 2), -3, rtol=1e-5)


@each_agent
def test_what_moves_when(name: str) -> None:
    _, agent = make(name)
    update = jax.jit(agent.update)
    states = [agent.init(jax.random.key(0))]
    for step in range(4):
        states.append(update(states[-1], batch_of(step), jax.random.key(step))[0])

    def moved(part: str, network: str) -> list[bool]:
        trees = [getattr(state, part)[network] for state in states]
        changed = functools.partial(jax.tree.map, lambda x, y: bool((x != y).any()))
        return [any(jax.tree.leaves(changed(*pair))) for pair in itertools.pairwise(trees)]

    assert moved("params", "critic") == [True] * 4
    assert moved("params", "actor") == [True, False, True, False]
    assert moved("target_params", "actor") == moved("target_params", "critic") == [True, False, True, False]
    assert moved("params", "temperature") == [True, False, False, True]


def with_constant_q(state: TrainState, value: float) -> TrainState:
    """The last biases, of shape (2, 1), give the value; all else is 0."""
    critic = jax.tree.map(lambda x: jnp.full_like(x, value * (x.shape == (2, 1))), state.params["critic"])
    slow = {**state.target_params, "critic": critic}
    return state.replace(params={**state.params, "critic": critic}, target_params=slow)


@each_agent
def test_weights_scale_the_loss(name: str) -> None:
    """Q = 7, clipped to 3, at α = 5: the weight of every row is e^0.6, and 1 where the clip is 0."""
    _, agent = make(name)
    found = []
    for clip in (3.0, 0.0):
        state = with_constant_q(agent.init(jax.random.key(0), {"q_clip": clip}), 7.0)
        found.append(jax.jit(agent.update)(state, batch_of(), jax.random.key(0))[1]["actor/loss"])
    np.testing.assert_allclose(found[0] / found[1], np.exp(0.6), rtol=1e-5)


@each_agent
@pytest.mark.parametrize("steps", [1, 2])
def test_weights_and_statistics_meet_the_critics_after_their_first_step(name: str, steps: int) -> None:
    """Q = 7 is above its targets, and each of Adam's steps on one gradient lowers it by the step size ½."""
    batch, found = batch_of(), []
    for clip in (100.0, 0.0):
        _, agent = make(name, critic_steps=steps)
        state = with_constant_q(agent.init(jax.random.key(0), {"learning_rate": 0.5, "q_clip": clip}), 7.0)
        after, metrics = jax.jit(agent.update)(state, batch, jax.random.key(0))
        found.append(metrics["actor/loss"])
    np.testing.assert_allclose(after.extras["q_mean"], 0.0065, rtol=1e-5)
    np.testing.assert_allclose(after.extras["q_std"], 0.999, rtol=1e-5)
    np.testing.assert_allclose(found[0] / found[1], np.exp(6.5 / 5), rtol=1e-5)
    (bias,) = (x for x in jax.tree.leaves(after.params["critic"]) if x.shape == (2, 1))
    np.testing.assert_allclose(bias, 7 - 0.5 * steps, rtol=1e-5)
    # y = 0.2 r + 0.99 m · 7 with the slow copies, Q = 7 before any step; the sum over both critics
    targets = 0.2 * batch["rewards"] + 0.99 * 7 * batch["masks"]
    np.testing.assert_allclose(metrics["critic/loss"], 2 * ((targets - 7) ** 2).mean(), rtol=1e-5)


@each_agent
def test_no_gradient_reaches_the_policy_through_the_critics(name: str) -> None:
    """With all weights equal the policy's step depends on what was drawn, not on how the critics would change."""
    _, agent = make(name, candidates=1)
    hyper = {"q_clip": 0.0}
    state = agent.init(jax.random.key(0), hyper)
    other = state.replace(params={**state.params, "critic": jax.tree.map(lambda x: x + 0.3, state.params["critic"])})
    update = jax.jit(agent.update)
    one, two = (update(start, batch_of(), jax.random.key(1))[0] for start in (state, other))
    jax.tree.map(np.testing.assert_array_equal, one.params["actor"], two.params["actor"])
    assert not np.array_equal(*(jax.tree.leaves(x.params["critic"])[0] for x in (one, two)))


# -------------------------------------------------------------------------------------------------- generators


class Straight:
    """The true field of paths to one action c: velocity c − ε, and with noise at time 1 the average velocity."""

    out_dim = 2

    def __init__(self, sign: float):
        self.sign = sign

    def apply(self, action: jax.Array, observations: jax.Array, points: jax.Array, *times: jax.Array) -> jax.Array:
        if self.sign > 0:  # noise at 0: x_t = (1 − t) ε + t c
            return (action - points) / (1 - times[0])
        return (points - action) / times[1]  # noise at 1: x_t = (1 − t) c + t ε


BOTH = pytest.mark.parametrize(("module", "sign"), [(fpmd_r, 1.0), (fpmd_m, -1.0)], ids=NAMES[:2])
ACTION = jnp.array([0.4, -0.7])


@BOTH
@pytest.mark.parametrize("steps", [1, 5])
def test_the_true_field_leads_to_its_action(module: Any, sign: float, steps: int) -> None:
    states = jnp.zeros((5, 3))
    config = module.Config(flow_steps=steps, eval_steps=1)
    for evaluation in (False, True):
        drawn = module.sample(Straight(sign), config, ACTION, states, jax.random.key(0), 0.5, evaluation)
        np.testing.assert_allclose(drawn, jnp.broadcast_to(ACTION, (5, 2)), atol=1e-5)


@BOTH
def test_the_true_field_has_no_error(module: Any, sign: float) -> None:
    states, actions = jnp.zeros((50, 3)), jnp.broadcast_to(ACTION, (50, 2))
    found = module.errors(Straight(sign), ACTION, states, actions, jax.random.key(3))
    assert found.shape == (50,)
    np.testing.assert_allclose(found, 0, atol=1e-4)
    assert module.errors(Straight(sign), ACTION + 0.5, states, actions, jax.random.key(3)).mean() > 0.1


@pytest.mark.parametrize(("divided", "moved"), [(True, 1.0), (False, 3.0)])
def test_each_of_several_steps_takes_its_share_of_the_path(divided: bool, moved: float) -> None:
    class Constant(Straight):
        def apply(self, action: jax.Array, observations: jax.Array, points: jax.Array, *times: jax.Array) -> jax.Array:
            return jnp.broadcast_to(action, points.shape)

    config = fpmd_m.Config(flow_steps=3, divide_steps=divided)
    drawn = fpmd_m.sample(Constant(1.0), config, ACTION, jnp.zeros((5, 3)), jax.random.key(0), 0.5, False)
    start = 0.5 * jax.random.normal(jax.random.key(0), (5, 2))
    np.testing.assert_allclose(drawn, start - moved * ACTION, rtol=1e-5)


@pytest.mark.parametrize(("asked", "expected"), [(0, 4), (1, 1)])
def test_evaluation_takes_the_steps_of_training_unless_told(asked: int, expected: int) -> None:
    config = fpmd_r.Config(flow_steps=4, eval_steps=asked)
    configs.check(config)
    assert mirror_descent.steps_of(config, config.flow_steps, True) == expected
    assert mirror_descent.steps_of(config, config.flow_steps, False) == 4
    with pytest.raises(UserError, match="eval_steps=-1 is too small; the least is 0"):
        configs.check(fpmd_r.Config(eval_steps=-1))


def test_errors_by_hand() -> None:
    """A field that is 0 everywhere: either method's target is the velocity, ±(a − ε), and the error its square."""

    class Zero(Straight):
        def apply(self, *parts: Any) -> jax.Array:
            return 0 * parts[2]

    actions, key = jnp.array([[0.5, -0.5], [1.0, 0.0]]), jax.random.key(5)
    noise = jax.random.normal(jax.random.split(key)[0], (2, 2))
    expected = ((actions - noise) ** 2).mean(axis=-1)
    for module in (fpmd_r, fpmd_m):
        for variant in (lambda f: f, jax.jit):
            found = variant(functools.partial(module.errors, Zero(1.0)))(jnp.zeros(2), jnp.zeros((2, 3)), actions, key)
            np.testing.assert_allclose(found, expected, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------ acting


def test_particles_are_ranked_as_sampled_and_clipped_afterwards() -> None:
    """Q = a₀ + a₁: of (3, 0) and (1.2, ½) the first is better, and clipped it would be worse. Noise leaves the box."""

    class Total:
        def apply(self, params: Any, observations: jax.Array, actions: jax.Array) -> jax.Array:
            return jnp.stack([actions.sum(axis=-1)] * 2)

    def sample(params: Any, observations: jax.Array, key: jax.Array, *rest: Any) -> jax.Array:
        pair = jnp.array([[3.0, 0.0], [1.2, 0.5]])
        return jnp.broadcast_to(pair[jax.random.bernoulli(key).astype(int)], (50, 2))

    config, _ = make("fpmd_r", candidates=16)
    networks = mirror_descent.Networks(None, Total())
    generator = mirror_descent.Generator(sample, sample, sample)
    policy = {"actor": None, "critic": None, "start_scale": 1.0, "noise": 0.5}
    drawn = functools.partial(mirror_descent.draw, networks, generator, config, policy, jnp.zeros((50, 3)))
    np.testing.assert_allclose(drawn(jax.random.key(0), noisy=False), np.tile([1.0, 0.0], (50, 1)))
    noise = drawn(jax.random.key(0)) - jnp.array([1.0, 0.0])
    assert 0.4 < float(noise.std()) < 0.6
    assert (noise[:, 0] > 0).any()


@each_agent
def test_particles_are_chosen_by_q_and_noise_is_for_exploring(name: str) -> None:
    config, agent = make(name, candidates=16)
    state, states = agent.init(jax.random.key(0)), jnp.zeros((400, 3))
    policy = agent.policy(state)
    act = functools.partial(jax.jit(agent.act, static_argnames="mode"), policy, states, jnp.zeros((400, 0)))
    one, best, noisy = (act(jax.random.key(1), mode=mode) for mode in ("eval", "best_of_n", "explore"))
    critic = mirror_descent.critic_network(config)
    values = [critic.apply(state.params["critic"], states, actions).min(axis=0).mean() for actions in (one, best)]
    assert values[1] > values[0]
    assert (np.abs(one) <= 1).all()
    assert (np.abs(best) <= 1).all()
    assert (np.abs(noisy) > 1).any()  # the environment clips what it plays
    assert 0.45 < float((noisy - best).std()) < 0.55  # 0.1 · α
    quiet = agent.policy(with_statistics(state, 0, 1, 1e-6))
    again = agent.act(quiet, states, jnp.zeros((400, 0)), jax.random.key(1), mode="explore")
    assert float(np.abs(again - again.mean(axis=0)).mean()) < float(np.abs(noisy - noisy.mean(axis=0)).mean())


@each_agent
def test_mapped_runs_equal_single_ones(name: str) -> None:
    _, agent = make(name)
    states = [agent.init(jax.random.key(seed), {"reward_scale": 0.1 + seed}) for seed in range(2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states).replace(step=jnp.int32(0))
    axes = jax.tree.map(lambda _: 0, stacked).replace(step=None)
    keys = jax.random.split(jax.random.key(7))
    mapped = jax.jit(jax.vmap(agent.update, in_axes=(axes, None, 0), out_axes=(axes, 0)))
    after, _ = mapped(stacked, batch_of(), keys)
    for i, state in enumerate(states):
        alone, _ = jax.jit(agent.update)(state, batch_of(), keys[i])
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, atol=1e-5), after.params, alone.params)


@each_agent
def test_a_bandit_with_a_known_answer(name: str) -> None:
    """r = −4 |a − (½, −½)|², then the episode is over. The policy sees its own actions only, and moves to the best."""
    # FPMD-R: with two steps some seeds end in a corner.
    more: dict[str, Any] = {"fpmd_r": {"flow_steps": 5}, "fpmd_m": {}, "dpmd": {"diffusion_steps": 5, "eval_steps": 5}}
    _, agent = make(
        name, hidden_dims=(32, 32), batch_size=64, candidates=8, temperature_delay=20, reward_scale=1.0,
        learning_rate=3e-3, final_learning_rate=3e-3, temperature_rate=0.05, critic_target_rate=0.05,
        **more[name],
    )  # fmt: skip
    states, best = jnp.zeros((64, 3)), jnp.array([0.5, -0.5])

    def train(key: jax.Array) -> TrainState:
        def body(i: jax.Array, state: TrainState) -> TrainState:
            act_key, update_key = jax.random.split(jax.random.fold_in(key, i))
            actions = agent.act(agent.policy(state), states, jnp.zeros((64, 0)), act_key, mode="explore")
            rewards = -4 * ((actions - best) ** 2).sum(axis=-1)
            batch = {"observations": states, "actions": actions, "rewards": rewards, "next_observations": states}
            return agent.update(state, {**batch, "masks": jnp.zeros(64)}, update_key)[0]

        return jax.lax.fori_loop(0, 1500, body, agent.init(key))

    state = jax.jit(train)(jax.random.key(0))
    act = functools.partial(agent.act, agent.policy(state), states, jnp.zeros((64, 0)), jax.random.key(1))
    assert float(jnp.abs(act(mode="best_of_n") - best).mean()) < 0.15
    assert float(jnp.abs(act(mode="eval") - best).mean()) < 0.25
