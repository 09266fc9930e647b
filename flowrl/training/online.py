"""Learning while acting: the environments that training policies act in, and the steps of the online loop."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from flowrl.agent import Agent
from flowrl.config import MOST_COUNT, record, static
from flowrl.data import replay as buffers
from flowrl.data.dataset import Dataset
from flowrl.data.replay import Replay
from flowrl.data.returns import OpenEpisodes
from flowrl.data.samplers import Transitions
from flowrl.envs.episodes import NotFinite
from flowrl.envs.side_by_side import Apart, SideBySide
from flowrl.envs.workers import EnvFactory
from flowrl.machine.devices import ALL, RUNS, Layout
from flowrl.networks import Spec
from flowrl.normalize import Normalizer
from flowrl.random_streams import stream_key
from flowrl.train_state import Policy
from flowrl.training.acting import OpenLoop, explorer
from flowrl.training.compiled import Program, States
from flowrl.training.step import Totals

T = TypeVar("T")
MOST_ENVIRONMENTS = 10_000
"""The most environments that all runs together act in at a time."""


@record
class Online:
    """How an agent gathers and uses experience; steps are those of one run's environments taken together."""

    steps: int = static(0, "Environment steps of each run, after the offline updates.", low=0, high=MOST_COUNT)
    num_envs: int = static(1, "Environments that each run acts in at a time.", high=MOST_ENVIRONMENTS)
    updates_per_step: float = static(1.0, "Updates for each environment step.", low=0, high=MOST_COUNT)
    warmup_steps: int = static(0, "First environment steps: uniform actions, no updates.", low=0, high=MOST_COUNT)
    buffer_size: int = static(1_000_000, "The most transitions that the replay buffer keeps.", high=MOST_COUNT)
    offline_share: float | None = static(
        None, "Share of each online batch from the offline data; absent, as if these lay in the buffer.", low=0, high=1
    )
    vectorization: Literal["sync", "async"] = static(
        "sync",
        "Training environments: sync (one process) or async (one each).",
        choices=("sync", "async"),
        resumable=True,
        learning=False,
    )

    @property
    def capacity(self) -> int:
        """Transitions that a run's buffer has room for."""
        return max(self.num_envs, min(self.buffer_size, self.steps))


def updates_due(options: Online, step: int) -> int:
    """Returns how many updates a run has done once the transitions of `step` environment steps are used."""
    return math.floor(round(max(0, step - options.warmup_steps) * options.updates_per_step, 6))


# ------------------------------------------------------------------------------------------------ environments


class Moves(NamedTuple):
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

    def step(self, actions: np.ndarray) -> Moves:
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
        return Moves(before, after, rewards.astype(np.float32), masks, ended)

    @property
    def times(self) -> np.ndarray:
        """Steps of the episode under way in each environment, int `[R, E]`."""
        return self._lengths.reshape(self.episodes.shape).copy()

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
    the environments while the device computes, and stores what they showed, normalised. So updates lag the newest
    transitions by one step of the environments, whatever the device. Where the agent reads returns, those of an episode
    are written to its transitions in the buffer once it has ended.

    Attributes:
        program: The compiled functions.
        step: Environment steps of each run so far.
        replays: The runs' buffers, with a leading axis R.
        environments: What is acted in.
    """

    def __init__(
        self,
        agent: Agent[Any],
        spec: Spec,
        program: Program,
        environments: Environments,
        keys: jax.Array,
        options: Online,
        kind: Transitions,
        dataset: Dataset | None = None,
        normalizer: Normalizer | None = None,
        step: int = 0,
        replays: Replay | None = None,
        layout: Layout | None = None,
    ):
        """Takes up acting.

        Args:
            agent: Who acts and learns.
            spec: The shapes of its observations and actions.
            program: The compiled functions, built for a replay buffer.
            environments: Of all runs.
            keys: Root keys of the runs `[R]`.
            options: How.
            kind: The batches that the agent reads, with a plain discount if it reads returns.
            dataset: Offline data that batches are mixed with, normalised.
            normalizer: What they were normalised by.
            step: Environment steps done before.
            replays: The buffers then; by default empty ones.
            layout: The devices of the runs, all with equally many; by default one device.
        """
        layout = layout or Layout(len(keys))
        self.program, self.environments, self.step = program, environments, step
        self.replays = empty_replays(spec, options, kind, layout) if replays is None else replays
        self._agent, self._keys, self._options = agent, keys, options
        self._dataset, self._normalizer = dataset, normalizer
        self._act, self._loop = explorer(agent, spec, options.warmup_steps, layout), OpenLoop()
        self._add, self._record = _writers(layout)
        self._open: OpenEpisodes | None = None
        if kind.returns:
            self._open = OpenEpisodes(len(keys), options.num_envs, options.capacity, float(kind.discount))

    @property
    def warm(self) -> bool:
        """Whether updates are under way."""
        return updates_due(self._options, self.step - self._options.num_envs) > 0

    def advance(self, states: States, totals: Totals, steps: int) -> tuple[States, Totals]:
        """Does `steps` environment steps in each run, a multiple of `num_envs`, and the updates that are due."""
        runs, num_envs = len(self._keys), self._options.num_envs
        for _ in range(steps // num_envs):
            observations = self.environments.observations.reshape(runs, num_envs, -1)
            times, chosen = self.environments.times, None
            if self._loop.due(times):
                chosen = self._act(self._policies(states), self._keys, np.int32(self.step), observations)
            updates = updates_due(self._options, self.step) - updates_due(self._options, self.step - num_envs)
            if updates:
                arguments = (self._keys, self._dataset, np.int32(updates), self.replays)
                states, totals = self.program.chunk(states, totals, *arguments)
            actions = self._loop.next(times, chosen)
            if not np.isfinite(actions).all():  # of a policy that diverges; no simulator is to answer for it
                actions = np.where(np.isfinite(actions), actions, np.float32(0))
            self._store(actions, self.environments.step(actions.reshape(runs * num_envs, -1)))
        return states, totals

    def _policies(self, states: States) -> Policy[Any]:
        acting = states.replace(config=self._agent.explores(states.config))
        return self.program.policies(acting).replace(normalizer=self._normalizer)

    def _store(self, actions: np.ndarray, moved: Moves) -> None:
        """Stores one step of all environments, in which `actions` `[R, E, A]` were taken."""
        fields = {
            "observations": moved.observations,
            "rewards": moved.rewards,
            "masks": moved.masks,
            "next_observations": moved.next_observations,
            "ended": moved.ended,
        }
        rows = {name: array.reshape(*actions.shape[:2], *array.shape[1:]) for name, array in fields.items()}
        self.replays = self._add(self.replays, {**rows, "actions": actions}, self._normalizer)
        self.step += self._options.num_envs
        if self._open is None:
            return
        if (known := self._open.add(moved.rewards, moved.masks, moved.ended, self.step)) is not None:
            self.replays = self._record(self.replays, *known, self._normalizer)


def empty_replays(spec: Spec, options: Online, kind: Transitions, layout: Layout) -> Replay:
    """Returns the buffers of R runs of an agent that reads such batches, with a leading axis R, on their devices."""
    empty = jax.vmap(lambda _: buffers.empty(spec, options.capacity, kind, options.num_envs))
    rows = layout.place(np.arange(layout.rows), mapped=True)
    return jax.jit(layout.spread(empty, RUNS, RUNS), out_shardings=layout.replicated())(rows)


@functools.lru_cache(maxsize=16)
def _writers(layout: Layout) -> tuple[Any, Any]:
    """Returns functions that write to the buffers of all runs, which they take over: transitions, and returns.

    They are `(replays, rows [R, E, ...], normalizer)` and `(replays, places, returns, horizons [R, L], normalizer)`.
    """

    def add(replays: Replay, rows: dict[str, jax.Array], normalizer: Normalizer | None) -> Replay:
        seen = rows if normalizer is None else normalizer.transitions(rows)
        return jax.vmap(buffers.add)(replays, seen)

    def record(
        replays: Replay, places: jax.Array, returns: jax.Array, horizons: jax.Array, normalizer: Normalizer | None
    ) -> Replay:
        seen = returns if normalizer is None else normalizer.returns(returns, horizons)
        return jax.vmap(buffers.record)(replays, places, seen)

    adding, recording = (RUNS, RUNS, ALL), (RUNS, RUNS, RUNS, RUNS, ALL)
    return (
        jax.jit(layout.spread(add, adding, RUNS), donate_argnums=0),
        jax.jit(layout.spread(record, recording, RUNS), donate_argnums=0),
    )
