"""Programs and the programs that they start end with 128 + the signal."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from flowrl.cli import flags
from flowrl.machine import signals
from flowrl.machine.signals import run_program

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
from flowrl.machine.signals import exit_on_sigterm, run_program
exit_on_sigterm()
try:
    run_program([sys.executable, "-c", sys.argv[1]])
finally:
    print("parent ended", flush=True)
"""


PROGRAM = """
import time
from flowrl.cli import flags
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


# Compiled code that lets other threads run, as XLA does, and that no signal disturbs: a lock that is taken twice.
BLOCKED = """
import ctypes, sys
from flowrl.cli import flags
from flowrl.machine import signals
signals.AT_ONCE = 0.3
def main(arguments):
    library, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(lock)
    with signals.within(eval(arguments[1])), {block}:
        print("ready", flush=True)
        library.pthread_mutex_lock(lock)
flags.run(main)
"""


@contextlib.contextmanager
def blocked(limit: str, block: str = "signals.within(signals._watch.limit)") -> Iterator[subprocess.Popen]:
    """Runs a program until it is in compiled code."""
    command = [sys.executable, "-c", BLOCKED.replace("{block}", block), limit]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)  # until it has gone from there into the lock
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="the lock is Linux's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("block", ["signals.within(0.2)", "signals.Signals()"])
def test_a_signal_ends_compiled_code(number: int, block: str) -> None:
    with blocked("0.2", block) as process:
        process.send_signal(number)
        _, complaints = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert complaints == {signal.SIGTERM: "terminated\n", signal.SIGINT: "interrupted\n"}[signal.Signals(number)]


@pytest.mark.skipif(sys.platform != "linux", reason="the lock is Linux's")
def test_what_saves_is_given_time_until_a_second_signal() -> None:
    with blocked("None") as process:
        process.terminate()
        time.sleep(0.7)
        assert process.poll() is None
        process.terminate()
        process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.fixture
def own_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_handlers")
def test_the_watch_ends_with_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "PROMPT", 600.0)
    with pytest.raises(SystemExit):
        flags.run(lambda _: signal.raise_signal(signal.SIGTERM) or 0)
    before = signal.set_wakeup_fd(-1)
    assert before == -1  # or this process would be ended soon


@pytest.mark.usefixtures("own_handlers")
def test_an_ignored_interrupt_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for a job in the background
    with signals.importing(), signals.orderly():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


FAULTS = {
    "flowrl/machine/signals.py": [
        ("        process.terminate()\n", "        pass\n", "test_sigterm_is_passed_on_and_ends_both_in_order"),
        (
            "        raise SystemExit(status)",
            "        return status",
            "test_a_program_whose_part_was_stopped_ends_likewise",
        ),
        ("    exit_on_sigterm()\n", "", "test_a_program_ends_in_one_line"),
        ("now - second > AT_ONCE", "False", "test_what_saves_is_given_time_until_a_second_signal"),
        ("return now - max(first, self.since) > self.limit", "return False", "test_a_signal_ends_compiled_code"),
        ("            signal.set_wakeup_fd(before)\n", "", "test_the_watch_ends_with_the_program"),
        ("if signal.getsignal(number) is not signal.SIG_IGN:", "if True:", "test_an_ignored_interrupt_stays_ignored"),
    ],
}
