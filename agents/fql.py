"""FQL: a one-step policy distilled from a behaviour flow and pulled by Q (https://arxiv.org/abs/2502.02538).

A velocity field learns the data by flow matching, noise at time 0 and data at time 1. The one-step policy μ(s, z) is
regressed on the field's Euler integral from the same noise, and maximises Q. Only μ acts.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.choice import BestOfN, choosing, one_draw, td_loss
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.generative import Flow
from flowrl.losses import q_size
from flowrl.networks import MLP, Distilled, Spec, named
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Loss, Metrics, Params, TrainState


@config
class Config:
    """The settings of the released code."""

    critic: Critic = nested(Critic(aggregate="mean"))
    behaviour: Flow = nested(Flow(steps=10))
    choice: BestOfN = nested(BestOfN())
    horizon: Horizon = nested(Horizon())
    hidden_dims: tuple[int, ...] = static((512, 512, 512, 512), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    alpha: float = traced(10.0, "Weight of distillation; depends on the scale of rewards.")
    q_alpha: float = traced(1.0, "Weight of Q in the policy's loss; 0 is behaviour cloning.")
    normalize_q: bool = static(False, "Divide the policy's Q by its mean size.")
    lagging_targets: bool = static(True, "Targets move toward the parameters before each step, as the authors' do.")


NAMES: Mapping[str, Config] = {
    "fql": Config(),
    "fql_n": Config(horizon=Horizon(steps=5), alpha=100.0),
    "qc_fql": Config(horizon=Horizon(steps=5, chunk=True), alpha=100.0),
}
"""The agents, each with its default configuration; FQL-n and QC-FQL are of https://arxiv.org/abs/2507.07969."""
State = TrainState[Config]


def networks(config: Config, spec: Spec) -> Distilled:
    """Builds the networks."""
    s, a, _, t = spec.inputs()
    field, critic = MLP(config.hidden_dims, spec.action_dim), critics.module(config.critic, config.hidden_dims)
    return Distilled(spec, **named(flow=(field, s, a, t), actor=(field, s, a), critic=(critic, s, a)))


def sample(nets: Distilled, config: Config, params: Params, s: jax.Array, key: jax.Array) -> jax.Array:
    """One action μ(s, z) per state, clipped: `[..., D]` to `[..., A]`."""
    return jnp.clip(nets.actor(params, s, nets.spec.noise(key, s)), -1.0, 1.0)


def critic_loss(nets: Distilled, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m Q̄(s', μ(s', z)))² (eq. 4)."""
    return td_loss(sample, nets, params, state, batch, key, actors=state.params)


def actor_loss(nets: Distilled, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """Flow matching + α ‖μ(s, z) − flow(s, z)‖² − Q(s, μ(s, z)) (eqs. 3, 8); Q and the integral are constants."""
    flow_key, z_key = jax.random.split(key)
    config, s = state.config, batch["observations"]
    field, valid = partial(nets.flow, params, s), batch["actions_valid"]
    flow = config.behaviour.errors(field, batch["actions"], flow_key, valid).mean()
    z = nets.spec.noise(z_key, s)
    a = nets.actor(params, s, z)
    integral = config.behaviour.actions(partial(nets.flow, state.params, s), z)
    distill = jnp.mean((a - integral) ** 2)
    values = nets.critic(state.params, s, jnp.clip(a, -1.0, 1.0))
    q = values.mean() / q_size(values) if config.normalize_q else values.mean()
    loss = flow + config.alpha * distill - config.q_alpha * q
    metrics = {"flow_loss": flow, "distill_loss": distill, "q_loss": -q, "q_mean": values.mean(), "loss": loss}
    return loss, {f"actor/{name}": value for name, value in metrics.items()}


def update(nets: Distilled, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of both losses at the same parameters, then the target critics."""
    config = state.config
    rates = dict.fromkeys(("flow", "actor", "critic"), config.learning_rate)
    moved, metrics = descend(nets, state, batch, key, (critic_loss, actor_loss), rates)
    toward = state if config.lagging_targets else moved
    return polyak(moved, toward.params, critic=config.critic.target_rate), metrics


make = choosing(networks, update, sample, batch=Transitions.of, targets=("critic",), explores=one_draw)
