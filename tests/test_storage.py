"""What files claim is compared with what they hold, before memory is asked for; and kinds of arrays that are none."""

import io
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest
from ogbench_files import rows

from flowrl import tasks
from flowrl.errors import UserError
from flowrl.tasks import columns, fields, sources

FIELDS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")


def own(n=40):
    rng = np.random.default_rng(0)
    found = {
        "observations": rng.normal(size=(n, 11)),
        "actions": rng.uniform(-1, 1, (n, 3)),
        "rewards": rng.normal(size=n),
    }
    found |= {"terminals": np.zeros(n, bool), "timeouts": np.arange(n) % 10 == 9}
    return found | {"next_observations": np.roll(found["observations"], -1, axis=0)}


def write_npz(path, arrays, compression=zipfile.ZIP_STORED, **raw):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", raw.get(name, buffer.getvalue()))
    return path


def header(shape, dtype="<f4", by_columns=False):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": by_columns, "shape": shape})
    return buffer.getvalue()


def read(path, name="hopper-medium-v2"):
    tracemalloc.start()
    try:
        return tasks.parse(name).read(sources.Source(path, "file", "", ""))
    finally:
        assert tracemalloc.get_traced_memory()[1] < 50e6
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["hopper-medium-v2", "pointmaze-medium-stitch"])
@pytest.mark.parametrize("shape", [(10**13, 11), (10**9, 11), (10**18,), (100, 11)])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_header_of_npz_that_claims_more_than_there_is(tmp_path, name, shape, compression):
    arrays = own() if name == "hopper-medium-v2" else rows()
    for field in set(FIELDS) & set(arrays):
        path = write_npz(tmp_path / "own.npz", arrays, compression, **{field: header(shape) + bytes(100)})
        with pytest.raises(UserError, match=f"'{field}' is damaged or cannot be read .it claims to be .*mend the file"):
            read(path, name)


def test_a_directory_of_npz_that_claims_what_cannot_be_compressed_so(tmp_path):
    path, claimed = tmp_path / "own.npz", header((10**8, 11))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in own().items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", claimed if name == "rewards" else buffer.getvalue())
        archive.getinfo("rewards.npy").file_size = len(claimed) + 44 * 10**8
    with pytest.raises(UserError, match=r"'rewards' is damaged or cannot be read .it claims to be "):
        read(path)


def test_a_bomb_of_npz_is_measured_by_the_free_memory(tmp_path, monkeypatch):
    path = write_npz(
        tmp_path / "own.npz", own() | {"observations": np.zeros((10**6, 11), np.float32)}, zipfile.ZIP_DEFLATED
    )
    monkeypatch.setattr(fields, "available_memory", lambda: 10**7)
    with pytest.raises(UserError, match=r"'observations' has shape \(1000000, 11\): reading it takes 0.0 GB of memory"):
        read(path)


def test_memory_that_is_refused_is_said(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise MemoryError

    path = write_npz(tmp_path / "own.npz", own())
    monkeypatch.setattr(np.lib.format, "read_array", refused)
    with pytest.raises(UserError, match="'terminals' does not fit into memory; use a smaller set"):
        read(path)


@pytest.mark.parametrize("shape", [(10**13, 11), (10**9, 11), (10**17,)])
@pytest.mark.parametrize("name", ["hopper-medium-v2", "Pendulum-v1"])
def test_an_array_of_hdf5_that_was_never_written(tmp_path, shape, name):
    for field in FIELDS:
        with h5py.File(tmp_path / "own.hdf5", "w") as file:
            for other, array in own().items():
                if other != field:
                    file[other] = array
            file.create_dataset(field, shape=shape, dtype="f4", chunks=(1000, *shape[1:]))
        with pytest.raises(UserError, match=f"'{field}' is damaged or cannot be read .it claims to be "):
            read(tmp_path / "own.hdf5", name)


def test_a_virtual_array_of_hdf5_is_measured_by_the_free_memory(tmp_path):
    layout = h5py.VirtualLayout((10**13, 11), "f4")
    layout[:40] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "x", (40, 11))
    with h5py.File(tmp_path / "own.hdf5", "w") as file:
        for name, array in own().items():
            if name != "observations":
                file[name] = array
        file.create_virtual_dataset("observations", layout)
    with pytest.raises(
        UserError, match=r"'observations' has shape \(10000000000000, 11\): reading it takes 440,000.0 GB"
    ):
        read(tmp_path / "own.hdf5")


def test_flags_that_were_never_set_are_zeros(tmp_path):
    with h5py.File(tmp_path / "own.hdf5", "w") as file:
        for name, array in own().items():
            if name != "terminals":
                file[name] = array
        file.create_dataset("terminals", shape=(40,), dtype=bool)
    assert read(tmp_path / "own.hdf5")["masks"].min() == 1


@pytest.mark.parametrize("text", [b"{" * 70, b"{'shape'".ljust(70), b"\xff" * 70, b"", b"1".ljust(70)])
@pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00\x46\x00", b"\x03\x00", b"\x09\x09"])
def test_headers_of_npz_that_are_none(tmp_path, text, version):
    path = write_npz(tmp_path / "own.npz", own(), terminals=b"\x93NUMPY" + version + b"\x46\x00" + text)
    with pytest.raises(UserError, match="'terminals' is not a plain array"):
        read(path)


PAIR = np.zeros(40, [("x", "f4"), ("y", "f4")])
RAGGED = np.array([np.zeros(3)] * 39 + [np.zeros(2)], object)


@pytest.mark.parametrize(
    ("field", "array", "message"),
    [
        ("observations", RAGGED, "is not a plain array: it holds Python objects, such as rows of unequal length"),
        ("observations", PAIR, r"holds \[\('x', '<f4'\), \('y', '<f4'\)\], not numbers"),
        ("actions", np.zeros((40, 3), complex), "holds complex128, not numbers"),
        ("actions", np.zeros((40, 3), bool), "holds bool, not numbers"),
        ("rewards", np.array(["1"] * 40), "holds <U1, not numbers"),
        ("rewards", np.zeros(40, "M8[s]"), r"holds datetime64\[s\], not numbers"),
        (
            "observations",
            np.zeros((11, 40)),
            r"has shape \(11, 40\), but 40 rows of numbers are needed.*; transpose it",
        ),
        ("observations", np.zeros((39, 11)), r"has shape \(39, 11\), but 40 rows"),
        ("next_observations", np.zeros((11, 40)), r"has shape \(11, 40\), but \(40, 11\) is needed"),
        ("next_observations", np.zeros((40, 11), complex), "holds complex128, not numbers"),
    ],
)
def test_arrays_that_hold_something_else(tmp_path, field, array, message):
    np.savez(tmp_path / "own.npz", **(own() | {field: array}))
    with pytest.raises(UserError, match=f"'{field}' {message}") as raised:
        tasks.parse("Pendulum-v1").read(sources.Source(tmp_path / "own.npz", "file", "", ""))
    assert ";" in str(raised.value)


def test_what_is_not_read_may_hold_anything(tmp_path):
    np.savez(tmp_path / "own.npz", **own(), notes=RAGGED, qpos=np.full(40, np.nan), label="x")
    tasks.parse("Pendulum-v1").read(sources.Source(tmp_path / "own.npz", "file", "", ""))


def test_columns_that_lie_together_and_many_rows_are_read_alike(tmp_path):
    n = 2 * columns.BLOCK + 5
    found = own(n) | {"timeouts": np.arange(n) % 1000 == 999}
    np.savez(tmp_path / "rows.npz", **found)
    np.savez(tmp_path / "columns.npz", **{name: np.asfortranarray(array) for name, array in found.items()})
    read_from = [sources.Source(tmp_path / f"{name}.npz", "file", "", "") for name in ("rows", "columns")]
    first, second = (tasks.parse("Pendulum-v1").read(source) for source in read_from)
    assert len(first["terminals"]) == n + n // 1000 + 1
    np.testing.assert_array_equal(first["observations"], second["observations"])


@pytest.mark.parametrize("rows", [0, 1, 16, 17, 1000])
@pytest.mark.parametrize("width", [1, 3, 700])
def test_extents_are_the_least_and_the_largest(rows, width):
    array = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    array[-1:] += 100
    found = columns.extent(array)
    np.testing.assert_array_equal(found, [array.min(axis=0), array.max(axis=0)] if rows else np.zeros((2, width)))
    if rows:
        array[rows // 2, width - 1] = np.nan
        assert np.isnan(columns.extent(array)[:, width - 1]).all()


@pytest.mark.parametrize(
    ("renamed", "message"),
    [
        ({"observations": "observation"}, "'observations' is missing; did you mean its 'observation'"),
        ({"observations": "obs"}, "'observations' is missing; did you mean its 'obs'"),
        ({"actions": "Actions"}, "'actions' is missing; did you mean its 'Actions'"),
        (
            {"rewards": "r"},
            "'rewards' is missing; it has actions, next_observations, observations, r, terminals, timeouts;",
        ),
    ],
)
def test_a_missing_field_names_the_one_that_may_be_meant(tmp_path, renamed, message):
    np.savez(tmp_path / "own.npz", **{renamed.get(name, name): array for name, array in own().items()})
    with pytest.raises(UserError, match=f"own.npz: the field {message}"):
        read(tmp_path / "own.npz", "Pendulum-v1")


@pytest.mark.parametrize(
    ("written", "meant"),
    [("next_observation", "next_observations"), ("next_obs", "next_observations"), ("mask", "masks")],
)
def test_an_optional_field_of_another_spelling_is_said(tmp_path, written, meant, capsys):
    found = own()
    found[written] = found.pop("next_observations") if "next" in written else np.ones(40)
    np.savez(tmp_path / "own.npz", **found)
    read(tmp_path / "own.npz", "Pendulum-v1")
    assert f"note: '{written}' is not read; did you mean '{meant}'?\n" in capsys.readouterr().err


FAULTS = {
    "flowrl/tasks/fields.py": [
        (
            "if free is not None and needed > free",
            "if False",
            (
                "test_a_bomb_of_npz_is_measured_by_the_free_memory or "
                "test_a_virtual_array_of_hdf5_is_measured_by_the_free_memory"
            ),
        ),
        ("except MemoryError as error", "except ZeroDivisionError as error", "test_memory_that_is_refused_is_said"),
        (
            "if remedy is None and (near :=",
            "if False and (near :=",
            "test_a_missing_field_names_the_one_that_may_be_meant",
        ),
        ("unread, 0.85)", "unread, 1.1)", "test_an_optional_field_of_another_spelling_is_said and mask"),
        ('turned = "transpose it" if', 'turned = "" if', "test_arrays_that_hold_something_else"),
    ],
    "flowrl/tasks/storage.py": [
        ("if claimed > held and", "if False and", "test_a_header_of_npz_that_claims_more_than_there_is"),
        (
            "held = min(held, _DEFLATION * info.compress_size)",
            "pass",
            "test_a_directory_of_npz_that_claims_what_cannot_be_compressed_so",
        ),
        ("if claimed > max(_SPARSE", "if 0 > max(_SPARSE", "test_an_array_of_hdf5_that_was_never_written"),
        ("if not by_columns:", "if True:", "test_columns_that_lie_together_and_many_rows_are_read_alike"),
        ("(SyntaxError, tokenize.TokenError)", "SyntaxError", "test_headers_of_npz_that_are_none"),
    ],
    "flowrl/tasks/columns.py": [
        (
            "least.reduce(parts, axis=0)",
            "least.reduce(many if whole else parts, axis=0)",
            "test_extents_are_the_least_and_the_largest",
        ),
    ],
}
