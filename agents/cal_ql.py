"""Cal-QL: conservative Q-learning that never sinks below observed returns (https://arxiv.org/abs/2303.05479)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Transitions
from flowrl.losses import multiplier
from flowrl.networks import Network, Spec, named, orthogonal
from flowrl.optim import descend, polyak
from flowrl.policies import LooseGaussian, act_squashed, proposals, squashed
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState


@config
class Config:
    """The settings of the authors' code, with the networks of its AntMaze runs."""

    critic: Critic = nested(Critic(hidden_dims=(256, 256, 256, 256), activation="relu", layer_norm=False))
    hidden_dims: tuple[int, ...] = static((256, 256), "Hidden layers of the policy.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for the critics.")
    actor_learning_rate: float = traced(1e-4, "Adam's step size, for the policy and the temperature.")
    # Static: returns are computed with it before training, and at 1 those of an endless episode would be infinite.
    discount: float = static(0.99, "Discount per environment step.", low=0.0, high=0.99999)
    target_entropy: float = traced(-1.0, "Entropy that the temperature aims at, per dimension.", low=float("-inf"))
    initial_temperature: float = traced(1.0, "Temperature before the first update.", low=1e-8)
    one_draw: bool = static(False, "All losses see the same random actions, not each its own as in the released code.")
    conservative_weight: float = traced(5.0, "Weight of the conservative term beside the TD error.")
    proposals: int = static(10, "Actions of each kind in the conservative term, and in the target's maximum.")
    max_target_backup: bool = static(True, "The target takes the best of `proposals` next actions by Q, not one.")
    lagrange: bool = static(False, "The gap's weight is learnt so that it is target_gap (on in their AntMaze runs).")
    target_gap: float = traced(1.0, "Gap that the multiplier aims at.", low=float("-inf"))


State = TrainState[Config]


class Networks(NamedTuple):
    """The actor and the critics, at the same actions or each at its own."""

    spec: Spec
    actor: Network  # s [B, D] -> μ [B, A], log σ [B, A]
    critic: Network  # s [B, D], a [B, A] -> [heads, B]
    apart: Network  # s [B, D], a [heads, B, A] -> [heads, B], with the same parameters


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    (s, a, _, _), layers = spec.inputs(), config.hidden_dims
    module = partial(critics.module, config.critic, layers, kernel_init=orthogonal(2**0.5), final_init=orthogonal(0.01))
    own = named(actor=(LooseGaussian(layers, spec.action_dim), s), critic=(module(), s, a))
    return Networks(spec, **own, apart=Network("critic", module(in_axes=(None, 0)), ()))


def gaps_of(nets: Networks, params: Params, state: State, batch: Batch, keys: jax.Array) -> tuple[jax.Array, Metrics]:
    """Each critic's mean gap `[heads]` (eq. 5.1), at proposals of its own key in `keys` `[heads]`, all constants."""
    s, next_s, returns, n = batch["observations"], batch["next_observations"], batch["returns"], state.config.proposals
    policies = (nets.actor(state.params, next_s), nets.actor(state.params, s))
    a, log_densities = jax.vmap(partial(proposals, policies, n))(keys)
    values = jax.vmap(partial(nets.apart, params, s), in_axes=1, out_axes=1)(a)
    gaps = critics.conservative_gap(values, log_densities, nets.critic(params, s, batch["actions"]), returns, n)
    calibrated = jnp.mean(values[:, n:] < returns, dtype=jnp.float32)
    metrics = {"gap": gaps.mean(), "q_policy": values[:, n:].mean(), "calibrated": calibrated}
    return gaps.mean(axis=-1), {f"critic/{name}": value for name, value in metrics.items()}


def td_of(nets: Networks, params: Params, state: State, batch: Batch, keys: jax.Array) -> tuple[jax.Array, Metrics]:
    """Each critic's squared error `[heads]` against r + γ m max Q̄(s', a'), a' of its own key in `keys` `[heads]`."""
    config, next_s = state.config, batch["next_observations"]
    sizes = (config.proposals if config.max_target_backup else 1,)

    def targets(key: jax.Array) -> jax.Array:
        next_a, _ = squashed(nets.actor(state.params, next_s), key, sizes)
        next_q = jax.vmap(lambda a: critics.combine(config.critic, nets.critic(state.target_params, next_s, a)))(next_a)
        return batch["rewards"] + batch["discounts"] * next_q.max(axis=0)

    q = nets.critic(params, batch["observations"], batch["actions"])
    errors, metrics = critics.td_errors(q, jax.vmap(targets)(keys), batch)
    return errors.mean(axis=-1), metrics


def weight_of_gaps(params: Params) -> jax.Array:
    """The multiplier of the conservative term in its Lagrangian form, at most a million `[]`."""
    return jnp.minimum(multiplier(params, "multiplier"), 1e6)


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, keys: jax.Array) -> Loss:
    """Sum over critics of the TD error and the weighted conservative term, each at draws of its own key in `keys`."""
    config = state.config
    target_keys, gap_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    td, metrics = td_of(nets, params, state, batch, target_keys)
    gaps, more = gaps_of(nets, params, state, batch, gap_keys)
    excess = weight_of_gaps(state.params) * (gaps - config.target_gap) if config.lagrange else gaps
    loss = jnp.sum(td + config.conservative_weight * excess)
    return loss, metrics | more | {"critic/loss": loss, "critic/td_loss": td.sum()}


def multiplier_loss(nets: Networks, params: Params, state: State, batch: Batch, keys: jax.Array) -> Loss:
    """−α' · weight · (gap − its target), the mean over critics, by which the multiplier α' rises with the gaps."""
    config, (_, gap_keys) = state.config, jax.vmap(jax.random.split, out_axes=1)(keys)
    gaps, _ = gaps_of(nets, state.params, state, batch, gap_keys)
    loss = -jnp.mean(weight_of_gaps(params) * config.conservative_weight * (gaps - config.target_gap))
    return loss, {"critic/multiplier": weight_of_gaps(state.params), "critic/multiplier_loss": loss}


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E[α log π(a | s) − Q(s, a)], Q of all heads."""
    s = batch["observations"]
    a, log_probs = squashed(nets.actor(params, s), key)
    q = critics.combine(state.config.critic, nets.critic(state.params, s, a))
    loss = jnp.mean(multiplier(state.params) * log_probs - q)
    return loss, {"actor/loss": loss, "actor/entropy": -log_probs.mean()}


def temperature_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E[−log α (log π(a | s) + H̄)]."""
    _, log_probs = squashed(nets.actor(state.params, batch["observations"]), key)
    loss = params["temperature"]["log"] * (-log_probs.mean() - state.config.target_entropy * nets.spec.action_dim)
    return loss, {"actor/temperature": multiplier(params), "actor/temperature_loss": loss}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """A step of all losses at the same parameters, at two step sizes, then the target critics."""
    config, heads = state.config, state.config.critic.heads  # keys of actor, temperature, each critic, multiplier
    keys = jnp.stack([key] * (3 + heads)) if config.one_draw else jax.random.split(key, 3 + heads)
    losses, own = [critic_loss, actor_loss, temperature_loss], [keys[2:-1], keys[0], keys[1]]
    rates = dict.fromkeys(("actor", "temperature"), config.actor_learning_rate) | {"critic": config.learning_rate}
    if config.lagrange:
        losses, own = [critic_loss, multiplier_loss, *losses[1:]], [own[0], jnp.stack([keys[-1]] * heads), *own[1:]]
        rates |= {"multiplier": config.learning_rate}
    moved, metrics = descend(nets, state, batch, own, losses, rates)
    return polyak(moved, moved.params, critic=config.critic.target_rate), metrics


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """The policy's mode, or with `explore` a sample."""
    return act_squashed(nets.actor(policy.params, inputs["observations"]), key, explore)


make = Maker(
    networks, update, act, batch=lambda config: Transitions(config.discount, returns=True), targets=("critic",),
    multipliers=lambda c: {"temperature": jnp.log(c.initial_temperature)} | ({"multiplier": 1.0} if c.lagrange else {}),
)  # fmt: skip
