"""Programs and the programs that they start end with 128 + the signal."""

import signal
import subprocess
import sys

import pytest

from flowrl.signals import run_program

CHILD = """
import signal, sys, time
def end(number, _):
    print("child ended", flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import sys
from flowrl.signals import exit_on_sigterm, run_program
exit_on_sigterm()
try:
    run_program([sys.executable, "-c", sys.argv[1]])
finally:
    print("parent ended", flush=True)
"""


PROGRAM = """
import time
from flowrl import flags
def main(arguments):
    print("ready", flush=True)
    time.sleep(60)
flags.run(main)
"""


@pytest.mark.parametrize(("number", "told"), [(signal.SIGTERM, "terminated\n"), (signal.SIGINT, "interrupted\n")])
def test_a_program_ends_in_one_line(number: int, told: str) -> None:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, complaints = process.communicate(timeout=30)
    assert (process.returncode, complaints) == (128 + number, told)


def test_sigterm_is_passed_on_and_ends_both_in_order() -> None:
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        said, complaints = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert said.splitlines() == ["child ended", "parent ended"]
    assert complaints == "terminated\n"


@pytest.mark.parametrize("status", [128 + signal.SIGINT, 128 + signal.SIGTERM])
def test_a_program_whose_part_was_stopped_ends_likewise(status: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_program([sys.executable, "-c", f"raise SystemExit({status})"])
    assert stopped.value.code == status
    assert "the same command continues" in capsys.readouterr().out


@pytest.mark.parametrize("status", [0, 1, 2])
def test_other_statuses_are_returned(status: int) -> None:
    assert run_program([sys.executable, "-c", f"raise SystemExit({status})"]) == status
