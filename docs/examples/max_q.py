"""A new agent in one file: a deterministic policy that maximises Q and stays near the data, in the spirit of TD3+BC.

Copied into agents/, it is `--agent=max_q`, with flags, presets `quick` and `none`, seeds, resuming and plots.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Transitions
from flowrl.losses import q_size
from flowrl.networks import MLP, Network, Spec, named
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState


@config
class Config:
    """Fields become flags, `--agent.alpha` and `--agent.critic.heads`; runs of a sweep may differ in traced ones."""

    critic: Critic = nested(Critic())
    hidden_dims: tuple[int, ...] = static((256, 256), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    alpha: float = traced(2.5, "Weight of Q against behaviour cloning.")
    actor_target_rate: float = traced(0.005, "Polyak rate of the target policy.", high=1.0)


State = TrainState[Config]


class Networks(NamedTuple):
    """The policy and the critics."""

    actor: Network  # s [B, D] -> [B, A], before tanh
    critic: Network  # s [B, D], a [B, A] -> [heads, B]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    s, a, _, _ = spec.inputs()
    actor, critic = MLP(config.hidden_dims, spec.action_dim), critics.module(config.critic, config.hidden_dims)
    return Networks(**named(actor=(actor, s), critic=(critic, s, a)))


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m Q̄(s', π̄(s')))²: only `params` receive gradients, all of `state` is constant."""
    next_s, slow = batch["next_observations"], state.target_params
    next_q = critics.combine(state.config.critic, nets.critic(slow, next_s, jnp.tanh(nets.actor(slow, next_s))))
    targets = batch["rewards"] + batch["discounts"] * next_q
    errors, metrics = critics.td_errors(nets.critic(params, batch["observations"], batch["actions"]), targets, batch)
    return errors.mean(), metrics


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E ‖π(s) − a‖² − α Q(s, π(s)) / |Q|."""
    s = batch["observations"]
    a = jnp.tanh(nets.actor(params, s))
    q = nets.critic(state.params, s, a)
    bc = jnp.mean((a - batch["actions"]) ** 2)
    loss = bc - state.config.alpha * q.mean() / q_size(q)
    return loss, {"actor/loss": loss, "actor/bc_loss": bc}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step, then the targets."""
    config = state.config
    rates = {"actor": config.learning_rate, "critic": config.learning_rate}
    state, metrics = descend(nets, state, batch, key, (critic_loss, actor_loss), rates)
    return polyak(state, state.params, actor=config.actor_target_rate, critic=config.critic.target_rate), metrics


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """The policy's action."""
    return jnp.tanh(nets.actor(policy.params, inputs["observations"]))


make = Maker(networks, update, act, batch=lambda config: Transitions(config.discount), targets=("actor", "critic"))
