"""Collects an OGBench dataset here: python experiments/collect.py --env=pointmaze-medium-navigate.

The files go to the cache that training reads with --data=collected, or to --out. An interrupted collection is
continued by the same command.
"""

import sys
from pathlib import Path

from absl import flags

from flowrl.data import collect, sources
from flowrl.errors import UserError


def define() -> flags.FlagValues:
    """Returns the flags of this program, apart from absl's global ones."""
    values = flags.FlagValues()
    flags.DEFINE_string("env", None, "OGBench dataset, for example pointmaze-medium-navigate.", flag_values=values)
    flags.DEFINE_integer("episodes", None, "Training episodes; the published number if absent.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Any number from 0; it fixes every episode.", flag_values=values)
    flags.DEFINE_integer("workers", None, "Processes; one per core if absent.", flag_values=values)
    flags.DEFINE_string("out", None, "Folder for the files; the cache if absent.", flag_values=values)
    flags.DEFINE_boolean("help", False, "Show this help.", short_name="h", flag_values=values)
    return values


def main(arguments: list[str]) -> int:
    """Runs the program and returns its exit status."""
    values = define()
    try:
        stray = values(arguments)[1:]
        if values.help:
            print(f"{__doc__}\n{values.main_module_help() or values.get_help()}")
            return 0
        if stray:
            raise UserError(f"unexpected argument {stray[0]!r}; flags are written --name=value")
        if values.env is None:
            raise UserError("which dataset? for example --env=pointmaze-medium-navigate")
        out = Path(values.out).expanduser() if values.out else sources.cache_root() / "collected"
        path = collect.collect(values.env, out, episodes=values.episodes, seed=values.seed, workers=values.workers)
    except (UserError, flags.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    print(f"collected {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
