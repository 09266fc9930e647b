"""FMQ online, by its authors' code."""

import dataclasses

from ..mapping import CRITIC_LOSSES, Draw, Way, draws, total
from .fmq_offline import MAPPING as OFFLINE
from .qc import by_candidate


def drawn(file: str) -> tuple[Draw, ...]:
    """What an update draws."""
    cloned = ("uniform diag_t", "normal diag_x0", "uniform esd_time1 esd_time2", "normal esd_x0")
    actor = draws("uniform r", "normal eps", *(cloned if "diag" in file else ()))
    return (*draws("normal next_candidate_noise", arrange=by_candidate), *actor)


MAPPING = dataclasses.replace(
    OFFLINE,
    config=lambda there: (
        OFFLINE.config(there)
        | {
            "phase": "online",
            # whatever the setting is
            "critic.aggregate": "min",
            "choice.aggregate": "min",
            "adaptive": there["fmq_adaptive_eta"],
            "beta": there["fmq_beta"],
            "eta": there["fmq_sigma_sq"] / (2 * there["fmq_alpha"]),
            "velocity_weight": there["diag_weight"],
            "consistency_weight": there["esd_weight"],
            "flow.warmup": there["esd_warmup_steps"],
            "flow.grown": there["esd_anneal_end_step"],
            "beam.copies": there["qgbs_B"],
            "beam.snr": there["qgbs_snr"],
            "beam.step_size": there["qgbs_eta"],
        }
    ),
    losses={
        **CRITIC_LOSSES,
        "actor/actor_loss": "actor/loss",
        "actor/diag_loss": "actor/flow_loss",
        "actor/esd_loss": "actor/consistency_loss",
        "actor/fmq_loss": "actor/guided_loss",
        "actor/eta_effective": "actor/eta",
        "total": total("critic/loss", "actor/loss"),
    },
    draws=drawn,
    ways={
        **OFFLINE.ways,
        "act_qgbs": Way(
            draws=draws("normal initial_noise", "normal renoise_eps", arrange=by_candidate),
            config={"beam.rounds": 1},
            evaluated_as="beam",
        ),
    },
    left_out={
        "loss/actor/delta_u_sq": "a metric of theirs alone",
        "loss/actor/fmq_alpha": "a setting",
        "loss/actor/fmq_eta": "a setting; what is used is compared",
        "loss/actor/grad_raw_norm": "a metric of theirs alone",
        "loss/actor/q_mean_sampled": "a metric of theirs alone",
        "loss/actor/r_mean": "a draw",
        "loss/grad/*": "gradients themselves are compared",
    },
)
