"""Trained policies, taken out of their run folders: to act with, in NumPy or in other JAX code.

All is read from the folder: neither the data nor the simulator that it was trained with is needed.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np

from flowrl import agents
from flowrl.agent import Agent
from flowrl.config import check, flatten, put, stacked
from flowrl.errors import UserError
from flowrl.networks import Spec
from flowrl.normalize import Normalizer
from flowrl.random_streams import root_keys
from flowrl.run_folder import formats, texts
from flowrl.run_folder.layout import CHECKPOINTS
from flowrl.run_folder.runs import Run
from flowrl.train_state import C, Policy, TrainState
from flowrl.training.acting import act as act_purely
from flowrl.training.acting import by_itself, play
from flowrl.training.checkpoint import Checkpoints


class Loaded:
    """A trained policy.

    Attributes:
        agent: Whose it is.
        policy: Its configuration, parameters and normaliser, a pytree.
        spec: Shapes of observations, actions and goals.
        low: What an action of −1 is in the environment's own units, `[A]`.
        high: What one of 1 is, `[A]`.
    """

    def __init__(
        self, agent: Agent[Any], policy: Policy[Any], spec: Spec, low: np.ndarray, high: np.ndarray, seed: int
    ):
        self.agent, self.policy, self.spec, self.low, self.high = agent, policy, spec, low, high
        self._key, self._calls = jax.random.key(seed), itertools.count()

    def act(self, observation: Any, goal: Any = None, *, seed: int | None = None, explore: bool = False) -> np.ndarray:
        """Returns the action for an observation, or the actions for several.

        Args:
            observation: `[D]`, or `[B, D]`, as the environment shows it (dictionaries and others as
                `flowrl.envs.spaces` makes vectors of them).
            goal: `[G]` or `[B, G]`, of a goal-conditioned policy.
            seed: Of the policy's noise; by default each call has its own, which follows from the policy's seed.
            explore: Whether to act as in online training.

        Returns:
            `[A]` or `[B, A]`, in the environment's own units.

        Raises:
            UserError: A shape is another, or a goal is missing or too much.
        """
        key = jax.random.fold_in(self._key, next(self._calls)) if seed is None else jax.random.key(seed)
        actions = play(self.agent, self.spec, self.policy, self._inputs(observation, goal), key, explore=explore)
        unit = np.clip(np.asarray(actions, np.float64), -1.0, 1.0)
        return (self.low + (self.high - self.low) * (unit + 1) / 2).astype(np.float32)

    def pure(self) -> tuple[Callable[..., jax.Array], Policy[Any]]:
        """Returns how to act in other JAX code: a pure function and its first argument.

        So `act, policy = loaded.pure()`, and `act(policy, {"observations": s}, key)` with `s` `[B, D]`, and `goals`
        `[B, G]` if it reaches goals, is `[B, A]` in [−1, 1]. It can be jitted, mapped and differentiated.
        """

        def act(policy: Policy[Any], inputs: Mapping[str, jax.Array], key: jax.Array) -> jax.Array:
            return act_purely(self.agent, policy, inputs, key)

        return act, self.policy

    def _inputs(self, observation: Any, goal: Any) -> dict[str, np.ndarray]:
        """Returns what the policy sees, checked."""
        if (goal is None) != (self.spec.goal is None):
            told = "needs a goal: act(observation, goal)" if goal is None else "has a single task, and takes no goal"
            raise UserError(f"this policy {told}")
        inputs = {"observations": _rows("an observation", observation, self.spec.observation.shape[0])}
        if self.spec.goal is not None:
            inputs["goals"] = _rows("a goal", goal, self.spec.goal.shape[0])
            if inputs["goals"].shape[:-1] != inputs["observations"].shape[:-1]:
                raise UserError(f"there are {len(inputs['goals'])} goals, not one for each observation")
        return inputs


def stored_spec(config: Mapping[str, Any]) -> Spec:
    """Returns the shapes of the environment of a `config.json`."""
    sizes = [config["task"][name] for name in ("observation", "action", "goal")]
    return Spec.of_sizes(*(shape[0] if shape else 0 for shape in sizes))


def _rows(what: str, value: Any, size: int) -> np.ndarray:
    """Returns one vector `[size]` or several `[B, size]`.

    Raises:
        UserError: It is neither.
    """
    array = np.asarray(value, np.float32)
    if array.ndim not in (1, 2) or array.shape[-1] != size:
        raise UserError(f"{what} is {size} numbers here, and several are an array ({size} each), not {array.shape}")
    return array


def load(run_dir: str | Path, *, run: int = 0, step: int | None = None, seed: int = 0, **acting: Any) -> Loaded:
    """Loads a trained policy from a run folder.

    Args:
        run_dir: The folder.
        run: Which of its runs, from 0; they are in the order of their seeds.
        step: Of which checkpoint; the newest if absent.
        seed: Of the noise that a stochastic policy acts with.
        acting: Settings of the agent that only acting reads, by dotted name: `hops=2`,
            `**{"choice.num_samples": 10}`.

    Raises:
        UserError: There is no such run or checkpoint, a file is damaged, or a setting is none that acting reads.
    """
    folder = Path(run_dir).expanduser()
    told = formats.read_config(folder)
    name, runs = told["settings"]["agent"], runs_of(told)
    if not 0 <= run < len(runs):
        raise UserError(f"{folder} has {len(runs)} runs, from 0 to {len(runs) - 1}; there is no run {run}")
    config = _acting(texts.of_json(agents.default(name), told["agent_config"]), acting)
    task, spec = told["task"], stored_spec(told)
    agent = agents.build(name, config, spec)
    states, normalizer = load_states(
        folder, name, agent, stacked(config, [one.values for one in runs]), len(runs),
        step=step, goals_are_states=task["goals_are_states"],
    )[1:]  # fmt: skip
    state = jax.tree.map(lambda x: x[run] if x.ndim else x, states)
    own = state.config if acting else by_itself(agent, state.config)
    policy = agent.policy(state.replace(config=own)).replace(normalizer=normalizer)
    low, high = (
        np.array(task[f"action_{end}"] or [unit] * spec.action_dim) for end, unit in (("low", -1), ("high", 1))
    )
    return Loaded(agent, policy, spec, low, high, seed)


def runs_of(config: Mapping[str, Any]) -> Sequence[Run]:
    """Returns the runs that a `config.json` tells of."""
    return [Run.of(labels) for labels in config.get("grid", ())] or [Run(seed, {}) for seed in config["seeds"]]


def _acting(config: C, changes: Mapping[str, Any]) -> C:
    """Returns a configuration that acts otherwise.

    Raises:
        UserError: A setting is none that acting alone reads, or cannot be so.
    """
    known = [entry.name for entry in flatten(config) if entry.field.metadata["acting"]]
    if unknown := [name for name in changes if name not in known]:
        others = f"its settings are {', '.join(known)}" if known else "this agent acts in one way only"
        raise UserError(f"{unknown[0]} is no setting that acting alone reads; {others}")
    changed = put(config, changes)
    check(changed, "agent.")
    return changed


def load_states(
    folder: Path, name: str, agent: Agent[C], configs: C, runs: int, *, goals_are_states: bool, step: int | None = None
) -> tuple[int, TrainState[C], Normalizer | None]:
    """Returns the step of a run folder's newest checkpoint, or of the one that is asked for, and what acts of it.

    Args:
        folder: Of the runs.
        name: Of the agent.
        agent: As it was trained, or with settings that only acting reads changed.
        configs: The configurations of the runs, traced fields `[R]`.
        runs: R.
        goals_are_states: Whether goals are normalised like observations.
        step: Of which checkpoint.

    Returns:
        The step, the states `[R, ...]` of its runs without the optimizer's, and what stands between environment and
        agent, if anything does.

    Raises:
        UserError: There is no such checkpoint, it is damaged, or it is of another agent.
    """
    place = folder / CHECKPOINTS
    checkpoints = Checkpoints(place, read_only=True) if place.exists() else None
    kept = checkpoints.steps() if checkpoints else []
    if checkpoints is None or not kept:
        raise UserError(f"{folder} has no checkpoint; put its folder {CHECKPOINTS} back, or train it")
    if step is not None and step not in kept:
        raise UserError(f"{place} has no checkpoint at step {step}; give --step={' or '.join(map(str, kept))}")
    step = kept[-1] if step is None else step
    if (trained := checkpoints.facts(step)["agent"]) != name:
        raise UserError(f"the checkpoint in {place} is of agent {trained}, not {name} as its run says")
    like = jax.eval_shape(jax.vmap(agent.init), root_keys(jnp.zeros(runs, jnp.uint32)), configs)
    like = like.replace(opt_state=(), config=None)
    like = like.replace(step=jax.ShapeDtypeStruct((), like.step.dtype))  # which runs share
    try:
        arrays = checkpoints.raw(step)
        states = flax.serialization.from_state_dict(like, {**arrays["states"], "opt_state": (), "config": None})
    except (ValueError, KeyError, TypeError) as error:
        raise checkpoints.unfit(step, str(error)) from error
    checkpoints.require_fit(like, states, step)
    if (rows := min(len(leaf) for leaf in jax.tree.leaves(states) if leaf.ndim)) < runs:
        raise checkpoints.unfit(step, f"it has {rows} runs, not {runs}")
    checkpoints.close()
    # More rows than runs were stored, where these did not fill their devices evenly.
    states = jax.tree.map(lambda x: x[:runs] if x.ndim else x, states).replace(config=configs)
    found = arrays.get("normalizer")
    return step, states, found and Normalizer(**found, goals_are_states=goals_are_states)
