"""IQL, by FQL's code."""

from ..mapping import GAUSSIAN, AgentMapping, Way, draws, mlp, total, twins

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
        *mlp("actor/params/MLP_0", "actor", layers=GAUSSIAN),
    ),
    losses={
        **IMPLICIT_LOSSES,
        "actor/actor_loss": "actor/loss",
        "actor/adv": "actor/advantage",
        "actor/mse": "actor/mse",
        "actor/bc_loss": "actor/bc_loss",
        "actor/q_loss": "actor/q_loss",
        "actor/q_mean": "actor/q_mean",
        "total": total("value/loss", "critic/loss", "actor/loss"),
    },
    ways={
        "act": Way(True, draws("normal gaussian_noise")),
        "act/actions_temperature0": Way(),
    },
    left_out={
        **OF_TARGETS,
        "loss/actor/std": "1 by definition",
        "loss/actor/bc_log_prob": "not logged here; part of the loss",
        "loss/actor/q_abs_mean": "not logged here; part of the loss",
        "loss/grad/*": "gradients themselves are compared",
    },
)
