"""IQL: a value of the data's better actions, and a policy regressed on them by weight (https://arxiv.org/abs/2110.06169).

The defaults are the authors'. FQL's authors run it as `joint`, with `advantage=online`, `tanh_mean=False`,
`learnt_std=False`, `decay.steps=0`, and with Glorot's initialisation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowrl import critics, policies
from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic, ImplicitValue, implicit_critic_loss, implicit_value_loss
from flowrl.data.samplers import Horizon, Transitions
from flowrl.networks import ACTIVATIONS, Network, Spec, glorot, named, orthogonal
from flowrl.optim import CosineDecay, descend, in_turn, polyak, undecayed
from flowrl.policies import Gaussian, act_gaussian
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, Scalar, TrainState


@config
class Config:
    """The settings of the authors' code, for Gym."""

    critic: Critic = nested(Critic(activation="relu", layer_norm=False))
    value: ImplicitValue = nested(ImplicitValue())
    decay: CosineDecay = nested(CosineDecay(final=0.0, warmup=0.0), "The policy's step size.")
    horizon: Horizon = nested(Horizon())
    hidden_dims: tuple[int, ...] = static((256, 256), "Hidden layers of every network.")
    activation: str = static("relu", "Nonlinearity of the policy.", choices=tuple(ACTIVATIONS))
    initialization: str = static("orthogonal", "Of all networks.", choices=("orthogonal", "glorot"))
    tanh_mean: bool = static(True, "The Gaussian's mean is squashed into (-1, 1).")
    learnt_std: bool = static(True, "Its deviations, one for each dimension, are learnt; else they are 1.")
    dropout: float = static(0.0, "Share of the policy's hidden numbers that are dropped.", low=0.0, high=0.99)
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    actor_loss: str = static("awr", "How the policy improves on the data.", choices=("awr", "ddpgbc"))
    alpha: float = traced(3.0, "Inverse temperature of advantage weights; with ddpgbc the weight of cloning.")
    advantage: str = static("target", "Critics whose values are weighed.", choices=("target", "online"))
    joint: bool = static(False, "One step of all losses at the same parameters, which the targets lag behind.")


State = TrainState[Config]


class Networks(NamedTuple):
    """The Gaussian policy, the value and the critics."""

    actor: Network  # s [B, D] -> μ [B, A], log σ [B, A]
    value: Network  # s [B, D] -> [B]
    critic: Network  # s [B, D], a [B, A] -> [heads, B]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    (s, a, _, _), layers = spec.inputs(), config.hidden_dims
    hidden, last = (orthogonal(2**0.5),) * 2 if config.initialization == "orthogonal" else (glorot(), glorot(1e-2))
    ends = {} if config.initialization == "glorot" else {"kernel_init": hidden, "final_init": last}
    actor = Gaussian(
        layers, spec.action_dim, ACTIVATIONS[config.activation], config.tanh_mean, config.learnt_std, config.dropout,
        hidden, last,
    )  # fmt: skip
    value, critic = (build(config.critic, layers, **ends) for build in (critics.value_module, critics.module))
    return Networks(**named(actor=(actor, s), value=(value, s), critic=(critic, s, a)))


def awr_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """−E min(exp(β (min Q(s, a) − V(s))), 100) log π(a | s) (eq. 7); log π with dropout, if there is any."""
    s, a, config = batch["observations"], batch["actions"], state.config
    ranking = state.target_params if config.advantage == "target" else state.params
    advantages = critics.combine(config.critic, nets.critic(ranking, s, a)) - nets.value(state.params, s)
    return policies.awr_loss(nets.actor(params, s, key=key), a, advantages, config.alpha, batch["actions_valid"])


def ddpgbc_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """−E Q(s, clip(μ(s))) / E |Q| − α E log π(a | s), as in FQL's code."""
    s, config = batch["observations"], state.config
    gaussian = nets.actor(params, s, key=key)
    q = critics.combine(config.critic, nets.critic(state.params, s, jnp.clip(gaussian[0], -1.0, 1.0)))
    return policies.ddpgbc_loss(gaussian, batch["actions"], q, config.alpha, batch["actions_valid"])


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """A step of value, policy and critics, in turn or jointly, then the target critics."""
    config, rate = state.config, state.config.learning_rate
    losses = (implicit_value_loss, awr_loss if config.actor_loss == "awr" else ddpgbc_loss, implicit_critic_loss)
    rates: dict[str, Scalar]
    rates = {"value": rate, "actor": config.decay(rate, state.step), "critic": rate}
    moved, metrics = (descend if config.joint else in_turn)(nets, state, batch, key, losses, rates)
    toward = state if config.joint else moved
    return polyak(moved, toward.params, critic=config.critic.target_rate), metrics


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """The Gaussian's mode, or with `explore` a sample; clipped to [−1, 1]."""
    return act_gaussian(nets.actor(policy.params, inputs["observations"]), key, explore)


make = Maker(networks, update, act, batch=Transitions.of, targets=("critic",), online=undecayed)
