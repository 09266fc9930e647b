"""Chunks, n-step returns and the best of several in targets: what every agent that learns Q can be told."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import main, save_walks
from small_agents import assert_same, config_of
from ways import Way, array, each_way

from flowrl import agents
from flowrl.choice import BestOfN, best_next
from flowrl.data.dataset import Dataset, from_arrays
from flowrl.errors import UserError
from flowrl.experiment import build
from flowrl.experiment.settings import plan
from flowrl.networks import Spec
from flowrl.run_folder import logs
from flowrl.tasks import sources
from flowrl.training.step import train_step

SINGLE = "pointmaze-medium-navigate-singletask"
TINY = (
    f"--env={SINGLE}", "--preset=quick", "--agent.hidden_dims=4", "--agent.batch_size=8", "--steps=2",
    "--log.interval=1", "--workers=1", "--eval.episodes=1", "--eval.interval=2", "--max_episode_steps=7",
)  # fmt: skip


@pytest.fixture(scope="module")
def walks() -> Dataset:
    """Episodes of twelve steps, some of which succeed on the way."""
    rng = np.random.default_rng(0)
    masks = rng.uniform(size=130) > 0.2
    arrays = {
        "observations": rng.normal(size=(130, 3)),
        "actions": rng.uniform(-1, 1, (130, 2)),
        "rewards": -1.0 * masks,
    }
    rows = {name: x.astype(np.float32) for name, x in (arrays | {"masks": masks}).items()}
    return from_arrays({**rows, "terminals": np.arange(130) % 13 == 12})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fql", "sscp", "ofql", "bfn", "bc", "td3", "sac", "fpmd_r"])
def test_a_chunk_of_one_action_is_the_action(name: str, walks: Dataset) -> None:
    """Bit for bit, in what is learnt and in what is played."""
    found = []
    for chunk in (False, True):
        config = config_of(name, {"hidden_dims": (8,), "horizon.chunk": chunk})
        agent = agents.build(name, config, Spec.of_sizes(3, 2))
        step = jax.jit(functools.partial(train_step, agent, 16))
        state = agent.init(jax.random.key(0), config)
        for _ in range(2):
            state, metrics = step(state, jax.random.key(1), walks)
        a = agent.act(agent.policy(state), {"observations": jnp.ones((4, 3))}, jax.random.key(2))
        found.append((state.params, metrics, a.reshape(4, 2)))
        assert a.shape == ((4, 1, 2) if chunk else (4, 2))
    assert_same(*found)


@pytest.mark.slow
def test_qc_continues_chunks_as_the_data_do() -> None:
    """An episode's actions are all 0.5 or all −0.5, so that what begins one way goes on so; the first is rewarded."""
    signs = np.repeat(np.array([1, -1] * 20, np.float32), 6)[:, None]
    terminals = np.arange(240) % 6 == 5
    arrays = {"observations": 0 * signs, "actions": 0.5 * signs, "rewards": signs[:, 0], "terminals": terminals}
    dataset = from_arrays(arrays | {"masks": np.ones(240, np.float32)})
    told: dict[str, Any] = {"hidden_dims": (32, 32), "learning_rate": 5e-3, "discount": 0.5, "horizon.steps": 2}
    told |= {"choice.num_samples": 8, "choice.target_samples": 8}
    config = config_of("qc", told)
    agent = agents.build("qc", config, Spec.of_sizes(1, 1))

    @jax.jit
    def train(key: jax.Array) -> jax.Array:
        step = functools.partial(train_step, agent, 64)
        state = jax.lax.fori_loop(0, 400, lambda i, s: step(s, key, dataset)[0], agent.init(key, config))
        return agent.act(agent.policy(state), {"observations": jnp.zeros((200, 1))}, key)

    best = train(jax.random.key(1))
    assert best.shape == (200, 2, 1)
    assert (best > 0).mean() > 0.95
    np.testing.assert_allclose(np.median(best, axis=0), 0.5, atol=0.2)


@each_way
def test_targets_bootstrap_the_best_of_several(way: Way) -> None:
    """Draws 0 … 3 and Q_i(a) = w_i · a. The minimum of heads (1, −2) prefers 0, their mean for (1, −½) prefers 3."""

    class Nets:
        critic = staticmethod(lambda params, s, a: params["w"][:, None] * a[:, 0])

    class State:
        def __init__(self, aggregate: str, critics: str, params: Any, targets: Any):
            choice = BestOfN(target_samples=4, aggregate=aggregate, critics=critics, num_samples=9, temperature=1e-3)
            self.config, self.params, self.target_params = type("C", (), {"choice": choice}), params, targets

    def drawn(nets: Any, config: Any, params: Any, s: jax.Array, key: jax.Array) -> jax.Array:
        """The draws of the four keys, whichever these are, in an order of their own."""
        keys = jax.random.split(jax.random.split(jax.random.key(0))[0], 4)
        same = (jax.random.key_data(keys) == jax.random.key_data(key)).all(axis=-1)
        return jnp.full((2, 1), jnp.argmax(same), jnp.float32)

    def chosen(aggregate: str, critics: str, params: jax.Array, targets: jax.Array) -> jax.Array:
        state: Any = State(aggregate, critics, {"w": params}, {"w": targets})
        return best_next(drawn, Nets, state, state.params, jnp.zeros((2, 1)), jax.random.key(0))[:, 0]

    good, bad = array(1, -0.5), array(1, -2)
    for aggregate, critics, params, targets, expected in (
        ("mean", "online", good, bad, 3), ("mean", "target", good, bad, 0), ("mean", "target", bad, good, 3),
        ("min", "online", good, bad, 0), ("min", "online", array(1, 2), bad, 3),
    ):  # fmt: skip
        found = way(functools.partial(chosen, aggregate, critics))(params, targets)
        np.testing.assert_array_equal(found, np.full_like(found, expected))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qc", "qc_fql", "fql_n", "bfn_n"])
def test_chunks_and_n_steps_train_from_the_command_line(name: str, tmp_path: Path) -> None:
    data, folder = save_walks(tmp_path / "tiny.npz"), tmp_path / "run"
    several = [f"--agent.choice.{field}=3" for field in ("num_samples", "target_samples")] if name == "qc" else []
    assert main(f"--agent={name}", *TINY, *several, f"--data={data}", f"--run_dir={folder}") == 0
    modes = {line["mode"] for line in logs.read_lines(folder / "eval.jsonl")}
    assert modes == ({"eval"} if "fql" in name else {"eval", "best_of_n"})
    assert {line["length"] for line in logs.read_lines(folder / "eval.jsonl")} == {7}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--agent=qc", "--agent.horizon.steps=20"), "the agent looks 20 steps ahead, but the longest episode of the"),
        (("--agent=qc", "--agent.choice.num_samples=0"), "--agent.choice.num_samples=0 is too small; the least is 1"),
        (("--agent=qc", "--agent.choice.target_samples=0"), "target_samples=0 is too small; the least is 1"),
        (("--agent=fql", "--agent.horizon.steps=0"), "--agent.horizon.steps=0 is too small; the least is 1"),
        (
            ("--agent=fql", "--agent.critic.rho=0.5", "--agent.critic.heads=1"),
            "and there is one; give --agent.critic.h",
        ),
    ],
)
def test_what_cannot_be_is_told_in_a_line(flags: tuple[str, ...], told: str, tmp_path: Path) -> None:
    data = save_walks(tmp_path / "tiny.npz")
    with pytest.raises(UserError, match=told) as caught:
        main(*flags, *TINY, f"--data={data}", f"--run_dir={tmp_path / 'run'}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [{"horizon.steps": 201}, {"horizon.steps": 8, "horizon.chunk": True}])
def test_steps_beyond_an_online_episode_are_told_in_a_line(given: dict[str, Any], tmp_path: Path) -> None:
    limit = 7 if given.get("horizon.chunk") else None
    told = {"agent": "td3", "env": "Pendulum-v1", "preset": "none", "steps": 0, "online.steps": 100}
    told |= {"max_episode_steps": limit, "run_dir": str(tmp_path)}
    beyond = plan(told, given)
    message = (
        f"looks {given['horizon.steps']} steps ahead, but an episode of Pendulum-v1 ends after {limit or 200}; give"
    )
    with pytest.raises(UserError, match=message):
        build.prepare(beyond, sources.NONE)
    build.prepare(plan(told, given | {"horizon.steps": limit or 200}), sources.NONE)


def test_n_steps_read_rewards(tmp_path: Path) -> None:
    data, ends = tmp_path / "plain.npz", np.arange(24) % 12 == 11
    np.savez(data, observations=np.zeros((24, 3), np.float32), actions=np.zeros((24, 1), np.float32), terminals=ends)
    with pytest.raises(UserError, match="the field 'rewards' is missing; it has actions"):
        main("--agent=fql_n", "--env=Pendulum-v1", *TINY[1:], f"--data={data}", f"--run_dir={tmp_path / 'run'}")


FAULTS = {
    "flowrl/experiment/build.py": [
        ("ahead > limit:", "ahead > limit + 1:", "test_steps_beyond_an_online_episode_are_told_in_a_line"),
        ("ahead > limit:", "ahead >= limit:", "test_steps_beyond_an_online_episode_are_told_in_a_line"),
    ],
    "flowrl/choice.py": [
        ("num_samples=self.target_samples", "num_samples=1", "test_targets_bootstrap_the_best_of_several"),
        ("temperature=0.0)", "temperature=self.temperature)", "test_targets_bootstrap_the_best_of_several"),
        (
            'state.params if self.critics == "online"',
            "state.params if True",
            "test_targets_bootstrap_the_best_of_several",
        ),
        (
            'values.min(axis=1) if choice.aggregate == "min"',
            "values.min(axis=1) if True",
            "test_targets_bootstrap_the_best_of_several",
        ),
    ],
}
