"""What an algorithm is: a bundle of pure functions, put together from its networks, losses and update."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple

import jax
import jax.numpy as jnp

from flowrl.config import as_arrays
from flowrl.networks import Network, Spec
from flowrl.optim import ADAM
from flowrl.train_state import Batch, C, Metrics, Params, Policy, TrainState


def unchanged(config: C) -> C:
    """Returns the same, for `explores` and `online`."""
    return config


class Agent(NamedTuple, Generic[C]):
    """An algorithm with its networks built in; every function can be jitted, mapped and differentiated.

    Attributes:
        init: `(key, config) -> state`; the config's traced fields may be traced.
        update: `(state, batch, key) -> (state, metrics)`: one training step.
        policy: `state -> policy`: exactly what acting needs.
        act: `(policy, inputs, key, *, explore=False) -> actions [..., A]` in [−1, 1]. Inputs are `observations`
            `[..., D]` and, of a goal-conditioned agent, `goals` `[..., G]`. An agent that plays H actions in a row, a
            chunk, gives `[..., H, A]`. Without `explore` it is the mode of a Gaussian policy, and one draw of unit
            noise for a policy that maps noise.
        batch: `config -> kind`: what kind of batches `update` reads (`flowrl.data.samplers`).
        evaluations: `config -> {name: config}`: as what the agent is evaluated; the results are reported apart.
        explores: `config -> config`: as what it acts while it learns online.
        online: `config -> config`: as what it learns online, after its offline updates if there are any. The metrics
            are the same.
    """

    init: Callable[[jax.Array, C], TrainState[C]]
    update: Callable[[TrainState[C], Batch, jax.Array], tuple[TrainState[C], Metrics]]
    policy: Callable[[TrainState[C]], Policy[C]]
    act: Callable[..., jax.Array]
    batch: Callable[[C], Any]
    evaluations: Callable[[C], Mapping[str, C]]
    explores: Callable[[C], C]
    online: Callable[[C], C] = unchanged


def _nothing(config: Any) -> dict[str, Any]:
    return {}


def _actor_alone(state: TrainState[Any]) -> Params:
    return {"actor": state.params["actor"]}


def _as_it_is(config: Any) -> dict[str, Any]:
    return {"eval": config}


def _in_chunks(
    length: int, act: Callable[..., jax.Array], nets: Any, policy: Policy[Any], inputs: Batch, key: jax.Array, *,
    explore: bool = False,
) -> jax.Array:  # fmt: skip
    """Returns chunks `[..., H, A]` of an agent that chooses them as one action `[..., H·A]`."""
    chunks = act(nets, policy, inputs, key, explore=explore)
    return chunks.reshape(*chunks.shape[:-1], length, -1)


def _first_state(
    networks: Sequence[Network],
    key: jax.Array,
    config: C,
    targets: Sequence[str],
    multipliers: Mapping[str, Any],
    extras: Mapping[str, Any],
) -> TrainState[C]:
    """Returns a state before its first update."""
    keys = jax.random.split(key, len(networks)) if len(networks) > 1 else [key]
    params = {net.name: net.init(k) for net, k in zip(networks, keys, strict=True)}
    params |= {name: {"log": jnp.asarray(log, jnp.float32)} for name, log in multipliers.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        config=config,
        params=params,
        # Copies, not aliases: a donated state may not hold one buffer twice.
        target_params={name: jax.tree.map(jnp.copy, params[name]) for name in targets if name in params},
        opt_state={name: ADAM.init(params[name]) for name in params},
        extras=extras,
    )


@dataclasses.dataclass(frozen=True)
class Maker(Generic[C]):
    """Puts an agent together from its functions: `make = Maker(networks, update, act, …)`, then `make(config, spec)`.

    Every network is initialised in the same way, and updates are counted here alone. Where the kind of batches has
    chunks, actions are whole chunks to all of its functions, `[..., H·A]`, and are taken apart here.

    Attributes:
        networks: `(config, spec) -> nets`, a named tuple of networks, and of whatever else the functions read.
        update: `(nets, state, batch, key) -> (state, metrics)`.
        act: `(nets, policy, inputs, key, *, explore) -> actions`.
        batch: What kind of batches `update` reads.
        acting: The parameters that leave training; by default the actor's.
        targets: The networks that have slow copies, where the settings have them.
        multipliers: Names of learnt multipliers and the logarithms `[]` that they begin with.
        extras: Other arrays at the beginning.
        evaluations: As what it is evaluated; by default as it is configured.
        explores: As what it explores; by default as it is first evaluated.
        online: As what it learns online; by default as it is configured.
    """

    networks: Callable[[C, Spec], Any]
    update: Callable[..., tuple[TrainState[C], Metrics]]
    act: Callable[..., jax.Array]
    _: dataclasses.KW_ONLY
    batch: Callable[[C], Any]
    acting: Callable[[TrainState[C]], Params] = _actor_alone
    targets: Sequence[str] = ()
    multipliers: Callable[[C], Mapping[str, Any]] = _nothing
    extras: Callable[[C], Mapping[str, Any]] = _nothing
    evaluations: Callable[[C], Mapping[str, C]] = _as_it_is
    explores: Callable[[C], C] | None = None
    online: Callable[[C], C] = unchanged

    def __call__(self, config: C, spec: Spec) -> Agent[C]:
        """Builds the networks for a configuration, of which only the structure counts, and the agent around them."""
        chunk = self.batch(config).chunk
        nets = self.networks(config, spec.chunk(chunk) if chunk else spec)
        if unknown := sorted(set(self.targets) - set(nets._fields)):
            raise ValueError(f"targets name no networks: {', '.join(unknown)}")
        structure: Any = jax.tree.structure(config)
        trained = [net for name, net in nets._asdict().items() if isinstance(net, Network) and net.name == name]

        def init(key: jax.Array, config: C) -> TrainState[C]:
            if structure != jax.tree.structure(config):
                raise ValueError("the networks were built for other static settings; call make with this configuration")
            config = as_arrays(config)
            return _first_state(trained, key, config, self.targets, self.multipliers(config), self.extras(config))

        def update(state: TrainState[C], batch: Batch, key: jax.Array) -> tuple[TrainState[C], Metrics]:
            state, metrics = self.update(nets, state, batch, key)
            return state.replace(step=state.step + 1), metrics

        def policy(state: TrainState[C]) -> Policy[C]:
            return Policy(state.config, self.acting(state))

        act = partial(_in_chunks, chunk, self.act) if chunk else self.act
        explores = self.explores or (lambda config: next(iter(self.evaluations(config).values())))
        return Agent(init, update, policy, partial(act, nets), self.batch, self.evaluations, explores, self.online)
