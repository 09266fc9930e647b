"""SSCP: a flow policy that completes its path in one step, trained together with Q (https://arxiv.org/abs/2506.21427).

One network h(s, x, τ, d) gives the velocity at time τ (d = 0) and the vector that completes the path (d = 1 − τ).
Noise is at time 0, data at time 1. An action is one completion from noise.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl import acting, flow, losses
from flowrl import config as configs
from flowrl.agent import Agent, Needs, Spec
from flowrl.networks import MLP, Network, TimePairEmbedding, Value, ensemble, mish
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Metrics, Mode, Params, TrainState, new_state

LEVELS = 7
"""With bootstrap targets, steps are (1 − τ)/2^j with j < LEVELS, as in shortcut models with 128 steps."""


@dataclasses.dataclass(frozen=True)
class Config(configs.OfflineQ):
    """The settings of the released code."""

    batch_size: int = configs.static(1024, "Transitions per update.", high=configs.MOST_COUNT)
    completion_target: str = configs.static(
        "data", "What completions are regressed on: the action, or two half steps of the slow actor.",
        ("data", "bootstrap"),
    )  # fmt: skip
    q_sample: str = configs.static(
        "completion", "Where the actor meets Q: the completion at a random time, or from noise.",
        ("completion", "one_shot"),
    )  # fmt: skip
    completion_steps: int = configs.static(1, "Calls of the actor per action; each aims at the end of the path anew.")
    flow_alpha: float = configs.sweepable(1.0, "Weight of flow matching, the paper's α1.")
    completion_alpha: float = configs.sweepable(1.0, "Weight of the completion loss, the paper's α2.")
    q_alpha: float = configs.sweepable(1.0, "Weight of the normalised Q; 0 is behaviour cloning.")
    actor_target_rate: float = configs.sweepable(0.0005, "Polyak rate of the acting copy of the actor.", 0, 1)
    lagging_targets: bool = configs.targets_lag()
    time_dim: int = configs.static(128, "Size of the embedding of times and step sizes.")


class Actor(nn.Module):
    """h(s, x, τ, d): the mean velocity over a step of size d from the point x at time τ."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    time_dim: int = 128

    @nn.compact
    def __call__(self, observations: jax.Array, points: jax.Array, times: jax.Array, sizes: jax.Array) -> jax.Array:
        """Maps `[..., D]`, `[..., A]`, `[..., 1]` and `[..., 1]` to `[..., A]`."""
        embedding = TimePairEmbedding(size=self.time_dim)(times, sizes)
        return MLP(self.hidden_dims, self.action_dim, activation=mish)(observations, points, embedding)


class Networks(NamedTuple):
    """The actor and twin critics."""

    actor: Network  # Actor
    critic: Network  # [B, D], [B, A] -> [2, B]


def sample_actions(
    networks: Networks, actor_params: Any, observations: jax.Array, key: jax.Array, steps: int = 1
) -> jax.Array:
    """Completes unit noise in `steps` steps, by default one, and clips: `[..., D]` to `[..., A]`."""
    noise = jax.random.normal(key, (*observations.shape[:-1], networks.actor.action_dim))
    jump = partial(networks.actor.apply, actor_params, observations)
    return jnp.clip(flow.complete_in_steps(jump, noise, steps), -1.0, 1.0)


def critic_loss(
    networks: Networks, config: Config, params: Params, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """TD error against r + γ m agg Q̄(s', a') with a' from the slow actor."""
    next_actions = sample_actions(networks, state.target_params["actor"], batch["next_observations"], key)
    next_values = networks.critic.apply(state.target_params["critic"], batch["next_observations"], next_actions)
    return losses.critic_loss(networks.critic, params, state, batch, losses.aggregate(next_values, config.q_agg))


def bootstrap_loss(
    networks: Networks, params: Params, state: TrainState, batch: Batch, path: flow.Path, times: jax.Array, key: Any
) -> jax.Array:
    """Self-consistency instead of completion: steps (1 − τ)/2^j regressed on two half steps of the slow actor."""
    levels = jax.random.randint(key, times.shape, 0, LEVELS)
    sizes = (1 - times) * 0.5**levels
    slow_jump = partial(networks.actor.apply, state.target_params["actor"], batch["observations"])
    targets = flow.bootstrap_target(slow_jump, path.points, times, sizes, 0.5**LEVELS)
    jumps = networks.actor.apply(params["actor"], batch["observations"], path.points, times, sizes)
    return jnp.mean((jumps - targets) ** 2)


def actor_loss(
    networks: Networks, config: Config, params: Params, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """α1 L_flow + α2 L_comp + L_Q at one draw of noise and time; Q is evaluated with constant critics."""
    noise_key, time_key, other_key = jax.random.split(key, 3)
    observations, actions, hyper = batch["observations"], batch["actions"], state.hyper
    times = flow.early_times(time_key, (len(actions), 1))
    path = flow.straight(jax.random.normal(noise_key, actions.shape), actions, times)
    jump = partial(networks.actor.apply, params["actor"], observations)
    flow_loss = jnp.mean((jump(path.points, times, jnp.zeros_like(times)) - path.velocities) ** 2)
    completions = flow.complete(jump, path.points, times)
    if config.completion_target == "data":
        completion_loss = jnp.mean((completions - actions) ** 2)
    else:
        completion_loss = bootstrap_loss(networks, params, state, batch, path, times, other_key)
    if config.q_sample == "completion":
        proposals = jnp.clip(completions, -1.0, 1.0)
    else:
        proposals = sample_actions(networks, params["actor"], observations, jax.random.fold_in(other_key, 1))
    values = networks.critic.apply(state.params["critic"], observations, proposals)
    q_loss = losses.mean_q_loss(values, normalize=True)
    loss = hyper["flow_alpha"] * flow_loss + hyper["completion_alpha"] * completion_loss + hyper["q_alpha"] * q_loss
    return loss, {
        "actor/loss": loss,
        "actor/flow_loss": flow_loss,
        "actor/completion_loss": completion_loss,
        "actor/q_loss": q_loss,
        "actor/q_mean": values.mean(),
    }


def update(
    networks: Networks, config: Config, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, Metrics]:
    """One joint step of all losses at the same parameters, then the target critics and the slow actor."""
    critic_key, actor_key = jax.random.split(key)

    def loss_fn(params: Params) -> tuple[jax.Array, Metrics]:
        critic, critic_metrics = critic_loss(networks, config, params, state, batch, critic_key)
        actor, actor_metrics = actor_loss(networks, config, params, state, batch, actor_key)
        return critic + actor, critic_metrics | actor_metrics

    moved, metrics = descend(state, loss_fn, ("actor", "critic"))
    rates = {"critic": state.hyper["critic_target_rate"], "actor": state.hyper["actor_target_rate"]}
    moved = polyak(moved, rates, state.params if config.lagging_targets else moved.params)
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
    """One draw of noise through the slow actor, or the best of several by Q."""
    del goals
    sample = partial(sample_actions, networks, policy["actor"], observations, steps=config.completion_steps)
    return acting.choose(sample, networks.critic, config.candidates, policy, observations, key, mode)


def init(
    networks: Networks, config: Config, spec: Spec, key: jax.Array, hyper: Mapping[str, Any] | None = None
) -> TrainState:
    """Returns the state before the first update."""
    actor_key, critic_key = jax.random.split(key)
    observations, actions = jnp.zeros((1, spec.observation_dim)), jnp.zeros((1, spec.action_dim))
    params = {
        "actor": networks.actor.init(actor_key, observations, actions, jnp.zeros((1, 1)), jnp.zeros((1, 1))),
        "critic": networks.critic.init(critic_key, observations, actions),
    }
    return new_state(params, ("actor", "critic"), configs.hyper(config, hyper))


def make(config: Config, spec: Spec) -> Agent:
    """Builds the agent."""
    networks = Networks(
        Actor(config.hidden_dims, spec.action_dim, config.time_dim), ensemble(Value)(config.hidden_dims)
    )
    return Agent(
        init=partial(init, networks, config, spec),
        update=partial(update, networks, config),
        policy=partial(acting.policy, config, "target_params"),
        act=partial(act, networks, config),
        needs=Needs(("observations", "actions", "rewards", "masks", "next_observations")),
        evaluations=acting.evaluations(config),
    )
