"""The README's Python code runs, and its commands name real files, flags and agents."""

import re
from pathlib import Path

import pytest

from flowrl import agents

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", PYTHON)
def test_python_code_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_there_is_python_code() -> None:
    assert PYTHON


def test_every_agent_has_a_row_and_every_link_a_file() -> None:
    for name in agents.names():
        assert f"| `{name}` |" in README
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    for program in re.findall(r"experiments/\w+\.py", README):
        assert (ROOT / program).exists()
