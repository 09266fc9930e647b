"""SSCP: a flow policy that completes its path in one step, trained together with Q (https://arxiv.org/abs/2506.21427).

One network h(s, x, τ, d) gives the velocity at time τ (d = 0) and the vector that completes the path (d = 1 − τ).
Noise is at time 0, data at time 1. An action is one completion from noise.
"""

from functools import partial

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.choice import BestOfN, choosing, one_draw, td_loss, with_critic
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.encoders import JumpMLP
from flowrl.losses import mse, q_size
from flowrl.networks import Networks, Spec, named
from flowrl.optim import descend, polyak
from flowrl.paths import Path, bootstrap_target, complete, complete_in_steps, early_times, straight
from flowrl.train_state import Batch, Loss, Metrics, Params, TrainState

LEVELS = 7
"""With bootstrap targets, steps are (1 − τ)/2^j with j < LEVELS, as in shortcut models with 128 steps."""


@config
class Config:
    """The settings of the released code."""

    critic: Critic = nested(Critic())
    choice: BestOfN = nested(BestOfN())
    horizon: Horizon = nested(Horizon())
    hidden_dims: tuple[int, ...] = static((512, 512, 512, 512), "Hidden layers of every network.")
    time_dim: int = static(128, "Size of the embedding of times and step sizes.")
    batch_size: int = static(1024, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    completion_target: str = static(
        "data", "What completions are regressed on: the action, or two half steps of the slow actor.",
        choices=("data", "bootstrap"),
    )  # fmt: skip
    q_sample: str = static(
        "completion", "Where the actor meets Q: the completion at a random time, or from noise.",
        choices=("completion", "one_shot"),
    )  # fmt: skip
    completion_steps: int = static(
        1, "Calls of the actor per action; each aims at the end of the path anew.", acting=True
    )
    flow_alpha: float = traced(1.0, "Weight of flow matching, the paper's α1.")
    completion_alpha: float = traced(1.0, "Weight of the completion loss, the paper's α2.")
    q_alpha: float = traced(1.0, "Weight of the normalised Q; 0 is behaviour cloning.")
    actor_target_rate: float = traced(0.0005, "Polyak rate of the acting copy of the actor.", high=1.0)
    lagging_targets: bool = static(True, "Targets move toward the parameters before each step, as the authors' do.")


State = TrainState[Config]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks: the actor takes s [B, D], x [B, A], τ [B, 1], d [B, 1] to a step's mean velocity [B, A]."""
    s, a, _, t = spec.inputs()
    actor = JumpMLP(config.hidden_dims, spec.action_dim, config.time_dim)
    return Networks(
        spec, **named(actor=(actor, s, a, t, t), critic=(critics.module(config.critic, config.hidden_dims), s, a))
    )


def sample(nets: Networks, config: Config, params: Params, s: jax.Array, key: jax.Array, steps: int = 1) -> jax.Array:
    """Completes unit noise in `steps` steps, by default one, and clips: `[..., D]` to `[..., A]`."""
    return jnp.clip(complete_in_steps(partial(nets.actor, params, s), nets.spec.noise(key, s), steps), -1.0, 1.0)


def played(nets: Networks, config: Config, params: Params, s: jax.Array, key: jax.Array) -> jax.Array:
    """The same in the steps that act."""
    return sample(nets, config, params, s, key, config.completion_steps)


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m agg Q̄(s', a'))², a' from the slow actor."""
    return td_loss(sample, nets, params, state, batch, key, actors=state.target_params)


def bootstrap_errors(
    nets: Networks, params: Params, state: State, batch: Batch, path: Path, t: jax.Array, key: jax.Array
) -> jax.Array:
    """Steps (1 − τ)/2^j against two half steps of the slow actor, self-consistency instead of completion: `[B]`."""
    s, d = batch["observations"], (1 - t) * 0.5 ** jax.random.randint(key, t.shape, 0, LEVELS)
    targets = bootstrap_target(partial(nets.actor, state.target_params, s), path.points, t, d, 0.5**LEVELS)
    return mse(nets.actor(params, s, path.points, t, d), targets, batch["actions_valid"])


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """α1 L_flow + α2 L_comp + L_Q at one draw of noise and time; Q is evaluated with constant critics."""
    z_key, t_key, other_key = jax.random.split(key, 3)
    s, a, valid, config = batch["observations"], batch["actions"], batch["actions_valid"], state.config
    t = early_times(t_key, (len(a), 1))
    path = straight(jax.random.normal(z_key, a.shape), a, t)
    jump = partial(nets.actor, params, s)
    flow = mse(jump(path.points, t, jnp.zeros_like(t)), path.velocities, valid).mean()
    completions = complete(jump, path.points, t)
    if config.completion_target == "data":
        completion = mse(completions, a, valid).mean()
    else:
        completion = bootstrap_errors(nets, params, state, batch, path, t, other_key).mean()
    if config.q_sample == "completion":
        proposals = jnp.clip(completions, -1.0, 1.0)
    else:
        proposals = sample(nets, config, params, s, jax.random.fold_in(other_key, 1))
    q = nets.critic(state.params, s, proposals)
    q_loss = -q.mean() / q_size(q)
    loss = config.flow_alpha * flow + config.completion_alpha * completion + config.q_alpha * q_loss
    metrics = {"loss": loss, "flow_loss": flow, "completion_loss": completion, "q_loss": q_loss, "q_mean": q.mean()}
    return loss, {f"actor/{name}": value for name, value in metrics.items()}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of all losses at the same parameters, then the target critics and the slow actor."""
    config = state.config
    rates = dict.fromkeys(("actor", "critic"), config.learning_rate)
    moved, metrics = descend(nets, state, batch, key, (critic_loss, actor_loss), rates)
    toward = state if config.lagging_targets else moved
    return polyak(moved, toward.params, critic=config.critic.target_rate, actor=config.actor_target_rate), metrics


make = choosing(
    networks, update, played, batch=Transitions.of, targets=("actor", "critic"),
    acting=lambda state: with_critic(state, state.target_params), explores=one_draw,
)  # fmt: skip
