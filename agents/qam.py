"""QAM: a flow tilted toward Q by adjoint matching, without gradients through its steps (https://arxiv.org/abs/2601.14234).

One velocity field clones the behaviour. Another is fitted to the optimal control of its memoryless process, so that it
acts as behaviour · exp(τ Q) (`flowrl.adjoint`). QAM-F distills that into one step, QAM-E edits it; both maximise Q too.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl import adjoint, critics
from flowrl.choice import BestOfN, choosing, td_loss, with_critic
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.generative import Flow
from flowrl.losses import multiplier, temperature_loss
from flowrl.networks import MLP, Network, Spec, named
from flowrl.optim import Clip, descend, polyak
from flowrl.policies import SquashedGaussian, edited
from flowrl.train_state import Batch, Loss, Metrics, Params, TrainState

PLAYERS = {"flow": ("actor",), "one_step": ("one_step",), "edit": ("actor", "edit")}  # what acts


@config
class Config:
    """The settings of the released code, for chunks as on manipulation tasks."""

    critic: Critic = nested(Critic(heads=10, aggregate="mean", rho=0.5))
    flow: Flow = nested(Flow(steps=10), "Of both flows, and of the process.")
    choice: BestOfN = nested(BestOfN(aggregate="mean", critics="online"))
    horizon: Horizon = nested(Horizon(steps=5, chunk=True))
    hidden_dims: tuple[int, ...] = static((512, 512, 512, 512), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    max_grad_norm: float = traced(1.0, "All networks' gradients together are clipped to this norm; 0 is off.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    inverse_temperature: float = traced(0.3, "τ, how strongly the acting flow is tilted toward Q.")
    acts: str = static("flow", "The tilted flow, a one-step copy of it, or its edited actions.", choices=tuple(PLAYERS))
    alpha: float = traced(30.0, "Weight of distillation; read where a one-step policy acts.")
    edit_scale: float = traced(0.1, "Largest edit of an action; read where edited actions act.")
    edit_entropy: float = traced(-0.5, "Entropy that edits aim at, per dimension.", low=float("-inf"))


NAMES: Mapping[str, Config] = {"qam": Config(), "qam_f": Config(acts="one_step"), "qam_e": Config(acts="edit")}
"""The agents, each with its default configuration."""
State = TrainState[Config]


class Networks(NamedTuple):
    """The behaviour flow, the tilted flow and the critics, and what acts beside them."""

    spec: Spec
    flow: Network  # s [B, D], x [B, A], t [B, 1] -> velocity [B, A]
    actor: Network  # the same
    critic: Network  # s [B, D], a [B, A] -> [heads, B]
    one_step: Network  # s [B, D], z [B, A] -> action [B, A]
    edit: Network  # s [B, D], a [B, A] -> μ [B, A], log σ [B, A]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    (s, a, _, t), layers = spec.inputs(), config.hidden_dims
    field, edit = MLP(layers, spec.action_dim), SquashedGaussian(layers, spec.action_dim, nn.gelu, (-20.0, 2.0), 1.0)
    return Networks(spec, **named(
        flow=(field, s, a, t), actor=(field, s, a, t), critic=(critics.module(config.critic, layers), s, a),
        one_step=(field, s, a) if config.acts == "one_step" else (), edit=(edit, s, a) if config.acts == "edit" else (),
    ))  # fmt: skip


def sample(nets: Networks, config: Config, params: Params, s: jax.Array, key: jax.Array) -> jax.Array:
    """One action per state, of what acts: `[..., D]` to `[..., A]`."""
    z_key, edit_key = jax.random.split(key)
    z = nets.spec.noise(z_key, s)
    if config.acts == "one_step":
        return jnp.clip(nets.one_step(params, s, z), -1.0, 1.0)
    a = config.flow.actions(partial(nets.actor, params, s), z)
    return edited(nets.edit(params, s, a), a, config.edit_scale, edit_key)[0] if config.acts == "edit" else a


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m (mean Q̄ − ρ std Q̄)(s', a'))², a' of what acts."""
    return td_loss(sample, nets, params, state, batch, key, actors=state.params)


def flow_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """Flow matching of the behaviour; chunks that cross the end of an episode do not count at all."""
    errors = state.config.flow.errors(partial(nets.flow, params, batch["observations"]), batch["actions"], key)
    return jnp.mean(batch["valid"] * errors), {"actor/flow_loss": jnp.mean(batch["valid"] * errors)}


def adjoint_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E Σ_t ‖2 (v − v̄)/σ + σ g‖², g carried back from −τ ∇ mean Q̄(s, clip(a)) by the slow behaviour flow v̄."""
    (z_key, noise_key), config, s = jax.random.split(key), state.config, batch["observations"]
    base, z = partial(nets.flow, state.target_params, s), nets.spec.noise(z_key, s)
    noise = jax.random.normal(noise_key, (config.flow.steps - 1, *z.shape))
    points = adjoint.memoryless(partial(nets.actor, state.params, s), base, z, noise)
    slope = jax.grad(lambda a: nets.critic(state.target_params, s, jnp.clip(a, -1.0, 1.0)).mean(axis=0).sum())
    slopes = -config.inverse_temperature * slope(points[-1])
    errors = adjoint.errors(partial(nets.actor, params, s), base, points, adjoint.lean(base, points, slopes))
    return errors.mean(), {"actor/adjoint_loss": errors.mean(), "actor/adjoint": jnp.abs(slopes).mean()}


def one_step_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """QAM-F: α ‖μ(s, z) − flow(s, z)‖² − mean Q(s, μ(s, z)); Q and the tilted flow are constants."""
    s, z = batch["observations"], nets.spec.noise(key, batch["observations"])
    a = nets.one_step(params, s, z)
    distill = jnp.mean((a - state.config.flow.actions(partial(nets.actor, state.params, s), z)) ** 2)
    q = nets.critic(state.params, s, jnp.clip(a, -1.0, 1.0)).mean()
    return state.config.alpha * distill - q, {"actor/distill_loss": distill, "actor/q_mean": q}


def edit_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """QAM-E: E[α log π(e | s, a) − mean Q(s, a + e)] for edits e of the flow's a, and α (H − H̄) for α."""
    (z_key, edit_key), config, s = jax.random.split(key), state.config, batch["observations"]
    a = config.flow.actions(partial(nets.actor, state.params, s), nets.spec.noise(z_key, s))
    a, log_probs = edited(nets.edit(params, s, a), a, config.edit_scale, edit_key)
    q, target = nets.critic(state.params, s, a).mean(), config.edit_entropy * nets.spec.action_dim
    loss = multiplier(state.params) * log_probs.mean() - q + temperature_loss(params, log_probs, target)
    return loss, {"actor/edit_loss": loss, "actor/q_mean": q, "actor/entropy": -log_probs.mean()}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of all losses at the same parameters, then the slow copies toward those before the step."""
    config, rate = state.config, state.config.critic.target_rate
    more = {"flow": (), "one_step": (one_step_loss,), "edit": (edit_loss,)}[config.acts]
    losses, rates = (critic_loss, flow_loss, adjoint_loss, *more), dict.fromkeys(state.params, config.learning_rate)
    clip = Clip(config.max_grad_norm, jointly=True, slack=0.0)
    moved, metrics = descend(nets, state, batch, key, losses, rates, clip)
    return polyak(moved, state.params, critic=rate, flow=rate), metrics


make = choosing(
    networks, update, sample, batch=Transitions.of, targets=("critic", "flow"),
    acting=lambda state: with_critic(state, state.params, PLAYERS[state.config.acts]),
    multipliers=lambda config: {"temperature": jnp.zeros(())} if config.acts == "edit" else {},
)  # fmt: skip
