"""OFQL: one-step flow Q-learning with the average velocity of MeanFlow (https://arxiv.org/abs/2508.13904).

The policy network u(a_t, r, t; s) is the mean velocity between times r ≤ t on the path from the action (time 0) to
noise (time 1). An action is one step from noise, ε − u(ε, 0, 1; s), in training and at test.
"""

from functools import partial

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.choice import BestOfN, backup_values, choosing, one_draw, with_critic
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.encoders import TimedMLP
from flowrl.generative import MeanFlow
from flowrl.losses import coin_q
from flowrl.networks import Networks, Spec, named
from flowrl.optim import Clip, LateTarget, descend, polyak
from flowrl.train_state import Batch, Loss, Metrics, Params, Scalar, TrainState


@config
class Config:
    """The paper's settings."""

    critic: Critic = nested(Critic(activation="mish", layer_norm=False))
    flow: MeanFlow = nested(MeanFlow())
    choice: BestOfN = nested(BestOfN())
    horizon: Horizon = nested(Horizon())
    actor_target: LateTarget = nested(LateTarget())
    hidden_dims: tuple[int, ...] = static((256, 256, 256), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    max_grad_norm: float = traced(0.0, "Each network's gradient is clipped to this norm; 0 is off.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    max_q_backup: bool = static(False, "Bootstrap from each critic's best of 10 next actions (AntMaze).")
    q_alpha: float = traced(0.1, "Weight η of the normalised Q; 0 is behaviour cloning.")
    q_scale: str = static("policy", "Actions whose mean |Q| divides the policy's Q.", choices=("policy", "data"))
    candidate_noise: float = traced(0.5, "Standard deviation of the noise that candidates start from.")

    def problem(self, prefix: str) -> str:
        """Says that the policy meets one of two critics, and is scaled by the other."""
        return critics.need_two(self.critic, prefix)


State = TrainState[Config]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks: the actor takes s [B, D], x [B, A], r [B, 1], t [B, 1] to a mean velocity [B, A]."""
    s, a, _, t = spec.inputs()
    actor = TimedMLP(config.hidden_dims, spec.action_dim, config.flow.times)
    return Networks(
        spec, **named(actor=(actor, s, a, t, t), critic=(critics.module(config.critic, config.hidden_dims), s, a))
    )


def sample(
    nets: Networks, config: Config, params: Params, s: jax.Array, key: jax.Array, scale: Scalar = 1.0
) -> jax.Array:
    """One step from noise, ε − u(ε, 0, 1; s), clipped: `[..., D]` to `[..., A]`."""
    z = scale * nets.spec.noise(key, s)
    return jnp.clip(config.flow.sample(partial(nets.actor, params, s), z), -1.0, 1.0)


def candidate(nets: Networks, config: Config, params: Params, s: jax.Array, key: jax.Array) -> jax.Array:
    """The action that is played, from unit noise, or one of several to choose from, from smaller noise."""
    return sample(nets, config, params, s, key, 1.0 if config.choice.num_samples == 1 else config.candidate_noise)


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m agg Q̄(s', a'))², a' from the slow policy, or each critic's best of several."""
    config, next_s = state.config, batch["next_observations"]
    next_q = backup_values(sample, nets, state, next_s, key, max_q=config.max_q_backup)
    targets = batch["rewards"] + batch["discounts"] * critics.combine(config.critic, next_q)
    return critics.td_sum(nets.critic(params, batch["observations"], batch["actions"]), targets, batch)


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """L_FBC − η mean Q_i / mean |Q_j|, where a coin says which of the two critics is i."""
    flow_key, z_key, coin_key = jax.random.split(key, 3)
    config, s = state.config, batch["observations"]
    flow = config.flow.errors(partial(nets.actor, params, s), batch["actions"], flow_key, batch["actions_valid"]).mean()
    q = nets.critic(state.params, s, sample(nets, config, params, s, z_key))
    scales = q if config.q_scale == "policy" else nets.critic(state.params, s, batch["actions"])
    q_loss = coin_q(q, scales, coin_key)
    loss = flow + config.q_alpha * q_loss
    return loss, {"actor/loss": loss, "actor/flow_loss": flow, "actor/q_loss": q_loss, "actor/q_mean": q.mean()}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """A step of the critics, a step of the policy on the moved critics, then the slow copies, as in DQL's code."""
    config, (critic_key, actor_key) = state.config, jax.random.split(key)
    rate, clip = config.learning_rate, Clip(config.max_grad_norm)
    state, metrics = descend(nets, state, batch, critic_key, (critic_loss,), {"critic": rate}, clip)
    state, more = descend(nets, state, batch, actor_key, (actor_loss,), {"actor": rate}, clip)
    actor_rate = config.actor_target.at(state.step)
    return polyak(state, state.params, critic=config.critic.target_rate, actor=actor_rate), metrics | more


make = choosing(
    networks, update, candidate, batch=Transitions.of, targets=("actor", "critic"),
    acting=lambda state: with_critic(state, state.target_params), explores=one_draw,
)  # fmt: skip
