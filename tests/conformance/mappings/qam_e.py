"""QAM-E, by its authors' code: small edits of the tilted flow's actions."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from ..mapping import Leaf, Way, draws, mlp, total
from .qam import LOSSES, action_last, flows
from .qam import MAPPING as QAM


def edits() -> Iterator[Leaf]:
    """The edits; means and log standard deviations are two layers there and two halves of one here."""
    yield from mlp("edit/params/MLP_0", "edit_actor/MLP_0", layers=("Dense_0", "Dense_1"))
    for name in ("kernel", "bias"):
        yield Leaf(
            f"edit/params/MLP_0/Dense_1/{name}",
            tuple(f"edit_actor/OutputDense{head}/{name}" for head in ("Mean", "LogStd")),
            lambda *parts: np.concatenate(parts, axis=-1),
            lambda joined: np.split(joined, 2, axis=-1),
        )
    yield Leaf("temperature/log", ("edit_alpha/log_value",))


MAPPING = dataclasses.replace(
    QAM,
    leaves=(*flows(), *edits()),
    losses={
        **LOSSES,
        "actor/edit_q_loss": lambda ours: -ours["actor/q_mean"],
        "actor/edit_entropy": "actor/entropy",
        "actor/edit_entropy_loss + actor/edit_q_loss + actor/edit_alpha_loss": "actor/edit_loss",
        "total": total("critic/loss", "actor/flow_loss", "actor/adjoint_loss", "actor/edit_loss"),
    },
    draws=(
        QAM.draws[0],
        *draws("normal next_edit_noise", arrange=action_last),
        *QAM.draws[1:],
        *draws("normal edit_base_noise"),
        *draws("normal edit_sample_noise", arrange=action_last),
    ),
    ways={
        "act": Way(draws=(*draws("normal action_noise"), *draws("normal edit_noise", arrange=action_last))),
    },
    left_out=QAM.left_out | {"loss/actor/edit_alpha": "given"},
)
