"""DSRL: a flow that clones behaviour, steered by the noise that it starts from (https://arxiv.org/abs/2506.15799).

A Gaussian policy chooses the latent z, the flow makes an action of it, and a critic of latents is regressed on Q of
those actions, so that no gradient passes the flow's steps. As in the code of QAM's authors
(https://arxiv.org/abs/2601.14234).
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.choice import BestOfN, choosing, td_loss, with_critic
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.generative import Flow
from flowrl.losses import multiplier, temperature_loss
from flowrl.networks import MLP, Network, Spec, named
from flowrl.optim import descend, polyak
from flowrl.policies import SquashedGaussian, squashed
from flowrl.train_state import Batch, Loss, Metrics, Params, TrainState


@config
class Config:
    """The settings of QAM's code, for chunks as on manipulation tasks."""

    critic: Critic = nested(Critic(heads=10, aggregate="mean", rho=0.5), "Those of latents too.")
    flow: Flow = nested(Flow(steps=10))
    choice: BestOfN = nested(BestOfN(aggregate="mean", critics="online"))
    horizon: Horizon = nested(Horizon(steps=5, chunk=True))
    hidden_dims: tuple[int, ...] = static((512, 512, 512, 512), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    latent_scale: float = traced(1.0, "Bound of the latents that the policy chooses.")
    target_entropy: float = traced(-0.5, "Entropy that the temperature aims at, per dimension.", low=float("-inf"))


State = TrainState[Config]


class Networks(NamedTuple):
    """The flow, the policy of latents and the critics of actions and latents."""

    spec: Spec
    flow: Network  # s [B, D], x [B, A], t [B, 1] -> velocity [B, A]
    actor: Network  # s [B, D] -> μ [B, A], log σ [B, A]
    critic: Network  # s [B, D], a [B, A] -> [heads, B]
    latent_critic: Network  # s [B, D], z [B, A] -> [heads, B]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    (s, a, _, t), layers = spec.inputs(), config.hidden_dims
    critic = critics.module(config.critic, layers)
    return Networks(spec, **named(
        flow=(MLP(layers, spec.action_dim), s, a, t), critic=(critic, s, a), latent_critic=(critic, s, a),
        actor=(SquashedGaussian(layers, spec.action_dim, nn.gelu, (-20.0, 2.0), 1.0), s),
    ))  # fmt: skip


def decode(nets: Networks, config: Config, flow: Params, s: jax.Array, z: jax.Array) -> jax.Array:
    """The flow's actions of latents, clipped: `[..., A]` to `[..., A]`."""
    return config.flow.actions(partial(nets.flow, flow, s), z)


def sample(nets: Networks, config: Config, params: Params, s: jax.Array, key: jax.Array) -> jax.Array:
    """One action per state, of a latent that the policy draws: `[..., D]` to `[..., A]`."""
    z, _ = squashed(nets.actor(params, s), key)
    return decode(nets, config, params, s, config.latent_scale * z)


def players(state: State) -> Params:
    """The parameters with the slow flow, which decodes."""
    return {**state.params, "flow": state.target_params["flow"]}


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m (mean Q̄ − ρ std Q̄)(s', a'))², a' of the policy's latents."""
    return td_loss(sample, nets, params, state, batch, key, actors=players(state))


def latent_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """Σ E (Q^z_i(s, z) − Q_i(s, flow(z)))²/heads at unit noise z, each critic of latents on its own of actions."""
    s, z = batch["observations"], nets.spec.noise(key, batch["observations"])
    targets = nets.critic(state.params, s, decode(nets, state.config, state.target_params, s, z))
    loss = jnp.mean((nets.latent_critic(params, s, z) - targets) ** 2)
    return loss, {"critic/latent_loss": loss}


def flow_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """Flow matching; chunks that cross the end of an episode do not count at all."""
    errors = state.config.flow.errors(partial(nets.flow, params, batch["observations"]), batch["actions"], key)
    return jnp.mean(batch["valid"] * errors), {"actor/flow_loss": jnp.mean(batch["valid"] * errors)}


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E[α log π(z | s) − mean Q^z(s, z)], with constant critics, and α (H − H̄) for α."""
    s, config = batch["observations"], state.config
    z, log_probs = squashed(nets.actor(params, s), key)
    q = nets.latent_critic(state.params, s, config.latent_scale * z).mean()
    loss = multiplier(state.params) * log_probs.mean() - q
    alpha = temperature_loss(params, log_probs, config.target_entropy * nets.spec.action_dim)
    metrics = {"loss": loss, "q_mean": q, "entropy": -log_probs.mean(), "temperature_loss": alpha}
    return loss + alpha, {f"actor/{name}": value for name, value in metrics.items()}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of all losses at the same parameters, then the slow copies toward those before the step."""
    rate, rates = state.config.critic.target_rate, dict.fromkeys(state.params, state.config.learning_rate)
    moved, metrics = descend(nets, state, batch, key, (critic_loss, latent_loss, flow_loss, actor_loss), rates)
    return polyak(moved, state.params, critic=rate, flow=rate), metrics


make = choosing(
    networks, update, sample, batch=Transitions.of, targets=("critic", "flow"),
    acting=lambda state: with_critic(state, players(state), ("actor", "flow")),
    multipliers=lambda config: {"temperature": 0.0},
)  # fmt: skip
