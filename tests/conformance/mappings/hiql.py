"""HIQL, by OGBench's code."""

from ..mapping import (
    GAUSSIAN,
    VALUE_LOSSES,
    AgentMapping,
    Way,
    draws,
    goal_representation,
    goal_values,
    mlp,
    total,
    twins,
)

MAPPING = AgentMapping(
    config=lambda there: {
        "hidden_dims": tuple(there["actor_hidden_dims"]),
        "learning_rate": there["lr"],
        "discount": there["discount"],
        "value.target_rate": there["tau"],
        "value.expectile": there["expectile"],
        "low_alpha": there["low_alpha"],
        "high_alpha": there["high_alpha"],
        "rep_dim": there["rep_dim"],
        "low_actor_rep_grad": there["low_actor_rep_grad"],
    },
    leaves=(
        *goal_representation(),
        *twins("value", "value"),
        *mlp("low_actor/params", "low_actor", layers=GAUSSIAN),
        *mlp("high_actor/params", "high_actor", layers=GAUSSIAN),
    ),
    batch=goal_values,
    losses={
        **VALUE_LOSSES,
        "low_actor/actor_loss": "low_actor/loss",
        "low_actor/mse": "low_actor/mse",
        "low_actor/adv": "low_actor/advantage",
        "high_actor/actor_loss": "high_actor/loss",
        "high_actor/mse": "high_actor/mse",
        "high_actor/adv": "high_actor/advantage",
        "total": total("value/loss", "low_actor/loss", "high_actor/loss"),
    },
    ways={"act": Way(True, draws("normal high_noise", "normal low_noise")), "act_mode": Way()},
    left_out={
        "loss/value/v_m[ai]*": "over both heads here, over their mean there",
        "loss/*/bc_log_prob": "not logged here; part of the loss",
        "loss/*/std": "1 by definition",
    },
)
