"""The plotting program, on made-up run directories."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import load, status
from run_dirs import make_run, make_sweep

from flowrl.errors import UserError
from flowrl.reports import drawing
from flowrl.run_folder import statistics

plot = load("experiments/plot.py")


def draw(*arguments: Path | str) -> list[dict[str, Any]]:
    """Runs the program and returns the recorded groups."""
    return record(*arguments)["groups"]


def record(*arguments: Path | str, drawn: list[str] | None = None) -> dict[str, Any]:
    """Runs the program and returns what it recorded; a drawing in SVG is added to `drawn`."""
    (out,) = [str(argument)[6:] for argument in arguments if str(argument).startswith("--out=")]
    assert plot.main(["plot.py", *map(str, arguments)]) == 0
    if drawn is None:
        assert Path(out).read_bytes().startswith(b"\x89PNG")
    else:
        drawn.append(Path(out).read_text())
    assert Path(out).stat().st_size > 10_000
    return json.loads(Path(f"{out}.json").read_text())


def test_numbers_by_hand(tmp_path: Path) -> None:
    curves = {0: [0.1, 0.2, 0.4, 0.6], 1: [0.3, 0.4, 0.5, 0.9]}
    (group,) = draw(make_run(tmp_path / "a", curves), f"--out={tmp_path / 'c.png'}")
    assert group["updates"] == [100, 200, 300, 400]
    np.testing.assert_allclose(group["mean"], [0.2, 0.3, 0.45, 0.75])
    np.testing.assert_allclose(group["interval_95"], [[0.1, 0.3], [0.2, 0.4], [0.4, 0.5], [0.6, 0.9]])
    np.testing.assert_allclose(group["per_seed"]["1"]["success"], curves[1])
    np.testing.assert_allclose([*group["final"]["per_seed"].values()], [0.4, 0.6])  # of the last three evaluations
    assert group["final"]["mean"] == pytest.approx(0.5)
    assert group["final"]["rule"].endswith("[200, 300, 400]")
    assert group["label"] == "gcbc, 2 seeds"


def test_the_record_is_traceable_and_free_of_machine_paths(tmp_path: Path) -> None:
    draw(make_run(tmp_path / "a", {0: [0.5]}), f"--out={tmp_path / 'c.png'}")
    text = (tmp_path / "c.png.json").read_text()
    (run,) = json.loads(text)["groups"][0]["runs"]
    assert run["git_commit"] == "0123456789abcdef-dirty"
    assert run["hardware"] == "an abacus, 2 cores"
    assert run["data"]["from"] == "collected by flowrl, not the official download, 5 of 9 episodes, seed 0"
    assert run["data"]["sha256"] == "ab" * 32
    assert "/home/me" not in text
    assert str(tmp_path) not in text


def test_seeds_of_one_configuration_form_a_group_and_others_say_what_differs(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / "a", {0: [0.5, 0.6], 1: [0.5, 0.7]}),
        make_run(tmp_path / "b", {2: [0.4, 0.8]}),
        make_run(tmp_path / "c", {0: [0.1, 0.2]}, alpha=10.0),
        make_run(tmp_path / "d", {0: [0.1, 0.2]}, preset="quick", hidden_dims=[4]),
        make_run(tmp_path / "e", {0: [0.1, 0.2]}, agent="hiql"),
        make_run(tmp_path / "f", {0: [0.1, 0.2]}, env="pointmaze-large-navigate"),
    ]
    groups = draw(*folders, f"--out={tmp_path / 'c.png'}")
    assert [group["label"] for group in groups] == [
        "gcbc, preset=paper, agent.alpha=3.0, 3 seeds",
        "gcbc, preset=paper, agent.alpha=10.0, 1 seed",
        "gcbc, preset=quick, 1 seed",
        "hiql, 1 seed",
        "gcbc, 1 seed",
    ]
    assert [run["run_dir"] for run in groups[0]["runs"]] == ["a", "b"]
    assert groups[1]["interval_95"] == [None, None]
    expected = statistics.mean_interval(np.array([0.6, 0.7, 0.8]))
    np.testing.assert_allclose(groups[0]["interval_95"][-1], expected[1:])


def test_other_data_is_another_group(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "a", {0: [0.5]}), make_run(tmp_path / "b", {1: [0.5]}, sha="cd" * 32)]
    groups = draw(*folders, f"--out={tmp_path / 'c.png'}")
    assert len(groups) == 2
    assert "cdcdcdcd" in groups[1]["label"]


def test_an_unfinished_run_counts_where_all_its_seeds_were_evaluated(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", {0: [0.1, 0.2, 0.3], 1: [0.1, 0.2]})
    lines = (folder / "eval.jsonl").read_text().splitlines()
    torn = json.dumps(json.loads(lines[-1]) | {"step": 300, "task": 1})  # of seed 1: its task 2 never came
    (folder / "eval.jsonl").write_text("\n".join([*lines, torn, '{"step": 30']))
    (group,) = draw(folder, f"--out={tmp_path / 'c.png'}")
    assert group["updates"] == [100, 200]
    assert group["label"] == "gcbc, 2 seeds, unfinished: 200 of 300 updates"


def test_minutes_follow_from_the_rates(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", {0: [0.1, 0.2, 0.3, 0.4]})
    (group,) = draw(folder, f"--out={tmp_path / 'c.png'}", "--x=minutes")
    # 150 updates at 2.5/s are 60 s, the next 150 at 5/s 30 s; update 400 lies 100 updates at 5/s after the last line.
    np.testing.assert_allclose(group["minutes"], np.array([40, 70, 90, 110]) / 60)


@pytest.mark.parametrize("kind", ["final", "profile", "improvement", "sensitivity"])
def test_every_kind_is_drawn_with_its_numbers_and_what_they_come_from(tmp_path: Path, kind: str) -> None:
    folders = [
        make_run(tmp_path / f"{env}{alpha}", {0: [0.5, 0.6], 1: [0.1 * alpha, 0.7]}, env=env, alpha=alpha)
        for alpha in (0, 1, 10)
        for env in ("pointmaze-medium-navigate", "pointmaze-large-navigate")
    ]
    found = record(*folders, f"--kind={kind}", f"--out={tmp_path / 'c.png'}")
    assert found["kind"] == kind
    assert {panel["metric"] for panel in found["panels"]} == {"success"}
    assert len(found["panels"]) == (3 if kind in ("profile", "improvement") else 2)  # all environments together
    assert [run["run_dir"] for group in found["groups"] for run in group["runs"]] != []


@pytest.mark.slow
def test_many_configurations_with_odd_names_are_drawn(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(i), {0: [0.5], 1: [0.1]}, target=f"$x^{{{i}_<b>") for i in range(7)]
    for kind in ("curves", "final", "profile", "improvement", "sensitivity"):
        record(*folders, f"--kind={kind}", f"--out={tmp_path / 'c.png'}")


def test_of_many_groups_the_best_are_told_apart() -> None:
    few = drawing.styles([0.5, 0.2])
    assert few == [drawing.style(0), drawing.style(1)]
    found = drawing.styles([0.1 * index for index in range(10)])
    assert found[:2] == [drawing.FAINT] * 2
    assert found[2:] == [drawing.style(7 - index) for index in range(8)]


def assert_error(message: str, *arguments: Path | str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        plot.main(["plot.py", *map(str, arguments)])
    assert "\n" not in str(caught.value)


def test_bad_input_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "a", {0: [0.5]})
    bare = make_run(tmp_path / "b", {1: [0.5]})
    (bare / "eval.jsonl").unlink()
    (bare / "time.jsonl").unlink()
    strange = make_run(tmp_path / "strange", {1: [0.5]})
    (strange / "config.json").write_text("{}")
    assert_error("give one or more run directories")
    assert_error("nowhere is not a folder", "nowhere")
    assert_error("holds no run", tmp_path)
    assert_error("no evaluations in eval.jsonl", bare)
    assert_error("strange/config.json: command is missing; put the right file back", strange)
    assert_error("same seed 0", run, run)
    assert_error("choose updates or minutes", run, "--x=hours")
    assert_error("did you mean profile", run, "--kind=profiles")
    assert_error("no environment has two configurations", run, "--kind=improvement")
    assert_error("no two configurations differ in one setting only", run, "--kind=sensitivity")
    assert_error("end it in .png", run, "--out=curves.jpeg")
    assert_error("did you mean --out", run, "--outt=c.png")
    (bare / "eval.jsonl").write_text((run / "eval.jsonl").read_text())
    assert_error("use --x=updates", bare, "--x=minutes")
    other = make_run(tmp_path / "late", {5: [0.5, 0.6]})
    text = (other / "eval.jsonl").read_text().replace('"step": 100', '"step": 50').replace('"step": 200', '"step": 70')
    (other / "eval.jsonl").write_text(text)
    returns = make_run(tmp_path / "returns", {0: [0.5]}, agent="hiql")
    (returns / "eval.jsonl").write_text((returns / "eval.jsonl").read_text().replace("success", "return"))
    assert_error("a is judged by success, .*returns by return", run, returns, "--kind=final")
    long = make_run(tmp_path / "long", {6: [0.5, 0.6]})
    assert_error("share no evaluated update", other, long)


def test_what_is_no_run_or_has_no_evaluation_is_left_out_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, bare = make_run(tmp_path / "a", {0: [0.5]}), make_run(tmp_path / "bare", {1: [0.5]})
    (bare / "eval.jsonl").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "curves.png").touch()
    make_sweep(tmp_path / "waiting", begun=False)
    others = [tmp_path / name for name in ("bare", "curves.png", "empty", "waiting")]
    (group,) = draw(run, *others, f"--out={tmp_path / 'c.png'}")
    assert [one["run_dir"] for one in group["runs"]] == ["a"]
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 4
    for text, path in zip(warnings, others, strict=True):
        assert text.startswith("warning: left out: ")
        assert str(path) in text
    assert_error(f"none of the 4 runs has evaluations of mode eval; the first: {bare} has no evaluations", *others)
    assert_error("no part of the sweep in .* has begun", others[-1])
    assert_error("a has no evaluations of mode evl; choose --mode=eval", run, "--mode=evl")


def test_a_run_that_was_interrupted_and_begun_anew_counts_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make_run(tmp_path / "whole", {0: [0.5, 0.6, 0.7]})
    broken = make_run(tmp_path / "broken", {0: [0.5]})
    (broken / "config.json").write_bytes((whole / "config.json").read_bytes())
    other = make_run(tmp_path / "other", {0: [0.1]}, alpha=1.0)
    groups = draw(broken, whole, other, f"--out={tmp_path / 'c.png'}")
    assert [[run["run_dir"] for run in group["runs"]] for group in groups] == [["whole"], ["other"]]
    assert (
        capsys.readouterr().err
        == f"warning: left out: {broken} has seeds of which {whole} has come further; leave one out\n"
    )


def test_damaged_evaluations_are_not_averaged_around(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", {0: [0.1, 0.2, 0.3], 1: [0.1, 0.2, 0.3]})
    text = (folder / "eval.jsonl").read_text()
    draw(folder, f"--out={tmp_path / 'c.png'}")
    lines = text.splitlines(keepends=True)
    for damaged, message in (
        ([*lines[:3], lines[3][:9] + "\n", *lines[4:]], "eval.jsonl, line 4: it is damaged"),
        ([*lines[:3], *lines[4:]], "eval.jsonl has 3 of the 4 lines of step 200; put the right file back"),
        ([line for line in lines if '"step": 100' not in line], "has 0 of the 4 lines of step 100"),
        ([*lines, lines[-1]], "line 13: step 300 of mode eval, run 1, task 2 comes after step 300"),
        (
            [
                line.replace("success", name)
                for line, name in zip(lines, ["return"] + 11 * ["normalized_score"], strict=True)
            ],
            "not all lines have normalized_score",
        ),
    ):
        (folder / "eval.jsonl").write_text("".join(damaged))
        assert_error(message, folder)
    (folder / "eval.jsonl").write_text("".join(lines[:-1]))  # the newest may be under way
    (group,) = draw(folder, f"--out={tmp_path / 'c.png'}")
    assert group["updates"] == [100, 200]


@pytest.mark.parametrize("kind", ["curves", "final", "profile", "improvement", "sensitivity"])
@pytest.mark.parametrize("marked_by", ["diverged.json", "eval.jsonl"])
def test_a_diverged_run_is_marked_in_every_kind_of_picture(tmp_path: Path, kind: str, marked_by: str) -> None:
    folders = [make_run(tmp_path / str(i), {0: [0.5], 1: [0.1]}, alpha=float(i)) for i in range(2)]
    event = {"step": 50, "metric": "critic/loss", "run": 1, "seed": 1}
    if marked_by == "diverged.json":
        (folders[1] / marked_by).write_text(json.dumps([event]))
    else:
        text = (folders[1] / marked_by).read_text().replace('"run": 1', '"run": 1, "diverged": 50')
        (folders[1] / marked_by).write_text(text)
    drawn: list[str] = []
    found = record(*folders, f"--kind={kind}", f"--out={tmp_path / 'c.svg'}", drawn=drawn)
    names = [group["label"] for group in found["groups"]]
    assert ["diverged: seed 1" in name for name in names] == [False, True]
    assert ["seed 1 was not finite after 50" in str(group["runs"]) for group in found["groups"]] == [False, True]
    if kind == "sensitivity":
        assert found["panels"][0]["lines"][0]["diverged"] == [[], [1]]
    if kind == "final":
        assert [row["diverged"] for row in found["panels"][0]["configurations"]] == [[], [1]]
    assert "#ff0000" in drawn[0] or kind in ("profile", "improvement")  # a cross
    assert kind not in ("profile", "improvement") or "diverged: seed 1" in json.dumps(found["panels"])


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "a", {0: [0.5]})
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert_error(r"pip install -e '\.\[plot\]'", run, f"--out={tmp_path / 'c.png'}")
    assert not (tmp_path / "c.png.json").exists()


def test_the_program_exits_with_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert status("experiments/plot.py", tmp_path) == 2
    assert capfd.readouterr().err.splitlines() == [
        f"error: {tmp_path} holds no run (no config.json); give the --run_dir of a run"
    ]


FAULTS = {
    "flowrl/reports/drawing.py": [
        ("key=lambda index: -scores[index]", "key=lambda index: index", "test_of_many_groups_the_best_are_told_apart"),
    ],
    "flowrl/run_folder/evaluations.py": [
        (
            "        if counts[step] != each:\n",
            "        if False:\n",
            "test_damaged_evaluations_are_not_averaged_around",
        ),
        (
            'if sum("not_finite" not in line for line in told) <',
            'if 0 * sum("not_finite" not in line for line in told) > 0 *',
            "test_damaged_evaluations_are_not_averaged_around",
        ),
        (
            "            except LeftOut as error:\n                left_out.append(error)\n",
            "            except NotEvaluated as error:\n                left_out.append(error)\n",
            "test_what_is_no_run_or_has_no_evaluation_is_left_out_with_a_warning",
        ),
        (
            "and end(run) < end(other)]",
            "and end(run) > end(other)]",
            "test_a_run_that_was_interrupted_and_begun_anew_counts_once",
        ),
        ("    marked |= {", "    marked or {", "test_a_diverged_run_is_marked_in_every_kind_of_picture"),
        (
            'lines if "diverged" in line',
            '() if "diverged" in line',
            "test_a_diverged_run_is_marked_in_every_kind_of_picture",
        ),
    ],
    "flowrl/reports/curves.py": [
        (
            "if seeds := sorted(group.diverged):",
            "if seeds := []:",
            "test_a_diverged_run_is_marked_in_every_kind_of_picture",
        ),
    ],
    "flowrl/reports/figures.py": [
        (
            "for seed in diverged], **CROSS)",
            'for seed in diverged], ".")',
            "test_a_diverged_run_is_marked_in_every_kind_of_picture and sensitivity",
        ),
    ],
}
