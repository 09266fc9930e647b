"""The report on runs, on made-up run directories."""

import base64
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from commands import load, status
from run_dirs import make_run, make_sweep

from flowrl.errors import UserError

report = load("experiments/report.py")
VOID = ("img", "meta")


class Page(HTMLParser):
    """Reads a page: its text, and its attributes that name something to load or to run."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []
        self.elements: list[str] = []
        self.classes: set[str | None] = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.open += [] if tag in VOID else [tag]
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self.classes |= {value for name, value in attrs if name == "class"}
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def write(*arguments: Path | str) -> Page:
    (out,) = [Path(str(argument)[6:]) for argument in arguments if str(argument).startswith("--out=")]
    assert report.main(["report.py", *map(str, arguments)]) == 0
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")] == []
    return Page(out.read_text("ascii"))


@pytest.mark.slow
def test_the_page_holds_all_and_loads_nothing(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / f"run{alpha}", {seed: [0.1, 0.2, 0.3 + 0.1 * seed] for seed in range(3)}, alpha=alpha)
        for alpha in (1.0, 10.0)
    ]
    page = write(*folders, f"--out={tmp_path / 'new' / 'report.html'}")
    assert all(link.startswith(("data:image/png;base64,", "data:application/json;base64,")) for link in page.links)
    assert page.elements.count("img") == 5
    assert not {"script", "link", "iframe", "object", "form"} & set(page.elements)
    images = [base64.b64decode(link.split(",")[1]) for link in page.links if "png" in link]
    assert all(image.startswith(b"\x89PNG") for image in images)
    numbers = [json.loads(base64.b64decode(link.split(",")[1])) for link in page.links if "json" in link]
    assert [found["kind"] for found in numbers] == ["curves", "final", "profile", "improvement", "sensitivity"]
    # The seeds' finals are .2, .233 and .267.
    for part in ("23.3 % [20.0, 26.7]", "0: 20.0 %", "2: 26.7 %", "[100, 200, 300]", "an abacus, 2 cores", "ab" * 6):
        assert part in page.text
    assert "--agent.alpha=10.0" in page.text
    assert "0123456789abcdef-dirty" in page.text
    assert re.search(r": 0\.50 \[0\.\d+, 0\.\d+\]; the runs do not tell the two apart\.", page.text)
    assert str(tmp_path) not in page.text


@pytest.mark.slow
def test_text_from_runs_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>&amp;'
    folders = [
        make_run(tmp_path / f"<b>&{i}", {0: [0.5]}, env='"><img src=x>', preset="none", target=evil * i) for i in (1, 2)
    ]
    config = (folders[0] / "config.json").read_text()
    (folders[0] / "config.json").write_text(config.replace("an abacus", evil.replace('"', "'")))
    page = write(*folders, f"--out={tmp_path / 'report.html'}")
    assert "script" not in page.elements
    assert "b" not in page.elements
    assert page.elements.count("img") == 5
    assert evil in page.text
    assert evil.replace('"', "'") in page.text
    assert "<b>&1" in page.text


@pytest.mark.slow
def test_warnings_say_what_may_not_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished = make_run(tmp_path / "unfinished", {0: [0.1, 0.2], 1: [0.1, 0.2]}, steps=400)
    (unfinished / "diverged.json").write_text(json.dumps([{"step": 250, "metric": "critic/loss", "run": 1, "seed": 1}]))
    other = make_run(tmp_path / "other", {seed: [0.5] * 4 for seed in range(3)}, alpha=1.0, sha="cd" * 32)
    bare = make_run(tmp_path / "bare", {7: [0.5]}, agent="hiql")
    (bare / "eval.jsonl").unlink()
    broken = make_run(tmp_path / "broken", {7: [0.5]}, agent="gcivl")
    (broken / "eval.jsonl").unlink()
    (broken / "diverged.json").write_text((unfinished / "diverged.json").read_text())
    page = write(unfinished, other, bare, broken, f"--out={tmp_path / 'report.html'}")
    for part in (
        "left out: bare has no evaluations",
        "left out: broken diverged before its first evaluation (critic/loss of seed 1",
        "unfinished: 200 of 400 updates",
        "unfinished diverged: critic/loss of seed 1 was not finite after 250",
        "2 seeds; intervals from fewer than 3 seeds say little",
        "the final score averages 2 evaluations instead of 3",
        "seeds differ: gcbc, agent.alpha=3.0, data=",
        "final scores come from different evaluations",
        "trained on different data",
        "local changes that no commit holds: unfinished, other",
    ):
        assert part in page.text
    assert "warning: left out: bare" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_that_can_be_compared_give_no_warning(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / str(alpha), {seed: [0.1, 0.2, alpha + 0.01 * seed] for seed in range(3)}, alpha=alpha)
        for alpha in (0.4, 0.8)
    ]
    for folder in folders:
        (folder / "config.json").write_text((folder / "config.json").read_text().replace("-dirty", ""))
    page = write(*folders, f"--out={tmp_path / 'report.html'}")
    assert "Warnings None." in page.text
    assert "Best: gcbc, agent.alpha=0.8" in page.text
    assert "of 3 runs against 3 that happens once in 20 times by chance alone" in page.text


@pytest.mark.slow
def test_no_configuration_is_called_best_from_one_seed(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / "high", {0: [0.9]}, alpha=1.0),
        make_run(tmp_path / "low", {0: [0.5], 1: [0.4]}, alpha=2.0),
    ]
    page = write(*folders, f"--out={tmp_path / 'report.html'}")
    assert "No best: of the two highest one has a single seed" in page.text
    assert "Best:" not in page.text
    assert "best" not in page.classes
    make_run(tmp_path / "more", {1: [0.8]}, alpha=1.0)
    page = write(*folders, tmp_path / "more", f"--out={tmp_path / 'report.html'}")
    assert "Best: gcbc, agent.alpha=1.0" in page.text
    assert "best" in page.classes


def test_a_folder_that_is_no_run_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    run = make_run(tmp_path / "a", {0: [0.5]})
    page = write(run, tmp_path / "empty", make_sweep(tmp_path / "later", begun=False), f"--out={tmp_path / 'r.html'}")
    assert "left out: empty holds no run (no config.json)" in page.text
    assert "left out: no part of the sweep in later has begun" in page.text
    assert "warning: left out: empty holds no run" in capsys.readouterr().err
    assert str(tmp_path) not in page.text


def test_a_single_configuration_is_reported_without_comparisons(tmp_path: Path) -> None:
    page = write(make_run(tmp_path / "a", {0: [0.5]}), f"--out={tmp_path / 'report.html'}")
    assert "Only one configuration: nothing to compare." in page.text
    assert page.text.count("Not drawn: no") == 2


@pytest.mark.slow
def test_environments_are_pooled_where_they_can_be(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / env, {seed: [0.5 + 0.1 * seed] for seed in range(3)}, env=env)
        for env in ("pointmaze-medium-navigate", "pointmaze-large-navigate")
    ]
    page = write(*folders, f"--out={tmp_path / 'report.html'}")
    assert "All 2 environments: Success in %" in page.text
    assert re.search(r"Optimality gap .* gcbc 60\.0 % \[", page.text)


def test_bad_input_is_named_with_its_remedy(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", {0: [0.5]})
    bare = make_run(tmp_path / "b", {1: [0.5]})
    (bare / "eval.jsonl").unlink()
    out = f"--out={tmp_path / 'report.html'}"
    for message, arguments in (
        ("give one or more run directories", ()),
        ("holds no run", (tmp_path,)),
        ("end it in .html", (run, "--out=report.pdf")),
        ("no evaluations in eval.jsonl", (bare, out)),
        ("none of the 2 runs has evaluations", (bare, bare, out)),
        ("same seed 0", (run, run, out)),
        ("did you mean --out", (run, "--outt=x.html")),
    ):
        with pytest.raises(UserError, match=message) as caught:
            report.main(["report.py", *map(str, arguments)])
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_the_program_exits_with_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert status("experiments/report.py", tmp_path) == 2
    assert capfd.readouterr().err.splitlines() == [
        f"error: {tmp_path} holds no run (no config.json); give the --run_dir of a run"
    ]


FAULTS = {
    "flowrl/reports/comparisons.py": [
        ("(first, *rest[:1])", "(first, *rest[:1])[1:]", "test_no_configuration_is_called_best_from_one_seed"),
    ],
}
