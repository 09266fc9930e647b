"""Rewards of OGBench's single tasks and its compact goals, computed by OGBench's own functions."""

from typing import Any

import gymnasium
import numpy as np

from flowrl import envs
from flowrl.data.fields import Arrays, Fields

_BUTTONS = ("scene", "puzzle")  # the environments that have them
_REMEDY = "use the official file or one that flowrl collects, which hold it"


def added(file: Fields, env: envs.EnvName, rows: int) -> Arrays:
    """Returns what a dataset needs besides its observations, actions and terminals.

    Args:
        file: Holds the state of the simulator: `qpos`, and `button_states` where there are buttons.
        env: A single task, or an environment whose goals are compact.
        rows: Rows of the file, N.

    Returns:
        `rewards` and `masks` float32 `[N]` of a single task, or `oracle_reps` float32 `[N, G]`.

    Raises:
        UserError: The file lacks the state, or it is not that of this environment.
    """
    like = "as many as 'terminals' has"
    state: Arrays = {}
    needed = ["qpos", *(["button_states"] if env.dataset.startswith(_BUTTONS) else [])]
    for field in needed:
        if field not in file:
            raise file.error(f"the field {field!r} is missing, which {env.name} needs", _REMEDY)
        state[field] = file.matrix(field, rows, like)
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]  # which a SeededEpisodes replaces
    made: Any = _ResetBySeed(envs.factory(env)())
    try:
        width = len((made.unwrapped.data if hasattr(made.unwrapped, "data") else made.unwrapped._data).qpos)
        if state["qpos"].shape[1] != width:
            raise file.error(f"'qpos' have size {state['qpos'].shape[1]}, but {env.env_id} has {width}", _REMEDY)
        return _rewards(state, env, made) if env.goals == "none" else _oracle_goals(state, env, made)
    except ValueError as error:
        shapes = ", ".join(f"{field!r} has shape {state[field].shape}" for field in needed)
        raise file.error(f"not the simulator's state in {env.env_id}: {shapes} ({error})", _REMEDY) from error
    finally:
        made.close()
        np.random.set_bit_generator(generator)  # type: ignore[attr-defined]


def _rewards(state: Arrays, env: envs.EnvName, made: gymnasium.Env) -> Arrays:
    """Returns `rewards` and `masks` float32 `[N]` of a single task; a row's belong to its own state."""
    from ogbench import relabel_utils

    dataset = dict(state)
    relabel_utils.relabel_dataset(env.env_id, made, dataset)
    return {field: dataset[field] for field in ("rewards", "masks")}


def _oracle_goals(state: Arrays, env: envs.EnvName, made: gymnasium.Env) -> Arrays:
    """Returns `oracle_reps` float32 `[N, G]`: each row's state as OGBench's compact goal."""
    from ogbench import relabel_utils

    dataset = dict(state)
    relabel_utils.add_oracle_reps(env.env_id, made, dataset)
    return {"oracle_reps": dataset["oracle_reps"]}


class _ResetBySeed(gymnasium.Wrapper):
    """Lets OGBench's functions reset a seeded environment; the task, unlike the start, does not depend on the seed."""

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        """Starts the episode of seed 0."""
        return self.env.reset(seed=0)
