"""Networks over plans, rows of states and actions along time: a temporal U-Net, and a value of whole plans.

They are those of Diffuser (https://arxiv.org/abs/2205.09991, appendix C, and its code). A plan is `[..., H, W]`, with
any batch axes. Convolutions are matrix products of what lies side by side, so that runs can be mapped. A length that is
odd when it is halved is rounded up, and what comes back is cut.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl.encoders import sinusoidal_features
from flowrl.networks import fan_in_uniform, mish, uniform_within

KERNEL = 5
"""Steps that a convolution sees."""
GROUPS = 8
"""Of GroupNorm; fewer where they do not divide the width."""
HEADS, HEAD_DIM = 4, 32
"""Of the linear attention."""


def dense(x: jax.Array, features: int, fan_in: int = 0) -> jax.Array:
    """A dense layer as PyTorch begins it, `[..., W]` to `[..., features]`; called within a module.

    Args:
        x: What it sees.
        features: How much it says.
        fan_in: As how many inputs it begins; 0: as those that it has.
    """
    begun = uniform_within((fan_in or x.shape[-1]) ** -0.5)
    return nn.Dense(features, kernel_init=begun, bias_init=begun)(x)


def neighbours(x: jax.Array, kernel: int, stride: int = 1) -> jax.Array:
    """What a convolution sees at each step, zeros beyond the ends: `[..., H, W]` to `[..., ⌈H/stride⌉, kernel·W]`."""
    length, reach = x.shape[-2], kernel // 2
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(reach, reach), (0, 0)])
    return jnp.concatenate([padded[..., i : i + length : stride, :] for i in range(kernel)], axis=-1)


class ConvBlock(nn.Module):
    """Convolution, GroupNorm over steps and channels of a group, Mish.

    Attributes:
        width: Output channels.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., H, W]` to `[..., H, width]`."""
        x = dense(neighbours(x, KERNEL), self.width)
        norm = nn.GroupNorm(math.gcd(GROUPS, self.width), epsilon=1e-5, reduction_axes=(-2, -1))
        return mish(norm(x))


class ResidualBlock(nn.Module):
    """Two convolutions, between which the condition is added to all steps.

    Attributes:
        width: Output channels.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """Maps `[..., H, W]` and `[..., E]` to `[..., H, width]`."""
        inner = ConvBlock(self.width)(x) + dense(mish(condition), self.width)[..., None, :]
        skip = x if x.shape[-1] == self.width else dense(x, self.width)
        return ConvBlock(self.width)(inner) + skip


class LinearAttention(nn.Module):
    """Attention among steps whose cost is linear in their number, on normalised channels, added to what comes in."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., H, W]` to `[..., H, W]`."""
        qkv = nn.Dense(3 * HEADS * HEAD_DIM, use_bias=False, kernel_init=fan_in_uniform)(nn.LayerNorm(epsilon=1e-5)(x))
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:-1], 3, HEADS, HEAD_DIM), -3, 0)
        context = jnp.einsum("...nhd,...nhe->...hde", jax.nn.softmax(k, axis=-3), v)
        seen = jnp.einsum("...hde,...nhd->...nhe", context, q / HEAD_DIM**0.5)
        return x + dense(seen.reshape(*x.shape[:-1], HEADS * HEAD_DIM), x.shape[-1])


def halved(x: jax.Array) -> jax.Array:
    """A convolution of three steps at every other one: `[..., H, W]` to `[..., ⌈H/2⌉, W]`; within a module."""
    return dense(neighbours(x, 3, stride=2), x.shape[-1])


def doubled(x: jax.Array, length: int) -> jax.Array:
    """A transposed convolution of four steps, `[..., H, W]` to the first of `[..., 2H, W]`; within a module.

    It begins as one of 4 W inputs, as in PyTorch, though each step that it writes sees two.
    """
    width, (before, here, after) = x.shape[-1], jnp.split(neighbours(x, 3), 3, axis=-1)
    pairs = [dense(jnp.concatenate([here, other], axis=-1), width, 4 * width) for other in (before, after)]
    both = jnp.stack(pairs, axis=-2)
    return both.reshape(*x.shape[:-2], -1, x.shape[-1])[..., :length, :]


def perceptron(x: jax.Array, *widths: int) -> jax.Array:
    """Dense layers with Mish between them; within a module."""
    for width in widths[:-1]:
        x = mish(dense(x, width))
    return dense(x, widths[-1])


def embedded(level: jax.Array, size: int) -> jax.Array:
    """What a network makes of noise levels, `[..., 1]` to `[..., size]`; within a module."""
    return perceptron(sinusoidal_features(level, 2 * max(size // 2, 2)), 4 * size, size)


class TemporalUNet(nn.Module):
    """A field over plans: steps are halved and doubled again, with wider channels where they are fewer.

    Attributes:
        widths: Channels at each resolution, the finest first; the first is also the size of embeddings.
        attention: Whether linear attention follows the blocks of each resolution.
    """

    widths: Sequence[int]
    attention: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array, *told: jax.Array) -> jax.Array:
        """Maps plans `[..., H, W]` at noise levels `[..., 1]` to `[..., H, W]`.

        Args:
            x: The plans.
            level: The noise levels.
            told: Where plans have a condition: a number `[..., 1]`, and 1 where it is known and 0 where it is not.
        """
        size, outputs = self.widths[0], x.shape[-1]
        condition = embedded(level, size)
        if told:
            number, known = told
            condition, number = same_batch(condition, known * perceptron(number, size, 4 * size, size))
            condition = jnp.concatenate([condition, number], axis=-1)

        def blocks(x: jax.Array, width: int) -> jax.Array:
            x = ResidualBlock(width)(ResidualBlock(width)(x, condition), condition)
            return LinearAttention()(x) if self.attention else x

        skips = []
        for i, width in enumerate(self.widths):
            x = blocks(halved(x) if i else x, width)
            skips.append(x)
        x = ResidualBlock(x.shape[-1])(x, condition)
        x = ResidualBlock(x.shape[-1])(LinearAttention()(x) if self.attention else x, condition)
        for width, finer in zip(self.widths[-2::-1], skips[-2::-1], strict=True):
            x = doubled(blocks(jnp.concatenate([x, skips.pop()], axis=-1), width), finer.shape[-2])
        return dense(ConvBlock(size)(x), outputs)


class PlanValue(nn.Module):
    """A number for whole plans: the first half of the U-Net, halved further, then dense layers.

    Attributes:
        widths: As for the U-Net.
    """

    widths: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        """Maps plans `[..., H, W]` at noise levels `[..., 1]` to `[...]`."""
        size, last = self.widths[0], self.widths[-1]
        condition = embedded(level, size)
        for width in self.widths:
            x = halved(ResidualBlock(width)(ResidualBlock(width)(x, condition), condition))
        for width in (max(last // 2, 1), max(last // 4, 1)):
            x = halved(ResidualBlock(width)(x, condition))
        flat, condition = same_batch(x.reshape(*x.shape[:-2], -1), condition)
        both = jnp.concatenate([flat, condition], axis=-1)
        return perceptron(both, max(flat.shape[-1] // 2, 1), 1)[..., 0]


def same_batch(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Repeats `[..., W]` and `[..., E]` over batch axes that only the other has."""
    batch = jnp.broadcast_shapes(x.shape[:-1], y.shape[:-1])
    return jnp.broadcast_to(x, (*batch, x.shape[-1])), jnp.broadcast_to(y, (*batch, y.shape[-1]))


# ---------------------------------------------------------------------------------------------------------- plans


def pinned(plans: jax.Array, first: jax.Array, last: jax.Array | None = None) -> jax.Array:
    """Plans whose first state, and last one, are those given: what else is in them is made to fit (inpainting).

    Args:
        plans: `[..., H, W]`, whose last D columns are states.
        first: `[..., D]`.
        last: `[..., D]`, where it is given.
    """
    size = jnp.shape(first)[-1]
    plans = plans.at[..., 0, -size:].set(first)
    return plans if last is None else plans.at[..., -1, -size:].set(last)
