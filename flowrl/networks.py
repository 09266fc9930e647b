"""Network modules (flax.linen) that agents share, and how agents call them: `nets.critic(params, s, a)`."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowrl.train_state import Params

Activation = Callable[[jax.Array], jax.Array]
Initializer = nn.initializers.Initializer
Shape = jax.ShapeDtypeStruct
"""Shape and type of an array that need not exist."""


def vector(*sizes: int) -> Shape:
    """Returns the shape of float32 numbers `[*sizes]`."""
    return Shape(sizes, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shapes of one observation, action and goal, without batch axes; actions lie in [−1, 1].

    Attributes:
        observation: Of observations, `[D]`.
        action: Of actions, `[A]`.
        goal: Of goals, `[G]`; None where there is a single task.
    """

    observation: Shape
    action: Shape
    goal: Shape | None = None

    @classmethod
    def of_sizes(cls, observation: int, action: int, goal: int = 0) -> "Spec":
        """Returns the shapes of vectors of D, A and G numbers; with G = 0 there are no goals."""
        return cls(vector(observation), vector(action), vector(goal) if goal else None)

    @property
    def action_dim(self) -> int:
        """A."""
        return int(self.action.shape[-1])

    def chunk(self, length: int) -> "Spec":
        """Returns the same with `length` actions in a row as one action, `[length · A]`."""
        return dataclasses.replace(self, action=vector(length * self.action_dim))

    def inputs(self) -> tuple[Shape, Shape, Shape, Shape]:
        """Returns the shapes of networks' inputs, in batches of 1: observations, actions, goals and times `[1, 1]`."""
        goal = vector(0) if self.goal is None else self.goal
        observation, action, goal = (Shape((1, *one.shape), one.dtype) for one in (self.observation, self.action, goal))
        return observation, action, goal, vector(1, 1)

    def noise(self, key: jax.Array, s: jax.Array) -> jax.Array:
        """Unit Gaussian noise in the shape of an action for each observation of `s` `[..., *observation]`."""
        return jax.random.normal(key, (*s.shape[: s.ndim - len(self.observation.shape)], *self.action.shape))


@dataclasses.dataclass(frozen=True)
class Network:
    """A flax module that knows its entry among the parameters and the shapes of its inputs.

    Attributes:
        name: Its entry.
        module: What computes.
        inputs: Shapes of its inputs, in batches of 1.
    """

    name: str
    module: nn.Module
    inputs: tuple[Shape, ...]

    def init(self, key: jax.Array) -> Any:
        """Returns fresh parameters; no array is made for the inputs."""
        return self.module.lazy_init(key, *self.inputs)

    def __call__(self, params: Params, *inputs: Any, **options: Any) -> Any:
        """Applies the module with its own entry of `params`; an option is the key of its dropout, say."""
        return self.module.apply(params[self.name], *inputs, **options)


ABSENT = Network("", nn.Module(), ())
"""Stands for a network that an agent has with other settings; it has no entry, and is not trained."""


def named(**networks: tuple[Any, ...]) -> dict[str, Network]:
    """Names networks, each given as its module and the shapes of its inputs, or as `()` where there is none.

    So `Networks(spec, **named(critic=(module, s, a)))`.
    """
    return {name: Network(name, net[0], tuple(net[1:])) if net else ABSENT for name, net in networks.items()}


class Networks(NamedTuple):
    """A policy and its critics, the networks of most agents; what the actor maps stands where an agent builds it."""

    spec: Spec
    actor: Network
    critic: Network  # s [B, D], a [B, A] -> [heads, B]


class Distilled(NamedTuple):
    """A flow, the one-step policy that is distilled from it, and critics."""

    spec: Spec
    flow: Network  # s [B, D], x [B, A], t [B, 1] -> velocity [B, A]
    actor: Network  # s [B, D], z [B, A] -> action [B, A]
    critic: Network  # s [B, D], a [B, A] -> [heads, B]


def glorot(scale: float = 1.0) -> Initializer:
    """Uniform kernel initialisation by the mean of fan-in and fan-out."""
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform")


def side_by_side(sizes: Sequence[int], one: Initializer) -> Initializer:
    """Initialises a kernel as those of layers of some sizes side by side."""

    def init(key: jax.Array, shape: tuple[int, int], *dtype: Any) -> jax.Array:
        keys = jax.random.split(key, len(sizes))
        blocks = [one(k, (shape[0], size), *dtype) for k, size in zip(keys, sizes, strict=True)]
        return jnp.concatenate(blocks, axis=-1)

    return init


_qr = jax.custom_batching.sequential_vmap(partial(jnp.linalg.qr, mode="reduced"))


def orthogonal(scale: float) -> Initializer:
    """Orthogonal kernel initialisation, as `flax.linen.initializers.orthogonal`, one matrix after another.

    On machines with two cores jaxlib's factorisations of several batches of matrices can wait for each other for ever:
    each asks for help by threads that all wait in others.
    """

    def init(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
        q, r = _qr(nn.initializers.normal(1.0)(key, (max(shape), min(shape)), dtype))
        q = q * jnp.sign(jnp.diag(r))
        return scale * (q.T if shape[0] < shape[1] else q)

    return init


def truncated(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Kernel initialisation N(0, 1/fan-in), cut at two deviations and not widened again (Haiku's default)."""
    return jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype) / jnp.sqrt(jnp.asarray(shape[-2], dtype))


def fan_in_uniform(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Kernel initialisation U(±1/√fan-in), PyTorch's default."""
    return uniform_within(shape[-2] ** -0.5)(key, shape, dtype)


def uniform_within(limit: float) -> Initializer:
    """Initialisation U(±limit), of kernels and biases."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)


def mish(x: jax.Array) -> jax.Array:
    """Mish, x·tanh(softplus(x)) (https://arxiv.org/abs/1908.08681), written with one exponential.

    tanh(log(1 + e)) = n / (n + 2) with n = e² + 2e; beyond 20 it is 1 in float32.
    """
    e = jnp.exp(jnp.minimum(x, 20.0))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


ACTIVATIONS: dict[str, Activation] = {
    "relu": nn.relu, "gelu": nn.gelu, "mish": mish, "tanh": nn.tanh, "swish": nn.swish,
}  # fmt: skip
"""Nonlinearities by name."""


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Sets a share `rate` of numbers to 0 and enlarges the others, so that means stay; without a key, nothing."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0.0)


class SplitDense(nn.Module):
    """A dense layer on the concatenation of its inputs.

    Inputs whose batch axes have length 1 are multiplied once and broadcast, where a real concatenation would repeat the
    work for every row.

    Attributes:
        features: Output size.
        kernel_init: Initialisation of the kernel.
        bias_init: Initialisation of the bias.
    """

    features: int
    kernel_init: Initializer = glorot()
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, *parts: jax.Array) -> jax.Array:
        """Maps `[B or 1, D_i]`... to `[B, features]`."""
        sizes = [part.shape[-1] for part in parts]
        kernel = self.param("kernel", self.kernel_init, (sum(sizes), self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
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
        bias_init: Initialisation of the hidden biases.
        final_bias_init: Initialisation of the last bias.
        input_norm: Whether LayerNorm precedes the first layer.
        dropout: Share of hidden numbers that are dropped while a key is given, after the activation.
    """

    hidden_dims: Sequence[int]
    out_dim: int
    activation: Activation = nn.gelu
    layer_norm: bool = False
    final_scale: float = 1.0
    kernel_init: Initializer = glorot()
    final_init: Initializer | None = None
    bias_init: Initializer = nn.initializers.zeros
    final_bias_init: Initializer = nn.initializers.zeros
    input_norm: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, *parts: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps the concatenation of `[B or 1, D_i]` to `[B, out_dim]`; with a key, numbers are dropped."""
        if self.input_norm:
            parts = (nn.LayerNorm()(jnp.concatenate(parts, axis=-1)),)
        x: jax.Array | None = None
        for i, width in enumerate(self.hidden_dims):
            layer = partial(
                SplitDense if x is None else nn.Dense, kernel_init=self.kernel_init, bias_init=self.bias_init
            )
            x = self.activation(layer(width)(*(parts if x is None else (x,))))
            x = dropout(x, self.dropout, None if key is None else jax.random.fold_in(key, i))
            if self.layer_norm:
                x = nn.LayerNorm()(x)
        inputs = jnp.concatenate(parts, axis=-1) if x is None else x
        final_init = self.final_init or glorot(self.final_scale)
        return nn.Dense(self.out_dim, kernel_init=final_init, bias_init=self.final_bias_init)(inputs)


class PreNormMLP(nn.Module):
    """Residual blocks of dense layers behind LayerNorm, and a last LayerNorm (HSVL).

    Attributes:
        hidden_dims: Sizes of a block's layers; the first is also that of what passes by the blocks.
        out_dim: Output size.
        blocks: Their number.
        final_scale: Scale of the last kernel's initial variance.
    """

    hidden_dims: Sequence[int]
    out_dim: int
    blocks: int = 2
    final_scale: float = 1e-2

    @nn.compact
    def __call__(self, *parts: jax.Array) -> jax.Array:
        """Maps the concatenation of `[..., D_i]` to `[..., out_dim]`."""
        width = self.hidden_dims[0]
        x = jnp.concatenate(parts, axis=-1)
        x = x if x.shape[-1] == width else nn.Dense(width, kernel_init=glorot())(x)  # so in HSVL's code
        for _ in range(self.blocks):
            x = x + MLP(self.hidden_dims[:-1], width)(nn.LayerNorm()(x))
        return nn.Dense(self.out_dim, kernel_init=glorot(self.final_scale))(nn.LayerNorm()(x))


class Value(nn.Module):
    """A scalar function of its concatenated inputs, by default with GELU and LayerNorm."""

    hidden_dims: Sequence[int]
    activation: Activation = nn.gelu
    layer_norm: bool = True
    kernel_init: Initializer = glorot()
    final_init: Initializer | None = None
    bias_init: Initializer = nn.initializers.zeros
    final_bias_init: Initializer = nn.initializers.zeros
    input_norm: bool = False

    @nn.compact
    def __call__(self, *parts: jax.Array) -> jax.Array:
        """Maps `[B, D_i]`... to `[B]`."""
        mlp = MLP(
            self.hidden_dims, 1, self.activation, self.layer_norm, kernel_init=self.kernel_init,
            final_init=self.final_init, bias_init=self.bias_init, final_bias_init=self.final_bias_init,
            input_norm=self.input_norm,
        )  # fmt: skip
        return mlp(*parts).squeeze(-1)


def ensemble(module: type[nn.Module], size: int = 2, in_axes: Any = None) -> Any:
    """Returns `module` with `size` independent sets of parameters and outputs stacked on a new first axis.

    Args:
        module: A module.
        size: How many.
        in_axes: Axes of the inputs along which each set has inputs of its own, as for `jax.vmap`.
    """
    return nn.vmap(module, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=in_axes, axis_size=size)
