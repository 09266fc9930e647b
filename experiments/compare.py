"""Compares agents: python experiments/compare.py --agents=bc,fql,sscp --envs=cube-single-play-singletask --num_seeds=3.

Trains each agent in each environment, with all seeds in one program, each pair in a run folder of its own that
main.py --resume, plot.py and report.py know; what is finished there is kept, what was broken off goes on. Then it
writes comparison.md, comparison.csv and the learning curves beside them. Further flags are those of main.py, for all
runs: --steps=20000. --agent.NAME=VALUE is for all agents, which must all have it, --fql.NAME=VALUE for one of them.
--list shows what would be run and how long that takes. --suite=ogbench-singletask and --suite=ogbench-goals add the
results to the rows in experiments/results/ogbench_singletask/ and ogbench_goals/.
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
        from flowrl.experiment.cells import CompareSettings
        from flowrl.experiment.settings import Settings

    return shared.help_text(__doc__ or "", arguments, {"": CompareSettings(), "runs": Settings()})


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    if flags.informed(arguments, lambda: _help(arguments)):
        return 0
    with signals.importing():
        from flowrl.cli import shared
        from flowrl.experiment import cells, comparing
        from flowrl.experiment.settings import Settings

    records = (cells.CompareSettings(), Settings())
    (of_comparison, given), of_agents = shared.given_of_several(
        arguments, records, lambda found: cells.listed("agents", found[0].get("agents", ""))
    )
    options = cells.CompareSettings(**of_comparison)
    return comparing.execute(cells.Comparison(given, of_agents, options, cells.told(arguments[1:])))


if __name__ == "__main__":
    flags.run(main)
