"""CRL, by OGBench's code."""

from ..mapping import IMPROVED, NOT_LOGGED, OGBENCHS_WAYS, AgentMapping, gaussian, mlp, ogbenchs

CONTRASTS = {
    f"{name}/{theirs}": f"{name}/{ours}"
    for name in ("critic", "value")
    for theirs, ours in (("contrastive_loss", "loss"), ("logits", "logits"), ("logits_pos", "logits_own"))
}

MAPPING = AgentMapping(
    config=lambda there: {**ogbenchs(there), "latent_dim": there["latent_dim"]},
    leaves=(
        *gaussian(),
        *mlp("phi/params", "critic/phi", norm=True),
        *mlp("psi/params", "critic/psi", norm=True),
        *mlp("value_phi/params", "value/phi", norm=True),
        *mlp("value_psi/params", "value/psi", norm=True),
    ),
    losses={
        **CONTRASTS,
        **IMPROVED,
        "total": lambda ours: ours["critic/loss"] + ours.get("value/loss", 0) + ours["actor/loss"],
    },
    ways=OGBENCHS_WAYS,
    left_out={
        **NOT_LOGGED,
        "loss/*/v_m*": "of the exponentials of logits there; not logged here",
        "loss/*/logits_neg": "not logged here; it follows from the two other means",
        "loss/*/*_accuracy": "not logged here; of the heads' mean there, in float32",
    },
)
