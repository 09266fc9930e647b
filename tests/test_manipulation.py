"""Collection of the manipulation sets: OGBench's procedures, and episodes that their seed and number fix."""

import collections
from pathlib import Path
from typing import Any

import numpy as np
import ogbench
import pytest

from flowrl import tasks
from flowrl.collection import collect, manipulation
from flowrl.collection.recipes import Recipe
from flowrl.envs import making
from flowrl.envs.episodes import SeededEpisodes
from flowrl.errors import UserError

SHORT = 150


def made(name: str, length: int = SHORT) -> tuple[SeededEpisodes, Recipe]:
    known = tasks.parse(name)
    recipe = known.recipe()._replace(length=length)
    kwargs = dict(recipe.env_kwargs)
    return making.make(str(known.env_id), max_episode_steps=length, **kwargs), recipe


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
    recipe = tasks.parse(name).recipe()
    assert (recipe.episodes, recipe.length, "button_states" in recipe.fields) == (episodes, 1001, buttons)
    assert dict(recipe.env_kwargs) == {"mode": "data_collection", "terminate_at_goal": False}
    assert recipe.noise == 0.1
    assert (recipe.accept is not None) == name.startswith("scene")


@pytest.mark.parametrize("name", ["visual-cube-single-play", "antsoccer-arena-navigate", "humanoidmaze-medium-stitch"])
def test_other_sets_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"pixel|cannot collect"):
        tasks.parse(name).recipe()


@pytest.mark.slow
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
    for field in ("observations", "actions", "qpos", "qvel"):
        assert first[field].dtype == np.float32
    size = sum(values.nbytes for values in first.values()) / SHORT
    assert size <= recipe.row_bytes <= 1.05 * size


@pytest.fixture(scope="module")
def played() -> tuple[Any, dict[str, np.ndarray]]:
    env, recipe = made("cube-single-play", 400)
    return env, collect.play(env, recipe, 0, 0)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scene-noisy", "scene-play"])
def test_a_scene_s_targets_do_not_outlive_their_episode(name: str) -> None:
    """An oracle's first action sees the state of the old targets, those of things never drawn so far among them."""
    seen = []
    for polluted in (False, True):
        env, recipe = made(name, 5)
        place: Any = env.unwrapped
        place._target_button_states[:] = 0, int(polluted)
        place._target_button = int(polluted)
        place._target_drawer_pos, place._target_window_pos = (-0.16, 0.2) if polluted else (0.0, 0.0)
        place.model.site("drawer_handle_center_target").pos[1] = place._target_drawer_pos
        place.model.site("window_handle_center_target").pos[0] = place._target_window_pos
        for episode in range(4):
            moves = recipe.behaviour(place, np.random.default_rng(episode), recipe)
            seen.append(env.reset(seed=episode, options=next(moves))[1])
    for clean, other in zip(seen[:4], seen[4:], strict=True):
        for key in clean:
            np.testing.assert_array_equal(clean[key], other[key], err_msg=key)
    assert {str(info["privileged/target_task"]) for info in seen} != {"cube"}


class Remembering:
    """Stands for an environment and its oracles; each oracle is done after two actions."""

    def __init__(self) -> None:
        self.stacks: list[float] = []
        self.seen: list[tuple[str, Any]] = []
        self.done = False

    def set_new_target(self, *, p_stack: float) -> tuple[Any, dict[str, Any]]:
        self.stacks.append(p_stack)
        return "drawn", {"privileged/target_task": "cube"}

    def reset(self, observation: Any, info: Any) -> None:
        self.seen.append(("reset", observation))
        self.left, self.done = 2, False

    def select_action(self, observation: Any, info: Any) -> np.ndarray:
        self.seen.append(("act", observation))
        self.left -= 1
        self.done = self.left == 0
        return np.full(5, 2.0)


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("cube-single-play", 0.0, 0.0),
        ("cube-double-play", 0.0, 0.25),
        ("cube-triple-noisy", 0.05, 0.35),
        ("cube-quadruple-play", 0.1, 0.5),
    ],
)
def test_each_target_follows_when_its_oracle_is_done(
    name: str, lowest: float, highest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, stacks = tasks.parse(name).recipe(), []
    for episode in range(100):
        place = Remembering()
        for oracles in ("_plan_oracles", "_markov_oracles"):
            monkeypatch.setattr(manipulation, oracles, lambda env, _, place=place: {"cube": place})
        moves = recipe.behaviour(place, np.random.default_rng(episode), recipe)
        assert next(moves) == {}
        for step in range(12):
            assert np.abs(moves.send((step, {"privileged/target_task": "cube"}))).max() <= 1.0
        assert len(set(place.stacks)) == 1  # drawn once an episode
        stacks.append(place.stacks[0])
        kinds, states = zip(*place.seen[:6], strict=True)
        assert kinds == ("reset", "act", "act") * 2
        if name.endswith("play"):  # without random actions, at which no oracle is asked
            assert states == (0, 0, 1, "drawn", 2, 3)
    assert lowest <= min(stacks) <= lowest + 0.02
    assert highest - 0.02 <= max(stacks) <= highest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cube-single", "scene", "puzzle-3x3"])
def test_oracles_are_set_as_published(name: str) -> None:
    env, _ = made(f"{name}-play", 5)
    place = manipulation.PLACES[name]
    for oracle in manipulation._plan_oracles(env.unwrapped, place).values():
        assert (oracle._noise, oracle._noise_smoothing) == (0.1, 0.5)
    for oracle in manipulation._markov_oracles(env.unwrapped, place).values():
        assert oracle._min_norm == 0.4
    for oracles in (manipulation._plan_oracles, manipulation._markov_oracles):
        assert oracles(env.unwrapped, place)["button"]._gripper_always_closed == (name == "puzzle-3x3")


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "observation", "buttons"),
    [("cube-single-noisy", 28, 0), ("scene-noisy", 40, 2), ("puzzle-3x3-play", 55, 9)],
)
def test_files_are_ogbenchs(
    name: str, observation: int, buttons: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection with two processes equals one with a single process, and OGBench reads it."""
    short = tasks.parse(name).recipe()._replace(length=20)
    paths = [collect.collect(short, tmp_path / str(workers), episodes=3, workers=workers) for workers in (1, 2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    data = ogbench.load_dataset(str(paths[0]), add_info=True)
    assert data["observations"].shape == (3 * 19, observation)
    if buttons:
        assert data["button_states"].shape == (3 * 19, buttons)
        assert data["button_states"].dtype == np.int64
    made = collect.provenance(paths[0])
    assert made is not None
    assert (made["env"], made["published_episodes"], made["steps_per_episode"]) == (name, 1000, 20)


FAULTS = {
    "flowrl/collection/manipulation.py": [
        (
            "button_plan.ButtonPlanOracle(gripper_always_closed=place.puzzle, **common)",
            "button_plan.ButtonPlanOracle(**common)",
            "test_oracles_are_set_as_published",
        ),
        (
            "env.set_new_target(p_stack=stack)",
            "env.set_new_target(p_stack=0.5)",
            "test_each_target_follows_when_its_oracle_is_done",
        ),
    ],
    "flowrl/collection/collect.py": [
        (
            "[seed, episode] + ([attempt] if attempt else [])",
            "[seed, episode]",
            "test_a_scene_whose_block_leaves_is_played_again",
        ),
    ],
}
