"""Paths between noise and data in one time dimension: points on them, steps along them, times to learn them at.

Every function is pure and knows no agent. Points are `[..., A]` and times `[..., 1]`, so that they broadcast; a path
runs from time 0 to time 1. Which end is noise is the caller's choice: SSCP and FQL put the data at time 1
(`straight(noise, actions, times)`), OFQL and MeanFlow put the noise there (`straight(actions, noise, times)`).
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from flowrl.train_state import Scalar

Velocity = Callable[[jax.Array, jax.Array], jax.Array]
"""`(points [..., A], times [..., 1]) -> velocities [..., A]`, instantaneous."""
Jump = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`(points [..., A], times [..., 1], sizes [..., 1]) -> [..., A]`: mean velocity over a step of that size; the
instantaneous velocity where the size is 0."""
AverageVelocity = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`(points [..., A], begins r [..., 1], times t [..., 1]) -> [..., A]`: mean velocity between times r ≤ t on the path
that is at `points` at time t."""
Jumps = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`(points [..., A], begins r [..., 1], ends t [..., 1]) -> [..., A]`: mean velocity from r to t on the path that is at
`points` at time r."""
TimeSampler = Callable[[jax.Array, tuple[int, ...]], jax.Array]
"""`(key, shape) -> times` in (0, 1)."""


def one_each(rows: jax.Array) -> tuple[int, ...]:
    """Returns the shape of one number for each row of `[B, ...]`, or for a single `[A]`; it broadcasts."""
    return (*rows.shape[:-1][:1], *[1] * max(1, rows.ndim - 1))


class Path(NamedTuple):
    """Points on paths and the velocities there, `[..., A]` both."""

    points: jax.Array
    velocities: jax.Array


def straight(starts: jax.Array, ends: jax.Array, times: jax.Array) -> Path:
    """Straight paths x_t = (1 − t) x₀ + t x₁ with velocity x₁ − x₀ (https://arxiv.org/abs/2209.03003).

    Args:
        starts: x₀ `[..., A]`.
        ends: x₁ `[..., A]`.
        times: t `[..., 1]`.
    """
    chex.assert_equal_shape([starts, ends])
    chex.assert_axis_dimension(times, -1, 1)
    return Path((1 - times) * starts + times * ends, ends - starts)


def euler(velocity: Velocity, starts: jax.Array, steps: int) -> jax.Array:
    """Integrates a velocity field from time 0 to 1 in equal explicit steps.

    Args:
        velocity: The field.
        starts: x₀ `[..., A]`.
        steps: Number of steps; unrolled, so that the compiler counts and fuses them.

    Returns:
        x₁ `[..., A]`.
    """
    points = starts
    for i in range(steps):
        points = points + velocity(points, jnp.full(one_each(starts), i / steps)) / steps
    return points


def onward(velocity: Velocity, points: jax.Array, times: jax.Array, steps: int) -> jax.Array:
    """Integrates from wherever points are to time 1, in steps of 1/N of which the last is shorter (Q-Flow).

    Args:
        velocity: The field.
        points: x_t `[..., A]`.
        times: t in [0, 1], `[..., 1]`.
        steps: N, the steps from time 0.

    Returns:
        x₁ `[..., A]`.
    """
    for _ in range(steps):
        sizes = jnp.clip(1 - times, 0.0, 1 / steps)
        points, times = points + sizes * velocity(points, times), times + sizes
    return points


def backward(velocity: Velocity, ends: jax.Array, spans: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
    """Integrates back from time 1 in equal steps, each by the velocity where it begins (RQL).

    Args:
        velocity: The field.
        ends: x₁ `[..., A]`.
        spans: How far back, d in [0, 1], `[..., 1]`.
        steps: Number of steps, whatever d.

    Returns:
        x `[..., A]`, and the times 1 − d `[..., 1]`.
    """
    points, times = ends, jnp.ones_like(spans)
    for _ in range(steps):
        points, times = points - velocity(points, times) * spans / steps, times - spans / steps
    return points, times


def complete(jump: Jump, points: jax.Array, times: jax.Array) -> jax.Array:
    """Goes to the end of the path in one step: x + (1 − t) h(x, t, 1 − t) (https://arxiv.org/abs/2506.21427).

    Args:
        jump: h; the mean velocity over the step that it is asked for.
        points: x `[..., A]`.
        times: t `[..., 1]`.

    Returns:
        `[..., A]`; exact where h is right, for any t on a straight path.
    """
    return points + (1 - times) * jump(points, times, 1 - times)


def complete_in_steps(jump: Jump, starts: jax.Array, steps: int) -> jax.Array:
    """Completes a path from time 0, re-aiming at the end after each of several equal steps; one step is `complete`."""
    points = starts
    for i in range(steps):
        times = jnp.full(one_each(starts), i / steps)
        points = points + jump(points, times, 1 - times) / steps
    return points


def bootstrap_target(jump: Jump, points: jax.Array, times: jax.Array, sizes: jax.Array, floor: float) -> jax.Array:
    """Mean velocity of two half steps, the self-consistency target of shortcut models (https://arxiv.org/abs/2410.12557).

    Args:
        jump: The slow copy's steps.
        points: x `[..., A]` at `times`.
        times: t `[..., 1]`.
        sizes: Size of the whole step, t + size ≤ 1, `[..., 1]`.
        floor: Half steps up to this share of what remains of the path, 1 − t, follow the instantaneous velocity, on
            which the recursion rests.

    Returns:
        `[..., A]`, without gradient.
    """
    halves = sizes / 2
    asked = jnp.where(halves > floor * (1 - times) * (1 + 1e-3), halves, 0.0)  # slack for rounding
    first = jump(points, times, asked)
    second = jump(points + halves * first, times + halves, asked)
    return jax.lax.stop_gradient((first + second) / 2)


def average_velocity_target(
    average: AverageVelocity, path: Path, begins: jax.Array, times: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The MeanFlow identity, u = v − (t − r)(v·∂ₓu + ∂ₜu) (https://arxiv.org/abs/2505.13447), by one `jax.jvp`.

    Args:
        average: u, with the parameters to train.
        path: Points `[B, A]` at `times` and the conditional velocities v there.
        begins: r `[B, 1]`.
        times: t `[B, 1]`, r ≤ t.

    Returns:
        u(x_t, r, t) `[B, A]`, and its target `[B, A]` without gradient; the target is v where r = t.
    """
    chex.assert_equal_shape([begins, times])
    tangents = (path.velocities, jnp.zeros_like(begins), jnp.ones_like(times))
    averages, derivatives = jax.jvp(average, (path.points, begins, times), tangents)
    return averages, jax.lax.stop_gradient(path.velocities - (times - begins) * derivatives)


def lagrangian_target(
    jump: Jumps, points: jax.Array, begins: jax.Array, ends: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The velocity where a jump lands, and how fast that place moves with the jump's end, d/dt X(x, r, t).

    Both are `[B, A]`, the second without gradient, and equal where jumps follow the velocities.
    """

    def landing(ends: jax.Array) -> jax.Array:
        return points + (ends - begins) * jump(points, begins, ends)

    landed, speeds = jax.jvp(landing, (ends,), (jnp.ones_like(ends),))
    return jump(jax.lax.stop_gradient(landed), ends, ends), jax.lax.stop_gradient(speeds)


def progressive_target(
    jump: Jumps, points: jax.Array, begins: jax.Array, ends: jax.Array, shares: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A jump and the mean of the two that it is made of, the first over a share of it `[B, 1]`, without gradient."""
    middles = begins + shares * (ends - begins)
    first = jump(points, begins, middles)
    second = jump(points + (middles - begins) * first, middles, ends)
    return jump(points, begins, ends), jax.lax.stop_gradient(shares * first + (1 - shares) * second)


# -------------------------------------------------------------------------------------------------- time samplers


def uniform_times(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Times uniform over [0, 1)."""
    return jax.random.uniform(key, shape)


def early_times(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Squares of uniform times: more of them near 0 (SSCP's released code)."""
    return jax.random.uniform(key, shape) ** 2


def logit_normal_times(key: jax.Array, shape: tuple[int, ...], mean: float = -0.4, std: float = 1.0) -> jax.Array:
    """Times whose logit is normal; the defaults are MeanFlow's and OFQL's."""
    return jax.nn.sigmoid(mean + std * jax.random.normal(key, shape))


TIME_SAMPLERS: dict[str, TimeSampler] = {"logit_normal": logit_normal_times, "uniform": uniform_times}


def interval_times(
    key: jax.Array, shape: tuple[int, ...], flow_ratio: Scalar, sampler: TimeSampler
) -> tuple[jax.Array, jax.Array]:
    """Draws pairs r ≤ t, the two in order; in a share of the rows r := t, where a mean velocity is a velocity.

    Args:
        key: Random key.
        shape: Of either, one number for each of B rows, `[B, 1]` or with more axes of length 1.
        flow_ratio: Share of rows with r = t, `[]`; as many rows from the first on, rounded up.
        sampler: Distribution of both before they are put in order.

    Returns:
        r and t, of that shape each.
    """
    draws = sampler(key, (2, *shape))
    times = draws.max(axis=0)
    equal = jnp.arange(shape[0]).reshape(shape) < flow_ratio * shape[0]
    return jnp.where(equal, times, draws.min(axis=0)), times


def shrunk(begins: jax.Array, ends: jax.Array, share: Scalar) -> tuple[jax.Array, jax.Array]:
    """Intervals `[..., 1]` shrunk around their middles to a share of their lengths, 0 to 1."""
    middles, halves = (begins + ends) / 2, share * (ends - begins) / 2
    return middles - halves, middles + halves
