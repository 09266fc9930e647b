"""BFN and QC: a flow that clones behaviour, and critics that choose among its actions, in acting and for their targets.

Nothing pulls the flow toward Q: a policy is the best of N of its draws. With chunks of actions it is QC (Q-chunking,
https://arxiv.org/abs/2507.07969), with n-step returns BFN-n.
"""

from collections.abc import Mapping
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

FOUR = BestOfN(num_samples=4, target_samples=4, aggregate="mean", critics="online")


@config
class Config:
    """The settings of the released code."""

    critic: Critic = nested(Critic(aggregate="mean"))
    flow: Flow = nested(Flow(steps=10))
    choice: BestOfN = nested(FOUR)
    horizon: Horizon = nested(Horizon())
    hidden_dims: tuple[int, ...] = static((512, 512, 512, 512), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)


NAMES: Mapping[str, Config] = {
    "bfn": Config(),
    "bfn_n": Config(horizon=Horizon(steps=5)),
    "qc": Config(
        horizon=Horizon(steps=5, chunk=True),
        choice=BestOfN(num_samples=32, target_samples=32, aggregate="mean", critics="online"),
    ),
}
"""The agents, each with its default configuration."""
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
    return jnp.clip(flow.sample(partial(nets.actor, params, s), nets.spec.noise(key, s)), -1.0, 1.0)


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m Q̄(s', a'))², a' the best of N draws of the flow by Q (QC, eq. 4)."""
    config, next_s = state.config, batch["next_observations"]
    next_a = best_next(nets, state, partial(sample, nets, config.flow, state.params, next_s), next_s, key)
    next_q = critics.combine(config.critic, nets.critic(state.target_params, next_s, next_a))
    targets = batch["rewards"] + batch["discounts"] * next_q
    errors, metrics = critics.td_errors(nets.critic(params, batch["observations"], batch["actions"]), targets, batch)
    return errors.mean(), metrics


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """Flow matching (QC, eq. 5)."""
    field, valid = partial(nets.actor, params, batch["observations"]), batch["actions_valid"]
    loss = state.config.flow.errors(field, batch["actions"], key, valid).mean()
    return loss, {"actor/loss": loss}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of both losses at the same parameters, then the target critics toward those before the step."""
    config = state.config
    rates = dict.fromkeys(("actor", "critic"), config.learning_rate)
    moved, metrics = descend(nets, state, batch, key, (critic_loss, actor_loss), rates)
    return polyak(moved, state.params, critic=config.critic.target_rate), metrics


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """The best of N draws of the flow by Q, which explores by itself."""
    s, params, config = inputs["observations"], policy.params, policy.config
    one = partial(sample, nets, config.flow, params, s)
    return best_of_n(config.choice, one, partial(nets.critic, params, s), key)


make = Maker(
    networks, update, act, batch=Transitions.of, targets=("critic",),
    acting=lambda state: with_critic(state, state.params), evaluations=one_and_best, explores=lambda config: config,
)  # fmt: skip
