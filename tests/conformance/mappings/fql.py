"""FQL, by its authors' code."""

from typing import Any

import jax

from flowrl.agents import fql

from ..mapping import CRITIC_LOSSES, AgentMapping, Way, draws, mlp, total, twins


def flow_actions(agent: Any, state: Any, observations: jax.Array, goals: jax.Array, key: jax.Array) -> jax.Array:
    """Acts with the behaviour flow itself."""
    networks, config = agent.update.args
    return fql.flow_actions(networks, config, state.params["flow"], observations, jax.random.normal(key, (4, 3)))


MAPPING = AgentMapping(
    config=lambda there: {
        "hidden_dims": tuple(there["actor_hidden_dims"]),
        "learning_rate": there["lr"],
        "discount": there["discount"],
        "critic_target_rate": there["tau"],
        "flow_steps": there["flow_steps"],
        "alpha": there["alpha"],
        "q_agg": there["q_agg"],
        "normalize_q": there["normalize_q_loss"],
    },
    leaves=(
        *twins("critic", "critic"),
        *mlp("flow/params", "actor_bc_flow/mlp"),
        *mlp("actor/params", "actor_onestep_flow/mlp"),
    ),
    losses={
        **CRITIC_LOSSES,
        "actor/actor_loss": "actor/loss",
        "actor/bc_flow_loss": "actor/flow_loss",
        "actor/distill_loss": "actor/distill_loss",
        "actor/q_loss": "actor/q_loss",
        "actor/q": "actor/q_mean",
        "total": total("critic/loss", "actor/loss"),
    },
    draws=draws("normal next_action_noise", "uniform t", "normal x0", "normal distill_noise"),
    ways={
        "act": Way("eval", draws("normal noise")),
        "act_flow": Way("eval", draws("normal noise"), call=flow_actions),
    },
    left_out={"loss/actor/mse": "a metric of theirs alone, from a draw of its own"},
)
