"""FMQ on data, by its authors' code."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..mapping import CRITIC_LOSSES, AgentMapping, Draw, Leaf, Way, chunks, draws, fqls, horizon, mlp, total, twins
from .qc import by_candidate

INPUTS, HALF = 5 + 9, 32
"""Sizes of observations with chunks of actions, and of half of a time's features."""
DISTILLATIONS = {"mf": "eulerian", "lsd": "lagrangian", "psd": "progressive"}


def sines_first(kernel: Any) -> Any:
    """Of each time's features the cosines come first there and the sines here; the same way back."""
    rows = np.asarray(kernel)
    blocks = [rows[INPUTS + i * HALF : INPUTS + (i + 1) * HALF] for i in (1, 0, 3, 2)]
    return np.concatenate([rows[:INPUTS], *blocks])


def flow_map() -> Iterator[Leaf]:
    """The policy's network."""
    first, *others = mlp("actor/params/MLP_0", "actor_bc_flow/mlp")
    yield Leaf(first.ours, first.theirs, sines_first, lambda kernel: [sines_first(kernel)])
    yield from others


def at_its_step(state: Any, file: Any) -> Any:
    """Their counter begins at 1 and is read before an update; here it is the number of updates done."""
    return state.replace(step=np.int32(file.meta["train_state_step"] - 1))


def drawn(file: str) -> tuple[Draw, ...]:
    """What an update draws."""
    last = ("uniform psd_gamma",) if "psd" in file else ()
    actor = draws("uniform diag_t", "normal diag_x0", "uniform esd_time1 esd_time2", "normal esd_x0", *last)
    return (*draws("normal next_candidate_noise", arrange=by_candidate), *actor)


MAPPING = AgentMapping(
    agent="fmq",
    config=lambda there: (
        horizon(there)
        | {
            **fqls(there),
            "critic.aggregate": there["q_agg"],
            "choice.aggregate": there["q_agg"],
            "choice.num_samples": there["actor_num_samples"],
            "choice.target_samples": there["actor_num_samples"],
            "flow.steps": there["flow_map_steps"],
            "flow.warmup": there["flow_map_warmup_steps"],
            "flow.grown": there["flow_map_anneal_end_step"],
            "flow.distillation": DISTILLATIONS[there["distillation_type"]],
        }
    ),
    batch=chunks,
    prepare=at_its_step,
    leaves=(*twins("critic", "critic"), *flow_map()),
    losses={
        **CRITIC_LOSSES,
        "actor/actor_loss": "actor/loss",
        "actor/bc_flow_loss": "actor/flow_loss",
        "actor/consistency_loss": "actor/consistency_loss",
        "total": total("critic/loss", "actor/loss"),
    },
    draws=drawn,
    ways={"act": Way(draws=draws("normal candidate_noise", arrange=by_candidate))},
    left_out={
        "loss/actor/consistency_weight": "not logged here; the loss shows it",
        "loss/grad/*": "gradients themselves are compared",
    },
)
