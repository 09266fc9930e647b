"""EDP: diffusion policies that are improved without running the chain (https://arxiv.org/abs/2305.20081).

What the policy sees in a noised action of the data stands for its sample: one evaluation of the network serves cloning
and improvement, which is that of TD3 (`edp`), of critic-regularised regression (`edp_crr`) or of IQL (`edp_iql`).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.choice import BestOfN, backup_values, choosing, draws_no_targets, generated
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic, ImplicitValue, implicit_critic_loss, implicit_value_loss
from flowrl.data.samplers import Horizon, Transitions
from flowrl.diffusion import Diffusion
from flowrl.encoders import TimedMLP, cosine_features
from flowrl.losses import awr_weight, coin_q, unit_gaussian_log_prob
from flowrl.networks import Network, Spec, named
from flowrl.optim import Clip, LateTarget, LossFn, descend, polyak
from flowrl.train_state import Batch, Loss, Metrics, Params, TrainState


@config
class Config:
    """The settings of the authors' code."""

    critic: Critic = nested(Critic(activation="mish", layer_norm=False))
    value: ImplicitValue = nested(ImplicitValue(), "IQL's.")
    policy: Diffusion = nested(Diffusion(levels=100, schedule="ddpm", schedule_scale=1.0))
    choice: BestOfN = nested(BestOfN(num_samples=50, temperature=1.0, critics="online"))
    horizon: Horizon = nested(Horizon())
    actor_target: LateTarget = nested(LateTarget(start=1001))
    improvement: str = static("td3", "How Q improves the policy.", choices=("td3", "crr", "iql"))
    hidden_dims: tuple[int, ...] = static((256, 256, 256), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    max_grad_norm: float = traced(0.0, "The gradients of the policy and of each critic are clipped to this; 0 is off.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    max_q_backup: bool = static(False, "Bootstrap from each critic's best of 10 next actions.")
    q_alpha: float = traced(2.0, "Weight of improvement; 0 is behaviour cloning.")
    advantage_alpha: float = traced(1.0, "Inverse temperature of advantages in the weights of CRR and IQL.")
    max_weight: float = traced(20.0, "The largest of these weights.")

    def problem(self, prefix: str) -> str:
        """Says that a coin chooses between two critics, and that IQL's targets draw no actions."""
        no_draws = draws_no_targets(self.choice, prefix, self.max_q_backup) if self.improvement == "iql" else ""
        return critics.need_two(self.critic, prefix) or no_draws


NAMES: Mapping[str, Config] = {
    "edp": Config(),
    "edp_crr": Config(improvement="crr", q_alpha=1.0),
    "edp_iql": Config(improvement="iql", q_alpha=1.0, advantage_alpha=3.0, max_weight=100.0),
}
"""The agents, each with its default configuration."""
State = TrainState[Config]
LECUN = nn.initializers.lecun_normal()
"""How all kernels begin."""


class Networks(NamedTuple):
    """The policy's network, the critics, and with IQL the value."""

    spec: Spec
    actor: Network  # s [B, D], x [B, A], level [B, 1] -> noise [B, A]
    critic: Network  # s [B, D], a [B, A] -> [heads, B]
    value: Any = None  # s [B, D] -> [B]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    (s, a, _, t), layers = spec.inputs(), config.hidden_dims
    ends = {"kernel_init": LECUN, "final_init": LECUN}
    critic, value_of_state = (build(config.critic, layers, **ends) for build in (critics.module, critics.value_module))
    actor = TimedMLP(layers, spec.action_dim, config.policy.times, 16, cosine_features, LECUN)
    value = {"value": (value_of_state, s)} if config.improvement == "iql" else {}
    return Networks(spec, **named(actor=(actor, s, a, t), critic=(critic, s, a), **value))


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """Σ_i E (Q_i(s, a) − r − γ m V')², V' the slow critics' value of an action of the slow policy's whole chain."""
    config, next_s = state.config, batch["next_observations"]
    next_q = backup_values(generated, nets, state, next_s, key, max_q=config.max_q_backup)
    q = nets.critic(params, batch["observations"], batch["actions"])
    targets = batch["rewards"] + batch["discounts"] * critics.combine(config.critic, next_q)
    return critics.td_sum(q, targets, batch)


def advantage(nets: Networks, state: State, batch: Batch, seen: jax.Array, key: jax.Array) -> jax.Array:
    """A(s, a) `[B]`: min Q over its mean at ten actions around the one seen (CRR), or min Q̄ − V (IQL)."""
    s, a, config = batch["observations"], batch["actions"], state.config
    if config.improvement == "iql":
        return critics.combine(config.critic, nets.critic(state.target_params, s, a)) - nets.value(state.params, s)
    around = seen + jax.random.normal(key, (10, *seen.shape))
    values = jax.vmap(partial(nets.critic, state.params, s))(around).min(axis=1)
    return nets.critic(state.params, s, a).min(axis=0) - values.mean(axis=0)


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E ‖ε̂ − ε‖² − α mean Q_i(s, â) / mean |Q_i|, or − α E[e^{βA} log N(a; â, I)]; â is seen in the noised a."""
    noise_key, other_key = jax.random.split(key)
    config, s, a, valid = state.config, batch["observations"], batch["actions"], batch["actions_valid"]
    errors, seen = config.policy.errors_and_actions(partial(nets.actor, params, s), a, noise_key, valid)
    if config.improvement == "td3":
        q = nets.critic(state.params, s, seen)
        better = coin_q(q, q[::-1], other_key)
    else:
        adv = advantage(nets, state, batch, seen, other_key)
        weights = awr_weight(adv, config.advantage_alpha, config.max_weight)
        better = -jnp.mean(weights * unit_gaussian_log_prob(a, seen, valid))
    loss = errors.mean() + config.q_alpha * better
    return loss, {"actor/loss": loss, "actor/noise_loss": errors.mean(), "actor/improvement_loss": better}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """Critics and policy at the same parameters, or with IQL the value, the policy, the critics; then slow copies."""
    config, metrics = state.config, dict[str, jax.Array]()
    iql, clip = config.improvement == "iql", Clip(config.max_grad_norm, ensembles=("critic",), slack=0.0)
    losses: dict[str, LossFn[Config]]
    losses = {"value": implicit_value_loss, "actor": actor_loss, "critic": implicit_critic_loss if iql else critic_loss}
    turns = [["value"], ["actor"], ["critic"]] if iql else [["critic", "actor"]]
    for names, own in zip(turns, jax.random.split(key, len(turns)), strict=True):
        found, rates = [losses[name] for name in names], dict.fromkeys(names, config.learning_rate)
        state, more = descend(nets, state, batch, own, found, rates, clip)
        metrics |= more
    slow_rate = config.actor_target.at(state.step + 1)  # updates count from 1
    return polyak(state, state.params, critic=config.critic.target_rate, actor=slow_rate), metrics


make = choosing(networks, update, generated, batch=Transitions.of, targets=("actor", "critic"))
