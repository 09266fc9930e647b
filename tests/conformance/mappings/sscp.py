"""SSCP, by its authors' code."""

from ..mapping import CRITIC_LOSSES, AgentMapping, Way, draws, mlp, time_pair, total, twins

MAPPING = AgentMapping(
    config=lambda there: {
        "hidden_dims": tuple(there["actor_hidden_dims"]),
        "time_dim": there["time_dim"],
        "learning_rate": there["lr"],
        "discount": there["discount"],
        "critic.target_rate": there["tau"],
        "actor_target_rate": there["actor_tau"],
        "flow_alpha": there["alpha1"],
        "completion_alpha": there["alpha2"],
        "critic.aggregate": there["q_agg"],
    },
    leaves=(
        *twins("critic", "critic"),
        *mlp("actor/params/MLP_0", "flow_actor/mlp"),
        *time_pair("actor/params/TimePairEmbedding_0", "flow_actor"),
    ),
    losses={
        **CRITIC_LOSSES,
        "actor/actor_loss": "actor/loss",
        "actor/bc_flow_loss": "actor/flow_loss",
        "actor/self_consistency_loss": "actor/completion_loss",
        "actor/q_loss": "actor/q_loss",
        "actor/q": "actor/q_mean",
        "total": total("critic/loss", "actor/loss"),
    },
    draws=draws("normal next_action_noise", "uniform u", "normal x0"),
    ways={"act": Way(draws=draws("normal noise"))},
    left_out={"loss/actor/mse": "a metric of theirs alone"},
)
