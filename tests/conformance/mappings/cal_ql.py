"""Cal-QL, by its authors' code."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..mapping import AgentMapping, Draw, Leaf, Way, draws, mlp


def critics() -> Iterator[Leaf]:
    """Twin critics, stacked here and apart there."""
    inner = "params/FullyConnectedNetwork_0"
    for one, other in zip(*(mlp("critic/params/MLP_0", f"qf{i}/{inner}") for i in (1, 2)), strict=True):
        yield Leaf(one.ours, one.theirs + other.theirs, lambda *arrays: np.stack(arrays), lambda array: [*array])


def scalars() -> Iterator[Leaf]:
    """The learnt scalars."""
    for name in ("log_std_multiplier", "log_std_offset"):
        yield Leaf(f"actor/params/{name}", (f"policy/params/{name}_module/value",))
    yield Leaf("temperature/log", ("log_alpha/params/value",))
    yield Leaf("multiplier/log", ("log_alpha_prime/params/value",))


def config(there: Mapping[str, Any]) -> dict[str, Any]:
    """The settings."""
    assert (there["cql_temp"], there["alpha_multiplier"], there["backup_entropy"]) == (1.0, 1.0, False)
    return {
        "critic.hidden_dims": tuple(map(int, there["qf_arch"].split("-"))),
        "hidden_dims": tuple(map(int, there["policy_arch"].split("-"))),
        "learning_rate": there["qf_lr"],
        "actor_learning_rate": there["policy_lr"],
        "discount": there["discount"],
        "critic.target_rate": there["soft_target_update_rate"],
        "proposals": there["cql_n_actions"],
        "conservative_weight": there["cql_min_q_weight"],
        "max_target_backup": there["cql_max_target_backup"],
        "lagrange": there["cql_lagrange"],
        "target_gap": there["cql_target_action_gap"],
        "one_draw": "one_draw" in there["file"],
    }


def proposals(one: str, other: str) -> tuple[Draw, ...]:
    """What the two critics' conservative terms draw; there the proposals of a state stand together."""
    roles = ("uniform {}uniform_actions", "normal {}next_proposal_noise", "normal {}current_proposal_noise")
    texts = (f"{role.format(one)} {role.format(other).split()[1]}" for role in roles)
    return draws(*texts, arrange=lambda array: array.swapaxes(0, 1))


def targets(one: str, other: str) -> tuple[Draw, ...]:
    """What the two critics' targets draw: one action, or several of a state."""
    text = f"normal {one}next_action_noise {other}next_action_noise"
    return draws(text, arrange=lambda array: array.swapaxes(0, 1) if array.ndim == 3 else array)


def drawn(file: str) -> tuple[Draw, ...]:
    """What one update draws: each loss for itself, or one set for all."""
    if file == "cal_ql":
        actor = draws("normal policy_eval_new_action_noise", "normal log_alpha_eval_new_action_noise")
        return (*targets("qf1_eval_", "qf2_eval_"), *proposals("qf1_eval_", "qf2_eval_"), *actor)
    of_multiplier = proposals("", "") if file.endswith("lagrange") else ()
    return (*targets("", ""), *proposals("", ""), *of_multiplier, *draws("normal new_action_noise"))


MAPPING = AgentMapping(
    config=config,
    leaves=(*mlp("actor/params/MLP_0", "policy/params/base_network"), *critics(), *scalars()),
    losses={
        "policy": "actor/loss",
        "log_alpha": "actor/temperature_loss",
        "log_alpha_prime": "critic/multiplier_loss",
        "qf1 + qf2": "critic/loss",
    },
    ways={"act": Way(True, draws("normal noise")), "act_mode": Way()},
    draws=drawn,
    eager=True,  # keys are stacked
    left_out={
        "loss/metrics/*": "logged of the last evaluation, of one critic, or a spread; those of the losses are compared",
        "extras/log_density_of_data": "logged only",
        "extras/temperature": "given",
        "act/log_density": "acting returns actions; the losses show densities",
    },
)
