"""Diffuser: plans of states and actions by diffusion, led by a model of returns (https://arxiv.org/abs/2205.09991).

- `diffuser`: 64 plans begin in the state; before each denoising step they follow the gradient of their return, and the
  first action of the one with the best return is played. A plan takes T evaluations of the U-Net, 2T of the return's
  gradient and one of the return, for 64 plans each: T = 20.
- `diffuser_goal`: one plan begins in the state and ends in the goal; T evaluations of the U-Net, T = 64.

Plans are made anew after `played` actions, 1 or all. Defaults are the authors', of hopper and of the smallest maze.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.data.segments import Plans, Segments
from flowrl.diffusion import Diffusion
from flowrl.networks import Network, Spec, named, vector
from flowrl.optim import LateTarget, descend, polyak
from flowrl.temporal import PlanValue, TemporalUNet, pinned
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState


@config
class Guide:
    """How plans follow the gradient of their return while they are denoised (algorithm 1)."""

    scale: float = traced(0.1, "How far a plan goes along it, in units of the step's variance.", acting=True)
    steps: int = static(2, "How often before each denoising step.", low=0, acting=True)
    stop: int = traced(2, "Noise levels at the end without it.", acting=True)


@config
class Config:
    """The settings of the authors' code, for hopper and walker2d."""

    diffusion: Diffusion = nested(Diffusion(schedule="cosine", schedule_scale=1.0, clip="nothing", predicts="data"))
    guide: Guide = nested(Guide())
    plans: Plans = nested(Plans(discount=0.997))
    slow: LateTarget = nested(LateTarget(start=2000, interval=10, early=1.0))
    aim: str = static("return", "What plans are for.", choices=("return", "goal"))
    early: bool = static(False, "Goals lie anywhere within H steps, and plans stay there; not only at their end.")
    candidates: int = static(64, "Plans of which the best is played; toward goals the first.", acting=True)
    attention: bool = static(False, "Whether the U-Net has linear attention.")
    hidden_dims: tuple[int, ...] = static((32, 64, 128, 256), "Channels at each resolution of the networks.")
    batch_size: int = static(64, "Plans per update.", high=MOST_COUNT)
    learning_rate: float = traced(2e-4, "Adam's step size, for every network.")
    action_weight: float = traced(10.0, "Weight of the first action in the loss.")

    def problem(self, prefix: str) -> str:
        """Says that the guide goes by the noise that steps add."""
        guided = self.aim == "return" and self.guide.steps > 0
        return self.diffusion.noise_refusal(f"{prefix}guide.steps", f"{prefix}diffusion.") if guided else ""


NAMES = {
    "diffuser": Config(),
    "diffuser_goal": Config(
        aim="goal", candidates=1, action_weight=1.0, hidden_dims=(32, 128, 256), plans=Plans(length=128, played=127),
        diffusion=Diffusion(levels=64, schedule="cosine", schedule_scale=1.0, clip="nothing", predicts="data"),
    ),
}  # fmt: skip
State = TrainState[Config]


class Networks(NamedTuple):
    """A plan is `[H, A + D]`, actions beside states; x_t is one with noise."""

    spec: Spec
    plan: Network  # x_t [B, H, A + D], level [B, 1] -> [B, H, A + D]
    value: Network  # x_t [B, H, A + D], level [B, 1] -> [B]; without goals


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks; what is played in a row is one action to the specification."""
    s, a, _, t = spec.inputs()
    x = vector(1, config.plans.length, a.shape[-1] // config.plans.played + s.shape[-1])
    value = (PlanValue(config.hidden_dims), x, t) if config.aim == "return" else ()
    return Networks(spec, **named(plan=(TemporalUNet(config.hidden_dims, config.attention), x, t), value=value))


def predict(net: Network, params: Params, s: jax.Array, g: jax.Array | None, x: jax.Array, level: jax.Array) -> Any:
    """What a network says of plans `[..., H, A + D]` with their first state s, and the goal, in place."""
    return net(params, pinned(x, s, g), level[..., 0])


def plans_of(batch: Batch) -> jax.Array:
    """The data's plans `[B, H, A + D]`; where they stay, their actions are 0."""
    return jnp.concatenate([batch["actions"] * batch["actions_valid"][..., None], batch["states"]], axis=-1)


def plan_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E w |x − x̂(x_t, t)|² (section 3.1); what is given has no error, and w is large for the first action."""
    config, x, s, zero = state.config, plans_of(batch), batch["observations"], jnp.zeros_like(batch["observations"][0])
    g, nothing = (batch["states"][:, -1], zero) if config.aim == "goal" else (None, None)
    weights = pinned(jnp.ones(x.shape[1:]).at[0, : -s.shape[-1]].set(config.action_weight), zero, nothing)
    errors = config.diffusion.errors(partial(predict, nets.plan, params, s, g), x, key, weights)
    loss = (batch["valid"] * errors).mean()
    return loss, {"plan/loss": loss, "plan/valid": batch["valid"].mean()}


def value_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (J(x_t, t) − G)², G the return to the episode's end (section 3.2)."""
    points, _, levels = state.config.diffusion.noisy(plans_of(batch), key)
    values = predict(nets.value, params, batch["observations"], None, points, levels)
    loss = (batch["valid"] * (values - batch["returns"]) ** 2).mean()
    return loss, {"value/loss": loss, "value/mean": values.mean()}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """A joint step of both networks, then their slow copies."""
    config, losses = state.config, (plan_loss,) if state.config.aim == "goal" else (plan_loss, value_loss)
    moved, metrics = descend(nets, state, batch, key, losses, dict.fromkeys(state.params, config.learning_rate))
    return polyak(moved, moved.params, **dict.fromkeys(state.params, config.slow.at(state.step))), metrics


def plan(nets: Networks, policy: Policy[Config], s: jax.Array, g: jax.Array | None, key: jax.Array) -> jax.Array:
    """Candidates from s, and to g, that follow the gradient of their return: `[..., D]` to `[N, ..., H, A + D]`."""
    (z_key, steps_key), config, params = jax.random.split(key), policy.config, policy.params
    guide, width = config.guide, nets.spec.action_dim // config.plans.played + s.shape[-1]

    def nudge(x: jax.Array, level: Any, variance: Any) -> jax.Array:
        rate, at = jnp.where(level >= guide.stop, guide.scale * variance, 0.0), jnp.full((1, 1), level)
        for _ in range(guide.steps if config.aim == "return" else 0):
            x = x + rate * jax.grad(lambda x: predict(nets.value, params, s, g, x, at).sum())(x)
        return x

    z = jax.random.normal(z_key, (config.candidates, *s.shape[:-1], config.plans.length, width))
    field = partial(predict, nets.plan, params, s, g)
    return pinned(config.diffusion.sample(field, z, steps_key, nudge, looped=True), s, g)


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """The first actions of the plan of the best return, clipped to [−1, 1]."""
    config, s = policy.config, inputs["observations"]
    plans = plan(nets, policy, s, inputs["goals"] if config.aim == "goal" else None, key)
    best = plans[0]
    if config.aim == "return":
        returns = predict(nets.value, policy.params, s, None, plans, jnp.zeros((1, 1)))
        best = jnp.take_along_axis(plans, returns.argmax(axis=0)[None, ..., None, None], axis=0)[0]
    return jnp.clip(best[..., : config.plans.played, : -s.shape[-1]].reshape(*s.shape[:-1], -1), -1.0, 1.0)


make = Maker(
    networks, update, act, batch=lambda config: Segments(config.plans, config.aim == "goal", config.early),
    acting=lambda state: state.target_params, targets=("plan", "value"),
)  # fmt: skip
