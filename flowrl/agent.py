"""What an algorithm is: a bundle of pure functions."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax

import flowrl.agents
from flowrl.errors import UserError, suggestion
from flowrl.train_state import Batch, Metrics, Mode, TrainState


class Spec(NamedTuple):
    """Sizes of one observation, goal and action; actions lie in [−1, 1].

    Attributes:
        observation_dim: D, of observations `[..., D]`.
        action_dim: A, of actions `[..., A]`.
        goal_dim: G, of goals `[..., G]`; 0 where there is a single task.
    """

    observation_dim: int
    action_dim: int
    goal_dim: int


class Needs(NamedTuple):
    """What an agent's update reads from a batch.

    Attributes:
        fields: Names of the batch's fields, in OGBench's terms.
        geometric: Those goal fields whose offset within the episode is geometric(1 − discount) instead of uniform.
        returns_discount: Discount of the Monte-Carlo `returns`, and of their `horizons`, where the agent reads them
            (`flowrl.data.returns`).
    """

    fields: tuple[str, ...]
    geometric: tuple[str, ...] = ()
    returns_discount: float | None = None

    @property
    def goals(self) -> bool:
        """Whether the agent is goal-conditioned."""
        return any("goals" in field for field in self.fields)


class Agent(NamedTuple):
    """An algorithm; every function can be jitted, mapped and differentiated.

    Attributes:
        init: `(key, hyper=None) -> TrainState`; `hyper` replaces some of the configuration's sweepable values.
        update: `(state, batch, key) -> (state, metrics)`: one training step.
        policy: `state -> arrays`: exactly what acting needs.
        act: `(policy, observations [..., D], goals [..., G], key, *, mode) -> actions [..., A]` in [−1, 1]. Mode
            `eval` is the mode of a Gaussian policy, and one draw of unit noise for a policy that maps noise;
            `best_of_n` chooses among several draws by Q.
        needs: What `update` reads from a batch.
        evaluations: The modes in which the agent is evaluated; their results are reported apart.
    """

    init: Callable[..., TrainState]
    update: Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]
    policy: Callable[[TrainState], Any]
    act: Callable[..., jax.Array]
    needs: Needs
    evaluations: tuple[Mode, ...] = ("eval",)


def names() -> list[str]:
    """Returns the names of all agents, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(flowrl.agents.__path__))


def load(name: str) -> ModuleType:
    """Imports `flowrl.agents.<name>`, a module with a `Config` dataclass and `make(config, spec) -> Agent`.

    Raises:
        UserError: There is no such agent.
    """
    if name not in names():
        raise UserError(f"unknown agent {name!r}{suggestion(name, names())}")
    return importlib.import_module(f"flowrl.agents.{name}")


def check_needs(needs: Needs, available: Mapping[str, Any]) -> None:
    """Checks that a batch carries every field that an update reads.

    Raises:
        UserError: A field is missing; the message names it.
    """
    missing = [field for field in needs.fields if field not in available]
    if missing:
        raise UserError(
            f"the batch lacks {', '.join(missing)}, which this agent reads; it has {', '.join(sorted(available))}; "
            "choose data or a sampler that provides them"
        )
