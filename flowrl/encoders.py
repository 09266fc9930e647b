"""What networks make of goals and of times before they mix them with observations, and networks that read times."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl.networks import MLP, Activation, Initializer, SplitDense, dropout, glorot, mish, side_by_side
from flowrl.train_state import Params

Features = Callable[[jax.Array, int], jax.Array]
"""`(times [..., 1], size) -> features [..., size]`."""


def length_normalize(x: jax.Array) -> jax.Array:
    """Scales vectors `[..., R]` to length √R; zero stays zero.

    Before training φ([0; 0]) is exactly zero, because biases start at zero.
    """
    squared_length = jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-12)
    return x / jnp.sqrt(squared_length) * jnp.sqrt(x.shape[-1])


class GoalRep(nn.Module):
    """Representation of a goal, φ(g), or of one seen from a state, φ([s; g]), of length √rep_dim (HIQL in OGBench).

    Attributes:
        hidden_dims: Sizes of the hidden layers.
        rep_dim: Output size R.
    """

    hidden_dims: Sequence[int]
    rep_dim: int

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """Maps `[B, D]` and `[B, G]`, or `[B, G]` alone, to `[B, R]`."""
        return length_normalize(MLP(self.hidden_dims, self.rep_dim, layer_norm=True)(*inputs))


class Pair(NamedTuple):
    """An action `[B, A]` and a goal representation `[B, R]`: the actor's noise, its prediction or their target."""

    a: jax.Array
    rep: jax.Array

    def bounded(self) -> "Pair":
        """Clips actions to [−1, 1] and scales representations to length √R."""
        return Pair(jnp.clip(self.a, -1.0, 1.0), length_normalize(self.rep))


class FourierFeatures(nn.Module):
    """Learnable Fourier features [cos 2πWx, sin 2πWx] of a scalar.

    Attributes:
        frequencies: Number of rows of W, initially N(0, 0.2²).
    """

    frequencies: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., 1]` to `[..., 2·frequencies]`."""
        kernel = self.param("kernel", nn.initializers.normal(0.2), (1, self.frequencies))
        angles = 2 * jnp.pi * x @ kernel
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimePairEmbedding(nn.Module):
    """Sum of two scalars' embeddings: Fourier features that both share, then an MLP each (SSCP).

    Attributes:
        layer_norm: Whether LayerNorm follows the activation, as in GC-SSCP.
        size: Size of the features and of the embedding.
    """

    layer_norm: bool = False
    size: int = 128

    @nn.compact
    def __call__(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """Maps `[..., 1]` and `[..., 1]` to `[..., size]`."""
        features = FourierFeatures(self.size // 2)
        embed = partial(MLP, (self.size,), self.size, activation=mish, layer_norm=self.layer_norm)
        return embed(name="first")(features(first)) + embed(name="second")(features(second))


class JumpMLP(nn.Module):
    """Where a jump over part of a path leads: an MLP of its inputs and of where it begins and how far it goes (SSCP).

    Attributes:
        hidden_dims: Sizes of the hidden layers.
        out_dim: Output size.
        time_dim: Size of the embedding of time and size of the jump.
        layer_norm: Whether LayerNorm follows each activation, as in GC-SSCP.
    """

    hidden_dims: Sequence[int]
    out_dim: int
    time_dim: int = 128
    layer_norm: bool = False

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """Maps `[..., D_i]`..., and time and size of the jump `[..., 1]` each, to `[..., out_dim]`."""
        *parts, begin, size = inputs
        embedding = TimePairEmbedding(self.layer_norm, self.time_dim)(begin, size)
        return MLP(self.hidden_dims, self.out_dim, activation=mish, layer_norm=self.layer_norm)(*parts, embedding)


def sinusoidal_features(x: jax.Array, size: int) -> jax.Array:
    """Fixed features [sin ωx, cos ωx] with ω falling geometrically from 1 to 1/10,000: `[..., 1]` to `[..., size]`."""
    half = size // 2
    angles = x * jnp.exp(-jnp.log(10_000.0) * jnp.arange(half) / (half - 1))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def cosine_features(x: jax.Array, size: int) -> jax.Array:
    """Fixed features [cos ωx, sin ωx], ω = 10,000^(−2j/size) (EDP's, MeanFlowQL's): `[..., 1]` to `[..., size]`."""
    angles = x * 10_000.0 ** (-jnp.arange(size // 2) / (size // 2))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def scaled_sinusoidal_features(x: jax.Array, size: int) -> jax.Array:
    """The same, sines first and by √size smaller (FPMD's code): `[..., 1]` to `[..., size]`."""
    return jnp.roll(cosine_features(x, size), size // 2, axis=-1) / jnp.sqrt(size)


def rising_sinusoidal_features(x: jax.Array, size: int) -> jax.Array:
    """Fixed features [sin ωx, cos ωx] with ω rising geometrically to 256 (Q-Flow): `[..., 1]` to `[..., size]`."""
    angles = x * jnp.exp(jnp.linspace(0.0, jnp.log(256.0), size // 2))
    return jnp.concatenate((jnp.sin(angles), jnp.cos(angles)), axis=-1)


class TimedMLP(nn.Module):
    """A field over points of a flow: features of each time through layers of its own, then an MLP.

    Attributes:
        hidden_dims: Sizes of the hidden layers.
        out_dim: Output size.
        times: Names of the times.
        time_dim: Size of a time's features and of what its layers make of them; their hidden layer has twice that.
        features: Of a time.
        kernel_init: Initialisation of all kernels.
    """

    hidden_dims: Sequence[int]
    out_dim: int
    times: tuple[str, ...]
    time_dim: int = 64
    features: Features = sinusoidal_features
    kernel_init: Initializer = glorot()

    @nn.compact
    def __call__(self, observations: jax.Array, points: jax.Array, *times: jax.Array) -> jax.Array:
        """Maps `[..., D]`, `[..., A]` and `[..., 1]` for each time to `[..., A]`."""
        mlp = partial(MLP, activation=mish, kernel_init=self.kernel_init, final_init=self.kernel_init)
        embeddings = [
            mlp((2 * self.time_dim,), self.time_dim, name=name)(self.features(x, self.time_dim))
            for name, x in zip(self.times, times, strict=True)
        ]
        return mlp(self.hidden_dims, self.out_dim)(points, observations, *embeddings)


class ResidualMLP(nn.Module):
    """A field over noise levels: residual blocks with LayerNorm and dropout, four times as wide inside (IDQL).

    Attributes:
        hidden_dims: Width of each block, all the same.
        out_dim: Output size.
        activation: Nonlinearity.
        dropout: Share of a block's inputs that are dropped while a key is given.
        time_dim: Size of the level's features; the two layers on them have twice that.
    """

    hidden_dims: Sequence[int]
    out_dim: int
    activation: Activation = nn.swish
    dropout: float = 0.1
    time_dim: int = 128

    @nn.compact
    def __call__(
        self, observations: jax.Array, points: jax.Array, levels: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Maps `[..., D]`, `[..., A]` and `[..., 1]` to `[..., A]`; with a key, numbers are dropped."""
        embed = MLP((2 * self.time_dim,), 2 * self.time_dim, self.activation)
        condition = embed(FourierFeatures(self.time_dim // 2)(levels))
        x = SplitDense(self.hidden_dims[0])(points, observations, condition)
        for i, width in enumerate(self.hidden_dims):
            h = dropout(x, self.dropout, None if key is None else jax.random.fold_in(key, i))
            h = self.activation(nn.Dense(4 * width)(nn.LayerNorm()(h)))
            x = x + nn.Dense(width)(h)
        return nn.Dense(self.out_dim, kernel_init=glorot())(self.activation(x))


class Hazards(nn.Module):
    """Logits of the hazards of bins of time: the first by a head of its own, the others in a few bases (HSVL).

    Attributes:
        hidden_dims: Sizes of the hidden layers.
        bins: Number K of bins after the first.
        bases: Number of bases, among which it chooses softly.
        basis_dim: Size of each.
    """

    hidden_dims: Sequence[int]
    bins: int
    bases: int
    basis_dim: int

    @nn.compact
    def __call__(self, *parts: jax.Array) -> jax.Array:
        """Maps the concatenation of `[..., D_i]` to `[..., 1 + K]`."""
        sizes = (1, self.bases, self.basis_dim)
        heads = MLP(self.hidden_dims, sum(sizes), layer_norm=True, final_init=side_by_side(sizes, glorot()))(*parts)
        first, chosen, coefficients = jnp.split(heads, (1, 1 + self.bases), axis=-1)
        bases = self.param("bases", nn.initializers.normal(0.02), (self.bases, self.bins, self.basis_dim))
        bias = self.param("bias", nn.initializers.zeros, (self.bins,))
        later = jnp.einsum("...s,...k,shk->...h", jax.nn.softmax(chosen), coefficients, bases, optimize="optimal")
        return jnp.concatenate((first, later + bias), axis=-1)


class FeaturesMLP(nn.Module):
    """An MLP of its inputs and of fixed features of the times among them, which come last (GFP, FMQ).

    Attributes:
        hidden_dims: Sizes of the hidden layers.
        out_dim: Output size.
        times: How many of the inputs are times.
        time_dim: Size of a time's features.
    """

    hidden_dims: Sequence[int]
    out_dim: int
    times: int = 1
    time_dim: int = 64

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """Maps `[..., D_i]`..., and `[..., 1]` for each time, to `[..., out_dim]`."""
        parts, times = inputs[: -self.times], inputs[-self.times :]
        features = [sinusoidal_features(time, self.time_dim) for time in times]
        return MLP(self.hidden_dims, self.out_dim)(*parts, *features)


def represented(nets: Any, params: Params, s: jax.Array, g: jax.Array) -> jax.Array:
    """Returns φ([s; g]) `[B, R]`, of agents with a network `goal_rep` that sees both."""
    return nets.goal_rep(params, s, g)


def represented_value(nets: Any, params: Params, s: jax.Array, g: jax.Array) -> jax.Array:
    """Returns the twin values V(s, φ([s; g])) `[2, B]`, of agents with networks `goal_rep` and `value`."""
    return nets.value(params, s, represented(nets, params, s, g))


# ------------------------------------------------------------------------------------------------------ transformers

SMALL = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
MIXED = 0.1
"""Share of a block's output in the residual stream (MeanFlowQL's code)."""
PERIODS = 256
"""Size of the features of time."""
_Zero = partial(nn.Dense, kernel_init=nn.initializers.zeros)


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
        condition = embed(cosine_features(time, PERIODS))[..., None, :]
        place = self.param("place", nn.initializers.normal(0.005), (self.width,))
        x = (SplitDense(self.width, SMALL)(*parts) + place)[..., None, :]
        for _ in range(self.depth):
            x = x + MIXED * (Block(self.heads)(x, condition) - x)
        shift, scale = jnp.split(_Zero(2 * self.width)(nn.silu(condition)), 2, axis=-1)
        return _Zero(self.out_dim)(RMSNorm()(x) * (1 + scale) + shift)[..., 0, :]
