"""QRL: quasimetric reinforcement learning (Wang et al. 2023, https://arxiv.org/abs/2304.01203), as in OGBench.

d(s, g) is the number of steps from s to g. It obeys the triangle inequality by its form; held to one step from s to s'
and pushed apart elsewhere, it becomes that of the shortest path.
"""

from typing import NamedTuple

import jax

from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.data.goals import GoalMix
from flowrl.data.samplers import Goals
from flowrl.errors import UserError
from flowrl.losses import iqe, mrn, multiplier
from flowrl.networks import ACTIVATIONS, MLP, Network, Spec, named, vector
from flowrl.optim import descend
from flowrl.policies import Gaussian, act_gaussian, act_toward_goals, awr_loss, ddpgbc_loss
from flowrl.train_state import Batch, Loss, Metrics, Params, TrainState

GROUP = 8
"""Coordinates of a group of the IQE."""


@config
class Config:
    """OGBench's defaults; the policy's loss and its weight are chosen for each dataset."""

    value_goals: GoalMix = nested(GoalMix(p_trajectory=0.0, p_random=1.0, geometric=True))
    actor_goals: GoalMix = nested(GoalMix())
    hidden_dims: tuple[int, ...] = static((512, 512, 512), "Hidden layers of every network.")
    quasimetric: str = static("iqe", "How distances are computed between latents.", choices=("iqe", "mrn"))
    latent_dim: int = static(512, "Size of the latents of states.", low=2)
    batch_size: int = static(1024, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network and the multiplier.")
    discount: float = traced(0.99, "Discount by which geometric goals are drawn; nothing else reads it.", high=1.0)
    slack: float = traced(0.05, "Mean squared excess over one step that the multiplier aims at.")
    actor_loss: str = static("ddpgbc", "How the policy improves on the data.", choices=("awr", "ddpgbc"))
    alpha: float = traced(
        0.003, "With ddpgbc the weight of cloning; with awr inverse temperature of advantage weights."
    )
    learnt_std: bool = static(False, "The policy's deviations, one for each dimension, are learnt; else they are 1.")

    def problem(self, prefix: str) -> str:
        """Says that latents are made of the IQE's groups, or of the MRN's halves."""
        part = GROUP if self.quasimetric == "iqe" else 2
        wrong = f"{prefix}latent_dim={self.latent_dim} must be a multiple of {part} with {self.quasimetric}"
        return wrong if self.latent_dim % part else ""


State = TrainState[Config]


class Networks(NamedTuple):
    """The Gaussian policy, the latents of states, and with DDPG+BC how actions move these."""

    actor: Network  # s [B, D], g [B, D] -> μ [B, A], log σ [B, A]
    phi: Network  # s [B, D] -> [B, L]
    dynamics: Network  # φ [B, L], a [B, A] -> [B, L]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    if spec.goal is not None and spec.goal.shape != spec.observation.shape:
        raise UserError("qrl measures from states to states, but these goals are none; choose data without -oraclerep")
    (s, a, g, _), layers = spec.inputs(), config.hidden_dims
    actor = Gaussian(layers, spec.action_dim, ACTIVATIONS["gelu"], tanh=False, learnt_std=config.learnt_std)
    latents = MLP(layers, config.latent_dim, layer_norm=True)
    moves = (latents, vector(1, config.latent_dim), a) if config.actor_loss == "ddpgbc" else ()
    return Networks(**named(actor=(actor, s, g), phi=(latents, s), dynamics=moves))


def d(config: Config, params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """Steps from one latent to another: `[B, L]` each to `[B]`."""
    return mrn(x, y) if config.quasimetric == "mrn" else iqe(x, y, jax.nn.sigmoid(params["odds"]["log"]), GROUP)


def moved(nets: Networks, params: Params, x: jax.Array, a: jax.Array) -> jax.Array:
    """φ̂' = φ + T(φ, a), the latent `[B, L]` that an action leads to."""
    return x + nets.dynamics(params, x, a)


def value_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E 100 softplus(5 − d(s, g)/100) + sg λ C + λ (ε − sg C), C = E relu(d(s, s') − 1)²."""
    config, weight, stop = state.config, multiplier(params, "multiplier"), jax.lax.stop_gradient
    s, next_s, g = (nets.phi(params, batch[name]) for name in ("observations", "next_observations", "value_goals"))
    far, near = d(config, params, s, g), d(config, params, s, next_s)
    apart = (100 * jax.nn.softplus(5 - far / 100)).mean()
    excess = (jax.nn.relu(near - 1) ** 2).mean()
    loss = apart + stop(weight) * excess + weight * (config.slack - stop(excess))
    metrics = {"loss": loss, "apart": apart, "excess": excess, "d_goal": far.mean(), "d_next": near.mean()}
    return loss, {f"value/{name}": value for name, value in metrics.items()} | {"value/multiplier": weight}


def dynamics_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """½ E [d(φ(s'), φ̂') + d(φ̂', φ(s'))], which trains φ too."""
    x, next_x = (nets.phi(params, batch[name]) for name in ("observations", "next_observations"))
    guess = moved(nets, params, x, batch["actions"])
    loss = (d(state.config, params, next_x, guess) + d(state.config, params, guess, next_x)).mean() / 2
    return loss, {"dynamics/loss": loss}


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """AWR by A = d(s, g) − d(s', g), or DDPG+BC by Q = −d(φ(s) + T(φ(s), clip(a_π)), φ(g)).

    a_π is the Gaussian's mode, or a draw where its deviations are learnt.
    """
    s, a, g, config, now = batch["observations"], batch["actions"], batch["actor_goals"], state.config, state.params
    gaussian, x, goal = nets.actor(params, s, g), nets.phi(now, s), nets.phi(now, g)
    if config.actor_loss == "awr":
        advantages = d(config, now, x, goal) - d(config, now, nets.phi(now, batch["next_observations"]), goal)
        return awr_loss(gaussian, a, advantages, config.alpha)
    improved = act_gaussian(gaussian, key, explore=config.learnt_std)
    q = -d(config, now, moved(nets, now, x, improved), goal)
    return ddpgbc_loss(gaussian, a, q, config.alpha, constant=1e-6)


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of all losses at the same parameters; there are no targets."""
    losses = (
        (value_loss, dynamics_loss, actor_loss) if state.config.actor_loss == "ddpgbc" else (value_loss, actor_loss)
    )
    return descend(nets, state, batch, key, losses, dict.fromkeys(state.params, state.config.learning_rate))


make = Maker(
    networks, update, act_toward_goals, batch=Goals.of,
    multipliers=lambda config: {"multiplier": 0.0} | ({"odds": 0.0} if config.quasimetric == "iqe" else {}),
)  # fmt: skip
