"""Collects a dataset here: python experiments/collect.py --env=pointmaze-medium-navigate, or collected:hopper-medium.

The files go to the cache that training reads with --data=collected, or to --out. An interrupted collection is
continued by the same command.
"""

if __name__ == "__main__":
    import flowrl.cli.start  # noqa: F401 - before the other imports, which take seconds

import sys
from collections.abc import Sequence
from pathlib import Path

from flowrl import tasks
from flowrl.cli import flags
from flowrl.collection import collect
from flowrl.config import MOST_COUNT, MOST_EPISODES, MOST_WORKERS, record, static
from flowrl.errors import UserError
from flowrl.tasks import sources


@record
class Settings:
    """What to collect."""

    env: str = static("", "OGBench dataset such as pointmaze-medium-navigate, or collected:hopper-medium.")
    episodes: int | None = static(None, "Training episodes; the published number if absent.", high=MOST_EPISODES)
    seed: int = static(0, "Any number from 0; it fixes every episode.", low=0, high=MOST_COUNT)
    workers: int | None = static(None, "Processes; one per core if absent.", high=MOST_WORKERS)
    out: str = static("", "Folder for the files; the cache if absent.")


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    settings = flags.read(Settings(), arguments, __doc__ or "")
    if settings is None:
        return 0
    if not settings.env:
        raise UserError("which dataset? for example --env=pointmaze-medium-navigate")
    out = Path(settings.out).expanduser() if settings.out else sources.cache_root() / "collected"
    try:
        recipe = tasks.parse(settings.env).recipe()
        path = collect.collect(recipe, out, episodes=settings.episodes, seed=settings.seed, workers=settings.workers)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    print(f"collected {path}")
    return 0


if __name__ == "__main__":
    flags.run(main)
