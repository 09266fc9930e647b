"""GCIQL, by OGBench's code."""

from ..mapping import IMPROVED, NOT_LOGGED, OGBENCHS_WAYS, AgentMapping, draws, gaussian, ogbenchs, total, twins
from .iql import IMPLICIT_LOSSES, OF_TARGETS

MAPPING = AgentMapping(
    config=lambda there: {
        **ogbenchs(there),
        "critic.target_rate": there["tau"],
        "value.expectile": there["expectile"],
    },
    leaves=(*gaussian(), *twins("critic", "critic"), *twins("value", "value")),
    losses={**IMPLICIT_LOSSES, **IMPROVED, "total": total("value/loss", "critic/loss", "actor/loss")},
    draws=lambda file: draws("normal actor_sample_noise") if file.endswith("learned_std") else (),
    ways=OGBENCHS_WAYS,
    left_out={**OF_TARGETS, **NOT_LOGGED},
)
