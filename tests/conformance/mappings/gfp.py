"""GFP, by its authors' code."""

from ..mapping import CRITIC_LOSSES, AgentMapping, Way, draws, fqls, mlp, total, twins

MAPPING = AgentMapping(
    config=lambda there: {
        **fqls(there),
        "critic.aggregate": there["q_agg"],
        "flow.steps": there["flow_steps"],
        "alpha": there["alpha"],
        "eta": there["eta_temperature"],
        "target": there["target_agg"],
        "reference": there["guidance_agg"],
        "flow_at_next": there["target_use_next"],
        "guidance": there["guidance_fn"],
        "normalize_q": there["normalize_q_loss"],
    },
    leaves=(
        *twins("critic", "critic"),
        *mlp("flow/params/MLP_0", "vabc/mlp"),
        *mlp("actor/params", "actor/mlp"),
    ),
    losses={
        **CRITIC_LOSSES,
        "actor/actor_loss": "actor/loss",
        "actor/VaBC_loss": "actor/flow_loss",
        "actor/distill_loss": "actor/distill_loss",
        "actor/q_loss": "actor/q_loss",
        "actor/guidance": "actor/weight",
        "actor/q_data": "actor/q_data",
        "actor/q_ref": "actor/q_reference",
        "total": total("critic/loss", "actor/loss"),
    },
    # Where the flow's next action counts its noise is drawn there too, the same numbers.
    draws=draws("normal next_actor_noise", "normal distill_noise", "uniform flow_t", "normal flow_x0"),
    ways={
        "act": Way(draws=draws("normal noise")),
        "act/actions_vabc": Way(draws=draws("normal noise"), evaluated_as="vabc"),
    },
    left_out={
        "loss/actor/guidance_above_*": "not logged here; the weights' mean is compared",
        "loss/actor/scaled_q_*": "not logged here; q_data and q_ref are compared",
        "loss/critic/tgt_q_mean": "not logged here; the loss shows it",
        "loss/grad/*": "gradients themselves are compared",
    },
)
