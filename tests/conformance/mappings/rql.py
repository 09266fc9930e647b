"""RQL, by its authors' code."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..mapping import AgentMapping, Arrays, Way, draws, fqls, mlp, total, twins

LAYERS = ("actor_net/Dense_0", "actor_net/Dense_1", "mean_net")


def stretches(batch: Arrays, config: Mapping[str, Any]) -> Arrays:
    """A batch of rows along a leading axis of time, h + 1 of them; beyond the end the last row is repeated.

    What it bootstraps from is not what this framework's sampler gives: the mask of the last row alone, and the last row
    itself where an episode ends on the way.
    """
    h, discount = config["h"], config["discount"]
    ended = np.concatenate([np.zeros_like(batch["terminals"][:1]), batch["terminals"][:-1]])
    powers = discount ** np.arange(h)
    size = len(batch["actions"][0])
    valid = np.broadcast_to((1 - ended[:h])[..., None], batch["actions"][:h].shape)
    return {
        "observations": batch["observations"][0],
        "next_observations": batch["observations"][h],
        "actions": np.swapaxes(batch["actions"][:h], 0, 1).reshape(size, -1),
        "actions_valid": np.swapaxes(valid, 0, 1).reshape(size, -1),
        "rewards": (powers[:, None] * batch["rewards"][:h] * (1 - ended[:h])).sum(axis=0),
        "discounts": discount**h * batch["masks"][h - 1],
        "valid": (ended.sum(axis=0) <= 1).astype(float),
    }


MAPPING = AgentMapping(
    config=lambda there: {
        "horizon.steps": there["h"],
        **fqls(there),
        "actor_target_rate": 1 - there["ema"],
        "critic.heads": there["ensemble_ct"],
        "critic.rho": there["rho"],
        "flow.steps": there["flow_steps"],
        "expectile": there["expectile"],
        "alpha": there["alpha"],
    },
    batch=stretches,
    leaves=(*twins("critic", "value"), *mlp("actor/params", "actor", layers=LAYERS)),
    losses={
        "critic_loss": "critic/loss",
        "bc_loss": "actor/flow_loss",
        "q": "critic/q_mean",
        "q_mean": "critic/q_mean",
        "q_max": "critic/q_max",
        "q_min": "critic/q_min",
        "q_pe_mean": "actor/v_mean",
        "total_loss": total("critic/loss", "actor/loss"),
        "total": total("critic/loss", "actor/loss"),
    },
    draws=draws("normal next_noise", "uniform d_uniform", "randint d_grid_index", "uniform flow_t", "normal flow_x0"),
    ways={
        "act": Way(draws=draws("normal noise")),
        "act/actions_online_net": Way(draws=draws("normal noise"), config={"slow": False}),
    },
    absent={"actor/log_std_net": "a standard deviation that nothing reads or trains"},
    left_out={
        "loss/actor_loss": "the total without the critics' and the flow's loss, which are compared",
        "loss/q_pe_m[ai][xn]": "not logged here; the mean is compared",
        "loss/grad/*": "gradients themselves are compared",
    },
)
