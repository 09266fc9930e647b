import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl import tasks
from flowrl.errors import UserError
from flowrl.tasks import sources
from flowrl.tasks.fields import Expected

PENDULUM = tasks.parse("Pendulum-v1")


def flat(ends, seed=0):
    """Returns N rows in which a letter each says how the row ends: `.` not, `t` termination, `o` timeout."""
    rng = np.random.default_rng(seed)
    n = len(ends)
    marks = np.array(list(ends))
    fields = {
        "observations": rng.normal(size=(n, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "terminals": marks == "t",
        "timeouts": marks == "o",
    }
    successors = np.roll(fields["observations"], -1, axis=0)
    successors[marks != "."] += 100.0
    return fields | {"next_observations": successors}


def save(path, fields, **changed):
    fields = {name: array for name, array in (fields | changed).items() if array is not None}
    if path.suffix == ".npz":
        np.savez(path, **fields)
    else:
        with h5py.File(path, "w") as file:
            for name, array in fields.items():
                file[name] = array
    return path


def read(path, **expected):
    return PENDULUM.read(sources.Source(path, "file", "", ""), Expected(**expected))


@pytest.mark.parametrize("suffix", [".npz", ".hdf5", ".h5"])
def test_with_next_observations_every_transition_is_kept(tmp_path, suffix):
    fields = flat("..t.o..")
    arrays = read(save(tmp_path / f"data{suffix}", fields))
    rows = np.flatnonzero(~arrays["terminals"])
    assert rows.tolist() == [0, 1, 2, 4, 5, 7, 8]
    assert np.flatnonzero(arrays["terminals"]).tolist() == [3, 6, 9]
    np.testing.assert_array_equal(arrays["observations"][rows], fields["observations"])
    np.testing.assert_array_equal(arrays["observations"][rows + 1], fields["next_observations"])
    np.testing.assert_array_equal(arrays["masks"][rows], [1, 1, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(arrays["rewards"][rows], fields["rewards"])
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "observations": "float32",
        "actions": "float32",
        "rewards": "float32",
        "masks": "float32",
        "terminals": "bool",
    }


@pytest.mark.parametrize("name", ["timeouts", "truncations"])
def test_without_them_what_leads_nowhere_is_dropped(tmp_path, name):
    fields = flat("..t.o..")
    fields[name] = fields.pop("timeouts")
    arrays = read(save(tmp_path / "data.npz", fields, next_observations=None))
    # 0 1 2 and a copy of 2; 3, and 4 without a transition; 5, and 6, the file's last.
    np.testing.assert_array_equal(arrays["terminals"], [0, 0, 0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(
        arrays["observations"][[0, 1, 2, 3, 4, 5, 6, 7]], fields["observations"][[0, 1, 2, 2, 3, 4, 5, 6]]
    )
    np.testing.assert_array_equal(arrays["masks"][~arrays["terminals"]], [1, 1, 0, 1, 1])


def test_a_termination_in_the_last_row_is_kept_and_lone_rows_leave_nothing(tmp_path):
    arrays = read(save(tmp_path / "data.npz", flat("oo.too.t"), next_observations=None))
    np.testing.assert_array_equal(arrays["terminals"], [0, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(arrays["masks"][~arrays["terminals"]], [1, 0, 1, 0])


def test_an_unmarked_jump_ends_an_episode(tmp_path):
    fields = flat("......")
    fields["next_observations"][2] += 1.0
    arrays = read(save(tmp_path / "data.npz", fields))
    assert np.flatnonzero(arrays["terminals"]).tolist() == [3, 7]
    np.testing.assert_array_equal(arrays["observations"][3], fields["next_observations"][2])
    assert (arrays["masks"][~arrays["terminals"]] == 1).all()


def test_masks_alone_say_what_terminates(tmp_path):
    fields = flat("..t.t...")
    masks = np.array([1, 0, 0, 0.5, 1, 1, 1, 0])
    arrays = read(save(tmp_path / "data.npz", fields, masks=masks, next_observations=None))
    # The episode goes on after row 1; that of row 4 ends without terminating; the last row terminates.
    np.testing.assert_array_equal(arrays["terminals"], [0, 0, 0, 1, 0, 1, 0, 0, 0, 1])
    np.testing.assert_array_equal(arrays["masks"][~arrays["terminals"]], [1, 0, 0, 0.5, 1, 1, 0])


@settings(max_examples=60, deadline=None)
@given(ends=st.text(".to", min_size=1, max_size=30), held=st.booleans(), seed=st.integers(0, 5))
def test_no_transition_crosses_an_episode(tmp_path_factory, ends, held, seed):
    fields = flat(ends, seed)
    path = save(tmp_path_factory.mktemp("data") / "data.npz", fields, **({} if held else {"next_observations": None}))
    wanted = [row for row, end in enumerate(ends) if held or end == "t" or (end == "." and row < len(ends) - 1)]
    if not wanted:
        with pytest.raises(UserError, match="no row has a transition"):
            read(path)
        return
    arrays = read(path)
    rows = np.flatnonzero(~arrays["terminals"])
    np.testing.assert_array_equal(arrays["observations"][rows], fields["observations"][wanted])
    np.testing.assert_array_equal(arrays["masks"][rows], [ends[row] != "t" for row in wanted])
    compared = np.array([held or ends[row] == "." for row in wanted])
    expected = fields["next_observations"][wanted]
    np.testing.assert_array_equal(arrays["observations"][rows + 1][compared], expected[compared])
    assert not (arrays["terminals"][1:] & arrays["terminals"][:-1]).any()  # every episode has a transition
    assert arrays["terminals"][-1]


def test_actions_are_brought_to_the_unit_box(tmp_path):
    fields = flat("...")
    fields["actions"] = np.array([[-2, 0], [2, 4], [1, 1]], np.float64)
    bounds = {"action_low": (-2.0, 0.0), "action_high": (2.0, 4.0)}
    path = save(tmp_path / "data.npz", fields)
    actions = read(path, action_dim=2, **bounds)["actions"]
    limit = np.float32(1 - 1e-5)
    np.testing.assert_allclose(actions[:3], [[-limit, -limit], [limit, limit], [0.5, -0.5]], rtol=1e-6)
    with pytest.raises(UserError, match=r"'actions' reach 4 in row 1, outside \[-1, 1\]; rescale"):
        read(path)
    with pytest.raises(UserError, match="'actions' reach 3 times as far as the environment's action bounds in row 1"):
        read(path, action_low=(-2.0, -1.0), action_high=(2.0, 1.5))
    unbounded = (-np.inf, -np.inf), (np.inf, np.inf)
    np.testing.assert_allclose(
        read(save(path, flat("...")), action_low=unbounded[0], action_high=unbounded[1])["actions"][:3],
        flat("...")["actions"],
        atol=1.1e-5,
    )


def test_bounds_as_large_as_they_can_be_and_fixed_components_stay_finite(tmp_path):
    fields = flat("...")
    fields["actions"] = np.array([[-3e38, 0.5], [1.5e38, 0.5004], [0, 0.5]])
    path = save(tmp_path / "data.npz", fields)
    largest = float(np.finfo(np.float32).max)
    actions = read(path, action_low=(-largest, 0.5), action_high=(largest, 0.5))["actions"]
    np.testing.assert_allclose(actions[:3], [[-0.8816, 0], [0.4408, 0], [0, 0]], atol=1e-4)
    with pytest.raises(
        UserError, match=r"has 0\.5 as component 1 in row 0, but the environment's bounds fix it at 0\.4;"
    ):
        read(path, action_low=(-largest, 0.4), action_high=(largest, 0.4))


@pytest.mark.parametrize(
    ("low", "high"), [((-1, -np.inf), (1, 2)), ((-1, -2), (1, np.inf)), ((-1, np.nan), (1, 1)), ((-1, 2), (1, -2))]
)
def test_bounds_that_cannot_be_are_refused_by_component(tmp_path, low, high):
    path = save(tmp_path / "data.npz", flat("..."))
    with pytest.raises(UserError, match=r"'actions' cannot be brought to .*: component 1 has the bounds .* and "):
        read(path, action_low=low, action_high=high)


def test_rows_in_another_shape_are_flattened_where_the_environment_says_their_size(tmp_path):
    fields = flat("..t")
    fields["actions"] = fields["actions"][:, :1]
    plain = read(save(tmp_path / "data.npz", fields))
    fields = fields | {"actions": fields["actions"][:, 0], "observations": fields["observations"].reshape(3, 3, 1)}
    fields["next_observations"] = fields["next_observations"].reshape(3, 1, 3)
    arrays = read(save(tmp_path / "data.npz", fields), observation_dim=3, action_dim=1)
    for name, array in plain.items():
        np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rewards": None}, "the field 'rewards' is missing"),
        ({"terminals": None}, "the field 'terminals' is missing"),
        ({"observations": np.zeros((7, 3, 1))}, r"'observations' has shape \(7, 3, 1\), but 7 rows"),
        ({"actions": np.zeros((7, 0))}, "'actions' have size 0, but the environment's have at least 1"),
        ({"rewards": np.full(7, np.nan)}, "'rewards' has NaN or infinite values, first in row 0"),
        ({"rewards": np.zeros(6)}, r"'rewards' has shape \(6,\), but 7 numbers are needed, as many as 'terminals' has"),
        ({"rewards": np.array([None] * 7)}, "'rewards' is not a plain array"),
        ({"rewards": np.array(["a"] * 7)}, "'rewards' holds <U1, not numbers"),
        ({"terminals": np.full(7, 0.5)}, "'terminals' is 0.5 in row 0"),
        ({"timeouts": np.zeros(3)}, r"'timeouts' has shape \(3,\), but 7 flags"),
        ({"truncations": np.full(7, 3)}, "'truncations' is 3 in row 0"),
        ({"masks": np.array([1, 1, 1.5, 1, 1, 1, 1])}, r"'masks' is 1\.5 in row 2, but only numbers in \[0, 1\]"),
        (
            {"next_observations": np.zeros((7, 4))},
            r"'next_observations' has shape \(7, 4\), but \(7, 3\) is needed, as 'observations' have",
        ),
        ({"terminals": np.zeros(0)}, "there are no rows"),
    ],
)
def test_a_malformed_file_is_explained(tmp_path, changed, message):
    path = save(tmp_path / "data.npz", flat("..t.o.."), **changed)
    with pytest.raises(UserError, match=message) as raised:
        read(path)
    assert str(path) in str(raised.value)
    assert ";" in str(raised.value)


def test_sizes_that_do_not_fit_name_both_numbers(tmp_path):
    path = save(tmp_path / "data.npz", flat("..t"))
    with pytest.raises(UserError, match="'observations' have size 3, but the environment's have 4"):
        read(path, observation_dim=4)
    with pytest.raises(UserError, match="'actions' have size 2, but the environment's have 1"):
        read(path, action_dim=1)


# ---------------------------------------------------------------------------------------------------- episodes


def write_episodes(path, lengths, names=None, **changed):
    """Writes episodes as Minari does, the even ones terminated, the others truncated."""
    rng, written = np.random.default_rng(0), []
    with h5py.File(path, "w") as file:
        for i, steps in enumerate(lengths):
            ended = np.arange(steps) == steps - 1
            fields = {
                "observations": rng.normal(size=(steps + 1, 3)),
                "actions": rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
                "rewards": rng.normal(size=steps),
                "terminations": ended if i % 2 == 0 else np.zeros(steps, bool),
                "truncations": ended if i % 2 else np.zeros(steps, bool),
            }
            written.append(fields)
            for name, array in (fields | (changed if i == 1 else {})).items():
                if array is not None:
                    file[f"{names[i] if names else f'episode_{i}'}/{name}"] = array
            file[f"{names[i] if names else f'episode_{i}'}/infos/note"] = 1
    return path, written


def test_episodes_are_laid_end_to_end_in_the_order_of_their_numbers(tmp_path):
    order = [f"episode_{i}" for i in range(12)]
    path, written = write_episodes(tmp_path / "data.hdf5", [3, 2, 0, 1, *[1] * 8], order)
    arrays = read(path, observation_dim=3, action_dim=2)
    kept = [one for one in written if len(one["rewards"])]
    np.testing.assert_array_equal(
        arrays["observations"], np.concatenate([one["observations"] for one in kept]).astype(np.float32)
    )
    assert np.flatnonzero(arrays["terminals"]).tolist() == [3, 6, *range(8, 26, 2)]
    inside = ~arrays["terminals"]
    np.testing.assert_array_equal(
        arrays["rewards"][inside], np.concatenate([one["rewards"] for one in kept]).astype(np.float32)
    )
    np.testing.assert_array_equal(arrays["masks"][inside][:7], [1, 1, 0, 1, 1, 1, 0])
    assert (arrays["actions"][~inside] == 0).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"observations": np.zeros((4, 3))},
            r"'episode_1/observations' has shape \(4, 3\), but 6 rows .* one more than",
        ),
        ({"actions": np.zeros((6, 2))}, r"'episode_1/actions' has shape \(6, 2\), but 5 rows"),
        ({"actions": np.zeros((5, 4))}, r"'actions' have sizes \[2, 4\] in different episodes"),
        ({"actions": np.full((5, 2), 9.0)}, r"'episode_1/actions' reach 9 in row 0"),
        ({"rewards": None}, "the field 'episode_1/rewards' is missing"),
        ({"terminations": None}, "the field 'episode_1/terminations' is missing"),
        (
            {"observations": np.full((6, 3), np.nan)},
            "'episode_1/observations' has NaN or infinite values, first in row 0",
        ),
    ],
)
def test_a_malformed_episode_is_named(tmp_path, changed, message):
    path, _ = write_episodes(tmp_path / "data.hdf5", [3, 5, 2], **changed)
    with pytest.raises(UserError, match=message) as raised:
        read(path)
    assert str(path) in str(raised.value)


def test_episodes_without_a_transition_are_refused(tmp_path):
    path, _ = write_episodes(tmp_path / "data.hdf5", [0, 0])
    with pytest.raises(UserError, match="no episode has a transition"):
        read(path)


# ---------------------------------------------------------------------------------------------------- locating


@pytest.mark.parametrize("data", ["auto", "official"])
def test_an_environment_needs_a_file(data):
    with pytest.raises(UserError, match="Pendulum-v1 has no dataset of its own; give a file with --data=PATH"):
        PENDULUM.locate(data)
    with pytest.raises(UserError, match="cannot collect data for Pendulum-v1; use --data=PATH"):
        PENDULUM.locate("collected")


def test_a_file_or_its_folder_can_be_given(tmp_path):
    path = save(tmp_path / "data.npz", flat("..t"))
    for data in (str(path), str(tmp_path)):
        source = PENDULUM.locate(data)
        assert source[:3] == (path, "file", f"file {path}")
    assert len(source.sha256) == 64
    with pytest.raises(UserError, match="there is no file"):
        PENDULUM.locate(str(tmp_path / "none"))


def test_own_transitions_serve_under_a_d4rl_name(tmp_path):
    path = save(tmp_path / "data.npz", flat("..t"))
    env = tasks.parse("hopper-medium-v2")
    with pytest.raises(UserError, match="'observations' have size 3, but the environment's have 11"):
        env.read(env.locate(str(path)), Expected(observation_dim=11, action_dim=3))


FAULTS = {
    "flowrl/tasks/transitions.py": [
        (
            "np.where(firsts & ~kept, 0, 1 + (kept & ends))",
            "1 + (kept & ends)",
            "test_a_termination_in_the_last_row_is_kept_and_lone_rows_leave_nothing",
        ),
        (
            'kept = ~ends | (arrays["masks"] == 0)',
            "kept = np.ones(rows, bool)",
            "test_without_them_what_leads_nowhere_is_dropped",
        ),
    ],
    "flowrl/tasks/fields.py": [
        ("(block - centre) / width", "block / width", "test_actions_are_brought_to_the_unit_box"),
        (
            "block[:] = np.where(fixed, 0.0, scaled)",
            "block[:] = scaled",
            "test_bounds_as_large_as_they_can_be_and_fixed_components_stay_finite",
        ),
        (
            "high / 2 - low / 2, high / 2 + low / 2",
            "(high - low).astype(np.float32) / 2, low * 0",
            "test_bounds_as_large_as_they_can_be_and_fixed_components_stay_finite",
        ),
        ("bad = ~finite | (high < low)", "bad = high < low", "test_bounds_that_cannot_be_are_refused_by_component"),
        (
            "moved = np.abs(scaled * fixed) > ACTION_TOLERANCE",
            "moved = fixed & False",
            "test_bounds_as_large_as_they_can_be_and_fixed_components_stay_finite",
        ),
        (
            "array = array.reshape(rows, width)",
            "pass",
            "test_rows_in_another_shape_are_flattened_where_the_environment_says_their_size",
        ),
    ],
}
