import tracemalloc
import zipfile

import numpy as np
import pytest
from ogbench_files import rows, with_value

from flowrl import tasks
from flowrl.errors import UserError
from flowrl.tasks import sources
from flowrl.tasks.fields import Expected

ENV = tasks.parse("pointmaze-medium-stitch")


def read(path, **expected):
    return ENV.read(sources.Source(path, "file", "", ""), Expected(**expected))


def saved(tmp_path, compressed=False, **changed):
    path = tmp_path / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, **rows(**changed))
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_read_returns_checked_fields(tmp_path, compressed):
    data = rows()
    data["actions"][0] = [1.0, -1.0]
    found = read(saved(tmp_path, compressed, actions=data["actions"]), observation_dim=2, action_dim=2)
    assert list(found) == ["observations", "actions", "terminals"]
    assert [array.dtype for array in found.values()] == [np.float32, np.float32, bool]
    np.testing.assert_array_equal(found["observations"], data["observations"])
    np.testing.assert_array_equal(found["terminals"], data["terminals"])
    np.testing.assert_array_equal(found["actions"][0], np.float32([1 - 1e-5, -1 + 1e-5]))
    np.testing.assert_array_equal(found["actions"][1:], data["actions"][1:])


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float32, np.float64])
def test_terminals_may_be_numbers(tmp_path, kind):
    found = read(saved(tmp_path, terminals=rows()["terminals"].astype(kind)))
    np.testing.assert_array_equal(found["terminals"], rows()["terminals"])
    assert found["terminals"].dtype == bool


@pytest.mark.parametrize("convert", [np.float64, ">f4", np.asfortranarray])
def test_numbers_of_other_kinds_become_float32(tmp_path, convert):
    original = rows()["observations"]
    changed = convert(original) if callable(convert) and convert is np.asfortranarray else original.astype(convert)
    found = read(saved(tmp_path, observations=changed))["observations"]
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, original)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"observations": None}, "'observations' is missing"),
        ({"terminals": None}, "'terminals' is missing"),
        ({"observations": np.zeros(40)}, r"'observations' has shape \(40,\)"),
        ({"actions": np.zeros((40, 2, 1))}, r"'actions' has shape \(40, 2, 1\)"),
        ({"actions": np.zeros((39, 2))}, r"'actions' has shape \(39, 2\), but 40 rows"),
        ({"terminals": np.zeros((40, 2))}, r"'terminals' has shape \(40, 2\)"),
        ({"observations": np.full((40, 2), "a")}, "'observations' holds <U1, not numbers"),
        ({"observations": np.full((40, 2), True)}, "'observations' holds bool, not numbers"),
        ({"actions": np.full((40, 2), 1j)}, "'actions' holds complex128, not numbers"),
        ({"actions": np.full((40, 2), None)}, "'actions' is not a plain array"),
        (with_value("observations", 17, np.nan), "'observations' has NaN or infinite values, first in row 17"),
        (
            with_value("observations", 3, 1e300),
            "'observations' holds numbers too large for 32-bit floats, first in row 3",
        ),
        (with_value("actions", 39, -np.inf), "'actions' has NaN or infinite values, first in row 39"),
        (with_value("actions", 5, 1.01), r"'actions' reach 1\.01 in row 5, outside \[-1, 1\]"),
        (with_value("actions", 5, -2.0), r"'actions' reach 2 in row 5, outside \[-1, 1\]"),
        (with_value("terminals", 39, False), "'terminals' is not set on the last row; mark the last row"),
        (with_value("terminals", 6, 2), "'terminals' is 2.0 in row 6"),
        (with_value("terminals", 6, np.nan), "'terminals' is nan in row 6"),
        ({"terminals": np.ones(40, bool)}, "no transition"),
        ({"n": 0}, "no transition"),
    ],
)
def test_a_malformed_file_is_explained(tmp_path, changed, message):
    path = saved(tmp_path, **changed)
    with pytest.raises(UserError, match=message) as raised:
        read(path)
    assert str(path) in str(raised.value)
    assert ";" in str(raised.value)  # what is wrong; what to do


def test_actions_slightly_outside_are_clipped(tmp_path):
    found = read(saved(tmp_path, **with_value("actions", 5, 1.0005)))
    assert found["actions"].max() == np.float32(1 - 1e-5)


def test_sizes_that_do_not_fit_name_both_numbers(tmp_path):
    with pytest.raises(UserError, match=r"'observations' have size 2, but the environment's have 29"):
        read(saved(tmp_path), observation_dim=29)
    with pytest.raises(UserError, match=r"'actions' have size 2, but the environment's have 8"):
        read(saved(tmp_path), action_dim=8)


def test_a_missing_file_is_explained(tmp_path):
    with pytest.raises(UserError, match=r"absent\.npz: no such file.*--data"):
        read(tmp_path / "absent.npz")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_file_is_explained(tmp_path, compressed):
    whole = saved(tmp_path, compressed, n=4000).read_bytes()
    path = tmp_path / "damaged.npz"
    middle = len(whole) // 8
    for damaged in (
        b"",
        b"\x93NUMPY",
        whole[:-100],
        whole[:middle],
        whole[:middle] + b"\0" * 64 + whole[middle + 64 :],
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"damaged\.npz: .*; mend the file"):
            read(path)


@pytest.mark.parametrize(
    ("origin", "remedy"),
    [
        ("official", "delete the file, and run again to download it anew"),
        ("collected", "delete the file, and run again to collect it anew"),
        ("file", "mend the file; docs/data.md says which fields it needs"),
    ],
)
@pytest.mark.parametrize("name", ["pointmaze-medium-stitch", "hopper-medium-v2"])
def test_a_file_of_the_users_own_is_never_to_be_deleted(tmp_path, origin, remedy, name):
    path = tmp_path / "data.hdf5"
    path.write_bytes(b"PK")
    with pytest.raises(UserError) as raised:
        tasks.parse(name).read(sources.Source(path, origin, "", ""))
    assert str(raised.value).endswith(remedy)


def test_a_lone_array_is_explained(tmp_path):
    np.save(tmp_path / "data.npy", rows()["observations"])
    with pytest.raises(
        UserError, match=r"data\.npy: damaged or cannot be read: neither a whole \.npz nor an HDF5 file; mend the file"
    ):
        read(tmp_path / "data.npy")


def test_other_fields_are_never_read(tmp_path):
    path = saved(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("qvel.npy", b"not an array")
    assert len(read(path)) == 3


def test_reading_needs_little_more_memory_than_the_data(tmp_path):
    n = 100_000
    path = tmp_path / "data.npz"
    terminals = np.zeros(n, bool)
    terminals[-1] = True
    np.savez(path, observations=np.ones((n, 29), np.float32), actions=np.ones((n, 8), np.float32), terminals=terminals)
    tracemalloc.start()
    try:
        found = read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.4 * sum(array.nbytes for array in found.values())


FAULTS = {
    "flowrl/tasks/task.py": [
        (
            "REMEDIES.get(source.origin",
            'REMEDIES.get("official"',
            "test_a_file_of_the_users_own_is_never_to_be_deleted",
        ),
    ],
}
