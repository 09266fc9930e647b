"""RQL: values of a flow's intermediate points, learnt along its reversal (https://arxiv.org/abs/2606.17551).

The steps of a flow are actions of an expanded problem without rewards: V(s, x, f) is what the action will earn that the
flow makes of the point x at time f, and V(s, a, 1) is Q. The flow, reversed from the data's actions, says where V is
learnt, so that no action is drawn for a target: what follows is worth V(s', z, 0) at noise z. The velocity is pulled
along V one step on.
"""

from functools import partial

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, put, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.generative import Flow
from flowrl.losses import expectile_weight, mse
from flowrl.networks import MLP, Networks, Spec, named
from flowrl.optim import descend, polyak
from flowrl.paths import backward, straight, uniform_times
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState


@config
class Config:
    """The settings of the released commands, for chunks as on manipulation tasks."""

    critic: Critic = nested(Critic(heads=10, aggregate="mean", rho=0.5), "The values.")
    flow: Flow = nested(Flow(steps=10))
    horizon: Horizon = nested(Horizon(steps=5, chunk=True))
    hidden_dims: tuple[int, ...] = static((512, 512, 512, 512), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    expectile: float = traced(0.9, "κ of the values' regression.", high=1.0)
    alpha: float = traced(1.0, "Weight of flow matching beside the values.")
    actor_target_rate: float = traced(0.001, "Polyak rate of the acting copy of the flow.", high=1.0)
    slow: bool = static(True, "Act by the slow copy of the flow; it explores by the trained one.", acting=True)


State = TrainState[Config]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks: the actor takes s [B, D], x [B, A], f [B, 1] to a velocity [B, A], the critic to values."""
    s, a, _, t = spec.inputs()
    field, critic = MLP(config.hidden_dims, spec.action_dim), critics.module(config.critic, config.hidden_dims)
    return Networks(spec, **named(actor=(field, s, a, t), critic=(critic, s, a, t)))


def spans(key: jax.Array, rows: int, steps: int) -> jax.Array:
    """How far to go back along the flow, half of it anywhere and half of it by whole steps: d `[B, 1]`."""
    uniform_key, grid_key = jax.random.split(key)
    anywhere = jax.random.uniform(uniform_key, (rows // 2,))
    whole = jax.random.randint(grid_key, (rows - rows // 2,), 0, steps + 1) / steps
    return jnp.concatenate([anywhere, whole])[:, None]


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E |κ − 1{u < 0}| u², u = r + γ m (mean V̄ − ρ std V̄)(s', z, 0) − V(s, x, f), x on the flow reversed from a."""
    (z_key, span_key), config = jax.random.split(key), state.config
    s, a, next_s = batch["observations"], batch["actions"], batch["next_observations"]
    next_v = nets.critic(state.target_params, next_s, nets.spec.noise(z_key, next_s), jnp.zeros((len(a), 1)))
    targets = batch["rewards"] + batch["discounts"] * critics.combine(config.critic, next_v)
    steps, field = config.flow.steps, partial(nets.actor, state.params, s)
    x, f = backward(field, a, spans(span_key, len(a), steps), steps)
    v = nets.critic(params, s, x, f)
    errors, metrics = critics.td_errors(v, targets, batch)
    loss = jnp.mean(expectile_weight(targets - v, config.expectile) * errors)
    return loss, metrics | {"critic/loss": loss}


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """α · flow matching − mean V(s, x + v/N, f + 1/N), v the velocity at x and time f, with constant values."""
    (z_key, f_key), config, s, a = jax.random.split(key), state.config, batch["observations"], batch["actions"]
    f = uniform_times(f_key, (len(a), 1))
    path = straight(nets.spec.noise(z_key, s), a, f)
    velocities, size = nets.actor(params, s, path.points, f), jnp.minimum(1 / config.flow.steps, 1 - f)
    flow = mse(velocities, path.velocities, batch["actions_valid"]).mean()
    later = jnp.minimum(f + 1 / config.flow.steps, 1.0)
    v = nets.critic(state.params, s, path.points + size * velocities, later).mean(axis=0)
    loss = config.alpha * flow - jnp.mean(batch["valid"] * v)
    return loss, {"actor/loss": loss, "actor/flow_loss": flow, "actor/v_mean": v.mean()}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of both losses at the same parameters, then the slow copies toward those before the step."""
    config = state.config
    rates = dict.fromkeys(("actor", "critic"), config.learning_rate)
    moved, metrics = descend(nets, state, batch, key, (critic_loss, actor_loss), rates)
    return polyak(moved, state.params, critic=config.critic.target_rate, actor=config.actor_target_rate), metrics


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """One draw of noise through the flow, which explores by itself, clipped."""
    s, params = inputs["observations"], policy.params
    return policy.config.flow.actions(partial(nets.actor, params, s), nets.spec.noise(key, s))


make = Maker(
    networks, update, act, batch=Transitions.of, targets=("actor", "critic"),
    acting=lambda state: {"actor": (state.target_params if state.config.slow else state.params)["actor"]},
    explores=lambda config: put(config, {"slow": False}),
)  # fmt: skip
