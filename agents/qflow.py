"""Q-Flow: a flow steered by the slope of a value of its intermediate points (https://arxiv.org/abs/2605.13435).

V(s, x, t) is Q of the action that the flow makes of the point x at time t. The velocity is regressed on that of the
data plus V's slope there, so that no gradient passes the flow's steps.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.choice import BestOfN, choosing, td_loss
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.encoders import rising_sinusoidal_features
from flowrl.generative import Flow
from flowrl.losses import mse
from flowrl.networks import MLP, Network, Spec, named, vector
from flowrl.optim import descend, polyak
from flowrl.paths import Path, onward, straight, uniform_times
from flowrl.train_state import Batch, Loss, Metrics, Params, TrainState


@config
class Config:
    """The settings of the released code."""

    critic: Critic = nested(Critic(aggregate="mean"))
    flow: Flow = nested(Flow(steps=10))
    choice: BestOfN = nested(BestOfN(aggregate="mean", critics="online"))
    horizon: Horizon = nested(Horizon())
    hidden_dims: tuple[int, ...] = static((512, 512, 512, 512), "Hidden layers of every network.")
    time_dim: int = static(16, "Size of the features of times that the intermediate value sees.", low=2)
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    alpha: float = traced(10.0, "λ, by which the intermediate value's slope is divided.", low=1e-8)


State = TrainState[Config]


class Networks(NamedTuple):
    """The flow, the critics and the intermediate values."""

    spec: Spec
    actor: Network  # s [B, D], x [B, A], t [B, 1] -> velocity [B, A]
    critic: Network  # s [B, D], a [B, A] -> [heads, B]
    value: Network  # s [B, D], x [B, A], features of t [B, time_dim] -> [heads, B]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    (s, a, _, t), layers = spec.inputs(), config.hidden_dims
    field, value = MLP(layers, spec.action_dim), partial(critics.module, config.critic, layers)
    features = vector(1, config.time_dim // 2 * 2)
    return Networks(spec, **named(actor=(field, s, a, t), critic=(value(), s, a), value=(value(), s, a, features)))


def sample(nets: Networks, config: Config, params: Params, s: jax.Array, key: jax.Array) -> jax.Array:
    """One action of the flow per state, clipped: `[..., D]` to `[..., A]`."""
    return config.flow.actions(partial(nets.actor, params, s), nets.spec.noise(key, s))


def values(nets: Networks, config: Config, params: Params, s: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
    """V(s, x, t) `[heads, B]`."""
    return nets.value(params, s, x, rising_sinusoidal_features(t, config.time_dim))


def between(nets: Networks, batch: Batch, key: jax.Array) -> tuple[Path, jax.Array]:
    """Points between noise and the data's actions at uniform times, and the times `[B, 1]`."""
    z_key, t_key = jax.random.split(key)
    t = uniform_times(t_key, (len(batch["actions"]), 1))
    return straight(nets.spec.noise(z_key, batch["observations"]), batch["actions"], t), t


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m agg Q̄(s', a'))², a' of the flow."""
    return td_loss(sample, nets, params, state, batch, key, actors=state.params)


def value_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (agg V(s, x_t, t) − agg Q̄(s, a))², a where the flow leads from x_t; heads are combined before the square."""
    (path, t), config, s = between(nets, batch, key), state.config, batch["observations"]
    a = jnp.clip(onward(partial(nets.actor, state.params, s), path.points, t, config.flow.steps), -1.0, 1.0)
    targets = critics.combine(config.critic, nets.critic(state.target_params, s, a))
    plain = dataclasses.replace(config.critic, rho=0.0)
    v = critics.combine(plain, values(nets, config, params, s, path.points, t))
    loss = jnp.mean(batch["valid"] * (v - jax.lax.stop_gradient(targets)) ** 2)
    return loss, {"value/loss": loss, "value/v_mean": v.mean()}


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E ‖v(s, x_t, t) − (a − z) − ∇ₓ mean V(s, x_t, t)/λ‖², the slope held constant."""
    (path, t), config, s = between(nets, batch, key), state.config, batch["observations"]
    slope = jax.grad(lambda x: values(nets, config, state.params, s, x, t).mean(axis=0).sum())(path.points)
    errors = mse(nets.actor(params, s, path.points, t), path.velocities + slope / config.alpha)
    loss = jnp.mean(batch["valid"] * errors)
    return loss, {"actor/loss": loss, "actor/slope": jnp.abs(slope).mean()}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of all losses at the same parameters, then the target critics toward those before the step."""
    config = state.config
    rates = dict.fromkeys(("actor", "critic", "value"), config.learning_rate)
    moved, metrics = descend(nets, state, batch, key, (critic_loss, value_loss, actor_loss), rates)
    return polyak(moved, state.params, critic=config.critic.target_rate), metrics


make = choosing(networks, update, sample, batch=Transitions.of, targets=("critic",))
