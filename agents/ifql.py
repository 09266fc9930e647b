"""IFQL: IQL's critics, and the best by them of several draws of a flow that clones behaviour.

It is IDQL with a flow in place of diffusion, and FQL's baseline (https://arxiv.org/abs/2502.02538, appendix C).
"""

from functools import partial
from typing import NamedTuple

import jax

from flowrl import critics
from flowrl.choice import BestOfN, choosing, draws_no_targets
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic, ImplicitValue, implicit_critic_loss, implicit_value_loss
from flowrl.data.samplers import Horizon, Transitions
from flowrl.generative import Flow
from flowrl.networks import MLP, Network, Spec, named
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Loss, Metrics, Params, TrainState


@config
class Config:
    """The settings of FQL's code."""

    critic: Critic = nested(Critic())
    value: ImplicitValue = nested(ImplicitValue(expectile=0.9))
    flow: Flow = nested(Flow(steps=10))
    choice: BestOfN = nested(BestOfN(num_samples=32, critics="online"))
    horizon: Horizon = nested(Horizon())
    hidden_dims: tuple[int, ...] = static((512, 512, 512, 512), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)

    def problem(self, prefix: str) -> str:
        """Says that targets draw no actions."""
        return draws_no_targets(self.choice, prefix)


State = TrainState[Config]


class Networks(NamedTuple):
    """The flow, the value and the critics."""

    spec: Spec
    actor: Network  # s [B, D], x [B, A], t [B, 1] -> velocity [B, A]
    value: Network  # s [B, D] -> [B]
    critic: Network  # s [B, D], a [B, A] -> [heads, B]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    (s, a, _, t), layers = spec.inputs(), config.hidden_dims
    value, critic = (build(config.critic, layers) for build in (critics.value_module, critics.module))
    return Networks(
        spec, **named(actor=(MLP(layers, spec.action_dim), s, a, t), value=(value, s), critic=(critic, s, a))
    )


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """Flow matching, whatever Q says."""
    field = partial(nets.actor, params, batch["observations"])
    loss = state.config.flow.errors(field, batch["actions"], key, batch["actions_valid"]).mean()
    return loss, {"actor/loss": loss}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of all losses at the same parameters, then the target critics toward those before the step."""
    config, losses = state.config, (implicit_value_loss, implicit_critic_loss, actor_loss)
    rates = dict.fromkeys(("value", "critic", "actor"), config.learning_rate)
    moved, metrics = descend(nets, state, batch, key, losses, rates)
    return polyak(moved, state.params, critic=config.critic.target_rate), metrics


def sample(nets: Networks, config: Config, params: Params, s: jax.Array, key: jax.Array) -> jax.Array:
    """One action of the flow per state, clipped: `[..., D]` to `[..., A]`."""
    return config.flow.actions(partial(nets.actor, params, s), nets.spec.noise(key, s))


make = choosing(networks, update, sample, batch=Transitions.of, targets=("critic",))
