"""ReBRAC, by FQL's code."""

from typing import Any

import numpy as np

from ..mapping import CRITIC_LOSSES, GAUSSIAN, AgentMapping, Way, draws, mlp, twins


def first_step(state: Any, file: Any) -> Any:
    """Their counter begins at 1: the policy moves in every second update, not in the first."""
    return state.replace(step=np.int32(file.name.endswith("full_then_skip")))


MAPPING = AgentMapping(
    config=lambda there: {
        "hidden_dims": tuple(there["actor_hidden_dims"]),
        "activation": "gelu",
        "initialization": "glorot",
        "learning_rate": there["lr"],
        "actor_learning_rate": there["lr"],
        "discount": there["discount"],
        "critic.activation": "gelu",
        "critic.target_rate": there["tau"],
        "alpha_actor": there["alpha_actor"],
        "alpha_critic": there["alpha_critic"],
        "policy_delay": there["actor_freq"],
        "target_noise": there["actor_noise"],
        "noise_clip": there["actor_noise_clip"],
        "joint": True,
    },
    leaves=(*twins("critic", "critic"), *mlp("actor/params", "actor", layers=GAUSSIAN)),
    losses={
        **CRITIC_LOSSES,
        # The policy's count twice here, since they count in every second update.
        "actor/total_loss": lambda ours: ours["actor/loss"] / 2,
        "actor/actor_loss": lambda ours: ours["actor/q_loss"] / 2,
        "actor/bc_loss": lambda ours: ours["actor/bc_loss"] / 2,
        "actor/mse": lambda ours: ours["actor/mse"] / 2,
        "total": lambda ours: ours["critic/loss"] + ours["actor/loss"] / 2,
    },
    draws=draws("normal target_policy_noise"),
    ways={
        "act": Way(True, draws("normal gaussian_noise")),
        "act/actions_temperature0": Way(),
    },
    prepare=first_step,
    left_out={"loss/actor/std": "1 by definition", "loss/grad/*": "gradients themselves are compared"},
)
