"""A new agent that plays several actions in a row: of some chunks that the data might hold, the best by Q.

A flow learns chunks of H actions, and the critics judge whole chunks, so that their targets look H steps ahead without
a bias (Q-chunking, https://arxiv.org/abs/2507.07969). As `--agent=chunks`, copied to agents/.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Segments
from flowrl.generative import Flow
from flowrl.networks import MLP, Network, Spec, named
from flowrl.optim import descend, polyak
from flowrl.policies import BestOfN, best_of_n
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState


@config
class Config:
    """Settings of the example."""

    critic: Critic = nested(Critic(aggregate="mean"))
    flow: Flow = nested(Flow(steps=10))
    choice: BestOfN = nested(BestOfN(num_samples=8))
    chunk: int = static(5, "Actions in a row.")
    hidden_dims: tuple[int, ...] = static((256, 256), "Hidden layers of every network.")
    batch_size: int = static(256, "Segments per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)


State = TrainState[Config]


class Networks(NamedTuple):
    """The flow and the critics, to which a chunk is one action of H·A numbers."""

    spec: Spec
    actor: Network  # s [B, D], x [B, H·A], t [B, 1] -> velocity [B, H·A]
    critic: Network  # s [B, D], a [B, H·A] -> [heads, B]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    spec = spec.chunk(config.chunk)
    s, a, _, t = spec.inputs()
    field, critic = MLP(config.hidden_dims, spec.action_dim), critics.module(config.critic, config.hidden_dims)
    return Networks(spec, **named(actor=(field, s, a, t), critic=(critic, s, a)))


def flat(chunks: jax.Array) -> jax.Array:
    """`[B, H, A]` to `[B, H·A]`."""
    return chunks.reshape(len(chunks), -1)


def choose(nets: Networks, config: Config, params: Params, s: jax.Array, key: jax.Array) -> jax.Array:
    """The best of several chunks `[B, H·A]` from the flow."""

    def one(key: jax.Array) -> jax.Array:
        return jnp.clip(config.flow.sample(partial(nets.actor, params, s), nets.spec.noise(key, s)), -1.0, 1.0)

    return best_of_n(config.choice, one, partial(nets.critic, params, s), key)


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a…) − Σ γᵏ rₖ − γ^H m Q̄(s_H, a'…))²; the batch has the sum, and its discounts are γ^H m."""
    config, next_s = state.config, batch["next_observations"]
    next_q = nets.critic(state.target_params, next_s, choose(nets, config, state.params, next_s, key))
    targets = batch["rewards"] + batch["discounts"] * critics.combine(config.critic, next_q)
    q = nets.critic(params, batch["observations"], flat(batch["actions"]))
    errors, metrics = critics.td_errors(q, targets, batch)
    return errors.mean(), metrics


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """Flow matching on the chunks that no end of an episode cuts short."""
    errors = state.config.flow.errors(partial(nets.actor, params, batch["observations"]), flat(batch["actions"]), key)
    loss = (batch["actions_valid"].min(axis=1) * errors).mean()
    return loss, {"actor/loss": loss}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step, then the target critics."""
    config = state.config
    rates = {"actor": config.learning_rate, "critic": config.learning_rate}
    state, metrics = descend(nets, state, batch, key, (critic_loss, actor_loss), rates)
    return polyak(state, state.params, critic=config.critic.target_rate), metrics


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """H actions `[..., H, A]`, which are played one after another."""
    config, s = policy.config, inputs["observations"]
    chunk = choose(nets, config, policy.params, s, key)
    return chunk.reshape(*chunk.shape[:-1], config.chunk, -1)


make = Maker(
    networks, update, act, batch=lambda config: Segments(config.chunk, config.discount), targets=("critic",),
    acting=lambda state: state.params,
)  # fmt: skip
