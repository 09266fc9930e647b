"""SORL: a shortcut model as the policy, for any number of steps per action (https://arxiv.org/abs/2505.22866).

One network gives mean velocities over steps of several sizes: the smallest clone behaviour, each larger one is two of
half its size of the slow copy, and samples in 1, 2, 4 and 8 steps maximise a Q that knows the number of steps.
"""

from functools import partial

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.agent import Maker
from flowrl.choice import BestOfN, best_of_n, generated, one_and_best, with_critic
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.generative import Shortcut
from flowrl.losses import q_size
from flowrl.networks import MLP, Networks, Spec, named
from flowrl.optim import Clip, gradients, polyak, step
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState


@config
class Config:
    """The settings of the authors' code."""

    critic: Critic = nested(Critic(aggregate="mean"))
    policy: Shortcut = nested(Shortcut())
    choice: BestOfN = nested(BestOfN(aggregate="mean", critics="online"))
    horizon: Horizon = nested(Horizon())
    hidden_dims: tuple[int, ...] = static((512, 512, 512, 512), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(1e-4, "Adam's step size, for every network.")
    max_grad_norm: float = traced(1.0, "All networks' gradient together is clipped to this norm; 0 is off.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    flow_alpha: float = traced(10.0, "Weight of flow matching at the smallest steps.")
    consistency_alpha: float = traced(10.0, "Weight of larger steps' consistency with smaller ones.")
    q_alpha: float = traced(100.0, "Weight of the normalised Q; 0 is behaviour cloning.")
    target_gradients: bool = static(False, "TD targets are no constants to the policy, as released; else they are.")
    actor_target_rate: float = traced(0.005, "Polyak rate of the slow policy.", high=1.0)


State = TrainState[Config]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks: the actor takes s [B, D], x [B, A], t [B, 1], level [B, 1] to a mean velocity [B, A].

    Critics know the number of steps: s, a, k [B, 1] to [heads, B].
    """
    s, a, _, t = spec.inputs()
    actor, critic = MLP(config.hidden_dims, spec.action_dim), critics.module(config.critic, config.hidden_dims)
    return Networks(spec, **named(actor=(actor, s, a, t, t), critic=(critic, s, a, t)))


def sample_at(
    nets: Networks, model: Shortcut, params: Params, s: jax.Array, level: jax.Array, key: jax.Array
) -> jax.Array:  # fmt: skip
    """One action per state in 2^level steps, clipped: `[B, D]` to `[B, A]`."""
    return jnp.clip(model.sample_at(partial(nets.actor, params, s), nets.spec.noise(key, s), level), -1.0, 1.0)


def steps_of(level: jax.Array | int, a: jax.Array) -> jax.Array:
    """k = 2^level for each action of `[..., A]`, as critics read it: `[..., 1]`."""
    return jnp.full((*a.shape[:-1], 1), 2.0**level)


def drawn_level(state: State, key: jax.Array) -> jax.Array:
    """A level of steps `[]`, all alike."""
    return jax.random.randint(key, (), 0, state.config.policy.finest + 1)


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a, k) − r − γ m Q̄(s', a', k))², a' of the trained policy in k steps, one k for the batch."""
    level_key, next_key = jax.random.split(key)
    config, next_s, level = state.config, batch["next_observations"], drawn_level(state, level_key)
    k, actor = steps_of(level, batch["actions"]), params if config.target_gradients else state.params
    policy, ranking = partial(sample_at, nets, config.policy, actor, next_s, level), config.choice.ranking(state)
    next_a = best_of_n(config.choice.in_targets, policy, lambda a: nets.critic(ranking, next_s, a, k), next_key)
    next_q = critics.combine(config.critic, nets.critic(state.target_params, next_s, next_a, k))
    targets = batch["rewards"] + batch["discounts"] * next_q
    q = nets.critic(params, batch["observations"], batch["actions"], k)
    errors, metrics = critics.td_errors(q, targets, batch)
    if config.target_gradients:
        errors = batch["valid"] * (q - targets) ** 2
    return errors.mean(), metrics


def actor_loss(
    nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array, *, before: State
) -> Loss:  # fmt: skip
    """α₁ flow matching + α₂ self-consistency − η mean Q(s, â, k) / mean |Q|, â in k steps, one k for the batch.

    Critics and slow policy are those `before` the update.
    """
    flow_key, halves_key, level_key, z_key = jax.random.split(key, 4)
    config, s, a, valid = state.config, batch["observations"], batch["actions"], batch["actions_valid"]
    field, slow = partial(nets.actor, params, s), partial(nets.actor, before.target_params, s)
    flow = config.policy.errors(field, a, flow_key, valid).mean()
    consistency = config.policy.consistency_errors(field, slow, a, halves_key, valid).mean()
    level = drawn_level(state, level_key)
    proposals = sample_at(nets, config.policy, params, s, level, z_key)
    q = nets.critic(before.params, s, proposals, steps_of(level, proposals))
    q_loss = -q.mean() / q_size(q)
    loss = config.flow_alpha * flow + config.consistency_alpha * consistency + config.q_alpha * q_loss
    metrics = {"loss": loss, "flow_loss": flow, "consistency_loss": consistency, "q_loss": q_loss, "q_mean": q.mean()}
    return loss, {f"actor/{name}": value for name, value in metrics.items()}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """Two steps of one Adam over all networks, along the critics' gradient and the policy's; then the slow copies.

    A network without a gradient moves by its momentum. Slow copies follow the parameters before the update.
    """
    config, (critic_key, actor_key), moved, metrics = state.config, jax.random.split(key), state, dict[str, jax.Array]()
    rates = dict.fromkeys(("actor", "critic"), config.learning_rate)
    for loss, own in ((critic_loss, critic_key), (partial(actor_loss, before=state), actor_key)):
        grads, more = gradients(nets, moved, batch, own, (loss,), tuple(rates))
        moved = step(moved, grads, rates, Clip(config.max_grad_norm, jointly=True, slack=0.0))
        metrics |= more
    slow = polyak(moved, state.params, critic=config.critic.target_rate, actor=config.actor_target_rate)
    return slow, metrics


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """One draw of noise in the steps that act, which explores by itself, or the best of several by Q."""
    s, params, config = inputs["observations"], policy.params, policy.config

    def critic(a: jax.Array) -> jax.Array:
        return nets.critic(params, s, a, steps_of(config.policy.level, a))

    return best_of_n(config.choice, partial(generated, nets, config, params, s), critic, key)


make = Maker(
    networks, update, act, batch=Transitions.of, targets=("actor", "critic"),
    acting=lambda state: with_critic(state, state.params), evaluations=one_and_best,
)  # fmt: skip
