"""FBRAC, BFN and QC: a flow that clones behaviour, of whose actions critics choose, in acting and for their targets.

In FBRAC Q pulls the flow through all of its steps (https://arxiv.org/abs/2502.02538), here with the settings of QAM's
authors (https://arxiv.org/abs/2601.14234). In BFN nothing does, and the policy is the best of N draws; with chunks of
actions that is QC (Q-chunking, https://arxiv.org/abs/2507.07969), with n-step returns BFN-n.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax

from flowrl import critics
from flowrl.agent import Maker
from flowrl.choice import BestOfN, best_of_n, one_and_best, td_loss, with_critic
from flowrl.config import MOST_COUNT, config, nested, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.generative import Flow
from flowrl.networks import MLP, Network, Spec, named
from flowrl.optim import descend, polyak
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState


@config
class Config:
    """FBRAC's settings in QAM's code, for chunks as on manipulation tasks."""

    critic: Critic = nested(Critic(heads=10, aggregate="mean", rho=0.5))
    flow: Flow = nested(Flow(steps=10))
    choice: BestOfN = nested(BestOfN(aggregate="mean", critics="online"))
    horizon: Horizon = nested(Horizon(steps=5, chunk=True))
    hidden_dims: tuple[int, ...] = static((512, 512, 512, 512), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    improves: bool = static(True, "Q pulls the flow; else it clones, and Q only chooses.")
    cloned: str = static(
        "chunks", "What is cloned at an episode's end: whole chunks, or the actions up to it.",
        choices=("chunks", "actions"),
    )  # fmt: skip
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


class Networks(NamedTuple):
    """The flow and the critics."""

    spec: Spec
    actor: Network  # s [B, D], x [B, A], t [B, 1] -> velocity [B, A]
    critic: Network  # s [B, D], a [B, A] -> [heads, B]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks."""
    s, a, _, t = spec.inputs()
    field, critic = MLP(config.hidden_dims, spec.action_dim), critics.module(config.critic, config.hidden_dims)
    return Networks(spec, **named(actor=(field, s, a, t), critic=(critic, s, a)))


def sample(nets: Networks, flow: Flow, params: Params, s: jax.Array, key: jax.Array) -> jax.Array:
    """One action of the flow per state, clipped: `[..., D]` to `[..., A]`."""
    return flow.actions(partial(nets.actor, params, s), nets.spec.noise(key, s))


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m (mean Q̄ − ρ std Q̄)(s', a'))², a' a draw of the flow or the best of several (QC, eq. 4)."""
    return td_loss(nets, params, state, batch, partial(sample, nets, state.config.flow, state.params), key)


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """Flow matching; in FBRAC − mean Q(s, a)/α too, a of the whole flow, with constant critics."""
    (flow_key, z_key), config, s = jax.random.split(key), state.config, batch["observations"]
    valid = batch["valid"][:, None] if config.cloned == "chunks" else batch["actions_valid"]
    flow = config.flow.errors(partial(nets.actor, params, s), batch["actions"], flow_key, valid).mean()
    loss = config.flow_alpha * flow
    if not config.improves:
        return loss, {"actor/loss": loss}
    q = nets.critic(state.params, s, sample(nets, config.flow, params, s, z_key)).mean()
    loss = loss - q / config.alpha
    return loss, {"actor/loss": loss, "actor/flow_loss": flow, "actor/q_mean": q}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step of both losses at the same parameters, then the target critics toward those before the step."""
    config = state.config
    rates = dict.fromkeys(("actor", "critic"), config.learning_rate)
    moved, metrics = descend(nets, state, batch, key, (critic_loss, actor_loss), rates)
    return polyak(moved, state.params, critic=config.critic.target_rate), metrics


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """One draw of the flow, which explores by itself, or the best of several by Q."""
    s, params, config = inputs["observations"], policy.params, policy.config
    one = partial(sample, nets, config.flow, params, s)
    return best_of_n(config.choice, one, partial(nets.critic, params, s), key)


make = Maker(
    networks, update, act, batch=Transitions.of, targets=("critic",),
    acting=lambda state: with_critic(state, state.params), evaluations=one_and_best, explores=lambda config: config,
)  # fmt: skip
