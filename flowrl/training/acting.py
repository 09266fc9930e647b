"""Acting: the one place where policies meet what environments show, and where observations are normalised for them.

Evaluations, videos, online training and programs of a user's own act through it. Policies of R runs lie in one, each
array with a leading axis R, but for the normaliser, which runs share.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from flowrl.agent import Agent
from flowrl.machine.devices import ALL, RUNS, Layout
from flowrl.networks import Spec
from flowrl.random_streams import stream_key
from flowrl.train_state import Batch, C, Policy


def act(agent: Agent[Any], policy: Policy[Any], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """Returns one policy's actions `[B, A]` for inputs `[B, ...]` as an environment shows them; a pure function.

    Of an agent that plays H actions in a row they are `[B, H, A]`.
    """
    seen = inputs if policy.normalizer is None else policy.normalizer.inputs(inputs)
    return agent.act(policy, seen, key, explore=explore)


_jitted_act = jax.jit(act, static_argnums=0, static_argnames="explore")


def play(
    agent: Agent[Any],
    spec: Spec,
    policy: Policy[Any],
    inputs: Mapping[str, np.ndarray],
    key: jax.Array,
    *,
    explore: bool = False,
) -> np.ndarray:
    """Returns what one policy does, for who has observations in NumPy.

    Args:
        agent: Whose policy it is.
        spec: Its shapes.
        policy: Of one run.
        inputs: `observations` `[D]`, or several `[B, D]`, and `goals` with the same batch axes if there are any.
        key: Random key.
        explore: Whether to act as in online training.

    Returns:
        Actions `[A]` or `[B, A]` in [−1, 1].
    """
    arrays = {name: jnp.asarray(array) for name, array in inputs.items()}
    if arrays["observations"].ndim > len(spec.observation.shape):
        return np.asarray(_jitted_act(agent, policy, arrays, key, explore=explore))
    one = {name: array[None] for name, array in arrays.items()}
    return np.asarray(_jitted_act(agent, policy, one, key, explore=explore)[0])


def by_itself(agent: Agent[Any], config: C) -> C:
    """Returns the configuration with which an agent acts where nothing else is asked: its first evaluation's."""
    return next(iter(agent.evaluations(config).values()))


def over_runs(policies: Policy[Any], each: Any = 0, shared: Any = None) -> Policy[Any]:
    """Returns `each` for all arrays of the policies of several runs, and `shared` for what they have in common."""
    return jax.tree.map(lambda _: each, policies).replace(normalizer=shared)


# --------------------------------------------------------------------------------------------- actions in a row


class OpenLoop:
    """The actions that are played next in E environments of R runs, where policies choose H at a time.

    A chunk is played to its end, or that of its episode; then the next is chosen.
    """

    def __init__(self) -> None:
        self._chunks: np.ndarray | None = None  # [R, E, H, A], of which H is known when the agent has first acted

    def due(self, times: np.ndarray) -> bool:
        """Returns whether chunks must be chosen where environments are at steps `times` `[R, E]` of their episodes."""
        return self._chunks is None or bool((times % self._chunks.shape[2] == 0).any())

    def next(self, times: np.ndarray, chosen: Any = None) -> np.ndarray:
        """Returns actions `[R, E, A]` at `times`; if chunks are due, those `chosen` `[R, E, H, A]` begin."""
        if chosen is not None:
            new = np.asarray(chosen)
            begin = (times % new.shape[2] == 0)[..., None, None]
            self._chunks = new if self._chunks is None else np.where(begin, new, self._chunks)
        assert self._chunks is not None
        places = (times % self._chunks.shape[2])[..., None, None]
        return np.take_along_axis(self._chunks, places, axis=2)[:, :, 0]


# -------------------------------------------------------------------------------------------- evaluation episodes


class EpisodeActor:
    """Acts in the evaluation episodes of R runs, E of each at a time; an episode's noise is fixed by its own key.

    An episode's row is its number modulo E, in whole evaluations and where it is played again alone.
    """

    def __init__(self, agent: Agent[Any], keys: jax.Array, slots: int):
        """Takes up acting.

        Args:
            agent: Whose policies act.
            keys: A key for each run's episodes, by their numbers `[R, K·N]`.
            slots: E.
        """
        self._agent, self._keys, self._slots = agent, keys, slots
        self._noted: set[int] = set()
        self._loop = OpenLoop()

    def __call__(self, policies: Policy[Any], numbers: np.ndarray, times: np.ndarray, inputs: Any) -> np.ndarray:
        """Returns actions `[R, E, A]`, 0 where the policies give no finite number.

        Args:
            policies: Of all runs.
            numbers: Of the episodes `[R, E]`.
            times: Steps that each has taken `[R, E]`.
            inputs: What each shows `[R, E, ...]`.
        """
        chosen = None
        if self._loop.due(times):
            chosen = _in_episodes(self._agent, policies, self._keys, numbers, times, inputs)
        actions = self._loop.next(times, chosen)
        good = np.isfinite(actions)
        if good.all():
            return actions
        for run in {*np.flatnonzero(~good.all(axis=(1, 2))).tolist()} - self._noted:
            tqdm.write(f"note: the policy of run {run} gives actions that are not finite; 0 is played for them")
            self._noted.add(run)
        return np.where(good, actions, 0)

    def of_first_run(self, policies: Policy[Any], number: int, time: int, inputs: Any) -> np.ndarray:
        """Returns the first run's action `[A]` in one episode, for inputs `[...]`.

        It is computed in the shapes and the row of a whole evaluation: in others it would be rounded otherwise, and
        where a small difference grows, the episode might end otherwise.
        """
        slot, shape = number % self._slots, (len(self._keys), self._slots)

        def placed(value: Any) -> np.ndarray:
            rows = np.zeros((*shape, *np.shape(value)), np.asarray(value).dtype)
            rows[0, slot] = value
            return rows

        return self(policies, placed(number), placed(time), jax.tree.map(placed, inputs))[0, slot]


@functools.partial(jax.jit, static_argnums=0)
def _in_episodes(
    agent: Agent[Any], policies: Policy[Any], keys: jax.Array, numbers: jax.Array, times: jax.Array, inputs: Batch
) -> jax.Array:
    """Chunks of actions `[R, E, H, A]` for episode `numbers` at `times` `[R, E]`; keys `[R, K·N]`."""

    def one(policy: Policy[Any], key: jax.Array, time: jax.Array, inputs: Batch) -> jax.Array:
        alone = {name: array[None] for name, array in inputs.items()}
        return jnp.atleast_2d(act(agent, policy, alone, jax.random.fold_in(key, time))[0])

    def one_run(policy: Policy[Any], keys: jax.Array, numbers: jax.Array, *rest: Any) -> jax.Array:
        return jax.vmap(one, in_axes=(None, 0, 0, 0))(policy, keys[numbers], *rest)

    return jax.vmap(one_run, in_axes=(over_runs(policies), 0, 0, 0, 0))(policies, keys, numbers, times, inputs)


# --------------------------------------------------------------------------------------------------- exploration


@functools.lru_cache(maxsize=64)
def explorer(agent: Agent[Any], spec: Spec, warmup_steps: int, layout: Layout) -> Any:
    """Returns how R runs act as they learn, compiled: uniformly during the warm-up, then by their policies.

    It is a function `(policies, keys [R], step [], observations [R, E, D]) -> actions [R, E, H, A]`, H of them to be
    played in a row, with the runs' root keys; the noise of a step depends on these and the step alone.

    Args:
        agent: Whose policies act.
        spec: Its shapes.
        warmup_steps: Steps with uniform actions.
        layout: The devices of the runs.
    """

    def run(policy: Policy[Any], key: jax.Array, step: jax.Array, observations: jax.Array) -> jax.Array:
        actions = act(agent, policy, {"observations": observations}, stream_key(key, "act", step), explore=True)
        return actions.reshape(len(observations), -1, spec.action_dim)

    def uniform(policy: Policy[Any], key: jax.Array, step: jax.Array, observations: jax.Array) -> jax.Array:
        shape = jax.eval_shape(run, policy, key, step, observations).shape
        return jax.random.uniform(stream_key(key, "act", step), shape, minval=-1.0, maxval=1.0)

    def all_runs(policies: Policy[Any], keys: jax.Array, step: jax.Array, observations: jax.Array) -> jax.Array:
        axes = (over_runs(policies), 0, None, 0)
        return jax.lax.cond(
            step < warmup_steps, jax.vmap(uniform, axes), jax.vmap(run, axes), policies, keys, step, observations
        )

    def spread(policies: Policy[Any], keys: jax.Array, step: jax.Array, observations: jax.Array) -> jax.Array:
        specs = (over_runs(policies, RUNS, ALL), RUNS, ALL, RUNS)
        actions: jax.Array = layout.spread(all_runs, specs, RUNS)(policies, keys, step, observations)
        return actions

    return jax.jit(spread)
