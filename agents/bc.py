"""BC: behaviour cloning of a single task's data, with a Gaussian policy or with flow matching; the baseline.

The Gaussian's mode is the conditional mean of the actions; the flow, integrated in several steps, keeps their modes.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.data.samplers import Horizon, Transitions
from flowrl.generative import Flow
from flowrl.losses import unit_gaussian_log_prob
from flowrl.networks import MLP, Network, Spec, named
from flowrl.optim import descend
from flowrl.policies import unit_gaussian
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState


@config
class Config:
    """The networks and optimizer of FQL's baselines."""

    flow: Flow = nested(Flow(steps=10))
    horizon: Horizon = nested(Horizon())
    distribution: str = static("gaussian", "What the policy is.", choices=("gaussian", "flow"))
    hidden_dims: tuple[int, ...] = static((512, 512, 512, 512), "Hidden layers of the policy.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size.")


State = TrainState[Config]


class Networks(NamedTuple):
    """The mean of a Gaussian of unit standard deviation, or a velocity field."""

    spec: Spec
    actor: Network  # s [B, D] -> [B, A], or s [B, D], x [B, A], t [B, 1] -> [B, A]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    s, a, _, t = spec.inputs()
    if config.distribution == "gaussian":
        return Networks(spec, **named(actor=(MLP(config.hidden_dims, spec.action_dim, final_scale=1e-2), s)))
    return Networks(spec, **named(actor=(MLP(config.hidden_dims, spec.action_dim), s, a, t)))


def gaussian_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """−E log π(a | s)."""
    means = nets.actor(params, batch["observations"])
    loss = -unit_gaussian_log_prob(batch["actions"], means, batch["actions_valid"]).mean()
    return loss, {"actor/loss": loss, "actor/mse": jnp.mean((means - batch["actions"]) ** 2)}


def flow_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """Flow matching from noise at time 0 to the actions at time 1."""
    field = partial(nets.actor, params, batch["observations"])
    loss = state.config.flow.errors(field, batch["actions"], key, batch["actions_valid"]).mean()
    return loss, {"actor/loss": loss}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One gradient step."""
    loss = gaussian_loss if state.config.distribution == "gaussian" else flow_loss
    return descend(nets, state, batch, key, (loss,), {"actor": state.config.learning_rate})


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """The Gaussian's mode, or with `explore` a sample; or one draw of noise through the flow; clipped to [−1, 1]."""
    s, config = inputs["observations"], policy.config
    if config.distribution == "gaussian":
        return jnp.clip(unit_gaussian(nets.actor(policy.params, s), key, explore), -1.0, 1.0)
    return config.flow.actions(partial(nets.actor, policy.params, s), nets.spec.noise(key, s))


make = Maker(networks, update, act, batch=lambda config: Transitions(1.0, config.horizon))
