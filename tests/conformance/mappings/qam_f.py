"""QAM-F, by its authors' code: a one-step policy distilled from the tilted flow."""

import dataclasses

from ..mapping import draws, mlp
from .qam import LOSSES, flows
from .qam import MAPPING as QAM

MAPPING = dataclasses.replace(
    QAM,
    leaves=(*flows(), *mlp("one_step/params", "one_step_actor/mlp")),
    losses={
        **LOSSES,
        "actor/fql_distill_loss": "actor/distill_loss",
        "actor/fql_q_loss": lambda ours: -ours["actor/q_mean"],
        "total": lambda ours: (
            ours["critic/loss"] + ours["actor/flow_loss"] + ours["actor/adjoint_loss"]
            + 3.0 * ours["actor/distill_loss"] - ours["actor/q_mean"]
        ),
    },
    draws=(*QAM.draws, *draws("normal onestep_noise")),
)  # fmt: skip
