"""Normalised observations and rescaled rewards as a wrapper around any agent; the statistics live in its state."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from flowrl.agent import Agent
from flowrl.data.returns import episode_returns
from flowrl.errors import UserError
from flowrl.train_state import Batch, Metrics, Mode, TrainState

_STATES = ("observations", "next_observations")


class Normalizer(flax.struct.PyTreeNode):
    """What stands between data or environment and an agent.

    Attributes:
        mean: Subtracted from observations, float32 `[D]`.
        std: What remains is divided by this, float32 `[D]`.
        reward_scale: Rewards are multiplied by this, float32 `[]`.
        reward_shift: And then this is added, float32 `[]`.
    """

    mean: jax.Array
    std: jax.Array
    reward_scale: jax.Array
    reward_shift: jax.Array


class Options(NamedTuple):
    """What to normalise.

    Attributes:
        observations: Whether to bring the data's observations to mean 0 and standard deviation 1.
        rewards: Whether to scale rewards by 1000 / (best − worst return of the data's episodes), IQL's rule.
        reward_scale: Further factor of rewards.
        reward_shift: Added to rewards at last.
    """

    observations: bool = False
    rewards: bool = False
    reward_scale: float = 1.0
    reward_shift: float = 0.0


def fit(arrays: Mapping[str, np.ndarray], options: Options) -> Normalizer | None:
    """Returns the normaliser of a dataset `[N, ...]` in OGBench's layout, or None where nothing is to be done.

    Raises:
        UserError: Rewards are to be divided by the spread of returns, and there is none; or what becomes of the data is
            not finite in 32 bits.
    """
    if options == Options():
        return None
    observations, rewards = arrays["observations"], arrays.get("rewards")
    size = observations.shape[1]
    mean, std = np.zeros(size), np.ones(size)
    if options.observations:
        mean, std = observations.mean(axis=0, dtype=np.float64), observations.std(axis=0, dtype=np.float64) + 1e-3
    scale = options.reward_scale
    if options.rewards and rewards is not None:
        returns = episode_returns(rewards, arrays["terminals"])
        rounding = 1e-10 * np.abs(rewards, dtype=np.float64).sum()
        if returns.max() - returns.min() <= rounding:
            raise UserError(
                f"every episode of the data has the return {returns.max():g}: --normalize_rewards has no spread to "
                "divide by; leave it out, or give --reward_scale"
            )
        scale *= 1000.0 / float(returns.max() - returns.min())
    with np.errstate(over="ignore"):  # which is refused
        values = [np.asarray(x, np.float32) for x in (mean, std, scale, options.reward_shift)]
    _require_finite(arrays, *values)
    return Normalizer(*(jnp.asarray(x) for x in values))


def _require_finite(
    arrays: Mapping[str, np.ndarray], mean: np.ndarray, std: np.ndarray, scale: np.ndarray, shift: np.ndarray
) -> None:
    """Looks at the extreme numbers of data as the agent will see them.

    Raises:
        UserError: They are not finite.
    """
    observations, nothing = arrays["observations"], np.zeros(1, np.float32)
    ends = np.stack([observations.min(axis=0), observations.max(axis=0)]).astype(np.float32)
    with np.errstate(all="ignore"):
        good = np.isfinite((ends - mean) / std).all(axis=0)
        if not good.all():
            column = int(np.argmin(good))
            raise UserError(
                f"normalised observations are not finite in column {column}, whose numbers reach "
                f"{np.abs(ends[:, column]).max():.3g}; bring them to a smaller scale in the file"
            )
        for field, steps in (("rewards", np.ones(1, np.float32)), ("returns", arrays.get("horizons", nothing))):
            if not np.isfinite(scale * arrays.get(field, nothing) + shift * steps).all():
                raise UserError(
                    f"{field} are not finite once they are multiplied by {scale:g} and {shift:g} is added; give a "
                    "--reward_scale and --reward_shift nearer to 0"
                )


def normalized(agent: Agent, normalizer: Normalizer, *, goals_are_states: bool = True) -> Agent:
    """Wraps an agent so that it sees normalised observations, goals, rewards and returns, in training and in acting.

    Args:
        agent: Any agent.
        normalizer: The statistics; they become part of the state, and so of checkpoints and of the policy.
        goals_are_states: Whether goals are observations, and normalised like them.
    """

    def states(normalizer: Normalizer, x: jax.Array) -> jax.Array:
        return (x - normalizer.mean) / normalizer.std

    def returns(normalizer: Normalizer, raw: jax.Array, horizons: jax.Array) -> jax.Array:
        """Returns of rescaled rewards; one that is not known, −∞, stays so, also where the scale is 0 or negative."""
        known = jnp.isfinite(raw)
        scaled = normalizer.reward_scale * jnp.where(known, raw, 0.0) + normalizer.reward_shift * horizons
        return jnp.where(known, scaled, raw)

    def init(key: jax.Array, hyper: Mapping[str, Any] | None = None) -> TrainState:
        state = agent.init(key, hyper)
        return state.replace(extras={**state.extras, "normalizer": normalizer})

    def update(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        own: Normalizer = state.extras["normalizer"]
        names = [n for n in batch if n in _STATES or (goals_are_states and n.endswith(("_goals", "_targets")))]
        batch = {**batch, **{name: states(own, batch[name]) for name in names}}
        if "rewards" in batch:
            batch["rewards"] = own.reward_scale * batch["rewards"] + own.reward_shift
        if "returns" in batch:
            batch["returns"] = returns(own, batch["returns"], batch["horizons"])
        return agent.update(state, batch, key)

    def policy(state: TrainState) -> dict[str, Any]:
        return {"agent": agent.policy(state), "normalizer": state.extras["normalizer"]}

    def act(policy: Any, observations: jax.Array, goals: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        own = policy["normalizer"]
        goals = states(own, goals) if agent.needs.goals and goals_are_states else goals
        return agent.act(policy["agent"], states(own, observations), goals, key, mode=mode)

    return agent._replace(init=init, update=update, policy=policy, act=act)
