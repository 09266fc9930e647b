"""OGBench's format of datasets: one row per step, the last of each episode marked in `terminals`.

Rewards of its single tasks, and its compact goals, are computed by OGBench's own functions.
"""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from flowrl.tasks import ends as marks
from flowrl.tasks.fields import Arrays, Expected, Fields, Reading
from flowrl.tasks.storage import opened
from flowrl.tasks.task import Task

_BUTTONS = ("scene", "puzzle")  # the environments that have them
_REMEDY = "use the official file or one that flowrl collects, which hold it"


def examine(path: Path, task: Task, expected: Expected, remedy: str, *, doubtful: bool) -> Reading:
    """Reads an .npz file in OGBench's format.

    Args:
        path: The file.
        task: What it is read for.
        expected: What it must fit.
        remedy: What messages advise where they know nothing better.
        doubtful: Whether to look for jumps where nothing says that an episode ends; mazes that teleport have them.

    Returns:
        `observations`, `actions` float32 and `terminals` bool, `[N, ...]`, and what `added` adds.

    Raises:
        UserError: The file is missing, damaged, or not such a dataset.
    """
    with opened(path, remedy) as file:
        arrays = _rows(file, expected)
        if doubtful and "teleport" not in task.name:
            marks.note_jumps(file, arrays["observations"], arrays["terminals"])
        rows = len(arrays["terminals"])
        if task.goals != "state":
            arrays |= added(file, task, rows)
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


# ------------------------------------------------------------------------------------------ what OGBench adds


def added(file: Fields, task: Task, rows: int) -> Arrays:
    """Returns what a dataset needs besides its observations, actions and terminals.

    Args:
        file: Holds the state of the simulator: `qpos`, and `button_states` where there are buttons.
        task: A single task, or one whose goals are compact.
        rows: Rows of the file, N.

    Returns:
        `rewards` and `masks` float32 `[N]` of a single task, or `oracle_reps` float32 `[N, G]`.

    Raises:
        UserError: The file lacks the state, or it is not that of this environment.
    """
    like = "as many as 'terminals' has"
    state: Arrays = {}
    needed = ["qpos", *(["button_states"] if task.dataset.startswith(_BUTTONS) else [])]
    for field in needed:
        if field not in file:
            raise file.error(f"the field {field!r} is missing, which {task.name} needs", _REMEDY)
        state[field] = file.matrix(field, rows, like)
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]  # which a SeededEpisodes replaces
    made: Any = _ResetBySeed(task.make())
    try:
        width = len((made.unwrapped.data if hasattr(made.unwrapped, "data") else made.unwrapped._data).qpos)
        if state["qpos"].shape[1] != width:
            raise file.error(f"'qpos' have size {state['qpos'].shape[1]}, but {task.env_id} has {width}", _REMEDY)
        return _rewards(state, task, made) if task.goals == "none" else _oracle_goals(state, task, made)
    except ValueError as error:
        shapes = ", ".join(f"{field!r} has shape {state[field].shape}" for field in needed)
        raise file.error(f"not the simulator's state in {task.env_id}: {shapes} ({error})", _REMEDY) from error
    finally:
        made.close()
        np.random.set_bit_generator(generator)  # type: ignore[attr-defined]


def _rewards(state: Arrays, task: Task, made: gymnasium.Env) -> Arrays:
    """Returns `rewards` and `masks` float32 `[N]` of a single task; a row's belong to its own state."""
    from ogbench import relabel_utils

    dataset = dict(state)
    relabel_utils.relabel_dataset(task.env_id, made, dataset)
    return {field: dataset[field] for field in ("rewards", "masks")}


def _oracle_goals(state: Arrays, task: Task, made: gymnasium.Env) -> Arrays:
    """Returns `oracle_reps` float32 `[N, G]`: each row's state as OGBench's compact goal."""
    from ogbench import relabel_utils

    dataset = dict(state)
    relabel_utils.add_oracle_reps(task.env_id, made, dataset)
    return {"oracle_reps": dataset["oracle_reps"]}


class _ResetBySeed(gymnasium.Wrapper):
    """Lets OGBench's functions reset a seeded environment; the task, unlike the start, does not depend on the seed."""

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        """Starts the episode of seed 0."""
        return self.env.reset(seed=0)
