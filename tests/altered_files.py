"""What tests of a run's files share: a short run, what lies in a folder, and how files are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowrl.errors import UserError
from flowrl.experiment.resuming import Reached
from flowrl.experiment.stored import read_plan
from flowrl.run_folder import layout

TINY = ("--env=Pendulum-v1", "--preset=none", "--agent.hidden_dims=4", "--agent.batch_size=4", "--workers=1")
SCHEDULE = ("--log.interval=5", "--eval.interval=10", "--checkpoint.interval=10", "--eval.episodes=1")
RUN = (*TINY, *SCHEDULE, "--agent=bc", "--num_seeds=2")


def contents(folder: Path) -> dict[str, bytes]:
    """Returns all files of a folder but its lock."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != layout.LOCK}


def assert_refused(message: str, function: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=message) as caught:
        function()
    assert "\n" not in str(caught.value)


def reached(folder: Path, step: int = 20, *, evaluated: bool = True) -> tuple[Any, ...]:
    """Returns what `resuming.cuts` takes of a run whose checkpoint is at this step."""
    plan = read_plan(folder)[0]
    return folder, plan.settings, plan.runs, Reached(step, evaluated, ("eval",), 1, (10, 20))
