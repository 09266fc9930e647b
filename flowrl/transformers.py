"""A transformer for points of a flow, conditioned on their time (DiT, https://arxiv.org/abs/2212.09748)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl.networks import MLP, SplitDense

SMALL = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
MIXED = 0.1
"""Share of a block's output in the residual stream (MeanFlowQL's code)."""
PERIODS = 256
"""Size of the features of time."""
_Zero = partial(nn.Dense, kernel_init=nn.initializers.zeros)


def time_features(x: jax.Array, size: int) -> jax.Array:
    """Fixed features [cos ωx, sin ωx] with ω = 10,000^(−2j/size): `[..., 1]` to `[..., size]`."""
    angles = x * 10_000.0 ** (-jnp.arange(size // 2) / (size // 2))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class RMSNorm(nn.Module):
    """x / √(mean x²) · √size · g; the root of the size comes on top in MeanFlowQL's code."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., W]` to `[..., W]`."""
        g = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * x.shape[-1] ** 0.5 * g


class Attention(nn.Module):
    """Attention among tokens with normalised queries and keys.

    Attributes:
        heads: Their number, which divides the width.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., T, W]` to `[..., T, W]`."""
        width = x.shape[-1]
        qkv = nn.Dense(3 * width, kernel_init=SMALL)(x)
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:-1], 3, self.heads, width // self.heads), -3, 0)
        scores = jnp.einsum("...ihd,...jhd->...hij", RMSNorm()(q), RMSNorm()(k)) / (width // self.heads) ** 0.5
        seen = jnp.einsum("...hij,...jhd->...ihd", jax.nn.softmax(scores), v)
        return nn.Dense(width, kernel_init=SMALL)(seen.reshape(x.shape))


class Block(nn.Module):
    """Attention and an MLP, each on normalised tokens that the condition shifts and scales, and behind its gate.

    Attributes:
        heads: Of the attention.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """Maps tokens `[..., T, W]` and a condition `[..., 1, W]` to `[..., T, W]`; at first to the same tokens."""
        width = x.shape[-1]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(
            _Zero(6 * width)(nn.silu(condition)), 6, axis=-1
        )  # fmt: skip
        x = x + gate * Attention(self.heads)(RMSNorm()(x) * (1 + scale) + shift)
        mlp = MLP((4 * width,), width, kernel_init=SMALL, final_init=SMALL)
        return x + mlp_gate * mlp(RMSNorm()(x) * (1 + mlp_scale) + mlp_shift)


class TimedTransformer(nn.Module):
    """A field over points of a flow: all inputs but the time are one token, the time is the condition (MeanFlowQL).

    With one token attention passes values on as they are: its queries and keys are never trained.

    Attributes:
        out_dim: Output size.
        width: Size W of the token.
        depth: Number of blocks.
        heads: Of their attention.
    """

    out_dim: int
    width: int = 256
    depth: int = 3
    heads: int = 2

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """Maps `[..., D_i]`..., and a time `[..., 1]`, to `[..., out_dim]`; at first to 0."""
        *parts, time = inputs
        embed = MLP((self.width,), self.width, activation=nn.silu, kernel_init=SMALL, final_init=SMALL)
        condition = embed(time_features(time, PERIODS))[..., None, :]
        place = self.param("place", nn.initializers.normal(0.005), (self.width,))
        x = (SplitDense(self.width, SMALL)(*parts) + place)[..., None, :]
        for _ in range(self.depth):
            x = x + MIXED * (Block(self.heads)(x, condition) - x)
        shift, scale = jnp.split(_Zero(2 * self.width)(nn.silu(condition)), 2, axis=-1)
        return _Zero(self.out_dim)(RMSNorm()(x) * (1 + scale) + shift)[..., 0, :]
