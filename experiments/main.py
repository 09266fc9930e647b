"""Trains an agent: python experiments/main.py --agent=gc_sscp --env=pointmaze-medium-navigate --preset=quick.

A published preset is the default; any setting can be given as a flag, an agent's own as --agent.<field>=value.
`--agent=NAME --help` lists them all.
"""

if __name__ == "__main__":
    import flowrl.start  # noqa: F401 - before the other imports, which take seconds

from collections.abc import Sequence

from absl import flags as absl_flags

from flowrl import flags, signals

# All else is imported where it is used: environment workers import this file anew, and have no need of JAX.


def _help(arguments: Sequence[str]) -> str:
    with signals.importing():
        from flowrl import hosts
        from flowrl.programs import help_text
        from flowrl.settings import Settings

    return help_text(__doc__ or "", arguments, {"": Settings, "several hosts": hosts.Options})


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    if flags.informed(arguments, lambda: _help(arguments)):
        return 0
    with signals.importing():
        from flowrl import agent as agents
        from flowrl import hosts, run
        from flowrl.programs import agent_name
        from flowrl.settings import Settings, plan, read_config, resumed_plan

    values = absl_flags.FlagValues()
    flags.define(values, Settings)
    flags.define(values, hosts.Options)
    name = agent_name(arguments, read_config)
    config = agents.load(name).Config if name else None
    if config:
        flags.define(values, config, "agent.")
    flags.parse(values, arguments, known_only=config is None)  # without an agent its flags are not known yet
    given = flags.given(values, Settings)
    agent_given = flags.given(values, config, "agent.") if config else {}
    hosts.connect(hosts.Options(**flags.given(values, hosts.Options)))
    if given.get("resume"):
        return run.execute(*resumed_plan(given, agent_given))
    return run.execute(plan(given, agent_given))


if __name__ == "__main__":
    flags.run(main)
