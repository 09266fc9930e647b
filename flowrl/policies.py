"""Parts of stochastic policies that agents share: Gaussian heads, and choosing among several actions by Q."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl.config import config, put, static, traced
from flowrl.networks import MLP, Activation, glorot, orthogonal, side_by_side
from flowrl.train_state import Batch, Loss, Params, Scalar, TrainState

LOG_STD_RANGE = (-5.0, 2.0)


# --------------------------------------------------------------------------------------------- the best of several


@config
class BestOfN:
    """How many actions are drawn, and how one of them is chosen, in acting and for TD targets."""

    num_samples: int = static(1, "With more than 1, also evaluates the best of that many actions by Q.", acting=True)
    temperature: float = traced(
        0.0, "Draws by softmax(temperature x Q), as in DQL's code; 0 takes the best.", acting=True
    )
    target_samples: int = static(1, "Next actions that a TD target draws; with more than 1 the best by Q counts.")
    aggregate: str = static("min", "Which value of several critics ranks actions.", choices=("min", "mean"))
    critics: str = static("target", "Which critics rank actions.", choices=("target", "online"))

    @property
    def in_targets(self) -> "BestOfN":
        """The choice of TD targets, which is the best."""
        return dataclasses.replace(self, num_samples=self.target_samples, temperature=0.0)

    def ranking(self, state: TrainState[Any]) -> Params:
        """Returns the parameters with the critics that rank."""
        return state.params if self.critics == "online" else state.target_params


def best_of_n(
    choice: BestOfN, sample: Callable[[jax.Array], jax.Array], critic: Callable[[jax.Array], jax.Array], key: jax.Array
) -> jax.Array:
    """Draws several actions per state and keeps one by Q: the best, or a draw from softmax(temperature · Q).

    Args:
        choice: How many are drawn, and the temperature in units of 1/Q.
        sample: The policy, `key -> actions [..., A]`.
        critic: The critics in the same states, `actions [..., A] -> values [heads, ...]`.
        key: Random key; that of the only draw where one is drawn.

    Returns:
        Actions `[..., A]`.
    """
    if choice.num_samples == 1:
        return sample(key)
    sample_key, choice_key = jax.random.split(key)
    actions = jax.vmap(sample)(jax.random.split(sample_key, choice.num_samples))
    values = jax.vmap(critic)(actions)
    values = values.min(axis=1) if choice.aggregate == "min" else values.mean(axis=1)
    drawn = jax.random.categorical(choice_key, choice.temperature * values, axis=0)
    chosen = jnp.where(jnp.asarray(choice.temperature) > 0, drawn, values.argmax(axis=0))
    return jnp.take_along_axis(actions, chosen[None, ..., None], axis=0)[0]


class HasChoice(Protocol):
    """A configuration of an agent that may choose among several actions."""

    @property
    def choice(self) -> BestOfN:
        """How it chooses."""


H = TypeVar("H", bound=HasChoice)


def with_critic(state: TrainState[H], actors: Params, names: Sequence[str] = ("actor",)) -> Params:
    """Returns the parameters that act: those of actors, and where one of several actions is chosen the critics'.

    Args:
        state: Of an agent with a `choice`.
        actors: Its parameters or its slow copies, whichever act.
        names: The networks that act.
    """
    one, choice = {name: actors[name] for name in names}, state.config.choice
    return one if choice.num_samples == 1 else one | {"critic": choice.ranking(state)["critic"]}


def best_next(
    nets: Any, state: TrainState[H], sample: Callable[[jax.Array], jax.Array], s: jax.Array, key: jax.Array
) -> jax.Array:
    """Returns the actions `[B, A]` whose value a TD target bootstraps: a draw each, or the best of several by Q.

    Args:
        nets: Its `critic` ranks.
        state: Of an agent with a `choice`.
        sample: The policy in these states, `key -> actions [B, A]`.
        s: The states `[B, D]`.
        key: Random key; that of the only draw where one is drawn.
    """
    choice = state.config.choice
    return best_of_n(choice.in_targets, sample, partial(nets.critic, choice.ranking(state), s), key)


def one_and_best(config: H) -> dict[str, H]:
    """Returns what such an agent is evaluated as: one draw, and if it has more the best of them."""
    one = {"eval": put(config, {"choice.num_samples": 1})}
    return one if config.choice.num_samples == 1 else one | {"best_of_n": config}


# ------------------------------------------------------------------------------------------------------- Gaussians


def unit_gaussian(means: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
    """Returns the mode of Gaussians of unit standard deviation, or with `explore` a sample: `[...]` like `means`."""
    return means + jax.random.normal(key, means.shape) if explore else means


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
        heads = side_by_side(2, glorot(self.final_scale))
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
