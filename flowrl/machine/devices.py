"""How runs, or the batches of runs, lie on devices: one axis of a mesh over all devices of all hosts."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from flowrl.errors import UserError
from flowrl.machine import hosts
from flowrl.random_streams import root_keys

Shard = Literal["runs", "batch"]
AXIS = "devices"
RUNS, ALL = Spec(AXIS), Spec()
"""A leading axis R of runs that is cut into a piece for each device; an array that every device has whole."""
T = TypeVar("T")


class Layout(NamedTuple):
    """Where the runs of a program are.

    Attributes:
        runs: Number of runs.
        shard: What is spread over the devices: the runs, or the batch of each run.
        mesh: The devices that take part, in the order of their hosts; None where that is one device.
    """

    runs: int
    shard: Shard = "runs"
    mesh: Mesh | None = None

    @property
    def devices(self) -> int:
        """The number of devices that take part."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def rows(self) -> int:
        """The leading axis R of states: the runs, and copies of the last that fill up the devices' shares."""
        return self.runs if self.shard == "batch" else -(-self.runs // self.devices) * self.devices

    @property
    def rows_each(self) -> int:
        """The rows that each device has."""
        return self.rows if self.shard == "batch" else self.rows // self.devices

    @property
    def own(self) -> range:
        """The runs that this host evaluates; with batches spread the first host has all, and with many hosts a late
        one may have none."""
        if self.shard == "batch":
            return range(self.runs if hosts.first() else 0)
        share = self.rows // hosts.count()
        return range(min(self.runs, hosts.index() * share), min(self.runs, (hosts.index() + 1) * share))

    def filled(self, values: Any) -> np.ndarray:
        """Returns values of the runs `[runs]`, repeated to all rows `[R]`."""
        return np.asarray(values)[np.minimum(np.arange(self.rows), self.runs - 1)]

    def keys(self, seeds: Sequence[int]) -> jax.Array:
        """Returns the root keys `[R]` of the runs with these seeds."""
        rows = self.place(self.filled(seeds).astype(np.uint32), mapped=True)
        return jax.jit(self.spread(root_keys, RUNS, RUNS))(rows)

    def place(self, tree: T, *, mapped: bool) -> T:
        """Puts arrays onto the devices.

        Args:
            tree: The same arrays on every host.
            mapped: Whether their leading axis is that of the rows.
        """
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        sharding = NamedSharding(self.mesh, RUNS if mapped and self.shard == "runs" else ALL)

        def put(leaf: Any) -> jax.Array:
            array = np.asarray(leaf)
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        return jax.tree.map(put, tree)

    def spread(self, function: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        """Returns a function of many runs as one in which each device computes its own share, without communication.

        Args:
            function: Maps over the leading axis of what is mapped.
            inputs: For each argument `RUNS` or `ALL`, or a tree of them.
            outputs: The same for what it returns.
        """
        if self.mesh is None or self.shard == "batch":
            return function
        return jax.shard_map(function, mesh=self.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)

    def cut_batch(self, batch: T) -> T:
        """Spreads a batch `[B, ...]` over the devices, where that is asked for; inside jitted functions."""
        if self.mesh is None or self.shard == "runs":
            return batch
        return jax.lax.with_sharding_constraint(batch, NamedSharding(self.mesh, Spec(AXIS)))

    def replicated(self) -> NamedSharding | None:
        """Returns where states lie when batches are spread; None, anywhere, otherwise."""
        return NamedSharding(self.mesh, ALL) if self.mesh is not None and self.shard == "batch" else None


ONE = Layout(1)
"""One device."""


def layout(runs: int, shard: Shard = "runs", *, padded: bool = True) -> Layout:
    """Returns the layout of `runs` runs on all devices.

    Args:
        runs: How many.
        shard: What to spread.
        padded: Whether rows may be added until all devices have equally many; otherwise fewer devices are used.
    """
    if shard == "batch":
        return _on(jax.devices(), runs, shard)
    share = -(-runs // hosts.count())
    most = min(jax.local_device_count(), share)
    if not padded:
        most = max(number for number in range(1, most + 1) if runs % (number * hosts.count()) == 0)
    # Fewer devices with as many rows each are as fast.
    each = -(-share // -(-share // most))
    by_host: dict[int, list[Any]] = {}
    for device in jax.devices():
        by_host.setdefault(device.process_index, []).append(device)
    return _on([device for host in sorted(by_host) for device in by_host[host][:each]], runs, shard)


def _on(devices: Sequence[Any], runs: int, shard: Shard) -> Layout:
    return Layout(runs, shard, Mesh(np.array(devices), (AXIS,)) if len(devices) > 1 else None)


def require_platform() -> None:
    """Checks that JAX finds a device of the platform that it was told to use.

    Raises:
        UserError: It does not.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        told = os.environ.get("JAX_PLATFORMS", "")
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"JAX finds no device for JAX_PLATFORMS={told}{f' ({reason})' if reason else ''}; unset it, or set cpu"
        ) from error


def check_runs(runs: int, shard: Shard) -> None:
    """Checks that no host would be idle.

    Raises:
        UserError: There are more hosts than runs.
    """
    if shard == "runs" and hosts.count() > runs:
        raise UserError(
            f"{hosts.count()} hosts are more than {runs} runs; start at most {runs}, train more seeds, or spread the "
            "batch of each run with --shard=batch"
        )


def check_batch(shard: Shard, batch_size: int) -> None:
    """Checks that what is to be spread can be.

    Raises:
        UserError: It cannot.
    """
    if shard not in ("runs", "batch"):
        raise UserError(f"--shard={shard} is unknown; choose runs or batch")
    if shard == "batch" and batch_size % jax.device_count():
        raise UserError(
            f"--agent.batch_size={batch_size} cannot be spread evenly over {jax.device_count()} devices; give a "
            "multiple of their number"
        )


def shapes(tree: Any) -> Any:
    """Returns shapes, types and places of arrays without their contents."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def local(tree: Any) -> Any:
    """Returns this host's part of arrays, as NumPy arrays: its rows of those that are spread, all of the others."""
    return jax.tree.map(_local, tree)


def _local(array: Any) -> np.ndarray:
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
