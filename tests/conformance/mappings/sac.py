"""SAC, by OGBench's code."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..mapping import CRITIC_LOSSES, GAUSSIAN, AgentMapping, Leaf, Way, draws, mlp, twins


def heads() -> Iterator[Leaf]:
    """The policy; means and log standard deviations are two layers there and two halves of one here."""
    yield from mlp("actor/params/MLP_0", "actor", layers=GAUSSIAN[:2])
    for name in ("kernel", "bias"):
        theirs = tuple(f"actor/{head}/{name}" for head in ("mean_net", "log_std_net"))
        yield Leaf(
            f"actor/params/MLP_0/Dense_1/{name}",
            theirs,
            lambda *parts: np.concatenate(parts, axis=-1),
            lambda joined: np.split(joined, 2, axis=-1),
        )


def temperature_loss(ours: Mapping[str, Any]) -> Any:
    """α (H − H̄), H̄ = −1.5."""
    return ours["actor/temperature"] * (ours["actor/entropy"] + 1.5)


MAPPING = AgentMapping(
    config=lambda there: {
        "hidden_dims": tuple(there["actor_hidden_dims"]),
        "activation": "gelu",
        "critic.activation": "gelu",
        "learning_rate": there["lr"],
        "discount": there["discount"],
        "critic.target_rate": there["tau"],
        "critic.layer_norm": there["layer_norm"],
        "target_entropy": -there["target_entropy_multiplier"],
        "critic.aggregate": "min" if there["min_q"] else "mean",
    },
    leaves=(*heads(), *twins("critic", "critic", norm=False), Leaf("temperature/log", ("alpha/log_value",))),
    losses={
        **CRITIC_LOSSES,
        "actor/actor_loss": "actor/loss",
        "actor/entropy": "actor/entropy",
        "actor/alpha": "actor/temperature",
        "actor/alpha_loss": temperature_loss,
        "actor/total_loss": lambda ours: ours["actor/loss"] + temperature_loss(ours),
        "total": lambda ours: ours["critic/loss"] + ours["actor/loss"] + temperature_loss(ours),
    },
    draws=draws("normal next_action_noise", "normal action_noise"),
    ways={"act": Way(True, draws("normal noise")), "act_mode": Way()},
    left_out={
        "loss/actor/std": "not logged here; the entropy depends on it",
        "extras/policy_*": "in between; the losses and actions depend on them",
        "extras/temperature": "the parameter's exponential",
    },
)
