"""Acting: keys of episodes, rows of whole evaluations, the warm-up, one policy alone, and the normaliser in all."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowrl import agents
from flowrl.agent import Agent
from flowrl.config import as_arrays, put
from flowrl.machine.devices import Layout
from flowrl.networks import Spec
from flowrl.normalize import Normalizer
from flowrl.random_streams import stream_key
from flowrl.train_state import Batch, Policy
from flowrl.training import acting

SPEC = Spec.of_sizes(2, 2, 2)
NORMALIZER = Normalizer(jnp.array([1.0, 2.0]), jnp.array([2.0, 4.0]), jnp.float32(1), jnp.float32(0))
A, B = [3.0, 10.0], [5.0, 2.0]
"""Two observations; normalised (1, 2) and (2, 0)."""
unused: Any = None


def shower(noise: float = 0.0) -> Agent[Any]:
    """Acts by the weight in its policy times what it sees, minus the goal if there is one, with noise, and explores."""
    return Agent(
        unused, unused, unused, functools.partial(_shown, noise), unused, lambda config: {"eval": config}, unused
    )


def _shown(noise: float, policy: Policy[Any], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    seen = inputs["observations"] - inputs.get("goals", 0.0)
    return policy.params["w"] * seen + (noise + explore) * jax.random.normal(key, seen.shape)


def policies(*weights: float, normalizer: Normalizer | None = None) -> Policy[Any]:
    return Policy({}, {"w": jnp.array(weights)}, normalizer)


def keys(runs: int, episodes: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), (runs, episodes))


def played(actor: acting.EpisodeActor, own: Policy[Any], numbers: Any, times: Any, **inputs: Any) -> np.ndarray:
    arrays = {name: np.array(x, np.float32) for name, x in inputs.items()}
    return actor(own, np.array(numbers), np.array(times), arrays)


def test_runs_act_by_their_own_policies_in_normalised_observations_and_goals() -> None:
    actor = acting.EpisodeActor(shower(), keys(2, 4), 2)
    shown = {"observations": [[A, B], [B, A]], "goals": [[B, B], [B, B]]}
    arguments = ([[0, 1], [0, 1]], [[0, 0], [0, 0]])
    plain = played(actor, policies(1, 10), *arguments, **shown)
    np.testing.assert_array_equal(plain, [[[-2, 8], [0, 0]], [[0, 0], [-20, 80]]])
    seen = played(actor, policies(1, 10, normalizer=NORMALIZER), *arguments, **shown)
    np.testing.assert_array_equal(seen, [[[-1, 2], [0, 0]], [[0, 0], [-10, 20]]])
    others = policies(1, 10, normalizer=NORMALIZER.replace(goals_are_states=False))
    seen = played(actor, others, *arguments, **shown)
    np.testing.assert_array_equal(seen[0], [[1 - 5, 2 - 2], [2 - 5, 0 - 2]])
    alone = played(actor, policies(1, 10, normalizer=NORMALIZER), *arguments, observations=shown["observations"])
    np.testing.assert_array_equal(alone[0], [[1, 2], [2, 0]])


def test_an_episode_alone_has_the_row_of_its_number() -> None:
    class Watched(acting.EpisodeActor):
        def __call__(self, policies: Policy[Any], numbers: np.ndarray, times: np.ndarray, inputs: Any) -> np.ndarray:
            self.seen = numbers
            return super().__call__(policies, numbers, times, inputs)

    actor = Watched(shower(), keys(2, 6), 3)
    actor.of_first_run(policies(1, 1), 5, 0, {"observations": np.array(A, np.float32)})
    assert actor.seen.tolist() == [[0, 0, 5], [0, 0, 0]]


def test_noise_is_that_of_run_episode_and_time() -> None:
    own = keys(2, 6)
    actor = acting.EpisodeActor(shower(noise=1.0), own, 2)
    zeros = np.zeros((2, 2, 2))
    found = played(actor, policies(1, 1), [[3, 0], [5, 4]], [[7, 0], [1, 7]], observations=zeros)
    for run, slot, number, moment in ((0, 0, 3, 7), (0, 1, 0, 0), (1, 0, 5, 1), (1, 1, 4, 7)):
        expected = jax.random.normal(jax.random.fold_in(own[run, number], moment), (1, 2))[0]
        np.testing.assert_array_equal(found[run, slot], expected)


def test_actions_in_a_row_are_played_one_after_another() -> None:
    def act(policy: Policy[Any], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
        return inputs["observations"][:, None] + 10 * jnp.arange(3.0)[:, None]

    agent = Agent(unused, unused, unused, act, unused, unused, unused)
    actor, ours = acting.EpisodeActor(agent, keys(1, 4), 2), policies(0)
    found = [
        played(actor, ours, [[0, 1]], [times], observations=[[[shown, 0], [shown, 0]]])[0, :, 0].tolist()
        for shown, times in enumerate([(0, 0), (1, 1), (2, 0), (0, 1), (1, 2), (2, 3)])
    ]
    assert found == [[0, 0], [10, 10], [20, 2], [3, 12], [13, 22], [23, 5]]  # a chunk begins with its episode, or ends
    one = {"observations": np.array([1, 2])}
    np.testing.assert_array_equal(acting.play(agent, SPEC, Policy({}, {}), one, jax.random.key(0))[:, 0], [1, 11, 21])


@pytest.mark.slow
def test_one_episode_alone_is_played_in_its_row() -> None:
    own = keys(3, 8)
    spec, config = Spec.of_sizes(2, 2), put(agents.default("fql"), {"hidden_dims": (16, 16)})
    agent = agents.build("fql", config, spec)
    states = jax.vmap(lambda key: agent.init(key, as_arrays(config)))(jax.random.split(jax.random.key(1), 3))
    ours = jax.vmap(agent.policy)(states).replace(normalizer=NORMALIZER)
    actor = acting.EpisodeActor(agent, own, 2)
    shown = np.random.default_rng(0).normal(size=(3, 2, 2)).astype(np.float32)
    whole = actor(ours, np.full((3, 2), [4, 5]), np.full((3, 2), 9), {"observations": shown})
    for slot, number in enumerate((4, 5)):
        one = actor.of_first_run(ours, number, 9, {"observations": shown[0, slot]})
        np.testing.assert_array_equal(one, whole[0, slot])
    assert len(np.unique(whole)) == whole.size


def test_what_is_not_finite_is_played_as_0_and_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    actor = acting.EpisodeActor(shower(), keys(2, 2), 2)
    for _ in range(2):
        found = played(actor, policies(1, np.nan), [[0, 1]] * 2, [[0, 0]] * 2, observations=[[A, B], [A, B]])
        np.testing.assert_array_equal(found, [[A, B], [[0, 0], [0, 0]]])
    assert capsys.readouterr().out.count("the policy of run 1 gives actions that are not finite") == 1


@pytest.mark.slow
def test_exploration_is_uniform_and_then_the_policy_s() -> None:
    own = jax.random.split(jax.random.key(2), 2)
    explore = acting.explorer(shower(), Spec.of_sizes(2, 2), 10, Layout(2))
    shown = np.array([[A, B, A], [B, A, B]], np.float32)
    warm = explore(policies(0, 0), own, np.int32(9), shown)
    key = stream_key(own[1], "act", 9)
    np.testing.assert_array_equal(warm[1, :, 0], jax.random.uniform(key, (3, 2), minval=-1.0, maxval=1.0))
    later = explore(policies(1, 2, normalizer=NORMALIZER), own, np.int32(10), shown)
    noise = jax.random.normal(stream_key(own[1], "act", 10), (3, 2))
    np.testing.assert_allclose(later[1, :, 0], 2 * np.array([[2, 0], [1, 2], [2, 0]]) + noise, rtol=1e-6)
    assert acting.explorer(shower(), SPEC, 10, Layout(2)) is not explore  # an agent of its own
    agent = shower()
    assert acting.explorer(agent, SPEC, 10, Layout(2)) is acting.explorer(agent, SPEC, 10, Layout(2))


def test_one_policy_takes_one_observation_or_many() -> None:
    one, key = Policy({}, {"w": jnp.float32(2)}, NORMALIZER), jax.random.key(3)
    play = functools.partial(acting.play, shower(), SPEC, one, key=key)
    np.testing.assert_array_equal(play({"observations": np.array(A)}), [2, 4])
    np.testing.assert_array_equal(play({"observations": np.array([A, B])}), [[2, 4], [4, 0]])
    np.testing.assert_array_equal(play({"observations": np.array(A), "goals": np.array(B)}), [-2, 4])
    noise = jax.random.normal(key, (1, 2))[0]
    np.testing.assert_allclose(play({"observations": np.array(A)}, explore=True), np.array([2, 4]) + noise, rtol=1e-6)


def test_an_agent_by_itself_takes_one_draw() -> None:
    config = put(agents.default("fql"), {"choice.num_samples": 5, "alpha": 3.0})
    agent = agents.build("fql", config, Spec.of_sizes(2, 2))
    assert acting.by_itself(agent, config) == put(config, {"choice.num_samples": 1})
    assert list(agent.evaluations(config)) == ["eval", "best_of_n"]


FAULTS = {
    "flowrl/normalize.py": [
        (
            "(x - self.mean) / self.std if name in names",
            "x / self.std if name in names",
            "test_runs_act_by_their_own_policies_in_normalised_observations_and_goals",
        ),
    ],
    "flowrl/training/acting.py": [
        ("np.where(good, actions, 0)", "actions", "test_what_is_not_finite_is_played_as_0_and_told_once"),
        (
            "seen = inputs if policy.normalizer is None else policy.normalizer.inputs(inputs)",
            "seen = inputs",
            "test_runs_act_by_their_own_policies_in_normalised_observations_and_goals",
        ),
        ("jax.random.fold_in(key, time)", "key", "test_noise_is_that_of_run_episode_and_time"),
        (
            "policy, keys[numbers], *rest",
            "policy, keys[0 * numbers], *rest",
            "test_noise_is_that_of_run_episode_and_time",
        ),
        (
            'stream_key(key, "act", step), explore=True',
            'stream_key(key, "act"), explore=True',
            "test_exploration_is_uniform_and_then_the_policy_s",
        ),
        (
            '"act", step), explore=True',
            '"act", step), explore=False',
            "test_exploration_is_uniform_and_then_the_policy_s",
        ),
        ("step < warmup_steps", "step <= warmup_steps", "test_exploration_is_uniform_and_then_the_policy_s"),
        ("number % self._slots", "0 * number", "test_an_episode_alone_has_the_row_of_its_number"),
    ],
}
