import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ogbench_files import Host

from flowrl import tasks
from flowrl.data.dataset import from_arrays
from flowrl.errors import UserError
from flowrl.machine import files
from flowrl.tasks import d4rl
from flowrl.tasks.fields import Expected

HOPPER = "hopper-medium-v2"


def episodes(*kinds, dims=(11, 3), seed=0):
    """Returns a file's fields: per kind an episode of so many rows that ends by `t`ermination, time`o`ut or neither."""
    rng = np.random.default_rng(seed)
    lengths = [int(kind[:-1]) for kind in kinds]
    rows, lasts = sum(lengths), np.cumsum(lengths) - 1
    observations = rng.normal(size=(rows, dims[0]))
    successors = np.roll(observations, -1, axis=0)
    successors[lasts] = rng.normal(size=(len(kinds), dims[0]))
    fields = {
        "observations": observations.astype(np.float32),
        "next_observations": successors.astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, dims[1])).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.zeros(rows, bool),
    }
    for kind, last in zip(kinds, lasts, strict=True):
        fields["terminals"][last] = kind[-1] in "tb"
        fields["timeouts"][last] = kind[-1] in "ob"
    return fields


def write(path, fields, **changed):
    """Writes an HDF5 file as D4RL's are: compressed fields beside groups of notes."""
    with h5py.File(path, "w") as file:
        for name, array in (fields | changed).items():
            if array is not None:
                file.create_dataset(name, data=array, compression="gzip")
        file.create_group("infos").create_dataset("qpos", data=np.zeros(3))
        file["metadata/algorithm"] = "SAC"
    return path


def reference(fields, limit, width=None):
    """Returns D4RL's Q-learning transitions, derived from its documented rule: (row, next observation, terminal).

    The rows lead to their own next observations where the file has them. Without them no episode exceeds the limit.
    """
    found, steps = [], 0
    rows = len(fields["rewards"])
    for row in range(rows - 1):
        terminal = bool(fields["terminals"][row])
        timeout = fields["timeouts"][row] if "timeouts" in fields else steps == limit - 1
        timeout |= "next_observations" not in fields and steps == limit - 1 and not terminal
        following = fields.get("next_observations", fields["observations"][1:])[row]
        if not timeout:
            found.append((row, following[:width], terminal))
        steps = 0 if timeout or terminal else steps + 1
    return found


def check_against_reference(arrays, fields, limit):
    """Compares transitions, apart from the next observations of terminal ones, on which nothing depends."""
    width = arrays["observations"].shape[1]
    expected = reference(fields, limit, width)
    rows = np.flatnonzero(~arrays["terminals"])
    assert len(rows) == len(expected)
    source = [row for row, _, _ in expected]
    np.testing.assert_array_equal(arrays["observations"][rows], fields["observations"][source][:, :width])
    np.testing.assert_array_equal(arrays["rewards"][rows], fields["rewards"][source])
    np.testing.assert_allclose(arrays["actions"][rows], fields["actions"][source], atol=1.1e-5)
    terminal = np.array([done for _, _, done in expected])
    np.testing.assert_array_equal(arrays["masks"][rows], 1.0 - terminal)
    following = np.array([after for _, after, _ in expected])
    np.testing.assert_array_equal(arrays["observations"][rows + 1][~terminal], following[~terminal])


def test_a_known_file(tmp_path):
    fields = episodes("3t", "2o", "3n", dims=(11, 3))
    arrays = d4rl.read(write(tmp_path / "data.hdf5", fields), HOPPER)
    assert {name: array.dtype for name, array in arrays.items()} == {
        "observations": np.float32,
        "actions": np.float32,
        "rewards": np.float32,
        "masks": np.float32,
        "terminals": bool,
    }
    # Rows 0 1 2 and what 2 led to; 3, and 4 whose transition is dropped; 5 6, and 7, the file's last.
    np.testing.assert_array_equal(arrays["terminals"], [0, 0, 0, 1, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(arrays["masks"][~arrays["terminals"]], [1, 1, 0, 1, 1, 1])
    np.testing.assert_array_equal(arrays["observations"][[0, 1, 2, 4, 5, 6, 7, 8]], fields["observations"])
    np.testing.assert_array_equal(arrays["observations"][3], fields["next_observations"][2])
    np.testing.assert_array_equal(arrays["rewards"][[0, 1, 2, 4, 6, 7]], fields["rewards"][[0, 1, 2, 3, 5, 6]])


def test_without_next_observations_a_termination_leads_to_a_copy(tmp_path):
    fields = episodes("3t", "2n")
    arrays = d4rl.read(write(tmp_path / "data.hdf5", fields, next_observations=None), HOPPER)
    np.testing.assert_array_equal(arrays["terminals"], [0, 0, 0, 1, 0, 1])
    np.testing.assert_array_equal(arrays["observations"][3], fields["observations"][2])


kinds = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from("tobn")).map(lambda kind: f"{kind[0]}{kind[1]}"), min_size=1
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(kinds=kinds, marked=st.booleans(), held=st.booleans())
def test_transitions_are_those_of_d4rl_and_cross_no_episode(tmp_path_factory, kinds, marked, held):
    fields = episodes(*kinds)
    if not marked:
        del fields["timeouts"]
    if not held:
        del fields["next_observations"]
    path = write(tmp_path_factory.mktemp("data") / "data.hdf5", fields)
    known = d4rl.SETS[HOPPER]._replace(limit=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(d4rl.SETS, HOPPER, known)
        if not reference(fields, 4):
            with pytest.raises(UserError, match="no row has a transition"):
                d4rl.read(path, HOPPER)
            return
        arrays = d4rl.read(path, HOPPER)
    check_against_reference(arrays, fields, 4)
    assert arrays["terminals"][-1]
    assert not arrays["terminals"][0]  # every episode has a transition
    assert not (arrays["terminals"][1:] & arrays["terminals"][:-1]).any()
    episode = np.cumsum(np.concatenate([[0], arrays["terminals"][:-1]]))
    rows = np.asarray(from_arrays(arrays).transitions)
    np.testing.assert_array_equal(episode[rows], episode[rows + 1])


def test_unmarked_timeouts_fall_on_the_limit_of_a_thousand_steps(tmp_path):
    fields = episodes("1000n", "300t", "1000n", "200n")
    arrays = d4rl.read(write(tmp_path / "data.hdf5", fields, timeouts=None), "hopper-medium-replay-v2")
    assert np.flatnonzero(arrays["terminals"]).tolist() == [999, 1300, 2300, 2500]
    assert np.flatnonzero(arrays["masks"][~arrays["terminals"]] == 0).tolist() == [999 + 299]


def test_columns_count_as_vectors(tmp_path):
    fields = episodes("4t", "3n")
    columns = {name: fields[name][:, None] for name in ("rewards", "terminals", "timeouts")}
    for name, array in d4rl.read(write(tmp_path / "a.hdf5", fields, **columns), HOPPER).items():
        np.testing.assert_array_equal(array, d4rl.read(write(tmp_path / "b.hdf5", fields), HOPPER)[name])


def test_ant_leaves_out_contact_forces(tmp_path):
    fields = episodes("4t", "3n", dims=(111, 8))
    arrays = d4rl.read(write(tmp_path / "data.hdf5", fields), "ant-medium-v2")
    assert arrays["observations"].shape == (8, 27)
    check_against_reference(arrays, fields, 1000)
    np.testing.assert_array_equal(arrays["observations"][4], fields["next_observations"][3, :27])


@pytest.mark.parametrize(
    ("name", "reach", "taken"),
    [
        (HOPPER, 1.0009, True),
        (HOPPER, 1.1, False),
        ("pen-human-v1", 1.9, True),
        ("pen-human-v1", 2.1, False),
    ],
)
def test_actions_are_clipped_within_a_tolerance(tmp_path, name, reach, taken):
    known = d4rl.SETS[name]
    fields = episodes("5n", dims=(known.observation_dim, known.action_dim))
    fields["actions"][2, 1] = -reach
    path = write(tmp_path / "data.hdf5", fields)
    if taken:
        assert d4rl.read(path, name)["actions"].min() == np.float32(-1 + 1e-5)
        return
    with pytest.raises(UserError, match=rf"'actions' reach {reach} in row 2, outside \[-1, 1\]; rescale"):
        d4rl.read(path, name)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rewards": None}, "the field 'rewards' is missing"),
        ({"terminals": None}, "the field 'terminals' is missing"),
        ({"observations": np.zeros((7, 12))}, "'observations' have size 12, but the environment's have 11"),
        ({"actions": np.zeros((6, 3))}, r"'actions' has shape \(6, 3\), but 7 rows"),
        ({"rewards": np.zeros((7, 2))}, r"'rewards' has shape \(7, 2\), but 7 numbers"),
        ({"rewards": np.full(7, np.inf)}, "'rewards' has NaN or infinite values, first in row 0"),
        ({"terminals": np.full(7, 2)}, "'terminals' is 2 in row 0, but only 0 and 1"),
        ({"timeouts": np.zeros(6)}, r"'timeouts' has shape \(6,\), but 7 flags"),
        ({"next_observations": np.zeros((7, 2))}, r"'next_observations' has shape \(7, 2\), but \(7, 11\)"),
        (
            {"next_observations": np.full((7, 11), np.nan)},
            "'next_observations' has NaN or infinite values, first in row 0",
        ),
        ({"timeouts": np.ones(7)}, "no row has a transition"),
        ({"observations": np.full(7, b"x")}, "'observations' holds .*, not numbers"),
        ({"observations": np.zeros((0, 11)), "terminals": np.zeros(0)}, "there are no rows"),
    ],
)
def test_a_malformed_file_is_explained(tmp_path, changed, message):
    path = write(tmp_path / "data.hdf5", episodes("4t", "3n"), **changed)
    with pytest.raises(UserError, match=message) as raised:
        d4rl.read(path, HOPPER)
    assert str(path) in str(raised.value)
    assert ";" in str(raised.value)


def test_a_group_for_a_field_and_a_damaged_file_are_explained(tmp_path):
    path = write(tmp_path / "data.hdf5", episodes("4t", "3n"), rewards=None)
    with h5py.File(path, "a") as file:
        file.create_group("rewards")
    with pytest.raises(UserError, match="'rewards' is not a plain array"):
        d4rl.read(path, HOPPER)
    with h5py.File(write(path, episodes("4t", "3n"), next_observations=None), "a") as file:
        file.create_group("next_observations")
    with pytest.raises(UserError, match="'next_observations' is not a plain array"):
        d4rl.read(path, HOPPER)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="damaged or not an HDF5 file"):
        d4rl.read(path, HOPPER)
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match="damaged or not an HDF5 file"):
        d4rl.read(path, HOPPER)


def test_a_damaged_chunk_of_next_observations_is_explained(tmp_path):
    path = write(tmp_path / "data.hdf5", fields := episodes("4t", "3n"), next_observations=None)
    with h5py.File(path, "a") as file:
        stored = file.create_dataset("next_observations", data=fields["next_observations"], compression="gzip")
        chunk = stored.id.get_chunk_info(0)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(bytes(chunk.size))
    with pytest.raises(UserError, match="'next_observations' is damaged or cannot be read"):
        d4rl.read(path, HOPPER)


# ------------------------------------------------------------------------------------------------------- table


def test_scores_are_d4rls():
    assert d4rl.normalized_score("halfcheetah-medium-v2", 12135.0) == pytest.approx(100.0)
    assert d4rl.normalized_score("walker2d-random-v2", 1.629008) == pytest.approx(0.0)
    # (3000 + 20.272305) / (3234.3 + 20.272305)
    assert d4rl.normalized_score("hopper-expert-v2", 3000.0) == pytest.approx(92.8009, abs=1e-3)
    np.testing.assert_allclose(d4rl.normalized_score("antmaze-large-play-v2", np.array([0, 1, 0.5])), [0, 100, 50])
    np.testing.assert_allclose(d4rl.normalized_score("kitchen-mixed-v0", np.array([2.0])), [50])
    assert d4rl.normalized_score("pen-human-v1", 3076.8331017826877) == pytest.approx(100.0)
    with pytest.raises(UserError, match="no dataset 'hopper'"):
        d4rl.normalized_score("hopper", 1.0)


def test_the_table_holds_the_published_sets():
    assert len(d4rl.SETS) == 4 * 6 + 6 + 3 + 4 * 3
    host = "https://rail.eecs.berkeley.edu/datasets/offline_rl"
    hardest = "/ant_maze_v2/Ant_maze_hardest-maze_noisy"
    assert {
        name: d4rl.SETS[name].url.removeprefix(host)
        for name in (
            "walker2d-full-replay-v2",
            "antmaze-umaze-v2",
            "antmaze-large-play-v2",
            "kitchen-complete-v0",
            "door-cloned-v1",
        )
    } == {
        "walker2d-full-replay-v2": "/gym_mujoco_v2/walker2d_full_replay-v2.hdf5",
        "antmaze-umaze-v2": "/ant_maze_v2/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5",
        "antmaze-large-play-v2": f"{hardest}_multistart_True_multigoal_False_sparse_fixed.hdf5",
        "kitchen-complete-v0": "/kitchen/mini_kitchen_microwave_kettle_light_slider-v0.hdf5",
        "door-cloned-v1": "/hand_dapg_v1/door-cloned-v1.hdf5",
    }
    assert len({known.url for known in d4rl.SETS.values()}) == len(d4rl.SETS)
    for known in d4rl.SETS.values():
        assert known.url.startswith(host)
        assert known.random_return < known.expert_return
        assert known.note
    assert [name for name, known in d4rl.SETS.items() if known.env_id] == [
        name for name in d4rl.SETS if name.startswith(("halfcheetah", "hopper", "walker2d", "ant-"))
    ]


@pytest.mark.filterwarnings("ignore")  # version 4 of the environments is not the newest
@pytest.mark.parametrize("body", ["halfcheetah", "hopper", "walker2d", "ant"])
def test_sizes_are_those_of_the_environment(body):
    env = tasks.parse(f"{body}-medium-v2")
    found, known = env.facts(), d4rl.SETS[env.name]
    assert found.expected[:2] == (known.observation_dim, known.action_dim)
    assert env.env_id.lower().removesuffix("-v4") in env.note.lower()


# ---------------------------------------------------------------------------------------------------- locating


@pytest.fixture
def host(monkeypatch, tmp_path):
    monkeypatch.setenv("FLOWRL_DATA", str(tmp_path / "cache"))
    served = Host()
    served.body = write(tmp_path / "served.hdf5", episodes("30t", "30n")).read_bytes()
    monkeypatch.setitem(d4rl.SETS, HOPPER, d4rl.SETS[HOPPER]._replace(url=f"{served.url}/own/hopper_medium-v2.hdf5"))
    monkeypatch.setattr(d4rl, "MIRROR", f"{served.url}/mirror")
    yield served
    served.close()


@pytest.mark.parametrize("data", ["auto", "official"])
def test_a_download_is_kept_and_read(host, tmp_path, data):
    env = tasks.parse(HOPPER)
    source = env.locate(data)
    assert source.path == tmp_path / "cache" / "d4rl" / f"{HOPPER}.hdf5"
    assert (source.origin, source.sha256) == ("official", files.sha256(source.path))
    assert env.locate(data) == source
    assert [path for path, *_ in host.asked] == ["/own/hopper_medium-v2.hdf5"]
    arrays = env.read(source, Expected(observation_dim=11, action_dim=3, action_low=[-1] * 3, action_high=[1] * 3))
    assert arrays["observations"].shape == (61, 11)


def test_an_interrupted_download_continues(host):
    env, host.cut = tasks.parse(HOPPER), 900
    with pytest.raises(UserError, match="another try continues"):
        env.locate("official")
    host.cut = None
    assert env.locate("official").path.read_bytes() == host.body
    assert host.asked[-1][1].startswith("bytes=")


@pytest.mark.parametrize(("body", "reason"), [(b"no", "not a whole HDF5 file"), (None, "the file lacks rewards")])
def test_what_is_no_dataset_never_enters_the_cache(host, tmp_path, body, reason):
    lacking = write(tmp_path / "lacking.hdf5", episodes("30t", "30n"), rewards=None).read_bytes()
    host.body = body or lacking
    with pytest.raises(UserError, match=reason) as raised:
        tasks.parse(HOPPER).locate("auto")
    assert "--data=PATH" in str(raised.value)
    assert [path for path, *_ in host.asked] == ["/own/hopper_medium-v2.hdf5", "/mirror/hopper_medium-v2.hdf5"]
    assert not (tmp_path / "cache" / "d4rl" / f"{HOPPER}.hdf5").exists()


@pytest.mark.usefixtures("host")
def test_d4rl_cannot_be_collected():
    with pytest.raises(
        UserError,
        match=r"train on flowrl.s own set with --env=collected:hopper-medium, use --data=auto, or --data=PATH",
    ):
        tasks.parse(HOPPER).locate("collected")


@pytest.mark.parametrize("name", [f"{HOPPER}.hdf5", "hopper_medium-v2.hdf5"])
def test_a_file_is_found_in_a_folder_under_both_names(tmp_path, name):
    path = write(tmp_path / name, episodes("5n"))
    env = tasks.parse(HOPPER)
    for data in (str(tmp_path), str(path)):
        assert env.locate(data) == (path, "file", f"file {path}", files.sha256(path))
    assert len(env.read(env.locate(str(tmp_path)))["rewards"]) == 5


FAULTS = {
    "flowrl/tasks/d4rl.py": [
        ("timeouts | terminated", "timeouts", "test_without_next_observations_a_termination_leads_to_a_copy"),
        ("marked[-1] = True", "pass", "test_a_known_file"),
    ],
}
