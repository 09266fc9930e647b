"""FBRAC, BFN and QC: a flow that clones behaviour, of whose actions critics choose, in acting and for their targets.

In FBRAC Q pulls the flow through all of its steps (https://arxiv.org/abs/2502.02538), here with the settings of QAM's
authors (https://arxiv.org/abs/2601.14234). In BFN nothing does, and the policy is the best of N draws; with chunks of
actions that is QC (Q-chunking, https://arxiv.org/abs/2507.07969), with n-step returns BFN-n.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax

from flowrl import critics
from flowrl.choice import BestOfN, choosing, td_loss
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.generative import Flow
from flowrl.networks import MLP, Networks, Spec, named
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Loss, Metrics, Params, TrainState


@config
class Config:
    """FBRAC's settings in QAM's code, for chunks as on manipulation tasks."""

    critic: Critic = nested(Critic(heads=10, aggregate="mean", rho=0.5))
    flow: Flow = nested(Flow(steps=10))
    choice: BestOfN = nested(BestOfN(aggregate="mean", critics="online"))
    horizon: Horizon = nested(Horizon(steps=5, chunk=True))
    improves: bool = static(True, "Q pulls the flow; else it clones, and Q only chooses.")
    cloned: str = static(
        "chunks", "What is cloned at an episode's end: whole chunks, or the actions up to it.",
        choices=("chunks", "actions"),
    )  # fmt: skip
    hidden_dims: tuple[int, ...] = static((512, 512, 512, 512), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    alpha: float = traced(100.0, "Q is divided by it, as in QAM's code.", low=1e-8)
    flow_alpha: float = traced(1.0, "Weight of flow matching; FQL's α, where alpha is 1.")


def best_of(count: int) -> BestOfN:
    """The choice of QC's code, in targets too."""
    return BestOfN(num_samples=count, target_samples=count, aggregate="mean", critics="online")


_QC: dict[str, Any] = {"critic": Critic(aggregate="mean"), "improves": False, "cloned": "actions"}
NAMES: Mapping[str, Config] = {
    "fbrac": Config(),
    "bfn": Config(**_QC, choice=best_of(4), horizon=Horizon()),
    "bfn_n": Config(**_QC, choice=best_of(4), horizon=Horizon(steps=5)),
    "qc": Config(**_QC, choice=best_of(32), horizon=Horizon(steps=5, chunk=True)),
}
"""The agents, each with its default configuration."""
State = TrainState[Config]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks: the actor takes s [B, D], x [B, A], t [B, 1] to a velocity [B, A]."""
    s, a, _, t = spec.inputs()
    field, critic = MLP(config.hidden_dims, spec.action_dim), critics.module(config.critic, config.hidden_dims)
    return Networks(spec, **named(actor=(field, s, a, t), critic=(critic, s, a)))


def sample(nets: Networks, config: Config, params: Params, s: jax.Array, key: jax.Array) -> jax.Array:
    """One action of the flow per state, clipped: `[..., D]` to `[..., A]`."""
    return config.flow.actions(partial(nets.actor, params, s), nets.spec.noise(key, s))


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m (mean Q̄ − ρ std Q̄)(s', a'))², a' a draw of the flow or the best of several (QC, eq. 4)."""
    return td_loss(sample, nets, params, state, batch, key, actors=state.params)


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """Flow matching; in FBRAC − mean Q(s, a)/α too, a of the whole flow, with constant critics."""
    (flow_key, z_key), config, s = jax.random.split(key), state.config, batch["observations"]
    valid = batch["valid"][:, None] if config.cloned == "chunks" else batch["actions_valid"]
    flow = config.flow.errors(partial(nets.actor, params, s), batch["actions"], flow_key, valid).mean()
    loss = config.flow_alpha * flow
    if not config.improves:
        return loss, {"actor/loss": loss}
    q = nets.critic(state.params, s, sample(nets, config, params, s, z_key)).mean()
    loss = loss - q / config.alpha
    return loss, {"actor/loss": loss, "actor/flow_loss": flow, "actor/q_mean": q}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of both losses at the same parameters, then the target critics toward those before the step."""
    config = state.config
    rates = dict.fromkeys(("actor", "critic"), config.learning_rate)
    moved, metrics = descend(nets, state, batch, key, (critic_loss, actor_loss), rates)
    return polyak(moved, state.params, critic=config.critic.target_rate), metrics


make = choosing(networks, update, sample, batch=Transitions.of, targets=("critic",))
