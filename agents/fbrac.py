"""FBRAC: a flow that clones behaviour and is pulled by Q through all of its steps (https://arxiv.org/abs/2502.02538).

The baseline of Flow Q-Learning, here with the settings of QAM's authors (https://arxiv.org/abs/2601.14234).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.agent import Maker
from flowrl.choice import BestOfN, best_next, best_of_n, one_and_best, with_critic
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.generative import Flow
from flowrl.networks import MLP, Network, Spec, named
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState


@config
class Config:
    """The settings of QAM's code, for chunks as on manipulation tasks."""

    critic: Critic = nested(Critic(heads=10, aggregate="mean", rho=0.5))
    flow: Flow = nested(Flow(steps=10))
    choice: BestOfN = nested(BestOfN(aggregate="mean", critics="online"))
    horizon: Horizon = nested(Horizon(steps=5, chunk=True))
    hidden_dims: tuple[int, ...] = static((512, 512, 512, 512), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    alpha: float = traced(100.0, "Q is divided by it, as in QAM's code.", low=1e-8)
    flow_alpha: float = traced(1.0, "Weight of flow matching; FQL's α, where alpha is 1.")


State = TrainState[Config]


class Networks(NamedTuple):
    """The flow and the critics."""

    spec: Spec
    actor: Network  # s [B, D], x [B, A], t [B, 1] -> velocity [B, A]
    critic: Network  # s [B, D], a [B, A] -> [heads, B]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    s, a, _, t = spec.inputs()
    field, critic = MLP(config.hidden_dims, spec.action_dim), critics.module(config.critic, config.hidden_dims)
    return Networks(spec, **named(actor=(field, s, a, t), critic=(critic, s, a)))


def sample(nets: Networks, flow: Flow, params: Params, s: jax.Array, key: jax.Array) -> jax.Array:
    """One action of the flow per state, clipped: `[..., D]` to `[..., A]`."""
    return flow.actions(partial(nets.actor, params, s), nets.spec.noise(key, s))


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m (mean Q̄ − ρ std Q̄)(s', a'))², a' of the flow."""
    config, next_s = state.config, batch["next_observations"]
    next_a = best_next(nets, state, partial(sample, nets, config.flow, state.params, next_s), next_s, key)
    next_q = critics.combine(config.critic, nets.critic(state.target_params, next_s, next_a))
    targets = batch["rewards"] + batch["discounts"] * next_q
    errors, metrics = critics.td_errors(nets.critic(params, batch["observations"], batch["actions"]), targets, batch)
    return errors.mean(), metrics


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """Flow matching − mean Q(s, a)/α, a of the whole flow, with constant critics.

    Chunks that cross the end of an episode are not cloned at all.
    """
    (flow_key, z_key), config, s = jax.random.split(key), state.config, batch["observations"]
    errors = config.flow.errors(partial(nets.actor, params, s), batch["actions"], flow_key)
    flow = jnp.mean(batch["valid"] * errors)
    q = nets.critic(state.params, s, sample(nets, config.flow, params, s, z_key)).mean()
    loss = config.flow_alpha * flow - q / config.alpha
    return loss, {"actor/loss": loss, "actor/flow_loss": flow, "actor/q_mean": q}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of both losses at the same parameters, then the target critics toward those before the step."""
    config = state.config
    rates = dict.fromkeys(("actor", "critic"), config.learning_rate)
    moved, metrics = descend(nets, state, batch, key, (critic_loss, actor_loss), rates)
    return polyak(moved, state.params, critic=config.critic.target_rate), metrics


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """One draw of the flow, which explores by itself, or the best of several by Q."""
    s, params, config = inputs["observations"], policy.params, policy.config
    one = partial(sample, nets, config.flow, params, s)
    return best_of_n(config.choice, one, partial(nets.critic, params, s), key)


make = Maker(
    networks, update, act, batch=Transitions.of, targets=("critic",),
    acting=lambda state: with_critic(state, state.params), evaluations=one_and_best, explores=lambda config: config,
)  # fmt: skip
