"""DQL: a diffusion policy that maximises Q through its whole chain (Diffusion-QL, https://arxiv.org/abs/2208.06193).

A denoising diffusion of few steps clones behaviour; its samples are differentiated back to the noise they came from.
`policy.steps=1` takes them in one step of DDIM, x̂ at the last level, where errors in the noise grow twelvefold.
"""

from functools import partial

import jax

from flowrl import critics
from flowrl.choice import BestOfN, backup_values, choosing, generated
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.diffusion import Diffusion
from flowrl.encoders import TimedMLP
from flowrl.losses import coin_q
from flowrl.networks import Networks, Spec, named
from flowrl.optim import Clip, LateTarget, descend, polyak
from flowrl.train_state import Batch, Loss, Metrics, Params, TrainState


@config
class Config:
    """The settings of the authors' code."""

    critic: Critic = nested(Critic(activation="mish", layer_norm=False))
    policy: Diffusion = nested(Diffusion(levels=5, schedule="vp", schedule_scale=1.0))
    actor_target: LateTarget = nested(LateTarget())
    choice: BestOfN = nested(BestOfN(num_samples=50, temperature=1.0))
    horizon: Horizon = nested(Horizon())
    hidden_dims: tuple[int, ...] = static((256, 256, 256), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size for the critics.")
    actor_learning_rate: float = traced(3e-4, "Adam's step size for the policy.")
    max_grad_norm: float = traced(0.0, "Each network's gradient is clipped to this norm; 0 is off.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    q_alpha: float = traced(1.0, "Weight η of the normalised Q; 0 is behaviour cloning.")
    max_q_backup: bool = static(False, "Bootstrap from each critic's best of 10 next actions.")

    def problem(self, prefix: str) -> str:
        """Says that a coin chooses between two critics."""
        return critics.need_two(self.critic, prefix)


State = TrainState[Config]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks: the actor takes s [B, D], x [B, A], level [B, 1] to the noise in x [B, A]."""
    (s, a, _, t), layers = spec.inputs(), config.hidden_dims
    actor = TimedMLP(layers, spec.action_dim, config.policy.times, time_dim=16)
    return Networks(spec, **named(actor=(actor, s, a, t), critic=(critics.module(config.critic, layers), s, a)))


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """Σ_i E (Q_i(s, a) − r − γ m min Q̄(s', a'))² (eq. 4), a' from the slow policy, or each critic's best of several."""
    config, next_s = state.config, batch["next_observations"]
    next_q = backup_values(generated, nets, state, next_s, key, max_q=config.max_q_backup)
    targets = batch["rewards"] + batch["discounts"] * critics.combine(config.critic, next_q)
    return critics.td_sum(nets.critic(params, batch["observations"], batch["actions"]), targets, batch)


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E ‖ε̂ − ε‖² − η mean Q_i(s, â) / mean |Q_j(s, â)| (eq. 3), â a whole chain; a coin says which critic is i."""
    noise_key, chain_key, coin_key = jax.random.split(key, 3)
    config, s = state.config, batch["observations"]
    field, valid = partial(nets.actor, params, s), batch["actions_valid"]
    clone = config.policy.errors(field, batch["actions"], noise_key, valid).mean()
    q = nets.critic(state.params, s, generated(nets, config, params, s, chain_key))
    q_loss = coin_q(q, q, coin_key)
    loss = clone + config.q_alpha * q_loss
    return loss, {"actor/loss": loss, "actor/noise_loss": clone, "actor/q_loss": q_loss, "actor/q_mean": q.mean()}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """A step of the critics, a step of the policy on the moved critics, then the slow copies."""
    config, (critic_key, actor_key) = state.config, jax.random.split(key)
    rates, clip = {"actor": config.actor_learning_rate}, Clip(config.max_grad_norm)
    state, metrics = descend(nets, state, batch, critic_key, (critic_loss,), {"critic": config.learning_rate}, clip)
    state, more = descend(nets, state, batch, actor_key, (actor_loss,), rates, clip)
    actor_rate = config.actor_target.at(state.step)
    return polyak(state, state.params, critic=config.critic.target_rate, actor=actor_rate), metrics | more


make = choosing(networks, update, generated, batch=Transitions.of, targets=("actor", "critic"))
