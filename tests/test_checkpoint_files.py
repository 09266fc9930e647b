"""Checkpoints that a person or a crash has changed: the one before serves, or one line with file and remedy."""

import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from altered_files import assert_refused

from flowrl.errors import UserError
from flowrl.training import checkpoint
from flowrl.training.checkpoint import Checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


# --------------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints at 10 and 20, large enough that their arrays lie in files of their own."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    arrays = ({"w": jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)))}, jnp.zeros(()))
    checkpoints = Checkpoints(folder)
    for step in (10, 20):
        checkpoints.save(step, arrays, {"agent": "bc", "evaluated": True})
    checkpoints.close()
    return folder


def as_file(place: Path) -> None:
    shutil.rmtree(place)
    place.touch()


def as_folder(place: Path) -> None:
    place.unlink()
    place.mkdir()


def damages(step: Path) -> Iterator[tuple[str, str, Callable[[Path], Any]]]:
    """Yields what may have become of each file and folder of a checkpoint."""
    for path in sorted(step.rglob("*")):
        name = str(path.relative_to(step))
        if path.is_dir():
            yield from ((name, "lost", shutil.rmtree), (name, "a file", as_file))
            continue
        yield from ((name, "lost", Path.unlink), (name, "a folder", as_folder))
        half = path.read_bytes()[: path.stat().st_size // 2]
        for kind, data in {"empty": b"", "cut": half, "garbled": b"\x80garbage", "a list": b"[1]"}.items():
            yield name, kind, lambda place, data=data: place.write_bytes(data)


def read(folder: Path) -> str:
    """Reads the newest checkpoint; returns the error, or nothing where all is there."""
    try:
        checkpoints = Checkpoints(folder)
        assert checkpoints.facts() == {"agent": "bc", "evaluated": True}
        values = checkpoints.raw()[0]["w"]
        checkpoints.close()
    except UserError as error:
        return str(error)
    np.testing.assert_array_equal(values, np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32))
    return ""


@pytest.mark.slow
def test_any_part_of_a_checkpoint_may_be_damaged(
    saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line names the step and the way back; nothing else is said, and no garbage is taken for arrays."""
    refused = set()
    for index, (name, kind, damage) in enumerate(damages(saved / "20")):
        folder = shutil.copytree(saved, tmp_path / str(index))
        damage(folder / "20" / name)
        if said := read(folder):
            assert "\n" not in said
            assert "to fall back to the one before" in said
            refused.add(f"{name} {kind}")
    assert {"arrays lost", "facts lost", "facts/metadata empty", "facts/metadata a list"} <= refused
    assert {"arrays/_METADATA cut", "arrays/_METADATA a list", "_CHECKPOINT_METADATA a list"} <= refused
    assert any(name.startswith("arrays/") and name.endswith(" cut") and "/d/" in name for name in refused)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def asyncio_log() -> Iterator[logging.Logger]:
    """Asyncio's log, which shows errors."""
    log = logging.getLogger("asyncio")
    before = log.level
    log.setLevel(logging.ERROR)
    yield log
    log.setLevel(before)


def test_what_orbax_says_beside_its_error_is_not_heard(
    asyncio_log: logging.Logger, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says comes at any time, so a damaged checkpoint alone does not show that nothing is heard."""
    heard: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: heard.append(str(unraisable.exc_value)))

    async def read() -> None: ...

    def say(message: str) -> None:
        class Dying:
            def __del__(self) -> None:
                raise RuntimeError(message)

        Dying()
        asyncio_log.error(message)

    with warnings.catch_warnings(), checkpoint.quiet():
        warnings.simplefilter("error")
        read()  # Python complains of a coroutine that nobody awaited
        say("Event loop is closed")
        say("another")
    assert heard == ["another"]
    assert asyncio_log.level == logging.ERROR
    with pytest.raises(ZeroDivisionError), checkpoint.quiet():
        raise ZeroDivisionError
    say("Event loop is closed")  # after a failure the silence lasts
    assert heard == ["another"]
    assert capfd.readouterr() == ("", "")


def test_what_is_no_checkpoint_among_them(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    (folder / "30.orbax-checkpoint-tmp").mkdir()  # as a kill leaves it
    (folder / "notes.txt").touch()
    checkpoints = Checkpoints(folder, read_only=True)
    assert checkpoints.steps() == [10, 20]
    checkpoints.close()
    (folder / "30").mkdir()
    checkpoints = Checkpoints(folder)
    assert_refused("at step 30 in .* delete that step's folder", checkpoints.facts)
    checkpoints.close()
    (folder / "30").rmdir()
    (folder / "30").touch()
    assert_refused("checkpoints/30 is a file, not the folder of a checkpoint", lambda: Checkpoints(folder))
    assert_refused("notes.txt is a file", lambda: Checkpoints(folder / "notes.txt"))
    checkpoints = Checkpoints(tmp_path / "none")
    assert_refused("there is no checkpoint in", checkpoints.facts)
    checkpoints.close()


def test_the_last_checkpoint_has_none_to_fall_back_to(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    shutil.rmtree(folder / "10")
    (folder / "20" / "facts" / "metadata").unlink()
    checkpoints = Checkpoints(folder)
    assert_refused("put it back from a copy", checkpoints.facts)
    checkpoints.close()


@pytest.mark.parametrize(("error", "left"), [(SystemExit, 10), (RuntimeError, 20)])
def test_a_checkpoint_is_replaced_or_stays(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], left: int
) -> None:
    """A kill leaves the one before, and no part of either as the newest; an error puts it back."""
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    checkpoints = Checkpoints(folder)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(error):
        checkpoints.save(20, {"w": jnp.zeros(2)}, {"agent": "bc", "evaluated": True})
    assert checkpoints.latest() == left
    checkpoints.close()
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest() == left
    assert checkpoints.raw()[0]["w"].shape == (64, 64)
    checkpoints.save(20, {"w": jnp.zeros(2)}, {"agent": "bc", "evaluated": True})
    checkpoints.save(20, {"w": jnp.ones(2)}, {"agent": "bc", "evaluated": False})
    np.testing.assert_array_equal(checkpoints.raw()["w"], [1, 1])
    assert not checkpoints.facts()["evaluated"]
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["10", "20"]


def test_readers_leave_the_folder_as_it_is(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    for name in (".20.0a1b.tmp", "30.orbax-checkpoint-tmp"):
        (folder / name).mkdir()
    before = sorted(folder.rglob("*"))
    checkpoints = Checkpoints(folder, read_only=True)
    assert checkpoints.raw(10)[0]["w"].shape == (64, 64)
    checkpoints.close()
    assert sorted(folder.rglob("*")) == before


FAULTS = {
    "flowrl/training/checkpoint.py": [
        ("    log.setLevel(logging.CRITICAL)\n", "    pass\n", "test_what_orbax_says_beside_its_error_is_not_heard"),
        ("inspect.iscoroutine(unraisable.object)", "False", "test_what_orbax_says_beside_its_error_is_not_heard"),
        (
            "    yield\n    sys.unraisablehook = previous\n",
            "    try:\n        yield\n    finally:\n        sys.unraisablehook = previous\n",
            "test_what_orbax_says_beside_its_error_is_not_heard",
        ),
        ("Exception as error:  # orbax", "OSError as error:  # orbax", "test_any_part_of_a_checkpoint_may_be_damaged"),
        ("            if not path.is_dir():", "            if False:", "test_what_is_no_checkpoint_among_them"),
        ("        if not read_only:\n", "        if True:\n", "test_readers_leave_the_folder_as_it_is"),
        ("os.rename(self.folder / str(step), aside)", "pass", "test_a_checkpoint_is_replaced_or_stays"),
        (
            "                os.rename(aside, self.folder / str(step))\n",
            "",
            "test_a_checkpoint_is_replaced_or_stays and RuntimeError",
        ),
    ],
}
