"""The goal-conditioned agents in small, and each of their losses from network outputs and plain arithmetic.

References do without `flowrl.losses`: weights and targets are numpy constants, so that a reference's gradient is also
the gradient that the papers' stop-gradients leave.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from small_agents import GOAL_SPEC, A, B, networks_of, state_with
from small_agents import config_of as told_config

from flowrl import agents
from flowrl.agent import Agent
from flowrl.agents import gc_sscp, gcbc, gcivl
from flowrl.config import values
from flowrl.encoders import represented, represented_value
from flowrl.losses import goal_value_loss
from flowrl.networks import Network
from flowrl.policies import high_actor_loss, low_actor_loss
from flowrl.train_state import Batch, Loss, Params, TrainState

NAMES = ("gcbc", "gcivl", "hiql", "gc_sscp")
REP = 4
# Off the defaults and all different, so that no two can be mistaken for one another.
VALUE = {"discount": 0.9, "value.expectile": 0.8, "value.target_rate": 0.1}
LEVELS = {"low_alpha": 2.0, "high_alpha": 1.3, "rep_dim": REP}
TOLD: dict[str, dict[str, Any]] = {
    "gcbc": {},
    "gcivl": {**VALUE, "alpha": 2.0},
    "hiql": {**VALUE, **LEVELS},
    "gc_sscp": {**VALUE, **LEVELS, "actor_target_rate": 0.3},
}
TRAINED = {
    "gcbc": {"actor"},
    "gcivl": {"value", "actor"},
    "hiql": {"goal_rep", "value", "low_actor", "high_actor"},
    "gc_sscp": {"goal_rep", "value", "actor"},
}
RATES: dict[str, dict[str, float]] = {
    "gcbc": {},
    "gcivl": {"value": 0.1},
    "hiql": {"value": 0.1},
    "gc_sscp": {"goal_rep": 1.0, "value": 0.1, "actor": 0.3},
}
"""The slow copies and their rates."""


def config_of(name: str, told: dict[str, Any] | None = None) -> Any:
    return told_config(name, {"hidden_dims": (16,), "learning_rate": 1e-2, **TOLD[name], **(told or {})})


def agent_of(name: str, told: dict[str, Any] | None = None) -> Agent:
    return agents.build(name, config_of(name, told), GOAL_SPEC)


@functools.cache
def state_of(name: str, seed: int = 0) -> TrainState:
    """A state away from initialisation: no zero biases, and targets unlike the trained networks."""
    shapes = jax.eval_shape(agent_of(name).init, jax.random.key(0), config_of(name)).params
    rng = np.random.default_rng([seed, *name.encode()])

    def filled(networks: Iterable[str]) -> Params:
        one = {network: shapes[network] for network in sorted(networks)}
        return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), one)

    return state_with(config_of(name), filled(shapes), filled(RATES[name]))


def pair_of(seed: int) -> gc_sscp.Pair:
    keys = jax.random.split(jax.random.key(seed))
    return gc_sscp.Pair(jax.random.normal(keys[0], (B, A)), jax.random.normal(keys[1], (B, REP)))


def double(array: Any) -> np.ndarray:
    return np.asarray(array, np.float64)


# --- references ---


@functools.cache
def apply(network: Network) -> Callable[..., Any]:
    """The compiled forward pass of a network, `(params, *inputs)` with the network's own entry as parameters."""
    return jax.jit(network.module.apply)


LOG_2PI = float(np.log(2 * np.pi))


def gaussian_nll(means: Any, values: Any) -> Any:
    return 0.5 * ((values - means) ** 2 + LOG_2PI).sum(axis=-1)


def normalized(x: Any) -> Any:
    return x * (x.shape[-1] / (x**2).sum(axis=-1, keepdims=True)) ** 0.5


class Reference:
    """Network outputs of one state, from which the references are made; `hand` is the batch in numpy."""

    def __init__(self, name: str, state: TrainState, batch: Batch) -> None:
        self.networks, self.state, self.batch = networks_of(agent_of(name)), state, batch
        self.valued = {**state.params, **{k: x for k, x in state.target_params.items() if k == "goal_rep"}}
        """The parameters of the values, with a representation of their own where they have one."""
        self.hand = {field: double(array) for field, array in batch.items()}
        self.hyper = {
            name: float(value) for name, value in values(state.config).items() if isinstance(value, jax.Array)
        }

    def rep(self, params: Params, s: jax.Array, g: jax.Array) -> jax.Array:
        return apply(self.networks.goal_rep)(params["goal_rep"], s, g)

    def values(self, params: Params, value_params: Any, s: str, g: str) -> jax.Array:
        """V_i(s, g), or V_i(s, φ([s; g])) for agents with a representation."""
        s, g = self.batch[s], self.batch[g]
        given = self.rep(params, s, g) if hasattr(self.networks, "goal_rep") else g
        return apply(self.networks.value)(value_params, s, given)

    def mean_value(self, s: str, g: str) -> np.ndarray:
        return double(self.values(self.valued, self.state.params["value"], s, g)).mean(axis=0)

    def weight(self, alpha: str, after: str, goals: str) -> np.ndarray:
        advantages = self.mean_value(after, goals) - self.mean_value("observations", goals)
        return np.exp(np.minimum(self.hyper[alpha] * advantages, np.log(100.0)))

    def value_loss(self, params: Params) -> jax.Array:
        slow = [self.valued, self.state.target_params["value"]]
        now = double(self.values(*slow, "observations", "value_goals"))
        then = double(self.values(*slow, "value_next_observations", "value_goals"))
        gamma, kappa, rewards = self.hyper["discount"], self.hyper["value.expectile"], self.hand["rewards"]
        weights, targets = np.zeros(B), np.zeros((2, B))
        for j, (r, m) in enumerate(zip(rewards, self.hand["masks"], strict=True)):
            advantage = r + gamma * m * min(then[0, j], then[1, j]) - (now[0, j] + now[1, j]) / 2
            weights[j] = kappa if advantage >= 0 else 1 - kappa
            targets[:, j] = r + gamma * m * then[0, j], r + gamma * m * then[1, j]
        online = self.values(params, params["value"], "observations", "value_goals")
        return (weights * (targets[0] - online[0]) ** 2).mean() + (weights * (targets[1] - online[1]) ** 2).mean()


def gcbc_actor(ref: Reference, params: Params) -> jax.Array:
    means = apply(ref.networks.actor)(params["actor"], ref.batch["observations"], ref.batch["actor_goals"])
    return gaussian_nll(means, ref.hand["actions"]).mean()


def gcivl_actor(ref: Reference, params: Params) -> jax.Array:
    weights = ref.weight("alpha", "next_observations", "actor_goals")
    means = apply(ref.networks.actor)(params["actor"], ref.batch["observations"], ref.batch["actor_goals"])
    return (weights * gaussian_nll(means, ref.hand["actions"])).mean()


def hiql_low(ref: Reference, params: Params) -> jax.Array:
    weights = ref.weight("low_alpha", "next_observations", "low_actor_goals")
    reps = double(ref.rep(ref.state.params, ref.batch["observations"], ref.batch["low_actor_goals"]))
    means = apply(ref.networks.low_actor)(
        params["low_actor"], ref.batch["observations"], jnp.asarray(reps, jnp.float32)
    )
    return (weights * gaussian_nll(means, ref.hand["actions"])).mean()


def hiql_high(ref: Reference, params: Params) -> jax.Array:
    weights = ref.weight("high_alpha", "high_actor_targets", "high_actor_goals")
    targets = double(ref.rep(ref.state.params, ref.batch["observations"], ref.batch["high_actor_targets"]))
    means = apply(ref.networks.high_actor)(
        params["high_actor"], ref.batch["observations"], ref.batch["high_actor_goals"]
    )
    return (weights * gaussian_nll(means, targets)).mean()


def jump(ref: Reference, actor: Any, reps: Any, noise: gc_sscp.Pair, t: int, d: int) -> gc_sscp.Pair:
    """The actor's output, added to the noise: an action, then a representation."""
    s, level, depth = ref.batch["observations"], jnp.array([float(t)]), jnp.array([float(d)])
    out = apply(ref.networks.actor)(actor, s, jnp.asarray(reps, jnp.float32), *noise, level, depth)
    return gc_sscp.Pair(noise.a + out[:, :A], noise.rep + out[:, A:])


def sscp_low(ref: Reference, params: Params) -> jax.Array:
    weights = ref.weight("low_alpha", "next_observations", "low_actor_goals")
    s = ref.batch["observations"]
    psi = double(ref.rep(ref.valued, s, ref.batch["low_actor_goals"]))
    target = double(ref.rep(ref.valued, s, ref.batch["next_observations"]))
    hop = jump(ref, params["actor"], psi, pair_of(1), 1, 1)
    errors = ((hop.a - ref.hand["actions"]) ** 2).mean(axis=-1) + ((hop.rep - target) ** 2).mean(axis=-1)
    return (weights * errors).mean()


def sscp_high(ref: Reference, params: Params) -> jax.Array:
    weights = ref.weight("high_alpha", "high_actor_targets", "high_actor_goals")
    s = ref.batch["observations"]
    target = double(ref.rep(ref.valued, s, ref.batch["high_actor_targets"]))
    hop = jump(ref, params["actor"], ref.rep(params, s, ref.batch["high_actor_goals"]), pair_of(1), 0, 1)
    errors = ((hop.a - ref.hand["actions"]) ** 2).mean(axis=-1) + ((hop.rep - target) ** 2).mean(axis=-1)
    return (weights * errors).mean()


def sscp_two_hops(ref: Reference, actor: Params | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Two hops of an actor, by default of the slow one."""
    slow, s = actor or ref.state.target_params["actor"], ref.batch["observations"]
    psi = double(ref.rep(ref.state.params, s, ref.batch["high_actor_goals"]))
    middle = normalized(double(jump(ref, slow, psi, pair_of(1), 0, 1).rep))
    last = jump(ref, slow, middle, pair_of(2), 1, 1)
    return np.clip(double(last.a), -1, 1), normalized(double(last.rep))


def sscp_shortcut(ref: Reference, params: Params) -> jax.Array:
    actions, reps = sscp_two_hops(ref)
    s, g = ref.batch["observations"], ref.batch["high_actor_goals"]
    leap = jump(ref, params["actor"], ref.rep(params, s, g), pair_of(1), 0, 2)
    action_errors = ((jnp.clip(leap.a, -1, 1) - actions) ** 2).mean(axis=-1)
    return (action_errors + ((normalized(leap.rep) - reps) ** 2).mean(axis=-1)).mean()


OneLoss = Callable[[Params, TrainState, Batch], Loss]


def losses_of(name: str, told: dict[str, Any] | None = None) -> dict[str, tuple[OneLoss, Callable[..., jax.Array]]]:
    """Each loss of an agent, with `(params, state, batch)` as arguments, and its reference."""
    nets, key = networks_of(agent_of(name, told)), jax.random.key(0)  # none of them draws

    def bound(loss: Callable[..., Loss], **more: Any) -> OneLoss:
        return lambda params, state, batch: loss(nets, params, state, batch, key, **more)

    if name == "gcbc":
        return {"actor": (bound(gcbc.actor_loss), gcbc_actor)}
    v = gcivl.v if name == "gcivl" else represented_value
    value = (bound(functools.partial(goal_value_loss, v)), Reference.value_loss)
    if name == "gcivl":
        return {"value": value, "actor": (bound(gcivl.actor_loss), gcivl_actor)}
    if name == "hiql":
        return {
            "value": value,
            "low_actor": (bound(functools.partial(low_actor_loss, v, represented)), hiql_low),
            "high_actor": (bound(functools.partial(high_actor_loss, v, represented)), hiql_high),
        }
    noises = pair_of(1), pair_of(2)
    return {
        "value": value,
        "low": (bound(gc_sscp.low_loss, x=noises[0]), sscp_low),
        "high": (bound(gc_sscp.high_loss, x=noises[0]), sscp_high),
        "shortcut": (bound(gc_sscp.shortcut_loss, x=noises), sscp_shortcut),
    }
