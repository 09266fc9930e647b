"""IFQL, by its authors' code."""

from ..mapping import AgentMapping, Way, draws, fqls, mlp, total, twins
from .iql import IMPLICIT_LOSSES, OF_TARGETS
from .qc import by_candidate

MAPPING = AgentMapping(
    config=lambda there: {
        **fqls(there),
        "value.expectile": there["expectile"],
        "flow.steps": there["flow_steps"],
        "choice.num_samples": there["num_samples"],
    },
    leaves=(*twins("critic", "critic"), *twins("value", "value"), *mlp("actor/params", "actor_flow/mlp")),
    losses={
        **IMPLICIT_LOSSES,
        "actor/actor_loss": "actor/loss",
        "total": total("value/loss", "critic/loss", "actor/loss"),
    },
    draws=draws("uniform flow_t", "normal flow_x0"),
    ways={"act": Way(draws=draws("normal candidate_noise", arrange=by_candidate))},
    left_out={**OF_TARGETS, "loss/grad/*": "gradients themselves are compared"},
)
