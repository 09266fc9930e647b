"""LAVL: latent-aligned value learning (https://arxiv.org/abs/2605.25740), HIQL with a distance between latents.

The value is minus the distance from a latent of the state to one of the goal's representation, which must not change
by more than one step is worth between a state and the next, for whichever goal.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.data.goals import GoalMix
from flowrl.data.samplers import Goals
from flowrl.encoders import GoalRep
from flowrl.losses import GoalValue, goal_value_loss
from flowrl.networks import MLP, Spec, named, vector
from flowrl.optim import Clip, Stage, in_stages, polyak, stage
from flowrl.policies import LEVELS, Levels, act_by_levels, both_levels, high_actor_loss, low_actor_loss
from flowrl.train_state import Batch, Loss, Metrics, Params, TrainState

SHARPNESS = 10.0
"""How suddenly the bound on a step's difference sets in."""
ANYWHERE = GoalMix(p_trajectory=0.0, p_random=1.0)
"""Goals to which the value may not change by more in a step."""


@config
class Config:
    """The authors' defaults, and where these differ from all of their runs in mazes what these have."""

    value: GoalValue = nested(GoalValue(expectile=0.9))
    value_goals: GoalMix = nested(GoalMix(p_trajectory=0.5, p_random=0.3, geometric=True))
    actor_goals: GoalMix = nested(GoalMix(p_trajectory=0.5, p_random=0.5))
    hidden_dims: tuple[int, ...] = static((512, 512, 512), "Hidden layers of every network.")
    batch_size: int = static(1024, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    max_grad_norm: float = traced(1000.0, "All gradients together are clipped to this norm; 0 is off.")
    discount: float = traced(0.999, "Discount per environment step.", high=0.999999)
    rep_dim: int = static(10, "Size of the goal representation.")
    latent_dim: int = static(64, "Size of the latents whose distance is the value.")
    smoothness: float = traced(10.0, "Weight of the bound on how much the value changes in a step.")
    low_actor_rep_grad: bool = static(True, "Whether the low-level policy also trains the representation.")
    high_actor_rep_grad: bool = static(True, "Whether the high-level policy also trains the representation.")
    low_alpha: float = traced(3.0, "Inverse temperature of the low-level policy's advantage weights.")
    high_alpha: float = traced(1.0, "Inverse temperature of the high-level policy's advantage weights.")
    subgoal_steps: int = traced(25, "Environment steps to a subgoal.", low=1)

    def problem(self, prefix: str) -> str:
        """Says where policies are to train what stays."""
        low, high = self.low_actor_rep_grad, self.high_actor_rep_grad
        return self.value.refusal(prefix, low_actor_rep_grad=low, high_actor_rep_grad=high)


State = TrainState[Config]


class Distance(nn.Module):
    """√(‖φ(s) − ψ(x)‖² + 1e-6) of two latents, each by an MLP with LayerNorm.

    Attributes:
        hidden_dims: Sizes of the hidden layers.
        latent_dim: Size of the latents.
    """

    hidden_dims: tuple[int, ...]
    latent_dim: int

    @nn.compact
    def __call__(self, observations: jax.Array, goals: jax.Array) -> jax.Array:
        """Maps `[..., D]` and `[..., R]` to `[...]`."""
        state, goal = (
            MLP(self.hidden_dims, self.latent_dim, layer_norm=True, name=name)(x)
            for name, x in (("state", observations), ("goal", goals))
        )
        return jnp.sqrt(jnp.sum((state - goal) ** 2, axis=-1) + 1e-6)


def networks(config: Config, spec: Spec) -> Levels:
    """Builds the networks."""
    (s, _, g, _), represented, layers = spec.inputs(), vector(1, config.rep_dim), config.hidden_dims
    return Levels(**named(
        goal_rep=(GoalRep(layers, config.rep_dim), g),
        value=(Distance(layers, config.latent_dim), s, represented),
        low_actor=(MLP(layers, spec.action_dim, final_scale=1e-2), s, represented),
        high_actor=(MLP(layers, config.rep_dim, final_scale=1e-2), s, g),
    ))  # fmt: skip


def rep(nets: Levels, params: Params, s: jax.Array, g: jax.Array) -> jax.Array:
    """φ(g) `[B, R]`, the same from every state."""
    return nets.goal_rep(params, g)


def v(nets: Levels, params: Params, s: jax.Array, g: jax.Array) -> jax.Array:
    """V(s, g) = −d(s, φ(g)) `[1, B]`, as of an ensemble of one."""
    return -nets.value(params, s, rep(nets, params, s, g))[None]


def smoothness_loss(nets: Levels, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """w E softplus(10 (ΔV² − c²)) / 10, ΔV = V(s', g) − V(s, g) for any goal g, c = 1 − (1 − γ) mean V.

    c is what one step is worth to a goal of the mean value, of which a running mean is kept.
    """
    config, g = state.config, batch["more_goals"]
    change = v(nets, params, batch["next_observations"], g) - v(nets, params, batch["observations"], g)
    bound = 1 - (1 - config.discount) * state.extras["v_mean"]
    smoothness = jax.nn.softplus(SHARPNESS * (change**2 - bound**2)).mean() / SHARPNESS
    return config.smoothness * smoothness, {"value/smoothness": smoothness, "value/bound": bound}


def update(nets: Levels, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of all losses at the same parameters; slow copies and running mean follow those before it."""
    config, rate = state.config, state.config.value.target_rate
    low = partial(low_actor_loss, v, rep, relative_to_batch=True)
    high = partial(high_actor_loss, v, rep, rep_grad=config.high_actor_rep_grad, relative_to_batch=True)
    values: Stage[Config] = Stage([partial(goal_value_loss, v), smoothness_loss], ("goal_rep", "value"))
    rates, clip = dict.fromkeys(nets._fields, config.learning_rate), Clip(config.max_grad_norm, jointly=True, slack=0.0)
    stages = values, Stage([low, high], LEVELS)
    moved, metrics = in_stages(config.value.steps, nets, state, batch, key, stages, rates, clip)
    values_learn, _ = stage(config.value.steps, state.step)
    v_mean = state.extras["v_mean"] + values_learn * rate * (metrics["value/v_mean"] - state.extras["v_mean"])
    moved = moved.replace(extras={"v_mean": v_mean})
    return polyak(moved, state.params, value=rate, goal_rep=rate), metrics


make = Maker(
    networks, update, act_by_levels, targets=("value", "goal_rep"), acting=both_levels,
    extras=lambda config: {"v_mean": -1 / (1 - config.discount)},
    batch=lambda config: Goals(
        config.actor_goals, config.value_goals, config.discount, config.subgoal_steps, config.value.horizon, ANYWHERE
    ),
)  # fmt: skip
