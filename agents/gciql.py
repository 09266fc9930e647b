"""GCIQL: goal-conditioned implicit Q-learning (IQL, https://arxiv.org/abs/2110.06169), as in OGBench."""

from functools import partial
from typing import NamedTuple

import jax

from flowrl import critics
from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic, ImplicitValue, implicit_critic_loss, implicit_value_loss
from flowrl.data.goals import GoalMix
from flowrl.data.samplers import Goals
from flowrl.networks import ACTIVATIONS, Network, Spec, named
from flowrl.optim import descend, polyak
from flowrl.policies import Gaussian, act_gaussian, act_toward_goals, awr_loss, ddpgbc_loss
from flowrl.train_state import Batch, Loss, Metrics, Params, TrainState


@config
class Config:
    """OGBench's defaults; the policy's loss and its weight are chosen for each dataset."""

    critic: Critic = nested(Critic())
    value: ImplicitValue = nested(ImplicitValue(expectile=0.9))
    value_goals: GoalMix = nested(GoalMix(p_trajectory=0.5, p_random=0.3, geometric=True))
    actor_goals: GoalMix = nested(GoalMix())
    hidden_dims: tuple[int, ...] = static((512, 512, 512), "Hidden layers of every network.")
    batch_size: int = static(1024, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    actor_loss: str = static("ddpgbc", "How the policy improves on the data.", choices=("awr", "ddpgbc"))
    alpha: float = traced(0.3, "With ddpgbc the weight of cloning; with awr inverse temperature of advantage weights.")
    learnt_std: bool = static(False, "The policy's deviations, one for each dimension, are learnt; else they are 1.")


State = TrainState[Config]
GOALS = ("value_goals",)


class Networks(NamedTuple):
    """The Gaussian policy, the value and the critics."""

    actor: Network  # s [B, D], g [B, G] -> μ [B, A], log σ [B, A]
    value: Network  # s [B, D], g [B, G] -> [B]
    critic: Network  # s [B, D], g [B, G], a [B, A] -> [heads, B]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    (s, a, g, _), layers = spec.inputs(), config.hidden_dims
    actor = Gaussian(layers, spec.action_dim, ACTIVATIONS["gelu"], tanh=False, learnt_std=config.learnt_std)
    value, critic = (build(config.critic, layers) for build in (critics.value_module, critics.module))
    return Networks(**named(actor=(actor, s, g), value=(value, s, g), critic=(critic, s, g, a)))


def q(nets: Networks, state: State, s: jax.Array, g: jax.Array, a: jax.Array) -> jax.Array:
    """min Q(s, g, a) `[B]` of the trained critics as they are."""
    return critics.combine(state.config.critic, nets.critic(state.params, s, g, a))


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """AWR by A = min Q(s, a, g) − V(s, g), or DDPG+BC by min Q(s, clip(a_π), g).

    a_π is the Gaussian's mode, or a draw where its deviations are learnt.
    """
    s, a, g, config = batch["observations"], batch["actions"], batch["actor_goals"], state.config
    gaussian = nets.actor(params, s, g)
    if config.actor_loss == "awr":
        return awr_loss(gaussian, a, q(nets, state, s, g, a) - nets.value(state.params, s, g), config.alpha)
    improved = act_gaussian(gaussian, key, explore=config.learnt_std)
    return ddpgbc_loss(gaussian, a, q(nets, state, s, g, improved), config.alpha, constant=1e-6)


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of all losses at the same parameters, then the target critics toward those before the step."""
    config = state.config
    losses = (partial(implicit_value_loss, goals=GOALS), partial(implicit_critic_loss, goals=GOALS), actor_loss)
    rates = dict.fromkeys(("value", "critic", "actor"), config.learning_rate)
    moved, metrics = descend(nets, state, batch, key, losses, rates)
    return polyak(moved, state.params, critic=config.critic.target_rate), metrics


make = Maker(networks, update, act_toward_goals, batch=Goals.of, targets=("critic",))
