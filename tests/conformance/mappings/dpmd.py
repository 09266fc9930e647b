"""DPMD, by the code of FPMD's authors (`dpmd`) and with the schedule of its own authors (`dpmd__linear`)."""

from ..mirror import mapping

MAPPING = mapping(
    "dacer_policy_net",
    ("level",),
    lambda there: {
        "policy.levels": there["num_timesteps"],
        "policy.schedule": "linear" if "linear" in there["file"] else "cosine",
        "policy.schedule_scale": 0.3 if "linear" in there["file"] else 1.0,
        "start": "scaled",
    },
    ("normal candidates_x0", "normal candidates_steps"),
    ("normal noise", "randint t"),
)
