"""What programs print to: closed streams, pipes that nobody reads, full disks, terminals that know ASCII only."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flowrl.errors import explained, nearby, remedy

ROOT = Path(__file__).parents[1]
PROGRAM = """
if __name__ == "__main__":
    import flowrl.cli.start
import sys
from flowrl.cli import flags
from flowrl.errors import UserError
def main(arguments):
    for index in range(4000):  # more than a pipe holds
        print(f"line {index}: 3 × α … β̂")
    print("said", file=sys.stderr)
    if "bad" in arguments:
        raise UserError("γ is no number")
    return 0
flags.run(main)
"""


def shell(line: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs the program in a shell, as `$PROGRAM`."""
    own = {"PROGRAM_TEXT": PROGRAM, "PYTHON": sys.executable, "ARGUMENTS": " ".join(arguments)}
    line = line.replace("$PROGRAM", '"$PYTHON" -c "$PROGRAM_TEXT" $ARGUMENTS')
    return subprocess.run(
        ["bash", "-c", line],
        env=os.environ | own | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_nobody_reads_on() -> None:
    done = shell('$PROGRAM | head -n 1; echo "${PIPESTATUS[0]}"')
    assert done.stdout.splitlines() == ["line 0: 3 × α … β̂", str(128 + signal.SIGPIPE)]
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_for_what_is_printed() -> None:
    done = shell("$PROGRAM > /dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write to standard output (No space left on device);")
    assert len(done.stderr.splitlines()) == 1
    assert shell("$PROGRAM 2> /dev/full | tail -n 1; exit ${PIPESTATUS[0]}").returncode == 0


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    done = shell(f"$PROGRAM {closed}")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert shell(f"$PROGRAM {closed}", "bad").returncode == 2


def test_a_file_does_not_take_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    text = (
        f"import flowrl.cli.start; file = open({str(tmp_path / 'file')!r}, 'w'); print(file.fileno() > 2); import os\n"
    )
    text += "os.write(2, b'lost')"
    subprocess.run(["bash", "-c", '"$0" -c "$1" >&- 2>&-', sys.executable, text], check=True, timeout=60)
    assert (tmp_path / "file").read_text() == ""


def test_a_terminal_that_knows_ascii_only() -> None:
    done = shell("$PROGRAM", "bad", PYTHONIOENCODING="ascii")
    assert done.stdout.splitlines()[0] == "line 0: 3 x alpha ... beta?"
    assert done.stderr.splitlines() == ["said", "error: gamma is no number"]


@pytest.mark.slow
def test_programs_help_in_ascii() -> None:
    command = [sys.executable, str(ROOT / "experiments" / "main.py"), "--agent=dpmd", "--help"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=120, check=True
    )
    assert b"step size for log alpha" in done.stdout
    assert done.stderr == b""


# --------------------------------------------------------------------------------------------------- before the imports


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "experiments").glob("*.py")))
def test_every_program_begins_with_what_must_come_first(name: str) -> None:
    text = (ROOT / "experiments" / f"{name}.py").read_text()
    after = text.split('"""', 2)[2].strip()
    assert after.startswith('if __name__ == "__main__":\n    import flowrl.cli.start')


@pytest.mark.parametrize(("number", "told"), [(signal.SIGINT, "interrupted\n"), (signal.SIGTERM, "terminated\n")])
def test_a_signal_amid_the_imports(number: int, told: str, tmp_path: Path) -> None:
    for module in ("jax", "numpy"):  # whatever a program imports first is under way for long
        (tmp_path / f"{module}.py").write_text(
            "import sys, time\nprint('importing', flush=True)\ntry:\n    time.sleep(60)\nexcept BaseException:\n"
            "    print('lost')\n    raise ImportError\n"
        )
    for name in ("main", "plot"):
        command = [sys.executable, str(ROOT / "experiments" / f"{name}.py"), "--agent=bc", "--env=Pendulum-v1", "x"]
        with subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}, stdout=-1, stderr=-1, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "importing\n"
            process.send_signal(number)
            said, complaints = process.communicate(timeout=30)
        assert (process.returncode, said, complaints) == (128 + number, "", told)


# -------------------------------------------------------------------------------------------------------- the machine


def test_failures_of_the_machine_are_one_line() -> None:
    assert "not enough memory" in str(explained(MemoryError()))
    assert "not enough memory" in str(explained(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")))
    assert "ulimit -u" in str(explained(RuntimeError("can't start new thread")))
    assert "free space" in str(explained(OSError(28, "No space left on device", "x")))
    assert explained(RuntimeError("a fault of our own")) is None
    assert explained(ZeroDivisionError()) is None


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (28, "free space"),
        (122, "free space"),
        (13, "a place that you may write to with --out"),
        (30, "a place that you may write to"),
        (21, "there is a folder of that name"),
        (20, "a file stands where a folder is to be"),
        (36, "give a shorter name"),
    ],
)
def test_the_remedy_fits_what_is_wrong(number: int, advice: str) -> None:
    assert advice in remedy(OSError(number, os.strerror(number)), "--out")


def test_files_that_are_nearly_there(tmp_path: Path) -> None:
    (tmp_path / "walks.npz").touch()
    assert nearby(tmp_path / "walk.npz") == f"; did you mean {tmp_path / 'walks.npz'}?"
    assert nearby(tmp_path / "zzz") == ""
    assert nearby(tmp_path / "none" / "walks.npz") == ""


# ------------------------------------------------------------------------------------------------- files, OpenGL, JAX

CHECKPOINT = """
import resource, sys
import numpy as np
from pathlib import Path
from flowrl.training.checkpoint import Checkpoints
from flowrl.errors import UserError
checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save(1, {"x": np.zeros(10)}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    checkpoints.save(2, {f"x{i}": np.random.default_rng(i).normal(size=10_000) for i in range(20)}, {})
except UserError as error:
    print(error)
"""


def test_a_checkpoint_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHECKPOINT, str(tmp_path / "checkpoints")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == ""
    assert "files may not grow so large here; the one at step 1 is whole; raise ulimit -f and" in done.stdout


def test_opengl_does_not_matter_to_who_draws_nothing() -> None:
    program = "from flowrl.envs import making; making.make('InvertedPendulum-v5').reset(seed=0); import os\n"
    program += "print(os.environ['MUJOCO_GL'])"
    environment = os.environ | {"MUJOCO_GL": "none_of_these"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("none_of_these\n", "")


def test_jax_without_a_device_in_any_program() -> None:
    program = "import jax; from flowrl.cli import flags; flags.run(lambda _: jax.numpy.zeros(1) is None)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env=os.environ | {"JAX_PLATFORMS": "cuda"}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: JAX finds no device for JAX_PLATFORMS=cuda; unset it, or set cpu\n"


FAULTS = {
    "flowrl/cli/start.py": [
        ("abrupt()\n", "", "test_a_signal_amid_the_imports"),
        ("open_closed()\n", "", "test_a_file_does_not_take_the_place_of_a_closed_stream"),
    ],
    "flowrl/errors.py": [
        ('sys.modules["jax"].devices()', "pass", "test_jax_without_a_device_in_any_program"),
    ],
    "flowrl/envs/making.py": [
        (
            "            _import_without_opengl()\n",
            "            pass\n",
            "test_opengl_does_not_matter_to_who_draws_nothing",
        ),
    ],
    "flowrl/machine/terminal.py": [
        ("isinstance(error.__cause__, BrokenPipeError)", "False", "test_nobody_reads_on"),
        ('_PLAIN.get(sign, "?")', '"?"', "test_a_terminal_that_knows_ascii_only or test_programs_help_in_ascii"),
    ],
}
