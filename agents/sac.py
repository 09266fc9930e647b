"""SAC: off-policy maximum-entropy learning with a squashed Gaussian (https://arxiv.org/abs/1812.05905)."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from flowrl import config as configs
from flowrl import losses, maximum_entropy
from flowrl.agent import Agent, Needs, Spec
from flowrl.gaussian import SquashedGaussian
from flowrl.losses import temperature
from flowrl.maximum_entropy import Networks, actor_loss, initial_state, sample_actions
from flowrl.networks import Value, ensemble
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Metrics, Params, TrainState


@dataclasses.dataclass(frozen=True)
class Config(maximum_entropy.Config):
    """The paper's settings."""

    critic_hidden_dims: tuple[int, ...] = configs.static((), "Hidden layers of the critics; by default hidden_dims.")
    q_agg: str = configs.static("min", "How the critics' values are combined in both losses.", ("min", "mean"))
    activation: str = configs.static("relu", "Nonlinearity of both networks; OGBench's is GELU.", ("relu", "gelu"))
    lagging_targets: bool = configs.targets_lag()


def critic_loss(
    networks: Networks, config: Config, params: Params, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """TD error against r + γ m (min Q̄(s', a') − α log π(a' | s')), a' from the current policy (eq. 5 and 7)."""
    next_actions, log_probs = sample_actions(networks, state.params["actor"], batch["next_observations"], key)
    next_values = networks.critic.apply(state.target_params["critic"], batch["next_observations"], next_actions)
    soft_values = losses.aggregate(next_values, config.q_agg) - temperature(state.params) * log_probs
    return losses.critic_loss(networks.critic, params, state, batch, soft_values)


def update(
    networks: Networks, config: Config, spec: Spec, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, Metrics]:
    """One joint step of all losses at the same parameters, then the target critics."""
    critic_key, actor_key = jax.random.split(key)

    def loss_fn(params: Params) -> tuple[jax.Array, Metrics]:
        critic, critic_metrics = critic_loss(networks, config, params, state, batch, critic_key)
        actor, actor_metrics = actor_loss(networks, spec, params, state, batch, actor_key, config.q_agg)
        return critic + actor, critic_metrics | actor_metrics

    moved, metrics = descend(state, loss_fn, ("actor", "critic", "temperature"))
    toward = state.params if config.lagging_targets else moved.params
    moved = polyak(moved, {"critic": state.hyper["critic_target_rate"]}, toward)
    return moved.replace(step=state.step + 1), metrics


def init(
    networks: Networks, config: Config, spec: Spec, key: jax.Array, hyper: Mapping[str, Any] | None = None
) -> TrainState:
    """Returns the state before the first update."""
    return initial_state(networks, spec, key, configs.hyper(config, hyper))


def make(config: Config, spec: Spec) -> Agent:
    """Builds the agent."""
    hidden_dims = config.critic_hidden_dims or config.hidden_dims
    activation = getattr(nn, config.activation)
    critic = ensemble(Value)(hidden_dims, activation=activation, layer_norm=config.critic_layer_norm)
    networks = Networks(SquashedGaussian(config.hidden_dims, spec.action_dim, activation), critic)
    return Agent(
        init=partial(init, networks, config, spec),
        update=partial(update, networks, config, spec),
        policy=lambda state: {"actor": state.params["actor"]},
        act=partial(maximum_entropy.act, networks),
        needs=Needs(("observations", "actions", "rewards", "masks", "next_observations")),
    )
