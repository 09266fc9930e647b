"""Errors and weights of single rows that agents share; means, masks and sums belong to the agents."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import chex
import jax
import jax.numpy as jnp

from flowrl.config import MOST_COUNT, config, static, traced
from flowrl.train_state import Batch, Loss, Params, Scalar, TrainState

GoalValueFn = Callable[[Any, Params, jax.Array, jax.Array], jax.Array]
"""`(nets, params, s [B, D], g [B, G]) -> V(s, g) [2, B]` of twin goal-conditioned value networks."""


def expectile_weight(advantages: jax.Array, expectile: Scalar) -> jax.Array:
    """Weight of a squared error in expectile regression, |κ − 1{adv < 0}| (https://arxiv.org/abs/2110.06169, eq. 5).

    Args:
        advantages: Any shape `[...]`.
        expectile: κ, `[]`.

    Returns:
        Weights `[...]` in [0, 1].
    """
    return jnp.abs(expectile - (advantages < 0))


def expectile_errors(errors: jax.Array, expectile: Scalar) -> jax.Array:
    """Errors of expectile regression, |κ − 1{u < 0}| u² (IQL, https://arxiv.org/abs/2110.06169, eq. 5): u `[...]`."""
    return expectile_weight(errors, expectile) * errors**2


def quantile_errors(errors: jax.Array, quantile: Scalar) -> jax.Array:
    """Errors of quantile regression, |κ − 1{u < 0}| |u| (IDQL, https://arxiv.org/abs/2304.10573): u `[...]`."""
    return expectile_weight(errors, quantile) * jnp.abs(errors)


def exponential_errors(errors: jax.Array, temperature: Scalar) -> jax.Array:
    """Errors whose slope is that of exp(αu) − αu, with exp(αu) ≤ 6 (IDQL's code): u `[...]`."""
    return jax.lax.stop_gradient(jnp.exp(jnp.minimum(temperature * errors, jnp.log(6.0))) - 1) * errors


def awr_weight(advantages: jax.Array, alpha: Scalar, maximum: float = 100.0) -> jax.Array:
    """Weight of advantage-weighted regression, min(exp(α·adv), maximum), without gradient.

    Args:
        advantages: Any shape `[...]`.
        alpha: Inverse temperature α, `[]`.
        maximum: Largest weight.

    Returns:
        Weights `[...]`.
    """
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(alpha * advantages), maximum))


def gaussian_log_prob(values: jax.Array, means: jax.Array, log_stds: jax.Array, valid: Scalar = 1.0) -> jax.Array:
    """Log density of Gaussians, summed over the last axis: values, μ and log σ `[..., A]` to `[...]`.

    Of the values those count where `valid` `[..., A]` is 1, not 0.
    """
    chex.assert_equal_shape([values, means])
    squares = ((values - means) / jnp.exp(log_stds)) ** 2
    return -0.5 * jnp.sum(valid * (squares + 2 * log_stds + jnp.log(2 * jnp.pi)), axis=-1)


@config
class MirrorWeights:
    """How Q weighs actions in policy mirror descent, exp(clip(norm Q)/α), norm by running statistics.

    The statistics are the mean and deviation of Q that follow those of batches, 0 and 1 at first
    (https://arxiv.org/abs/2502.00361, eq. 12 and its code).
    """

    standardization: str = static(
        "mean_only", "Q - mean / std as released, or the (Q - mean) / std meant.", choices=("mean_only", "full")
    )
    clip: float = traced(3.0, "Bound of the standardised Q.")
    rate: float = traced(0.001, "Rate at which the statistics of Q follow those of a batch.", high=1.0)

    def __call__(self, statistics: Params, q: jax.Array, temperature: Scalar) -> tuple[jax.Array, jax.Array]:
        """Returns the weights `[B]`, without gradient, and the share of rows where the clip holds `[]`."""
        mean, std = statistics["q_mean"], statistics["q_std"]
        standard = (q - mean) / std if self.standardization == "full" else q - mean / std
        weights = jnp.exp(jnp.clip(standard, -self.clip, self.clip) / temperature)
        return jax.lax.stop_gradient(weights), jnp.mean(jnp.abs(standard) >= self.clip)

    def follow(self, statistics: Params, q: jax.Array) -> dict[str, jax.Array]:
        """Returns the statistics after values `[B]`."""
        news = {"q_mean": q.mean(), "q_std": q.std()}
        return {name: statistics[name] + self.rate * (new - statistics[name]) for name, new in news.items()}


def unit_gaussian_log_prob(values: jax.Array, means: jax.Array, valid: Scalar = 1.0) -> jax.Array:
    """Log density of a Gaussian of unit standard deviation, summed over the last axis.

    Args:
        values: `[..., A]`.
        means: `[..., A]`.
        valid: Which of the values count, 1 or 0, `[..., A]`.

    Returns:
        `[...]`.
    """
    return gaussian_log_prob(values, means, jnp.zeros_like(means), valid)


def mse(predictions: jax.Array, targets: jax.Array, valid: Scalar = 1.0) -> jax.Array:
    """Squared error of each row, averaged over all else: `[B, ...]` and `[B, ...]` to `[B]`.

    Entries where `valid`, of the same shape, is 0 have no error, but count in the average.
    """
    chex.assert_equal_shape([predictions, targets])
    return jnp.mean(valid * (predictions - targets) ** 2, axis=tuple(range(1, predictions.ndim)))


def adaptive(errors: jax.Array, power: Scalar, constant: Scalar) -> jax.Array:
    """Errors `[...]` weighted by sg(1 / (error + c)^p) (MeanFlow, https://arxiv.org/abs/2505.13447, eq. 22)."""
    return errors * (jax.lax.stop_gradient(errors) + constant) ** -power


Memory = dict[str, jax.Array]
"""The `weight` `[]` of a loss, its last `losses` `[window]`, filled from the end, and their `count` `[]`."""


@config
class Balance:
    """How the weight of a loss follows what the loss was before (MeanFlowQL, https://arxiv.org/abs/2511.13035).

    Updates count from 1.
    """

    interval: int = traced(2000, "Updates between moves of the weight, at which losses are remembered; 0 keeps it.")
    window: int = static(20, "Losses that are remembered.")
    factor: float = traced(5.0, "How many times above or below their mean a loss moves the weight.", low=1.0)
    up: float = traced(1.2, "What a large loss multiplies it by.", low=1.0)
    down: float = traced(0.8, "What a small loss multiplies it by.", high=1.0)
    reach: float = traced(10.0, "How many times above or below its first value it may be.", low=1.0)

    def start(self, weight: Scalar) -> Memory:
        """Returns what is remembered at first."""
        return {"weight": jnp.array(weight), "losses": jnp.zeros(self.window), "count": jnp.zeros(())}

    def due(self, update: Scalar) -> jax.Array:
        """Whether an update is one of those: bool `[]`."""
        interval = jnp.asarray(self.interval)
        return (interval > 0) & (update % jnp.maximum(interval, 1) == 0)

    def weight(self, memory: Memory, first: Scalar, loss: jax.Array, update: Scalar, since: Scalar) -> jax.Array:
        """Returns the weight `[]` in an update, whose loss counts already; before the update `since` it stays.

        As in the released code the mean is over the first entries of a memory that is filled from its end. So it is 0
        until half of it is filled, and the weight rises.
        """
        losses, count, kept = memory["losses"], memory["count"], memory["weight"]
        mean = jnp.sum(losses * (jnp.arange(self.window) < count)) / jnp.maximum(count, 1)
        moving = self.due(update) & (update >= since) & (count >= 2)
        raised = jnp.where(moving & (loss > self.factor * mean), jnp.minimum(self.up * kept, self.reach * first), kept)
        lowered = jnp.maximum(self.down * raised, first / self.reach)
        return jnp.where(moving & (loss < mean / self.factor), lowered, raised)

    def remember(self, memory: Memory, weight: jax.Array, loss: jax.Array, update: Scalar) -> Memory:
        """Returns what is remembered after an update."""
        due, losses, count = self.due(update), memory["losses"], memory["count"]
        newer = jnp.where(due, jnp.roll(losses, -1).at[-1].set(loss), losses)
        return {"weight": weight, "losses": newer, "count": jnp.where(due, jnp.minimum(count + 1, self.window), count)}


@config
class GoalValue:
    """Choices about a goal-conditioned value function; the defaults are OGBench's."""

    expectile: float = traced(0.7, "Expectile of the value loss; 0.5 is the mean.", high=1.0)
    target_rate: float = traced(0.005, "Polyak rate of the target value network.", high=1.0)
    horizon: int = static(1, "Steps after which values bootstrap, fewer where the goal or the episode's end is nearer.")
    steps: int = static(
        0, "Updates in which values learn alone; policies learn after them, on values that stay. 0: all learn at once.",
        low=0, high=MOST_COUNT,
    )  # fmt: skip

    def note(self, prefix: str) -> str:
        """Says when policies begin."""
        if not self.steps:
            return ""
        until = f"until update {self.steps:,} ({prefix}steps)"
        return f"{until} values learn alone: evaluations say nothing yet, and updates take less time than later"

    def refusal(self, prefix: str, **trains: bool) -> str:
        """Says which of an agent's switches, by which policies train what values read, cannot be where values stay."""
        on = " ".join(f"{prefix}{name}=False" for name, told in trains.items() if told)
        kept = f"{prefix}value.steps={self.steps} keeps the representation from policies"
        return f"{kept}; give {on}, or leave the first out" if self.steps and on else ""


class HasGoalValue(Protocol):
    """A configuration of an agent that learns such a value."""

    @property
    def value(self) -> GoalValue:
        """The choices about it."""


V = TypeVar("V", bound=HasGoalValue)


def goal_value_loss(
    value: GoalValueFn, nets: Any, params: Params, state: TrainState[V], batch: Batch, key: jax.Array
) -> Loss:
    """Action-free expectile regression of twin goal-conditioned values (HIQL, https://arxiv.org/abs/2307.11949, eq. 4).

    With s' one step ahead, or `horizon` of them, q = r + γ m min V̄(s', g) and adv = q − mean V̄(s, g), the loss is
    Σ_i mean |κ − 1{adv < 0}| · (r + γ m V̄_i(s', g) − V_i(s, g))². Only the trained parameters receive gradients; V̄ is
    of the networks' slow copies, as far as they have any.

    Args:
        value: The twin value function.
        nets: Its networks.
        params: Parameters to differentiate.
        state: Gives the targets.
        batch: `observations`, `value_next_observations`, `value_goals`, `rewards` and `discounts`.
        key: Unused; the loss is deterministic.

    Returns:
        The loss `[]`, and metrics.
    """
    g, slow = batch["value_goals"], {**state.params, **state.target_params}
    v = value(nets, params, batch["observations"], g)
    target_v = value(nets, slow, batch["observations"], g)
    next_v = value(nets, slow, batch["value_next_observations"], g)
    chex.assert_equal_shape([v, target_v, next_v])
    chex.assert_equal_shape([v[0], batch["rewards"], batch["discounts"]])

    advantages = batch["rewards"] + batch["discounts"] * next_v.min(axis=0) - target_v.mean(axis=0)
    errors = batch["rewards"] + batch["discounts"] * next_v - v
    loss = (expectile_weight(advantages, state.config.value.expectile) * errors**2).mean(axis=-1).sum()
    return loss, {
        "value/loss": loss,
        "value/v_mean": v.mean(),
        "value/v_max": v.max(),
        "value/v_min": v.min(),
        "value/advantage": advantages.mean(),
    }


def value_params(state: TrainState[V]) -> Params:
    """Returns the trained parameters, but of the goal representation the copy that the values have.

    It is the same while both learn; where values stay, policies train theirs further (`GoalValue.steps`).
    """
    return {**state.params, "goal_rep": state.target_params["goal_rep"]}


def goal_advantage(
    value: GoalValueFn, nets: Any, params: Params, s: jax.Array, later: jax.Array, g: jax.Array
) -> jax.Array:
    """V(later, g) − V(s, g) `[B]`, each the mean of twin values."""
    return value(nets, params, later, g).mean(axis=0) - value(nets, params, s, g).mean(axis=0)


def multiplier(params: Params, name: str = "temperature") -> jax.Array:
    """A learnt positive multiplier `[]`, such as the entropy temperature α; its logarithm is what is trained."""
    return jnp.exp(params[name]["log"])


def temperature_loss(params: Params, log_probs: jax.Array, target: Scalar, name: str = "temperature") -> jax.Array:
    """α · (H − H̄), H = −E log π held constant (SAC, https://arxiv.org/abs/1812.05905, eq. 18, as in OGBench's code).

    Args:
        params: Their entry `name` holds log α.
        log_probs: log π(a | s) `[B]`.
        target: The entropy H̄ `[]` that α aims at.
        name: Whose multiplier α is.
    """
    return multiplier(params, name) * jax.lax.stop_gradient(-log_probs.mean() - target)


def q_size(q: jax.Array) -> jax.Array:
    """Mean size of what critics agree on, sg(mean |mean Q|), by which FQL's code divides a policy's Q: `[heads, B]`."""
    return jax.lax.stop_gradient(jnp.maximum(jnp.abs(q.mean(axis=0)).mean(), 1e-8))


def relative(q: jax.Array, constant: float = 0.0) -> jax.Array:
    """Mean Q in units of its size, mean Q / sg(mean |Q| + c) (TD3+BC, https://arxiv.org/abs/2106.06860): `[B]`."""
    return q.mean() / jax.lax.stop_gradient(jnp.abs(q).mean() + constant)


def coin_q(q: jax.Array, sizes: jax.Array, key: jax.Array) -> jax.Array:
    """Loss of a policy by two critics, −mean Q_i / sg(mean |Q_j|), where a coin says which one i is (DQL's code).

    Args:
        q: Of the policy's actions `[2, B]`.
        sizes: Values whose size divides `[2, B]`; `q`, or with its heads swapped `q[::-1]` for one and the same head.
        key: Random key.

    Returns:
        `[]`.
    """
    chex.assert_equal_shape([q, sizes])
    i = jax.random.bernoulli(key).astype(jnp.int32)
    return -q[i].mean() / jax.lax.stop_gradient(jnp.abs(sizes[1 - i]).mean() + 1e-8)


# ------------------------------------------------------------------------------------------ contrasts and distances


def contrastive_errors(logits: jax.Array) -> jax.Array:
    """Cross-entropy of telling each row's own goal, on the diagonal, from those of the others.

    That is binary noise-contrastive estimation (CRL, https://arxiv.org/abs/2206.07568): f(sᵢ, aᵢ, gⱼ) `[..., B, B]` to
    errors of the same shape.
    """
    chex.assert_equal(*logits.shape[-2:])
    return jax.nn.softplus(logits) - jnp.eye(logits.shape[-1], dtype=logits.dtype) * logits


def iqe(x: jax.Array, y: jax.Array, mean_share: Scalar, size: int = 8) -> jax.Array:
    """Interval quasimetric embedding (https://arxiv.org/abs/2211.15120): how far it is from x to y.

    In each group of `size` coordinates the length that the intervals [xᵢ, yᵢ] with xᵢ < yᵢ cover together.

    Args:
        x: Latents `[..., L]`, L a multiple of the groups' size.
        y: Latents `[..., L]`.
        mean_share: Share of the mean over groups `[]`; that of the largest group is the rest.
        size: Coordinates of a group.

    Returns:
        `[...]`, at least 0, and 0 from x to x.
    """
    starts, ends = (z.reshape(*z.shape[:-1], -1, size) for z in jnp.broadcast_arrays(x, y))
    order = jnp.argsort(starts, axis=-1)
    starts, ends = (jnp.take_along_axis(z, order, axis=-1) for z in (starts, ends))
    # What an interval adds to those that begin before it: nothing where it is empty, or ends before one of them.
    reach = jax.lax.cummax(jnp.concatenate([starts[..., :1], ends[..., :-1]], axis=-1), axis=ends.ndim - 1)
    covered = jnp.sum(jax.nn.relu(ends - jnp.maximum(starts, reach)), axis=-1)
    return mean_share * covered.mean(axis=-1) + (1 - mean_share) * covered.max(axis=-1)


def mrn(x: jax.Array, y: jax.Array) -> jax.Array:
    """Metric residual network (https://arxiv.org/abs/2208.08133): how far it is from x to y, each `[..., L]`: `[...]`.

    The Euclidean distance of the first half of coordinates, and the most that x exceeds y by in one of the others.
    """
    (x, x_rest), (y, y_rest) = (jnp.split(z, 2, axis=-1) for z in (x, y))
    symmetric = jnp.sqrt(jnp.maximum(jnp.sum((x - y) ** 2, axis=-1), 1e-12))  # with a slope of 0 where they are equal
    return symmetric + jax.nn.relu(jnp.max(x_rest - y_rest, axis=-1))
