"""SAC: off-policy maximum-entropy learning with a squashed Gaussian (https://arxiv.org/abs/1812.05905)."""

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.losses import multiplier, temperature_loss
from flowrl.networks import ACTIVATIONS, Networks, Spec, named
from flowrl.optim import descend, polyak
from flowrl.policies import SquashedGaussian, act_squashed, squashed
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState


@config
class Config:
    """The paper's settings."""

    critic: Critic = nested(Critic(activation="relu", layer_norm=False))
    horizon: Horizon = nested(Horizon())
    hidden_dims: tuple[int, ...] = static((256, 256), "Hidden layers of every network.")
    activation: str = static("relu", "Nonlinearity of the policy.", choices=tuple(ACTIVATIONS))
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for networks and temperature.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    target_entropy: float = traced(
        -1.0, "Entropy that the temperature aims at, per dimension of actions.", low=float("-inf")
    )
    initial_temperature: float = traced(1.0, "Temperature before the first update.", low=1e-8)
    lagging_targets: bool = static(True, "Targets move toward the parameters before each step, as OGBench's do.")


State = TrainState[Config]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks: the actor takes s [B, D] to μ [B, A], log σ [B, A]; a multiplier is the temperature."""
    s, a, _, _ = spec.inputs()
    actor = SquashedGaussian(config.hidden_dims, spec.action_dim, ACTIVATIONS[config.activation])
    critic = critics.module(config.critic, config.hidden_dims)
    return Networks(spec, **named(actor=(actor, s), critic=(critic, s, a)))


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m (Q̄(s', a') − α log π(a' | s')))², a' from the current policy (eqs. 5, 7)."""
    next_s, config = batch["next_observations"], state.config
    next_a, log_probs = squashed(nets.actor(state.params, next_s), key)
    next_q = critics.combine(config.critic, nets.critic(state.target_params, next_s, next_a))
    targets = batch["rewards"] + batch["discounts"] * (next_q - multiplier(state.params) * log_probs)
    errors, metrics = critics.td_errors(nets.critic(params, batch["observations"], batch["actions"]), targets, batch)
    return errors.mean(), metrics


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E[α log π(a | s) − Q(s, a)] (eq. 9), Q of all heads, and for α: E[−α log π(a | s) − α H̄] (eq. 18)."""
    s, config = batch["observations"], state.config
    a, log_probs = squashed(nets.actor(params, s), key)
    q = critics.combine(config.critic, nets.critic(state.params, s, a))
    actor = jnp.mean(multiplier(state.params) * log_probs - q)
    loss = actor + temperature_loss(params, log_probs, config.target_entropy * nets.spec.action_dim)
    return loss, {"actor/loss": actor, "actor/entropy": -log_probs.mean(), "actor/temperature": multiplier(params)}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of all losses at the same parameters, then the target critics."""
    config = state.config
    rates = dict.fromkeys(("actor", "critic", "temperature"), config.learning_rate)
    moved, metrics = descend(nets, state, batch, key, (critic_loss, actor_loss), rates)
    toward = state if config.lagging_targets else moved
    return polyak(moved, toward.params, critic=config.critic.target_rate), metrics


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """The policy's mode, or with `explore` a sample."""
    return act_squashed(nets.actor(policy.params, inputs["observations"]), key, explore)


make = Maker(
    networks, update, act, batch=Transitions.of, targets=("critic",),
    multipliers=lambda config: {"temperature": jnp.log(config.initial_temperature)},
)  # fmt: skip
