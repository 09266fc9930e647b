"""Settings: what a run records about itself makes the same run again."""

import dataclasses
from typing import Any

from absl import flags as absl_flags

from flowrl import agent as agents
from flowrl import flags
from flowrl.settings import Plan, Settings, command, plan


def parsed(line: str, agent: str) -> Plan:
    values = absl_flags.FlagValues()
    config = agents.load(agent).Config
    flags.define(values, Settings)
    flags.define(values, config, "agent.")
    flags.parse(values, line.split()[1:])
    return plan(flags.given(values, Settings), flags.given(values, config, "agent."))


def recorded(made: Plan) -> dict[str, Any]:
    return {
        "settings": dataclasses.asdict(made.settings),
        "agent_config": dataclasses.asdict(made.agent_config),
        "preset": {"name": made.preset.name},
        "data": {"origin": made.settings.data},
    }


def test_the_recorded_command_makes_the_same_run() -> None:
    run = {"agent": "gc_sscp", "env": "antmaze-large-stitch-v0", "preset": "quick", "data": "collected", "seed": 3}
    agent = {"hidden_dims": (32, 16), "low_alpha": 2.5, "batch_size": 64}
    first = plan(run | {"num_seeds": 2, "steps": 123}, agent)
    line = command(recorded(first))
    again = parsed(line, "gc_sscp")
    assert (again.settings, again.agent_config) == (first.settings, first.agent_config)
    assert "--agent.hidden_dims=32,16" in line
    assert "subgoal_steps" not in line  # the preset's own value
