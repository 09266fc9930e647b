"""FPMD: policy mirror descent with a generative policy, fitted to π_old · exp(Q/α) by weighted regression.

Each update draws one action per next state, the best of several particles by Q; the critics bootstrap from it, and the
policy is fitted to it with the weight exp(Q/α). The policy is a flow whose straight paths allow one step at deployment
(FPMD-R) or an average velocity (FPMD-M), https://arxiv.org/abs/2507.23675; or a diffusion of many steps (DPMD,
https://arxiv.org/abs/2502.00361).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.agent import Maker
from flowrl.config import MOST_COUNT, config, nested, put, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.encoders import TimedMLP, scaled_sinusoidal_features
from flowrl.generative import Diffusion, Flow, MeanFlow
from flowrl.losses import multiplier
from flowrl.networks import Network, Spec, named, truncated
from flowrl.optim import LinearDecay, descend, every, gradients, polyak, step
from flowrl.policies import BestOfN, best_of_n, noise_entropy, one_and_best
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState

STATISTICS_RATE = 0.001
"""Rate at which the running mean and deviation of Q follow those of a batch."""


@config
class Config:
    """The settings of the authors' code, and of what it does by accident: the defaults are what they ran."""

    critic: Critic = nested(Critic(activation="mish", layer_norm=False))
    policy: Flow | MeanFlow | Diffusion = nested(Flow(steps=20))
    choice: BestOfN = nested(BestOfN(num_samples=32))
    horizon: Horizon = nested(Horizon())
    decay: LinearDecay = nested(LinearDecay(), "The policy's step size, counted in its own steps.")
    hidden_dims: tuple[int, ...] = static((256, 256, 256), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    reward_scale: float = traced(0.2, "Factor of rewards.")
    critic_steps: int = static(
        2, "Adam steps of the critics on one gradient, 2 as released; the weights meet them after the first."
    )
    policy_delay: int = static(2, "Updates of the critics for each one of the policy and the targets.")
    standardization: str = static(
        "mean_only", "Q in the weights: Q - mean / std as released, or the (Q - mean) / std meant.",
        choices=("mean_only", "full"),
    )  # fmt: skip
    q_clip: float = traced(3.0, "Bound of the standardised Q in the weights.")
    initial_temperature: float = traced(5.0, "α before the first update.", low=1e-8)
    temperature_rate: float = traced(7e-3, "Adam's step size for log α.")
    temperature_delay: int = static(250, "Updates of the critics for each one of the temperature.")
    target_entropy: float = traced(-1.5, "Entropy that α aims at, per dimension.", low=float("-inf"))
    noise_scale: float = traced(0.1, "Deviation of the noise on actions, in units of α.")
    start: str = static(
        "scaled", "Deviation that sampling starts from: start_scale, or that of noised data.",
        choices=("scaled", "noised"),
    )  # fmt: skip
    start_scale: float = traced(0.5, "Deviation of the noise that sampling starts from.")
    eval_steps: int = static(0, "Steps per action in evaluation; 0 takes those of training.", low=0, acting=True)

    def problem(self, prefix: str) -> str:
        """Says that a diffusion has no more steps in evaluation than noise levels."""
        levels = self.policy.levels if isinstance(self.policy, Diffusion) else self.eval_steps
        told = f"{prefix}eval_steps={self.eval_steps} is more than the {levels} noise levels"
        return f"{told}; give fewer, or a larger {prefix}policy.levels" if self.eval_steps > levels else ""


NAMES: Mapping[str, Config] = {
    "fpmd_r": Config(),
    "fpmd_m": Config(policy=MeanFlow(time_sampler="uniform", flow_ratio=0.0)),
    # The settings of the newest scripts of its code; docs/agents.md has the older ones.
    "dpmd": Config(policy=Diffusion(), choice=BestOfN(num_samples=4), target_entropy=-0.9, start="noised"),
}
"""The agents, each with its default configuration."""
State = TrainState[Config]


class Networks(NamedTuple):
    """The policy's network and the critics."""

    spec: Spec
    actor: Network  # s [B, D], x [B, A], times [B, 1] -> [B, A]
    critic: Network  # s [B, D], a [B, A] -> [heads, B]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks, with the authors' features of times, layers and initialisation."""
    (s, a, _, t), layers, times = spec.inputs(), config.hidden_dims, config.policy.times
    actor = TimedMLP(layers, spec.action_dim, times, 16, scaled_sinusoidal_features, truncated)
    critic = critics.module(config.critic, layers, kernel_init=truncated, final_init=truncated)
    return Networks(spec, **named(actor=(actor, s, a, *[t] * len(times)), critic=(critic, s, a)))


def draw(
    nets: Networks, config: Config, params: Params, s: jax.Array, key: jax.Array, *, noisy: bool
) -> jax.Array:  # fmt: skip
    """The best of several particles by the critics' minimum, with noise: `[..., D]` to `[..., A]`.

    The critics rank actions as they were sampled; the chosen one is clipped to [−1, 1], and its noise is not.
    """
    best_key, noise_key = jax.random.split(key)
    scale = config.policy.deviation() if config.start == "noised" else config.start_scale

    def sample(key: jax.Array) -> jax.Array:
        z_key, steps_key = jax.random.split(key)
        return config.policy.sample(partial(nets.actor, params, s), scale * nets.spec.noise(z_key, s), steps_key)

    a = jnp.clip(best_of_n(config.choice, sample, partial(nets.critic, params, s), best_key), -1.0, 1.0)
    return a + config.noise_scale * multiplier(params) * nets.spec.noise(noise_key, s) if noisy else a


def critic_loss(
    nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array, *, next_a: jax.Array
) -> Loss:  # fmt: skip
    """Σ_i E (Q_i(s, a) − c r − γ m min Q̄(s', a'))²; each critic has a loss of its own."""
    config = state.config
    next_q = critics.combine(config.critic, nets.critic(state.target_params, batch["next_observations"], next_a))
    targets = config.reward_scale * batch["rewards"] + batch["discounts"] * next_q
    errors, metrics = critics.td_errors(nets.critic(params, batch["observations"], batch["actions"]), targets, batch)
    loss = errors.mean(axis=-1).sum()
    return loss, metrics | {"critic/loss": loss}


def mirror_weights(state: State, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """exp(clip(norm(Q)) / α) `[B]` and the share of rows where the clip holds `[]`, without gradient.

    norm is by the running statistics; as released, only the mean is divided by the deviation.
    """
    config, mean, std = state.config, state.extras["q_mean"], state.extras["q_std"]
    standard = (q - mean) / std if config.standardization == "full" else q - mean / std
    weights = jnp.exp(jnp.clip(standard, -config.q_clip, config.q_clip) / multiplier(state.params))
    return jax.lax.stop_gradient(weights), jnp.mean(jnp.abs(standard) >= config.q_clip)


def actor_loss(
    nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array, *,
    next_a: jax.Array, weights: jax.Array, clipped: jax.Array,
) -> Loss:  # fmt: skip
    """E[w · the model's error at (s', a')]."""
    errors = state.config.policy.errors(partial(nets.actor, params, batch["next_observations"]), next_a, key)
    loss = jnp.mean(weights * errors)
    return loss, {"actor/loss": loss, "actor/weight": weights.mean(), "actor/clipped": clipped}


def temperature_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """log α · (H − H̄), H the entropy of the noise on actions; its gradient does not depend on α's size."""
    config, dims = state.config, nets.spec.action_dim
    gap = noise_entropy(config.noise_scale * multiplier(state.params), dims) - config.target_entropy * dims
    return params["temperature"]["log"] * gap, {}


def move_policy(nets: Networks, batch: Batch, key: jax.Array, loss: Any, state: State) -> tuple[State, Metrics]:
    """A step of the policy, then the slow copies."""
    config = state.config
    rate = config.decay(config.learning_rate, state.step / config.policy_delay)
    state, metrics = descend(nets, state, batch, key, (loss,), {"actor": rate})
    return polyak(state, state.params, critic=config.critic.target_rate, actor=config.critic.target_rate), metrics


def move_temperature(nets: Networks, batch: Batch, key: jax.Array, state: State) -> tuple[State, Metrics]:
    """A step of the temperature."""
    return descend(nets, state, batch, key, (temperature_loss,), {"temperature": state.config.temperature_rate})


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """Steps of the critics along one gradient; at some updates one of policy and slow copies, rarely one of α.

    The weights, and the statistics that follow, are of the critics after their first step.
    """
    (draw_key, actor_key), config, next_s = jax.random.split(key), state.config, batch["next_observations"]
    next_a = draw(nets, config, state.params, next_s, draw_key, noisy=True)
    loss, rates, before = partial(critic_loss, next_a=next_a), {"critic": config.learning_rate}, state
    grads, metrics = gradients(nets, state, batch, draw_key, (loss,), ("critic",))
    state = step(state, grads, rates)
    q = nets.critic(state.params, next_s, next_a).min(axis=0)
    weights, clipped = mirror_weights(before, q)
    for _ in range(config.critic_steps - 1):
        state = step(state, grads, rates)
    fit = partial(actor_loss, next_a=next_a, weights=weights, clipped=clipped)
    state, more = every(config.policy_delay, state, partial(move_policy, nets, batch, actor_key, fit))
    state, _ = every(config.temperature_delay, state, partial(move_temperature, nets, batch, actor_key))
    news = {"q_mean": q.mean(), "q_std": q.std()}
    extras = {name: state.extras[name] + STATISTICS_RATE * (new - state.extras[name]) for name, new in news.items()}
    return state.replace(extras=extras), metrics | more | {"actor/temperature": multiplier(state.params)}


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """One particle of the slow policy, or the best of several; with `explore` also noise.

    What explores may leave [−1, 1] by its noise: it is stored so, and the environment clips what it plays.
    """
    return draw(nets, policy.config, policy.params, inputs["observations"], key, noisy=explore)


def evaluations(config: Config) -> dict[str, Config]:
    """One particle, and the best of several, in as many steps as evaluation takes."""
    steps = {"policy.steps": config.eval_steps} if config.eval_steps else {}
    return one_and_best(put(config, steps))


def acting(state: State) -> Params:
    """What acting needs: the slow policy, and the critics and the temperature as they are."""
    return {"actor": state.target_params["actor"], **{n: state.params[n] for n in ("critic", "temperature")}}


make = Maker(
    networks, update, act, batch=Transitions.of, targets=("actor", "critic"),
    acting=acting, evaluations=evaluations, explores=lambda config: config,
    multipliers=lambda config: {"temperature": jnp.log(config.initial_temperature)},
    extras=lambda config: {"q_mean": jnp.zeros(()), "q_std": jnp.ones(())},
)  # fmt: skip
