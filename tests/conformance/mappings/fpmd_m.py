"""FPMD-M, by its authors' code, which takes the whole path at each of several steps: an option here."""

from ..mirror import mapping

MAPPING = mapping(
    "dacer_policy_net2",
    ("begin", "time"),
    lambda there: {"policy.steps": there["num_timesteps"], "policy.divide_steps": there["num_timesteps"] == 1},
    ("normal candidates_x0",),
    ("uniform r t", "normal noise"),
)
