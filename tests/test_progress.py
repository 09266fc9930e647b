"""What takes minutes says every half minute how far it is, also where there is no terminal."""

import io
import sys

import pytest

from flowrl.progress import progress


def test_without_a_terminal_a_line_is_printed_every_thirty_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with progress("collect maze", "row", 4_000, 1_000, clock=lambda: now) as advance:
        for seconds in (10.0, 29.9, 30.0, 31.0, 59.0, 120.0):
            now = seconds
            advance(100)
    assert capsys.readouterr().err.splitlines() == [
        "collect maze: 1,300 of 4,000 rows after 30 s, about 4 min to go",  # 300 in 30 s, 2,700 left
        "collect maze: 1,600 of 4,000 rows after 2 min, about 8 min to go",
    ]


def test_of_what_has_no_known_end_the_line_says_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with progress("download from here", "byte", None, clock=lambda: now) as advance:
        now = 7_200.0
        advance(5_000_000)
    assert capsys.readouterr().err == "download from here: 5,000,000 bytes after 2.0 h\n"


def test_on_a_terminal_there_is_a_bar_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    now = 0.0
    with progress("collect maze", "row", 4, clock=lambda: now) as advance:
        now = 99.0
        advance(4)
    assert "100%" in terminal.getvalue()
    assert "to go" not in terminal.getvalue()
