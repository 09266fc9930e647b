import json
import subprocess
import sys

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from commands import main
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from flowrl import tasks
from flowrl.envs import making
from flowrl.envs.spaces import vector
from flowrl.errors import UserError
from flowrl.tasks import minari as minari_sets
from flowrl.tasks.fields import Expected

ID = "test/pendulum/swing-v0"
# Minari asks for what a public dataset should say about itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
BOX, ACTIONS = spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Box(-2.0, 2.0, (1,), np.float32)
GOALS = spaces.Dict(
    {
        "achieved_goal": spaces.Box(-1, 1, (1,), np.float32),
        "desired_goal": spaces.Dict({"b": spaces.Box(-1, 1, (1,)), "a": spaces.Box(-1, 1, (2,))}),
        "observation": BOX,
    }
)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def batch(space, rng, rows):
    if isinstance(space, spaces.Dict):
        return {name: batch(part, rng, rows) for name, part in space.items()}
    return rng.uniform(-1, 1, (rows, *space.shape)).astype(np.float32)


def create(lengths=(4, 3), observation_space=BOX, action_space=ACTIONS, data_format="hdf5", dataset_id=ID, **options):
    """Writes a dataset whose even episodes terminate and whose others are truncated, and returns its episodes."""
    rng, buffers = np.random.default_rng(0), []
    for i, steps in enumerate(lengths):
        ended = [step == steps - 1 for step in range(steps)]
        buffers.append(
            EpisodeBuffer(
                observations=batch(observation_space, rng, steps + 1),
                actions=(2 * batch(action_space, rng, steps)),
                rewards=rng.normal(size=steps).tolist(),
                terminations=[end and i % 2 == 0 for end in ended],
                truncations=[end and i % 2 == 1 for end in ended],
            )
        )
    spaces_given = {"observation_space": observation_space, "action_space": action_space}
    minari.create_dataset_from_buffers(dataset_id, buffers, data_format=data_format, **spaces_given, **options)
    return buffers


def read(dataset_id=ID, **expected):
    env = tasks.parse(f"minari:{dataset_id}")
    return env.read(env.locate("auto"), Expected(**expected))


def test_episodes_masks_and_bounds():
    written = create()
    arrays = read(observation_dim=3, action_dim=1)
    np.testing.assert_array_equal(arrays["terminals"], [0, 0, 0, 0, 1, 0, 0, 0, 1])
    np.testing.assert_array_equal(arrays["masks"][~arrays["terminals"]], [1, 1, 1, 0, 1, 1, 1])
    np.testing.assert_array_equal(arrays["observations"], np.concatenate([one.observations for one in written]))
    inside = ~arrays["terminals"]
    np.testing.assert_allclose(
        arrays["actions"][inside], np.concatenate([one.actions for one in written]) / 2, atol=1.1e-5
    )
    np.testing.assert_allclose(arrays["rewards"][inside], np.concatenate([one.rewards for one in written]), rtol=1e-6)
    assert {array.dtype.name for array in arrays.values()} == {"float32", "bool"}


def test_goals_follow_the_observation_in_sorted_order():
    written = create(observation_space=GOALS)
    found = read()["observations"]
    parts = [one.observations for one in written]
    goals = [np.concatenate([p["desired_goal"]["a"], p["desired_goal"]["b"]], axis=1) for p in parts]
    expected = [np.concatenate([p["observation"], goal], axis=1) for p, goal in zip(parts, goals, strict=True)]
    np.testing.assert_array_equal(found, np.concatenate(expected))


def test_locating_names_the_folder_and_hashes_it(root, tmp_path):
    create()
    env = tasks.parse(f"minari:{ID}")
    source = env.locate("official")
    assert source.path == root / ID
    assert source.origin == "official"
    assert ID in source.detail
    given = env.locate(str(root))
    assert (given.path, given.origin, given.sha256) == (root / ID, "file", source.sha256)
    assert env.locate(str(root / ID)) == given
    (root / ID / "data" / "more").write_text("x")
    assert env.locate("official").sha256 != source.sha256
    for inside in ("data", "data/main_data.hdf5"):  # the set's own bounds of actions are never lost
        assert env.locate(str(root / ID / inside)).path == root / ID
    (root / ID / "data" / "metadata.json").unlink()
    with pytest.raises(UserError, match="give its folder, the one with data/metadata"):
        env.locate(str(root / ID / "data" / "main_data.hdf5"))


def test_what_is_missing_comes_with_the_command_that_gets_it(monkeypatch):
    with pytest.raises(UserError, match="get it with: minari download mujoco/hopper/medium-v0"):
        read("mujoco/hopper/medium-v0")
    for wrong in ("hopper", "../hopper-v0", "/etc/hopper-v0", "a//b-v0"):
        with pytest.raises(UserError, match="is no id of a Minari set"):
            read(wrong)
    with pytest.raises(UserError, match="cannot collect data for minari:test"):
        tasks.parse(f"minari:{ID}").locate("collected")
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(UserError, match=r"need minari; install it with: pip install -e '\.\[minari\]'"):
        read("mujoco/hopper/medium-v0")


def test_a_damaged_dataset_is_explained(root):
    create()
    path = root / ID / "data" / "main_data.hdf5"
    whole = path.read_bytes()
    path.write_bytes(whole[:-500])
    with pytest.raises(UserError, match=r"damaged or not an HDF5 file .* got anew with: minari download"):
        read()
    (root / ID / "data" / "metadata.json").write_text("{}")
    with pytest.raises(UserError, match="damaged, or not a Minari dataset"):
        read()


def test_claims_are_looked_at_before_minari_asks_for_memory(root):
    create()
    with h5py.File(root / ID / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1/observations"]
        file.create_dataset("episode_1/observations", shape=(10**13, 3), dtype="f4", chunks=(100, 3))
    with pytest.raises(UserError, match=r"'episode_1/observations' is damaged .*it claims to be .* minari download"):
        read()


def test_what_a_set_leaves_in_doubt_is_noted(root):
    create(lengths=(4, 3), action_space=spaces.Box(-4.0, 4.0, (1,), np.float32))
    with h5py.File(root / ID / "data" / "main_data.hdf5", "a") as file:
        file["episode_1/truncations"][0] = True
        file["episode_0/infos/torque"] = np.zeros(5)
    env = tasks.parse(f"minari:{ID}")
    reading = env.examine(env.locate("auto"), Expected())
    assert reading.notes[0] == "episode 1: 'truncations' is set in row 0, and the episode goes on after it"
    assert reading.notes[1].startswith("actions fill ")
    assert (reading.rows, reading.unread) == (7, ("infos/torque",))


def test_a_format_whose_package_is_missing_names_it(root, monkeypatch):
    create()
    path = root / ID / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_format": "arrow"}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pyarrow"):
        read()


def test_other_spaces_are_refused():
    create(action_space=spaces.Discrete(3), lengths=())
    with pytest.raises(UserError, match=r"has actions Discrete\(3\); flowrl needs continuous"):
        read()
    create(dataset_id="test/image-v0", observation_space=spaces.Box(0, 1, (4, 4, 3), np.float32))
    with pytest.raises(UserError, match=r"image-v0 has observations Box.*pixels are not supported"):
        read("test/image-v0")
    for i, space in enumerate((spaces.Box(0, 9, (2,), np.int64), spaces.Box(0, np.array([1, 0]), dtype=np.float32))):
        create(dataset_id=f"test/bounds{i}-v0", action_space=space, lengths=())
        with pytest.raises(
            UserError, match=r"bounds\d-v0 has actions Box.*(a Box of fractions|number 1 has the bounds)"
        ):
            read(f"test/bounds{i}-v0")


def test_sizes_that_do_not_fit_name_both_numbers():
    create()
    with pytest.raises(UserError, match="episode 0: 'observations' have size 3, but the environment's have 11"):
        read(observation_dim=11)


def test_the_environment_is_recovered(root):
    create(env="Pendulum-v1", eval_env=gymnasium.make("Pendulum-v1", g=5.0).spec)
    found = minari_sets.environment(root / ID)
    assert (found.env_id, found.module) == ("Pendulum-v1", "")
    made = making.make(found.env_id, **found.kwargs)
    assert made.unwrapped.g == 5.0
    assert made.spec.max_episode_steps == 200
    create(dataset_id="test/none-v0")
    assert minari_sets.environment(root / "test/none-v0") is None


def test_the_environment_has_the_wrappers_that_the_set_names(root):
    wrapped = gymnasium.wrappers.RescaleAction(gymnasium.make("Pendulum-v1"), -1.0, 1.0)
    wrapped = gymnasium.wrappers.TimeAwareObservation(gymnasium.wrappers.TimeLimit(wrapped, 7))
    seen, unit = wrapped.observation_space, spaces.Box(-1, 1, (1,), np.float32)
    create(env=wrapped.spec, eval_env=wrapped.spec, observation_space=seen, action_space=unit)
    found = minari_sets.environment(root / ID)
    unknown = tasks.parse(f"minari:{ID}")
    name = unknown.evaluated(unknown.locate("auto"))
    assert (name.env_id, dict(name.kwargs)) == (found.env_id, found.kwargs)
    assert name.facts().expected == (4, 1, (-1.0,), (1.0,))
    made = name.make()
    made.reset(seed=0)
    assert [made.step([1.0])[3] for _ in range(7)] == [False] * 6 + [True]
    assert made.unwrapped.last_u == 2.0
    with pytest.raises(UserError, match=r"actions are of Box\(-1.*its environment's from \[-2.0\] to \[2.0\]"):
        read(observation_dim=4, action_low=(-2.0,), action_high=(2.0,))


def test_spaces_with_numbers_are_read_as_they_are_shown(root):
    """Where policies are evaluated the same function makes the same vector of a single observation."""
    shown = spaces.Dict({"b": spaces.Discrete(3), "a": spaces.Box(-1, 1, (2, 2)), "c": spaces.Box(-1, 1, ())})
    rng, kinds = np.random.default_rng(0), np.array([2, 0, 1])
    given = {"a": rng.uniform(-1, 1, (3, 2, 2)).astype(np.float32), "b": kinds, "c": rng.uniform(-1, 1, 3)}
    actions = rng.uniform(-1, 1, (2, 1, 2)).astype(np.float32)
    buffer = EpisodeBuffer(
        observations=given | {"c": given["c"].astype(np.float32)}, actions=actions, rewards=[0.0, 0.0],
        terminations=[False, True], truncations=[False, False],
    )  # fmt: skip
    box = spaces.Box(-1, 1, (1, 2), np.float32)
    minari.create_dataset_from_buffers(ID, [buffer], observation_space=shown, action_space=box)
    found = read(action_dim=2)
    one_hot = np.eye(3)[kinds]
    expected = np.concatenate([given["a"].reshape(3, 4), one_hot, given["c"][:, None]], axis=1)
    np.testing.assert_allclose(found["observations"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["actions"][:2], actions[:, 0], atol=1.1e-5)


def test_h5py_and_minari_are_imported_when_needed():
    code = "import sys, flowrl, flowrl.tasks; assert not {'h5py', 'minari'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_run_is_evaluated_in_the_datasets_environment(tmp_path):
    create(env="Pendulum-v1", eval_env=gymnasium.make("Pendulum-v1", g=5.0).spec)
    small = ("--agent.hidden_dims=4", "--agent.batch_size=4", "--steps=2", "--workers=1", "--eval.episodes=1")
    assert main("--agent=bc", f"--env=minari:{ID}", "--preset=quick", *small, f"--run_dir={tmp_path / 'run'}") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["environment"], summary["metric"]) == ("Pendulum-v1", "return")


def test_dictionary_observations_reach_the_policy_as_the_reader_flattens_them():
    """The vector that an environment with goals shows is `[observation, desired_goal]`."""

    class Reach(gymnasium.Env):
        observation_space, action_space = GOALS, spaces.Box(-1, 1, (1,))

        def reset(self, **_):
            self.shown = self.observation_space.sample()
            return self.shown, {}

        def step(self, action):
            return self.reset()[0], 0.0, False, False, {}

    gymnasium.register("Reach-v0", Reach, max_episode_steps=3)
    env = making.make("Reach-v0")
    assert len(env.observation_space.shape) == 1
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation, vector(GOALS, env.unwrapped.shown))


FAULTS = {
    "flowrl/tasks/minari.py": [
        ("_check_claims(path, dataset.id)", "", "test_claims_are_looked_at_before_minari_asks_for_memory"),
        ("note_ends_amid(whole, amid)", "", "test_what_a_set_leaves_in_doubt_is_noted"),
        ('{"spec": spec}', "dict(spec.kwargs)", "test_the_environment_has_the_wrappers_that_the_set_names"),
        ("if known.action_low and not", "if False and not", "test_the_environment_has_the_wrappers_that_the_set_names"),
        ("    spaces.require_box(space, str(path))\n", "", "test_other_spaces_are_refused"),
    ],
}
