"""FMQ: a flow map learnt from data, then guided online by Q within a trust region (https://arxiv.org/abs/2605.12416).

The policy u(x, r, t; s) is the mean velocity from time r to t; an action is one jump from noise. Offline it clones the
data and is the best of N by Q. Online, mean velocities to the end of the path are regressed on those of the offline
policy u°, which stays as it was, moved a little along the direction in which Q rises.
"""

from functools import partial

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.agent import Maker
from flowrl.choice import Beam, BestOfN, ascent, beam_search, best_of_n, one_best_and_beam, td_loss, without_beam
from flowrl.config import MOST_COUNT, config, nested, put, static, traced
from flowrl.critics import Critic
from flowrl.data.samplers import Horizon, Transitions
from flowrl.encoders import FeaturesMLP
from flowrl.generative import FlowMap
from flowrl.losses import mse
from flowrl.networks import Networks, Spec, named
from flowrl.optim import descend, polyak
from flowrl.paths import one_each, straight, uniform_times
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, Scalar, TrainState

THIRTY_TWO = BestOfN(num_samples=32, target_samples=32, aggregate="mean", critics="online")


@config
class Config:
    """The settings of the released configuration."""

    critic: Critic = nested(Critic(aggregate="mean"))
    flow: FlowMap = nested(FlowMap())
    choice: BestOfN = nested(THIRTY_TWO)
    beam: Beam = nested(Beam())
    horizon: Horizon = nested(Horizon(steps=5, chunk=True))
    hidden_dims: tuple[int, ...] = static((512, 512, 512, 512), "Hidden layers of every network.")
    batch_size: int = static(256, "Transitions per update.", high=MOST_COUNT)
    learning_rate: float = traced(3e-4, "Adam's step size, for every network.")
    discount: float = traced(0.99, "Discount per environment step.", high=1.0)
    phase: str = static("offline", "What is learnt; a run that goes online changes it.", choices=("offline", "online"))
    adaptive: bool = static(True, "Online, step sizes are 1 / (1 + beta x the critics' relative deviation).")
    beta: float = traced(0.3, "Weight of that deviation.")
    eta: float = traced(0.5, "The step size where it is not adaptive.")
    velocity_weight: float = static(0.0, "Online, weight of flow matching.", low=0)
    consistency_weight: float = static(0.0, "Online, weight of consistency between intervals.", low=0)


State = TrainState[Config]


def networks(config: Config, spec: Spec) -> Networks:
    """Builds the networks: the actor takes s [B, D], x [B, A], r [B, 1], t [B, 1] to a mean velocity [B, A]."""
    s, a, _, t = spec.inputs()
    field = FeaturesMLP(config.hidden_dims, spec.action_dim, times=2)
    critic = critics.module(config.critic, config.hidden_dims)
    return Networks(spec, **named(actor=(field, s, a, t, t), critic=(critic, s, a)))


def sample(nets: Networks, config: Config, params: Params, s: jax.Array, key: jax.Array) -> jax.Array:
    """One action per state, z + u(z, 0, 1), clipped: `[..., D]` to `[..., A]`."""
    return jnp.clip(config.flow.sample(partial(nets.actor, params, s), nets.spec.noise(key, s)), -1.0, 1.0)


def critic_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """E (Q(s, a) − r − γ m Q̄(s', a'))², a' the best of N draws by Q (eq. 8)."""
    return td_loss(sample, nets, params, state, batch, key, actors=state.params)


def step_sizes(config: Config, q: jax.Array) -> jax.Array:
    """How far velocities are moved, less where critics disagree: `[heads, B]` to `[B, 1]` (eq. 13)."""
    deviations = q.std(axis=0)[:, None]
    relative = deviations / (deviations.mean() + 1e-8)
    return 1 / (1 + config.beta * relative) if config.adaptive else jnp.full_like(relative, config.eta)


def guided_errors(
    nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """‖u(x_r, r, 1) − u°(x_r, r, 1) − η ∇Q₁ / ‖∇Q₁‖‖² `[B]`, Q₁ where u° leads (eq. 12), and the mean of η."""
    (time_key, noise_key), s, a = jax.random.split(key), batch["observations"], batch["actions"]
    r = uniform_times(time_key, one_each(a))
    x, one = straight(jax.random.normal(noise_key, a.shape), a, r).points, jnp.ones_like(r)
    u = nets.actor(state.target_params, s, x, r, one)
    ends, q = jnp.clip(x + (1 - r) * u, -1.0, 1.0), partial(nets.critic, state.params, s)
    sizes = step_sizes(state.config, q(ends))
    targets = u + sizes * ascent(lambda a: q(a)[0], ends)
    return mse(nets.actor(params, s, x, r, one), targets, batch["actions_valid"]), sizes.mean()


def actor_loss(nets: Networks, params: Params, state: State, batch: Batch, key: jax.Array) -> Loss:
    """Offline flow matching and, after a while, consistency between intervals (eqs. 3, 5); online the guided errors."""
    (guide_key, flow_key, key), config, zero = jax.random.split(key, 3), state.config, jnp.zeros(())
    field, valid = partial(nets.actor, params, batch["observations"]), batch["actions_valid"]
    flow, a, done, offline = config.flow, batch["actions"], state.step + 1, config.phase == "offline"
    guided, eta = (zero, zero) if offline else guided_errors(nets, params, state, batch, guide_key)
    parts = {"guided_loss": guided.mean(), "flow_loss": zero, "consistency_loss": zero}
    weights: dict[str, Scalar] = {"guided_loss": 1.0, "flow_loss": 1.0, "consistency_loss": done > flow.warmup}
    if not offline:
        weights |= {"flow_loss": config.velocity_weight, "consistency_loss": config.consistency_weight}
    if offline or config.velocity_weight:
        parts["flow_loss"] = flow.errors(field, a, flow_key, valid).mean()
    if offline or config.consistency_weight:
        parts["consistency_loss"] = flow.consistency(field, a, key, done, valid).mean()
    loss = sum((weights[name] * parts[name] for name in parts), zero)
    return loss, {f"actor/{name}": value for name, value in {**parts, "loss": loss, "eta": eta}.items()}


def update(nets: Networks, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One joint step, then the target critics toward the parameters before it; u° follows until the run is online."""
    config = state.config
    rates = dict.fromkeys(("actor", "critic"), config.learning_rate)
    moved, metrics = descend(nets, state, batch, key, (critic_loss, actor_loss), rates)
    moved = polyak(moved, state.params, critic=config.critic.target_rate)
    return (polyak(moved, moved.params, actor=1.0) if config.phase == "offline" else moved), metrics


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    """The best of N draws by Q, which explores by itself, or a beam search."""
    s, params, config = inputs["observations"], policy.params, policy.config
    q = partial(nets.critic, params, s)
    if config.beam.rounds:
        several = jnp.broadcast_to(s, (config.beam.width, *s.shape))
        start = partial(sample, nets, config, params, several)
        return beam_search(config.beam, start, partial(nets.actor, params, s), q, key)
    return best_of_n(config.choice, partial(sample, nets, config, params, s), q, key)


make = Maker(
    networks, update, act, batch=Transitions.of, targets=("actor", "critic"),
    acting=lambda state: {**state.params, "critic": state.config.choice.ranking(state)["critic"]},
    evaluations=one_best_and_beam, explores=without_beam,
    online=lambda config: put(config, {"phase": "online", "critic.aggregate": "min", "choice.aggregate": "min"}),
)  # fmt: skip
