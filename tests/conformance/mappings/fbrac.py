"""FBRAC, by the code of QAM's authors."""

from ..mapping import CRITIC_LOSSES, AgentMapping, Way, chunks, draws, mlp, qams, total, twins
from .qc import by_candidate

MAPPING = AgentMapping(
    config=lambda there: (
        {
            **qams(there),
            "alpha": there["alpha"],
        }
    ),
    batch=chunks,
    leaves=(*twins("critic", "critic"), *mlp("actor/params", "actor_flow/mlp")),
    losses={
        **CRITIC_LOSSES,
        "actor/actor_loss": "actor/loss",
        "actor/bc_flow_loss": "actor/flow_loss",
        "total": total("critic/loss", "actor/loss"),
    },
    draws=(
        *draws("normal next_candidate_noise", arrange=by_candidate),
        *draws("uniform flow_t", "normal flow_x0", "normal bptt_noise"),
    ),
    ways={"act": Way(draws=draws("normal candidate_noise", arrange=by_candidate))},
    left_out={"loss/grad/*": "gradients themselves are compared"},
)
