"""FMQ: its curriculum and losses by hand, its two phases, its search, and a bandit."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bandits import actions_of, near_half, trained, two_modes
from commands import main
from small_agents import SPEC, A, B, D, assert_same, compiled, config_of, state_with
from small_agents import transitions as batch_of
from stub_agents import ACTOR, CRITIC, critics, drawn_params, field
from ways import Way, array, each_way

from flowrl import agents
from flowrl.agents import fmq
from flowrl.choice import Beam, ascent, beam_search
from flowrl.config import put
from flowrl.generative import FlowMap
from flowrl.networks import Networks, Spec
from flowrl.paths import shrunk
from flowrl.run_folder import logs

NETS = Networks(SPEC, ACTOR, CRITIC)
ONE_STEP = {"horizon.steps": 1, "horizon.chunk": False}
SMALL = {**ONE_STEP, "hidden_dims": (8,), "choice.num_samples": 2, "choice.target_samples": 2}


def stub_state(told: dict[str, Any]) -> Any:
    rng, config = np.random.default_rng(3), config_of("fmq", {**ONE_STEP, **told})
    return state_with(config, *(drawn_params(rng, times=2, spread=1.5) for _ in range(2)))


# -------------------------------------------------------------------------------------------------------- flow maps


@each_way
def test_intervals_grow_from_their_middles(way: Way) -> None:
    share = way(FlowMap().share)
    # Nothing until update 5000, all from 50,000 on, half of it in between.
    for update, expected in ((1, 0), (5000, 0), (27_500, 0.5), (50_000, 1), (10**6, 1)):
        np.testing.assert_allclose(share(jnp.float32(update)), expected, rtol=1e-6)
    begins, ends = way(shrunk)(array(0.2, 0.0), array(0.6, 1.0), jnp.float32(0.5))
    np.testing.assert_allclose(begins, [0.3, 0.25], rtol=1e-6)
    np.testing.assert_allclose(ends, [0.5, 0.75], rtol=1e-6)


def intervals(key: jax.Array, shape: tuple[int, int], share: float) -> tuple[np.ndarray, ...]:
    """Noise and intervals as a flow map draws them."""
    noise_key, time_key, middle_key = jax.random.split(key, 3)
    drawn = np.sort(np.asarray(jax.random.uniform(time_key, (2, shape[0], 1))), axis=0)
    middle, half = drawn.mean(axis=0), share * (drawn[1] - drawn[0]) / 2
    shares = np.asarray(jax.random.uniform(middle_key, (shape[0], 1)))
    return np.asarray(jax.random.normal(noise_key, shape)), middle - half, middle + half, shares


@pytest.mark.parametrize("distillation", ["eulerian", "lagrangian", "progressive"])
@each_way
def test_consistency_on_a_simple_field(way: Way, distillation: str) -> None:
    """Where u = c x + d r² + e t³, as its derivatives by hand say."""
    c, d, e, key = 0.7, 1.1, -0.4, jax.random.key(3)
    a = array(*np.linspace(-1, 1, 2 * B).reshape(B, 2).tolist())
    valid = array(*(np.arange(2 * B).reshape(B, 2) % 5 > 0).tolist())
    flow = FlowMap(distillation=distillation, warmup=0, grown=100)

    def u(x: Any, r: Any, t: Any) -> Any:
        return c * x + d * r**2 + e * t**3

    z, r, t, γ = intervals(key, (B, 2), 0.5)
    x, v = (1 - r) * z + r * np.asarray(a), np.asarray(a) - z
    if distillation == "eulerian":
        student, teacher = u(x, r, t), v + (t - r) * (c * v + 2 * d * r)
    elif distillation == "lagrangian":
        landed = x + (t - r) * u(x, r, t)
        student, teacher = u(landed, t, t), u(x, r, t) + (t - r) * 3 * e * t**2
    else:
        w = r + γ * (t - r)
        first = u(x, r, w)
        student, teacher = u(x, r, t), γ * first + (1 - γ) * u(x + (w - r) * first, w, t)
    expected = (np.asarray(valid) * (student - teacher) ** 2).mean(axis=1)
    found = way(lambda a, valid: flow.consistency(u, a, key, 50, valid))(a, valid)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("distillation", ["eulerian", "lagrangian", "progressive"])
def test_what_jumps_are_held_to_is_constant(distillation: str) -> None:
    # u = b for all: the student is b, and the teacher, whatever it is, does not move with it.
    a, flow = array([0.5], [-0.2], [0.1]), FlowMap(distillation=distillation, warmup=0, grown=1)

    def errors(b: jax.Array, held: jax.Array) -> jax.Array:
        def u(x: jax.Array, r: jax.Array, t: jax.Array) -> jax.Array:
            return b * (1 + x) + 0 * (r + t)

        return flow.consistency(u, a, jax.random.key(1), 9).mean()

    z, r, t, γ = intervals(jax.random.key(1), (3, 1), 1.0)
    x, b = (1 - r) * z + r * np.asarray(a), 0.3
    landed = x + (t - r) * b * (1 + x)
    w = r + γ * (t - r)
    second = b * (1 + x + (w - r) * b * (1 + x))
    students = {"eulerian": 1 + x, "lagrangian": 1 + landed, "progressive": 1 + x}
    v = np.asarray(a) - z
    teachers = {
        "eulerian": v + (t - r) * b * v,
        "lagrangian": b * (1 + x),
        "progressive": γ * b * (1 + x) + (1 - γ) * second,
    }
    student = students[distillation]
    expected = (2 * (b * student - teachers[distillation]) * student).mean()
    np.testing.assert_allclose(jax.grad(errors)(0.3, 0.0), expected, rtol=1e-3, atol=1e-6)


def test_samples_in_several_steps() -> None:
    # u(x, r, t) = t − r + 10 r: two steps of ½ add ½ · ½ and ½ · 5½.
    found = FlowMap(steps=2).sample(lambda x, r, t: t - r + 10 * r, jnp.zeros((3, 1)))
    np.testing.assert_allclose(found, 0.25 + 2.75, rtol=1e-6)


# ----------------------------------------------------------------------------------------------------------- phases


@pytest.mark.slow
def test_consistency_counts_after_the_warm_up(x64: None) -> None:
    state, batch, key = stub_state({"flow.warmup": 4}), batch_of(), jax.random.key(7)
    for done, counts in ((3, False), (4, True)):  # updates 4 and 5
        loss, metrics = fmq.actor_loss(NETS, state.params, state.replace(step=jnp.int32(done)), batch, key)
        expected = metrics["actor/flow_loss"] + counts * metrics["actor/consistency_loss"]
        np.testing.assert_allclose(loss, expected, rtol=1e-9)
        assert metrics["actor/consistency_loss"] > 1e-3


@pytest.mark.parametrize("adaptive", [True, False])
@each_way
def test_the_guided_errors_by_hand(x64: None, way: Way, adaptive: bool) -> None:
    state, batch, key = (
        stub_state({"adaptive": adaptive, "beta": 0.8, "phase": "online"}),
        batch_of(),
        jax.random.key(1),
    )
    batch = {**batch, "actions_valid": jnp.asarray(np.arange(B * A).reshape(B, A) % 3 > 0, float)}
    time_key, noise_key = jax.random.split(key)
    s, a, one = np.asarray(batch["observations"]), np.asarray(batch["actions"]), np.ones((B, 1))
    r, z = np.asarray(jax.random.uniform(time_key, (B, 1))), np.asarray(jax.random.normal(noise_key, (B, A)))
    x = (1 - r) * z + r * a
    fast, anchor = (jax.tree.map(np.asarray, tree) for tree in (state.params, state.target_params))
    u = field(np, anchor["actor"], s, x, r, one)
    led = np.clip(x + (1 - r) * u, -1, 1)
    assert (np.abs(led) == 1).any()
    critic = fast["critic"]
    slopes = critic["weight"][0, D:] + 2 * (led @ critic["curve"][0])[:, None] * critic["curve"][0]
    n = slopes / np.linalg.norm(slopes, axis=1, keepdims=True)
    deviations = critics(np, critic, s, led).std(axis=0)
    eta = 1 / (1 + 0.8 * deviations / deviations.mean()) if adaptive else np.full(B, 0.5)
    errors = (field(np, fast["actor"], s, x, r, one) - u - eta[:, None] * n) ** 2

    def guided(batch: Any) -> Any:
        return fmq.guided_errors(NETS, state.params, state, batch, key)

    found, mean = way(guided)(batch)
    np.testing.assert_allclose(found, (np.asarray(batch["actions_valid"]) * errors).mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(mean, eta.mean(), rtol=1e-6)


def test_guidance_leaves_critic_and_anchor_alone(x64: None) -> None:
    # By the bias of u alone: that of (u − target)² with the target held.
    state, batch, key = stub_state({"phase": "online"}), batch_of(), jax.random.key(7)

    def loss(params: Any) -> jax.Array:
        return fmq.actor_loss(NETS, params, state, batch, key)[0]

    grads = jax.grad(loss)(state.params)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads["critic"]))
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(grads["actor"]))


@pytest.mark.slow
def test_what_follows_and_what_stays() -> None:
    config = config_of("fmq", SMALL)
    agent = agents.build("fmq", config, SPEC)
    state, names = jax.jit(agent.init)(jax.random.key(0), config), []
    for number in range(4):
        if number == 2:
            anchor = state.target_params["actor"]
            assert_same(anchor, state.params["actor"])
            state = state.replace(config=agent.online(state.config))
        before = state
        state, metrics = compiled(agent)(state, batch_of(number), jax.random.key(number))
        names.append(set(metrics))
        assert any(
            jax.tree.leaves(
                jax.tree.map(lambda x, y: (x != y).any(), *(s.target_params["critic"] for s in (before, state)))
            )
        )
    assert_same(state.target_params["actor"], anchor)
    assert any(jax.tree.leaves(jax.tree.map(lambda x, y: (x != y).any(), state.params["actor"], anchor)))
    assert all(found == names[0] for found in names)
    online = agent.online(config)
    assert (online.phase, online.critic.aggregate, online.choice.aggregate) == ("online", "min", "min")


def test_a_chunk_is_one_action() -> None:
    config = config_of("fmq", {"hidden_dims": (8,), "choice.num_samples": 2, "horizon.steps": 3})
    agent = agents.build("fmq", config, Spec.of_sizes(D, A))
    state = jax.eval_shape(agent.init, jax.random.key(0), config)
    policy = jax.eval_shape(agent.policy, state)
    actions = jax.eval_shape(agent.act, policy, {"observations": jnp.zeros((4, D))}, jax.random.key(0))
    assert actions.shape == (4, 3, A)


@pytest.mark.slow
def test_a_run_goes_online_and_is_resumed_there(tmp_path: Path) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "run"
    fields = {"observations": rng.normal(size=(60, 3)), "actions": rng.uniform(-2, 2, (60, 1)), "rewards": -np.ones(60)}
    np.savez(tmp_path / "own.npz", **fields, terminals=np.zeros(60, bool), timeouts=np.arange(60) % 20 == 19)
    given = [f"--{name}={value}" for name, value in {"agent": "fmq", "env": "Pendulum-v1", "preset": "none"}.items()]
    given += [f"--data={tmp_path / 'own.npz'}", "--agent.hidden_dims=4", "--agent.batch_size=8", "--workers=1"]
    given += ["--agent.horizon.steps=2", "--agent.choice.num_samples=2", "--agent.choice.target_samples=2"]
    given += ["--steps=10", "--online.steps=20", "--eval.episodes=0", "--log.interval=10", "--checkpoint.interval=10"]
    assert main(*given, f"--run_dir={folder}") == 0

    def guided() -> dict[int, bool]:
        lines = logs.read_lines(folder / "metrics.jsonl")
        return {line["step"]: line["train/actor/guided_loss"] > 0 for line in lines}

    assert guided() == {10: False, 20: True, 30: True}
    shutil.rmtree(folder / "checkpoints" / "30")
    assert main(f"--run_dir={folder}", "--resume") == 0
    assert guided() == {10: False, 20: True, 30: True}


# ----------------------------------------------------------------------------------------------------------- search


@each_way
def test_directions_have_length_one(way: Way) -> None:
    a = array([0.3, -0.4], [0.0, 2.0])
    found = way(lambda a: ascent(lambda a: (a * jnp.array([3.0, 4.0])).sum(-1), a))(a)
    np.testing.assert_allclose(found, [[0.6, 0.8]] * 2, rtol=1e-6)


@each_way
def test_a_search_by_hand(way: Way) -> None:
    """Two actions, three copies of each; the best two by the lower critic, 1 − (a − 0.5)², step up its slope."""
    beam = Beam(rounds=1, width=2, copies=3, snr=3.0, step_size=0.1)
    start = array([[-0.5]], [[0.2]])

    def critic(a: jax.Array) -> jax.Array:
        q = 1 - (a[..., 0] - 0.5) ** 2
        return jnp.stack([q, q + 5])

    def search(start: jax.Array) -> jax.Array:
        return beam_search(beam, lambda key: start, lambda x, r, t: x + r + 2 * t, critic, jax.random.key(4))

    noise = np.asarray(jax.random.normal(jax.random.split(jax.random.key(4))[1], (6, 1, 1)))[:, 0, 0]
    x = 0.75 * np.repeat([-0.5, 0.2], 3) + 0.25 * noise
    a = np.clip(x + 0.25 * (x + 3 * 0.75), -1, 1)
    best = a[np.argsort(1 - (a - 0.5) ** 2)[-2:]]
    best = np.clip(best + 0.1 * np.sign(0.5 - best), -1, 1)
    expected = best[np.argmax(1 - (best - 0.5) ** 2)]
    np.testing.assert_allclose(way(search)(start), [[expected]], rtol=1e-5)


def test_a_search_is_evaluated_only() -> None:
    config = config_of("fmq", SMALL)
    agent = agents.build("fmq", config, SPEC)
    assert [*agent.evaluations(config)] == ["eval", "best_of_n"]
    searching = put(config, {"beam.rounds": 2})
    assert {name: (one.beam.rounds, one.choice.num_samples) for name, one in agent.evaluations(searching).items()} == {
        "eval": (0, 1), "best_of_n": (0, 2), "beam": (2, 2),
    }  # fmt: skip
    assert agent.explores(searching) == config


# --------------------------------------------------------------------------------------------------------- a bandit


@pytest.mark.slow
def test_guidance_moves_cloned_actions_to_where_q_rises() -> None:
    """Data ±0.6, cloned in one step; then Q of 1 − (a − 0.5)² draws them within the trust region."""
    told = {**ONE_STEP, "hidden_dims": (32, 32), "choice.num_samples": 4, "choice.target_samples": 4}
    told |= {"flow.warmup": 200, "flow.grown": 500, "adaptive": False, "eta": 0.3}
    agent, state = trained("fmq", told, two_modes, near_half, 900)
    cloned = actions_of(agent, state)
    assert 0.3 < (cloned > 0).mean() < 0.7
    assert np.abs(cloned).mean() > 0.35
    assert abs(actions_of(agent, state, "best_of_n").mean() - 0.5) < 0.2
    agent, state = trained("fmq", {**told, "phase": "online"}, two_modes, near_half, 300, start=state)
    guided = actions_of(agent, state)
    # by η at most, to the right below 0.5
    assert 0.15 < (guided - cloned)[cloned < 0].mean() < 0.35
    assert near_half(guided).mean() > near_half(cloned).mean() + 0.1


FAULTS = {
    "flowrl/experiment/runner.py": [
        ("self.parts.agent.online(states.config)", "states.config", "test_a_run_goes_online_and_is_resumed_there"),
    ],
    "agents/fmq.py": [
        ("done > flow.warmup}", "done >= flow.warmup}", "test_consistency_counts_after_the_warm_up"),
        ("nets.actor(state.target_params, s", "nets.actor(state.params, s", "test_the_guided_errors_by_hand and plain"),
        ("q(a)[0], ends)", "q(a).min(axis=0), ends)", "test_the_guided_errors_by_hand and plain"),
        ("(1 + config.beta * relative)", "(1 - config.beta * relative)", "test_the_guided_errors_by_hand and plain"),
        ("jnp.clip(x + (1 - r) * u, -1.0, 1.0)", "x + (1 - r) * u", "test_the_guided_errors_by_hand and plain"),
        ('r, one), targets, batch["actions_valid"])', "r, one), targets)", "test_the_guided_errors_by_hand and plain"),
        (
            "partial(nets.critic, state.params, s)\n    sizes",
            "partial(nets.critic, params, s)\n    sizes",
            "test_guidance_leaves_critic_and_anchor_alone",
        ),
        ('if config.phase == "offline" else moved)', "if True else moved)", "test_what_follows_and_what_stays"),
        ('"critic.aggregate": "min"', '"critic.aggregate": "mean"', "test_what_follows_and_what_stays"),
    ],
    "flowrl/generative.py": [
        ("(done - self.warmup) / jnp", "done / jnp", "test_intervals_grow_from_their_middles and plain"),
        ("path, ends, begins), valid)", "path, begins, ends), valid)", "test_consistency_on_a_simple_field and plain"),
        (
            "field(x, begins, begins + 1 / self.steps) / self.steps",
            "field(x, begins, 1.0) / self.steps",
            "test_samples_in_several_steps",
        ),
    ],
    "flowrl/paths.py": [
        ("share * (ends - begins) / 2", "share * (ends - begins)", "test_intervals_grow_from_their_middles and plain"),
        (
            "jump(jax.lax.stop_gradient(landed), ends, ends)",
            "jump(landed, ends, ends)",
            "test_what_jumps_are_held_to_is_constant",
        ),
        ("jax.lax.stop_gradient(speeds)", "speeds", "test_what_jumps_are_held_to_is_constant"),
        ("shares * first + (1 - shares) * second", "first", "test_consistency_on_a_simple_field and plain"),
    ],
    "flowrl/choice.py": [
        ("order[-number:", "order[:number", "test_a_search_by_hand and plain"),
        ("a + beam.step_size * ascent", "a - beam.step_size * ascent", "test_a_search_by_hand and plain"),
        ("beam.snr / (1 + beam.snr)", "1 / (1 + beam.snr)", "test_a_search_by_hand and plain"),
    ],
}
