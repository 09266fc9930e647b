"""Ends of episodes: no two episodes are joined, whatever their ends are called, and unmarked ones are found."""

import h5py
import numpy as np
import pytest
from ogbench_files import rows

from flowrl import tasks
from flowrl.errors import UserError
from flowrl.tasks import d4rl, ends, sources, transitions
from flowrl.tasks.fields import Expected
from flowrl.tasks.storage import Loaded

# Two episodes of three rows.
OBSERVATIONS = np.array([0, 1, 2, 100, 101, 102], np.float32)[:, None]
LAST = np.array([0, 0, 1, 0, 0, 1], bool)
NONE = np.zeros(6, bool)


def save(tmp_path, **changed):
    fields = {"observations": OBSERVATIONS, "actions": np.arange(6)[:, None] / 10, "rewards": np.arange(6.0)}
    fields |= {"terminals": NONE} | changed
    np.savez(tmp_path / "own.npz", **{name: array for name, array in fields.items() if array is not None})
    return tmp_path / "own.npz"


def pairs(arrays):
    found = np.flatnonzero(~arrays["terminals"])
    return [(float(arrays["observations"][row, 0]), float(arrays["observations"][row + 1, 0])) for row in found]


def read(path):
    return transitions.examine(path, Expected(1, 1))


@pytest.mark.parametrize(
    "name",
    ["timeouts", "timeout", "truncations", "truncated", "truncateds", "TIMEOUTS", "Time_outs", "TimeLimit.truncated"],
)
def test_names_that_certainly_mean_a_cut_are_read(tmp_path, name):
    reading = read(save(tmp_path, **{name: LAST}))
    assert pairs(reading.arrays) == [(0, 1), (1, 2), (100, 101), (101, 102)]
    assert reading.notes == reading.unread == ()


@pytest.mark.parametrize("name", ["terminals", "terminations", "terminated", "terminateds", "Terminals"])
def test_names_that_certainly_mean_a_termination_are_read(tmp_path, name):
    arrays = read(save(tmp_path, **{"terminals": None, name: LAST})).arrays
    assert pairs(arrays) == [(0, 1), (1, 2), (2, 2), (100, 101), (101, 102), (102, 102)]
    np.testing.assert_array_equal(arrays["masks"][~arrays["terminals"]], [1, 1, 0, 1, 1, 0])


def test_two_names_of_one_meaning_may_not_differ(tmp_path):
    assert len(pairs(read(save(tmp_path, terminals=LAST, terminated=LAST)).arrays)) == 6
    with pytest.raises(UserError, match="'terminals' and 'terminated' mean the same and differ in row 2; remove"):
        read(save(tmp_path, terminated=LAST))


FIRST = np.array([1, 0, 0, 1, 0, 0])
TOLD = {
    **dict.fromkeys(("dones", "done", "dones_float", "is_last", "is_terminal", "ends", "episode_end", "final"), LAST),
    **dict.fromkeys(("is_first", "episode_starts", "first", "resets", "init_flags"), FIRST),
    "not_dones": ~LAST,
    "step_type": np.array([0, 1, 2, 0, 1, 2]),
    "episode_id": np.array([7, 7, 7, 3, 3, 3]),
    "trajectory_ids": np.array([0, 0, 0, 1, 1, 1]),
    "episode": np.array([0.0, 0, 0, 1, 1, 1]),
    "timesteps": np.array([0, 1, 2, 0, 1, 2]),
    "episode_ends": np.array([3, 6]),
    "traj_end_idx": np.array([2, 5]),
    "episode_start_indices": np.array([0, 3]),
    "episode_lengths": np.array([3, 3]),
}


@pytest.mark.parametrize("name", TOLD)
@pytest.mark.parametrize("column", [False, True])
def test_other_fields_that_tell_of_ends_are_compared(tmp_path, name, column):
    told = TOLD[name][:, None] if column else TOLD[name]
    with pytest.raises(UserError, match=f"own.npz: '{name}' says that an episode ends in row 2.*; mark where"):
        read(save(tmp_path, **{name: told}))
    reading = read(save(tmp_path, timeouts=LAST, **{name: told}))
    assert pairs(reading.arrays) == [(0, 1), (1, 2), (100, 101), (101, 102)]
    assert reading.unread == reading.notes == ()


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("dones", np.full(6, 0.5)),
        ("episode_ends", np.array([3, 5, 4])),
        ("is_first", np.array([0.3, 4])),
        ("episode_starts", np.array([1, 3])),
    ],
)
def test_what_tells_of_ends_and_is_not_understood_is_refused(tmp_path, name, array):
    with pytest.raises(UserError, match=f"'{name}' speaks of where episodes end and is not understood; .*, or remove"):
        read(save(tmp_path, timeouts=LAST, **{name: array}))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("last_actions", np.ones((6, 1))),
        ("end_effector", np.ones(6)),
        ("done", np.array(["a"] * 6)),
        ("dones", np.ones((6, 3))),
        ("first_reward", np.ones(6)),
        ("episode_return", np.arange(6)),
        ("episode_length", np.full(6, 3)),
        ("index", np.arange(6)[::-1]),
        ("infos", np.full(6, np.nan)),
    ],
)
def test_fields_that_do_not_tell_of_ends_are_named_as_unread(tmp_path, name, array):
    reading = read(save(tmp_path, timeouts=LAST, **{name: array}))
    assert reading.unread == (name,)
    assert reading.notes == ()


def test_without_terminals_what_is_near_is_named(tmp_path):
    with pytest.raises(
        UserError, match="'terminals' is missing; 'dones' does not tell what truly ended from what was cut"
    ):
        read(save(tmp_path, terminals=None, dones=LAST))
    with pytest.raises(UserError, match="'terminals' is missing; did you mean its 'termnals'"):
        read(save(tmp_path, terminals=None, termnals=LAST))


@pytest.mark.parametrize("changed", [{"timeouts": 1}, {"dones": 1}, {"episode_starts": 0}])
def test_ogbenchs_format_marks_every_end_in_terminals(tmp_path, changed):
    ((name, shift),) = changed.items()
    other = np.roll(rows()["terminals"], 1 - shift)
    np.savez(tmp_path / "good.npz", **rows(**{name: other}))
    env = tasks.parse("pointmaze-medium-stitch")
    env.read(sources.Source(tmp_path / "good.npz", "file", "", ""))
    only = np.arange(40) == 39
    np.savez(tmp_path / "bad.npz", **rows(**{name: other, "terminals": only}))
    with pytest.raises(UserError, match=f"'{name}' says that an episode ends in row 9.*; mark the last row of every"):
        env.read(sources.Source(tmp_path / "bad.npz", "file", "", ""))


def test_ogbenchs_format_is_compared_with_next_observations(tmp_path):
    data = rows()
    following = np.roll(data["observations"], -1, axis=0)
    following[data["terminals"]] += 1
    env = tasks.parse("pointmaze-medium-stitch")
    np.savez(tmp_path / "good.npz", **rows(next_observations=following))
    env.read(sources.Source(tmp_path / "good.npz", "file", "", ""))
    following[4] += 1
    np.savez(tmp_path / "bad.npz", **rows(next_observations=following))
    with pytest.raises(UserError, match="an episode ends in row 4 by 'next_observations' alone; mark the last row"):
        env.read(sources.Source(tmp_path / "bad.npz", "file", "", ""))


# ------------------------------------------------------------------------------------------------- unmarked ends


def hopper(tmp_path, **changed):
    """Writes a file of D4RL with two episodes of three rows whose only number moves, and nothing marked."""
    fields = {
        "terminals": NONE,
        "timeouts": NONE,
        "rewards": np.arange(6.0),
        "actions": np.tile([[0.1, 0.2, 0.3]], (6, 1)),
    }
    fields |= {"observations": np.zeros((6, 11), np.float32), "next_observations": np.zeros((6, 11), np.float32)}
    fields["observations"][:, :1], fields["next_observations"][:, :1] = OBSERVATIONS, OBSERVATIONS + 1
    with h5py.File(tmp_path / "hopper.hdf5", "w") as file:
        for name, array in (fields | changed).items():
            if array is not None:
                file[name] = array
    return tmp_path / "hopper.hdf5"


def test_next_observations_show_ends_that_nothing_marks(tmp_path):
    reading = d4rl.examine(hopper(tmp_path), "hopper-medium-replay-v2")
    assert pairs(reading.arrays) == [(0, 1), (1, 2), (2, 3), (100, 101), (101, 102)]  # and not the file's last
    assert reading.notes[0].startswith("1 more ends of episodes, first in row 2, found where 'next_observations'")
    own = read(save(tmp_path, next_observations=OBSERVATIONS + 1))
    assert pairs(own.arrays) == [(0, 1), (1, 2), (2, 3), (100, 101), (101, 102), (102, 103)]
    assert own.notes[0].startswith("1 more ends of episodes, first in row 2")


@pytest.mark.parametrize("marked", [False, True])
def test_a_mark_in_a_d4rl_file_counts_as_before(tmp_path, marked):
    timeouts = LAST if marked else None
    arrays = d4rl.examine(hopper(tmp_path, timeouts=timeouts, terminals=NONE), "hopper-medium-replay-v2").arrays
    found = [(0, 1), (1, 2), (100, 101), (101, 102)]
    assert pairs(arrays) == (found if marked else sorted([*found, (2, 3)]))


@pytest.mark.parametrize(
    ("one", "other"), [("f8", "f4"), ("f4", "f8"), ("f2", "f4"), ("f4", "f2"), ("f2", "f8"), ("i8", "f4")]
)
@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_types_of_different_exactness_are_compared_by_the_less_exact(tmp_path, one, other, suffix):
    exact = np.random.default_rng(0).normal(size=(501, 2))
    exact = np.round(exact * 100) if one == "i8" else exact
    following = exact[1:].astype(other)
    following[249] += 7.0
    fields = {"observations": exact[:-1].astype(one), "next_observations": following, "actions": np.zeros((500, 1))}
    fields |= {"rewards": np.arange(500), "terminals": np.zeros(500)}
    if suffix == ".npz":
        np.savez(tmp_path / "own.npz", **fields)
    else:
        with h5py.File(tmp_path / "own.hdf5", "w") as file:
            for name, array in fields.items():
                file[name] = array
    reading = transitions.examine(tmp_path / f"own{suffix}", Expected(2, 1))
    assert np.flatnonzero(reading.arrays["terminals"]).tolist() == [250, 501]
    assert len(reading.notes) == 1


def test_next_observations_that_fit_no_row_are_said(tmp_path):
    rng, n = np.random.default_rng(0), 5_000
    fields = {
        "observations": rng.normal(size=(n, 3)),
        "next_observations": rng.normal(size=(n, 3)),
        "terminals": np.zeros(n),
    }
    np.savez(tmp_path / "own.npz", **fields, actions=rng.uniform(-1, 1, (n, 1)), rewards=rng.normal(size=n))
    reading = transitions.examine(tmp_path / "own.npz", Expected(3, 1))
    assert "are not the observations of the next row in 4,999 of 4,999 rows, first in row 0" in reading.notes[0]
    np.testing.assert_array_equal(reading.arrays["observations"][1::2], np.float32(fields["next_observations"]))


def test_what_next_observations_hold_beside_the_way_is_not_looked_at(tmp_path):
    following = np.zeros((6, 11), np.float32)
    following[:, :1] = OBSERVATIONS + 1
    following[[2, 5]] = np.nan  # of transitions that are dropped
    d4rl.examine(hopper(tmp_path, next_observations=following, timeouts=LAST), "hopper-medium-v2")
    with pytest.raises(UserError, match="'next_observations' has NaN or infinite values, first in row 2"):
        d4rl.examine(hopper(tmp_path, next_observations=following), "hopper-medium-v2")


@pytest.mark.parametrize("over", [4, 6])
def test_an_episode_of_d4rl_does_not_exceed_the_limit(tmp_path, monkeypatch, over):
    monkeypatch.setitem(d4rl.SETS, "hopper-medium-v2", d4rl.SETS["hopper-medium-v2"]._replace(limit=4))
    timeouts = np.arange(6) == over - 1
    steady = np.zeros((6, 11), np.float32)
    steady[:, 0] = np.arange(6)
    path = hopper(tmp_path, observations=steady, next_observations=None, timeouts=timeouts)
    reading = d4rl.examine(path, "hopper-medium-v2")
    assert pairs(reading.arrays) == [(0, 1), (1, 2), (2, 3), (4, 5)]
    assert list(reading.notes) == (["an episode is ended in row 3 and 0 more, after 4 steps"] if over == 6 else [])


def test_a_set_without_next_observations_is_searched_for_jumps(tmp_path):
    reading = d4rl.examine(hopper(tmp_path, next_observations=None), "hopper-medium-v2")
    assert len(reading.notes) == 1
    assert reading.notes[0].startswith("observations jump 1 times within episodes, first from row 2 to the next: if")
    assert d4rl.examine(hopper(tmp_path, next_observations=None, timeouts=LAST), "hopper-medium-v2").notes == ()
    assert "first from row 2" in read(save(tmp_path)).notes[0]


def maze(episodes, steps, seed=0):
    """Returns an ant's walks through a maze, as positions, swinging joints and their velocities."""
    rng = np.random.default_rng(seed)
    starts = rng.uniform(0, 40, (episodes, 1, 2))
    positions = starts + np.cumsum(rng.normal(0.05, 0.1, (episodes, steps, 2)), axis=1)
    joints = np.sin(np.cumsum(rng.normal(0.3, 0.1, (episodes, steps, 8)), axis=1))
    velocities = rng.standard_t(3, (episodes, steps, 8))
    last = np.zeros((episodes, steps), bool)
    last[:, -1] = True
    return np.concatenate([positions, joints, velocities], axis=2).reshape(-1, 18).astype(np.float32), last.ravel()


def test_jumps_across_the_maze_are_found_among_many_rows():
    observations, last = maze(60, 300)
    assert len(ends.find_jumps(observations, last)) == 0
    found = ends.find_jumps(observations, np.arange(len(last)) == len(last) - 1)
    assert set(found) <= set(np.flatnonzero(last))
    assert len(found) > 15
    hidden = last.copy()
    hidden[found[7]] = False
    assert ends.find_jumps(observations, hidden).tolist() == [found[7]]


def test_changes_of_sign_and_rare_moves_are_no_jumps():
    observations, last = maze(4, 300)
    angle = np.cumsum(np.full(1200, 0.1)) % (2 * np.pi) - np.pi  # wraps around
    quaternion = np.where(np.arange(1200) // 100 % 2, 0.7, -0.7)[:, None] * [1, 0.9]
    button = (np.arange(1200) > 500)[:, None] * np.ones(4)
    shown = np.concatenate([observations, angle[:, None], angle[:, None], quaternion, button], axis=1).astype(
        np.float32
    )
    assert len(ends.find_jumps(shown, last)) == 0


def test_tiny_sets_have_no_usual_change():
    for n in (1, 2):
        assert len(ends.find_jumps(np.arange(n, dtype=np.float32)[:, None] * 100, np.arange(n) == n - 1)) == 0


def test_ends_amid_an_episode_are_said_once():
    shared = {"terminations": NONE, "truncations": np.array([0, 1, 0, 0, 0, 1])}
    file = Loaded("some", "mend it", shared)
    assert transitions.ends_amid(file, "") == ["'truncations' is set in row 1"]
    transitions.note_ends_amid(file, transitions.ends_amid(file, "") * 3)
    assert file.notes == ["'truncations' is set in row 1, and the episode goes on after it, and 2 times more so"]


FAULTS = {
    "flowrl/tasks/ends.py": [
        (
            '"truncation", "truncated", "trunc", "timelimit"',
            '"truncation", "trunc", "timelimit"',
            "test_names_that_certainly_mean_a_cut_are_read",
        ),
        ("if (other != found).any()", "if False", "test_two_names_of_one_meaning_may_not_differ"),
        (
            "    if words & (_ENDS | _STARTS):\n        if not",
            "    if words & _ENDS:\n        if not",
            (
                "test_fields_that_do_not_tell_of_ends_are_named_as_unread or "
                "test_other_fields_that_tell_of_ends_are_compared"
            ),
        ),
        ("unknown = told & ~known", "unknown = known & ~known", "test_other_fields_that_tell_of_ends_are_compared"),
        ("last[:-1] = marked[1:]", "last[:] = marked", "test_other_fields_that_tell_of_ends_are_compared and is_first"),
        ("(0 if words", "(1 if words", "test_other_fields_that_tell_of_ends_are_compared and not_dones"),
        (
            "values[1:] < values[:-1]",
            "values[1:] < 0",
            "test_other_fields_that_tell_of_ends_are_compared and timesteps",
        ),
        ("places = np.cumsum(places)", "pass", "test_other_fields_that_tell_of_ends_are_compared and lengths"),
        ("places = places + 1", "pass", "test_other_fields_that_tell_of_ends_are_compared and end_idx"),
        ("if told is None and words", "if False and words", "test_what_tells_of_ends_and_is_not_understood_is_refused"),
        ("unmarked[first + odd[~close]] = True", "pass", "test_next_observations_show_ends_that_nothing_marks"),
        ("rounding = max(", "rounding = min(", "test_types_of_different_exactness_are_compared_by_the_less_exact"),
        ("if 2 * count > possible", "if False", "test_next_observations_that_fit_no_row_are_said"),
        (
            "if not good.all():\n            place",
            "if False:\n            place",
            "test_what_next_observations_hold_beside_the_way_is_not_looked_at",
        ),
        ("sizes = np.abs(observations[", "sizes = (observations[", "test_changes_of_sign_and_rare_moves_are_no_jumps"),
        (
            "changes[ends[start : start + len(changes)]] = 0",
            "pass",
            "test_jumps_across_the_maze_are_found_among_many_rows",
        ),
        (
            "_MANY_USUAL, _MANY_FAR = 0.97, 6.0",
            "_MANY_USUAL, _MANY_FAR = 0.97, 600.0",
            "test_jumps_across_the_maze_are_found_among_many_rows",
        ),
        (
            "_FEW_USUAL, _FEW_FAR = 0.5, 20.0",
            "_FEW_USUAL, _FEW_FAR = 0.97, 600.0",
            "test_a_set_without_next_observations_is_searched_for_jumps",
        ),
    ],
    "flowrl/tasks/d4rl.py": [
        ("ends |= unmarked", "pass", "test_next_observations_show_ends_that_nothing_marks"),
        ("marked = marked | over", "pass", "test_an_episode_of_d4rl_does_not_exceed_the_limit"),
        (
            "marks.note_jumps(file, observations, ends)",
            "pass",
            "test_a_set_without_next_observations_is_searched_for_jumps",
        ),
    ],
    "flowrl/tasks/ogbench_sets.py": [
        ("marks.check_other_names(file, terminals, remedy)", "", "test_ogbenchs_format_marks_every_end_in_terminals"),
        ("if unmarked.any():", "if False:", "test_ogbenchs_format_is_compared_with_next_observations"),
    ],
    "flowrl/tasks/transitions.py": [
        ("[:-1].any():", "[:0].any():", "test_ends_amid_an_episode_are_said_once"),
    ],
}
