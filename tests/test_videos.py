"""Videos: they show the evaluation's own episodes, and a machine that cannot draw loses nothing else."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ROOT, main, save_walks, sweep
from run_dirs import make_run

from flowrl.envs import camera, making
from flowrl.errors import UserError
from flowrl.experiment import videos
from flowrl.run_folder import logs
from flowrl.training import evaluation

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
MAZE = (
    "--agent=gcbc", "--env=pointmaze-medium-navigate", "--preset=none", "--agent.hidden_dims=4", "--workers=1",
    "--agent.batch_size=4", "--steps=20", "--eval.interval=20", "--eval.episodes=2", "--num_seeds=2", "--log.csv",
)  # fmt: skip
PENDULUM = (
    "--agent=bc", "--env=Pendulum-v1", "--preset=none", "--agent.hidden_dims=4", "--agent.batch_size=4", "--workers=1",
    "--online.steps=20", "--online.buffer_size=20", "--eval.interval=20", "--eval.episodes=2",
)  # fmt: skip


@functools.cache
def platform() -> str | None:
    """Returns how MuJoCo can draw here."""
    return camera.opengl()


@pytest.fixture
def drawing() -> None:
    """Skips where nothing can be drawn."""
    if platform() is None:
        pytest.skip("this machine has no OpenGL for MuJoCo: neither EGL nor OSMesa draws in a trial process")


def frames(path: Path) -> tuple[str, np.ndarray]:
    """Returns what ffmpeg says of a video, and its frames uint8 `[T, H, W, 3]`."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    facts = next(line for line in done.stderr.decode().splitlines() if " Video: " in line)
    width, height = map(int, re.findall(r", (\d+)x(\d+)", facts)[0])
    return facts, np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)


def short_episodes(env_id: str, **given: Any) -> Any:
    """Makes an environment whose episodes end after 8 steps."""
    return _make(env_id, **given, max_episode_steps=8)


_make = making.make


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens all episodes; also those of other processes, to which functions go by their names."""
    monkeypatch.setattr(making, "make", short_episodes)
    monkeypatch.setattr(camera, "filming", short_film)


def short_film(*arguments: Any) -> Any:
    """As `camera.filming`, of short episodes."""
    making.make = short_episodes  # type: ignore[assignment]
    return _film(*arguments)


_film = camera.filming


# ----------------------------------------------------------------------------------------------------- films


@pytest.mark.slow
def test_videos_show_the_evaluation_of_the_first_run(
    drawing: None, brief: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "MAX_SLOTS", 8)
    folder, data = tmp_path / "run", save_walks(tmp_path / "tiny.npz")
    assert main(*MAZE, f"--data={data}", f"--run_dir={folder}", "--log.video_episodes=2") == 0
    index = videos.index(folder)
    assert (index["step"], index["unit"], index["seed"], index["episodes"]) == (20, "update", 0, 2)
    names = [f"task{task}_episode{number}.mp4" for task in range(1, 6) for number in range(2)]
    assert [film["file"] for film in index["videos"]] == names
    for line in logs.read_lines(folder / "eval.jsonl"):
        own = [film for film in index["videos"] if film["task"] == line["task"]]
        if line["run"] == 0:
            for name in ("success", "return", "length"):
                assert np.mean([film[name] for film in own]) == line[name]
    for name in names:
        facts, shown = frames(folder / "videos" / name)
        assert "h264" in facts
        assert "yuv420p" in facts
        assert (folder / "videos" / name).stat().st_size < 300_000
        # 8 of 8 steps and the start.
        assert shown.shape == (9, camera.SIZE, camera.SIZE, 3)
        pink = (shown[0, ..., 0] > 220) & (abs(shown[0, ..., 1].astype(int) - 130) < 40) & (shown[0, ..., 2] > 120)
        assert 5 < pink.sum() < 500  # the goal
        assert (shown[0] != shown[-1]).any()
    written = (folder / "videos" / names[0]).stat().st_mtime_ns
    assert main("--resume", f"--run_dir={folder}") == 0  # all of it is there
    assert (folder / "videos" / names[0]).stat().st_mtime_ns == written
    assert main("--resume", f"--run_dir={folder}", "--log.video_episodes=1") == 0
    assert sorted(path.name for path in (folder / "videos").glob("*.mp4")) == names[::2]
    settings = logs.read_json(folder / "config.json")
    assert settings["settings"]["log.video_episodes"] == 1
    assert "video" not in settings["command"]


@pytest.mark.slow
def test_a_finished_run_without_videos_gets_them_when_resumed(tmp_path: Path) -> None:
    """Pygame draws the pendulum, without OpenGL."""
    pytest.importorskip("pygame", reason="Gymnasium draws the pendulum with pygame, which is not installed")
    assert main(*PENDULUM, f"--run_dir={tmp_path}") == 0
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert main("--resume", f"--run_dir={tmp_path}", "--log.video_episodes=1") == 0
    (film,) = videos.index(tmp_path)["videos"]
    shown = frames(tmp_path / "videos" / film["file"])[1]
    assert film["length"] == 200
    assert len(shown) == 101  # every second step, and the start
    assert "success" not in film
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_finished_sweep_gets_them_of_its_groups(tmp_path: Path) -> None:
    pytest.importorskip("pygame", reason="Gymnasium draws the pendulum with pygame, which is not installed")
    grid = ("--agent.learning_rate=0.001,0.01", "--agent.hidden_dims=4:2", f"--run_dir={tmp_path}")
    grid = (*grid, "--max_episode_steps=40")
    assert sweep(*[flag for flag in PENDULUM if "hidden_dims" not in flag], *grid) == 0
    before = [(tmp_path / group / "metrics.jsonl").read_bytes() for group in ("group1", "group2")]
    assert sweep("--resume", f"--run_dir={tmp_path}", "--log.video_episodes=1") == 0
    for group, content in zip(("group1", "group2"), before, strict=True):
        index = videos.index(tmp_path / group)
        assert index["agent.learning_rate"] == 0.001
        assert (tmp_path / group / "videos" / index["videos"][0]["file"]).stat().st_size > 1000
        assert (tmp_path / group / "metrics.jsonl").read_bytes() == content


# ---------------------------------------------------------------------------------------- where nothing is drawn


def crash(*_: Any) -> Any:
    """Ends the process as a driver that crashes does."""
    os._exit(139)


def broken(*_: Any) -> Any:
    """Fails as without a driver."""
    raise RuntimeError("no EGL device")


@pytest.mark.slow
@pytest.mark.parametrize("way", [crash, broken])
def test_a_machine_that_cannot_draw_keeps_its_results(
    way: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(camera, "filming", way)
    monkeypatch.setattr(camera, "opengl", lambda: None)
    assert main(*PENDULUM, "--log.video_episodes=1", f"--run_dir={tmp_path}") == 0
    shown = "".join(capsys.readouterr())
    assert shown.count("warning: no videos (") == 1
    assert "install EGL or OSMesa" in shown
    reason = {crash: "the process that draws died", broken: "RuntimeError: no EGL device"}[way]
    assert f"({reason})" in shown
    assert logs.read_json(tmp_path / "summary.json")["metric"] == "return"
    assert videos.index(tmp_path) == {}


def test_the_platform_is_tried_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(camera, "_draws", lambda name: bool(tried.append(name)) or name == "osmesa")
    assert camera.opengl() == "osmesa"
    assert tried == ["egl", "osmesa"]
    monkeypatch.setenv("DISPLAY", ":0")
    assert camera.opengl() == "osmesa"
    assert tried[2:] == ["glfw", "egl", "osmesa"]
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert camera.opengl() is None
    assert tried[5:] == ["egl"]
    monkeypatch.undo()
    assert not camera._draws("no-such-platform")


def test_the_drawing_process_imports_mujoco_after_the_choice() -> None:
    code = (
        "import sys, flowrl.envs.camera, flowrl.envs.workers; print([x for x in ('mujoco', 'jax') if x in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_more_videos_than_episodes_are_refused(tmp_path: Path) -> None:
    for count, message in (
        (3, "--log.video_episodes=3 is more than the --eval.episodes=2"),
        (-1, "--log.video_episodes=-1 is"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            main(*PENDULUM, f"--log.video_episodes={count}", f"--run_dir={tmp_path / 'run'}")
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------- episodes played again


@pytest.mark.slow
def test_played_again_in_any_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer slots than episodes, and another run beside: outcomes are those of the evaluation."""
    from test_evaluate import MAKE, keys_of, policies_of, wanderer

    sizes = dict(tasks=5, episodes=2, workers=1, slots=6)
    evaluator = evaluation.Evaluator(wanderer(), MAKE, keys_of(3, 4), **sizes)  # type: ignore[arg-type]
    try:
        policies = policies_of(2)
        whole, calls = evaluator(policies), []
        again = evaluator.play_first_run(policies, MAKE, 1, lambda done, total: calls.append((done, total)))
    finally:
        evaluator.close()
    for name in ("successes", "returns", "lengths"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name)[:1, :, :1])
    assert calls[-1] == (5, 5)
    assert len(calls) == again.lengths.sum()


# ------------------------------------------------------------------------------------------------------- report


def test_the_report_shows_the_first_video_of_each_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_report import write

    folder = make_run(tmp_path / "a", {0: [0.5]})
    (folder / "videos").mkdir()
    films = []
    for task, number in ((1, 0), (1, 1), (2, 0), (3, 0)):
        name = f"task{task}_episode{number}.mp4"
        (folder / "videos" / name).write_bytes(bytes([task]) * 1000)
        films.append(
            {"file": name, "task": task, "episode": number, "success": float(task == 1), "return": 1, "length": 1234}
        )
    (folder / "videos" / "task3_episode0.mp4").unlink()
    index = {"step": 400, "unit": "update", "seed": 0, "agent.alpha": 0.5, "episodes": 2, "videos": films}
    (folder / "videos" / "videos.json").write_text(json.dumps(index))
    page = write(folder, f"--out={tmp_path / 'report.html'}")
    assert [link[:22] for link in page.links if "video" in link] == ["data:video/mp4;base64,"] * 2
    assert page.elements.count("video") == 2
    assert "a: seed 0, agent.alpha 0.5, after update 400" in page.text
    assert "Task 1: success, 1,234 steps Task 2: no success, 1,234 steps" in page.text
    monkeypatch.setattr(sys.modules["test_report"].report, "MOST_VIDEO_BYTES", 1500)
    page = write(folder, f"--out={tmp_path / 'report.html'}")
    assert page.elements.count("video") == 1
    assert "Task 2: no success, 1,234 steps; left out, for this page holds no more than 0.0015 MB" in page.text


FAULTS = {
    "flowrl/training/evaluation.py": [
        ("int(self._seeds[0, number])", "int(self._seeds[-1, number])", "test_played_again_in_any_row"),
        ("task * each + number for", "task * episodes + number for", "test_played_again_in_any_row"),
    ],
    "flowrl/envs/camera.py": [
        ("[given] if given else ", "", "test_the_platform_is_tried_apart"),
    ],
    "flowrl/experiment/videos.py": [
        ("except (UserError, RuntimeError)", "except UserError", "test_a_machine_that_cannot_draw_keeps_its_results"),
    ],
}
