"""DriftQL: a one-step policy that drifts to the data by attraction and repulsion (https://arxiv.org/abs/2606.00350).

For each state several actions μ(s, z) are drawn. The data's action attracts them, they repel each other, and the policy
is regressed on where each would drift; beside that it maximises Q. There is no flow to distill.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.choice import BestOfN, choosing, one_draw, td_loss
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.losses import mse, relative
from flowrl.networks import MLP, Network, Spec, named, vector
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Loss, Metrics, Params, TrainState


@config
class Config:
    """The settings of the released code."""

    critic: Critic = nested(Critic())
    choice: BestOfN = nested(BestOfN())
    horizon: Horizon = nested(Horizon())
    hidden_dims: tuple[int, ...] = static((512, 512, 512, 512), "Hidden layers of every network.")
    noise_dim: int = static(0, "Size of the policy's noise; 0 is that of an action.", low=0)
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    alpha: float = traced(10.0, "Weight of the drift; depends on the scale of rewards.")
    samples: int = static(32, "Actions per state that repel each other.", low=2)
    kernel: str = static("laplace", "How repulsion falls with distance.", choices=("laplace", "gaussian"))
    width: float = traced(0.2, "Distance τ within which it acts, per root of an action's size.", low=1e-8)
    step_size: float = traced(1.0, "Share of the drift that is taken.")
    normalize_drift: bool = static(False, "Divide a state's drifts by their root mean square.")
    normalize_q: bool = static(False, "Divide the policy's Q by its mean size.")
    actor_aggregate: str = static("mean", "How the heads are combined in the policy's loss.", choices=("mean", "min"))


State = TrainState[Config]


class Networks(NamedTuple):
    """The one-step policy and the critics."""

    spec: Spec
    latent: Spec  # with noise in place of actions
    actor: Network  # s [B, D], z [B, Z] -> action [B, A]
    critic: Network  # s [B, D], a [B, A] -> [heads, B]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    latent = dataclasses.replace(spec, action=vector(config.noise_dim)) if config.noise_dim else spec
    (s, a, _, _), z = spec.inputs(), latent.inputs()[1]
    actor, critic = MLP(config.hidden_dims, spec.action_dim), critics.module(config.critic, config.hidden_dims)
    return Networks(spec, latent, **named(actor=(actor, s, z), critic=(critic, s, a)))


def sample(nets: Networks, config: Config, params: Params, s: jax.Array, key: jax.Array) -> jax.Array:
    """One action μ(s, z) per state, clipped: `[..., D]` to `[..., A]`."""
    return jnp.clip(nets.actor(params, s, nets.latent.noise(key, s)), -1.0, 1.0)


def drift(config: Config, x: jax.Array, a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where samples drift, V_i = (a − x_i) − Σ_{j≠i} w_ij (x_j − x_i), w the softmax of −δ/τ or −δ²/2τ² (eq. 8).

    δ is the distance over √A. The data have one action per state, whose weight is 1.

    Args:
        config: Its kernel and τ.
        x: Samples of each state `[N, B, A]`.
        a: The data's actions `[B, A]`.

    Returns:
        V `[N, B, A]`, and its repulsion.
    """
    distances = jnp.sqrt(jnp.mean((x[:, None] - x[None]) ** 2, axis=-1) + 1e-12 / x.shape[-1])
    scaled = distances / config.width
    logits = -scaled if config.kernel == "laplace" else -(scaled**2) / 2
    others = ~jnp.eye(len(x), dtype=bool)[..., None]
    repulsion = jnp.einsum("ijb,jba->iba", jax.nn.softmax(logits, axis=1, where=others), x) - x
    v = (a - x) - repulsion
    size = jnp.sqrt(jnp.mean(v**2, axis=(0, 2), keepdims=True) + 1e-12) if config.normalize_drift else 1.0
    return v / size, repulsion / size


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m Q̄(s', μ(s', z)))²."""
    return td_loss(sample, nets, params, state, batch, key, actors=state.params)


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """α ‖x_i − sg clip(x_i + V_i)‖² − Q(s, μ(s, z)) (eq. 10); V and Q's critics are constants."""
    (drift_key, q_key), config, s = jax.random.split(key), state.config, batch["observations"]
    x = sample(nets, config, params, jnp.broadcast_to(s, (config.samples, *s.shape)), drift_key)
    v, repulsion = jax.lax.stop_gradient(drift(config, x, jnp.clip(batch["actions"], -1.0, 1.0)))
    targets = jax.lax.stop_gradient(jnp.clip(x + config.step_size * v, -1.0, 1.0))
    bc = jax.vmap(mse, (0, 0, None))(x, targets, batch["actions_valid"]).mean()
    values = nets.critic(state.params, s, sample(nets, config, params, s, q_key))
    q = values.mean(axis=0) if config.actor_aggregate == "mean" else values.min(axis=0)
    q_loss = -(relative(q, 1e-6) if config.normalize_q else q.mean())
    loss = config.alpha * bc + q_loss
    sizes = {"drift": jnp.linalg.norm(v, axis=-1).mean(), "repulsion": jnp.linalg.norm(repulsion, axis=-1).mean()}
    metrics = {"loss": loss, "drift_loss": bc, "q_loss": q_loss, "q_mean": q.mean(), **sizes}
    return loss, {f"actor/{name}": value for name, value in metrics.items()}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of both losses at the same parameters, then the target critics toward those before the step."""
    config = state.config
    rates = dict.fromkeys(("actor", "critic"), config.learning_rate)
    moved, metrics = descend(nets, state, batch, key, (critic_loss, actor_loss), rates)
    return polyak(moved, state.params, critic=config.critic.target_rate), metrics


make = choosing(networks, update, sample, batch=Transitions.of, targets=("critic",), explores=one_draw)
