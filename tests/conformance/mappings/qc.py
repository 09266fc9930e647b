"""QC, by its authors' code."""

import numpy as np

from ..mapping import CRITIC_LOSSES, AgentMapping, Way, chunks, draws, fqls, horizon, mlp, total, twins


def by_candidate(noise: np.ndarray) -> np.ndarray:
    """The candidates are the second axis there and the first one here."""
    return np.swapaxes(noise, 0, 1)


MAPPING = AgentMapping(
    config=lambda there: (
        horizon(there)
        | {
            **fqls(there),
            "critic.aggregate": there["q_agg"],
            "flow.steps": there["flow_steps"],
            "choice.num_samples": there["actor_num_samples"],
            "choice.target_samples": there["actor_num_samples"],
        }
    ),
    batch=chunks,
    leaves=(*twins("critic", "critic"), *mlp("actor/params", "actor_bc_flow/mlp")),
    losses={
        **CRITIC_LOSSES,
        "actor/bc_flow_loss": "actor/loss",
        "total": total("critic/loss", "actor/loss"),
    },
    draws=(
        *draws("normal next_candidate_noise", arrange=by_candidate),
        *draws("uniform flow_t", "normal flow_x0"),
    ),
    ways={"act": Way(draws=draws("normal candidate_noise", arrange=by_candidate))},
    absent={"actor_onestep_flow": "exists there, and no loss reads it"},
    left_out={
        "loss/actor/actor_loss": "the flow's loss; the other term is 0",
        "loss/actor/distill_loss": "0 there",
        "loss/grad/*": "gradients themselves are compared",
    },
)
