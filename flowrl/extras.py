"""Optional packages that settings of a run ask for."""

import importlib.util
import os
from typing import Any

from flowrl.errors import UserError

PACKAGES = {
    "tensorboard": ("tensorboardX", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "video_episodes": ("imageio_ffmpeg", "video"),
}
"""For each setting the module that it needs, and the extra of this project that installs it."""

OGBENCH = "pip install --no-deps ogbench dm-control"
"""What brings OGBench from Python 3.13 on, where flowrl does without (requirements.txt says why)."""


def remedy(error: Exception) -> str:
    """Returns what installs the package that an `ImportError` misses; for others, and errors of other kinds, a hint."""
    missing = (getattr(error, "name", None) or "").partition(".")[0]
    return f"install it with: {OGBENCH}" if missing in ("ogbench", "dm_control") else "install what it asks for"


def check(settings: Any) -> None:
    """Checks, without importing them, that the packages are there; and that Weights & Biases knows who writes.

    Raises:
        UserError: One is missing, or nobody is logged in.
    """
    for name, (module, extra) in PACKAGES.items():
        if getattr(settings, name) and importlib.util.find_spec(module) is None:
            off = "=0" if name == "video_episodes" else "=false"
            raise UserError(
                f"--{name} needs the package {module}, which is missing; pip install -e '.[{extra}]', or give "
                f"--{name}{off}"
            )
    if settings.wandb and os.environ.get("WANDB_MODE", "online") == "online":
        _log_in()


def _log_in() -> None:
    """Logs in to Weights & Biases; a terminal is asked who it is, if nobody knows."""
    import wandb

    try:
        wandb.login()
    except wandb.errors.UsageError as error:
        raise UserError(
            f"--wandb: {' '.join(str(error).split())} Or set WANDB_MODE=offline, or leave --wandb out"
        ) from error
