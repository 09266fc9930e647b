"""Trains an agent: python experiments/main.py --agent=gc_sscp --env=pointmaze-medium-navigate --preset=quick.

A published preset is the default; any setting can be given as a flag, an agent's own as --agent.<field>=value.
`--agent=NAME --help` lists them all.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags as absl_flags

from flowrl import flags

# All else is imported where it is used: environment workers import this file anew, and have no need of JAX.


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    from flowrl import agent as agents
    from flowrl import run
    from flowrl.settings import Settings, plan, resumed_plan

    values = absl_flags.FlagValues()
    flags.define(values, Settings)
    absl_flags.DEFINE_boolean("help", False, "Show this help.", short_name="h", flag_values=values)
    name = _agent_name(arguments)
    config = agents.load(name).Config if name else None
    if config:
        flags.define(values, config, "agent.")
    if flags.wants_help(arguments):
        print(f"{__doc__}\nagents: {', '.join(agents.names())}\n\n{flags.help_text(Settings)}")
        print(f"\n{name}:\n{flags.help_text(config, 'agent.')}" if config else "")
        return 0
    flags.parse(values, arguments, known_only=config is None)  # without an agent its flags are not known yet
    given = flags.given(values, Settings)
    agent_given = flags.given(values, config, "agent.") if config else {}
    if given.get("resume"):
        return run.execute(*resumed_plan(given, agent_given))
    return run.execute(plan(given, agent_given))


def _agent_name(arguments: Sequence[str]) -> str | None:
    """Returns the agent whose flags are to be defined: the one named, or that of the run to resume."""
    from flowrl.settings import Settings, read_config

    values = absl_flags.FlagValues()
    flags.define(values, Settings)
    flags.parse(values, arguments, known_only=True)
    if values.agent is None and values.resume and values.run_dir:
        return read_config(Path(values.run_dir).expanduser())["settings"]["agent"]
    return values.agent


if __name__ == "__main__":
    flags.run(main)
