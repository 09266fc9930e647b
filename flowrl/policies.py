"""Policies that agents share: Gaussian heads, squashed or not, and deterministic ones with noise."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl.config import config, static, traced
from flowrl.encoders import length_normalize
from flowrl.losses import GoalValueFn, awr_weight, gaussian_log_prob, goal_advantage, mse, relative
from flowrl.networks import MLP, Activation, Initializer, Network, glorot, orthogonal, side_by_side
from flowrl.train_state import Batch, Loss, Params, Policy, Scalar, TrainState

LOG_STD_RANGE = (-5.0, 2.0)


# ------------------------------------------------------------------------------------------------------- Gaussians


def unit_gaussian(means: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
    """Returns the mode of Gaussians of unit standard deviation, or with `explore` a sample: `[...]` like `means`."""
    return means + jax.random.normal(key, means.shape) if explore else means


class Gaussian(nn.Module):
    """Means and log standard deviations of actions, the latter the same in all states (IQL).

    Attributes:
        hidden_dims: Sizes of the hidden layers.
        action_dim: Number of actions A.
        activation: Nonlinearity of the hidden layers.
        tanh: Whether the means are squashed into (−1, 1).
        learnt_std: Whether standard deviations are learnt, from 1 on and one for each dimension, or stay 1.
        dropout: Share of hidden numbers that are dropped while a key is given.
        kernel_init: Initialisation of the hidden kernels.
        final_init: Initialisation of the last kernel.
    """

    hidden_dims: Sequence[int]
    action_dim: int
    activation: Activation = nn.relu
    tanh: bool = True
    learnt_std: bool = True
    dropout: float = 0.0
    kernel_init: Initializer = glorot()
    final_init: Initializer = glorot(1e-2)

    @nn.compact
    def __call__(self, *inputs: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Maps `[..., D_i]`... to means and log standard deviations `[..., A]`, the latter clipped to [−5, 2]."""
        mlp = MLP(
            self.hidden_dims, self.action_dim, activation=self.activation, kernel_init=self.kernel_init,
            final_init=self.final_init, dropout=self.dropout,
        )  # fmt: skip
        means = mlp(*inputs, key=key)
        means = jnp.tanh(means) if self.tanh else means
        zeros = nn.initializers.zeros
        log_stds = self.param("log_stds", zeros, (self.action_dim,)) if self.learnt_std else jnp.zeros(())
        return means, jnp.broadcast_to(jnp.clip(log_stds, *LOG_STD_RANGE), means.shape)


def act_gaussian(gaussian: tuple[jax.Array, jax.Array], key: jax.Array, explore: bool) -> jax.Array:
    """Returns the mode of Gaussians, or with `explore` a draw, clipped: each μ and log σ `[..., A]`."""
    means, log_stds = gaussian
    return jnp.clip(means + jnp.exp(log_stds) * unit_gaussian(jnp.zeros_like(means), key, explore), -1.0, 1.0)


def act_toward_goals(
    nets: Any, policy: Policy[Any], inputs: Batch, key: jax.Array, *, explore: bool = False
) -> jax.Array:
    """Acts for an agent whose network `actor` gives Gaussians: their mode, or with `explore` a draw, clipped."""
    return act_gaussian(nets.actor(policy.params, inputs["observations"], inputs["goals"]), key, explore)


def awr_loss(
    gaussian: tuple[jax.Array, jax.Array], actions: jax.Array, advantages: jax.Array, alpha: Scalar,
    valid: Scalar = 1.0, name: str = "actor", relative_to_batch: bool = False,
) -> Loss:  # fmt: skip
    """−E min(exp(α A), 100) log π(a | s): advantage-weighted regression (IQL, https://arxiv.org/abs/2110.06169, eq. 7).

    Args:
        gaussian: π(· | s), μ and log σ `[B, A]`.
        actions: a `[B, A]`.
        advantages: A `[B]`, without gradient.
        alpha: α `[]`.
        valid: Which entries of actions count `[B, A]`.
        name: What the metrics' names begin with.
        relative_to_batch: Weights are divided by their mean over the batch, + 0.001 (LAVL).
    """
    weights = awr_weight(advantages, alpha)
    if relative_to_batch:
        weights = weights / (weights.mean() + 1e-3)
    loss = -(weights * gaussian_log_prob(actions, *gaussian, valid)).mean()
    metrics = {"loss": loss, "weight": weights.mean(), "advantage": advantages.mean()}
    metrics |= {"mse": mse(gaussian[0], actions).mean()}
    return loss, {f"{name}/{metric}": value for metric, value in metrics.items()}


def ddpgbc_loss(
    gaussian: tuple[jax.Array, jax.Array], actions: jax.Array, q: jax.Array, alpha: Scalar, valid: Scalar = 1.0,
    constant: float = 0.0,
) -> Loss:  # fmt: skip
    """−E Q(s, a_π) / sg(E |Q| + c) − α E log π(a | s): DDPG+BC (FQL's and OGBench's code).

    Args:
        gaussian: π(· | s), μ and log σ `[B, A]`.
        actions: a `[B, A]`.
        q: Q(s, a_π) `[B]` of the policy's actions, by constant critics.
        alpha: α `[]`.
        valid: Which entries of actions count `[B, A]`.
        constant: c, 1e-6 in OGBench's code.
    """
    q_loss = -relative(q, constant)
    cloning = -alpha * gaussian_log_prob(actions, *gaussian, valid).mean()
    metrics = {"loss": q_loss + cloning, "q_loss": q_loss, "bc_loss": cloning, "q_mean": q.mean()}
    metrics |= {"mse": mse(gaussian[0], actions).mean()}
    return q_loss + cloning, {f"actor/{metric}": value for metric, value in metrics.items()}


class Levels(NamedTuple):
    """A goal's representation, values of reaching it, and policies that aim and act, means of unit Gaussians."""

    goal_rep: Network  # s [B, D], g [B, G], or g alone -> [B, R]
    value: Network  # s [B, D], φ [B, R] -> what values are made of
    low_actor: Network  # s [B, D], φ [B, R] -> [B, A]
    high_actor: Network  # s [B, D], g [B, G] -> [B, R]


LEVELS = ("low_actor", "high_actor")
"""The policies among them."""


class HasLevels(Protocol):
    """A configuration of an agent with two levels of policies."""

    low_alpha: float
    high_alpha: float
    low_actor_rep_grad: bool


L = TypeVar("L", bound=HasLevels)
Rep = Callable[[Any, Params, jax.Array, jax.Array], jax.Array]
"""What stands for a goal before a state: `(nets, params, s [B, D], g [B, G]) -> [B, R]`."""


def low_actor_loss(
    value: GoalValueFn, rep: Rep, nets: Any, params: Params, state: TrainState[L], batch: Batch, key: jax.Array, *,
    relative_to_batch: bool = False,
) -> Loss:  # fmt: skip
    """−E exp(α (V(s', w) − V(s, w))) log π_low(a | s, φ(s, w)) for the subgoal w (HIQL, eq. 7)."""
    s, a, w, config = batch["observations"], batch["actions"], batch["low_actor_goals"], state.config
    advantages = goal_advantage(value, nets, state.params, s, batch["next_observations"], w)
    means = nets.low_actor(params, s, rep(nets, params if config.low_actor_rep_grad else state.params, s, w))
    return awr_loss(
        (means, jnp.zeros_like(means)), a, advantages, config.low_alpha, name="low_actor",
        relative_to_batch=relative_to_batch,
    )  # fmt: skip


def high_actor_loss(
    value: GoalValueFn, rep: Rep, nets: Any, params: Params, state: TrainState[L], batch: Batch, key: jax.Array, *,
    rep_grad: bool = False, relative_to_batch: bool = False,
) -> Loss:  # fmt: skip
    """−E exp(α (V(w, g) − V(s, g))) log π_high(φ(s, w) | s, g) (HIQL, eq. 6)."""
    s, g, w = batch["observations"], batch["high_actor_goals"], batch["high_actor_targets"]
    advantages = goal_advantage(value, nets, state.params, s, w, g)
    targets, means = rep(nets, params if rep_grad else state.params, s, w), nets.high_actor(params, s, g)
    return awr_loss(
        (means, jnp.zeros_like(means)), targets, advantages, state.config.high_alpha, name="high_actor",
        relative_to_batch=relative_to_batch,
    )  # fmt: skip


def act_by_levels(nets: Any, policy: Policy[Any], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """The high level gives a subgoal's representation, the low level an action; modes, or with `explore` samples."""
    (high_key, low_key), s, params = jax.random.split(key), inputs["observations"], policy.params
    rep = length_normalize(unit_gaussian(nets.high_actor(params, s, inputs["goals"]), high_key, explore))
    return jnp.clip(unit_gaussian(nets.low_actor(params, s, rep), low_key, explore), -1.0, 1.0)


def both_levels(state: TrainState[Any]) -> Params:
    """Returns the parameters that act."""
    return {name: state.params[name] for name in LEVELS}


class SquashedGaussian(nn.Module):
    """Means and log standard deviations of actions before tanh, each by a head of its own.

    The two heads are one layer, whose halves start as two layers do.

    Attributes:
        hidden_dims: Sizes of the hidden layers.
        action_dim: Number of actions A.
        activation: Nonlinearity of the hidden layers.
        log_std_range: What log standard deviations are clipped to.
        final_scale: Scale of either head's initial variance.
    """

    hidden_dims: Sequence[int]
    action_dim: int
    activation: Activation = nn.relu
    log_std_range: tuple[float, float] = LOG_STD_RANGE
    final_scale: float = 1e-2

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps `[..., D_i]`... to means and log standard deviations `[..., A]`."""
        heads = side_by_side((self.action_dim,) * 2, glorot(self.final_scale))
        mlp = MLP(self.hidden_dims, 2 * self.action_dim, activation=self.activation, final_init=heads)
        means, log_stds = jnp.split(mlp(*inputs), 2, axis=-1)
        return means, jnp.clip(log_stds, *self.log_std_range)


class LooseGaussian(nn.Module):
    """Means and log standard deviations of actions before tanh, the latter scaled and shifted by learnt scalars.

    That is the policy of CQL's and Cal-QL's code; log standard deviations begin at −1, and are clipped to [−20, 2].

    Attributes:
        hidden_dims: Sizes of the hidden layers.
        action_dim: Number of actions A.
    """

    hidden_dims: Sequence[int]
    action_dim: int

    @nn.compact
    def __call__(self, observations: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps `[..., D]` to means and log standard deviations `[..., A]`."""
        mlp = partial(MLP, activation=nn.relu, kernel_init=orthogonal(2**0.5), final_init=orthogonal(0.01))
        means, log_stds = jnp.split(mlp(self.hidden_dims, 2 * self.action_dim)(observations), 2, axis=-1)
        scale = self.param("log_std_multiplier", nn.initializers.constant(1.0), ())
        offset = self.param("log_std_offset", nn.initializers.constant(-1.0), ())
        return means, jnp.clip(scale * log_stds + offset, -20.0, 2.0)


def squash(means: jax.Array, log_stds: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns actions tanh(μ + σ·noise) and their log densities (SAC, https://arxiv.org/abs/1801.01290, appendix C).

    Args:
        means: μ `[..., A]`.
        log_stds: log σ `[..., A]`.
        noise: Standard normal `[..., A]`.

    Returns:
        Actions `[..., A]` in (−1, 1) and log π(a | s) `[...]`.
    """
    before = means + jnp.exp(log_stds) * noise
    log_normal = -0.5 * (noise**2 + jnp.log(2 * jnp.pi)) - log_stds
    # log(1 − tanh²(x)), without rounding to log(0) where tanh saturates
    log_slope = 2 * (jnp.log(2.0) - before - jax.nn.softplus(-2 * before))
    return jnp.tanh(before), jnp.sum(log_normal - log_slope, axis=-1)


def squashed(
    gaussian: tuple[jax.Array, jax.Array], key: jax.Array, sizes: tuple[int, ...] = ()
) -> tuple[jax.Array, jax.Array]:
    """Draws actions `[*sizes, ..., A]` of squashed Gaussians, each μ and log σ `[..., A]`, with their log densities."""
    means, log_stds = gaussian
    return squash(means, log_stds, jax.random.normal(key, (*sizes, *means.shape)))


def edited(
    gaussian: tuple[jax.Array, jax.Array], actions: jax.Array, scale: Scalar, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Adds `scale` times a draw of squashed Gaussians to actions `[..., A]`, and clips; with the draw's log density."""
    change, log_probs = squashed(gaussian, key)
    return jnp.clip(actions + scale * change, -1.0, 1.0), log_probs


def proposals(
    gaussians: Sequence[tuple[jax.Array, jax.Array]], number: int, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draws actions of each row to compare its critics at: uniform ones, and those of squashed Gaussians.

    Args:
        gaussians: G policies, each μ and log σ `[B, A]`.
        number: N of each.
        key: Random key.

    Returns:
        N uniform actions in [−1, 1], then N of each policy, `[(1 + G) N, B, A]`, and log densities `[(1 + G) N, B]`.
    """
    uniform_key, *keys = jax.random.split(key, 1 + len(gaussians))
    uniform = jax.random.uniform(uniform_key, (number, *gaussians[0][0].shape), minval=-1.0, maxval=1.0)
    log_uniform = jnp.full(uniform.shape[:-1], -uniform.shape[-1] * jnp.log(2.0))
    drawn = [squashed(gaussian, k, (number,)) for gaussian, k in zip(gaussians, keys, strict=True)]
    actions, log_densities = zip((uniform, log_uniform), *drawn, strict=True)
    return jnp.concatenate(actions), jnp.concatenate(log_densities)


def act_squashed(gaussian: tuple[jax.Array, jax.Array], key: jax.Array, explore: bool) -> jax.Array:
    """Returns tanh of the mode of Gaussians, or with `explore` a draw: `[..., A]`."""
    means, log_stds = gaussian
    noise = jax.random.normal(key, means.shape) if explore else jnp.zeros_like(means)
    return squash(means, log_stds, noise)[0]


# --------------------------------------------------------------------------------------------------- deterministic


def tanh_mean(nets: Any, params: Params, s: jax.Array) -> jax.Array:
    """Actions of a deterministic policy whose network `actor` gives them before tanh: `[..., D]` to `[..., A]`."""
    return jnp.tanh(nets.actor(params, s))


def smoothed(actions: jax.Array, key: jax.Array, deviation: Scalar, bound: Scalar) -> jax.Array:
    """clip(a + clip(σ ε, ±bound), ±1): target policy smoothing (TD3, https://arxiv.org/abs/1802.09477, algorithm 1).

    Args:
        actions: a `[..., A]`.
        key: Random key of the unit Gaussian noise ε.
        deviation: σ `[]`.
        bound: Of the noise `[]`.
    """
    noise = deviation * jax.random.normal(key, actions.shape)
    return jnp.clip(actions + jnp.clip(noise, -bound, bound), -1.0, 1.0)


@config
class TemperedNoise:
    """Gaussian noise on actions whose deviation is a share of a learnt temperature α (DPMD's and FPMD's code)."""

    scale: float = traced(0.1, "Deviation of the noise, in units of α.")
    initial: float = traced(5.0, "α before the first update.", low=1e-8)
    rate: float = traced(7e-3, "Adam's step size for log α.")
    delay: int = static(250, "Updates of the critics for each one of α.")
    target_entropy: float = traced(-1.5, "Entropy that α aims at, per dimension.", low=float("-inf"))

    def loss(self, nets: Any, params: Params, state: TrainState[Any], batch: Batch, key: jax.Array) -> Loss:
        """log α · (H − H̄), H the entropy of the noise as it is; its gradient does not depend on α's size."""
        dims = nets.spec.action_dim
        entropy = noise_entropy(self.scale * jnp.exp(state.params["temperature"]["log"]), dims)
        return params["temperature"]["log"] * (entropy - self.target_entropy * dims), {}


def noise_entropy(deviation: Scalar, action_dim: int) -> jax.Array:
    """Entropy of Gaussian noise on actions, |A|/2 · log(2πe σ²)."""
    return 0.5 * action_dim * jnp.log(2 * jnp.pi * jnp.e * jnp.asarray(deviation) ** 2)
