"""IDQL: IQL's critics, and the best by them of several draws of a diffusion model of behaviour.

https://arxiv.org/abs/2304.10573; the defaults are those of its code of December 2023.
"""

from functools import partial
from typing import NamedTuple

import jax

from flowrl import critics
from flowrl.choice import BestOfN, choosing, draws_no_targets, with_critic
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic, ImplicitValue, implicit_critic_loss, implicit_value_loss
from flowrl.data.samplers import Horizon, Transitions
from flowrl.diffusion import Diffusion
from flowrl.encoders import ResidualMLP
from flowrl.networks import ACTIVATIONS, Network, Spec, named
from flowrl.optim import CosineDecay, in_turn, polyak, undecayed
from flowrl.train_state import Batch, Loss, Metrics, Params, Scalar, TrainState


@config
class Config:
    """The settings of the authors' code, for Gym."""

    critic: Critic = nested(Critic(hidden_dims=(256, 256), activation="relu", layer_norm=False))
    value: ImplicitValue = nested(ImplicitValue())
    diffusion: Diffusion = nested(Diffusion(levels=5, schedule="vp", schedule_scale=1.0, clip="points"))
    choice: BestOfN = nested(BestOfN(num_samples=64))
    decay: CosineDecay = nested(CosineDecay(final=0.0, warmup=0.0, steps=3_000_000), "The policy's step size.")
    horizon: Horizon = nested(Horizon())
    hidden_dims: tuple[int, ...] = static((256, 256, 256), "Widths of the policy's blocks, all the same.")
    activation: str = static("swish", "Nonlinearity of the policy.", choices=tuple(ACTIVATIONS))
    dropout: float = static(0.1, "Share of what enters a block that is dropped.", low=0.0, high=0.99)
    time_dim: int = static(128, "Size of the features of noise levels.", low=2)
    value_norm: bool = static(True, "LayerNorm on what the value reads.")
    batch_size: int = static(512, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    weight_decay: float = traced(1e-4, "Share of the policy's parameters that a step takes off, times its size.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    actor_target_rate: float = traced(0.001, "Polyak rate of the acting copy of the policy.", high=1.0)

    def problem(self, prefix: str) -> str:
        """Says that blocks add to what enters them, and that targets draw no actions."""
        told = f"{prefix}hidden_dims={','.join(map(str, self.hidden_dims))} has several widths"
        several = f"{told}; blocks add to what enters them, give one width" if len(set(self.hidden_dims)) > 1 else ""
        return several or draws_no_targets(self.choice, prefix)


State = TrainState[Config]


class Networks(NamedTuple):
    """The model of noise in actions, the value and the critics."""

    spec: Spec
    actor: Network  # s [B, D], x [B, A], level [B, 1] -> noise [B, A]
    value: Network  # s [B, D] -> [B]
    critic: Network  # s [B, D], a [B, A] -> [heads, B]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    (s, a, _, level), layers, activation = spec.inputs(), config.hidden_dims, ACTIVATIONS[config.activation]
    actor = ResidualMLP(layers, spec.action_dim, activation, config.dropout, config.time_dim)
    value = critics.value_module(config.critic, layers, input_norm=config.value_norm)
    critic = critics.module(config.critic, layers)
    return Networks(spec, **named(actor=(actor, s, a, level), value=(value, s), critic=(critic, s, a)))


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E ‖ε̂(x_t, t; s) − ε‖², whatever Q says, with dropout."""
    model_key, dropout_key = jax.random.split(key)
    field = partial(nets.actor, params, batch["observations"], key=dropout_key)
    errors = state.config.diffusion.errors(field, batch["actions"], model_key, batch["actions_valid"])
    loss = nets.spec.action_dim * errors.mean()
    return loss, {"actor/loss": loss}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """A step of policy, value and critics, in turn, then the slow copies."""
    config, rate = state.config, state.config.learning_rate
    losses = (actor_loss, implicit_value_loss, implicit_critic_loss)
    rates: dict[str, Scalar]
    rates = {"actor": config.decay(rate, state.step), "value": rate, "critic": rate}
    moved, metrics = in_turn(nets, state, batch, key, losses, rates, {"actor": config.weight_decay})
    slow = {"critic": config.critic.target_rate, "actor": config.actor_target_rate}
    return polyak(moved, moved.params, **slow), metrics


def sample(nets: Networks, config: Config, params: Params, s: jax.Array, key: jax.Array) -> jax.Array:
    """One denoised action per state: `[..., D]` to `[..., A]` in [−1, 1]."""
    start_key, steps_key = jax.random.split(key)
    return config.diffusion.sample(partial(nets.actor, params, s), nets.spec.noise(start_key, s), steps_key)


make = choosing(
    networks, update, sample, batch=Transitions.of, targets=("actor", "critic"),
    acting=lambda state: with_critic(state, state.target_params),
    online=undecayed,
)  # fmt: skip
