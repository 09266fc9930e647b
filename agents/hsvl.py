"""HSVL: hierarchical survival value learning (https://arxiv.org/abs/2604.17551), as in the authors' code.

The time until a goal is reached is a random number, of which the hazards are learnt by maximum likelihood: a walk that
ends before it has reached the goal says that it took longer. The value follows from them, without bootstrapping.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.data.goals import GoalMix
from flowrl.data.samplers import Goals
from flowrl.encoders import GoalRep, Hazards, represented, represented_value
from flowrl.networks import PreNormMLP, Spec, ensemble, named, vector
from flowrl.optim import descend
from flowrl.policies import Levels, act_by_levels, both_levels, high_actor_loss, low_actor_loss
from flowrl.train_state import Batch, Loss, Metrics, Params, Scalar, TrainState


@config
class Config:
    """The authors' defaults, with which they run antmaze-large-navigate."""

    value_goals: GoalMix = nested(GoalMix(p_trajectory=0.6, p_random=0.32, geometric=True))
    actor_goals: GoalMix = nested(GoalMix())
    hidden_dims: tuple[int, ...] = static((512, 512, 512), "Hidden layers of every network.")
    rep_dim: int = static(256, "Size of the goal representation.")
    batch_size: int = static(1024, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.995, "Discount per environment step.", high=0.999999)
    aggregate: str = static("min", "How the two values are combined in advantages.", choices=("min", "mean"))
    longest: int = static(10_000, "Steps beyond which it is not told when a goal is reached.", high=10_000_000)
    num_bins: int = static(800, "Bins of these steps, geometric, before those that are empty are left out.")
    bases: int = static(16, "Bases of hazards over time.")
    basis_dim: int = static(256, "Size of each.")
    low_actor_rep_grad: bool = static(False, "Whether the low-level policy also trains the representation.")
    low_alpha: float = traced(3.0, "Inverse temperature of the low-level policy's advantage weights.")
    high_alpha: float = traced(3.0, "Inverse temperature of the high-level policy's advantage weights.")
    subgoal_steps: int = traced(25, "Environment steps to a subgoal.", low=1)


State = TrainState[Config]


@cache
def edges(longest: int, num_bins: int) -> np.ndarray:
    """Returns where bins begin, and the end of the last: 0 = b_0 < ... < b_K = H, int32 `[K + 1]`.

    They are geometric; as many bins as steps, or more, are one for each step.
    """
    spaced = longest ** np.linspace(0, 1, num_bins + 1) if num_bins < longest else np.arange(longest)
    return np.unique([0, *np.round(spaced), longest]).astype(np.int32)


def networks(config: Config, spec: Spec) -> Levels:
    """Builds the networks."""
    (s, _, g, _), rep, layers = spec.inputs(), vector(1, config.rep_dim), config.hidden_dims
    bins = len(edges(config.longest, config.num_bins)) - 1
    return Levels(**named(
        goal_rep=(GoalRep(layers, config.rep_dim), s, g),
        value=(ensemble(Hazards)(layers, bins, config.bases, config.basis_dim), s, rep),
        low_actor=(PreNormMLP(layers, spec.action_dim), s, rep),
        high_actor=(PreNormMLP(layers, config.rep_dim), s, g),
    ))  # fmt: skip


def log_survival(logits: jax.Array) -> jax.Array:
    """log S, the goal not reached within the first bin, the first two, ...: Σ log(1 − hazard), `[..., 1 + K]`."""
    return jnp.cumsum(jax.nn.log_sigmoid(-logits), axis=-1)


def values(logits: jax.Array, bins: np.ndarray, discount: Scalar) -> jax.Array:
    """V = −Σ_k S(b_k) Σ_{b_k ≤ t < b_{k+1}} γ^t − S(H) γ^H / (1 − γ): `[..., 1 + K]` to `[...]`."""
    later = discount ** jnp.asarray(bins, logits.dtype)
    steps = jnp.append(later[:-1] - later[1:], later[-1]) / (1 - discount)
    return -jnp.exp(log_survival(logits)) @ steps


def log_likelihood(logits: jax.Array, bins: np.ndarray, steps: jax.Array, reached: jax.Array) -> jax.Array:
    """log P(goal reached in the bin of `steps` `[B]`), or where it is not `reached`, log P(not in those before).

    A walk that ends within a bin counts as one that has survived it. Logits `[2, B, 1 + K]`, result `[2, B]`.
    """
    event = reached & (steps <= bins[-1])
    of_event = jnp.where(steps == 0, 0, jnp.searchsorted(bins, steps, side="right"))
    last = jnp.where(event, of_event, jnp.searchsorted(bins, steps, side="left")).clip(0, len(bins) - 1)
    survived, logit = (jnp.take_along_axis(x, last[None, :, None], -1)[..., 0] for x in (log_survival(logits), logits))
    return survived + event * logit  # log h = log(1 − h) + logit


def v(config: Config, nets: Levels, params: Params, s: jax.Array, g: jax.Array) -> jax.Array:
    """V(s, g) `[1, B]`, as of an ensemble of one: the lower of two, or their mean."""
    logits = represented_value(nets, params, s, g)
    both = values(logits, edges(config.longest, config.num_bins), config.discount)
    return (both.min(axis=0) if config.aggregate == "min" else both.mean(axis=0))[None]


def value_loss(nets: Levels, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """−Σ_i E log P_i(when g is reached, or that it is not before the episode ends | s, g)."""
    config, steps, reached = state.config, batch["value_steps"], batch["value_reached"]
    bins = edges(config.longest, config.num_bins)
    logits = represented_value(nets, params, batch["observations"], batch["value_goals"])
    loss = -log_likelihood(logits, bins, steps, reached).mean(axis=-1).sum()
    found = values(logits, bins, config.discount)
    metrics = {"loss": loss, "v_mean": found.mean(), "v_max": found.max(), "v_min": found.min()}
    return loss, {f"value/{name}": x for name, x in metrics.items()} | {"value/reached": reached.mean()}


def update(nets: Levels, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of all losses at the same parameters; nothing has a slow copy."""
    both = [partial(loss, partial(v, state.config), represented) for loss in (low_actor_loss, high_actor_loss)]
    rates = dict.fromkeys(nets._fields, state.config.learning_rate)
    return descend(nets, state, batch, key, (value_loss, *both), rates)


make = Maker(
    networks, update, act_by_levels, acting=both_levels,
    batch=lambda config: Goals(config.actor_goals, config.value_goals, config.discount, config.subgoal_steps),
)  # fmt: skip
