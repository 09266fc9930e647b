"""What a module of `mappings` declares: how an agent here is given the authors' inputs, and under which names."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from flowrl.config import flatten

Arrays = dict[str, np.ndarray]
"""Arrays by the authors' names, `network/layer/kernel`."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array here and the authors' arrays that it is made of.

    Attributes:
        ours: Its path, `network/params/MLP_0/Dense_0/kernel`; the first part is the entry of `state.params`.
        theirs: The authors' paths.
        join: Makes ours from theirs.
        split: Makes theirs, one or a sequence of them, from ours; must hold for gradients too.
    """

    ours: str
    theirs: tuple[str, ...]
    join: Callable[..., Any] = lambda array: array
    split: Callable[[np.ndarray], Any] = lambda array: [array]


@dataclasses.dataclass(frozen=True)
class Draw:
    """One call of a function of `jax.random` here and the authors' draw that it gets.

    Attributes:
        kind: The function's name, such as `normal`.
        roles: The authors' names of the draw, without numbers; several are stacked on a new first axis.
        arrange: Brings each of the authors' arrays into the layout here.
    """

    kind: str
    roles: tuple[str, ...]
    arrange: Callable[[np.ndarray], np.ndarray] = lambda array: array


def draws(*texts: str, arrange: Callable[[np.ndarray], np.ndarray] = lambda array: array) -> tuple[Draw, ...]:
    """Returns draws in the order in which an agent makes them, each written as `normal role` or `uniform role role`."""
    parts = (text.split() for text in texts)
    return tuple(Draw(kind, tuple(roles), arrange) for kind, *roles in parts)


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of acting.

    Attributes:
        explore: Whether the agent explores.
        draws: What it draws, in order.
        config: Fields of the configuration that differ.
        evaluated_as: The name of the evaluation whose configuration acts; by default the configuration as it is.
        call: Acts instead of the agent: `(config, state, observations, key) -> actions`.
    """

    explore: bool = False
    draws: tuple[Draw, ...] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    evaluated_as: str = ""
    call: Callable[..., Any] | None = None

    def evaluation(self, evaluations: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the static settings of the evaluation."""
        if not self.evaluated_as:
            return {}
        return {e.name: e.value for e in flatten(evaluations[self.evaluated_as]) if not e.traced}


def _same_batch(batch: Arrays, config: Mapping[str, Any]) -> Arrays:
    return batch


def _as_they_are(grads: Arrays) -> Arrays:
    return grads


def _same_state(state: Any, file: Any) -> Any:
    return state


@dataclasses.dataclass(frozen=True)
class AgentMapping:
    """How one agent is held to the authors' numbers.

    Attributes:
        config: Makes the fields of the agent's `Config` from the authors' settings (`meta["config"]`), and the name of
            the file as one more, `file`.
        leaves: Every array of the trained networks; target networks have the same names.
        losses: The authors' losses and metrics, `name` or the sum `name + other`: the metric's name here, or a function
            of all metrics here.
        draws: What one update draws, in order, or a function that makes it of the file's name.
        ways: Ways of acting by the file's prefix, such as `act` and `act_mode`, or by the whole key of their actions.
        left_out: What is not compared, the authors' key or a beginning of keys that ends in `*`, with the reason.
        eager: Whether the agent gets real keys and is not compiled (`feeding`).
        batch: Makes the batch here of theirs and their settings.
        absent: Networks of theirs that there are none of here, or parts of them, or `targets/NAME` where only a slow
            copy is missing, with the reason.
        met: What the optimizer meets of their gradients, where that is not these: clipped ones.
        prepare: Completes a state that has the file's parameters and targets, `(state, file) -> state`.
        extras: Further values here by the authors' key, `extras/…`; each gets `(states, metrics)` of the updates.
        agent: The name of the agent here, if the files have another.
    """

    config: Callable[[Mapping[str, Any]], dict[str, Any]]
    leaves: tuple[Leaf, ...]
    losses: Mapping[str, str | Callable[[Mapping[str, Any]], Any]]
    ways: Mapping[str, Way]
    draws: tuple[Draw, ...] | Callable[[str], tuple[Draw, ...]] = ()
    eager: bool = False
    batch: Callable[[Arrays, Mapping[str, Any]], Arrays] = _same_batch
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)
    met: Callable[[Arrays], Arrays] = _as_they_are
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prepare: Callable[[Any, Any], Any] = _same_state
    extras: Mapping[str, Callable[[list[Any], list[Any]], Any]] = dataclasses.field(default_factory=dict)
    agent: str = ""


def chunks(batch: Arrays, config: Mapping[str, Any]) -> Arrays:
    """A batch of chunks, or of n steps: QC's sampler gives running sums, products and ends for each step.

    What counts is at the last step; `valid` is 1 up to the end of an episode.
    """
    last, steps = {"next_observations", "rewards", "masks", "valid"}, config["horizon_length"]
    found = {name: value[:, -1] if name in last else value for name, value in batch.items()}
    found["discounts"] = config["discount"] ** steps * found["masks"]
    actions, valid = batch["actions"], np.broadcast_to(batch["valid"][..., None], batch["actions"].shape)
    if not config["action_chunking"]:
        return {**found, "actions": actions[:, 0], "actions_valid": valid[:, 0]}
    return {**found, "actions": actions.reshape(len(actions), -1), "actions_valid": valid.reshape(len(actions), -1)}


def goal_values(batch: Arrays, config: Mapping[str, Any]) -> Arrays:
    """A batch with goals whose values bootstrap after one step."""
    return {**batch, "value_next_observations": batch["next_observations"]}


def horizon(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of such batches."""
    return {"horizon.steps": config["horizon_length"], "horizon.chunk": config["action_chunking"]}


def fqls(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that have the same names in FQL's code and all code that followed it."""
    return {
        "hidden_dims": tuple(config["actor_hidden_dims"]),
        "learning_rate": config["lr"],
        "discount": config["discount"],
        "critic.target_rate": config["tau"],
    }


def qams(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that QAM's agents have in common."""
    own = {"critic.heads": "num_qs", "critic.rho": "rho", "flow.steps": "flow_steps"}
    own |= {"choice.num_samples": "best_of_n", "choice.target_samples": "best_of_n"}
    return fqls(config) | horizon(config) | {ours: config[theirs] for ours, theirs in own.items()}


VALUE_LOSSES = {
    "value/value_loss": "value/loss",
    "value/v_mean": "value/v_mean",
}
"""Losses and metrics of `losses.goal_value_loss`; its extremes are over both heads here, over their mean there."""
CRITIC_LOSSES = {
    "critic/critic_loss": "critic/loss",
    "critic/q_mean": "critic/q_mean",
    "critic/q_max": "critic/q_max",
    "critic/q_min": "critic/q_min",
}
"""Losses and metrics of `critics.td_errors`."""


def total(*names: str) -> Callable[[Mapping[str, Any]], Any]:
    """Returns the sum of metrics."""
    return lambda metrics: sum(metrics[name] for name in names)


def dense(ours: str, theirs: str) -> Iterator[Leaf]:
    """A dense layer, or anything of kernel and bias."""
    for name in ("kernel", "bias"):
        yield Leaf(f"{ours}/{name}", (f"{theirs}/{name}",))


def mlp(
    ours: str, theirs: str, *, norm: bool = False, layers: tuple[str, ...] = ("Dense_0", "Dense_1", "Dense_2")
) -> Iterator[Leaf]:
    """A `flowrl.networks.MLP`.

    Args:
        ours: Its path here.
        theirs: Its path there.
        norm: Whether LayerNorm follows the hidden layers.
        layers: The authors' names of the layers in order.
    """
    for index, layer in enumerate(layers):
        own = "SplitDense_0" if index == 0 else f"Dense_{index - 1}"
        yield from dense(f"{ours}/{own}", f"{theirs}/{layer}")
        if norm and index < len(layers) - 1:
            for name in ("scale", "bias"):
                yield Leaf(f"{ours}/LayerNorm_{index}/{name}", (f"{theirs}/LayerNorm_{index}/{name}",))


GAUSSIAN = ("actor_net/Dense_0", "actor_net/Dense_1", "mean_net")
"""The layers of the Gaussian policy in OGBench's code."""


def gaussian() -> Iterator[Leaf]:
    """A `flowrl.policies.Gaussian` named `actor`, and OGBench's; with log standard deviations where they are learnt."""
    yield from mlp("actor/params/MLP_0", "actor", layers=GAUSSIAN)
    yield Leaf("actor/params/log_stds", ("actor/log_stds",))


IMPROVED = {f"actor/{name}": f"actor/{name}" for name in ("mse", "bc_loss", "q_loss", "q_mean")}
IMPROVED |= {"actor/actor_loss": "actor/loss", "actor/adv": "actor/advantage"}
"""Losses and metrics of `policies.awr_loss` and `policies.ddpgbc_loss`."""
NOT_LOGGED = {
    "loss/actor/std": "not logged here; its logarithm is compared where it is learnt, else it is 1",
    "loss/actor/bc_log_prob": "not logged here; part of the loss",
    "loss/actor/q_abs_mean": "not logged here; part of the loss",
    "loss/grad/*": "gradients themselves are compared",
}


def ogbenchs(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of OGBench's goal-conditioned agents."""
    return {
        "hidden_dims": tuple(config["actor_hidden_dims"]),
        "learning_rate": config["lr"],
        "discount": config["discount"],
        "actor_loss": config["actor_loss"],
        "alpha": config["alpha"],
        "learnt_std": not config["const_std"],
    }


OGBENCHS_WAYS = {"act": Way(True, draws("normal gaussian_noise")), "act/actions_temperature0": Way()}
"""How such agents act in the files that have both in one part."""


def twins(ours: str, theirs: str, *, norm: bool = True) -> Iterator[Leaf]:
    """Twin values or critics, stacked on the first axis in both codes."""
    return mlp(f"{ours}/params/MLP_0", f"{theirs}/value_net", norm=norm)


def goal_representation() -> Iterator[Leaf]:
    """φ([s; g])."""
    return mlp("goal_rep/params/MLP_0", "goal_rep/layers_0", norm=True)


def transposed(ours: str, theirs: str) -> Leaf:
    """A kernel whose axes are the other way round there."""
    return Leaf(ours, (theirs,), lambda kernel: kernel.T, lambda kernel: [kernel.T])


def time_pair(ours: str, theirs: str, *, norm: bool = False) -> Iterator[Leaf]:
    """The embedding of two times, as in SSCP's code."""
    yield transposed(f"{ours}/FourierFeatures_0/kernel", f"{theirs}/time_encoder/kernel")
    for own, name in (("first", "time_feature_encoder"), ("second", "step_feature_encoder")):
        yield from mlp(f"{ours}/{own}", f"{theirs}/{name}", norm=norm, layers=("Dense_0", "Dense_1"))
