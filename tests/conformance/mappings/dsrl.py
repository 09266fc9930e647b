"""DSRL, by the code of QAM's authors."""

from collections.abc import Iterator

import numpy as np

from ..mapping import CRITIC_LOSSES, AgentMapping, Leaf, Way, chunks, draws, mlp, qams, total, twins
from .qam import action_last


def policy() -> Iterator[Leaf]:
    """The policy of latents; means and log standard deviations are two layers there and two halves of one here."""
    yield from mlp("actor/params/MLP_0", "actor/MLP_0", layers=("Dense_0", "Dense_1"))
    for name in ("kernel", "bias"):
        yield Leaf(
            f"actor/params/MLP_0/Dense_1/{name}",
            tuple(f"actor/OutputDense{head}/{name}" for head in ("Mean", "LogStd")),
            lambda *parts: np.concatenate(parts, axis=-1),
            lambda joined: np.split(joined, 2, axis=-1),
        )
    yield Leaf("temperature/log", ("alpha/log_value",))


MAPPING = AgentMapping(
    config=lambda there: (
        {
            **qams(there),
            "latent_scale": there["noise_scale"],
        }
    ),
    batch=chunks,
    leaves=(
        *twins("critic", "critic"),
        *twins("latent_critic", "z_critic"),
        *mlp("flow/params", "actor_bc_flow/mlp"),
        *policy(),
    ),
    losses={
        **CRITIC_LOSSES,
        "critic/distill_loss": "critic/latent_loss",
        "critic/total_loss": total("critic/loss", "critic/latent_loss"),
        "actor/actor_loss": "actor/loss",
        "actor/alpha_loss": "actor/temperature_loss",
        "actor/entropy": "actor/entropy",
        "actor/q": "actor/q_mean",
        "actor/flow_loss": "actor/flow_loss",
        "actor/total_loss": total("actor/loss", "actor/temperature_loss", "actor/flow_loss"),
    },
    draws=(
        *draws("normal next_latent_noise", arrange=action_last),
        *draws("normal z_critic_noise", "uniform flow_t", "normal flow_x0"),
        *draws("normal latent_sample_noise", arrange=action_last),
    ),
    ways={"act": Way(draws=draws("normal latent_noise", arrange=action_last))},
    left_out={
        "loss/total": "the sum of the critics' and the actor's, which are compared",
        "loss/actor/alpha": "given",
        "loss/actor/action_std": "a metric of theirs alone",
        "loss/grad/*": "gradients themselves are compared",
    },
)
