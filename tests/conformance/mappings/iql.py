"""IQL, by FQL's code."""

from ..mapping import IMPROVED, NOT_LOGGED, OGBENCHS_WAYS, AgentMapping, gaussian, total, twins

IMPLICIT_LOSSES = {
    "critic/critic_loss": "critic/loss",
    "value/value_loss": "value/loss",
    "value/v_mean": "value/v_mean",
    "value/v_max": "value/v_max",
    "value/v_min": "value/v_min",
}
"""Losses and metrics of `critics.implicit_value_loss` and `implicit_critic_loss`."""
OF_TARGETS = {"loss/critic/q_m*": "of the targets r + γ m V(s') there, of Q here"}

MAPPING = AgentMapping(
    config=lambda there: {
        "hidden_dims": tuple(there["actor_hidden_dims"]),
        "activation": "gelu",
        "initialization": "glorot",
        "tanh_mean": False,
        "learnt_std": False,
        "learning_rate": there["lr"],
        "decay.steps": 0,
        "discount": there["discount"],
        "critic.activation": "gelu",
        "critic.layer_norm": True,
        "critic.target_rate": there["tau"],
        "value.expectile": there["expectile"],
        "actor_loss": there["actor_loss"],
        "alpha": there["alpha"],
        "advantage": "online",
        "joint": True,
    },
    leaves=(
        *twins("critic", "critic"),
        *twins("value", "value"),
        *gaussian(),
    ),
    losses={
        **IMPLICIT_LOSSES,
        **IMPROVED,
        "total": total("value/loss", "critic/loss", "actor/loss"),
    },
    ways=OGBENCHS_WAYS,
    left_out={**OF_TARGETS, **NOT_LOGGED},
)
