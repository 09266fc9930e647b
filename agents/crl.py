"""CRL: contrastive reinforcement learning (Eysenbach et al. 2022, https://arxiv.org/abs/2206.07568), as in OGBench.

f(s, a, g) learns to tell the goals that lie ahead of (s, a) in its episode from those of other rows. Where it has
learnt, it is log p(g | s, a) / p(g) − log(B − 1), p the density of states ahead, each step γ times as likely, and B the
size of the batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.data.goals import GoalMix
from flowrl.data.samplers import Goals
from flowrl.losses import contrastive_errors
from flowrl.networks import ACTIVATIONS, MLP, Network, Spec, ensemble, named
from flowrl.optim import descend
from flowrl.policies import Gaussian, act_gaussian, act_toward_goals, awr_loss, ddpgbc_loss
from flowrl.train_state import Batch, Loss, Metrics, Params, TrainState


@config
class Config:
    """OGBench's defaults; the policy's loss and its weight are chosen for each dataset."""

    value_goals: GoalMix = nested(GoalMix(geometric=True))
    actor_goals: GoalMix = nested(GoalMix())
    hidden_dims: tuple[int, ...] = static((512, 512, 512), "Hidden layers of every network.")
    latent_dim: int = static(512, "Size of the representations whose product is a logit.")
    batch_size: int = static(1024, "Transitions per update, and goals that each is told from.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step, by which goals ahead are drawn.", high=1.0)
    actor_loss: str = static("ddpgbc", "How the policy improves on the data.", choices=("awr", "ddpgbc"))
    alpha: float = traced(0.1, "With ddpgbc the weight of cloning; with awr inverse temperature of advantage weights.")
    learnt_std: bool = static(False, "The policy's deviations, one for each dimension, are learnt; else they are 1.")


State = TrainState[Config]


class Networks(NamedTuple):
    """The Gaussian policy, and representations of two critics f; with AWR also those of a value."""

    actor: Network  # s [B, D], g [B, G] -> μ [B, A], log σ [B, A]
    phi: Network  # s [B, D], a [B, A] -> [2, B, L]
    psi: Network  # g [B, G] -> [2, B, L]
    value_phi: Network  # s [B, D] -> [B, L]
    value_psi: Network  # g [B, G] -> [B, L]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    (s, a, g, _), layers, awr = spec.inputs(), config.hidden_dims, config.actor_loss == "awr"
    actor = Gaussian(layers, spec.action_dim, ACTIVATIONS["gelu"], tanh=False, learnt_std=config.learnt_std)
    one, two = (build(layers, config.latent_dim, layer_norm=True) for build in (MLP, ensemble(MLP)))
    value = {"value_phi": (one, s), "value_psi": (one, g)} if awr else {"value_phi": (), "value_psi": ()}
    return Networks(**named(actor=(actor, s, g), phi=(two, s, a), psi=(two, g), **value))


def f(phi: jax.Array, psi: jax.Array) -> jax.Array:
    """φᵀψ / √L, the logit of each row with its own goal: `[..., B, L]` each to `[..., B]`."""
    return jnp.sum(phi * psi, axis=-1) / phi.shape[-1] ** 0.5


def q(nets: Networks, state: State, s: jax.Array, g: jax.Array, a: jax.Array) -> jax.Array:
    """The smaller of both logits f(s, a, g) `[B]`, not their exponentials."""
    return f(nets.phi(state.params, s, a), nets.psi(state.params, g)).min(axis=0)


def contrastive_loss(name: str, phi: jax.Array, psi: jax.Array) -> Loss:
    """Mean over rows i, goals j and heads of the errors of f(sᵢ, aᵢ, gⱼ), which should tell i = j from the others."""
    logits = jnp.einsum("...ik,...jk->...ij", phi, psi) / phi.shape[-1] ** 0.5
    loss, own = contrastive_errors(logits).mean(), f(phi, psi).mean()
    right = jnp.mean(logits.argmax(axis=-1) == jnp.arange(logits.shape[-1]), dtype=jnp.float32)
    metrics = {"loss": loss, "logits": logits.mean(), "logits_own": own, "accuracy": right}
    return loss, {f"{name}/{metric}": value for metric, value in metrics.items()}


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """The contrastive loss of both critics f(s, a, g)."""
    phi = nets.phi(params, batch["observations"], batch["actions"])
    return contrastive_loss("critic", phi, nets.psi(params, batch["value_goals"]))


def value_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """The contrastive loss of V(s, g), which AWR compares them with."""
    phi = nets.value_phi(params, batch["observations"])
    return contrastive_loss("value", phi, nets.value_psi(params, batch["value_goals"]))


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """AWR by A = min f(s, a, g) − V(s, g), or DDPG+BC by min f(s, clip(a_π), g).

    a_π is the Gaussian's mode, or a draw where its deviations are learnt.
    """
    s, a, g, config = batch["observations"], batch["actions"], batch["actor_goals"], state.config
    gaussian = nets.actor(params, s, g)
    if config.actor_loss == "awr":
        v = f(nets.value_phi(state.params, s), nets.value_psi(state.params, g))
        return awr_loss(gaussian, a, q(nets, state, s, g, a) - v, config.alpha)
    improved = act_gaussian(gaussian, key, explore=config.learnt_std)
    return ddpgbc_loss(gaussian, a, q(nets, state, s, g, improved), config.alpha, constant=1e-6)


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of all losses at the same parameters; there are no targets."""
    awr = state.config.actor_loss == "awr"
    losses = (critic_loss, value_loss, actor_loss) if awr else (critic_loss, actor_loss)
    return descend(nets, state, batch, key, losses, dict.fromkeys(state.params, state.config.learning_rate))


make = Maker(networks, update, act_toward_goals, batch=Goals.of)
