"""Optional packages that settings of a run ask for."""

import importlib.util
import os
from typing import NamedTuple

from flowrl.errors import UserError

OGBENCH = "pip install --no-deps ogbench dm-control"
"""What brings OGBench from Python 3.13 on, where flowrl does without (requirements.txt says why)."""


class Package(NamedTuple):
    """A package that a setting needs.

    Attributes:
        flag: The setting.
        module: What must be there.
        extra: The extra of this project that installs it.
        without: What is written behind the flag to do without.
    """

    flag: str
    module: str
    extra: str
    without: str = "=false"


TENSORBOARD = Package("--log.tensorboard", "tensorboardX", "tensorboard")
WANDB = Package("--log.wandb", "wandb", "wandb")
VIDEO = Package("--log.video_episodes", "imageio_ffmpeg", "video", without="=0")


def remedy(error: Exception) -> str:
    """Returns what installs the package that an `ImportError` misses; for others, and errors of other kinds, a hint."""
    missing = (getattr(error, "name", None) or "").partition(".")[0]
    return f"install it with: {OGBENCH}" if missing in ("ogbench", "dm_control") else "install what it asks for"


def check(*, tensorboard: bool = False, wandb: bool = False, video: bool = False) -> None:
    """Checks, without importing them, that packages that are asked for are there; and who writes to Weights & Biases.

    Raises:
        UserError: One is missing, or nobody is logged in.
    """
    for wanted, package in ((tensorboard, TENSORBOARD), (wandb, WANDB), (video, VIDEO)):
        if wanted:
            require(package)
    if wandb and os.environ.get("WANDB_MODE", "online") == "online":
        _log_in()


def require(package: Package) -> None:
    """Checks, without importing it, that a package is there.

    Raises:
        UserError: It is not.
    """
    if importlib.util.find_spec(package.module) is None:
        raise UserError(
            f"{package.flag} needs the package {package.module}, which is missing; pip install -e "
            f"'.[{package.extra}]', or give {package.flag}{package.without}"
        )


def _log_in() -> None:
    """Logs in to Weights & Biases; a terminal is asked who it is, if nobody knows."""
    import wandb

    try:
        wandb.login()
    except wandb.errors.UsageError as error:
        raise UserError(
            f"{WANDB.flag}: {' '.join(str(error).split())} Or set WANDB_MODE=offline, or leave {WANDB.flag} out"
        ) from error
