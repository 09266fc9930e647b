"""MeanFlowQL: a one-step policy that learns where its flow ends (https://arxiv.org/abs/2511.13035).

On the path x_t = (1 − t) a + t e from the data to noise, with velocity v, the policy g(s, x, t) stands for x − u, u the
mean velocity from time 0 to t. So an action is g(s, e, 1), one evaluation, and the best of several by Q. The weight of
the flow against Q follows the flow's loss.
"""

from functools import partial

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.choice import BestOfN, choosing, td_loss
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.encoders import TimedTransformer
from flowrl.losses import Balance, adaptive, mse, q_size
from flowrl.networks import Networks, Spec, named
from flowrl.optim import Clip, CosineDecay, descend, polyak
from flowrl.paths import Velocity, one_each, straight, uniform_times
from flowrl.train_state import Batch, Loss, Metrics, Params, Scalar, TrainState

FIVE = BestOfN(num_samples=5, target_samples=5, aggregate="mean", critics="target")
POWER, CONSTANT, BOUND = 0.2, 1e-4, 5.0
"""Of the weights of the flow's rows, and of its targets."""


@config
class Config:
    """The settings of the released code."""

    critic: Critic = nested(Critic(aggregate="mean"))
    choice: BestOfN = nested(FIVE)
    schedule: CosineDecay = nested(CosineDecay())
    balance: Balance = nested(Balance())
    horizon: Horizon = nested(Horizon())
    hidden_dims: tuple[int, ...] = static((512, 512, 512, 512), "Hidden layers of the critics.")
    width: int = static(256, "Size of the policy's token.")
    depth: int = static(3, "Blocks of the policy.")
    heads: int = static(2, "Heads of its attention.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(1e-4, "Adam's step size for the policy, at its highest.")
    critic_learning_rate: float = traced(3e-4, "Adam's step size for the critics.")
    max_grad_norm: float = traced(1.0, "Each network's gradient is clipped to this norm; 0 is off.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    alpha: float = traced(10.0, "Weight of the flow at first; depends on the scale of rewards.")
    time_levels: int = static(0, "Levels of time that the flow is learnt at; 0 is at any.", low=0)
    normalize_q: bool = static(False, "Divide the policy's Q by its mean size.")

    def problem(self, prefix: str) -> str:
        """Says that heads share the token."""
        told = f"{prefix}heads={self.heads} does not divide {prefix}width={self.width}"
        return f"{told}; give a multiple of {self.heads}" if self.width % self.heads else ""


State = TrainState[Config]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks: the actor takes s [B, D], x [B, A], t [B, 1] to where the flow ends [B, A]."""
    s, a, _, t = spec.inputs()
    actor = TimedTransformer(spec.action_dim, config.width, config.depth, config.heads)
    critic = critics.module(config.critic, config.hidden_dims)
    return Networks(spec, **named(actor=(actor, s, a, t), critic=(critic, s, a)))


def raw(nets: Networks, params: Params, s: jax.Array, key: jax.Array) -> jax.Array:
    """One action g(s, e, 1) per state: `[..., D]` to `[..., A]`."""
    e = nets.spec.noise(key, s)
    return nets.actor(params, s, e, jnp.ones(one_each(e)))


def sample(nets: Networks, config: Config, params: Params, s: jax.Array, key: jax.Array) -> jax.Array:
    """The same, clipped."""
    return jnp.clip(raw(nets, params, s, key), -1.0, 1.0)


def flow_errors(field: Velocity, a: jax.Array, key: jax.Array, levels: int, valid: Scalar = 1.0) -> jax.Array:
    """‖g − sg(x + (t − 1) v − t dg/dt)‖², dg/dt = v ∂ₓg + ∂ₜg, weighted row by row: `[B, A]` to `[B]` (eq. 10)."""
    time_key, noise_key = jax.random.split(key)
    if levels:
        t = (1 + jax.random.randint(time_key, one_each(a), 0, levels)) / levels
    else:
        t = uniform_times(time_key, one_each(a))
    path = straight(a, jax.random.normal(noise_key, a.shape), t)
    g, slopes = jax.jvp(field, (path.points, t), (path.velocities, jnp.ones_like(t)))
    targets = jax.lax.stop_gradient(path.points + (t - 1) * path.velocities - t * slopes)
    return adaptive(mse(g, jnp.clip(targets, -BOUND, BOUND), valid), POWER, CONSTANT)


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m Q̄(s', a'))², a' the best of N draws by Q̄."""
    return td_loss(sample, nets, params, state, batch, key, actors=state.params)


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """α times the flow's errors − Q(s, clip g) + how far g leaves [−1, 1]; the critics are constants."""
    (flow_key, z_key), config, s = jax.random.split(key), state.config, batch["observations"]
    field, valid = partial(nets.actor, params, s), batch["actions_valid"]
    flow = flow_errors(field, batch["actions"], flow_key, config.time_levels, valid).mean()
    a = raw(nets, params, s, z_key)
    outside = jnp.maximum(jnp.abs(a) - 1, 0).mean()
    values = nets.critic(state.params, s, jnp.clip(a, -1.0, 1.0))
    q_loss = -values.mean() / (q_size(values) if config.normalize_q else 1.0)
    alpha = config.balance.weight(dict(state.extras), config.alpha, flow, state.step + 1, config.schedule.steps // 10)
    loss = q_loss + outside + alpha * flow
    metrics = {"loss": loss, "flow_loss": flow, "bound_loss": outside, "q_loss": q_loss, "q_mean": values.mean()}
    return loss, {f"actor/{name}": value for name, value in {**metrics, "alpha": alpha}.items()}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of both losses, each network's gradient clipped, then the target critics after it."""
    config, done = state.config, state.opt_state["actor"].count
    policy_rate = config.schedule(config.learning_rate, done)
    rates: dict[str, Scalar] = {"actor": policy_rate, "critic": config.critic_learning_rate}
    clip = Clip(config.max_grad_norm, slack=0.0)
    moved, metrics = descend(nets, state, batch, key, (critic_loss, actor_loss), rates, clip)
    alpha, flow = metrics["actor/alpha"], metrics["actor/flow_loss"]
    extras = config.balance.remember(dict(state.extras), alpha, flow, state.step + 1)
    return polyak(moved.replace(extras=extras), moved.params, critic=config.critic.target_rate), metrics


make = choosing(
    networks, update, sample, batch=Transitions.of, targets=("critic",),
    extras=lambda config: config.balance.start(config.alpha),
)  # fmt: skip
