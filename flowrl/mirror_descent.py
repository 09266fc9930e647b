"""Policy mirror descent with a generative policy, shared by agents: fit π_old · exp(Q/α) by weighted regression.

Each update draws one action per next state, the best of several particles by Q; the critics bootstrap from it, and the
policy is fitted to it with the weight exp(Q/α) (https://arxiv.org/abs/2507.23675; DPMD, https://arxiv.org/abs/2502.00361).
What the policy is (a flow, an average velocity, a diffusion) an agent says by how it samples and by its error on a row.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowrl import acting, losses
from flowrl import config as configs
from flowrl.agent import Agent, Needs, Spec
from flowrl.losses import temperature
from flowrl.networks import Network, TimedMLP, Value, ensemble, mish, scaled_sinusoidal_features, truncated
from flowrl.optim import descend, every, gradients, polyak, step
from flowrl.train_state import Batch, Metrics, Mode, Params, TrainState, new_state

STATISTICS_RATE = 0.001
"""Rate at which the running mean and deviation of Q follow those of a batch."""


@dataclasses.dataclass(frozen=True)
class Config(configs.Online):
    """The settings of the authors' code, and of what it does by accident: the defaults are what they ran."""

    hidden_dims: tuple[int, ...] = configs.static((256, 256, 256), "Hidden layers of every network.")
    candidates: int = configs.static(32, "Particles: actions drawn per state, of which the best by Q is taken.")
    standardization: str = configs.static(
        "mean_only",
        "Q in the weights: Q - mean / std as released, or the (Q - mean) / std meant.",
        ("mean_only", "full"),
    )
    critic_steps: int = configs.static(
        2, "Adam steps of the critics on one gradient, 2 as released; the weights meet them after the first."
    )
    policy_delay: int = configs.static(2, "Updates of the critics for each one of the policy and the targets.")
    eval_steps: int = configs.static(0, "Steps per action in evaluation; 0 takes those of training.", low=0)
    temperature_delay: int = configs.static(250, "Updates of the critics for each one of the temperature.")
    q_clip: float = configs.sweepable(3.0, "Bound of the standardised Q in the weights.")
    reward_scale: float = configs.sweepable(0.2, "Factor of rewards.")
    initial_temperature: float = configs.sweepable(5.0, "α before the first update.", 1e-8)
    temperature_rate: float = configs.sweepable(7e-3, "Adam's step size for log α.")
    target_entropy: float = configs.sweepable(-1.5, "Entropy that α aims at, per dimension.", low=float("-inf"))
    noise_scale: float = configs.sweepable(0.1, "Deviation of the noise on actions, in units of α.")
    start_scale: float = configs.sweepable(0.5, "Deviation of the noise that sampling starts from.")
    final_learning_rate: float = configs.sweepable(3e-5, "The policy's step size in the end; it falls linearly.")
    decay_begin: int = configs.sweepable(25_000, "Policy updates after which its step size begins to fall.")
    decay_updates: int = configs.sweepable(50_000, "Policy updates in which it falls.", 1)


class Networks(NamedTuple):
    """The policy's network and twin critics."""

    actor: Network
    critic: Network  # [B, D], [B, A] -> [2, B]


class Generator(NamedTuple):
    """What a policy is.

    Attributes:
        sample: `(actor_params, observations [..., D], key, start_scale [], evaluation) -> actions [..., A]`, which may
            leave [−1, 1]; `evaluation` is static and may ask for other numbers of steps.
        errors: `(actor_params, observations [B, D], actions [B, A], key) -> [B]`: the regression's error on each row.
        initial: `(key, observations [1, D], actions [1, A]) -> actor_params`.
    """

    sample: Callable[..., jax.Array]
    errors: Callable[..., jax.Array]
    initial: Callable[..., Any]


def actor_network(config: Config, spec: Spec, times: tuple[str, ...]) -> TimedMLP:
    """Returns a policy's network with the authors' features of times, layers and initialisation."""
    return TimedMLP(config.hidden_dims, spec.action_dim, times, 16, scaled_sinusoidal_features, truncated)


def steps_of(config: Config, trained: int, evaluation: bool) -> int:
    """Returns the steps per action: `trained`, those of training, or in evaluation what the configuration says."""
    return config.eval_steps if evaluation and config.eval_steps else trained


def critic_network(config: Config) -> Network:
    """Returns twin critics, initialised as the authors'."""
    return ensemble(Value)(config.hidden_dims, mish, config.critic_layer_norm, truncated, truncated)


def noise_entropy(alpha: jax.Array, noise_scale: jax.Array, action_dim: int) -> jax.Array:
    """Entropy of the Gaussian noise that actions get, |A|/2 · log(2πe (c α)²)."""
    return 0.5 * action_dim * jnp.log(2 * jnp.pi * jnp.e * (noise_scale * alpha) ** 2)


def standardized(config: Config, state: TrainState, values: jax.Array) -> jax.Array:
    """norm(Q) of `values` `[...]` by the running statistics; as released, only the mean is divided."""
    mean, std = state.extras["q_mean"], state.extras["q_std"]
    return (values - mean) / std if config.standardization == "full" else values - mean / std


def weights_of(config: Config, state: TrainState, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """exp(clip(norm(Q)) / α) `[B]` and the share of rows where the clip holds `[]`, without gradient."""
    standard = standardized(config, state, values)
    clip = state.hyper["q_clip"]
    weights = jnp.exp(jnp.clip(standard, -clip, clip) / temperature(state.params))
    return jax.lax.stop_gradient(weights), jnp.mean(jnp.abs(standard) >= clip)


def learning_rate(config: Config, state: TrainState) -> jax.Array:
    """The policy's step size `[]`."""
    hyper = state.hyper
    share = jnp.clip((state.step / config.policy_delay - hyper["decay_begin"]) / hyper["decay_updates"], 0.0, 1.0)
    return hyper["learning_rate"] + share * (hyper["final_learning_rate"] - hyper["learning_rate"])


def draw(
    networks: Networks, generator: Generator, config: Config, policy: Params, observations: jax.Array, key: jax.Array,
    *, evaluation: bool = False, noisy: bool = True,
) -> jax.Array:  # fmt: skip
    """The best of `candidates` actions by the critics' minimum, with noise: `[..., D]` to `[..., A]`.

    The critics rank actions as they were sampled; the chosen one is clipped to [−1, 1], and its noise is not.
    """
    best_key, noise_key = jax.random.split(key)

    def sample(key: jax.Array) -> jax.Array:
        return generator.sample(policy["actor"], observations, key, policy["start_scale"], evaluation)

    critics = partial(networks.critic.apply, policy["critic"], observations)
    actions = acting.best_of_n(sample, critics, best_key, config.candidates, jnp.zeros(()))
    actions = jnp.clip(actions, -1.0, 1.0)
    return actions + policy["noise"] * jax.random.normal(noise_key, actions.shape) if noisy else actions


def policy_of(state: TrainState, actor_params: Any) -> dict[str, Any]:
    """What drawing actions needs."""
    noise = state.hyper["noise_scale"] * temperature(state.params)
    arrays = {"actor": actor_params, "critic": state.params["critic"]}
    return arrays | {"noise": noise, "start_scale": state.hyper["start_scale"]}


def update(
    networks: Networks,
    generator: Generator,
    config: Config,
    spec: Spec,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
) -> tuple[TrainState, Metrics]:
    """Steps of the critics along one gradient; at some updates one of the policy and the slow copies, rarely one of α.

    The weights, and the statistics that follow, are of the critics after their first step.
    """
    draw_key, actor_key = jax.random.split(key)
    next_observations = batch["next_observations"]
    policy = policy_of(state, state.params["actor"])
    next_actions = draw(networks, generator, config, policy, next_observations, draw_key)
    next_values = networks.critic.apply(state.target_params["critic"], next_observations, next_actions).min(axis=0)
    scaled, before = {**batch, "rewards": state.hyper["reward_scale"] * batch["rewards"]}, state

    def critic_loss(params: Params) -> tuple[jax.Array, Metrics]:
        mean, metrics = losses.critic_loss(networks.critic, params, before, scaled, next_values)
        return 2 * mean, metrics | {"critic/loss": 2 * mean}  # the sum: each critic has a loss of its own

    grads, critic_metrics = gradients(state, critic_loss, ("critic",))
    state = step(state, grads)
    values = networks.critic.apply(state.params["critic"], next_observations, next_actions).min(axis=0)
    weights, clipped = weights_of(config, before, values)
    for _ in range(config.critic_steps - 1):
        state = step(state, grads)

    def actor_loss(params: Params) -> tuple[jax.Array, Metrics]:
        loss = jnp.mean(weights * generator.errors(params["actor"], next_observations, next_actions, actor_key))
        return loss, {"actor/loss": loss, "actor/weight": weights.mean(), "actor/clipped": clipped}

    def move_policy(state: TrainState) -> tuple[TrainState, Metrics]:
        state, metrics = descend(state, actor_loss, ("actor",), learning_rate(config, state))
        rate = state.hyper["critic_target_rate"]
        return polyak(state, {"critic": rate, "actor": rate}), metrics

    state, actor_metrics = every(config.policy_delay, state, move_policy)
    state, _ = every(config.temperature_delay, state, partial(_move_temperature, spec))
    metrics = critic_metrics | actor_metrics | {"actor/temperature": temperature(state.params)}
    return state.replace(step=state.step + 1, extras=_statistics(state.extras, values)), metrics


def _move_temperature(spec: Spec, state: TrainState) -> tuple[TrainState, Metrics]:
    """A step of α on log α · (H − H̄), whose gradient does not depend on α's size."""
    gap = noise_entropy(temperature(state.params), state.hyper["noise_scale"], spec.action_dim)
    gap -= state.hyper["target_entropy"] * spec.action_dim

    def loss(params: Params) -> tuple[jax.Array, Metrics]:
        return params["temperature"]["log"] * gap, {}

    return descend(state, loss, ("temperature",), state.hyper["temperature_rate"])


def _statistics(extras: Mapping[str, jax.Array], values: jax.Array) -> dict[str, jax.Array]:
    batch = {"q_mean": values.mean(), "q_std": values.std()}
    return {**extras} | {name: extras[name] + STATISTICS_RATE * (new - extras[name]) for name, new in batch.items()}


def act(
    networks: Networks,
    generator: Generator,
    config: Config,
    policy: Params,
    observations: jax.Array,
    goals: jax.Array,
    key: jax.Array,
    *,
    mode: Mode,
) -> jax.Array:
    """One particle of the slow policy; with `best_of_n` the best of several, with `explore` that with noise.

    What explores may leave [−1, 1] by its noise: it is stored so, and the environment clips what it plays.
    """
    del goals
    if mode == "eval":
        return jnp.clip(generator.sample(policy["actor"], observations, key, policy["start_scale"], True), -1.0, 1.0)
    best = mode == "best_of_n"
    return draw(networks, generator, config, policy, observations, key, evaluation=best, noisy=not best)


def make(config: Config, spec: Spec, actor: Network, generator: Generator) -> Agent:
    """Builds the agent.

    Args:
        config: Its settings.
        spec: Sizes of observations and actions.
        actor: The policy's network.
        generator: What the policy does with it.
    """
    networks = Networks(actor, critic_network(config))

    def init(key: jax.Array, hyper: Mapping[str, Any] | None = None) -> TrainState:
        actor_key, critic_key = jax.random.split(key)
        observations, actions = jnp.zeros((1, spec.observation_dim)), jnp.zeros((1, spec.action_dim))
        values = configs.hyper(config, hyper)
        params = {
            "actor": generator.initial(actor_key, observations, actions),
            "critic": networks.critic.init(critic_key, observations, actions),
            "temperature": {"log": jnp.log(values["initial_temperature"])},
        }
        return new_state(params, ("actor", "critic"), values, {"q_mean": jnp.zeros(()), "q_std": jnp.ones(())})

    return Agent(
        init=init,
        update=partial(update, networks, generator, config, spec),
        policy=lambda state: policy_of(state, state.target_params["actor"]),
        act=partial(act, networks, generator, config),
        needs=Needs(("observations", "actions", "rewards", "masks", "next_observations")),
        evaluations=("eval", "best_of_n"),
    )
