"""The README's Python code runs, and its commands name real files, flags and agents."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import main, save_walks

from flowrl import agents

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/mine`, a goal-conditioned run."""
    folder = tmp_path_factory.mktemp("readme")
    names = ("--agent=gcbc", "--env=pointmaze-medium-navigate", "--preset=none")
    sizes = ("--agent.hidden_dims=4", "--agent.batch_size=8", "--steps=2", "--eval.episodes=0")
    data = save_walks(folder / "walks.npz")
    assert main(*names, *sizes, f"--data={data}", f"--run_dir={folder / 'runs' / 'mine'}") == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("code", PYTHON)
def test_python_code_runs(code: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    known: dict[str, Any] = {"observation": np.float32([1, 2]), "goal": np.float32([3, 4])}
    exec(compile(code, "README.md", "exec"), known)
    if "flowrl.load" in code:
        assert known["action"].shape == (2,)


def test_there_is_python_code() -> None:
    assert "flowrl.load(" in "".join(PYTHON)


def test_every_agent_has_a_row_and_every_link_a_file() -> None:
    for name in agents.names():
        assert re.search(rf"^\| (`\w+`, )*`{name}`(, `\w+`)* \|", README, re.MULTILINE), name
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    for program in re.findall(r"experiments/\w+\.py", README):
        assert (ROOT / program).exists()
