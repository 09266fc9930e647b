"""Each single-task agent's losses written out in numpy, for tiny networks.

A reference differentiates nothing: `params` are the parameters under differentiation, and whatever the papers hold
constant is read from `Case.state`, so that finite differences of a reference are the gradients that the stop-gradients
leave. Noise and times are drawn from the same keys as the agents'.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from small_agents import A, B, D
from stub_agents import critics, field

from flowrl.config import flatten, values
from flowrl.train_state import Batch, Params, TrainState

LEVELS = 7


# --- references ---


class Case:
    """What a reference holds constant: the state, the batch, the settings and one update's key, in numpy."""

    def __init__(self, config: Any, state: TrainState, batch: Batch, key: jax.Array) -> None:
        self.config, self.key = config, key
        self.params, self.slow = (jax.tree.map(np.asarray, tree) for tree in (state.params, state.target_params))
        self.batch = {name: np.asarray(array) for name, array in batch.items()}
        told = {name: value for name, value in values(config).items() if isinstance(value, (int, float))}
        traced = {entry.name: entry.value for entry in flatten(state.config) if entry.traced}
        self.hyper = {name: float(value) for name, value in (told | traced).items()}

    def normal(self, key: jax.Array, *shape: int) -> np.ndarray:
        return np.asarray(jax.random.normal(key, shape or (B, A)))

    def td_loss(self, params: Params, next_values: np.ndarray) -> np.ndarray:
        """Mean over rows and heads of (r + γ m Q̄ − Q_i)²."""
        s, a, r, m = (self.batch[name] for name in ("observations", "actions", "rewards", "masks"))
        total = 0.0
        for j in range(B):
            bootstrap = next_values[j] if m[j] == 1 else 0.0
            for value in critics(np, params["critic"], s[j], a[j]):
                total += (r[j] + self.hyper["discount"] * bootstrap - value) ** 2
        return total / (2 * B)


Reference = Callable[[Params], dict[str, Any]]
"""`params -> metrics`; the sum of those named `critic/loss` and `actor/loss` is what one step descends."""


def times_like(points: np.ndarray, value: float) -> np.ndarray:
    return np.full((*points.shape[:-1], 1), value)


def combined(case: Case, values: np.ndarray) -> np.ndarray:
    """Both critics' values `[2, B]` as one `[B]`."""
    return np.minimum(*values) if case.config.critic.aggregate == "min" else (values[0] + values[1]) / 2


def sscp_reference(case: Case) -> Reference:
    critic_key, actor_key = jax.random.split(case.key)
    noise_key, time_key, other_key = jax.random.split(actor_key, 3)
    next_noise, noise = case.normal(critic_key), case.normal(noise_key)
    again = case.normal(jax.random.fold_in(other_key, 1))
    tau = np.asarray(jax.random.uniform(time_key, (B, 1))) ** 2
    levels = np.asarray(jax.random.randint(other_key, (B, 1), 0, LEVELS))
    s, a, after, hyper = (*(case.batch[n] for n in ("observations", "actions", "next_observations")), case.hyper)

    def jump(params: Any, *parts: Any) -> Any:
        return field(np, params, *parts)

    x = (1 - tau) * noise + tau * a
    zeros, ones = times_like(x, 0), times_like(x, 1)
    next_actions = np.clip(next_noise + jump(case.slow["actor"], after, next_noise, zeros, ones), -1, 1)
    next_values = combined(case, critics(np, case.slow["critic"], after, next_actions))

    def half_steps() -> tuple[np.ndarray, np.ndarray]:
        sizes, targets = (1 - tau) / 2.0**levels, np.zeros((B, A))
        for j in range(B):
            half = sizes[j] / 2
            asked = half if levels[j] < LEVELS - 1 else np.zeros(1)
            one = jump(case.slow["actor"], s[j], x[j], tau[j], asked)
            other = jump(case.slow["actor"], s[j], x[j] + half * one, tau[j] + half, asked)
            targets[j] = (one + other) / 2
        return sizes, targets

    def values(params: Params) -> np.ndarray:
        if case.config.q_sample == "completion":
            actions = x + (1 - tau) * jump(params["actor"], s, x, tau, 1 - tau)
        else:
            actions = again + jump(params["actor"], s, again, zeros, ones)
        return critics(np, case.params["critic"], s, np.clip(actions, -1, 1))

    def metrics(params: Params) -> dict[str, Any]:
        flow_loss = ((jump(params["actor"], s, x, tau, zeros) - (a - noise)) ** 2).mean()
        if case.config.completion_target == "data":
            completion_loss = ((x + (1 - tau) * jump(params["actor"], s, x, tau, 1 - tau) - a) ** 2).mean()
        else:
            sizes, targets = half_steps()
            completion_loss = ((jump(params["actor"], s, x, tau, sizes) - targets) ** 2).mean()
        q_loss = -values(params).mean() / np.abs((values(case.params)[0] + values(case.params)[1]) / 2).mean()
        weights = hyper["flow_alpha"], hyper["completion_alpha"], hyper["q_alpha"]
        return {
            "critic/loss": case.td_loss(params, next_values),
            "actor/flow_loss": flow_loss,
            "actor/completion_loss": completion_loss,
            "actor/q_loss": q_loss,
            "actor/loss": np.dot(weights, [flow_loss, completion_loss, q_loss]),
        }

    return metrics


def mean_flow_target(params: Any, s: np.ndarray, x: np.ndarray, r: Any, t: Any, v: np.ndarray) -> np.ndarray:
    """v − (t − r)(v·∂ₓu + ∂ₜu) of `field`, whose inputs are [s, x, r, t], by hand."""
    kernel = params["kernel"]
    slope = 1.5 * (1 - (field(np, params, s, x, r, t) / 1.5) ** 2)
    return v - (t - r) * slope * (v @ kernel[D : D + A] + kernel[D + A + 1])


def ofql_reference(case: Case, moved_critic: Any) -> Reference:
    """The actor meets the critics after their step, `moved_critic`."""
    critic_key, actor_key = jax.random.split(case.key)
    flow_key, policy_key, coin_key = jax.random.split(actor_key, 3)
    noise_key, time_key = jax.random.split(flow_key)
    s, a, after, hyper = (*(case.batch[n] for n in ("observations", "actions", "next_observations")), case.hyper)
    draws = case.normal(time_key, 2, B, 1) - 0.4
    times = 1 / (1 + np.exp(-draws))
    if case.config.flow.time_sampler == "uniform":
        times = np.asarray(jax.random.uniform(time_key, (2, B, 1)))
    t, r = np.maximum(*times), np.minimum(*times)
    for j in range(B):
        if j < hyper["flow.flow_ratio"] * B:
            r[j] = t[j]
    noise, policy_noise = case.normal(noise_key), case.normal(policy_key)
    x, v = (1 - t) * a + t * noise, noise - a
    targets = mean_flow_target(case.params["actor"], s, x, r, t, v)
    head = int(jax.random.bernoulli(coin_key))

    def act(params: Any, states: np.ndarray, start: np.ndarray) -> np.ndarray:
        return np.clip(start - field(np, params, states, start, times_like(start, 0), times_like(start, 1)), -1, 1)

    best = np.full((2, B), -np.inf)
    for key in jax.random.split(critic_key, 10 if case.config.max_q_backup else 1):
        proposals = act(case.slow["actor"], after, case.normal(key))
        best = np.maximum(best, critics(np, case.slow["critic"], after, proposals))

    def errors(params: Params) -> np.ndarray:
        return ((field(np, params["actor"], s, x, r, t) - targets) ** 2).mean(axis=-1)

    weights = (errors(case.params) + hyper["flow.adaptive_constant"]) ** -hyper["flow.adaptive_power"]

    def values(params: Params) -> np.ndarray:
        return critics(np, moved_critic, s, act(params["actor"], s, policy_noise))

    scale = values(case.params) if case.config.q_scale == "policy" else critics(np, moved_critic, s, a)

    def metrics(params: Params) -> dict[str, Any]:
        flow_loss = (weights * errors(params)).mean()
        q_loss = -values(params)[head].mean() / np.abs(scale[1 - head]).mean()
        return {
            "critic/loss": 2 * case.td_loss(params, combined(case, best)),  # the sum over heads
            "actor/flow_loss": flow_loss,
            "actor/q_loss": q_loss,
            "actor/loss": flow_loss + hyper["q_alpha"] * q_loss,
        }

    return metrics


def fql_reference(case: Case) -> Reference:
    critic_key, actor_key = jax.random.split(case.key)
    flow_key, policy_key = jax.random.split(actor_key)
    noise_key, time_key = jax.random.split(flow_key)
    s, a, after, hyper = (*(case.batch[n] for n in ("observations", "actions", "next_observations")), case.hyper)
    start, t = case.normal(noise_key), np.asarray(jax.random.uniform(time_key, (B, 1)))
    z = case.normal(policy_key)
    next_actions = np.clip(field(np, case.params["actor"], after, case.normal(critic_key)), -1, 1)
    next_values = critics(np, case.slow["critic"], after, next_actions)
    targets = z
    for i in range(case.config.behaviour.steps):
        velocity = field(np, case.params["flow"], s, targets, times_like(z, i / case.config.behaviour.steps))
        targets = targets + velocity / case.config.behaviour.steps
    targets = np.clip(targets, -1, 1)

    def values(params: Params) -> np.ndarray:
        return critics(np, case.params["critic"], s, np.clip(field(np, params["actor"], s, z), -1, 1))

    def metrics(params: Params) -> dict[str, Any]:
        velocities = field(np, params["flow"], s, (1 - t) * start + t * a, t)
        flow_loss = ((velocities - (a - start)) ** 2).mean()
        distill_loss = ((field(np, params["actor"], s, z) - targets) ** 2).mean()
        q_loss = -values(params).mean()
        if case.config.normalize_q:
            q_loss = q_loss / np.abs((values(case.params)[0] + values(case.params)[1]) / 2).mean()
        return {
            "critic/loss": case.td_loss(params, combined(case, next_values)),
            "actor/flow_loss": flow_loss,
            "actor/distill_loss": distill_loss,
            "actor/q_loss": q_loss,
            "actor/loss": flow_loss + hyper["alpha"] * distill_loss + hyper["q_alpha"] * q_loss,
        }

    return metrics


def bc_reference(case: Case) -> Reference:
    s, a = case.batch["observations"], case.batch["actions"]
    noise_key, time_key = jax.random.split(case.key)
    start, t = case.normal(noise_key), np.asarray(jax.random.uniform(time_key, (B, 1)))

    def metrics(params: Params) -> dict[str, Any]:
        if case.config.distribution == "flow":
            velocities = field(np, params["actor"], s, (1 - t) * start + t * a, t)
            return {"actor/loss": ((velocities - (a - start)) ** 2).mean()}
        squares = (field(np, params["actor"], s) - a) ** 2
        nll = 0.5 * (squares + np.log(2 * np.pi)).sum(axis=-1).mean()
        return {"actor/loss": nll, "actor/mse": squares.mean()}

    return metrics


def reference_of(name: str, case: Case, after: TrainState) -> Reference:
    """The reference of one update; `after` gives OFQL's moved critics, which have a test of their own."""
    if name == "ofql":
        return ofql_reference(case, jax.tree.map(np.asarray, after.params["critic"]))
    return {"sscp": sscp_reference, "fql": fql_reference, "bc": bc_reference}[name](case)


def total(reference: Reference, params: Params) -> float:
    metrics = reference(params)
    return metrics["actor/loss"] + metrics.get("critic/loss", 0.0)


def finite_differences(function: Callable[[Params], float], params: Params, size: float = 1e-6) -> Params:
    """Central differences in every parameter, float64."""
    leaves, tree = jax.tree.flatten(params)
    slopes = [np.zeros(leaf.shape) for leaf in leaves]
    for i, leaf in enumerate(leaves):
        for index in np.ndindex(leaf.shape):
            ends = []
            for sign in (1, -1):
                moved = [leaf.copy() if j == i else other for j, other in enumerate(leaves)]
                moved[i][index] += sign * size
                ends.append(function(jax.tree.unflatten(tree, moved)))
            slopes[i][index] = (ends[0] - ends[1]) / (2 * size)
    return jax.tree.unflatten(tree, slopes)
