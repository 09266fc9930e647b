"""CAC: actor-critic with a consistency model as the policy (Consistency-AC, https://arxiv.org/abs/2309.16984).

The policy goes from noise to an action in one or a few evaluations, in training and at test, and maximises Q through
all of them; what it clones it learns from its own slow copy, on a grid of times that grows finer.
"""

from functools import partial

import jax

from flowrl import critics
from flowrl.choice import BestOfN, backup_values, choosing, generated
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.encoders import TimedMLP
from flowrl.generative import Consistency
from flowrl.losses import coin_q
from flowrl.networks import Networks, Spec, named
from flowrl.optim import Clip, LateTarget, descend, polyak
from flowrl.train_state import Batch, Loss, Metrics, Params, TrainState


@config
class Config:
    """The settings of the authors' code."""

    critic: Critic = nested(Critic(activation="mish", layer_norm=False))
    policy: Consistency = nested(Consistency())
    choice: BestOfN = nested(BestOfN(num_samples=50, temperature=1.0))
    horizon: Horizon = nested(Horizon())
    actor_target: LateTarget = nested(LateTarget())
    hidden_dims: tuple[int, ...] = static((256, 256, 256), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size for the critics.")
    actor_learning_rate: float = traced(3e-4, "Adam's step size for the policy.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    max_grad_norm: float = traced(0.0, "Each network's gradient is clipped to this norm; 0 is off.")
    q_alpha: float = traced(1.0, "Weight η of the normalised Q; 0 is behaviour cloning.")
    max_q_backup: bool = static(False, "Bootstrap from each critic's best of 10 next actions.")
    normalize_targets: bool = static(False, "Divide a batch's TD targets by their deviation (q_norm).")
    grid_updates: int = traced(50_000, "Updates in which the grid of times grows; then it starts anew.", low=1)

    def problem(self, prefix: str) -> str:
        """Says that a coin chooses between two critics."""
        return critics.need_two(self.critic, prefix)


State = TrainState[Config]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks, those of DQL: the actor takes s [B, D], x [B, A], t [B, 1] to [B, A]."""
    (s, a, _, t), layers = spec.inputs(), config.hidden_dims
    critic, actor = critics.module(config.critic, layers), TimedMLP(layers, spec.action_dim, config.policy.times, 16)
    return Networks(spec, **named(actor=(actor, s, a, t), critic=(critic, s, a)))


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """Σ_i E (Q_i(s, a) − y)², y = r + γ m min Q̄(s', a') as in DQL, perhaps divided by its deviation in the batch."""
    config, next_s = state.config, batch["next_observations"]
    next_q = backup_values(generated, nets, state, next_s, key, max_q=config.max_q_backup)
    y = batch["rewards"] + batch["discounts"] * critics.combine(config.critic, next_q)
    if config.normalize_targets:
        y = y / (y.std(ddof=1, where=batch["valid"] > 0) + 1e-6)
    return critics.td_sum(nets.critic(params, batch["observations"], batch["actions"]), y, batch)


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E ‖f(a + t' z, t') − f̄(a + t z, t)‖² 100/(t' − t) − η mean Q_i(s, â) / mean |Q_j(s, â)|."""
    clone_key, sample_key, coin_key = jax.random.split(key, 3)
    config, s = state.config, batch["observations"]
    field, slow = (partial(nets.actor, own, s) for own in (params, state.target_params))
    done = (state.step % config.grid_updates) / config.grid_updates
    errors = config.policy.errors(field, slow, batch["actions"], clone_key, done, batch["actions_valid"])
    q = nets.critic(state.params, s, generated(nets, config, params, s, sample_key))
    clone, q_loss = errors.mean(), coin_q(q, q, coin_key)
    loss = clone + config.q_alpha * q_loss
    metrics = {"loss": loss, "consistency_loss": clone, "q_loss": q_loss, "q_mean": q.mean()}
    return loss, {f"actor/{name}": value for name, value in metrics.items()}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """A step of the critics, a step of the policy on the moved critics, then the slow copies, as in DQL."""
    config, (critic_key, actor_key) = state.config, jax.random.split(key)
    clip, slow_rate = Clip(config.max_grad_norm), config.actor_target.at(state.step)
    rates = {"critic": config.learning_rate}, {"actor": config.actor_learning_rate}
    state, metrics = descend(nets, state, batch, critic_key, (critic_loss,), rates[0], clip)
    state, more = descend(nets, state, batch, actor_key, (actor_loss,), rates[1], clip)
    return polyak(state, state.params, critic=config.critic.target_rate, actor=slow_rate), metrics | more


make = choosing(networks, update, generated, batch=Transitions.of, targets=("actor", "critic"))
