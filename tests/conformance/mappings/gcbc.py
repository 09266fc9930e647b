"""GCBC, by OGBench's code."""

from ..mapping import GAUSSIAN, AgentMapping, Way, draws, mlp

MAPPING = AgentMapping(
    config=lambda there: {"hidden_dims": tuple(there["actor_hidden_dims"]), "learning_rate": there["lr"]},
    leaves=tuple(mlp("actor/params", "actor", layers=GAUSSIAN)),
    losses={"actor/actor_loss": "actor/loss", "actor/mse": "actor/mse", "total": "actor/loss"},
    ways={"act": Way(True, draws("normal noise")), "act_mode": Way()},
    left_out={
        "loss/actor/bc_log_prob": "the loss but for its sign",
        "loss/actor/std": "1 by definition",
    },
)
