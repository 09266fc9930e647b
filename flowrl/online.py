"""Learning while acting: the environments that training policies act in, and the steps of the online loop."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from flowrl.agent import Agent, Needs, Spec
from flowrl.data import replay as buffers
from flowrl.data.dataset import Dataset
from flowrl.data.replay import Replay
from flowrl.data.returns import OpenEpisodes
from flowrl.devices import ALL, RUNS, Layout
from flowrl.episodes import NotFinite
from flowrl.loop import Program, Window
from flowrl.side_by_side import Apart, SideBySide
from flowrl.streams import stream_key
from flowrl.train_state import TrainState
from flowrl.workers import EnvFactory

T = TypeVar("T")


class Options(NamedTuple):
    """How an agent gathers and uses experience; steps are those of one run's environments taken together.

    Attributes:
        num_envs: Environments E that each run acts in at a time.
        updates_per_step: Updates for each environment step after the warm-up, the updates-to-data ratio.
        warmup_steps: Steps with uniform actions and without updates at the beginning.
        capacity: The most transitions that a run's buffer keeps.
    """

    num_envs: int = 1
    updates_per_step: float = 1.0
    warmup_steps: int = 0
    capacity: int = 1_000_000


def updates_due(options: Options, step: int) -> int:
    """Returns how many updates a run has done once the transitions of `step` environment steps are used."""
    return math.floor(round(max(0, step - options.warmup_steps) * options.updates_per_step, 6))


# ------------------------------------------------------------------------------------------------ environments


class Transitions(NamedTuple):
    """One step of N environments.

    Attributes:
        observations: Before the step, float32 `[N, D]`.
        next_observations: What the step led to, before any reset, float32 `[N, D]`.
        rewards: float32 `[N]`.
        masks: 0 where the episode terminated; a limit of time leaves 1, float32 `[N]`.
        ended: Whether the episode ended, for either reason, bool `[N]`.
    """

    observations: np.ndarray
    next_observations: np.ndarray
    rewards: np.ndarray
    masks: np.ndarray
    ended: np.ndarray


@functools.partial(jax.jit, static_argnames="num_envs")
def _episode_seeds(keys: jax.Array, episodes: jax.Array, *, num_envs: int) -> jax.Array:
    """Returns uint32 seeds `[R, E]` of episode number `episodes` `[R, E]` of each run's environments."""

    def one(key: jax.Array, slot: jax.Array, episode: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(stream_key(key, "collect", episode), slot))

    return jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, 0))(keys, jnp.arange(num_envs), episodes)


class Environments:
    """The environments of R runs, E for each, every episode fixed by its run's key, its slot and its number.

    Attributes:
        observations: What they show now, float32 `[R·E, D]`.
        episodes: The number of the episode under way in each, int32 `[R, E]`.
    """

    def __init__(
        self,
        make_env: EnvFactory,
        keys: jax.Array,
        num_envs: int,
        episodes: np.ndarray | None = None,
        vectorization: Literal["sync", "async"] = "sync",
    ):
        """Starts the environments, each at the beginning of an episode.

        Args:
            make_env: Makes one; picklable.
            keys: Root keys of the runs `[R]`.
            num_envs: E.
            episodes: Numbers of the episodes to begin with `[R, E]`; by default 0.
            vectorization: `sync`, all in this process, one after another, or `async`, each in a process of its own.

        Raises:
            UserError: An environment cannot be made or reset.
        """
        self._keys, self._num_envs = keys, num_envs
        count = len(keys) * num_envs
        self.episodes = np.zeros((len(keys), num_envs), np.int32) if episodes is None else np.array(episodes, np.int32)
        self._returns, self._lengths = np.zeros(count), np.zeros(count, int)
        self._finished: list[tuple[int, float, int]] = []
        self._envs: Any = Apart(make_env, count) if vectorization == "async" else SideBySide(make_env, count)
        try:
            self._begin(np.ones(count, bool))
        except BaseException:
            self.close()
            raise

    def _begin(self, which: np.ndarray) -> None:
        """Begins an episode in the environments that `which` `[N]` marks."""
        seeds = np.asarray(_episode_seeds(self._keys, self.episodes, num_envs=self._num_envs)).reshape(-1).tolist()
        chosen = [seed if new else None for seed, new in zip(seeds, which, strict=True)]
        self.observations = self._named(lambda: self._envs.reset(chosen))

    def _named(self, call: Callable[[], T]) -> T:
        """Returns what a call of the environments returns; what is not finite in one of them is said with its place."""
        try:
            return call()
        except NotFinite as error:
            run, slot = divmod(error.slot, self._num_envs)
            raise NotFinite(
                f"{error} of training episode {self.episodes[run, slot]} (run {run}, environment {slot}); nothing of "
                "that step was stored"
            ) from error

    def step(self, actions: np.ndarray) -> Transitions:
        """Steps every environment with its row of `actions` `[N, A]`; those whose episode ends begin the next.

        Raises:
            NotFinite: What one of them shows, or pays, is not finite.
            UserError: One of them died, raised an exception, or returned what it must not.
        """
        before = self.observations
        after, rewards, terminated, truncated = self._named(lambda: self._envs.step(actions))
        ended = terminated | truncated
        self._returns += rewards
        self._lengths += 1
        self.observations = after
        if ended.any():
            for i in np.flatnonzero(ended):
                self._finished.append((int(i) // self._num_envs, float(self._returns[i]), int(self._lengths[i])))
            self._returns[ended] = self._lengths[ended] = 0
            self.episodes += ended.reshape(self.episodes.shape)
            self._begin(ended)
        masks = 1 - terminated.astype(np.float32)
        return Transitions(before, after, rewards.astype(np.float32), masks, ended)

    def drain(self) -> list[dict[str, float]]:
        """Returns, for each run, what its episodes since the last call came to; empty where none ended."""
        found: list[dict[str, float]] = []
        for run in range(len(self._keys)):
            own = [(total, length) for owner, total, length in self._finished if owner == run]
            returns, lengths = zip(*own, strict=True) if own else ((), ())
            names = {"return": returns, "length": lengths}
            found.append({name: float(np.mean(values)) for name, values in names.items() if values})
        self._finished = []
        return found

    def close(self) -> None:
        """Ends the environments and their processes, also those that died or are in the middle of a step."""
        self._envs.close()


# -------------------------------------------------------------------------------------------------------- loop


class Collector:
    """The online part of a training run: acts, stores, updates.

    Each step takes the actions of the current policies, starts the updates that the transitions so far are due, steps
    the environments while the device computes, and stores what they showed. So updates lag the newest transitions by
    one step of the environments, whatever the device. Where the agent reads returns, those of an episode are written
    to its transitions in the buffer once it has ended.

    Attributes:
        step: Environment steps of each run so far.
        replays: The runs' buffers, with a leading axis R.
        environments: What is acted in.
    """

    def __init__(
        self,
        agent: Agent,
        spec: Spec,
        program: Program,
        environments: Environments,
        keys: jax.Array,
        options: Options,
        dataset: Dataset | None = None,
        step: int = 0,
        replays: Replay | None = None,
        layout: Layout | None = None,
    ):
        """Takes up acting.

        Args:
            agent: Who acts and learns.
            spec: The sizes of its observations and actions.
            program: The compiled functions, built for a replay buffer.
            environments: Of all runs.
            keys: Root keys of the runs `[R]`.
            options: How.
            dataset: Offline data that batches are mixed with.
            step: Environment steps done before.
            replays: The buffers then; by default empty ones.
            layout: The devices of the runs, all with equally many; by default one device.
        """
        layout = layout or Layout(len(keys))
        self.program, self.environments, self.step = program, environments, step
        if replays is None:
            replays = empty_replays(spec, options.capacity, agent.needs, layout)
        self.replays = replays
        self._keys, self._options, self._dataset = keys, options, dataset
        act = functools.partial(_act, agent, spec, options)
        self._act = jax.jit(layout.spread(act, (RUNS, RUNS, ALL, RUNS), RUNS))
        self._add = jax.jit(layout.spread(jax.vmap(buffers.add), RUNS, RUNS), donate_argnums=0)
        self._record = jax.jit(layout.spread(jax.vmap(buffers.record), RUNS, RUNS), donate_argnums=0)
        self._open: OpenEpisodes | None = None
        if (discount := agent.needs.returns_discount) is not None:
            self._open = OpenEpisodes(len(keys), options.num_envs, options.capacity, discount)

    @property
    def warm(self) -> bool:
        """Whether updates are under way."""
        return updates_due(self._options, self.step - self._options.num_envs) > 0

    def advance(self, states: TrainState, window: Window, steps: int) -> tuple[TrainState, Window]:
        """Does `steps` environment steps in each run, a multiple of `num_envs`, and the updates that are due."""
        runs, num_envs = len(self._keys), self._options.num_envs
        for _ in range(steps // num_envs):
            observations = self.environments.observations.reshape(runs, num_envs, -1)
            policies = self.program.policies(states)
            actions = self._act(policies, self._keys, np.int32(self.step), observations)
            updates = updates_due(self._options, self.step) - updates_due(self._options, self.step - num_envs)
            if updates:
                arguments = (self._keys, self._dataset, np.int32(updates), self.replays)
                states, window = self.program.chunk(states, window, *arguments)
            played = np.asarray(actions)
            if not np.isfinite(played).all():  # of a policy that diverges; no simulator is to answer for it
                actions = played = np.where(np.isfinite(played), played, np.float32(0))
            moved = self.environments.step(played.reshape(runs * num_envs, -1))
            rows = {name: getattr(moved, name) for name in buffers.FIELDS if name != "actions"}
            rows = {name: array.reshape(runs, num_envs, *array.shape[1:]) for name, array in rows.items()}
            self.replays = self._add(self.replays, rows | {"actions": actions})
            self.step += num_envs
            if self._open is not None:
                known = self._open.add(moved.rewards, moved.masks, moved.ended, self.step)
                self.replays = self.replays if known is None else self._record(self.replays, *known)
        return states, window


def empty_replays(spec: Spec, capacity: int, needs: Needs, layout: Layout) -> Replay:
    """Returns the buffers of R runs of an agent with these needs, with a leading axis R, on the runs' devices."""
    empty = jax.vmap(lambda _: buffers.empty(spec, capacity, buffers.stored(needs)))
    rows = layout.place(np.arange(layout.rows), mapped=True)
    return jax.jit(layout.spread(empty, RUNS, RUNS), out_shardings=layout.replicated())(rows)


def _act(
    agent: Agent, spec: Spec, options: Options, policies: Any, keys: jax.Array, step: jax.Array, observations: jax.Array
) -> jax.Array:
    """Actions `[R, E, A]` in `observations` `[R, E, D]`: uniform ones during the warm-up, then the policies'."""
    goals = jnp.zeros((options.num_envs, spec.goal_dim))
    keys = jax.vmap(lambda key: stream_key(key, "act", step))(keys)

    def uniform() -> jax.Array:
        shape = (options.num_envs, spec.action_dim)
        return jax.vmap(lambda key: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0))(keys)

    def chosen() -> jax.Array:
        act = functools.partial(agent.act, mode="explore")
        return jax.vmap(act, in_axes=(0, 0, None, 0))(policies, observations, goals, keys)

    return jax.lax.cond(step < options.warmup_steps, uniform, chosen)
