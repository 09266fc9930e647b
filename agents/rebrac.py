"""ReBRAC: TD3+BC whose policy and whose critics' targets are both held near the data (https://arxiv.org/abs/2305.09836).

The defaults are its authors' for Gym; FQL's authors run it with `joint` and Glorot's initialisation, and so do GFP's.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.losses import mse, relative
from flowrl.networks import ACTIVATIONS, MLP, Networks, Spec, fan_in_uniform, glorot, named, uniform_within
from flowrl.optim import descend, every, polyak
from flowrl.policies import smoothed, tanh_mean
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState


@config
class Config:
    """The settings of the authors' runs on Gym; the weights of its two terms are chosen for each dataset."""

    critic: Critic = nested(Critic(activation="relu"))
    horizon: Horizon = nested(Horizon())
    hidden_dims: tuple[int, ...] = static((256, 256, 256), "Hidden layers of every network.")
    activation: str = static("relu", "Nonlinearity of the policy.", choices=tuple(ACTIVATIONS))
    initialization: str = static(
        "uniform", "Of all networks: by fan-in with small last layers, or Glorot's.", choices=("uniform", "glorot")
    )
    batch_size: int = static(1024, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(1e-3, "Adam's step size, for the critics.")
    actor_learning_rate: float = traced(1e-3, "Adam's step size, for the policy.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    alpha_actor: float = traced(0.01, "Weight of cloning beside the normalised Q.")
    alpha_critic: float = traced(0.01, "What the next action's squared distance from the data's takes off the target.")
    policy_delay: int = static(2, "Updates of the critics for each one of the policy and the targets.")
    target_noise: float = traced(0.2, "Deviation of the noise in the target's action, and in exploring.")
    noise_clip: float = traced(0.5, "Bound of that noise.")
    joint: bool = static(
        False,
        "One step of all losses at the same parameters, the policy's in every second one, not the first; and the mean, "
        "not the sum, over critics of their errors.",
    )


NAMES: Mapping[str, Config] = {
    "rebrac": Config(),
    "rebrac_gfp": Config(
        critic=Critic(), hidden_dims=(512, 512, 512, 512), activation="gelu", initialization="glorot", batch_size=256,
        learning_rate=3e-4, actor_learning_rate=3e-4, joint=True,
    ),
}  # fmt: skip
"""The agents, each with its default configuration; the second is FQL's code as GFP's authors tuned it anew."""
State = TrainState[Config]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks: the actor takes s [B, D] to actions before tanh [B, A]."""

    def start(last: float) -> dict[str, Any]:
        hidden = {"kernel_init": fan_in_uniform, "bias_init": jax.nn.initializers.constant(0.1)}
        return hidden | {"final_init": uniform_within(last), "final_bias_init": uniform_within(last)}

    (s, a, _, _), uniform = spec.inputs(), config.initialization == "uniform"
    own = start(1e-3) if uniform else {"final_init": glorot(1e-2)}
    actor = MLP(config.hidden_dims, spec.action_dim, ACTIVATIONS[config.activation], **own)
    critic = critics.module(config.critic, config.hidden_dims, **(start(3e-3) if uniform else {}))
    return Networks(spec, **named(actor=(actor, s), critic=(critic, s, a)))


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m (Q̄(s', a') − β₂ ‖a' − a'_data‖²))², a' as in TD3, a'_data the data's next."""
    config, next_s, slow = state.config, batch["next_observations"], state.target_params
    next_a = smoothed(tanh_mean(nets, slow, next_s), key, config.target_noise, config.noise_clip)
    distances = jnp.sum((next_a - batch["next_actions"]) ** 2, axis=-1)
    next_q = critics.combine(config.critic, nets.critic(slow, next_s, next_a)) - config.alpha_critic * distances
    targets = batch["rewards"] + batch["discounts"] * next_q
    errors, metrics = critics.td_errors(nets.critic(params, batch["observations"], batch["actions"]), targets, batch)
    loss = errors.mean() if config.joint else errors.mean(axis=-1).sum()
    return loss, metrics | {"critic/loss": loss}


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """β₁ E ‖π(s) − a‖² − E Q(s, π(s)) / E |Q|, with constant critics."""
    s, config = batch["observations"], state.config
    a = tanh_mean(nets, params, s)
    q = critics.combine(config.critic, nets.critic(state.params, s, a))
    squares = nets.spec.action_dim * mse(a, batch["actions"], batch["actions_valid"]).mean()
    cloning = config.alpha_actor * squares
    q_loss = -relative(q)
    loss = cloning + q_loss
    metrics = {"loss": loss, "bc_loss": cloning, "q_loss": q_loss, "q_mean": q.mean(), "mse": squares}
    return loss, {f"actor/{name}": value for name, value in metrics.items()}


def move_policy(nets: Networks, batch: Batch, key: jax.Array, state: State) -> tuple[State, Metrics]:
    """A step of the policy on the critics as they are, then all targets, the policy's toward that before the step."""
    rate = state.config.critic.target_rate
    rates = {"actor": state.config.actor_learning_rate}
    moved, metrics = descend(nets, state, batch, key, (actor_loss,), rates)
    return polyak(moved, state.params, critic=rate, actor=rate), metrics


def move_jointly(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """A joint step, and in every second update the targets; in the others the policy moves by its momentum alone."""
    config = state.config
    due = jnp.where((state.step + 1) % config.policy_delay == 0, 1.0, 0.0)

    def delayed(*told: Any) -> Loss:
        loss, metrics = actor_loss(*told)
        return due * loss, {name: due * config.policy_delay * value for name, value in metrics.items()}

    rates = {"critic": config.learning_rate, "actor": config.actor_learning_rate}
    moved, metrics = descend(nets, state, batch, key, (critic_loss, delayed), rates)
    rate = due * config.critic.target_rate
    return polyak(moved, state.params, critic=rate, actor=rate), metrics


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """A step of the critics; at some updates also one of the policy on the moved critics, and of the targets."""
    config = state.config
    if config.joint:
        return move_jointly(nets, state, batch, key)
    state, metrics = descend(nets, state, batch, key, (critic_loss,), {"critic": config.learning_rate})
    state, more = every(config.policy_delay, state, partial(move_policy, nets, batch, key))
    return state, metrics | more


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """The policy's action, with `explore` plus the noise of targets."""
    actions, config = tanh_mean(nets, policy.params, inputs["observations"]), policy.config
    return smoothed(actions, key, config.target_noise, config.noise_clip) if explore else actions


make = Maker(networks, update, act, batch=Transitions.of, targets=("actor", "critic"))
