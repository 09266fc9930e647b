"""Sweeps: python experiments/sweep.py --agent=sscp --env=NAME --num_seeds=4 --agent.completion_alpha=0.05,0.1,0.2.

Every flag of experiments/main.py, but each of the agent's own may have several values: separated by commas, and by
colons where a value is itself a list (--agent.hidden_dims=256,256:512,512). The grid is their product, with every seed.
Grid points that differ in sweepable fields only are trained together in one compiled program; static fields make groups
that follow one another. The same command with its --run_dir, or --resume --run_dir=DIR, continues a sweep that was
broken off.
"""

if __name__ == "__main__":
    import flowrl.start  # noqa: F401 - before the other imports, which take seconds

import os
import time
from collections.abc import Sequence

from absl import flags as absl_flags

from flowrl import flags, signals

# All else is imported where it is used: environment workers import this file anew, and have no need of JAX.


def _help(arguments: Sequence[str]) -> str:
    with signals.importing():
        from flowrl import hosts, sweeps
        from flowrl.programs import help_text
        from flowrl.settings import Settings

    return help_text(__doc__ or "", arguments, {"": sweeps.Options, "runs": Settings, "several hosts": hosts.Options})


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    if flags.informed(arguments, lambda: _help(arguments)):
        return 0
    with signals.importing():
        from flowrl import agent as agents
        from flowrl import hosts, sweeps
        from flowrl.programs import agent_name
        from flowrl.settings import Settings

    values = absl_flags.FlagValues()
    flags.define(values, Settings)
    flags.define(values, hosts.Options)
    flags.define(values, sweeps.Options)
    name = agent_name(arguments, sweeps.read_record)
    config = agents.load(name).Config if name else None
    if config:
        flags.define_lists(values, config, "agent.")
    flags.parse(values, arguments, known_only=config is None)  # without an agent its flags are not known yet
    given, options = flags.given(values, Settings), sweeps.Options(**flags.given(values, sweeps.Options))
    grid = flags.given_lists(values, config, "agent.") if config else {}
    hosts.connect(hosts.Options(**flags.given(values, hosts.Options)))
    if given.get("resume"):
        return sweeps.execute(sweeps.resumed(given, grid, options))
    hosts.require_folder(given.get("run_dir"))
    if "run_dir" not in given:
        given["run_dir"] = f"runs/sweep-{given.get('agent')}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return sweeps.execute(sweeps.Sweep(given, grid, options))


if __name__ == "__main__":
    flags.run(main)
