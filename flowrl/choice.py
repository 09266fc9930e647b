"""Choosing among several actions by Q: the best of N draws, in acting and for TD targets, or a search."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp

from flowrl import critics
from flowrl.agent import Maker, unchanged
from flowrl.config import config, put, static, traced
from flowrl.networks import Spec
from flowrl.paths import one_each
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState

Sample = Callable[[Any, Any, Params, jax.Array, jax.Array], jax.Array]
"""A policy, `(nets, config, params, s, key) -> actions`: a draw for each state, `[..., D]` to `[..., A]`."""

# --------------------------------------------------------------------------------------------- the best of several


@config
class BestOfN:
    """How many actions are drawn, and how one of them is chosen, in acting and for TD targets."""

    num_samples: int = static(1, "With more than 1, also evaluates the best of that many actions by Q.", acting=True)
    temperature: float = traced(
        0.0, "Draws by softmax(temperature x Q), as in DQL's code; 0 takes the best.", acting=True
    )
    target_samples: int = static(1, "Next actions that a TD target draws; with more than 1 the best by Q counts.")
    aggregate: str = static("min", "Which value of several critics ranks actions.", choices=("min", "mean"))
    critics: str = static("target", "Which critics rank actions.", choices=("target", "online"))

    @property
    def in_targets(self) -> "BestOfN":
        """The choice of TD targets, which is the best."""
        return dataclasses.replace(self, num_samples=self.target_samples, temperature=0.0)

    def ranking(self, state: TrainState[Any]) -> Params:
        """Returns the parameters with the critics that rank."""
        return state.params if self.critics == "online" else state.target_params


def best_of_n(
    choice: BestOfN, sample: Callable[[jax.Array], jax.Array], critic: Callable[[jax.Array], jax.Array], key: jax.Array
) -> jax.Array:
    """Draws several actions per state and keeps one by Q: the best, or a draw from softmax(temperature · Q).

    Args:
        choice: How many are drawn, and the temperature in units of 1/Q.
        sample: The policy, `key -> actions [..., A]`.
        critic: The critics in the same states, `actions [..., A] -> values [heads, ...]`.
        key: Random key; that of the only draw where one is drawn.

    Returns:
        Actions `[..., A]`.
    """
    if choice.num_samples == 1:
        return sample(key)
    sample_key, choice_key = jax.random.split(key)
    actions = jax.vmap(sample)(jax.random.split(sample_key, choice.num_samples))
    values = jax.vmap(critic)(actions)
    values = values.min(axis=1) if choice.aggregate == "min" else values.mean(axis=1)
    drawn = jax.random.categorical(choice_key, choice.temperature * values, axis=0)
    chosen = jnp.where(jnp.asarray(choice.temperature) > 0, drawn, values.argmax(axis=0))
    return jnp.take_along_axis(actions, chosen[None, ..., None], axis=0)[0]


def draws_no_targets(choice: BestOfN, prefix: str, max_q_backup: bool = False) -> str:
    """Says which settings of next actions do nothing, for agents whose targets bootstrap V(s')."""
    several = f"{prefix}choice.target_samples={choice.target_samples}" if choice.target_samples > 1 else ""
    told = " ".join(filter(None, [several, f"{prefix}max_q_backup=True" if max_q_backup else ""]))
    return f"{told} is for targets that draw next actions; this agent's bootstrap V(s'); leave it out" if told else ""


class HasChoice(Protocol):
    """A configuration of an agent that may choose among several actions."""

    @property
    def choice(self) -> BestOfN:
        """How it chooses."""


H = TypeVar("H", bound=HasChoice)


class Samples(Protocol):
    """A generative model as `flowrl.generative` has them."""

    def sample(self, field: Any, z: jax.Array, key: jax.Array) -> jax.Array:
        """Actions `[..., A]` of noise `[..., A]`, with further noise from the key."""


class HasModel(Protocol):
    """A configuration of an agent whose policy is a generative model."""

    @property
    def policy(self) -> Samples:
        """Makes actions of noise, and perhaps of further noise on the way."""


def with_critic(state: TrainState[H], actors: Params, names: Sequence[str] = ("actor",)) -> Params:
    """Returns the parameters that act: those of actors, and where one of several actions is chosen the critics'.

    Args:
        state: Of an agent with a `choice`.
        actors: Its parameters or its slow copies, whichever act.
        names: The networks that act.
    """
    one, choice = {name: actors[name] for name in names}, state.config.choice
    return one if choice.num_samples == 1 else one | {"critic": choice.ranking(state)["critic"]}


def generated(nets: Any, config: HasModel, params: Params, s: jax.Array, key: jax.Array) -> jax.Array:
    """One clipped action of a generative policy per state: `[..., D]` to `[..., A]`.

    Args:
        nets: Its `actor` is the model's field.
        config: Its `policy` is the model.
        params: Of the copy that acts.
        s: The states.
        key: Random key.
    """
    z_key, steps_key = jax.random.split(key)
    z = nets.spec.noise(z_key, s)
    return jnp.clip(config.policy.sample(partial(nets.actor, params, s), z, steps_key), -1.0, 1.0)


def best_next(
    sample: Sample, nets: Any, state: TrainState[H], actors: Params, s: jax.Array, key: jax.Array
) -> jax.Array:  # fmt: skip
    """Returns the actions `[B, A]` whose value a TD target bootstraps: a draw each, or the best of several by Q.

    Args:
        sample: The policy.
        nets: Its networks, and the `critic` that ranks.
        state: Of an agent with a `choice`.
        actors: The policy's parameters, or its slow copies.
        s: The states `[B, D]`.
        key: Random key; that of the only draw where one is drawn.
    """
    choice, one = state.config.choice, partial(sample, nets, state.config, actors, s)
    return best_of_n(choice.in_targets, one, partial(nets.critic, choice.ranking(state), s), key)


def td_loss(
    sample: Sample, nets: Any, params: Params, state: TrainState[Any], batch: Batch, key: jax.Array, *, actors: Params
) -> Loss:
    """E (Q(s, a) − r − γ m agg Q̄(s', a'))², a' a draw of a policy, or the best of several by Q.

    Args:
        sample: The policy.
        nets: Its networks and their `critic`.
        params: Parameters to differentiate.
        state: Of an agent with a `choice` and a `critic`.
        batch: Transitions.
        key: Random key.
        actors: The policy's parameters, or its slow copies.

    Returns:
        The mean over heads and rows `[]`, and metrics.
    """
    next_s = batch["next_observations"]
    next_a = best_next(sample, nets, state, actors, next_s, key)
    next_q = critics.combine(state.config.critic, nets.critic(state.target_params, next_s, next_a))
    targets = batch["rewards"] + batch["discounts"] * next_q
    errors, metrics = critics.td_errors(nets.critic(params, batch["observations"], batch["actions"]), targets, batch)
    return errors.mean(), metrics


BACKUP_ACTIONS = 10
"""Next actions of the max-Q backup."""


def backup_values(
    sample: Sample, nets: Any, state: TrainState[H], s: jax.Array, key: jax.Array, *, max_q: bool
) -> jax.Array:
    """Returns what a TD target bootstraps, slow values `[heads, B]` of a next action, or each one's best of several.

    Actions are those of the slow policy.

    Args:
        sample: The policy.
        nets: Its networks and their `critic`.
        state: Of an agent with a `choice`.
        s: The states `[B, D]`.
        key: Random key, split over the actions.
        max_q: Whether each critic takes the largest value of several actions (max-Q backup,
            https://arxiv.org/abs/2006.04779).
    """

    def values(key: jax.Array) -> jax.Array:
        return nets.critic(state.target_params, s, best_next(sample, nets, state, state.target_params, s, key))

    return jax.vmap(values)(jax.random.split(key, BACKUP_ACTIONS if max_q else 1)).max(axis=0)


def one_draw(config: H) -> H:
    """Returns the same without a choice."""
    return put(config, {"choice.num_samples": 1})


def one_and_best(config: H) -> dict[str, H]:
    """Returns what such an agent is evaluated as: one draw, and if it has more the best of them."""
    one = {"eval": one_draw(config)}
    return one if config.choice.num_samples == 1 else one | {"best_of_n": config}


def _trained(state: TrainState[H]) -> Params:
    return with_critic(state, state.params)


def choosing(
    networks: Callable[[H, Spec], Any], update: Callable[..., tuple[TrainState[H], Metrics]], sample: Sample, *,
    acting: Callable[[TrainState[H]], Params] = _trained, explores: Callable[[H], H] = unchanged, **more: Any,
) -> Maker[H]:  # fmt: skip
    """Puts an agent together that acts by the best of several draws of its policy by Q, or by one draw.

    Args:
        networks: As for `Maker`; its `critic` ranks.
        update: As for `Maker`.
        sample: The policy; the `choice` of its configuration says how many are drawn.
        acting: The parameters that leave training, with `with_critic`; by default the trained actor's.
        explores: As what it explores; by default as it is configured.
        more: What else `Maker` takes.
    """

    def act(nets: Any, policy: Policy[H], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
        s, params, config = inputs["observations"], policy.params, policy.config
        return best_of_n(config.choice, partial(sample, nets, config, params, s), partial(nets.critic, params, s), key)

    return Maker(networks, update, act, acting=acting, evaluations=one_and_best, explores=explores, **more)


# ------------------------------------------------------------------------------------------------------ beam search


@config
class Beam:
    """A search among actions that noise spreads and Q moves (FMQ, https://arxiv.org/abs/2605.12416, algorithm 2)."""

    rounds: int = static(0, "With more than 0, also evaluates a beam search of that many rounds.", low=0, acting=True)
    width: int = static(4, "Actions that it keeps.", acting=True)
    copies: int = static(4, "Copies of each that a round draws.", acting=True)
    snr: float = traced(1.5, "Ratio of action and noise in a copy.", acting=True)
    step_size: float = traced(0.3, "How far a round moves actions along Q's gradient.", acting=True)


def ascent(value: Callable[[jax.Array], jax.Array], a: jax.Array) -> jax.Array:
    """Directions of unit length in which the values `[...]` of actions `[..., A]` rise: `[..., A]`."""
    slopes = jax.grad(lambda a: value(a).sum())(a)
    return slopes / (jnp.linalg.norm(slopes, axis=-1, keepdims=True) + 1e-8)


def beam_search(
    beam: Beam,
    start: Callable[[jax.Array], jax.Array],
    field: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    critic: Callable[[jax.Array], jax.Array],
    key: jax.Array,
) -> jax.Array:
    """Spreads actions by noise, completes them, keeps the best by the lowest critic, moves them, and so on.

    Args:
        beam: How.
        start: The first actions, `key -> [width, ..., A]`.
        field: Velocities `(points, times, times) -> [..., A]` of a flow with data at time 1.
        critic: As for `best_of_n`.
        key: Random key.

    Returns:
        Actions `[..., A]`.
    """

    def best(a: jax.Array, number: int) -> jax.Array:
        order = jnp.argsort(critic(a).min(axis=0), axis=0)
        return jnp.take_along_axis(a, order[-number:, ..., None], axis=0)

    keys, t = jax.random.split(key, beam.rounds + 1), beam.snr / (1 + beam.snr)
    a = start(keys[0])
    for i in range(beam.rounds):
        spread = jnp.repeat(t * a, beam.copies, axis=0)
        spread = spread + (1 - t) * jax.random.normal(keys[i + 1], spread.shape)
        times = jnp.full(one_each(spread), t)
        a = best(jnp.clip(spread + (1 - t) * field(spread, times, times), -1.0, 1.0), beam.width)
        a = jnp.clip(a + beam.step_size * ascent(lambda a: critic(a).min(axis=0), a), -1.0, 1.0)
    return best(a, 1)[0]


class HasBeam(HasChoice, Protocol):
    """A configuration of an agent that may also search."""

    @property
    def beam(self) -> Beam:
        """How it searches."""


S = TypeVar("S", bound=HasBeam)


def without_beam(config: S) -> S:
    """Returns the same without a search."""
    return put(config, {"beam.rounds": 0})


def one_best_and_beam(config: S) -> dict[str, S]:
    """Returns what such an agent is evaluated as: one draw, the best of several, and what a search finds."""
    return one_and_best(without_beam(config)) | ({"beam": config} if config.beam.rounds else {})
