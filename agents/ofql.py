"""OFQL: one-step flow Q-learning with the average velocity of MeanFlow (https://arxiv.org/abs/2508.13904).

The policy network u(a_t, r, t; s) is the mean velocity between times r ≤ t on the path from the action (time 0) to
noise (time 1). An action is one step from noise, ε − u(ε, 0, 1; s), in training and at test.
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
from flowrl.losses import mse, normalized_q_loss
from flowrl.networks import Network, TimedMLP, Value, ensemble, mish
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Metrics, Mode, Params, TrainState, new_state

BACKUP_ACTIONS = 10
SAMPLERS = {"logit_normal": flow.logit_normal_times, "uniform": flow.uniform_times}


@dataclasses.dataclass(frozen=True)
class Config(configs.OfflineQ):
    """The paper's settings."""

    hidden_dims: tuple[int, ...] = configs.static((256, 256, 256), "Hidden layers of every network.")
    time_sampler: str = configs.static("logit_normal", "Distribution of r and t.", tuple(SAMPLERS))
    max_q_backup: bool = configs.static(False, "Bootstrap from each critic's best of 10 next actions (AntMaze).")
    critic_layer_norm: bool = configs.static(False, "LayerNorm in the critics, which the paper's do not have.")
    q_scale: str = configs.static("policy", "Actions whose mean |Q| divides the policy's Q.", ("policy", "data"))
    q_alpha: float = configs.sweepable(0.1, "Weight η of the normalised Q; 0 is behaviour cloning.")
    flow_ratio: float = configs.sweepable(0.5, "Share of rows with r = t; 1 is plain flow matching.", 0, 1)
    adaptive_power: float = configs.sweepable(0.0, "p of the weight 1/(error + c)^p of each row; 0 is off.")
    adaptive_constant: float = configs.sweepable(1e-3, "c of that weight.", 1e-12)
    actor_target_rate: float = configs.sweepable(0.005, "Polyak rate of the acting copy of the policy.", 0, 1)
    actor_target_start: int = configs.sweepable(1000, "Updates before the acting copy first moves.")
    actor_target_interval: int = configs.sweepable(5, "Updates between moves of the acting copy.", 1)
    max_grad_norm: float = configs.sweepable(0.0, "Each network's gradient is clipped to this norm; 0 is off.")
    candidate_noise: float = configs.sweepable(0.5, "Standard deviation of the noise that candidates start from.")


class Networks(NamedTuple):
    """The policy and twin critics."""

    actor: Network  # [B, D], [B, A], r [B, 1], t [B, 1] -> [B, A]
    critic: Network  # [B, D], [B, A] -> [2, B]


def sample_actions(
    networks: Networks, actor_params: Any, observations: jax.Array, key: jax.Array, noise_scale: Any = 1.0
) -> jax.Array:
    """One step from noise, ε − u(ε, 0, 1; s), clipped: `[..., D]` to `[..., A]`."""
    noise = noise_scale * jax.random.normal(key, (*observations.shape[:-1], networks.actor.out_dim))
    begins = jnp.zeros((*observations.shape[:-1], 1))
    averages = networks.actor.apply(actor_params, observations, noise, begins, begins + 1)
    return jnp.clip(noise - averages, -1.0, 1.0)


def critic_loss(
    networks: Networks, config: Config, params: Params, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """TD error against r + γ m agg Q̄(s', a') with a' from the slow policy, or each critic's best of several."""
    next_observations = batch["next_observations"]

    def next_values(key: jax.Array) -> jax.Array:
        actions = sample_actions(networks, state.target_params["actor"], next_observations, key)
        return networks.critic.apply(state.target_params["critic"], next_observations, actions)

    count = BACKUP_ACTIONS if config.max_q_backup else 1
    best = jax.vmap(next_values)(jax.random.split(key, count)).max(axis=0)
    mean, metrics = losses.critic_loss(networks.critic, params, state, batch, losses.aggregate(best, config.q_agg))
    loss = 2 * mean  # the sum over both critics, as in DQL's code: published gradient norms belong to it
    return loss, metrics | {"critic/loss": loss}


def flow_loss(
    networks: Networks, config: Config, params: Params, state: TrainState, batch: Batch, key: jax.Array
) -> jax.Array:
    """Regression of u on the MeanFlow target, each row weighted by sg(1 / (error + c)^p)."""
    noise_key, time_key = jax.random.split(key)
    actions, hyper = batch["actions"], state.hyper
    begins, times = flow.interval_times(time_key, len(actions), hyper["flow_ratio"], SAMPLERS[config.time_sampler])
    path = flow.straight(actions, jax.random.normal(noise_key, actions.shape), times)
    average = partial(networks.actor.apply, params["actor"], batch["observations"])
    errors = mse(*flow.average_velocity_target(average, path, begins, times))
    weights = (jax.lax.stop_gradient(errors) + hyper["adaptive_constant"]) ** -hyper["adaptive_power"]
    return jnp.mean(weights * errors)


def actor_loss(
    networks: Networks, config: Config, params: Params, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """L_FBC − η mean Q_i / mean |Q_j|, where a coin says which of the two critics is i."""
    flow_key, noise_key, coin_key = jax.random.split(key, 3)
    bc_loss = flow_loss(networks, config, params, state, batch, flow_key)
    actions = sample_actions(networks, params["actor"], batch["observations"], noise_key)
    critics = partial(networks.critic.apply, state.params["critic"], batch["observations"])
    values = critics(actions)
    scale_values = values if config.q_scale == "policy" else critics(batch["actions"])
    head = jax.random.bernoulli(coin_key).astype(jnp.int32)
    q_loss = normalized_q_loss(values[head], scale_values[1 - head])
    loss = bc_loss + state.hyper["q_alpha"] * q_loss
    return loss, {
        "actor/loss": loss,
        "actor/flow_loss": bc_loss,
        "actor/q_loss": q_loss,
        "actor/q_mean": values.mean(),
    }


def move_targets(state: TrainState) -> TrainState:
    """Moves the target critics at every update, and the acting policy at some after a start."""
    hyper, step = state.hyper, state.step
    due = (step >= hyper["actor_target_start"]) & (step % hyper["actor_target_interval"] == 0)
    actor_rate = jnp.where(due, hyper["actor_target_rate"], 0.0)
    return polyak(state, {"critic": hyper["critic_target_rate"], "actor": actor_rate})


def update(
    networks: Networks, config: Config, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, Metrics]:
    """A step of the critics, a step of the policy on the moved critics, then the slow copies, as in DQL's code."""
    critic_key, actor_key = jax.random.split(key)
    state, critic_metrics = descend(
        state, lambda params: critic_loss(networks, config, params, state, batch, critic_key), ("critic",)
    )
    moved = state
    state, actor_metrics = descend(
        state, lambda params: actor_loss(networks, config, params, moved, batch, actor_key), ("actor",)
    )
    state = move_targets(state)
    return state.replace(step=state.step + 1), critic_metrics | actor_metrics


def act(
    networks: Networks, config: Config, policy: Params, observations: jax.Array, goals: jax.Array, key: jax.Array, *,
    mode: Mode,
) -> jax.Array:  # fmt: skip
    """One step from unit noise, or the best of several from smaller noise."""
    del goals
    scale = policy["noise"] if mode == "best_of_n" else 1.0
    sample = partial(sample_actions, networks, policy["actor"], observations, noise_scale=scale)
    return acting.choose(sample, networks.critic, config.candidates, policy, observations, key, mode)


def policy(config: Config, state: TrainState) -> dict[str, Any]:
    """What acting needs: the slow policy, and for a choice of candidates the critics."""
    return acting.policy(config, "target_params", state) | {"noise": state.hyper["candidate_noise"]}


def init(
    networks: Networks, config: Config, spec: Spec, key: jax.Array, hyper: Mapping[str, Any] | None = None
) -> TrainState:
    """Returns the state before the first update."""
    actor_key, critic_key = jax.random.split(key)
    observations, actions = jnp.zeros((1, spec.observation_dim)), jnp.zeros((1, spec.action_dim))
    params = {
        "actor": networks.actor.init(actor_key, observations, actions, jnp.zeros((1, 1)), jnp.ones((1, 1))),
        "critic": networks.critic.init(critic_key, observations, actions),
    }
    return new_state(params, ("actor", "critic"), configs.hyper(config, hyper))


def make(config: Config, spec: Spec) -> Agent:
    """Builds the agent."""
    critic = ensemble(Value)(config.hidden_dims, activation=mish, layer_norm=config.critic_layer_norm)
    networks = Networks(TimedMLP(config.hidden_dims, spec.action_dim, ("begin", "time")), critic)
    return Agent(
        init=partial(init, networks, config, spec),
        update=partial(update, networks, config),
        policy=partial(policy, config),
        act=partial(act, networks, config),
        needs=Needs(("observations", "actions", "rewards", "masks", "next_observations")),
        evaluations=acting.evaluations(config),
    )
