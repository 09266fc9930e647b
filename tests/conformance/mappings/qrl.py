"""QRL, by OGBench's code."""

from ..mapping import IMPROVED, NOT_LOGGED, OGBENCHS_WAYS, AgentMapping, Leaf, gaussian, mlp, ogbenchs, total

MAPPING = AgentMapping(
    config=lambda there: {
        **ogbenchs(there),
        "quasimetric": there["quasimetric_type"],
        "latent_dim": there["latent_dim"],
        "slack": there["eps"],
    },
    leaves=(
        *gaussian(),
        *mlp("phi/params", "value/phi", norm=True),
        *mlp("dynamics/params", "dynamics", norm=True),
        Leaf("odds/log", ("value/alpha/value",)),
        Leaf("multiplier/log", ("lam/log_value",)),
    ),
    losses={
        "value/total_loss": "value/loss",
        "value/d_neg_loss": "value/apart",
        "value/d_pos_loss": "value/excess",
        "value/d_neg_mean": "value/d_goal",
        "value/d_pos_mean": "value/d_next",
        "value/lam": "value/multiplier",
        "dynamics/dynamics_loss": "dynamics/loss",
        **IMPROVED,
        "total": total("value/loss", "dynamics/loss", "actor/loss"),
    },
    ways=OGBENCHS_WAYS,
    left_out={
        **NOT_LOGGED,
        "loss/value/d_*_m[ai]*": "not logged here; their means are compared",
        "loss/value/value_loss": "not logged here; the sum of both is compared",
        "loss/value/lam_loss": "not logged here; the sum of both is compared",
    },
)
