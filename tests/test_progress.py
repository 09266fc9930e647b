"""What takes minutes says every half minute how far it is, also where there is no terminal."""

import io
import sys

import pytest

from flowrl.experiment.recorder import estimate
from flowrl.machine.progress import Progress


def test_without_a_terminal_a_line_is_printed_every_thirty_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with Progress("collect maze", "row", 4_000, 1_000, clock=lambda: now) as bar:
        for seconds in (10.0, 29.9, 30.0, 31.0, 59.0, 120.0):
            now = seconds
            bar.advance(100)
    assert capsys.readouterr().err.splitlines() == [
        "collect maze: 1,300 of 4,000 rows, 10 a second, about 4.5 minutes to go",  # 200 in the 20 s since the first
        "collect maze: 1,600 of 4,000 rows, 4.55 a second, about 8.8 minutes to go",
    ]


def test_what_came_before_the_first_unit_counts_for_no_rate(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with Progress("training", "update", 10_000, 1_000, clock=lambda: now) as bar:
        for seconds, n in ((100.0, 1500), (110.0, 1600), (131.0, 1810)):
            now = seconds
            bar.to(n)
    assert capsys.readouterr().err.splitlines() == [
        "training: 1,500 of 10,000 updates",
        "training: 1,810 of 10,000 updates, 10 a second, about 13.7 minutes to go",
    ]


def test_of_what_has_no_known_end_the_line_says_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with Progress("download from here", "byte", None, clock=lambda: now) as bar:
        now = 7_200.0
        bar.advance(5_000_000)
    assert capsys.readouterr().err == "download from here: 5,000,000 bytes\n"


def test_other_hosts_than_the_first_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with Progress("training", "update", 10, hidden=True, clock=lambda: now) as bar:
        now = 99.0
        bar.to(5)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_there_is_a_bar_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    now = 0.0
    with Progress("collect maze", "row", 8, 4, clock=lambda: now) as bar:
        assert "4/8" in terminal.getvalue()
        now = 99.0
        bar.advance(4)
    assert "100%" in terminal.getvalue()
    assert "to go" not in terminal.getvalue()


def test_the_time_to_the_first_numbers_is_told_with_that_to_the_end() -> None:
    told = estimate(20.0, 3, left=120_000, to_evaluation=6000, unit="updates")
    assert told == (
        "20.0 updates/s of each run, 60.0 in all; the next evaluation in about 5.0 minutes, "
        "about 1.7 hours of training to go, evaluations apart"
    )
    assert "evaluation in" not in estimate(20.0, 3, left=6000, to_evaluation=6000, unit="updates")


FAULTS = {
    "flowrl/experiment/recorder.py": [
        (
            "if to_evaluation < left",
            "if to_evaluation <= left",
            "test_the_time_to_the_first_numbers_is_told_with_that_to_the_end",
        ),
        ("to_evaluation / rate", "left / rate", "test_the_time_to_the_first_numbers_is_told_with_that_to_the_end"),
    ],
    "flowrl/machine/progress.py": [
        ("now - self._told >= EVERY", "False", "test_without_a_terminal_a_line_is_printed_every_thirty_seconds"),
        ("self.to(self.n + more)", "self.to(more)", "test_without_a_terminal_a_line_is_printed_every_thirty_seconds"),
        (
            "self._start or (now, n)",
            "self._start or (self._told, 0)",
            "test_what_came_before_the_first_unit_counts_for_no_rate",
        ),
        (
            "bool(self._bar.disable and not hidden)",
            "bool(self._bar.disable)",
            "test_other_hosts_than_the_first_show_nothing",
        ),
        ("initial=done", "initial=0", "test_on_a_terminal_there_is_a_bar_alone"),
    ],
}
