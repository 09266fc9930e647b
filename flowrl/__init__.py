"""flowrl: functional reinforcement learning with one-step flow policies, in JAX and Flax."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowrl.machine.version import __version__

if TYPE_CHECKING:
    from flowrl.experiment.loading import Loaded

__all__ = ["__version__", "load"]


def load(run_dir: str | Path, *, run: int = 0, step: int | None = None, seed: int = 0, **acting: Any) -> "Loaded":
    """Loads a trained policy from a run folder: `flowrl.load("runs/x").act(observation)`.

    See `flowrl.experiment.loading.load`.
    """
    from flowrl.experiment import loading  # here, so that `import flowrl` imports nothing

    return loading.load(run_dir, run=run, step=step, seed=seed, **acting)
