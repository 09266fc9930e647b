"""FPMD-R, by its authors' code."""

from ..mirror import mapping

MAPPING = mapping(
    "dacer_policy_net",
    ("time",),
    lambda there: {"policy.steps": there["num_timesteps"]},
    ("normal candidates_x0",),
    ("uniform t", "normal noise"),
)
