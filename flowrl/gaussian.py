"""Gaussian policies squashed by tanh into (−1, 1), shared by agents."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl.networks import MLP, Activation, glorot, side_by_side
from flowrl.train_state import Mode

LOG_STD_RANGE = (-5.0, 2.0)


class SquashedGaussian(nn.Module):
    """Means and log standard deviations of actions before tanh, each by a head of its own.

    The two heads are one layer, whose halves start as two layers do.

    Attributes:
        hidden_dims: Sizes of the hidden layers.
        action_dim: Number of actions A.
        activation: Nonlinearity of the hidden layers.
    """

    hidden_dims: Sequence[int]
    action_dim: int
    activation: Activation = nn.relu

    @nn.compact
    def __call__(self, observations: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps `[..., D]` to means and log standard deviations `[..., A]`, the latter clipped to [−5, 2]."""
        heads = side_by_side(2, glorot(1e-2))
        mlp = MLP(self.hidden_dims, 2 * self.action_dim, activation=self.activation, final_init=heads)
        means, log_stds = jnp.split(mlp(observations), 2, axis=-1)
        return means, jnp.clip(log_stds, *LOG_STD_RANGE)


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


def draw(means: jax.Array, log_stds: jax.Array, key: jax.Array, mode: Mode) -> jax.Array:
    """Returns the actions of the mode before tanh, or with `explore` a sample: `[..., A]`."""
    noise = jax.random.normal(key, means.shape) if mode == "explore" else jnp.zeros_like(means)
    return squash(means, log_stds, noise)[0]
