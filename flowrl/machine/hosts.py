"""Several hosts: every one runs the same command; JAX's distributed runtime connects them.

What hosts tell each other is gathered by a collective of their devices. They meet at a barrier of that runtime before,
which, unlike a collective, may be waited for as long as collecting data or evaluating takes. With a single host all
functions here are trivial.
"""

import itertools
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from flowrl.config import MOST_COUNT, record, static
from flowrl.errors import SharedError, UserError

PATIENCE = 24 * 3600
"""Seconds that hosts wait for each other; one that died is noticed by the runtime within about two minutes."""
_rounds = itertools.count()
_connected = False
T = TypeVar("T")


@record
class Cluster:
    """How this process finds the others; without a coordinator it is alone."""

    coordinator_address: str | None = static(
        None, "HOST:PORT of process 0, or auto on Slurm, TPU pods and others that JAX detects; absent, one host."
    )
    num_processes: int | None = static(None, "Number of hosts, with HOST:PORT.")
    process_id: int | None = static(None, "Number of this host, from 0, with HOST:PORT.", low=0)
    connect_timeout: int = static(300, "Seconds to wait for the other hosts at the start.", high=MOST_COUNT)


def connect(options: Cluster) -> None:
    """Connects this process with the others, before anything else of JAX; all but the first fall silent on stdout.

    Where hosts do not arrive in time, JAX would abort with a stack trace; here a clear line is printed, and the process
    exits with status 1.

    Raises:
        UserError: The options contradict each other, no cluster is detected, or hosts differ in numbers of devices.
    """
    if options.coordinator_address is None:
        if options.num_processes is not None or options.process_id is not None:
            raise UserError("--num_processes and --process_id need --coordinator_address=HOST:PORT")
        return
    _check(options)
    import jax

    # By it JAX would take SIGTERM for itself; hosts agree on stopping without it.
    jax.config.update("jax_enable_preemption_service", False)
    where = {} if options.coordinator_address == "auto" else _explicit(options)
    watchdog = threading.Timer(options.connect_timeout, _give_up, [options])
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(**where, initialization_timeout=10 * options.connect_timeout)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot connect hosts by --coordinator_address={options.coordinator_address}: "
            f"{str(error).splitlines()[0]}; give HOST:PORT with --num_processes and --process_id"
        ) from error
    finally:
        watchdog.cancel()
    global _connected
    _connected = True
    print(f"host {index()} of {count()}, {jax.local_device_count()} of {jax.device_count()} devices", flush=True)
    require_equal_devices()
    if index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process


def leave(status: int) -> None:
    """Ends this process after an error that other hosts know nothing of; alone it just goes on to its end.

    At an orderly end JAX waits for the others, which wait for this host; if it is gone, they notice.
    """
    if not _connected:
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def no_bars() -> bool | None:
    """Returns what tqdm's `disable` is to be: the first host alone shows bars, and only on a terminal."""
    return True if _connected and index() else None


def _explicit(options: Cluster) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("coordinator_address", "num_processes", "process_id")}


def _check(options: Cluster) -> None:
    if options.connect_timeout < 1:
        raise UserError(f"--connect_timeout={options.connect_timeout} is too small; the least is 1")
    address, hosts, own = _explicit(options).values()
    if address == "auto":
        if hosts is not None or own is not None:
            raise UserError("--coordinator_address=auto finds --num_processes and --process_id itself; leave them out")
        return
    if hosts is None or own is None:
        raise UserError(f"--coordinator_address={address} needs --num_processes=N and --process_id=0 ... N-1")
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
        raise UserError(f"--coordinator_address={address} is no HOST:PORT")
    if hosts < 1 or not 0 <= own < hosts:
        raise UserError(f"--process_id={own} is none of the {hosts} hosts, which are counted from 0")


def _give_up(options: Cluster) -> None:
    hosts = f"the {options.num_processes} hosts" if options.num_processes else "hosts"
    text = (
        f"error: not all of {hosts} came to {options.coordinator_address} within {options.connect_timeout} s; start "
        "the same command on each, with an address of process 0 that all can reach, or raise --connect_timeout\n"
    )
    os.write(2, text.encode())
    os._exit(1)


def count() -> int:
    """Returns the number of hosts."""
    import jax

    return jax.process_count()


def index() -> int:
    """Returns the number of this host; the first, 0, writes the files of a run."""
    import jax

    return jax.process_index()


def first() -> bool:
    """Whether this is the host that writes the files of a run."""
    return index() == 0


def require_equal_devices() -> None:
    """Checks that all hosts have equally many devices; every one knows those of all.

    Raises:
        SharedError: They have not.
    """
    import jax

    found = Counter(device.process_index for device in jax.devices())
    for host, number in sorted(found.items()):
        if number != found[0]:
            raise SharedError(
                f"host 0 has {found[0]} devices, but host {host} has {number}; give all equally many, for instance by "
                "CUDA_VISIBLE_DEVICES"
            )


def gather(value: Any) -> list[Any]:
    """Returns the values of all hosts in their order; each must call this the same number of times.

    Args:
        value: What JSON can hold.
    """
    if count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather
    from orbax.checkpoint import multihost

    multihost.get_barrier_sync_fn()(key=f"flowrl/{next(_rounds)}", timeout_ms=PATIENCE * 1000)
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = process_allgather(np.array([own.size], np.int32))[:, 0]
    room = 1 << int(sizes.max()).bit_length()  # each size of message is compiled once; so there are few
    found = process_allgather(np.pad(own, (0, room - own.size)))
    return [json.loads(row[:size].tobytes()) for row, size in zip(found, sizes, strict=True)]


def require_folder(run_dir: str | None) -> None:
    """Checks that a run's folder is named where several hosts share it.

    Raises:
        UserError: It is not.
    """
    if count() > 1 and not run_dir:
        raise UserError("several hosts need --run_dir=DIR, a folder that all of them share")


def merged(records: list[Any]) -> list[Any]:
    """Returns the records of all hosts, in their order."""
    return [record for own in gather(records) for record in own]


def wait() -> None:
    """Waits until all hosts are here."""
    gather(None)


def agreed(function: Callable[[], T]) -> T:
    """Calls a function on every host and returns this one's result, once it has ended well on all of them.

    Raises:
        UserError: As the function raises it; where there are several hosts, on all of them if on one.
    """
    if count() == 1:
        return function()
    result, problem = None, None
    try:
        result = function()
    except UserError as error:
        problem = str(error)
    for host, found in enumerate(gather(problem)):
        if found is not None:
            raise SharedError(f"host {host}: {found}")
    return result  # type: ignore[return-value]


def on_first(function: Callable[[], object]) -> None:
    """Calls a function on the first host alone; all go on once it has ended well, or none does.

    Raises:
        UserError: As the function raises it; where there are several hosts, on all of them.
    """
    agreed(lambda: function() if first() else None)


def require_same(facts: dict[str, Any]) -> None:
    """Checks that all hosts were given the same.

    Args:
        facts: What must agree, under the names by which people know it.

    Raises:
        SharedError: Something differs; on every host.
    """
    everyone = gather(facts)
    for host, others in enumerate(everyone):
        for name, value in everyone[0].items():
            if others.get(name) != value:
                raise SharedError(
                    f"host 0 has {name}={value}, but host {host} has {others.get(name)}; give all the same command"
                )
