"""Trains an agent: python experiments/main.py --agent=gc_sscp --env=pointmaze-medium-navigate --preset=quick.

A published preset is the default; any setting can be given as a flag, an agent's own as --agent.<name>=value.
`--agent=NAME --help` lists them all.
"""

if __name__ == "__main__":
    import flowrl.cli.start  # noqa: F401 - before the other imports, which take seconds

from collections.abc import Sequence

from flowrl.cli import flags
from flowrl.machine import signals

# All else is imported where it is used: environment workers import this file anew, and have no need of JAX.


def _help(arguments: Sequence[str]) -> str:
    with signals.importing():
        from flowrl.cli import shared
        from flowrl.experiment.settings import Settings
        from flowrl.machine import hosts

    return shared.help_text(__doc__ or "", arguments, {"": Settings(), "several hosts": hosts.Cluster()})


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    if flags.informed(arguments, lambda: _help(arguments)):
        return 0
    with signals.importing():
        from flowrl.cli import shared
        from flowrl.experiment import run
        from flowrl.experiment.settings import Settings, plan
        from flowrl.experiment.stored import read_config, resumed_plan
        from flowrl.machine import hosts

    given, of_hosts, of_agent = shared.given(arguments, (Settings(), hosts.Cluster()), read_config)
    hosts.connect(hosts.Cluster(**of_hosts))
    if given.get("resume"):
        return run.execute(*resumed_plan(given, of_agent))
    return run.execute(plan(given, of_agent))


if __name__ == "__main__":
    flags.run(main)
