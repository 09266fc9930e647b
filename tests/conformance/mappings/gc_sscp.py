"""GC-SSCP, by its authors' code."""

from ..mapping import (
    VALUE_LOSSES,
    AgentMapping,
    Way,
    draws,
    goal_representation,
    goal_values,
    mlp,
    time_pair,
    total,
    twins,
)

MAPPING = AgentMapping(
    config=lambda there: {
        "hidden_dims": tuple(there["actor_hidden_dims"]),
        "time_dim": there["level_dim"],
        "learning_rate": there["lr"],
        "discount": there["discount"],
        "value.target_rate": there["tau"],
        "actor_target_rate": there["actor_tau"],
        "value.expectile": there["expectile"],
        "low_alpha": there["low_alpha"],
        "high_alpha": there["high_alpha"],
        "rep_dim": there["rep_dim"],
    },
    leaves=(
        *goal_representation(),
        *twins("value", "value"),
        *mlp("actor/params/MLP_0", "high_actor/mlp", norm=True),
        *time_pair("actor/params/TimePairEmbedding_0", "high_actor", norm=True),
    ),
    batch=goal_values,
    losses={
        **VALUE_LOSSES,
        "low_actor/actor_loss": "low/loss",
        "high_actor/actor_loss": "high/loss",
        "self_consistency/total_loss": "shortcut/loss",
        "self_consistency/pred_a_loss": "shortcut/action_mse",
        "self_consistency/pred_g_loss": lambda ours: ours["shortcut/loss"] - ours["shortcut/action_mse"],
        "total": total("value/loss", "low/loss", "high/loss", "shortcut/loss"),
    },
    # The low and the high loss share their noise in both codes.
    draws=draws(
        "normal low_actions",
        "normal low_reps",
        "normal first_actions",
        "normal first_reps",
        "normal second_actions",
        "normal second_reps",
    ),
    ways={
        "act": Way(draws=draws("normal actions", "normal reps")),
        "act_hierarchical": Way(
            draws=draws("normal first_actions", "normal first_reps", "normal second_actions", "normal second_reps"),
            config={"hops": 2},
        ),
    },
    left_out={
        "loss/value/v_m[ai]*": "over both heads here, over their mean there",
        "loss/*/adv": "not logged here; its exponential is in the loss",
        "loss/*/bc_loss_*": "compares the network's output before the noise is added: a metric of theirs alone",
        "loss/self_consistency/mse_*": "a metric of theirs alone",
        "extras/goal_rep_of_high_actor_goals": "in between; the losses and gradients depend on it",
    },
)
