"""Normalised observations and rescaled rewards: a dataset's statistics, applied once as data are loaded or gathered."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from flowrl.config import put, record, static
from flowrl.errors import UserError

Array = np.ndarray | jax.Array
_STATES = ("observations", "next_observations")


@record
class Normalization:
    """What to normalise."""

    observations: bool = static(False, "Bring the data's observations to mean 0 and deviation 1.")
    position_scale: float = static(
        1.0, "Factor of the normalised position in a maze, the first two numbers observed.", low=0.0,
        zero="hides the position",
    )  # fmt: skip
    sparse: bool = static(False, "Make every reward other than 0 a -1, before scaling, as QC for scenes and puzzles.")
    rewards: str = static(
        "none", "Bring the data's rewards to a scale of their own: the returns of its episodes to a range of 1000 (as "
        "IQL), them to mean 0 and deviation 1 (as DQL for pens), or to the range from -1 to 1 (as EDP for kitchens).",
        choices=("none", "returns", "deviation", "range"),
    )  # fmt: skip
    reward_scale: float = static(1.0, "Factor of rewards.", low=-np.inf, high=np.inf, zero="makes all rewards equal")
    reward_shift: float = static(
        0.0, "Added to rewards after scaling; the return in evaluations is unscaled.", low=-np.inf, high=np.inf
    )


def check(normalization: Normalization, agent: str, *, goals: bool, maze: bool) -> None:
    """Checks what is to be normalised.

    Args:
        agent: Its name.
        goals: Whether it has goals.
        maze: Whether it is in a maze.

    Raises:
        UserError: A position is to be scaled where none is normalised, or rewards of goals.
    """
    scale = normalization.position_scale
    if scale != 1 and not (normalization.observations and maze):
        raise UserError(
            f"--normalize.position_scale={scale:g} scales the normalised position in a maze; give "
            "--normalize.observations=True and a maze with it, or leave it out"
        )
    of_rewards = put(normalization, {"observations": False, "position_scale": 1.0})
    if goals and of_rewards != Normalization():
        raise UserError(
            f"{agent} is goal-conditioned, its rewards are -1 and 0; leave out --normalize.sparse, "
            "--normalize.rewards, --normalize.reward_scale and --normalize.reward_shift"
        )


class Normalizer(flax.struct.PyTreeNode):
    """What stands between data or environment and an agent.

    Attributes:
        mean: Subtracted from observations, float32 `[D]`.
        std: What remains is divided by this, float32 `[D]`.
        reward_scale: Rewards are multiplied by this, float32 `[]`.
        reward_shift: And then this is added, float32 `[]`.
        goals_are_states: Whether goals are observations, and normalised like them.
        sparse: Whether rewards other than 0 are made −1 first.
    """

    mean: Array
    std: Array
    reward_scale: Array
    reward_shift: Array
    goals_are_states: bool = flax.struct.field(pytree_node=False, default=True)
    sparse: bool = flax.struct.field(pytree_node=False, default=False)

    def inputs(self, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Normalises what a policy acts on: `observations`, and `goals` if they are states."""
        names = ("observations", "goals") if self.goals_are_states else ("observations",)
        return {name: (x - self.mean) / self.std if name in names else x for name, x in inputs.items()}

    def transitions(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """Normalises `observations`, `next_observations` and `rewards` `[..., D]` where they are; of either library."""
        found = {name: (x - self.mean) / self.std if name in _STATES else x for name, x in rows.items()}
        if "rewards" in rows:
            rewards = rows["rewards"] if not self.sparse else -(rows["rewards"] != 0).astype(rows["rewards"].dtype)
            found["rewards"] = self.reward_scale * rewards + self.reward_shift
        return found

    def returns(self, returns: Array, horizons: Array) -> jax.Array:
        """Rescales discounted sums `[...]` of rewards over `horizons` steps; one that is not known, −∞, stays so."""
        known = jnp.isfinite(returns)
        scaled = self.reward_scale * jnp.where(known, returns, 0.0) + self.reward_shift * horizons
        return jnp.where(known, scaled, returns)

    def arrays(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Normalises a dataset `[N, ...]` in OGBench's layout, with `returns` and their `horizons` if it has them."""
        own: Normalizer = jax.tree.map(np.asarray, self)
        found: dict[str, np.ndarray] = own.transitions(arrays)
        if "returns" in arrays:
            found["returns"] = np.asarray(own.returns(arrays["returns"], arrays["horizons"]))
        return found


def fit(
    arrays: Mapping[str, np.ndarray], normalization: Normalization, *, goals_are_states: bool = True
) -> Normalizer | None:
    """Returns the normaliser of a dataset `[N, ...]` in OGBench's layout, or None where nothing is to be done.

    Raises:
        UserError: Rewards are to be divided by a spread that there is not, or to be made sparse where returns are
            read; or what becomes of the data is not finite in 32 bits.
    """
    if normalization == Normalization():
        return None
    observations, rewards = arrays["observations"], arrays.get("rewards")
    if normalization.sparse and "returns" in arrays:
        raise UserError("--normalize.sparse changes rewards, and this agent reads returns of the data's; leave it out")
    if normalization.sparse and rewards is not None:
        rewards = -(rewards != 0).astype(rewards.dtype)
    size = observations.shape[1]
    mean: Array = np.zeros(size)
    std: Array = np.ones(size)
    if normalization.observations:
        mean, std = observations.mean(axis=0, dtype=np.float64), observations.std(axis=0, dtype=np.float64) + 1e-3
        std[:2] /= normalization.position_scale
    middle, spread = 0.0, 1.0
    if normalization.rewards != "none" and rewards is not None:
        middle, spread = _own_scale(normalization.rewards, rewards, arrays["terminals"])
    scale = normalization.reward_scale / spread
    shift = normalization.reward_shift - scale * middle
    with np.errstate(over="ignore"):  # which is refused
        values = [np.asarray(x, np.float32) for x in (mean, std, scale, shift)]
    _require_finite(arrays, *values)
    mean, std, factor, added = map(jnp.asarray, values)
    return Normalizer(mean, std, factor, added, goals_are_states, normalization.sparse)


def _own_scale(kind: str, rewards: np.ndarray, terminals: np.ndarray) -> tuple[float, float]:
    """Returns what rewards `[N]` are lowered by, and what they are divided by then; rows without a transition apart.

    Raises:
        UserError: There is no spread, or nothing but rounding.
    """
    own = rewards[~terminals.astype(bool)].astype(np.float64)
    values = episode_returns(rewards, terminals) if kind == "returns" else own
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-10 * np.abs(own).sum() * (kind == "returns"):
        told = "episode of the data has the return" if kind == "returns" else "row of the data has the reward"
        raise UserError(
            f"every {told} {high:g}: --normalize.rewards={kind} has no spread to divide by; leave it out, or give "
            "--normalize.reward_scale"
        )
    if kind == "returns":
        return 0.0, (high - low) / 1000.0
    return (float(own.mean()), float(own.std())) if kind == "deviation" else ((high + low) / 2, (high - low) / 2)


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
                    "--normalize.reward_scale and --normalize.reward_shift nearer to 0"
                )


def episode_returns(rewards: np.ndarray, terminals: np.ndarray) -> np.ndarray:
    """Returns the sum of rewards of each episode; its last row, which has no transition, does not count."""
    ends = np.flatnonzero(terminals)
    sums = np.concatenate([[0.0], np.cumsum(np.where(terminals, 0.0, rewards), dtype=np.float64)])
    return np.diff(sums[np.concatenate([[0], ends + 1])])
