"""Decision Diffuser: plans of states by diffusion that knows the return, and actions between them.

https://arxiv.org/abs/2211.15657. A plan takes 2T evaluations of the U-Net, T = 200, with the return and without; then
the inverse dynamics say what leads to its next states. A new plan is made after each action, or after `played` of them.
The defaults are those of the authors' code, which is for hopper-medium-expert.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.data.segments import Plans, Segments
from flowrl.diffusion import Diffusion
from flowrl.losses import mse
from flowrl.networks import MLP, Network, Spec, fan_in_uniform, named, vector
from flowrl.optim import LateTarget, descend, polyak
from flowrl.temporal import TemporalUNet, pinned
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState


@config
class Config:
    """The settings of the authors' code."""

    diffusion: Diffusion = nested(
        Diffusion(levels=200, schedule="cosine", schedule_scale=1.0, bound=5.0, temperature=0.5)
    )  # fmt: skip
    plans: Plans = nested(Plans(length=100))
    slow: LateTarget = nested(LateTarget(start=2000, interval=10, early=1.0))
    hidden_dims: tuple[int, ...] = static((128, 512, 1024), "Channels at each resolution of the U-Net.")
    inverse_dims: tuple[int, ...] = static((256, 256), "Hidden layers of the inverse dynamics.")
    batch_size: int = static(64, "Plans per update.", high=MOST_COUNT)
    learning_rate: float = traced(2e-4, "Adam's step size, for every network.")
    unknown: float = traced(0.25, "Share of plans whose return the U-Net is not told.", high=1.0)
    guidance: float = traced(1.2, "Weight w of what the return changes.", acting=True)
    target_return: float = traced(0.9, "The return that is asked for, divided by its scale.", low=-1e9, acting=True)
    return_scale: float = traced(400.0, "Returns are divided by this.", low=1e-6)


State = TrainState[Config]


class Networks(NamedTuple):
    """A plan x is `[H, D]`; with R and 1, or with anything and 0 where the return is not told."""

    spec: Spec
    plan: Network  # x_t [B, H, D], level [B, 1], R [B, 1], told [B, 1] -> noise [B, H, D]
    inverse: Network  # s [B, D], s' [B, D] -> [B, A]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks; what is played in a row is one action to the specification."""
    s, a, _, t = spec.inputs()
    actions = a.shape[-1] // config.plans.played
    inverse = MLP(config.inverse_dims, actions, nn.relu, kernel_init=fan_in_uniform, final_init=fan_in_uniform)
    x = vector(1, config.plans.length, s.shape[-1])
    return Networks(spec, **named(plan=(TemporalUNet(config.hidden_dims), x, t, t, t), inverse=(inverse, s, s)))


def plan_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """½ E |ε − ε̂(x_t, t, R)|², R unknown to some (eq. 8); the first state is in x_t, and has no error."""
    (told_key, noise_key), config, x, s = jax.random.split(key), state.config, batch["states"], batch["observations"]
    told = jax.random.bernoulli(told_key, 1 - config.unknown, (len(x), 1))
    returns = batch["returns"][:, None] / config.return_scale

    def field(x: jax.Array, level: jax.Array) -> jax.Array:
        return nets.plan(params, pinned(x, s), level[..., 0], returns, told)

    weights = pinned(jnp.ones(x.shape[1:]), jnp.zeros(x.shape[-1]))
    errors = config.diffusion.errors(field, x, noise_key, weights)
    loss = 0.5 * (batch["valid"] * errors).mean()
    return loss, {"plan/loss": loss, "plan/valid": batch["valid"].mean(), "plan/return": returns.mean()}


def inverse_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """½ E |a − f(s, s')|² over all steps of a plan (eq. 8)."""
    x, a = batch["states"], batch["actions"][:, :-1]
    valid = jnp.broadcast_to(batch["actions_valid"][:, 1:, None], a.shape)  # the next state is another
    loss = 0.5 * (batch["valid"] * mse(nets.inverse(params, x[:, :-1], x[:, 1:]), a, valid)).mean()
    return loss, {"inverse/loss": loss}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """A joint step of both networks, then their slow copies."""
    config, losses = state.config, (plan_loss, inverse_loss)
    moved, metrics = descend(nets, state, batch, key, losses, dict.fromkeys(state.params, config.learning_rate))
    return polyak(moved, moved.params, **dict.fromkeys(state.params, config.slow.at(state.step))), metrics


def plan(nets: Networks, policy: Policy[Config], s: jax.Array, key: jax.Array) -> jax.Array:
    """Denoises plans from s by ε̂ = ε(∅) + w (ε(R) − ε(∅)), cool (algorithm 1): `[..., D]` to `[..., H, D]`."""
    (z_key, steps_key), config, params = jax.random.split(key), policy.config, policy.params
    asked = jnp.full((1,), config.target_return)

    def field(x: jax.Array, level: jax.Array) -> jax.Array:
        plans, level = pinned(x, s), level[..., 0]
        without, within = (nets.plan(params, plans, level, asked, jnp.full((1,), told)) for told in (0.0, 1.0))
        return without + config.guidance * (within - without)

    noise = jax.random.normal(z_key, (1, *s.shape[:-1], config.plans.length, s.shape[-1]))
    x = config.diffusion.sample(field, config.diffusion.temperature * noise, steps_key, looped=True)
    return pinned(x, s)[0]


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """What leads to the next states of a plan, clipped to [−1, 1]."""
    config, s = policy.config, inputs["observations"]
    states = plan(nets, policy, s, key)[..., : config.plans.played + 1, :]
    actions = nets.inverse(policy.params, states[..., :-1, :], states[..., 1:, :])
    return jnp.clip(actions.reshape(*s.shape[:-1], -1), -1.0, 1.0)


make = Maker(
    networks, update, act, batch=lambda config: Segments(config.plans),
    acting=lambda state: state.target_params, targets=("plan", "inverse"),
)  # fmt: skip
