"""TD3 and TD3+BC: deterministic policy gradients with twin critics and delayed policy updates.

TD3 (https://arxiv.org/abs/1802.09477) learns online; with a term of behaviour cloning it is TD3+BC, for offline data
(https://arxiv.org/abs/2106.06860). DDPG (https://arxiv.org/abs/1509.02971) is the setting `critic.heads=1,
policy_delay=1, target_noise=0` of TD3.
"""

from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.losses import mse, relative
from flowrl.networks import MLP, Networks, Spec, named
from flowrl.optim import descend, every, polyak
from flowrl.policies import smoothed, tanh_mean
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState


@config
class Config:
    """The settings of the authors' code."""

    critic: Critic = nested(Critic(activation="relu", layer_norm=False))
    horizon: Horizon = nested(Horizon())
    hidden_dims: tuple[int, ...] = static((256, 256), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    policy_delay: int = static(2, "Updates of the critics for each one of the policy and the targets.")
    target_noise: float = traced(0.2, "Deviation of the noise in the target's action.")
    noise_clip: float = traced(0.5, "Bound of that noise.")
    explore_noise: float = traced(0.1, "Deviation of the noise in actions that gather experience.")
    clones: bool = static(False, "The policy also clones the data's actions, and its Q is divided by its mean size.")
    alpha: float = traced(2.5, "Weight of that Q beside cloning.")


NAMES: Mapping[str, Config] = {"td3": Config(), "td3_bc": Config(clones=True)}
"""The agents, each with its default configuration."""
State = TrainState[Config]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks: the actor takes s [B, D] to actions before tanh [B, A]."""
    s, a, _, _ = spec.inputs()
    actor = MLP(config.hidden_dims, spec.action_dim, activation=nn.relu, final_scale=1e-2)
    return Networks(spec, **named(actor=(actor, s), critic=(critics.module(config.critic, config.hidden_dims), s, a)))


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m Q̄(s', clip(π̄(s') + clip(noise))))² (algorithm 1)."""
    config, next_s, slow = state.config, batch["next_observations"], state.target_params
    next_a = smoothed(tanh_mean(nets, slow, next_s), key, config.target_noise, config.noise_clip)
    next_q = critics.combine(config.critic, nets.critic(slow, next_s, next_a))
    targets = batch["rewards"] + batch["discounts"] * next_q
    errors, metrics = critics.td_errors(nets.critic(params, batch["observations"], batch["actions"]), targets, batch)
    return errors.mean(), metrics


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """−E Q₁(s, π(s)), with constant critics; TD3+BC: −α E Q₁ / E |Q₁| + E (π(s) − a)² (its eqs. 3, 5)."""
    s = batch["observations"]
    a = tanh_mean(nets, params, s)
    q = nets.critic(state.params, s, a)[0]
    if not state.config.clones:
        return -q.mean(), {"actor/loss": -q.mean()}
    cloning = mse(a, batch["actions"], batch["actions_valid"]).mean()
    loss = cloning - state.config.alpha * relative(q)
    return loss, {"actor/loss": loss, "actor/bc_loss": cloning, "actor/q_mean": q.mean()}


def move_policy(nets: Networks, batch: Batch, key: jax.Array, state: State) -> tuple[State, Metrics]:
    """A step of the policy on the critics as they are, then all targets."""
    config = state.config
    state, metrics = descend(nets, state, batch, key, (actor_loss,), {"actor": config.learning_rate})
    rate = config.critic.target_rate
    return polyak(state, state.params, critic=rate, actor=rate), metrics


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """A step of the critics; at some updates also one of the policy on the moved critics, and of the targets."""
    config = state.config
    state, metrics = descend(nets, state, batch, key, (critic_loss,), {"critic": config.learning_rate})
    state, more = every(config.policy_delay, state, partial(move_policy, nets, batch, key))
    return state, metrics | more


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """The policy's action, with `explore` plus clipped Gaussian noise."""
    s = inputs["observations"]
    actions = tanh_mean(nets, policy.params, s)
    if not explore:
        return actions
    return jnp.clip(actions + policy.config.explore_noise * nets.spec.noise(key, s), -1.0, 1.0)


make = Maker(networks, update, act, batch=Transitions.of, targets=("actor", "critic"))
