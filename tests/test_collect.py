import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import ogbench
import pytest

from flowrl import tasks
from flowrl.cli import flags
from flowrl.collection import collect, mazes
from flowrl.envs import making
from flowrl.errors import UserError
from flowrl.machine import files

ROOT = Path(__file__).parents[1]
STITCH, NAVIGATE = "pointmaze-medium-stitch", "pointmaze-medium-navigate"
RECIPES = {name: tasks.parse(name).recipe() for name in (STITCH, NAVIGATE)}


def program():
    spec = importlib.util.spec_from_file_location("experiments_collect", ROOT / "experiments" / "collect.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hashes(target):
    return json.loads(target.with_suffix(".json").read_text())["sha256"]


def make(name):
    known = tasks.parse(name)
    recipe = known.recipe()
    return making.make(known.env_id, terminate_at_goal=False, max_episode_steps=recipe.length), recipe


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The set that others are compared with, made by one process."""
    return collect.collect(RECIPES[STITCH], tmp_path_factory.mktemp("one"), episodes=20, seed=3, workers=1)


@pytest.fixture(scope="module")
def stitch():
    return make(STITCH)


@pytest.fixture(scope="module")
def navigate():
    return make(NAVIGATE)


# ---------------------------------------------------------------------------------------------------- episodes


@pytest.mark.parametrize("name", [STITCH, "pointmaze-teleport-stitch"])
def test_an_episode_depends_on_seed_and_index_alone(name):
    (env, recipe), (other, _) = make(name), make(name)
    expected = collect.play(env, recipe, 5, 11)  # in the teleport maze, one that draws exits
    collect.play(other, recipe, 5, 6)
    np.random.seed(1)  # noqa: NPY002
    again = collect.play(other, recipe, 5, 11)
    for field in expected:
        np.testing.assert_array_equal(expected[field], again[field])
    for seed, index in ((5, 12), (6, 11), (11, 5)):
        assert not np.array_equal(collect.play(env, recipe, seed, index)["actions"], expected["actions"])


def test_rows_follow_ogbench(navigate):
    env, recipe = navigate
    episode = collect.play(env, recipe, 0, 0)
    assert {field: (array.shape, array.dtype) for field, array in episode.items()} == {
        "observations": ((1001, 2), np.float32),
        "actions": ((1001, 2), np.float32),
        "terminals": ((1001,), np.bool_),
        "qpos": ((1001, 2), np.float32),
        "qvel": ((1001, 2), np.float32),
    }
    assert np.flatnonzero(episode["terminals"]).tolist() == [1000]
    np.testing.assert_array_equal(episode["observations"], episode["qpos"])
    # A free step moves by a fifth of the action; a step along a wall by less.
    moved = np.diff(episode["observations"], axis=0)
    assert np.median(np.abs(moved - 0.2 * episode["actions"][:-1])) < 1e-3
    assert np.all(np.abs(moved) < 0.4)
    maze = env.unwrapped
    cells = {maze.xy_to_ij(position) for position in episode["observations"]}
    assert cells <= set(mazes.free_cells(maze.maze_map))
    assert len(cells) > 8  # an episode reaches several goals


def test_teleported_rows_hold_the_entrance_seen_and_the_exit_simulated():
    env, recipe = make("pointmaze-teleport-navigate")
    episode = collect.play(env, recipe, 5, 8)
    jumps = np.linalg.norm(episode["observations"] - episode["qpos"], axis=1) > 1.0
    assert jumps.any()
    info = env.unwrapped._teleport_info
    for seen, simulated in zip(episode["observations"][jumps], episode["qpos"][jumps], strict=True):
        assert min(np.linalg.norm(seen - xy) for xy in info["teleport_in_xys"]) <= 1.5
        assert min(np.linalg.norm(simulated - xy) for xy in info["teleport_out_xys"]) < 1e-6


# ------------------------------------------------------------------------------------------------- collections


@pytest.mark.parametrize(("train", "validation"), [(1, 1), (20, 2), (1000, 100), (37, 3)])
def test_blocks_cover_each_episode_once_and_never_mix_the_files(train, validation):
    cut = collect.blocks(collect.Job(NAVIGATE, 0, train, validation), 1001)
    assert [episode for block in cut for episode in range(*block)] == list(range(train + validation))
    assert all(block.stop <= train or block.first >= train for block in cut)


@pytest.mark.slow
def test_the_number_of_processes_does_not_matter(undisturbed, tmp_path):
    two = collect.collect(RECIPES[STITCH], tmp_path, episodes=20, seed=3, workers=2)
    assert hashes(two) == hashes(undisturbed)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [
        f"{STITCH}-v0-val.npz",
        f"{STITCH}-v0.json",
        f"{STITCH}-v0.npz",
    ]


def test_files_hold_the_episodes_in_order(undisturbed, stitch):
    env, recipe = stitch
    for path, episodes in ((undisturbed, range(20)), (undisturbed.with_name(f"{STITCH}-v0-val.npz"), range(20, 22))):
        with np.load(path) as file:
            data = dict(file)
        assert list(data) == ["observations", "actions", "terminals", "qpos", "qvel"]
        assert np.flatnonzero(data["terminals"]).tolist() == [201 * n + 200 for n in range(len(episodes))]
        for position in (0, len(episodes) - 1):
            expected = collect.play(env, recipe, 3, episodes[position])
            for field, array in expected.items():
                rows = data[field][201 * position : 201 * (position + 1)]
                assert rows.dtype == array.dtype
                np.testing.assert_array_equal(rows, array)


def test_ogbench_reads_the_files(undisturbed):
    env, train, validation = ogbench.make_env_and_datasets(f"{STITCH}-v0", dataset_path=str(undisturbed))
    env.close()
    assert train["observations"].shape == train["next_observations"].shape == (20 * 200, 2)
    assert validation["actions"].shape == (2 * 200, 2)
    assert train["terminals"].sum() == 20


def test_provenance_says_how_it_was_made(undisturbed):
    made = json.loads(undisturbed.with_suffix(".json").read_text())
    assert "not the official download" in made["made"]
    assert (made["env"], made["behaviour"], made["noise"], made["seed"]) == (STITCH, "stitch", 0.5, 3)
    assert (made["train"], made["validation"], made["published_episodes"]) == (20, 2, 5000)
    assert made["rows"] == {f"{STITCH}-v0.npz": 4020, f"{STITCH}-v0-val.npz": 402}
    assert {"flowrl", "python", "ogbench", "mujoco", "gymnasium", "numpy"} == set(made["versions"])
    for name, digest in made["sha256"].items():
        assert files.sha256(undisturbed.with_name(name)) == digest
    assert collect.provenance(undisturbed) == made


def test_provenance_of_another_file_does_not_count(undisturbed, tmp_path):
    copy = tmp_path / undisturbed.name
    shutil.copy(undisturbed.with_suffix(".json"), copy.with_suffix(".json"))
    copy.write_bytes(undisturbed.read_bytes() + b" ")
    assert collect.provenance(copy) is None


def test_what_is_there_is_neither_made_again_nor_overwritten(undisturbed, tmp_path, monkeypatch):
    folder = shutil.copytree(undisturbed.parent, tmp_path / "copy")
    monkeypatch.setattr(collect, "_run", lambda *_: pytest.fail("collected again"))
    assert collect.collect(RECIPES[STITCH], folder, episodes=20, seed=3) == folder / undisturbed.name
    for changed in ({"episodes": 21, "seed": 3}, {"episodes": 20, "seed": 4}):
        with pytest.raises(UserError, match="has 20 episodes of seed 3; move it"):
            collect.collect(RECIPES[STITCH], folder, **changed)
    (folder / f"{STITCH}-v0.json").unlink()
    with pytest.raises(UserError, match="is no collection of flowrl"):
        collect.collect(RECIPES[STITCH], folder, episodes=20, seed=3)


@pytest.mark.slow
def test_parts_of_another_collection_are_not_used(undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(collect, "_merge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            collect.collect(RECIPES[STITCH], tmp_path, episodes=20, seed=4, workers=1)
    assert len(list((tmp_path / f"{STITCH}-v0.parts").glob("*.npz"))) > 16
    assert hashes(collect.collect(RECIPES[STITCH], tmp_path, episodes=20, seed=3, workers=1)) == hashes(undisturbed)


def start(folder):
    command = [sys.executable, ROOT / "experiments" / "collect.py", f"--env={NAVIGATE}", "--episodes=20", "--workers=1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, f"--out={folder}"],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    parts = folder / f"{NAVIGATE}-v0.parts"
    deadline = time.monotonic() + 60
    while len(list(parts.glob("*.npz"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()
    return process, parts


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at /proc")
def test_a_killed_collection_leaves_no_process_and_continues(tmp_path, monkeypatch):
    process, parts = start(tmp_path / "killed")
    workers = children(process.pid)
    assert workers
    process.kill()
    process.wait()
    process.stderr.close()
    deadline = time.monotonic() + 20
    while any(
        Path(f"/proc/{worker}/cmdline").exists() and Path(f"/proc/{worker}/cmdline").read_bytes() for worker in workers
    ):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.02)
    kept = {part.name for part in parts.glob("*.npz")}
    assert len(kept) >= 2
    assert not (tmp_path / "killed" / f"{NAVIGATE}-v0.npz").exists()

    bars = []
    real = collect.Progress
    monkeypatch.setattr(collect, "Progress", lambda *a: bars.append(a) or real(*a))
    continued = collect.collect(RECIPES[NAVIGATE], tmp_path / "killed", episodes=20, workers=2)
    assert bars[0][3] >= 2 * 1001  # what was stored is not collected again
    assert hashes(continued) == hashes(collect.collect(RECIPES[NAVIGATE], tmp_path / "whole", episodes=20, workers=2))
    assert not parts.exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at /proc")
@pytest.mark.parametrize(
    ("number", "told"),
    [(signal.SIGINT, "interrupted; the same command continues"), (signal.SIGTERM, "terminated")],
)
def test_a_signal_ends_in_one_line_and_keeps_the_parts(tmp_path, number, told):
    process, parts = start(tmp_path)
    for worker in children(process.pid):
        os.kill(worker, number)
    before, deadline = len(list(parts.glob("*.npz"))), time.monotonic() + 20
    while len(list(parts.glob("*.npz"))) < before + 6 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, "a worker did not leave the signal to its parent"
    os.killpg(process.pid, number)  # as a terminal or a batch system does: parent and workers alike
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    assert told in said.strip().splitlines()
    assert len(list(parts.glob("*.npz"))) >= 2


def test_a_block_that_is_half_written_does_not_count(tmp_path, monkeypatch):
    def half(file, **_):
        file.write(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(collect.np, "savez", half)
    with pytest.raises(KeyboardInterrupt):
        collect._collect_block(tmp_path, collect.Job(STITCH, 0, 1, 1), RECIPES[STITCH], collect.Block(0, 1))
    assert list(tmp_path.iterdir()) == []


def test_a_dead_process_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "_initialise", sys.exit)
    with pytest.raises(UserError, match="a collecting process died"):
        collect.collect(RECIPES[STITCH], tmp_path, episodes=2, workers=1)


def test_a_full_disk_is_said_before_anything_is_collected(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 50, 50))
    monkeypatch.setattr(collect, "_run", lambda *_: pytest.fail("started"))
    with pytest.raises(UserError, match="no disk space"):
        collect.collect(RECIPES[STITCH], tmp_path, episodes=5)


def test_two_collections_of_one_file_take_turns(tmp_path):
    script = (
        "import sys\nfrom pathlib import Path\nfrom flowrl.machine import files\n"
        "with files.exclusive(Path(sys.argv[1]), 'another'):\n print('in', flush=True)\n sys.stdin.readline()\n"
    )
    lock, environment = tmp_path / "lock", os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(lock)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as first:
        assert first.stdout.readline() == "in\n"
        with subprocess.Popen(command, env=environment, text=True, **pipes) as second:
            assert second.stderr.readline() == "waiting for another to finish\n"
            assert not select.select([second.stdout], [], [], 0.2)[0]  # it does wait
            first.kill()  # a lock must not outlive its holder
            assert second.stdout.readline() == "in\n"
            second.communicate("\n")


# ------------------------------------------------------------------------------------------------ command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which dataset"),
        (["--env=pointmaze-medum-navigate"], "did you mean pointmaze-medium-navigate?"),
        (["--env=humanoidmaze-large-navigate"], "--data=PATH"),
        (["--evn=x"], "unknown flag --evn; did you mean --env?"),
        (["pointmaze-medium-navigate"], "unexpected argument 'pointmaze-medium-navigate'"),
        ([f"--env={STITCH}", "--episodes=0"], "--episodes=0 is too small; the least is 1"),
        ([f"--env={STITCH}", "--episodes=many"], "--episodes=many"),
        ([f"--env={STITCH}", "--workers=0"], "--workers=0 is too small; the least is 1"),
        ([f"--env={STITCH}", "--seed=-1"], "--seed=-1 is too small; the least is 0"),
        ([f"--env={STITCH}", "--out=/dev/null/x"], "cannot write to /dev/null/x"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWRL_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["collect.py", *arguments])
    with pytest.raises(SystemExit) as exit_:
        flags.run(program().main)
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_help_and_default_folder(capsys, tmp_path, monkeypatch):
    assert program().main(["collect.py", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--episodes" in said
    assert "--workers" in said
    monkeypatch.setenv("FLOWRL_DATA", str(tmp_path))
    assert program().main(["collect.py", f"--env={STITCH}-v0", "--episodes=1", "--workers=1"]) == 0
    assert (tmp_path / "collected" / f"{STITCH}-v0.npz").exists()
