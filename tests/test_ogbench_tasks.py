import numpy as np
import ogbench
import pytest

from flowrl import tasks
from flowrl.collection import collect
from flowrl.errors import UserError
from flowrl.tasks import ogbench as ogbench_names
from flowrl.tasks import ogbench_sets, sources
from flowrl.tasks.fields import Expected
from flowrl.tasks.storage import Loaded

DATA = "pointmaze-medium-navigate"
# Gymnasium's remarks on the bounds of OGBench's manipulation environments.
pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered by casting:UserWarning")


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    return collect.collect(tasks.parse(DATA).recipe(), tmp_path_factory.mktemp("data"), episodes=3, workers=1)


def read(path, name, **expected):
    return tasks.parse(name).read(sources.Source(path, "file", "", ""), Expected(**expected))


def theirs(path, name):
    with np.errstate(all="ignore"):
        env, train, _ = ogbench.make_env_and_datasets(f"{name}-v0", dataset_path=str(path))
    env.close()
    return train


@pytest.mark.parametrize("task", ["", *(f"-task{i}" for i in range(1, 6))])
def test_rewards_and_masks_are_ogbenchs(collected, task):
    name = f"{DATA}-singletask{task}"
    ours, reference = read(collected, name, observation_dim=2, action_dim=2), theirs(collected, name)
    assert list(ours) == ["observations", "actions", "terminals", "rewards", "masks"]
    transitions = ~ours["terminals"]
    for field in ("observations", "rewards", "masks"):
        assert ours[field].dtype == np.float32
        np.testing.assert_array_equal(ours[field][transitions], reference[field])
    rows = np.flatnonzero(transitions)
    np.testing.assert_array_equal(ours["observations"][rows + 1], reference["next_observations"])
    assert set(np.unique(ours["rewards"])) <= {-1.0, 0.0}
    np.testing.assert_array_equal(ours["masks"], -ours["rewards"])


def test_some_task_is_reached_in_the_data(collected):
    reached = [(read(collected, f"{DATA}-singletask-task{i}")["rewards"] == 0).sum() for i in range(1, 6)]
    assert max(reached) > 0


def test_oracle_goals_are_ogbenchs(collected):
    ours, reference = read(collected, f"{DATA}-oraclerep"), theirs(collected, f"{DATA}-oraclerep")
    assert list(ours) == ["observations", "actions", "terminals", "oracle_reps"]
    assert ours["oracle_reps"].dtype == np.float32
    np.testing.assert_array_equal(ours["oracle_reps"][~ours["terminals"]], reference["oracle_reps"])


def manipulation(name, rows=6):
    """Returns a state of the simulator in which the task is solved in the last row, and by halves in the others."""
    env = tasks.parse(name)
    made = env.make()
    made.reset(seed=0)
    inner = made.unwrapped
    state = {"qpos": np.random.default_rng(0).normal(size=(rows, len(inner._data.qpos)))}
    if "cube" in name:
        targets = inner._data.mocap_pos
        for i, target in enumerate(targets):
            state["qpos"][-1, 14 + 7 * i : 17 + 7 * i] = target
    else:
        goal = inner._target_button_states
        state["button_states"] = np.where(np.arange(rows)[:, None] == rows - 1, goal, 1 - goal).astype(np.int64)
        state["button_states"][0, 0] = goal[0]
    made.close()
    return env, state


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cube-double-play-singletask-task2", "puzzle-3x3-play-singletask-task4"])
def test_a_row_of_a_manipulation_task_is_rewarded_for_what_it_solves(name):
    env, state = manipulation(name)
    added = ogbench_sets.added(Loaded("data.npz", "", state), env, 6)
    np.testing.assert_array_equal(added["masks"], [1, 1, 1, 1, 1, 0])
    parts = 2 if "cube" in name else 9
    first = -parts if "cube" in name else 1 - parts
    np.testing.assert_array_equal(added["rewards"], [first, -parts, -parts, -parts, -parts, 0])


@pytest.mark.slow
def test_compact_goals_of_buttons_are_their_states():
    env, state = manipulation("puzzle-3x3-play-oraclerep")
    goals = ogbench_sets.added(Loaded("data.npz", "", state), env, 6)["oracle_reps"]
    np.testing.assert_array_equal(goals, state["button_states"])


def test_numpys_global_generator_is_left_alone(collected):
    generator = np.random.get_bit_generator()
    before = generator.state["state"]["key"].copy(), generator.state["state"]["pos"]
    read(collected, f"{DATA}-singletask")
    assert np.random.get_bit_generator() is generator
    np.testing.assert_array_equal(generator.state["state"]["key"], before[0])
    assert generator.state["state"]["pos"] == before[1]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            f"{DATA}-singletask",
            {"qpos": None},
            "the field 'qpos' is missing, which pointmaze-medium-navigate-singletask",
        ),
        (f"{DATA}-oraclerep", {"qpos": np.zeros((5, 2))}, r"'qpos' has shape \(5, 2\), but 3003 rows"),
        (
            f"{DATA}-singletask",
            {"qpos": np.full((3003, 2), np.nan)},
            "'qpos' has NaN or infinite values, first in row 0",
        ),
        (
            f"{DATA}-singletask",
            {"qpos": np.zeros((3003, 1))},
            "'qpos' have size 1, but pointmaze-medium-singletask-v0 has",
        ),
    ],
)
def test_a_file_without_the_state_is_explained(collected, tmp_path, name, changes, message):
    with np.load(collected) as file:
        arrays = {key: value for key, value in (dict(file) | changes).items() if value is not None}
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(UserError, match=message) as raised:
        read(tmp_path / "data.npz", name)
    assert "data.npz" in str(raised.value)


@pytest.mark.slow
def test_buttons_are_needed_where_there_are_some():
    env, state = manipulation("puzzle-3x3-play-singletask")
    del state["button_states"]
    with pytest.raises(UserError, match="'button_states' is missing, which puzzle-3x3-play-singletask needs; use the"):
        ogbench_sets.added(Loaded("data.npz", "", state), env, 6)
    state["button_states"] = np.zeros((6, 8), int)
    with pytest.raises(UserError, match="not the simulator's state in puzzle-3x3-singletask-v0: 'qpos' has shape"):
        ogbench_sets.added(Loaded("data.npz", "", state), env, 6)
    env, state = manipulation("cube-single-play-singletask")
    with pytest.raises(UserError, match="'qpos' have size 15, but cube-single-singletask-v0 has 21; use the official"):
        ogbench_sets.added(Loaded("data.npz", "", {"qpos": state["qpos"][:, :15]}), env, 6)


def test_a_single_task_shares_the_collection_of_its_dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWRL_DATA", str(tmp_path))
    monkeypatch.setattr(ogbench_names, "HOSTS", ())
    calls = []

    def collect_here(recipe, out, *, workers=None):
        calls.append(recipe.name)
        out.mkdir(parents=True)
        (out / f"{DATA}-v0.npz").write_bytes(b"")

    monkeypatch.setattr(collect, "collect", collect_here)
    for name in (f"{DATA}-singletask-task3", f"{DATA}-oraclerep", DATA):
        assert tasks.parse(name).locate("auto").path == tmp_path / "collected" / f"{DATA}-v0.npz"
    assert calls == [DATA]
