"""Episodes: their generators, numbers, success and names, and mistakes of an environment."""

import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import own_envs
import pytest
from gymnasium import spaces

from flowrl import tasks
from flowrl.envs import making, workers
from flowrl.envs.episodes import LARGEST, EnvironmentFailed, NotFinite, SeededEpisodes
from flowrl.envs.workers import Episode, Finished
from flowrl.errors import UserError

MATRIX = spaces.Box(-1, 1, (2, 2), np.float32)


def own(env: gymnasium.Env, steps: int = 4) -> SeededEpisodes:
    return SeededEpisodes(gymnasium.wrappers.TimeLimit(env, steps), "Own-v0")


def begun(env: gymnasium.Env) -> SeededEpisodes:
    made = own(env)
    made.reset(seed=0)
    return made


# ------------------------------------------------------------------------------------------------------ generators


def test_both_global_generators_are_an_episodes_own() -> None:
    def episode(env: SeededEpisodes, other: SeededEpisodes | None) -> list[np.ndarray]:
        rows = [env.reset(seed=5)[0]]
        for _ in range(3):
            if other is not None:
                other.step([0.0])
            rows.append(env.step([0.0])[0])
        return rows

    env, other = own(own_envs.Dice()), own(own_envs.Dice(), 100)
    other.reset(seed=6)
    alone = episode(env, None)
    np.testing.assert_array_equal(alone, episode(env, other))
    assert len(np.unique(alone)) == 8
    assert not np.array_equal(alone[0], env.reset(seed=6)[0])


def test_spaces_that_an_environment_samples_from_are_seeded() -> None:
    one, two = (own(own_envs.Sampling(spaces.Dict(a=MATRIX))).reset(seed=3)[0] for _ in range(2))
    np.testing.assert_array_equal(one, two)


# -------------------------------------------------------------------------------------------- numbers and success


def share_of(env: str, episodes: int = 6, **kwargs: Any) -> list[Finished]:
    """Plays episodes as a worker does, in this process."""
    share = workers._Share(functools.partial(making.make, f"own/{env}-v0", **kwargs), 1)
    found = [*share.start([[Episode(0, seed) for seed in range(episodes)]]).finished]
    while len(found) < episodes:
        found += share.step(np.zeros((1, 1), np.float32)).finished
    return found


@pytest.mark.parametrize("name", ["success", "is_success"])
def test_success_counts_at_any_step(name: str) -> None:
    assert [event.success for event in share_of("Passing", name=name)] == [1.0] * 6
    assert {event.success for event in share_of("Passing", 12, name=name, share=0.5)} == {0.0, 1.0}
    told = [event.success for event in share_of("Passing", 12, name=name, share=0.5, silent=True)]
    assert 1.0 in told
    assert np.isnan(told).any()
    assert np.isnan([event.success for event in share_of("Own")]).all()


def test_arrays_of_one_element_are_numbers_and_flags() -> None:
    assert {(event.total_reward, event.length) for event in share_of("Columns")} == {(3.0, 2)}


@pytest.mark.parametrize(
    ("where", "what"),
    [("reward", "the reward"), ("observation", "number 1 of the observation"), ("success", "'success' in the info")],
)
def test_numbers_that_are_not_finite_break_off_their_episode_alone(where: str, what: str) -> None:
    broken, whole = [], []
    for event in share_of("Broken", 12, where=where):
        (broken if event.problem else whole).append(event)
    assert broken
    assert whole
    assert {event.problem for event in broken} == {f"own/Broken-v0: {what} is nan, not a finite number, in step 3"}
    assert {event.length for event in broken} == {3}
    assert np.isnan([(event.success, event.total_reward) for event in broken]).all()
    assert {(event.length, event.total_reward) for event in whole} == {(4, 4.0)}


def test_an_observation_that_is_not_finite_at_the_reset_is_no_episode() -> None:
    class Nothing(own_envs.Own):
        def shown(self) -> Any:
            return np.array([np.inf, 0])

    share = workers._Share(lambda: own(Nothing()), 1)
    view = share.start([[Episode(0, 1), Episode(0, 2)]])
    assert [event.problem[-12:] for event in view.finished] == ["at the reset"] * 2
    assert view.observations.shape == (1, 2)


@pytest.mark.parametrize("paid", [1e31, -np.inf, np.array([np.nan])])
def test_rewards_that_float32_cannot_sum_are_named(paid: Any) -> None:
    class Paying(own_envs.Own):
        def paid(self) -> Any:
            return paid

    with pytest.raises(NotFinite, match=r"the reward is .* in step 1"):
        begun(Paying()).step([0.0])
    assert 0 < LARGEST < 1e31


def test_float64_observations_that_leave_float32_are_named() -> None:
    class Large(own_envs.Own):
        def shown(self) -> Any:
            return np.array([0.0, 1e20 if self.steps < 2 else 1e39])

    made = begun(Large())
    made.step([0.0])
    with pytest.raises(NotFinite, match=r"number 1 of the observation is 1e\+39.* in step 2"):
        made.step([0.0])


@pytest.mark.parametrize("value", [0.7, "yes", np.ones(3), {}])
def test_success_that_is_neither_true_nor_false_is_refused(value: Any) -> None:
    class Vague(own_envs.Own):
        def told(self) -> dict[str, Any]:
            return {"success": value}

    with pytest.raises(EnvironmentFailed, match="success"):
        begun(Vague()).step([0.0])


# -------------------------------------------------------------------------------------------------- user's mistakes


def line_of(text: str) -> str:
    lines = Path(own_envs.__file__).read_text().splitlines()
    return f"own_envs.py:{next(i for i, line in enumerate(lines, 1) if text in line)}"


@pytest.mark.parametrize(
    ("env", "message", "line"),
    [
        ("Raising", "failed in step 3: KeyError: 'a mistake", 'raise KeyError("a mistake'),
        ("Parsing", "failed in step 1: JSONDecodeError", 'json.loads("{")'),
        ("Unmade", "cannot be made here (ValueError: no such map", 'raise ValueError("no such map'),
        ("OtherShape", "an observation is float32 of shape (3,), not of Box(-inf, inf, (2,)", ""),
        ("FourValues", "not enough values to unpack", ""),
        ("NoInfo", "its reset returned ndarray", ""),
        ("NoSeed", "unexpected keyword argument", ""),
    ],
)
def test_a_users_mistake_is_one_line_with_the_place(env: str, message: str, line: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        share_of(env)
    text = str(caught.value)
    assert f"own/{env}-v0" in text
    assert line_of(line) in text if line else re.search(r"own_envs\.py:\d+\)", text)
    assert "\n" not in text
    assert ("Gymnasium's form is reset(*, seed" in text) == (env in ("FourValues", "NoInfo", "NoSeed"))


def test_mistakes_show_before_the_training() -> None:
    for env in ("FourValues", "NoInfo", "NoSeed"):
        with pytest.raises(UserError, match="Gymnasium's form"):
            tasks.parse(f"own/{env}-v0").facts()


def test_an_environment_without_a_limit_is_refused_with_the_remedy() -> None:
    name = tasks.parse("own/Endless-v0")
    with pytest.raises(UserError, match=r"own/Endless-v0 has no limit of steps.*--max_episode_steps=N"):
        name.facts()
    made = name.limited(3).make()
    made.reset(seed=0)
    assert [made.step([0.0])[3] for _ in range(3)] == [False, False, True]
    inside = gymnasium.wrappers.TransformReward(gymnasium.wrappers.TimeLimit(own_envs.Own(), 5), abs)
    gymnasium.register("own/Inside-v0", entry_point=lambda: inside)
    assert making.make("own/Inside-v0").reset(seed=0)


# ----------------------------------------------------------------------------------------------------------- names


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current folder, which is not on Python's path, that registers environments."""
    (tmp_path / "own_maze.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control.pendulum import PendulumEnv\n"
        "class Maze(PendulumEnv):\n    pass\n"
        "gymnasium.register('Maze-v0', entry_point=Maze, max_episode_steps=5)\n"
        "gymnasium.register('mazes/Maze-v1', entry_point='own_maze:Maze', max_episode_steps=5)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(gymnasium.envs.registration, "registry", {**gymnasium.registry})
    monkeypatch.setattr(gymnasium, "registry", gymnasium.envs.registration.registry)
    monkeypatch.delitem(sys.modules, "own_maze", raising=False)
    yield "own_maze"
    sys.modules.pop("own_maze", None)


def test_a_module_of_ones_own_registers_its_environments(module: str) -> None:
    for name in ("own_maze:Maze-v0", "own_maze:mazes/Maze-v1", "mazes/Maze-v1"):
        assert tasks.parse(name).facts().spec.observation.shape == (3,)
    pool = workers.EnvPool(tasks.parse("own_maze:Maze-v0").factory(), 1, 1)  # whose process knows nothing of it
    try:
        assert pool.start([[Episode(0, 1)]]).observations.shape == (1, 3)
    finally:
        pool.close()
    with pytest.raises(UserError, match="importing own_maze registers no 'Mazes-v0'; did you mean Maze-v0"):
        tasks.parse("own_maze:Mazes-v0")


def test_names_that_nothing_registers_come_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"did you mean Pendulum-v1\?; one of your own is named module:Name-v0.*data.md"
    ):
        tasks.parse("Pendulun-v1")
    with pytest.raises(UserError, match=r"cannot import 'no_such_module'.*PYTHONPATH"):
        tasks.parse("no_such_module:Own-v0")
    with pytest.raises(UserError, match="cannot import ''"):
        tasks.parse(":Own-v0")
    (tmp_path / "own_mistake.py").write_text("\n\nnone = missing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"importing own_mistake failed: NameError: .*own_mistake\.py:3"):
        tasks.parse("own_mistake:Own-v0")


def test_mujocos_warnings_leave_no_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = making.make("Hopper-v5")
    assert sys.modules["mujoco"].get_mju_user_warning() is not None
    made.reset(seed=0)
    data = made.unwrapped.data  # type: ignore[attr-defined]
    for _ in range(2):
        data.qvel[:] = 1e30  # MuJoCo begins such a simulation anew, and warns
        made.step(np.zeros(3))
    assert capsys.readouterr().err.count("warning: MuJoCo: Nan, Inf or huge value in QVEL") == 1
    assert not [*tmp_path.iterdir()]


FAULTS = {
    "flowrl/envs/episodes.py": [
        ("        random.seed(seed)\n", "", "test_both_global_generators_are_an_episodes_own"),
        (
            "            random.setstate(self._random)\n",
            "            pass\n",
            "test_both_global_generators_are_an_episodes_own",
        ),
        (
            "            for before in self._played:",
            "            for before in ():",
            "test_both_global_generators_are_an_episodes_own",
        ),
        (
            "                space.seed(seed)\n",
            "                pass\n",
            "test_spaces_that_an_environment_samples_from_are_seeded",
        ),
        ('("success", "is_success")', '("success",)', "test_success_counts_at_any_step"),
        (
            "if not -LARGEST <= earned <= LARGEST:",
            "if earned != earned:",
            "test_rewards_that_float32_cannot_sum_are_named",
        ),
        (
            "not observation.dot(observation) < LARGEST",
            "False",
            "test_float64_observations_that_leave_float32_are_named",
        ),
        (
            "np.isfinite(row.astype(np.float32))",
            "np.isfinite(row)",
            "test_float64_observations_that_leave_float32_are_named",
        ),
        (
            "            self._refuse_success(reached, info)",
            "            pass",
            "test_success_that_is_neither_true_nor_false_is_refused",
        ),
        ("observation.shape == self._shape)", "True)", "test_a_users_mistake_is_one_line_with_the_place"),
        ("        if own:\n", "        if False:\n", "test_a_users_mistake_is_one_line_with_the_place"),
        ("code.co_filename.startswith(_OURS)", "not code", "test_a_users_mistake_is_one_line_with_the_place"),
        (
            "return any(isinstance(layer",
            "return True or any(isinstance(layer",
            "test_an_environment_without_a_limit_is_refused_with_the_remedy",
        ),
        (
            "for layer in _layers(env))",
            "for layer in [env])",
            "test_an_environment_without_a_limit_is_refused_with_the_remedy",
        ),
        ("mujoco.set_mju_user_warning(_mujoco_warning)", "pass", "test_mujocos_warnings_leave_no_file_and_one_line"),
    ],
    "flowrl/envs/workers.py": [
        (
            "if told == told and not self._successes[slot] >= told:",
            "if told == told:",
            "test_success_counts_at_any_step",
        ),
        ("told == told and not", "not", "test_success_counts_at_any_step"),
        (
            "self._finish(slot, str(error))\n                continue",
            "raise",
            "test_numbers_that_are_not_finite_break_off_their_episode_alone",
        ),
        (
            "self._end(slot, str(error))\n                continue",
            "raise",
            "test_an_observation_that_is_not_finite_at_the_reset_is_no_episode",
        ),
    ],
    "flowrl/tasks/task.py": [
        ("made.step([0.0]", "len([0.0]", "test_mistakes_show_before_the_training"),
    ],
    "flowrl/envs/making.py": [
        (
            "            sys.path.append(os.getcwd())\n",
            "            pass\n",
            "test_a_module_of_ones_own_registers_its_environments",
        ),
    ],
    "flowrl/tasks/registered.py": [
        ("kwargs=kwargs, module=module)", "module='')", "test_a_module_of_ones_own_registers_its_environments"),
    ],
    "flowrl/tasks/__init__.py": [
        ('"module:Name-v0, after', '"after', "test_names_that_nothing_registers_come_with_the_remedy"),
    ],
}
