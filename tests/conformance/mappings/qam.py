"""QAM, by its authors' code; their other two ways of acting are in `qam_f` and `qam_e`."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..mapping import CRITIC_LOSSES, AgentMapping, Arrays, Draw, Leaf, Way, chunks, draws, mlp, qams, total, twins


def flows() -> Iterator[Leaf]:
    """The critics and both flows, which all variants have."""
    yield from twins("critic", "critic")
    yield from mlp("flow/params", "actor_slow/mlp")
    yield from mlp("actor/params", "actor_fast/mlp")


def config(there: Mapping[str, Any]) -> dict[str, Any]:
    """The settings; their options that are at their defaults everywhere are not here."""
    assert all(there[name] for name in ("target_actor", "clip_adj", "clip_grad", "use_target_grad"))
    assert not there["residual"]
    return {
        **qams(there),
        "inverse_temperature": there["inv_temp"],
        "alpha": there["fql_alpha"],
        "edit_scale": there["edit_scale"],
    }


def clipped(grads: Arrays) -> Arrays:
    """Gradients of all networks together are clipped to the norm 1."""
    norm = np.sqrt(sum((gradient**2).sum() for gradient in grads.values()))
    return {name: gradient / max(norm, 1.0) for name, gradient in grads.items()}


def action_last(noise: np.ndarray) -> np.ndarray:
    """Their squashed Gaussians draw with the action axis first."""
    return np.moveaxis(noise, 0, -1)


MATCHING: tuple[Draw, ...] = draws(
    "normal adjoint_x0", " ".join(["normal", *(f"adjoint_noise_step{i}" for i in range(9))])
)
"""What adjoint matching draws; the last step there has noise too, which is not used."""
LOSSES = {
    **CRITIC_LOSSES,
    "actor/flow_loss": "actor/flow_loss",
    "actor/adj_loss": "actor/adjoint_loss",
    "actor/fast_loss": "actor/adjoint_loss",
    "actor/adj_mean": "actor/adjoint",
}
LEFT_OUT = {
    "loss/grad/*": "gradients themselves are compared",
    "loss/actor/adj_max": "not logged here; the mean is compared",
    "loss/actor/adj_std": "not logged here; the mean is compared",
}

MAPPING = AgentMapping(
    config=config,
    batch=chunks,
    leaves=(*flows(),),
    losses={**LOSSES, "total": total("critic/loss", "actor/flow_loss", "actor/adjoint_loss")},
    draws=(*draws("normal next_action_noise", "uniform flow_t", "normal flow_x0"), *MATCHING),
    ways={"act": Way(draws=draws("normal action_noise"))},
    met=clipped,
    left_out=LEFT_OUT,
    absent={"targets/actor_fast": "made there, and neither moved nor read"},
)
