"""Network modules (flax.linen) that agents share, and the functions that call several of them in a row."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl.train_state import Mode, Params

Activation = Callable[[jax.Array], jax.Array]
Initializer = nn.initializers.Initializer
Features = Callable[[jax.Array, int], jax.Array]
"""`(times [..., 1], size) -> features [..., size]`."""
Network = Any
"""A flax module; flax's own type of `apply` is a union with the variables it may have changed."""


def glorot(scale: float = 1.0) -> Initializer:
    """Uniform kernel initialisation by the mean of fan-in and fan-out."""
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform")


def side_by_side(heads: int, one: Initializer) -> Initializer:
    """Initialises a kernel as those of `heads` layers of equal sizes side by side."""

    def init(key: jax.Array, shape: tuple[int, int], *dtype: Any) -> jax.Array:
        blocks = [one(k, (shape[0], shape[1] // heads), *dtype) for k in jax.random.split(key, heads)]
        return jnp.concatenate(blocks, axis=-1)

    return init


def truncated(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Kernel initialisation N(0, 1/fan-in), cut at two deviations and not widened again (Haiku's default)."""
    return jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype) / jnp.sqrt(jnp.asarray(shape[-2], dtype))


def mish(x: jax.Array) -> jax.Array:
    """Mish, x·tanh(softplus(x)) (https://arxiv.org/abs/1908.08681), written with one exponential.

    tanh(log(1 + e)) = n / (n + 2) with n = e² + 2e; beyond 20 it is 1 in float32.
    """
    e = jnp.exp(jnp.minimum(x, 20.0))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


class SplitDense(nn.Module):
    """A dense layer on the concatenation of its inputs.

    Inputs whose batch axes have length 1 are multiplied once and broadcast, where a real concatenation would repeat the
    work for every row.

    Attributes:
        features: Output size.
        kernel_init: Initialisation of the kernel.
    """

    features: int
    kernel_init: Initializer = glorot()

    @nn.compact
    def __call__(self, *parts: jax.Array) -> jax.Array:
        """Maps `[B or 1, D_i]`... to `[B, features]`."""
        sizes = [part.shape[-1] for part in parts]
        kernel = self.param("kernel", self.kernel_init, (sum(sizes), self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        blocks = [kernel[start : start + size] for start, size in zip(offsets, sizes, strict=True)]
        return sum((part @ block for part, block in zip(parts, blocks, strict=True)), bias)


class MLP(nn.Module):
    """Dense layers, each hidden one followed by the activation and, if asked, LayerNorm; the last layer is linear.

    Attributes:
        hidden_dims: Sizes of the hidden layers.
        out_dim: Output size.
        activation: Nonlinearity of the hidden layers.
        layer_norm: Whether LayerNorm follows each activation.
        final_scale: Scale of the last kernel's initial variance.
        kernel_init: Initialisation of the hidden kernels.
        final_init: Initialisation of the last kernel, in place of Glorot's.
    """

    hidden_dims: Sequence[int]
    out_dim: int
    activation: Activation = nn.gelu
    layer_norm: bool = False
    final_scale: float = 1.0
    kernel_init: Initializer = glorot()
    final_init: Initializer | None = None

    @nn.compact
    def __call__(self, *parts: jax.Array) -> jax.Array:
        """Maps the concatenation of `[B or 1, D_i]` to `[B, out_dim]`."""
        x: jax.Array | None = None
        for width in self.hidden_dims:
            init = self.kernel_init
            x = SplitDense(width, init)(*parts) if x is None else nn.Dense(width, kernel_init=init)(x)
            x = self.activation(x)
            if self.layer_norm:
                x = nn.LayerNorm()(x)
        inputs = jnp.concatenate(parts, axis=-1) if x is None else x
        return nn.Dense(self.out_dim, kernel_init=self.final_init or glorot(self.final_scale))(inputs)


class Value(nn.Module):
    """A scalar function of its concatenated inputs, by default with GELU and LayerNorm."""

    hidden_dims: Sequence[int]
    activation: Activation = nn.gelu
    layer_norm: bool = True
    kernel_init: Initializer = glorot()
    final_init: Initializer | None = None

    @nn.compact
    def __call__(self, *parts: jax.Array) -> jax.Array:
        """Maps `[B, D_i]`... to `[B]`."""
        mlp = partial(MLP, kernel_init=self.kernel_init, final_init=self.final_init)
        return mlp(self.hidden_dims, 1, self.activation, self.layer_norm)(*parts).squeeze(-1)


def ensemble(module: type[nn.Module], size: int = 2, in_axes: Any = None) -> Any:
    """Returns `module` with `size` independent sets of parameters and outputs stacked on a new first axis.

    Args:
        module: A module.
        size: How many.
        in_axes: Axes of the inputs along which each set has inputs of its own, as for `jax.vmap`.
    """
    return nn.vmap(module, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=in_axes, axis_size=size)


def gaussian_draw(means: jax.Array, key: jax.Array, mode: Mode) -> jax.Array:
    """Returns the mode of Gaussians of unit standard deviation, or with `explore` a sample: `[...]` like `means`."""
    return means + jax.random.normal(key, means.shape) if mode == "explore" else means


def length_normalize(x: jax.Array) -> jax.Array:
    """Scales vectors `[..., R]` to length √R; zero stays zero.

    Before training φ([0; 0]) is exactly zero, because biases start at zero.
    """
    squared_length = jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-12)
    return x / jnp.sqrt(squared_length) * jnp.sqrt(x.shape[-1])


class GoalRep(nn.Module):
    """Representation φ([s; g]) of a goal seen from a state, of length √rep_dim (HIQL in OGBench).

    Attributes:
        hidden_dims: Sizes of the hidden layers.
        rep_dim: Output size R.
    """

    hidden_dims: Sequence[int]
    rep_dim: int

    @nn.compact
    def __call__(self, observations: jax.Array, goals: jax.Array) -> jax.Array:
        """Maps `[B, D]` and `[B, G]` to `[B, R]`."""
        return length_normalize(MLP(self.hidden_dims, self.rep_dim, layer_norm=True)(observations, goals))


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


def sinusoidal_features(x: jax.Array, size: int) -> jax.Array:
    """Fixed features [sin ωx, cos ωx] with ω falling geometrically from 1 to 1/10,000: `[..., 1]` to `[..., size]`."""
    half = size // 2
    angles = x * jnp.exp(-jnp.log(10_000.0) * jnp.arange(half) / (half - 1))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def scaled_sinusoidal_features(x: jax.Array, size: int) -> jax.Array:
    """Fixed features [sin ωx, cos ωx]/√size, ω = 10,000^(−2j/size) (FPMD's code): `[..., 1]` to `[..., size]`."""
    angles = x * 10_000.0 ** (-jnp.arange(size // 2) / (size // 2))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1) / jnp.sqrt(size)


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


def represent(networks: Any, params: Params, observations: jax.Array, goals: jax.Array) -> jax.Array:
    """Returns φ([s; g]) `[B, R]`, for agents with the networks `goal_rep` and `value`."""
    return networks.goal_rep.apply(params["goal_rep"], observations, goals)


def represented_value(networks: Any, params: Params, observations: jax.Array, goals: jax.Array) -> jax.Array:
    """Returns the twin values V(s, φ([s; g])) `[2, B]`, for agents with the networks `goal_rep` and `value`."""
    return networks.value.apply(params["value"], observations, represent(networks, params, observations, goals))
