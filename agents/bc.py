"""BC: behaviour cloning of a single task's data, with a Gaussian policy or with flow matching; the baseline.

The Gaussian's mode is the conditional mean of the actions; the flow, integrated in several steps, keeps their modes.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowrl import config as configs
from flowrl import flow
from flowrl.agent import Agent, Needs, Spec
from flowrl.losses import unit_gaussian_log_prob
from flowrl.networks import MLP, Network, gaussian_draw
from flowrl.optim import descend
from flowrl.train_state import Batch, Metrics, Mode, Params, TrainState, new_state


@dataclasses.dataclass(frozen=True)
class Config(configs.Offline):
    """The networks and optimizer of FQL's baselines."""

    distribution: str = configs.static("gaussian", "What the policy is.", ("gaussian", "flow"))
    flow_steps: int = configs.static(10, "Euler steps per action of the flow.")


class Networks(NamedTuple):
    """The mean of a Gaussian of unit standard deviation, or a velocity field."""

    actor: Network  # [B, D] -> [B, A], or [B, D], [B, A], [B, 1] -> [B, A]


def gaussian_loss(networks: Networks, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """−E log π(a | s)."""
    del key
    means = networks.actor.apply(params["actor"], batch["observations"])
    loss = -unit_gaussian_log_prob(batch["actions"], means).mean()
    return loss, {"actor/loss": loss, "actor/mse": jnp.mean((means - batch["actions"]) ** 2)}


def flow_loss(networks: Networks, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """Flow matching from noise at time 0 to the actions at time 1."""
    velocity = partial(networks.actor.apply, params["actor"], batch["observations"])
    loss = flow.matching_loss(velocity, batch["actions"], key)
    return loss, {"actor/loss": loss}


def update(
    networks: Networks, config: Config, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, Metrics]:
    """One gradient step."""
    loss = gaussian_loss if config.distribution == "gaussian" else flow_loss
    state, metrics = descend(state, lambda params: loss(networks, params, batch, key), ("actor",))
    return state.replace(step=state.step + 1), metrics


def act(
    networks: Networks,
    config: Config,
    policy: Params,
    observations: jax.Array,
    goals: jax.Array,
    key: jax.Array,
    *,
    mode: Mode,
) -> jax.Array:
    """The Gaussian's mode, or with `explore` a sample; or one draw of noise through the flow; clipped to [−1, 1]."""
    del goals
    actor = partial(networks.actor.apply, policy["actor"], observations)
    if config.distribution == "gaussian":
        return jnp.clip(gaussian_draw(actor(), key, mode), -1.0, 1.0)
    noise = jax.random.normal(key, (*observations.shape[:-1], networks.actor.out_dim))
    return jnp.clip(flow.euler(actor, noise, config.flow_steps), -1.0, 1.0)


def init(
    networks: Networks, config: Config, spec: Spec, key: jax.Array, hyper: Mapping[str, Any] | None = None
) -> TrainState:
    """Returns the state before the first update."""
    inputs = [jnp.zeros((1, spec.observation_dim))]
    if config.distribution == "flow":
        inputs += [jnp.zeros((1, spec.action_dim)), jnp.zeros((1, 1))]
    return new_state({"actor": networks.actor.init(key, *inputs)}, (), configs.hyper(config, hyper))


def make(config: Config, spec: Spec) -> Agent:
    """Builds the agent."""
    scale = 1e-2 if config.distribution == "gaussian" else 1.0
    networks = Networks(MLP(config.hidden_dims, spec.action_dim, final_scale=scale))
    return Agent(
        init=partial(init, networks, config, spec),
        update=partial(update, networks, config),
        policy=lambda state: {"actor": state.params["actor"]},
        act=partial(act, networks, config),
        needs=Needs(("observations", "actions")),
    )
