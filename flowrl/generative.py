"""Generative models of actions: each a record of its choices with the errors of its rows, and its samples.

A model is used through a field, the network with everything else given: `field = partial(nets.actor, params, s)`. Its
points are `[..., A]` and its times `[..., 1]`, one for each name in the model's `times`. `errors(field, a, key, valid)`
says how far the field is from the data on each row, `[B, A]` to `[B]`, or whole segments `[B, H, A]`, each at one time;
where `valid`, of the shape of the data, is 0, there is no error. `sample(field, z, key)` makes actions of unit noise,
which may leave [−1, 1].
"""

from collections.abc import Callable
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp

from flowrl.config import config, static, traced
from flowrl.losses import adaptive, mse
from flowrl.paths import (
    TIME_SAMPLERS,
    AverageVelocity,
    Jumps,
    Velocity,
    average_velocity_target,
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


class Model(Protocol):
    """What all models here have."""

    times: ClassVar[tuple[str, ...]]

    def deviation(self) -> float:
        """Deviation of the noise that data are mixed with where most of it is."""

    def errors(self, field: Field, a: jax.Array, key: jax.Array, valid: Scalar = 1.0) -> jax.Array:
        """Errors of data `[B, A]`: `[B]`."""

    def sample(self, field: Field, z: jax.Array, key: jax.Array) -> jax.Array:
        """Actions `[..., A]` of noise `[..., A]`, with further noise from the key if the model needs some."""


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

    times: ClassVar[tuple[str, ...]] = ("begin", "end")

    steps: int = static(1, "Steps per action.")
    distillation: str = static(
        "eulerian", "How longer intervals are learnt from shorter ones.",
        choices=("eulerian", "lagrangian", "progressive"),
    )  # fmt: skip
    warmup: int = traced(5000, "Updates in which velocities alone are learnt.")
    grown: int = traced(50_000, "Updates after which intervals have any length.", low=1)

    def deviation(self) -> float:
        """Unit noise is one end of every path."""
        return 1.0

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
