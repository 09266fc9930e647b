"""Draws runs: python experiments/plot.py RUN_DIR... [--kind=curves] [--out=curves.png] [--x=updates|minutes].

Runs with the same configuration but for their seeds form a group, in one run directory or in several; the folder of a
sweep stands for all its runs. What is no run, or has no evaluation yet, is left out with a warning. The plotted numbers
go to <out>.json beside the picture, with the configurations, commits and hardware they come from.
"""

if __name__ == "__main__":
    import flowrl.start  # noqa: F401 - before the other imports, which take seconds

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags as absl_flags

from flowrl import config as configs
from flowrl import figures, flags
from flowrl.curves import final_text, group_runs, label, panels, read_all
from flowrl.errors import UserError, suggestion

KINDS = ("curves", *figures.KINDS)


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of this program."""

    kind: str = configs.setting(
        "curves",
        "What to draw: curves, final (a bar per configuration), profile (share of runs above each score), improvement "
        "(how probably one beats another) or sensitivity (final score against the value of a swept setting).",
    )
    out: str | None = configs.setting(None, "The picture: .png, .pdf or .svg; <kind>.png if not given.")
    x: str = configs.setting("updates", "Horizontal axis of curves: updates or minutes.")
    mode: str = configs.setting("eval", "Evaluations: eval, of single actions, or best_of_n, of choices by Q.")


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    values = absl_flags.FlagValues()
    flags.define(values, Options)
    if flags.informed(arguments, lambda: f"{__doc__}\n{flags.help_text(Options)}"):
        return 0
    folders = flags.parse(values, arguments, positional=True)
    if not folders:
        raise UserError("which runs? give one or more run directories: python experiments/plot.py runs/A runs/B")
    if values.kind not in KINDS:
        raise UserError(f"--kind={values.kind} is unknown{suggestion(values.kind, KINDS)}")
    if values.x not in figures.AXES:
        raise UserError(f"--x={values.x} is unknown; choose {' or '.join(figures.AXES)}")
    out = Path(values.out or f"{values.kind}.png").expanduser()
    if out.suffix[1:] not in figures.FORMATS:
        raise UserError(f"--out={values.out} is no picture; end it in .{', .'.join(figures.FORMATS)}")
    paths = [Path(folder).expanduser() for folder in folders]
    runs, left_out = read_all(paths, with_minutes=values.x == "minutes", mode=values.mode)
    for reason in left_out:
        print(f"warning: left out: {reason}", file=sys.stderr)
    groups = group_runs(runs)
    figures.save(figures.make(values.kind, groups, values.x), out)
    print(f"wrote {out} and {out.name}.json")
    for environment, row in panels(groups).items():
        for group in row:
            print(f"{environment}: {label(group, row)}: {final_text(group.metric, group.final_interval)}")
    return 0


if __name__ == "__main__":
    flags.run(main)
