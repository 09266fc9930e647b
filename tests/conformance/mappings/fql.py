"""FQL, by its authors' code."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flowrl.agents import fql
from flowrl.networks import Spec

from ..mapping import CRITIC_LOSSES, AgentMapping, Way, draws, fqls, mlp, total, twins


def flow_actions(config: Any, state: Any, s: jax.Array, key: jax.Array) -> jax.Array:
    """Acts with the behaviour flow itself."""
    nets = fql.networks(config, Spec.of_sizes(s.shape[-1], 3))
    field = partial(nets.flow, state.params, s)
    return jnp.clip(config.behaviour.sample(field, nets.spec.noise(key, s)), -1.0, 1.0)


MAPPING = AgentMapping(
    config=lambda there: {
        **fqls(there),
        "behaviour.steps": there["flow_steps"],
        "alpha": there["alpha"],
        "critic.aggregate": there["q_agg"],
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
        "act": Way(draws=draws("normal noise")),
        "act_flow": Way(draws=draws("normal noise"), call=flow_actions),
    },
    left_out={"loss/actor/mse": "a metric of theirs alone, from a draw of its own"},
)
