"""DriftQL, by its authors' code."""

import numpy as np

from ..mapping import CRITIC_LOSSES, AgentMapping, Way, draws, fqls, mlp, total, twins

SAMPLES = 4


def by_sample(noise: np.ndarray) -> np.ndarray:
    """The samples of a state are rows in a row there, and the first axis here."""
    return np.swapaxes(noise.reshape(-1, SAMPLES, noise.shape[-1]), 0, 1)


MAPPING = AgentMapping(
    config=lambda there: {
        **fqls(there),
        "critic.aggregate": there["q_agg"],
        "actor_aggregate": there["q_agg_actor"],
        "normalize_q": there["normalize_q_loss"],
        "alpha": there["alpha"],
        "kernel": there["kernel"],
        "width": there["drift_temp"],
        "samples": there["drift_ngen"],
        "step_size": there["drift_eta"],
        "normalize_drift": there["drift_normalize"],
        "noise_dim": there["noise_dim"],
    },
    leaves=(*twins("critic", "critic"), *mlp("actor/params", "actor_bc_drift/mlp")),
    losses={
        **CRITIC_LOSSES,
        "actor/actor_loss": "actor/loss",
        "actor/bc_drift_loss_raw": "actor/drift_loss",
        "actor/q_loss": "actor/q_loss",
        "actor/q": "actor/q_mean",
        "actor/drift_norm": "actor/drift",
        "actor/drift_repel_norm": "actor/repulsion",
        "total": total("critic/loss", "actor/loss"),
    },
    draws=(
        *draws("normal next_noise"),
        *draws("normal drift_sample_noise", arrange=by_sample),
        *draws("normal q_noise"),
    ),
    ways={"act": Way(draws=draws("normal noise"))},
    left_out={
        "loss/actor/bc_drift_loss": "the raw one times alpha",
        "loss/actor/drift_attract_norm": "not logged here; the drift is compared",
        "loss/grad/*": "gradients themselves are compared",
    },
)
