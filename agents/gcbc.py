"""GCBC: goal-conditioned behaviour cloning (Ghosh et al., https://arxiv.org/abs/1912.06088), as in OGBench."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.data.goals import GoalMix
from flowrl.data.samplers import Goals
from flowrl.losses import unit_gaussian_log_prob
from flowrl.networks import MLP, Network, Spec, named
from flowrl.optim import descend
from flowrl.policies import unit_gaussian
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState


@config
class Config:
    """OGBench's defaults."""

    actor_goals: GoalMix = nested(GoalMix())
    hidden_dims: tuple[int, ...] = static((512, 512, 512), "Hidden layers of the policy.")
    batch_size: int = static(1024, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size.")


State = TrainState[Config]


class Networks(NamedTuple):
    """The mean of a Gaussian policy of unit standard deviation."""

    actor: Network  # s [B, D], g [B, G] -> [B, A]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    s, _, g, _ = spec.inputs()
    return Networks(**named(actor=(MLP(config.hidden_dims, spec.action_dim, final_scale=1e-2), s, g)))


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """−E log π(a | s, g)."""
    means = nets.actor(params, batch["observations"], batch["actor_goals"])
    loss = -unit_gaussian_log_prob(batch["actions"], means).mean()
    return loss, {"actor/loss": loss, "actor/mse": jnp.mean((means - batch["actions"]) ** 2)}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One gradient step."""
    return descend(nets, state, batch, key, (actor_loss,), {"actor": state.config.learning_rate})


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """The Gaussian's mode, or with `explore` a sample; clipped to [−1, 1]."""
    means = nets.actor(policy.params, inputs["observations"], inputs["goals"])
    return jnp.clip(unit_gaussian(means, key, explore), -1.0, 1.0)


make = Maker(networks, update, act, batch=lambda config: Goals(config.actor_goals))
