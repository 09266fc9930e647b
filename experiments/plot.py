"""Draws runs: python experiments/plot.py RUN_DIR... [--kind=curves] [--out=curves.png] [--x=updates|minutes].

Runs with the same configuration but for their seeds form a group, in one run directory or in several; the folder of a
sweep stands for all its runs. What is no run, or has no evaluation yet, is left out with a warning. The plotted numbers
go to <out>.json beside the picture, with the configurations, commits and hardware they come from.
"""

if __name__ == "__main__":
    import flowrl.cli.start  # noqa: F401 - before the other imports, which take seconds

import sys
from collections.abc import Sequence
from pathlib import Path

from flowrl.cli import flags
from flowrl.config import record, static
from flowrl.errors import UserError
from flowrl.reports import figures, learning_curves
from flowrl.reports.curves import Group, final_text, group_runs, label, panels
from flowrl.reports.published import Curve, beside
from flowrl.run_folder.evaluations import read_all

KINDS = ("curves", *figures.KINDS)


@record
class Settings:
    """The flags of this program."""

    kind: str = static(
        "curves",
        "What to draw: curves, final (a bar per configuration), profile (share of runs above each score), improvement "
        "(how probably one beats another) or sensitivity (final score against the value of a swept setting).",
        choices=KINDS,
    )
    out: str = static("", "The picture: .png, .pdf or .svg; <kind>.png if not given.")
    x: str = static("updates", "Horizontal axis of curves: updates or minutes.", choices=tuple(learning_curves.AXES))
    mode: str = static("eval", "Evaluations: eval, of single actions, or best_of_n, of choices by Q.")
    published: bool = static(False, "Draw bands of curves that authors have released, where ours can be compared.")
    methods: str = static("", "With --published: whose curves, separated by commas; those of our agents if not given.")


def _released(options: Settings, groups: Sequence[Group]) -> dict[str, Sequence[Curve]]:
    """Returns by environment others' curves that may stand behind ours, and says why others may not."""
    if not options.published:
        if options.methods:
            raise UserError("--methods are of released curves; add --published, or leave it out")
        return {}
    if options.kind != "curves" or options.x != "updates":
        raise UserError("--published draws bands behind learning curves over updates; leave --kind and --x out")
    found = {}
    for environment, row in panels(groups).items():
        found[environment], reasons = beside(row, options.methods.split(",") if options.methods else ())
        for reason in reasons:
            print(f"note: {reason}", file=sys.stderr)
    return found


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    found = flags.read_with_rest(Settings(), arguments, __doc__ or "", positional=True)
    if found is None:
        return 0
    options, folders = found
    if not folders:
        raise UserError("which runs? give one or more run directories: python experiments/plot.py runs/A runs/B")
    out = Path(options.out or f"{options.kind}.png").expanduser()
    if out.suffix[1:] not in figures.FORMATS:
        raise UserError(f"--out={options.out} is no picture; end it in .{', .'.join(figures.FORMATS)}")
    paths = [Path(folder).expanduser() for folder in folders]
    runs, left_out = read_all(paths, with_minutes=options.x == "minutes", mode=options.mode)
    for reason in left_out:
        print(f"warning: left out: {reason}", file=sys.stderr)
    groups = group_runs(runs)
    figures.save(figures.make(options.kind, groups, options.x, _released(options, groups)), out)
    print(f"wrote {out} and {out.name}.json")
    for environment, row in panels(groups).items():
        for group in row:
            print(f"{environment}: {label(group, row)}: {final_text(group.metric, group.final_interval)}")
    return 0


if __name__ == "__main__":
    flags.run(main)
