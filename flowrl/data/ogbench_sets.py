"""OGBench's format of datasets: one row per step, the last of each episode marked in `terminals`."""

from pathlib import Path

import numpy as np

from flowrl import envs
from flowrl.data import ends as marks
from flowrl.data import ogbench_tasks
from flowrl.data.fields import Arrays, Expected, Fields, Reading
from flowrl.data.storage import opened


def examine(path: Path, env: envs.EnvName, expected: Expected, remedy: str, *, doubtful: bool) -> Reading:
    """Reads an .npz file in OGBench's format.

    Args:
        path: The file.
        env: What it is read for.
        expected: What it must fit.
        remedy: What messages advise where they know nothing better.
        doubtful: Whether to look for jumps where nothing says that an episode ends; mazes that teleport have them.

    Returns:
        `observations`, `actions` float32 and `terminals` bool, `[N, ...]`, and what `ogbench_tasks.added` adds.

    Raises:
        UserError: The file is missing, damaged, or not such a dataset.
    """
    with opened(path, remedy) as file:
        arrays = _rows(file, expected)
        if doubtful and "teleport" not in env.name:
            marks.note_jumps(file, arrays["observations"], arrays["terminals"])
        rows = len(arrays["terminals"])
        if env.goals != "state":
            arrays |= ogbench_tasks.added(file, env, rows)
        return file.reading(arrays, rows)


def _rows(file: Fields, expected: Expected) -> Arrays:
    terminals = file.flags("terminals")
    rows, like = len(terminals), "as many as 'terminals' has"
    if terminals.all():
        raise file.error("'terminals' leaves no transition, since every row ends an episode")
    if not terminals[-1]:
        raise file.error("'terminals' is not set on the last row", "mark the last row of the last episode")
    observations = file.matrix("observations", rows, like, expected.observation_dim)
    actions = file.actions("actions", rows, like, Expected(action_dim=expected.action_dim))
    remedy = "mark the last row of every episode in 'terminals', as OGBench does"
    if "next_observations" in file:
        unmarked, _ = marks.successors(file, observations, terminals, wanted=np.zeros(rows, bool))
        if unmarked.any():
            raise file.error(f"an episode ends in row {int(np.argmax(unmarked))} by 'next_observations' alone", remedy)
    marks.check_other_names(file, terminals, remedy)
    return {"observations": observations, "actions": actions, "terminals": terminals}
