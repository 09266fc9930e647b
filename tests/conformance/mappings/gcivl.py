"""GCIVL, by OGBench's code."""

from ..mapping import GAUSSIAN, VALUE_LOSSES, AgentMapping, Way, draws, goal_values, mlp, total, twins

MAPPING = AgentMapping(
    config=lambda there: {
        "hidden_dims": tuple(there["actor_hidden_dims"]),
        "learning_rate": there["lr"],
        "discount": there["discount"],
        "value.target_rate": there["tau"],
        "value.expectile": there["expectile"],
        "alpha": there["alpha"],
    },
    leaves=(*twins("value", "value"), *mlp("actor/params", "actor", layers=GAUSSIAN)),
    batch=goal_values,
    losses={
        **VALUE_LOSSES,
        "actor/actor_loss": "actor/loss",
        "actor/mse": "actor/mse",
        "actor/adv": "actor/advantage",
        "total": total("value/loss", "actor/loss"),
    },
    ways={"act": Way(True, draws("normal noise")), "act_mode": Way()},
    left_out={
        "loss/value/v_m[ai]*": "over both heads here, over their mean there",
        "loss/actor/bc_log_prob": "not logged here; part of the loss",
        "loss/actor/std": "1 by definition",
    },
)
