"""Adjoint matching: a flow fine-tuned as the optimal control of a stochastic process (https://arxiv.org/abs/2409.08861).

A base flow v̄ carries unit noise at time 0 to data at time 1. Its memoryless process has the same distribution at every
time, and its end does not depend on its start. The process that tilts the ends by exp(−cost) is steered by a velocity v
with 2 (v − v̄) = −σ² g, g the lean adjoint: the slope of the cost at the end, carried back along the base process alone.

Every function is pure and knows no agent. Time runs over N equal steps of size h = 1/N. As in the code of QAM
(https://arxiv.org/abs/2601.14234) the drift and the noise that grow without bound toward time 0 are taken h later, the
Jacobians are those of h later too, and the last step is one of the base flow without noise.
"""

import chex
import jax
import jax.numpy as jnp

from flowrl.paths import Velocity, one_each
from flowrl.train_state import Scalar


def deviation(times: Scalar, step: float) -> jax.Array:
    """σ = √(2 (1 − t + h)/(t + h)), the noise that makes a process memoryless: times t `[...]` to `[...]`."""
    return jnp.sqrt(2 * (1 - times + step) / (times + step))


def memoryless(velocity: Velocity, base: Velocity, starts: jax.Array, noise: jax.Array) -> jax.Array:
    """Follows a process with a flow's velocity, x ← x + h (2 v(x, t) − x/(t + h)) + √h σ ξ.

    Args:
        velocity: v.
        base: v̄, which takes the last step, x ← x + h v̄(x, t).
        starts: x₀ `[..., A]`, unit noise.
        noise: ξ `[N − 1, ..., A]`, unit noise for all steps but the last.

    Returns:
        The points at all times `[N + 1, ..., A]`.
    """
    chex.assert_equal_shape_suffix([starts, noise], starts.ndim)
    steps = len(noise) + 1
    h, points = 1 / steps, [starts]
    for i in range(steps - 1):
        x, t = points[-1], jnp.full(one_each(starts), i / steps)
        points.append(x + h * (2 * velocity(x, t) - x / (t + h)) + jnp.sqrt(h) * deviation(t, h) * noise[i])
    last = jnp.full(one_each(starts), (steps - 1) / steps)
    return jnp.stack([*points, points[-1] + h * base(points[-1], last)])


def lean(base: Velocity, points: jax.Array, slopes: jax.Array) -> jax.Array:
    """Carries the slope of a cost back along the base process, g ← g + h Jᵀ g with J of 2 v̄(x, t + h) − x/(t + h).

    Args:
        base: v̄, with constant parameters.
        points: Of a process `[N + 1, ..., A]`.
        slopes: Of the cost at the last points `[..., A]`.

    Returns:
        g at all points but the last `[N, ..., A]`.
    """
    chex.assert_equal_shape([points[-1], slopes])
    steps, adjoints = len(points) - 1, [slopes]
    for i in reversed(range(steps)):
        later = jnp.full(one_each(slopes), (i + 1) / steps)
        _, pulled = jax.vjp(lambda x, t=later: 2 * base(x, t) - x / t, points[i])
        adjoints.append(adjoints[-1] + pulled(adjoints[-1])[0] / steps)
    return jnp.stack(adjoints[:0:-1])


def errors(velocity: Velocity, base: Velocity, points: jax.Array, adjoints: jax.Array) -> jax.Array:
    """Σ_t ‖2 (v − v̄)/σ + σ g‖² of each row, summed over dimensions too; least where 2 (v − v̄) = −σ² E[g | x].

    Args:
        velocity: v, with the parameters to train.
        base: v̄, with constant parameters.
        points: Of a process `[N + 1, B, A]`; the last ones do not count.
        adjoints: g `[N, B, A]`.

    Returns:
        `[B]`.
    """
    points, adjoints = jax.lax.stop_gradient((points[:-1], adjoints))
    chex.assert_equal_shape([points, adjoints])
    steps = len(points)
    t = (jnp.arange(steps) / steps).reshape(-1, 1, 1)
    sigma = deviation(t, 1 / steps)
    gaps = 2 * (velocity(points, t) - base(points, t)) / sigma + sigma * adjoints
    return jnp.sum(gaps**2, axis=(0, -1))
