"""Checkpoints of whole runs with orbax: all or nothing, and exact."""

import contextlib
import errno
import inspect
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from flowrl.errors import UserError
from flowrl.machine import devices, hosts, schema
from flowrl.machine.files import require_space

FACTS = schema.record(
    {
        "agent": schema.text(),
        "evaluated": schema.boolean,
        "episodes": schema.listing(schema.listing(schema.number(0, whole=True), least=1), least=1),
    },
    optional=("episodes",),
)
"""What a checkpoint says of itself beside its arrays."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what orbax says beside the error that it raises.

    Its reads and writes that are still under way when one fails find, whenever they end, their event loop closed or
    their error unheard, and say so on stderr. So the silence begins before and, after a failure, lasts.
    """
    previous, log = sys.unraisablehook, logging.getLogger("asyncio")
    level = log.level

    def hook(unraisable: Any) -> None:
        if not inspect.iscoroutine(unraisable.object) and str(unraisable.exc_value) != "Event loop is closed":
            previous(unraisable)

    sys.unraisablehook = hook
    log.setLevel(logging.CRITICAL)
    yield
    sys.unraisablehook = previous
    log.setLevel(level)


class Checkpoints:
    """The checkpoints of one run directory, of which the newest `keep` are kept, or all with 0.

    A checkpoint is written under a temporary name and renamed, so that a kill leaves the previous one in force.
    """

    def __init__(self, folder: Path, keep: int = 2, *, read_only: bool = False):
        """Opens a folder of checkpoints.

        Args:
            folder: The folder; it is made if it may be written to.
            keep: How many are kept.
            read_only: Whether to leave the folder as it is, also what a run writes there at this moment.

        Raises:
            UserError: The folder is a file, or one of its checkpoints is.
        """
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.folder = folder.absolute()
        self._require_folders()
        if not read_only:
            for left in self.folder.glob(".*.tmp"):
                shutil.rmtree(left, ignore_errors=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep or None, enable_async_checkpointing=False, read_only=read_only
        )
        handlers = {"arrays": ocp.StandardCheckpointHandler(), "facts": ocp.JsonCheckpointHandler()}
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise UserError(
                f"a checkpoint in {self.folder} is damaged ({error}); delete the newest step's folder to fall back to "
                "the one before"
            ) from error

    def _require_folders(self) -> None:
        steps = [path for path in self.folder.glob("*") if path.name.isdecimal()]
        for path in [self.folder] * self.folder.exists() + steps:
            if not path.is_dir():
                raise UserError(f"{path} is a file, not the folder of a checkpoint; move it away")

    def latest(self) -> int | None:
        """Returns the step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, arrays: Any, facts: dict[str, Any]) -> None:
        """Saves a pytree of arrays and some JSON facts as the checkpoint at `step`, replacing one of the same step.

        Raises:
            UserError: The disk is full; checkpoints of earlier steps are untouched.
        """
        require_space(self.folder, sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)))
        parts = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), facts=ocp.args.JsonSave(facts))
        try:
            with quiet(), self._without(step):
                self._manager.save(step, args=parts, force=True)
                self._manager.wait_until_finished()
        except Exception as error:
            if (found := _unwritten(error)) is None:
                raise
            reason, remedy = found
            whole = f"the one at step {self.latest()} is whole; " if self.latest() is not None else ""
            raise UserError(
                f"cannot write a checkpoint in {self.folder}: {reason}; {whole}{remedy} and continue with --resume"
            ) from error

    @contextlib.contextmanager
    def _without(self, step: int) -> Iterator[None]:
        """Takes a checkpoint of this step out of force, at once, and deletes it when the new one is there.

        To delete it where it lies would leave a part of it after a kill, as the newest.
        """
        if step not in self.steps():
            yield
            return
        aside = self.folder / f".{step}.{secrets.token_hex(4)}.tmp"
        if hosts.first():
            os.rename(self.folder / str(step), aside)
        hosts.wait()
        self._manager.reload()
        try:
            yield
        except Exception:
            if hosts.first() and not (self.folder / str(step)).exists():
                os.rename(aside, self.folder / str(step))
                self._manager.reload()
            raise
        if hosts.first():
            shutil.rmtree(aside)

    def facts(self, step: int | None = None) -> dict[str, Any]:
        """Returns the facts saved with the newest checkpoint, or with the one at `step`.

        Raises:
            UserError: The checkpoint is damaged.
        """
        found = self._read(ocp.args.Composite(facts=ocp.args.JsonRestore()), step)["facts"]
        try:
            FACTS("facts", found)
        except schema.Mismatch as error:
            raise self.unfit(self.latest() if step is None else step, str(error)) from error
        return found

    def restore(self, like: Any) -> Any:
        """Returns the newest checkpoint's arrays, in the structure of `like` and on its devices.

        The leading axis of runs may have been filled up for another number of devices: it is cut, or filled with zeros.

        Args:
            like: Arrays or shapes in the structure to restore.

        Raises:
            UserError: The checkpoint holds other networks or is damaged.
        """
        shapes = devices.shapes(like)
        self._require_fit(shapes)
        return self._read(ocp.args.Composite(arrays=ocp.args.StandardRestore(shapes, strict=False)))["arrays"]

    def _require_fit(self, like: Any) -> None:
        """Checks that arrays differ in the number of runs at most, which `restore` itself would not notice."""
        self.require_fit(like, self._stored(self.latest()))

    def require_fit(self, like: Any, stored: Any, step: int | None = None) -> None:
        """Checks that arrays read from a checkpoint differ from those of `like` in the number of runs at most.

        Raises:
            UserError: They are of other networks.
        """
        found = shapes_of(stored)
        for name, shape in shapes_of(like).items():
            if found.get(name, shape)[1:] != shape[1:]:
                step = self.latest() if step is None else step
                raise self.unfit(step, f"{name} has shape {found[name][1:]} for each run, not {shape[1:]}")

    def steps(self) -> list[int]:
        """Returns the steps of all whole checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def raw(self, step: int | None = None) -> Any:
        """Returns a checkpoint's arrays as nested dictionaries and lists, for who does not know the agent.

        Args:
            step: Of which; the newest one where None.

        Raises:
            UserError: The checkpoint is damaged.
        """
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # not those that it was saved from
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            self._stored(self.latest() if step is None else step),
        )
        return self._read(ocp.args.Composite(arrays=ocp.args.StandardRestore(shapes)), step)["arrays"]

    def _read(self, parts: ocp.args.Composite, step: int | None = None) -> Any:
        """Reads parts of the checkpoint at `step`, or of the newest."""
        step = self.latest() if step is None else step
        return self._attempt(step, lambda: self._manager.restore(step, args=parts))

    def _stored(self, step: int | None) -> Any:
        """Returns the metadata of a checkpoint's arrays, in their structure."""
        found = self._attempt(step, lambda: self._manager.item_metadata(step)["arrays"])
        if found is None:
            raise self.unfit(step, "no arrays")
        return found.tree

    def _attempt(self, step: int | None, read: Callable[[], Any]) -> Any:
        if step is None:
            raise UserError(f"there is no checkpoint in {self.folder}; put it back, or start a new run")
        try:
            with quiet():
                return read()
        except Exception as error:  # orbax and what it stands on raise anything over damaged files
            reason = str(error).strip() or type(error).__name__
        raise self.unfit(step, reason)

    def unfit(self, step: int | None, reason: str) -> UserError:
        """Returns the error to raise over a checkpoint that cannot be used for this reason."""
        earlier = [other for other in self.steps() if step is not None and other < step]
        remedy = "delete that step's folder to fall back to the one before" if earlier else "put it back from a copy"
        return UserError(
            f"the checkpoint at step {step} in {self.folder} does not fit this agent and its settings, or is "
            f"damaged ({reason.splitlines()[0][:200]}); {remedy}"
        )

    def close(self) -> None:
        """Releases the manager's threads."""
        self._manager.close()


def _unwritten(error: Exception) -> tuple[str, str] | None:
    """Says why files cannot be written, and what helps; None of any other error."""
    text, number = " ".join(str(error).split()), getattr(error, "errno", None)
    if "No space" in text or "RESOURCE_EXHAUSTED" in text or number in (errno.ENOSPC, errno.EDQUOT):
        return "no disk space", "free space"
    if "File too large" in text or number == errno.EFBIG:
        return "files may not grow so large here", "raise ulimit -f"
    if "PERMISSION_DENIED" in text or isinstance(error, OSError):
        return text[-200:], "make the folder writable"
    return None


def shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of arrays by the names of their places."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
