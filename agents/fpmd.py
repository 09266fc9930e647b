"""FPMD: policy mirror descent with a generative policy, fitted to π_old · exp(Q/α) by weighted regression.

The policy is a flow of straight paths (FPMD-R, https://arxiv.org/abs/2507.23675), MeanFlow (FPMD-M) or a diffusion
(DPMD, https://arxiv.org/abs/2502.00361). Critics bootstrap from an action per next state; to it the policy is fitted.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.agent import Maker, unchanged
from flowrl.choice import BestOfN, best_of_n, one_and_best, with_critic
from flowrl.config import MOST_COUNT, config, nested, put, static, traced
from flowrl.data.samplers import Horizon, Transitions
from flowrl.diffusion import Diffusion
from flowrl.encoders import TimedMLP, scaled_sinusoidal_features
from flowrl.generative import Flow, MeanFlow
from flowrl.losses import MirrorWeights, multiplier
from flowrl.networks import Networks, Spec, named, truncated
from flowrl.optim import LinearDecay, descend, every, gradients, polyak, step
from flowrl.policies import TemperedNoise
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState


@config
class Config:
    """The settings of the authors' code, and of what it does by accident: the defaults are what they ran."""

    critic: critics.Critic = nested(critics.Critic(activation="mish", layer_norm=False))
    policy: Flow | MeanFlow | Diffusion = nested(Flow(steps=20))
    choice: BestOfN = nested(BestOfN(num_samples=32, target_samples=32, critics="online"))
    horizon: Horizon = nested(Horizon())
    weights: MirrorWeights = nested(MirrorWeights())
    noise: TemperedNoise = nested(TemperedNoise())
    decay: LinearDecay = nested(LinearDecay(), "The policy's step size, counted in its own steps.")
    hidden_dims: tuple[int, ...] = static((256, 256, 256), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    reward_scale: float = traced(0.2, "Factor of rewards.")
    critic_steps: int = static(2, "Adam steps of the critics on one gradient; the weights meet them after the first.")
    policy_delay: int = static(2, "Updates of the critics for each one of the policy and the targets.")
    start: str = static("scaled", "Sampling starts from start_scale, or as noised data.", choices=("scaled", "noised"))
    start_scale: float = traced(0.5, "Deviation of the noise that sampling starts from.")
    eval_steps: int = static(0, "Steps per action in evaluation; 0 takes those of training.", low=0, acting=True)

    def problem(self, prefix: str) -> str:
        """Says that a diffusion has no more steps in evaluation than noise levels."""
        levels = self.policy.levels if isinstance(self.policy, Diffusion) else self.eval_steps
        told = f"{prefix}eval_steps={self.eval_steps} is more than the {levels} noise levels"
        return f"{told}; give fewer, or a larger {prefix}policy.levels" if self.eval_steps > levels else ""


FEW = BestOfN(num_samples=4, target_samples=4, critics="online")
NAMES: Mapping[str, Config] = {
    "fpmd_r": Config(),
    "fpmd_m": Config(policy=MeanFlow(time_sampler="uniform", flow_ratio=0.0)),
    "dpmd": Config(policy=Diffusion(), start="noised", choice=FEW, noise=TemperedNoise(target_entropy=-0.9)),
}
"""The agents and their defaults: DPMD's are those of its newest scripts; docs/agents.md has the older ones."""
State = TrainState[Config]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks, with the authors' features of times, layers and initialisation.

    The actor takes s [B, D], x [B, A] and the model's times [B, 1] to [B, A].
    """
    (s, a, _, t), layers, times = spec.inputs(), config.hidden_dims, config.policy.times
    actor = TimedMLP(layers, spec.action_dim, times, 16, scaled_sinusoidal_features, truncated)
    critic = critics.module(config.critic, layers, kernel_init=truncated, final_init=truncated)
    return Networks(spec, **named(actor=(actor, s, a, *[t] * len(times)), critic=(critic, s, a)))


def draw(nets: Networks, config: Config, params: Params, s: jax.Array, key: jax.Array, noisy: bool) -> jax.Array:
    """The best of several particles, ranked as sampled and clipped then, with noise: `[..., D]` to `[..., A]`."""
    scale = config.policy.deviation() if config.start == "noised" else config.start_scale
    best_key, noise_key = jax.random.split(key)

    def sample(key: jax.Array) -> jax.Array:
        z_key, steps_key = jax.random.split(key)
        return config.policy.sample(partial(nets.actor, params, s), scale * nets.spec.noise(z_key, s), steps_key)

    a = jnp.clip(best_of_n(config.choice, sample, partial(nets.critic, params, s), best_key), -1.0, 1.0)
    return a + config.noise.scale * multiplier(params) * nets.spec.noise(noise_key, s) if noisy else a


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """Σ_i E (Q_i(s, a) − c r − γ m min Q̄(s', a'))²; each critic has a loss of its own."""
    config, next_q = state.config, nets.critic(state.target_params, batch["next_observations"], batch["next_actions"])
    targets = config.reward_scale * batch["rewards"] + batch["discounts"] * critics.combine(config.critic, next_q)
    return critics.td_sum(nets.critic(params, batch["observations"], batch["actions"]), targets, batch)


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E[w · the model's error at (s', a')]."""
    field, weights = partial(nets.actor, params, batch["next_observations"]), batch["weights"]
    loss = jnp.mean(weights * state.config.policy.errors(field, batch["next_actions"], key))
    return loss, {"actor/loss": loss, "actor/weight": weights.mean(), "actor/clipped": batch["clipped"]}


def move_policy(nets: Networks, batch: Batch, key: jax.Array, state: State) -> tuple[State, Metrics]:
    """A step of the policy, then the slow copies."""
    config, slow = state.config, state.config.critic.target_rate
    rate = config.decay(config.learning_rate, state.step / config.policy_delay)
    state, metrics = descend(nets, state, batch, key, (actor_loss,), {"actor": rate})
    return polyak(state, state.params, critic=slow, actor=slow), metrics


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """Steps of the critics along one gradient, whose first gives the weights; at some updates one of policy or α."""
    (draw_key, actor_key), config, next_s = jax.random.split(key), state.config, batch["next_observations"]
    drawing, alpha = {**state.params, "critic": config.choice.ranking(state)["critic"]}, multiplier(state.params)
    next_a = draw(nets, replace(config, choice=config.choice.in_targets), drawing, next_s, draw_key, True)
    batch, rates = {**batch, "next_actions": next_a}, {"critic": config.learning_rate}
    grads, metrics = gradients(nets, state, batch, draw_key, (critic_loss,), ("critic",))
    state = step(state, grads, rates)
    q = nets.critic(state.params, next_s, next_a).min(axis=0)
    batch["weights"], batch["clipped"] = config.weights(state.extras, q, alpha)
    for _ in range(config.critic_steps - 1):
        state = step(state, grads, rates)
    state, more = every(config.policy_delay, state, partial(move_policy, nets, batch, actor_key))
    temper = partial(descend, nets, batch=batch, key=actor_key, losses=(config.noise.loss,))
    state, _ = every(config.noise.delay, state, partial(temper, rates={"temperature": config.noise.rate}))
    metrics |= more | {"actor/temperature": multiplier(state.params)}
    return state.replace(extras=config.weights.follow(state.extras, q)), metrics


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """One particle of the slow policy, or the best of several; with `explore` noise, which may leave [−1, 1]."""
    return draw(nets, policy.config, policy.params, inputs["observations"], key, explore)


make = Maker(
    networks, update, act, batch=Transitions.of, targets=("actor", "critic"),
    evaluations=lambda config: one_and_best(put(config, {"policy.steps": config.eval_steps or config.policy.steps})),
    acting=lambda state: {**with_critic(state, state.target_params), "temperature": state.params["temperature"]},
    explores=unchanged, multipliers=lambda config: {"temperature": jnp.log(config.noise.initial)},
    extras=lambda config: {"q_mean": jnp.zeros(()), "q_std": jnp.ones(())},
)  # fmt: skip
