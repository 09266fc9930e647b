"""Collection of the manipulation sets: OGBench's procedures, and episodes that their seed and number fix."""

import collections
from pathlib import Path
from typing import Any

import numpy as np
import ogbench
import pytest
from programs import load

from flowrl import envs
from flowrl.data import behaviours, collect, manipulation
from flowrl.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SHORT = 150


def made(name: str, length: int = SHORT) -> tuple[envs.SeededEpisodes, behaviours.Recipe]:
    known = envs.parse(name)
    recipe = behaviours.recipe(known)._replace(length=length)
    kwargs = dict(recipe.env_kwargs)
    return envs.make(str(known.env_id), terminate_at_goal=False, max_episode_steps=length, **kwargs), recipe


@pytest.mark.parametrize(
    ("name", "episodes", "buttons"),
    [
        ("cube-single-play", 1000, False),
        ("cube-double-noisy", 1000, False),
        ("cube-triple-play", 3000, False),
        ("cube-quadruple-noisy", 5000, False),
        ("scene-play", 1000, True),
        ("puzzle-3x3-noisy", 1000, True),
        ("puzzle-4x4-play", 1000, True),
        ("puzzle-4x5-play", 3000, True),
        ("puzzle-4x6-noisy", 5000, True),
    ],
)
def test_recipes_are_the_published_ones(name: str, episodes: int, buttons: bool) -> None:
    recipe = behaviours.recipe(envs.parse(name))
    assert (recipe.episodes, recipe.length, recipe.button_states) == (episodes, 1001, buttons)
    assert dict(recipe.env_kwargs) == {"mode": "data_collection"}
    assert recipe.noise == 0.1
    assert (recipe.accept is not None) == name.startswith("scene")


@pytest.mark.parametrize("name", ["visual-cube-single-play", "antmaze-large-navigate", "humanoidmaze-medium-stitch"])
def test_other_sets_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"pixel|cannot collect"):
        behaviours.recipe(envs.parse(name))


@pytest.mark.parametrize(
    "name", ["cube-double-play", "cube-single-noisy", "scene-play", "scene-noisy", "puzzle-3x3-play"]
)
def test_an_episode_follows_from_its_seed_and_number(name: str) -> None:
    (env, recipe), (other, _) = made(name), made(name)
    first = collect.play(env, recipe, 5, 11)
    collect.play(other, recipe, 5, 6)
    again = collect.play(other, recipe, 5, 11)
    for field, values in first.items():
        np.testing.assert_array_equal(values, again[field])
    assert not np.array_equal(collect.play(env, recipe, 6, 11)["actions"], first["actions"])
    assert len(first["terminals"]) == SHORT
    assert first["terminals"].tolist() == [False] * (SHORT - 1) + [True]
    assert np.abs(first["actions"]).max() <= 1
    assert ("button_states" in first) == (not name.startswith("cube"))
    if "button_states" in first:
        assert first["button_states"].dtype == np.int64


@pytest.fixture(scope="module")
def played() -> tuple[Any, dict[str, np.ndarray]]:
    env, recipe = made("cube-single-play", 400)
    return env, collect.play(env, recipe, 0, 0)


def test_rows_hold_the_state_before_the_step(played: tuple[Any, dict[str, np.ndarray]]) -> None:
    """Replaying the actions from a row's state gives the next row's."""
    env, episode = played
    place = env.unwrapped
    positions = 10 * (episode["qpos"][:, 14:17] - [0.425, 0.0, 0.0])
    np.testing.assert_allclose(episode["observations"][:, 19:22], positions, atol=1e-4)
    place.set_state(episode["qpos"][7].astype(float), episode["qvel"][7].astype(float))
    np.testing.assert_allclose(place._data.qpos, episode["qpos"][7], atol=1e-6)


def test_the_planner_moves_the_cube(played: tuple[Any, dict[str, np.ndarray]]) -> None:
    _, episode = played
    heights = episode["qpos"][:, 16]
    assert heights.max() > 0.1
    assert np.ptp(episode["qpos"][:, 14:16], axis=0).max() > 0.05


def test_noisy_episodes_have_random_actions_and_noise_of_the_episodes_size() -> None:
    env, recipe = made("puzzle-3x3-noisy", 1000)

    class Still:
        """An oracle that would do nothing and is never done."""

        done = False

        def reset(self, observation: Any, info: Any) -> None: ...

        def select_action(self, observation: Any, info: Any) -> np.ndarray:
            return np.zeros(5)

    oracles = collections.defaultdict(Still)
    monkey = pytest.MonkeyPatch()
    monkey.setattr(manipulation, "_markov_oracles", lambda env, place: oracles)
    episode = collect.play(env, recipe, 0, 3)
    monkey.undo()
    actions = episode["actions"]
    generator = np.random.default_rng(np.random.SeedSequence([0, 3]).spawn(2)[0])
    generator.uniform(0.0, 0.0)
    xi = generator.uniform(0.0, 0.1)
    random = np.abs(actions[:, :3]).max(axis=1) > 5 * xi
    assert 0.16 < random.mean() < 0.24  # .2 of the actions are random, and nearly all of those are that large
    np.testing.assert_allclose(actions[~random, :3].std(), xi, rtol=0.25)
    np.testing.assert_allclose(actions[~random, 3].std(), 3 * xi, rtol=0.5)


def test_a_scene_whose_block_leaves_is_played_again() -> None:
    inside = {"qpos": np.zeros((2, 21), np.float32)}
    assert manipulation.block_stays_visible(inside)
    for y, z, visible in ((0.29, 0.0, False), (-0.3, 0.0, False), (-0.3, 0.07, True), (-0.3, 0.09, False)):
        qpos = inside["qpos"].copy()
        qpos[1, 15:17] = y, z
        assert manipulation.block_stays_visible({"qpos": qpos}) == visible
    env, recipe = made("scene-play", 20)
    seen: list[np.ndarray] = []

    def second(fields: dict[str, np.ndarray]) -> bool:
        seen.append(fields["actions"])
        return len(seen) == 2

    kept = collect.play(env, recipe._replace(accept=second), 0, 0)
    np.testing.assert_array_equal(kept["actions"], seen[1])
    assert not np.array_equal(seen[0], seen[1])


def test_files_are_ogbenchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection with two processes equals one with a single process, and OGBench reads it."""
    short = manipulation.recipe(envs.parse("scene-play"))
    assert short is not None
    paths = [collect.collect("scene-play", tmp_path / str(workers), episodes=1, workers=workers) for workers in (1, 2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    data = ogbench.load_dataset(str(paths[0]), add_info=True)
    assert data["observations"].shape == (1000, 40)
    assert data["button_states"].shape == (1000, 2)


def test_oracles_reach_their_targets() -> None:
    result = load("experiments/oracle_success.py").measure("cube-single-play", 1, 0)
    assert result["targets"] >= 8
    assert result["share"] > 0.8
