"""What the mappings of the mirror-descent agents share: FPMD's code, which is written with Haiku."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from flowrl.losses import multiplier
from flowrl.policies import noise_entropy

from .mapping import AgentMapping, Leaf, Way, draws

OBSERVATION, ACTION = 5, 3
"""Sizes in the files."""


def layer(ours: str, theirs: str, index: int) -> Iterator[Leaf]:
    """One linear layer; Haiku counts them from the second on."""
    name = f"{theirs}/linear{f'_{index}' if index else ''}"
    yield Leaf(f"{ours}/kernel", (f"{name}/w",))
    yield Leaf(f"{ours}/bias", (f"{name}/b",))


def policy(net: str, times: tuple[str, ...]) -> Iterator[Leaf]:
    """The policy's network: layers of each time, then of all; there observations come before points, here after."""
    ours, theirs = "actor/params", f"policy/{net}"
    for i, time in enumerate(times):
        yield from layer(f"{ours}/{time}/SplitDense_0", theirs, 2 * i)
        yield from layer(f"{ours}/{time}/Dense_0", theirs, 2 * i + 1)

    def rolled(by: int) -> Callable[[Any], Any]:
        def roll(kernel: Any) -> Any:
            rows, rest = np.asarray(kernel)[: OBSERVATION + ACTION], np.asarray(kernel)[OBSERVATION + ACTION :]
            return np.concatenate([np.roll(rows, by, axis=0), rest])

        return roll

    first, *others = (leaf for i in range(3) for leaf in layer(f"{ours}/MLP_0/{i}", theirs, 2 * len(times) + i))
    yield Leaf(
        first.ours.replace("/0/", "/SplitDense_0/"),
        first.theirs,
        rolled(ACTION),
        lambda kernel: [rolled(-ACTION)(kernel)],
    )
    for leaf in others:
        for i, name in enumerate(("SplitDense_0", "Dense_0", "Dense_1")):
            if f"/MLP_0/{i}/" in leaf.ours:
                yield Leaf(leaf.ours.replace(f"/{i}/", f"/{name}/"), leaf.theirs)


def critics() -> Iterator[Leaf]:
    """Twin critics, stacked here and apart there."""
    for i, name in enumerate(("SplitDense_0", "Dense_0", "Dense_1")):
        pairs = zip(layer("", "q1/q_net", i), layer("", "q2/q_net", i), strict=True)
        for one, other in pairs:
            path = f"critic/params/MLP_0/{name}{one.ours}"
            yield Leaf(path, one.theirs + other.theirs, lambda *arrays: np.stack(arrays), lambda array: [*array])


def with_statistics(state: Any, file: Any) -> Any:
    """Gives the state the file's running statistics."""
    names = {"q_mean": "extras/running_mean", "q_std": "extras/running_std"}
    return state.replace(extras={name: jnp.asarray(file.arrays[key]) for name, key in names.items()})


def statistic(name: str, update: int) -> Callable[[list[Any], list[Any]], Any]:
    """Returns a reader of a running statistic after an update."""
    return lambda states, metrics: states[update].extras[name]


def mapping(
    net: str,
    times: tuple[str, ...],
    config: Callable[[Mapping[str, Any]], dict[str, Any]],
    sampling: tuple[str, ...],
    errors: tuple[str, ...],
) -> AgentMapping:
    """Returns an agent's mapping.

    Args:
        net: The authors' name of the policy's network.
        times: The names here of the times that it reads.
        config: Settings beside those that all have, made of the authors'.
        sampling: What drawing an action draws before its exploration, in order.
        errors: What the policy's loss draws.
    """

    def settings(there: Mapping[str, Any]) -> dict[str, Any]:
        assert there["hidden_sizes"] == there["diffusion_hidden_sizes"]
        return {
            "hidden_dims": tuple(there["hidden_sizes"]),
            "choice.num_samples": there["num_particles"],
            "choice.target_samples": there["num_particles"],
            "learning_rate": there["lr"],
            "decay.final": there["lr_schedule_end"],
            "noise.rate": there["alpha_lr"],
            "noise.delay": there["delay_alpha_update"],
            "discount": there["gamma"],
            "critic.target_rate": there["tau"],
            "policy_delay": there["delay_update"],
            "reward_scale": there["reward_scale"],
            "noise.scale": there["noise_scale"],
            "noise.target_entropy": -there["target_entropy_scale"],
            **config(there),
        }

    extras = {
        f"extras/running_{name}_after{update}": statistic(f"q_{name}", update)
        for name in ("mean", "std")
        for update in (1, 2, 3)
    }
    extras |= {f"loss/running_q_{name}": statistic(f"q_{name}", 1) for name in ("mean", "std")}
    extras["loss/entropy_approx"] = lambda states, metrics: noise_entropy(
        states[1].config.noise.scale * multiplier(states[1].params), ACTION
    )
    explored = draws(*sampling, "normal exploration")
    return AgentMapping(
        config=settings,
        leaves=(*policy(net, times), *critics(), Leaf("temperature/log", ("log_alpha",))),
        losses={
            # A metric of a part that is due at every second update is twice as large there.
            "policy_loss": lambda metrics: metrics["actor/loss"] / 2,
            "q_weights_mean": lambda metrics: metrics["actor/weight"] / 2,
            "q1_loss + q2_loss": "critic/loss",
            "alpha": "actor/temperature",
        },
        draws=(*explored, *draws(*errors)),
        # Their evaluator acts without noise.
        ways={"act": Way(True, explored), "act_mode": Way(draws=draws(*sampling))},
        prepare=with_statistics,
        extras=extras,
        left_out={
            "loss/q1_m*": "of one critic; here the metrics are of both",
            "loss/q_weights_*": "not logged here; their mean is compared",
            "loss/scale_q_*": "not logged here; it is the weights' logarithm",
            "loss/log_alpha_loss": "not logged here; its gradient is compared",
            "extras/next_action": "within an update here; the targets and the regression show it",
            "extras/q_min_between": "within an update here; the weights show it",
            "extras/between/*": "within an update here; the weights show them",
            "extras/running_mean": "given",
            "extras/running_std": "given",
            "extras/betas": "within an update here; the regression shows them",
            "extras/step": "given",
        },
    )
