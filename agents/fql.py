"""FQL: a one-step policy distilled from a behaviour flow and pulled by Q (https://arxiv.org/abs/2502.02538).

A velocity field learns the data by flow matching, noise at time 0 and data at time 1. The one-step policy μ(s, z) is
regressed on the field's Euler integral from the same noise, and maximises Q. Only μ acts.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowrl import acting, flow, losses
from flowrl import config as configs
from flowrl.agent import Agent, Needs, Spec
from flowrl.networks import MLP, Network, Value, ensemble
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Metrics, Mode, Params, TrainState, new_state


@dataclasses.dataclass(frozen=True)
class Config(configs.OfflineQ):
    """The settings of the released code."""

    flow_steps: int = configs.static(10, "Euler steps of the flow that the one-step policy is distilled from.")
    q_agg: str = configs.static("mean", "How the target critics' values are combined.", ("min", "mean"))
    normalize_q: bool = configs.static(False, "Divide the policy's Q by its mean size.")
    alpha: float = configs.sweepable(10.0, "Weight of distillation; depends on the scale of rewards.")
    q_alpha: float = configs.sweepable(1.0, "Weight of Q in the policy's loss; 0 is behaviour cloning.")
    lagging_targets: bool = configs.targets_lag()


class Networks(NamedTuple):
    """The behaviour flow, the one-step policy and twin critics."""

    flow: Network  # [B, D], [B, A], [B, 1] -> [B, A], a velocity
    actor: Network  # [B, D], [B, A] -> [B, A], from noise
    critic: Network  # [B, D], [B, A] -> [2, B]


def sample_actions(networks: Networks, actor_params: Any, observations: jax.Array, key: jax.Array) -> jax.Array:
    """μ(s, z), clipped: `[..., D]` to `[..., A]`."""
    noise = jax.random.normal(key, (*observations.shape[:-1], networks.actor.out_dim))
    return jnp.clip(networks.actor.apply(actor_params, observations, noise), -1.0, 1.0)


def flow_actions(
    networks: Networks, config: Config, flow_params: Any, observations: jax.Array, noise: jax.Array
) -> jax.Array:
    """The behaviour flow's Euler integral from noise, clipped: `[..., D]` and `[..., A]` to `[..., A]`."""
    velocity = partial(networks.flow.apply, flow_params, observations)
    return jnp.clip(flow.euler(velocity, noise, config.flow_steps), -1.0, 1.0)


def critic_loss(
    networks: Networks, config: Config, params: Params, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """TD error against r + γ m agg Q̄(s', μ(s', z'))."""
    next_actions = sample_actions(networks, state.params["actor"], batch["next_observations"], key)
    next_values = networks.critic.apply(state.target_params["critic"], batch["next_observations"], next_actions)
    return losses.critic_loss(networks.critic, params, state, batch, losses.aggregate(next_values, config.q_agg))


def actor_loss(
    networks: Networks, config: Config, params: Params, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Flow matching, α · distillation − Q; the flow's integral and the critics are constants."""
    flow_key, noise_key = jax.random.split(key)
    observations = batch["observations"]
    bc_loss = flow.matching_loss(partial(networks.flow.apply, params["flow"], observations), batch["actions"], flow_key)
    noise = jax.random.normal(noise_key, batch["actions"].shape)
    targets = flow_actions(networks, config, state.params["flow"], observations, noise)
    actions = networks.actor.apply(params["actor"], observations, noise)
    distill_loss = jnp.mean((actions - targets) ** 2)
    values = networks.critic.apply(state.params["critic"], observations, jnp.clip(actions, -1.0, 1.0))
    q_loss = losses.mean_q_loss(values, config.normalize_q)
    loss = bc_loss + state.hyper["alpha"] * distill_loss + state.hyper["q_alpha"] * q_loss
    return loss, {
        "actor/loss": loss,
        "actor/flow_loss": bc_loss,
        "actor/distill_loss": distill_loss,
        "actor/q_loss": q_loss,
        "actor/q_mean": values.mean(),
    }


def update(
    networks: Networks, config: Config, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, Metrics]:
    """One joint step of all losses at the same parameters, then the target critics."""
    critic_key, actor_key = jax.random.split(key)

    def loss_fn(params: Params) -> tuple[jax.Array, Metrics]:
        critic, critic_metrics = critic_loss(networks, config, params, state, batch, critic_key)
        actor, actor_metrics = actor_loss(networks, config, params, state, batch, actor_key)
        return critic + actor, critic_metrics | actor_metrics

    moved, metrics = descend(state, loss_fn, ("flow", "actor", "critic"))
    toward = state.params if config.lagging_targets else moved.params
    moved = polyak(moved, {"critic": state.hyper["critic_target_rate"]}, toward)
    return moved.replace(step=state.step + 1), metrics


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
    """One draw of noise through μ, or the best of several by Q."""
    del goals
    sample = partial(sample_actions, networks, policy["actor"], observations)
    return acting.choose(sample, networks.critic, config.candidates, policy, observations, key, mode)


def init(
    networks: Networks, config: Config, spec: Spec, key: jax.Array, hyper: Mapping[str, Any] | None = None
) -> TrainState:
    """Returns the state before the first update."""
    flow_key, actor_key, critic_key = jax.random.split(key, 3)
    observations, actions = jnp.zeros((1, spec.observation_dim)), jnp.zeros((1, spec.action_dim))
    params = {
        "flow": networks.flow.init(flow_key, observations, actions, jnp.zeros((1, 1))),
        "actor": networks.actor.init(actor_key, observations, actions),
        "critic": networks.critic.init(critic_key, observations, actions),
    }
    return new_state(params, ("critic",), configs.hyper(config, hyper))


def make(config: Config, spec: Spec) -> Agent:
    """Builds the agent."""
    field = MLP(config.hidden_dims, spec.action_dim)
    networks = Networks(field, field, ensemble(Value)(config.hidden_dims))
    return Agent(
        init=partial(init, networks, config, spec),
        update=partial(update, networks, config),
        policy=partial(acting.policy, config, "params"),
        act=partial(act, networks, config),
        needs=Needs(("observations", "actions", "rewards", "masks", "next_observations")),
        evaluations=acting.evaluations(config),
    )
