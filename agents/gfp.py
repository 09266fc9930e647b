"""GFP, guided flow policies: a one-step policy and a flow that guide each other (https://arxiv.org/abs/2512.03973).

The flow v clones the data, each action weighted by how it compares with the policy's own by Q (VaBC, value-aware
behaviour cloning). The one-step policy μ(s, z) is distilled from it and maximises Q. μ acts; v is evaluated beside it.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, put, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.encoders import FeaturesMLP
from flowrl.generative import Flow
from flowrl.losses import q_size
from flowrl.networks import MLP, Distilled, Spec, named
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState

COMBINED: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "actor": lambda actor, flow: actor,
    "mean": lambda actor, flow: (actor + flow) / 2,
    "min": jnp.minimum,
}
"""What a state is worth, of the values of both actions."""


@config
class Config:
    """The settings of the released code."""

    critic: Critic = nested(Critic(aggregate="mean"))
    flow: Flow = nested(Flow(steps=10))
    horizon: Horizon = nested(Horizon())
    hidden_dims: tuple[int, ...] = static((512, 512, 512, 512), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    alpha: float = traced(1.0, "Weight of distillation.")
    eta: float = traced(1e-3, "Temperature of the flow's weights, in units of Q's size; 0 weighs all alike.")
    target: str = static("actor", "Whose next actions a TD target values.", choices=tuple(COMBINED))
    reference: str = static("actor", "Whose actions the data's are compared with.", choices=tuple(COMBINED))
    flow_at_next: bool = static(
        False, "In a TD target the flow acts in the next state, not in the one before as in the released code."
    )
    guidance: str = static("softmax", "What weighs the flow's rows.", choices=("softmax", "advantage"))
    normalize_q: bool = static(True, "Divide the policy's Q by its mean size.")
    acts: str = static("actor", "Who acts.", choices=("actor", "flow"), acting=True)


State = TrainState[Config]


def networks(config: Config, spec: Spec) -> Distilled:
    """Builds the networks."""
    s, a, _, t = spec.inputs()
    field, actor = FeaturesMLP(config.hidden_dims, spec.action_dim), MLP(config.hidden_dims, spec.action_dim)
    critic = critics.module(config.critic, config.hidden_dims)
    return Distilled(spec, **named(flow=(field, s, a, t), actor=(actor, s, a), critic=(critic, s, a)))


def one_step(nets: Distilled, params: Params, s: jax.Array, z: jax.Array) -> jax.Array:
    """μ(s, z), clipped: `[..., D]` and `[..., A]` to `[..., A]`."""
    return jnp.clip(nets.actor(params, s, z), -1.0, 1.0)


def value_of(nets: Distilled, config: Config, params: Params, s: jax.Array, a: jax.Array) -> jax.Array:
    """The critics' values of actions, combined: `[B, D]` and `[B, A]` to `[B]`."""
    return critics.combine(config.critic, nets.critic(params, s, a))


def critic_loss(nets: Distilled, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m V̄(s'))², V̄ of μ(s', z) or with μ̂(s, z) as well, of the same noise."""
    config, s, next_s = state.config, batch["observations"], batch["next_observations"]
    z = nets.spec.noise(key, next_s)
    flow_s, value = next_s if config.flow_at_next else s, partial(value_of, nets, config, state.target_params, next_s)
    actor_q = value(one_step(nets, state.params, next_s, z))
    flow_q = value(config.flow.actions(partial(nets.flow, state.params, flow_s), z))
    targets = batch["rewards"] + batch["discounts"] * COMBINED[config.target](actor_q, flow_q)
    errors, metrics = critics.td_errors(nets.critic(params, s, batch["actions"]), targets, batch)
    return errors.mean(), metrics


def weights(config: Config, advantages: jax.Array, size: jax.Array) -> jax.Array:
    """Constant weights of rows `[B]`: sigmoid(A / (η size)), a softmax of two values, or exp of that; 1 where η = 0."""
    scaled = advantages / (size * jnp.maximum(config.eta, 1e-30))
    found = jax.nn.sigmoid(scaled) if config.guidance == "softmax" else jnp.exp(scaled)
    return jax.lax.stop_gradient(jnp.where(jnp.asarray(config.eta) > 0, found, 1.0))


def actor_loss(nets: Distilled, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """g ‖v − (a − e)‖² + α ‖μ(s, z) − μ̂(s, z)‖² − Q(s, μ(s, z)) / size; μ̂, weights g and size are constants."""
    (z_key, flow_key), config, s = jax.random.split(key), state.config, batch["observations"]
    z = nets.spec.noise(z_key, s)
    raw, flow_a = nets.actor(params, s, z), config.flow.actions(partial(nets.flow, state.params, s), z)
    distill, a = jnp.mean((raw - flow_a) ** 2), jnp.clip(raw, -1.0, 1.0)
    q, value = value_of(nets, config, state.params, s, a), partial(value_of, nets, config, state.target_params, s)
    size = q_size(q[None])
    q_loss = -q.mean() / size if config.normalize_q else -q.mean()
    data_q, reference_q = value(batch["actions"]), COMBINED[config.reference](value(a), value(flow_a))
    g = weights(config, data_q - reference_q, size)
    errors = config.flow.errors(partial(nets.flow, params, s), batch["actions"], flow_key, batch["actions_valid"])
    flow = jnp.mean(g * errors)
    loss = flow + config.alpha * distill + q_loss
    metrics = {"flow_loss": flow, "distill_loss": distill, "q_loss": q_loss, "loss": loss, "weight": g.mean()}
    metrics |= {"q_mean": q.mean(), "q_data": data_q.mean(), "q_reference": reference_q.mean()}
    return loss, {f"actor/{name}": value for name, value in metrics.items()}


def update(nets: Distilled, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of both losses at the same parameters, then the target critics toward those before the step."""
    config = state.config
    rates = dict.fromkeys(("flow", "actor", "critic"), config.learning_rate)
    moved, metrics = descend(nets, state, batch, key, (critic_loss, actor_loss), rates)
    return polyak(moved, state.params, critic=config.critic.target_rate), metrics


def act(nets: Distilled, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """One draw of noise through μ, which explores by itself, or through the flow."""
    s, params, config = inputs["observations"], policy.params, policy.config
    z = nets.spec.noise(key, s)
    if config.acts == "actor":
        return one_step(nets, params, s, z)
    return config.flow.actions(partial(nets.flow, params, s), z)


make = Maker(
    networks, update, act, batch=Transitions.of, targets=("critic",),
    acting=lambda state: {name: state.params[name] for name in ("actor", "flow")},
    evaluations=lambda config: {"eval": config, "vabc": put(config, {"acts": "flow"})},
)  # fmt: skip
