"""Processes that build something and answer what its methods return, and stop with their parent.

Processes import this module, so nothing here needs JAX.
"""

import contextlib
import multiprocessing
import pickle
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from flowrl.envs.episodes import explained
from flowrl.errors import UserError


def begin(build: Callable[[], Any], ignored: Sequence[signal.Signals]) -> tuple[Any, Connection]:
    """Starts a process that builds something, and then calls its methods as it is told through a pipe.

    Each message is the name of a method and its argument; the reply is what the method returns, or the exception that
    ended the process.

    Args:
        build: Picklable; called in the process.
        ignored: Signals that are the parent's to handle. Ctrl-C is from the process's first moment on.

    Raises:
        UserError: What is to be built cannot be sent to a process.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, build, tuple(ignored)), daemon=True)
    with interrupts_held():
        try:
            process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UserError(
                f"the environment cannot be sent to a process ({explained(error)}); register it in a module of its own "
                "and name it module:Name-v0"
            ) from error
    theirs.close()
    return process, ours


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Holds Ctrl-C back; a process that is started meanwhile does so until it calls `leave_to_parent`."""
    resource_tracker.ensure_running()  # which starting the first process does otherwise, and then lets Ctrl-C through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent(numbers: Sequence[signal.Signals]) -> None:
    """Ignores signals in a process that was started while Ctrl-C was held back."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _work(connection: Connection, build: Callable[[], Any], ignored: tuple[signal.Signals, ...]) -> None:
    """A worker's life: until its connection closes, answers each message with what comes of it, or why it ends."""
    leave_to_parent(ignored)
    warnings.simplefilter("ignore")
    try:
        built = build()
        while (message := _receive(connection)) is not None:
            method, argument = message
            reply = getattr(built, method)(argument)
            with contextlib.suppress(OSError):
                connection.send(reply)
    except Exception as error:
        failed = RuntimeError(f"an environment worker failed:\n{traceback.format_exc()}")
        with contextlib.suppress(OSError):
            connection.send(error if isinstance(error, UserError) else failed)


def _receive(connection: Connection) -> tuple[str, Any] | None:
    """Returns the next command, or None when the parent has gone."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None
