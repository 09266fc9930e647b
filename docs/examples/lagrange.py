"""A new agent with a learnt weight: a policy maximises Q as far as it may leave the data, by Lagrange's method.

It solves max E Q(s, π(s)) under E ‖π(s) − a‖² / A ≤ ε: the weight λ of the constraint rises while it is broken, and
falls while there is room. A multiplier's logarithm is trained like a network. As `--agent=lagrange`, copied to agents/.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Transitions
from flowrl.losses import multiplier, q_size
from flowrl.networks import MLP, Network, Spec, named
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState


@config
class Config:
    """Settings of the example."""

    critic: Critic = nested(Critic())
    hidden_dims: tuple[int, ...] = static((256, 256), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for networks and weight.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    distance: float = traced(0.05, "ε, the mean squared distance from the data's actions that is allowed.")
    initial_weight: float = traced(1.0, "λ before the first update.", low=1e-8)


State = TrainState[Config]


class Networks(NamedTuple):
    """The policy and the critics; the weight is a multiplier beside them."""

    actor: Network  # s [B, D] -> [B, A], before tanh
    critic: Network  # s [B, D], a [B, A] -> [heads, B]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    s, a, _, _ = spec.inputs()
    actor, critic = MLP(config.hidden_dims, spec.action_dim), critics.module(config.critic, config.hidden_dims)
    return Networks(**named(actor=(actor, s), critic=(critic, s, a)))


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m Q̄(s', π(s')))²."""
    next_s = batch["next_observations"]
    next_q = nets.critic(state.target_params, next_s, jnp.tanh(nets.actor(state.params, next_s)))
    targets = batch["rewards"] + batch["discounts"] * critics.combine(state.config.critic, next_q)
    errors, metrics = critics.td_errors(nets.critic(params, batch["observations"], batch["actions"]), targets, batch)
    return errors.mean(), metrics


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """λ ‖π(s) − a‖² − Q(s, π(s)) / |Q| of the policy and −λ (‖π(s) − a‖² − ε) of λ, each with the other as it is."""
    s = batch["observations"]
    a = jnp.tanh(nets.actor(params, s))
    q = nets.critic(state.params, s, a)
    distance = jnp.mean((a - batch["actions"]) ** 2)
    policy = multiplier(state.params, "weight") * distance - q.mean() / q_size(q)
    too_far = jax.lax.stop_gradient(distance) - state.config.distance
    loss = policy - multiplier(params, "weight") * too_far
    return loss, {"actor/loss": policy, "actor/distance": distance, "actor/weight": multiplier(state.params, "weight")}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of networks and weight, then the target critics."""
    config = state.config
    rates = dict.fromkeys(("actor", "critic", "weight"), config.learning_rate)
    state, metrics = descend(nets, state, batch, key, (critic_loss, actor_loss), rates)
    return polyak(state, state.params, critic=config.critic.target_rate), metrics


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """The policy's action."""
    return jnp.tanh(nets.actor(policy.params, inputs["observations"]))


make = Maker(
    networks, update, act, batch=lambda config: Transitions(config.discount), targets=("critic",),
    multipliers=lambda config: {"weight": jnp.log(config.initial_weight)},
)  # fmt: skip
