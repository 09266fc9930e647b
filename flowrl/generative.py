"""Generative models of actions: each a record of its choices with the errors of its rows, and its samples.

A model is used through a field, the network with everything else given: `field = partial(nets.actor, params, s)`. Its
points are `[..., A]` and its times `[..., 1]`, `times` being their names where a network is built by them.
`errors(field, a, key, valid)` says how far the field is from the data on each row, `[B, A]` to `[B]`, or whole segments
`[B, H, A]`, each at one time; where `valid`, of the shape of the data, is 0, there is no error. `sample(field, z, key)`
makes actions of unit noise, which may leave [−1, 1].
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flowrl.config import config, static, traced
from flowrl.losses import adaptive, mse
from flowrl.paths import (
    TIME_SAMPLERS,
    AverageVelocity,
    Jumps,
    Velocity,
    average_velocity_target,
    bootstrap_target,
    euler,
    interval_times,
    lagrangian_target,
    one_each,
    progressive_target,
    shrunk,
    straight,
    uniform_times,
)
from flowrl.train_state import Scalar

Field = Callable[..., jax.Array]
"""`(points [..., A], times [..., 1], ...) -> [..., A]`."""


@config
class Flow:
    """Flow matching on straight paths, noise at time 0 and data at time 1 (https://arxiv.org/abs/2209.03003)."""

    times: ClassVar[tuple[str, ...]] = ("time",)

    steps: int = static(10, "Euler steps per action.")

    def deviation(self) -> float:
        """Unit noise is one end of every path."""
        return 1.0

    def errors(self, field: Velocity, a: jax.Array, key: jax.Array, valid: Scalar = 1.0) -> jax.Array:
        """‖v(x_t, t) − (a − z)‖² at unit noise z and uniform t, averaged over dimensions: `[B, A]` to `[B]`."""
        noise_key, time_key = jax.random.split(key)
        t = uniform_times(time_key, one_each(a))
        path = straight(jax.random.normal(noise_key, a.shape), a, t)
        return mse(field(path.points, t), path.velocities, valid)

    def sample(self, field: Velocity, z: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Carries noise `[..., A]` to time 1."""
        return euler(field, z, self.steps)

    def actions(self, field: Velocity, z: jax.Array) -> jax.Array:
        """The same, clipped to [−1, 1]."""
        return jnp.clip(self.sample(field, z), -1.0, 1.0)


@config
class MeanFlow:
    """Average velocities between two times, data at time 0 and noise at time 1 (https://arxiv.org/abs/2505.13447)."""

    times: ClassVar[tuple[str, ...]] = ("begin", "time")

    steps: int = static(1, "Steps per action.")
    divide_steps: bool = static(
        True, "Each of several steps takes its share of the path, not all of it, as in FPMD's code for one step."
    )
    time_sampler: str = static("logit_normal", "Distribution of the two times.", choices=("logit_normal", "uniform"))
    flow_ratio: float = traced(0.5, "Share of rows with equal times; 1 is plain flow matching.", high=1.0)
    adaptive_power: float = traced(0.0, "p of the weight 1/(error + c)^p of each row; 0 is off.")
    adaptive_constant: float = traced(1e-3, "c of that weight.", low=1e-12)

    def deviation(self) -> float:
        """Unit noise is one end of every path."""
        return 1.0

    def errors(self, field: AverageVelocity, a: jax.Array, key: jax.Array, valid: Scalar = 1.0) -> jax.Array:
        """Errors against the MeanFlow target, each weighted by sg(1 / (error + c)^p): `[B, A]` to `[B]`."""
        noise_key, time_key = jax.random.split(key)
        begins, times = interval_times(time_key, one_each(a), self.flow_ratio, TIME_SAMPLERS[self.time_sampler])
        path = straight(a, jax.random.normal(noise_key, a.shape), times)
        errors = mse(*average_velocity_target(field, path, begins, times), valid)
        return adaptive(errors, self.adaptive_power, self.adaptive_constant)

    def sample(self, field: AverageVelocity, z: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Carries noise `[..., A]` to time 0."""
        x, share = z, self.steps if self.divide_steps else 1
        for i in range(self.steps):
            t = jnp.full(one_each(z), 1 - i / self.steps)
            x = x - field(x, t - 1 / self.steps, t) / share
        return x


@config
class FlowMap:
    """Mean velocities from any time to any later one, noise at time 0 and data at time 1 (https://arxiv.org/abs/2605.12416).

    Velocities are learnt first; intervals then grow from nothing to any length.
    """

    steps: int = static(1, "Steps per action.")
    distillation: str = static(
        "eulerian", "How longer intervals are learnt from shorter ones.",
        choices=("eulerian", "lagrangian", "progressive"),
    )  # fmt: skip
    warmup: int = traced(5000, "Updates in which velocities alone are learnt.")
    grown: int = traced(50_000, "Updates after which intervals have any length.", low=1)

    def errors(self, field: Jumps, a: jax.Array, key: jax.Array, valid: Scalar = 1.0) -> jax.Array:
        """‖u(x_t, t, t) − (a − z)‖², flow matching where the two times are one: `[B, A]` to `[B]` (eq. 3)."""
        return Flow().errors(lambda x, t: field(x, t, t), a, key, valid)

    def share(self, done: Scalar) -> jax.Array:
        """The share of their length that intervals have at update `done`, the first being 1: `[]` in [0, 1]."""
        return jnp.clip((done - self.warmup) / jnp.maximum(self.grown - self.warmup, 1), 0.0, 1.0)

    def consistency(
        self, field: Jumps, a: jax.Array, key: jax.Array, done: Scalar, valid: Scalar = 1.0
    ) -> jax.Array:  # fmt: skip
        """Errors of intervals against what shorter ones say at update `done`: `[B, A]` to `[B]` (eqs. 4 to 6)."""
        noise_key, time_key, middle_key = jax.random.split(key, 3)
        drawn = interval_times(time_key, one_each(a), 0.0, uniform_times)
        begins, ends = shrunk(*drawn, self.share(done))
        path = straight(jax.random.normal(noise_key, a.shape), a, begins)
        if self.distillation == "lagrangian":
            return mse(*lagrangian_target(field, path.points, begins, ends), valid)
        if self.distillation == "progressive":
            shares = uniform_times(middle_key, one_each(a))
            return mse(*progressive_target(field, path.points, begins, ends, shares), valid)
        # MeanFlow's identity with time the other way round: points are where an interval begins
        return mse(*average_velocity_target(lambda x, t, r: field(x, r, t), path, ends, begins), valid)

    def sample(self, field: Jumps, z: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Carries noise `[..., A]` to time 1."""
        x = z
        for i in range(self.steps):
            begins = jnp.full(one_each(z), i / self.steps)
            x = x + field(x, begins, begins + 1 / self.steps) / self.steps
        return x


# ------------------------------------------------------------------------------------------------ consistency models
# Learnt by their own consistency, so that few steps do: their errors read a slow copy of the field beside it.

EARLIEST, LATEST, DATA_STD = 0.002, 80.0, 0.5
"""Deviations of the noise at both ends of a path, and that of the data."""
RHO = 7.0
"""How much denser the grid of times is near its earliest one."""
FIRST_POINTS, LAST_POINTS = 2, 150
"""Points of the grid at the beginning and at the end of training."""
LAST_STEP = 2.0
"""The time that the last of several steps begins at."""


def boundary(field: Field, points: jax.Array, times: jax.Array) -> jax.Array:
    """The consistency function, f(x, t) = c_skip(t) x + c_out(t) F(x, t), which is x at the earliest time.

    https://arxiv.org/abs/2303.01469, eq. 5 and appendix C.

    Args:
        field: F, the network.
        points: x `[..., A]`.
        times: t `[..., 1]`.
    """
    past = times - EARLIEST
    skip = DATA_STD**2 / (past**2 + DATA_STD**2)
    out = DATA_STD * past / jnp.sqrt(times**2 + DATA_STD**2)
    return skip * points + out * field(points, times)


def grid_points(done: Scalar) -> jax.Array:
    """N `[]`, how many points the grid has after a share `done` `[]` of training (appendix C)."""
    grown = done * (LAST_POINTS**2 - FIRST_POINTS**2) + FIRST_POINTS**2
    return (jnp.ceil(jnp.sqrt(grown) - 1) + 1).astype(jnp.int32)


def grid_times(index: jax.Array, count: Scalar) -> jax.Array:
    """Times with these indices, from 0 to N − 1, in a grid of N that is even in t^(1/ρ) (section 2)."""
    first, last = EARLIEST ** (1 / RHO), LATEST ** (1 / RHO)
    return (first + index / (count - 1) * (last - first)) ** RHO


@config
class Consistency:
    """A consistency model: from any point of a path it goes to the path's data (https://arxiv.org/abs/2303.01469).

    Data are at the earliest time, noise of deviation t is at time t.
    """

    times: ClassVar[tuple[str, ...]] = ("time",)

    steps: int = static(2, "Evaluations per action, at times from 80 down to 2.")

    def errors(
        self, field: Field, slow: Field, a: jax.Array, key: jax.Array, done: Scalar, valid: Scalar = 1.0
    ) -> jax.Array:
        """‖f(a + t' z, t') − sg f̄(a + t z, t)‖² 100/(t' − t) at neighbours t < t' of the grid: `[B, A]` to `[B]`.

        Training in isolation (eq. 10), with the weight of CAC's code.

        Args:
            field: F, to be trained.
            slow: F of the slow copy.
            a: Data `[B, A]`.
            key: Random key.
            done: Share of training that is over `[]`, which sets how fine the grid is.
            valid: Which entries have errors, in the shape of the data.
        """
        noise_key, index_key = jax.random.split(key)
        z, count = jax.random.normal(noise_key, a.shape), grid_points(done)
        index = jax.random.randint(index_key, one_each(a), 0, count - 1)
        near, far = grid_times(index, count), grid_times(index + 1, count)
        targets = jax.lax.stop_gradient(boundary(slow, a + near * z, near))
        errors = mse(boundary(field, a + far * z, far), targets, valid)
        return 100.0 / (far - near).reshape(len(a)) * errors

    def sample(self, field: Field, z: jax.Array, key: jax.Array) -> jax.Array:
        """Carries noise `[..., A]` to data, and again after fresh noise of each time on the way (algorithm 1)."""
        first, *others = np.linspace(LATEST, LAST_STEP, self.steps).tolist()
        points = boundary(field, first * z, jnp.full(one_each(z), first))
        draws = jax.random.normal(key, (len(others), *z.shape))
        for time, draw in zip(others, draws, strict=True):
            noised = points + np.sqrt(time**2 - EARLIEST**2).item() * draw
            points = boundary(field, noised, jnp.full(one_each(z), time))
        return points


# --------------------------------------------------------------------------------------------------- shortcut models


@config
class Shortcut:
    """A shortcut model: mean velocities over steps of 2^−j of a path, j whole numbers (https://arxiv.org/abs/2410.12557).

    Noise is at time 0, data are at time 1. The field takes points, times and levels j `[..., 1]`.
    """

    finest: int = static(3, "Level j of the smallest steps, 2^-j of the path.", high=12)
    level: int = static(0, "Level of the steps that act, 2^level of them per action.", low=0, high=12, acting=True)

    def problem(self, prefix: str) -> str:
        """Says that no steps are smaller than the smallest."""
        told = f"{prefix}level={self.level} is beyond the finest one, {self.finest}"
        return f"{told}; give a smaller one, or a larger {prefix}finest" if self.level > self.finest else ""

    def errors(self, field: Field, a: jax.Array, key: jax.Array, valid: Scalar = 1.0) -> jax.Array:
        """‖s(x_t, t, j) − (a − z)‖² at the finest level and the times where its steps begin: `[B, A]` to `[B]`."""
        noise_key, time_key = jax.random.split(key)
        t = jax.random.randint(time_key, one_each(a), 0, 2**self.finest) / 2**self.finest
        path = straight(jax.random.normal(noise_key, a.shape), a, t)
        return mse(field(path.points, t, jnp.full_like(t, self.finest)), path.velocities, valid)

    def consistency_errors(
        self, field: Field, slow: Field, a: jax.Array, key: jax.Array, valid: Scalar = 1.0
    ) -> jax.Array:
        """‖s(x_t, t, j) − sg s̄ over two half steps‖², levels j below the finest in equal shares: `[B, A]` to `[B]`.

        Rows are drawn independently of each other, so the first ones have the finest of these levels; what is left of a
        batch that does not divide has level 0.
        """
        noise_key, time_key = jax.random.split(key)
        levels = self.finest - 1 - jnp.arange(len(a)) // max(1, len(a) // self.finest)
        levels = jnp.maximum(levels, 0).reshape(one_each(a))
        t = jax.random.randint(time_key, levels.shape, 0, 2**levels) / 2**levels
        points = straight(jax.random.normal(noise_key, a.shape), a, t).points
        targets = bootstrap_target(by_size(slow), points, t, 1 / 2**levels, 0.0)
        return mse(field(points, t, levels), targets, valid)

    def sample(self, field: Field, z: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Carries noise `[..., A]` to time 1 in the steps that act."""
        return in_steps(field, self.level, z)

    def sample_at(self, field: Field, z: jax.Array, level: jax.Array) -> jax.Array:
        """The same in 2^level steps, at a level `[]` that is drawn, one for all rows."""
        return jax.lax.switch(level, [partial(in_steps, field, j) for j in range(self.finest + 1)], z)


def in_steps(field: Field, level: int, z: jax.Array) -> jax.Array:
    """Carries noise `[..., A]` to time 1 in 2^level equal steps."""
    return euler(lambda points, times: field(points, times, jnp.full_like(times, level)), z, 2**level)


def by_size(field: Field) -> Field:
    """Returns a field that takes the sizes of steps, powers of 1/2, in place of their levels."""
    return lambda points, times, sizes: field(points, times, jnp.round(-jnp.log2(sizes)))
