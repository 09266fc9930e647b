"""Per-sample losses and weights that agents share."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from flowrl.networks import Network
from flowrl.train_state import Batch, Metrics, Params, TrainState

GoalValueFn = Callable[[Params, jax.Array, jax.Array], jax.Array]
"""`(params, observations [B, D], goals [B, G]) -> values [2, B]` of twin goal-conditioned value networks."""


def expectile_weight(advantages: jax.Array, expectile: jax.Array) -> jax.Array:
    """Weight of a squared error in expectile regression, |κ − 1{adv < 0}| (https://arxiv.org/abs/2110.06169, eq. 5).

    Args:
        advantages: Any shape `[...]`.
        expectile: κ, `[]`.

    Returns:
        Weights `[...]` in [0, 1].
    """
    return jnp.abs(expectile - (advantages < 0))


def awr_weight(advantages: jax.Array, alpha: jax.Array, maximum: float = 100.0) -> jax.Array:
    """Weight of advantage-weighted regression, min(exp(α·adv), maximum), without gradient.

    Args:
        advantages: Any shape `[...]`.
        alpha: Inverse temperature α, `[]`.
        maximum: Largest weight.

    Returns:
        Weights `[...]`.
    """
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(alpha * advantages), maximum))


def unit_gaussian_log_prob(values: jax.Array, means: jax.Array) -> jax.Array:
    """Log density of a Gaussian of unit standard deviation, summed over the last axis.

    Args:
        values: `[..., A]`.
        means: `[..., A]`.

    Returns:
        `[...]`.
    """
    chex.assert_equal_shape([values, means])
    return -0.5 * jnp.sum((values - means) ** 2 + jnp.log(2 * jnp.pi), axis=-1)


def mse(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Squared error averaged over the last axis: `[..., A]` and `[..., A]` to `[...]`."""
    chex.assert_equal_shape([predictions, targets])
    return jnp.mean((predictions - targets) ** 2, axis=-1)


def goal_value_loss(value: GoalValueFn, params: Params, state: TrainState, batch: Batch) -> tuple[jax.Array, Metrics]:
    """Action-free expectile regression of twin goal-conditioned values (HIQL, https://arxiv.org/abs/2307.11949, eq. 4).

    With q = r + γ m min V̄(s', g) and adv = q − mean V̄(s, g), the loss is
    Σ_i mean |κ − 1{adv < 0}| · (r + γ m V̄_i(s', g) − V_i(s, g))². Only the trained parameters receive gradients; the
    targets differ from them in the entry `value` alone, so a goal representation has no slow copy.

    Args:
        value: The twin value function.
        params: Parameters to differentiate.
        state: Gives the targets, `discount` and `expectile`.
        batch: `observations`, `next_observations`, `value_goals`, `rewards` and `masks`.

    Returns:
        The loss `[]` and its metrics.
    """
    hyper, goals = state.hyper, batch["value_goals"]
    target_params = {**state.params, "value": state.target_params["value"]}
    values = value(params, batch["observations"], goals)
    target_values = value(target_params, batch["observations"], goals)
    next_values = value(target_params, batch["next_observations"], goals)
    chex.assert_equal_shape([values, target_values, next_values])
    chex.assert_equal_shape([values[0], batch["rewards"], batch["masks"]])

    discounts = hyper["discount"] * batch["masks"]
    advantages = batch["rewards"] + discounts * next_values.min(axis=0) - target_values.mean(axis=0)
    errors = batch["rewards"] + discounts * next_values - values
    loss = (expectile_weight(advantages, hyper["expectile"]) * errors**2).mean(axis=-1).sum()
    return loss, {
        "value/loss": loss,
        "value/v_mean": values.mean(),
        "value/v_max": values.max(),
        "value/v_min": values.min(),
        "value/advantage": advantages.mean(),
    }


def td_target(batch: Batch, next_values: jax.Array, discount: jax.Array) -> jax.Array:
    """One-step target r + γ m Q̄(s', a'), without gradient.

    Args:
        batch: `rewards` and `masks` `[B]`; the mask is 0 where the episode terminated.
        next_values: Q̄(s', a') `[B]`.
        discount: γ, `[]`.

    Returns:
        `[B]`.
    """
    chex.assert_equal_shape([batch["rewards"], batch["masks"], next_values])
    return jax.lax.stop_gradient(batch["rewards"] + discount * batch["masks"] * next_values)


def aggregate(values: jax.Array, q_agg: str) -> jax.Array:
    """Combines critics' values `[2, B]` into `[B]`: their `min` or their `mean`."""
    return values.min(axis=0) if q_agg == "min" else values.mean(axis=0)


def critic_loss(
    critic: Network, params: Params, state: TrainState, batch: Batch, next_values: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Mean squared TD error of twin critics against one target, over critics and batch.

    Args:
        critic: Maps `[B, D]` and `[B, A]` to `[2, B]`.
        params: Parameters to differentiate, with an entry `critic`.
        state: Gives `discount`.
        batch: `observations`, `actions`, `rewards` and `masks`.
        next_values: Q̄(s', a') `[B]`.

    Returns:
        The loss `[]` and its metrics.
    """
    targets = td_target(batch, next_values, state.hyper["discount"])
    values = critic.apply(params["critic"], batch["observations"], batch["actions"])
    chex.assert_equal_shape([values[0], targets])
    loss = jnp.mean((values - targets) ** 2)
    return loss, {
        "critic/loss": loss,
        "critic/q_mean": values.mean(),
        "critic/q_max": values.max(),
        "critic/q_min": values.min(),
    }


def temperature(params: Params) -> jax.Array:
    """Entropy temperature α `[]`, which agents learn as its logarithm, the network `temperature`."""
    return jnp.exp(params["temperature"]["log"])


def mean_q_loss(values: jax.Array, normalize: bool) -> jax.Array:
    """−mean Q of the policy's actions, Q being the mean of the critics; or −mean Q / sg(mean |Q|), as in FQL's code.

    Args:
        values: The critics' values `[2, B]`.
        normalize: Whether to divide by the mean size of what the critics agree on.

    Returns:
        `[]`.
    """
    if not normalize:
        return -values.mean()
    size = jnp.abs(values.mean(axis=0)).mean()
    return -values.mean() / jax.lax.stop_gradient(jnp.maximum(size, 1e-8))


def normalized_q_loss(values: jax.Array, scale_values: jax.Array) -> jax.Array:
    """−mean Q / sg(mean |Q'|): a policy objective whose size does not depend on that of the rewards (TD3+BC, eq. 5).

    Args:
        values: Q of the policy's actions, any shape.
        scale_values: Q' that the size is taken from, any shape.

    Returns:
        `[]`.
    """
    return -values.mean() / jax.lax.stop_gradient(jnp.abs(scale_values).mean() + 1e-8)
