"""Sweeps: python experiments/sweep.py --agent=sscp --env=NAME --num_seeds=4 --agent.completion_alpha=0.05,0.1,0.2.

Every flag of experiments/main.py, but each of the agent's own may have several values: separated by commas, and by
colons where a value is itself a list (--agent.hidden_dims=256,256:512,512). The grid is their product, with every seed.
Grid points that differ in sweepable settings only are trained together in one compiled program; static ones make groups
that follow one another. The same command with its --run_dir, or --resume --run_dir=DIR, continues a sweep that was
broken off.
"""

if __name__ == "__main__":
    import flowrl.cli.start  # noqa: F401 - before the other imports, which take seconds

import os
import time
from collections.abc import Sequence

from flowrl.cli import flags
from flowrl.machine import signals

# All else is imported where it is used: environment workers import this file anew, and have no need of JAX.


def _help(arguments: Sequence[str]) -> str:
    with signals.importing():
        from flowrl.cli import shared
        from flowrl.experiment import grids
        from flowrl.experiment.settings import Settings
        from flowrl.machine import hosts

    tables = {"": grids.SweepSettings(), "runs": Settings(), "several hosts": hosts.Cluster()}
    return shared.help_text(__doc__ or "", arguments, tables)


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    if flags.informed(arguments, lambda: _help(arguments)):
        return 0
    with signals.importing():
        from flowrl.cli import shared
        from flowrl.experiment import grids, sweeps
        from flowrl.experiment.settings import Settings
        from flowrl.machine import hosts

    records = (Settings(), hosts.Cluster(), grids.SweepSettings())
    given, of_hosts, of_sweep, grid = shared.given(arguments, records, grids.read_record, several=True)
    hosts.connect(hosts.Cluster(**of_hosts))
    options = grids.SweepSettings(**of_sweep)
    if given.get("resume"):
        return sweeps.execute(grids.resumed(given, grid, options))
    hosts.require_folder(given.get("run_dir"))
    if "run_dir" not in given:
        given["run_dir"] = f"runs/sweep-{given.get('agent')}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return sweeps.execute(grids.Sweep(given, grid, options))


if __name__ == "__main__":
    flags.run(main)
