"""Optional packages that settings of a run ask for."""

import importlib.util
import os

from flowrl.errors import UserError
from flowrl.sinks import Log

OGBENCH = "pip install --no-deps ogbench dm-control"
"""What brings OGBench from Python 3.13 on, where flowrl does without (requirements.txt says why)."""


def remedy(error: Exception) -> str:
    """Returns what installs the package that an `ImportError` misses; for others, and errors of other kinds, a hint."""
    missing = (getattr(error, "name", None) or "").partition(".")[0]
    return f"install it with: {OGBENCH}" if missing in ("ogbench", "dm_control") else "install what it asks for"


def check(log: Log) -> None:
    """Checks, without importing them, that the packages are there; and that Weights & Biases knows who writes.

    Raises:
        UserError: One is missing, or nobody is logged in.
    """
    if log.tensorboard:
        _require("tensorboardX", "tensorboard", "--log.tensorboard", "false")
    if log.wandb:
        _require("wandb", "wandb", "--log.wandb", "false")
    if log.video_episodes:
        _require("imageio_ffmpeg", "video", "--log.video_episodes", "0")
    if log.wandb and os.environ.get("WANDB_MODE", "online") == "online":
        _log_in()


def _require(module: str, extra: str, flag: str, off: str) -> None:
    """Raises if a module is missing, which an extra of this project installs."""
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"{flag} needs the package {module}, which is missing; pip install -e '.[{extra}]', or give {flag}={off}"
        )


def _log_in() -> None:
    """Logs in to Weights & Biases; a terminal is asked who it is, if nobody knows."""
    import wandb

    try:
        wandb.login()
    except wandb.errors.UsageError as error:
        raise UserError(
            f"--log.wandb: {' '.join(str(error).split())} Or set WANDB_MODE=offline, or leave --log.wandb out"
        ) from error
