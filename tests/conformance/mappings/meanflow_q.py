"""MeanFlowQL, by its authors' code.

The file whose frequencies of time are rounded to float32 is not here: all of it is computed in float64 but for them,
which no setting does.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..mapping import CRITIC_LOSSES, AgentMapping, Arrays, Draw, Leaf, Way, dense, draws, total, twins

OURS, THEIRS = "actor/params", "actor_bc_flow"
MEMORY = {"weight": "current_alpha", "losses": "loss_history", "count": "valid_count"}


def flat(ours: str, theirs: str) -> Leaf:
    """A vector that has axes of length 1 in front there."""
    return Leaf(f"{OURS}/{ours}", (f"{THEIRS}/{theirs}",), np.ravel, lambda array: [np.reshape(array, (1, 1, -1))])


def transformer() -> Iterator[Leaf]:
    """The policy's network, one block deep."""
    yield from dense(f"{OURS}/SplitDense_0", f"{THEIRS}/FeatureEmbed_0/Dense_0")
    yield flat("place", "pos_embed")
    block, own = "blocks_0", "Block_0"
    layers = {
        "MLP_0/SplitDense_0": "t_embedder/Dense_0",
        "MLP_0/Dense_0": "t_embedder/Dense_1",
        f"{own}/Dense_0": f"{block}/Dense_0",
        f"{own}/Attention_0/Dense_0": f"{block}/Attention_0/qkv",
        f"{own}/Attention_0/Dense_1": f"{block}/Attention_0/Dense_0",
        f"{own}/MLP_0/SplitDense_0": f"{block}/MlpBlock_0/Dense_0",
        f"{own}/MLP_0/Dense_0": f"{block}/MlpBlock_0/Dense_1",
        "Dense_0": "FinalLayer_0/Dense_0",
        "Dense_1": "FinalLayer_0/Dense_1",
    }
    for ours, theirs in layers.items():
        yield from dense(f"{OURS}/{ours}", f"{THEIRS}/{theirs}")
    norms = {f"{own}/Attention_0/RMSNorm_{i}": f"{block}/Attention_0/RMSNorm_{i}" for i in (0, 1)}
    norms |= {f"{own}/RMSNorm_{i}": f"{block}/RMSNorm_{i}" for i in (0, 1)}
    for ours, theirs in (norms | {"RMSNorm_0": "FinalLayer_0/RMSNorm_0"}).items():
        yield flat(f"{ours}/scale", f"{theirs}/g")


def settings(there: Mapping[str, Any]) -> dict[str, Any]:
    """The settings here."""
    assert (there["adaptive_gamma"], there["adaptive_c"], there["loss_history_window_size"]) == (0.8, 1e-4, 20)
    return {
        "hidden_dims": tuple(there["value_hidden_dims"]),
        "width": there["actor_hidden_dims"],
        "depth": there["actor_depth"],
        "heads": there["actor_num_heads"],
        "learning_rate": there["lr"],
        "schedule.final": there["lr"] * there["lr_min_ratio"],
        "schedule.steps": int(there["pretrain_plus_offline_steps"]),
        "discount": there["discount"],
        "critic.target_rate": there["tau"],
        "critic.aggregate": there["q_agg"],
        "choice.num_samples": there["num_candidates"],
        "choice.target_samples": there["num_candidates"],
        "alpha": there["alpha"],
        # Where both updates of a file are due theirs are 2000 apart, and here one after the other.
        "balance.interval": 1 if "alpha" in there["file"] else there["alpha_update_interval"],
        "time_levels": there["time_steps"] if there["time_steps"] <= 1000 else 0,
        "normalize_q": there["normalize_q_loss"],
    }


def with_memory(state: Any, file: Any) -> Any:
    """Gives the state the file's memory of losses, and the step that the file counts from 1."""
    step = np.int32(file.arrays["current_step/update1"] - 1)
    return state.replace(
        step=step, extras={own: jnp.asarray(file.arrays[f"state/{name}"]) for own, name in MEMORY.items()}
    )


def clipped(grads: Arrays) -> Arrays:
    """The gradients as the optimizer meets them: the critics' and the policy's of norm 1 at most."""
    norms: dict[str, float] = {}
    for name, array in grads.items():
        norms[name.split("/")[0]] = norms.get(name.split("/")[0], 0.0) + float((array**2).sum())
    return {name: array / max(1.0, norms[name.split("/")[0]] ** 0.5) for name, array in grads.items()}


def remembered(own: str, update: int) -> Callable[[list[Any], list[Any]], Any]:
    """Returns a reader of what is remembered after an update."""
    return lambda states, metrics: states[update].extras[own]


def drawn(file: str) -> tuple[Draw, ...]:
    """What an update draws."""
    time = "randint flow_time_index" if "grid" in file else "uniform flow_time"
    return draws("normal next_candidate_noise", time, "normal flow_noise", "normal actor_noise")


MAPPING = AgentMapping(
    config=settings,
    leaves=(*twins("critic", "critic"), *transformer()),
    losses={
        **CRITIC_LOSSES,
        "actor/actor_loss": lambda metrics: metrics["actor/q_loss"] + metrics["actor/bound_loss"],
        "actor/bound_loss": "actor/bound_loss",
        "actor/q_loss": "actor/q_loss",
        "actor/q": "actor/q_mean",
        "meanflow/mean_flow_loss": "actor/flow_loss",
        "alpha_weight": "actor/alpha",
        "total": total("critic/loss", "actor/loss"),
    },
    draws=drawn,
    ways={"act": Way(draws=draws("normal candidate_noise"))},
    met=clipped,
    prepare=with_memory,
    extras={
        f"state_after{update}/{name}": remembered(own, update) for update in (1, 2) for own, name in MEMORY.items()
    },
    left_out={
        "loss/actor/mse": "a metric of theirs alone",
        "loss/alpha/*": "not logged here; the weight and what is remembered are compared",
        "loss/meanflow/consistency_loss": "has no weight there, and is not here",
        "loss/meanflow/flow_loss": "the mean flow's",
        "loss/metrics/*": "step sizes as logged there, by another count than that of their steps",
        "loss/total_loss": "the total",
        "loss/grad/*": "gradients themselves are compared",
    },
)
