"""Placements of batches: on one device, on the local devices by pmap, or over a mesh of all.

All three have the same interface: rows are passed and returned as NumPy arrays. Choices that
depend on the platform use the devices of the placement, never the process's default device.
"""

import abc
import contextlib
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Parallel = Literal["jit", "pmap", "mesh"]

AXIS = "batch"

Device: TypeAlias = Any  # `jax.Device`, which type checkers treat as a variable


def default_device() -> Device:
    """Returns the device on which JAX computes with uncommitted arrays."""
    config: Any = jax.config
    device = config.jax_default_device  # a device, a platform's name, or None
    if isinstance(device, jax.Device):
        return device
    return jax.local_devices(backend=device)[0]


def device_of(arrays: Any) -> Device:
    """Returns the device on which `jax.jit` would compute with a pytree of arrays.

    It is the one that they are committed to, as by `jax.device_put(arrays, device)`; the default
    device if they are committed to none or to several.
    """
    leaves = [leaf for leaf in jax.tree.leaves(arrays) if isinstance(leaf, Array)]
    devices = {device for leaf in leaves if leaf.committed for device in leaf.devices()}
    return devices.pop() if len(devices) == 1 else default_device()


def place(parallel: Parallel, mesh: Mesh | None = None, arrays: Any = None) -> "Placement":
    """Returns a placement by name.

    Args:
        parallel: "jit", one device; "pmap", the local devices; "mesh", all devices of all
            processes.
        mesh: for "mesh", the devices to use instead of all; batches are split over all its axes.
        arrays: a pytree of the parameters. For "jit", the device that it is committed to is used.

    Raises:
        ValueError: there is no such placement, or it isn't possible here.
    """
    if mesh is not None and parallel != "mesh":
        raise ValueError(f'a mesh is for parallel="mesh". Got parallel={parallel!r}.')
    match parallel:
        case "jit":
            return OneDevice(device_of(arrays))
        case "pmap":
            return Pmap()
        case "mesh":
            return OverMesh(mesh)
    raise ValueError(f'parallel must be "jit", "pmap" or "mesh". Got {parallel!r}.')


class Placement(abc.ABC):
    """Transfers rows to devices and back, and compiles functions for them.

    Attributes:
        device: one device of this process; all are of the same kind.
        num_local_devices: how many devices this process feeds; it must divide the rows of a batch.
    """

    device: Device
    num_local_devices: int = 1

    @abc.abstractmethod
    def put_leaves(self, leaves: list[Array]) -> list[Array]:
        """Puts a copy of the arrays on every device."""

    @abc.abstractmethod
    def put_rows(self, rows: np.ndarray) -> Array:
        """Puts this process's rows of a batch on its devices."""

    @abc.abstractmethod
    def get_rows(self, rows: Array) -> np.ndarray:
        """Returns this process's rows of a result."""

    def compile(
        self, function: Callable, leaves: list[Array], rows: Array, options: dict[str, str | bool]
    ) -> Callable:
        """Compiles `function(leaves, rows)` for these shapes, with options of XLA's."""
        return self._jitted(function).lower(leaves, rows).compile(options)

    def uncompiled(self, function: Callable) -> Callable:
        """Returns what runs the function step by step, for use under `jax.disable_jit`."""
        return self._jitted(function)

    @abc.abstractmethod
    def _jitted(self, function: Callable) -> Any:
        """Returns the function as JAX compiles it for the devices."""

    def most(self, counts: np.ndarray) -> np.ndarray:
        """Returns the elementwise maximum over the processes that compute together."""
        return counts

    def mesh_context(self) -> contextlib.AbstractContextManager:
        """Returns a context to compile and run in, which hides a mesh set by the caller."""
        return jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))


class OneDevice(Placement):
    """`jax.jit` on one device."""

    def __init__(self, device: Device):
        self.device = device

    def put_leaves(self, leaves: list[Array]) -> list[Array]:
        # Arrays on several devices would make JAX compute on all of them.
        several = [isinstance(leaf, Array) and len(leaf.devices()) > 1 for leaf in leaves]
        pairs = zip(leaves, several, strict=True)
        one = [np.asarray(leaf) if many else leaf for leaf, many in pairs]
        return jax.device_put(one, self.device)

    def put_rows(self, rows: np.ndarray) -> Array:
        return jax.device_put(rows, self.device)

    def get_rows(self, rows: Array) -> np.ndarray:
        return np.asarray(rows)

    def _jitted(self, function: Callable) -> Any:
        return jax.jit(function)


class Pmap(Placement):
    """`jax.pmap` over the local devices, each with a copy of the parameters."""

    def __init__(self):
        if jax.process_count() > 1:
            raise ValueError(
                'parallel="pmap" is for one process. Under several use parallel="mesh", which '
                "spans them."
            )
        self.device, self.num_local_devices = jax.local_devices()[0], jax.local_device_count()
        mesh = Mesh(np.array(jax.local_devices()), (AXIS,), axis_types=(AxisType.Auto,))
        self._sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def put_leaves(self, leaves: list[Array]) -> list[Array]:
        def copies(leaf: Array) -> Array:
            host = np.asarray(leaf)
            return jax.device_put(
                np.broadcast_to(host, (self.num_local_devices, *host.shape)), self._sharding
            )

        return [copies(leaf) for leaf in leaves]

    def put_rows(self, rows: np.ndarray) -> Array:
        split = rows.reshape(self.num_local_devices, -1, *rows.shape[1:])
        return jax.device_put(split, self._sharding)

    def get_rows(self, rows: Array) -> np.ndarray:
        return np.asarray(rows).reshape(-1, *rows.shape[2:])

    def _jitted(self, function: Callable) -> Any:
        return jax.pmap(function, devices=jax.local_devices())


class OverMesh(Placement):
    """`jax.jit` over a mesh: parameters on every device, rows split over all.

    With several processes each puts and gets its own rows, and all must take part in every batch.
    """

    def __init__(self, mesh: Mesh | None):
        if mesh is None:
            mesh = Mesh(np.array(jax.devices()), (AXIS,), axis_types=(AxisType.Auto,))
        else:  # the caller's devices, in axes that need no annotations inside the model
            mesh = Mesh(
                mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim
            )
        me, processes = jax.process_index(), [d.process_index for d in mesh.devices.flat]
        counts = [processes.count(process) for process in range(jax.process_count())]
        self.num_local_devices = counts[me]
        # Every process must have the same number of rows, unless only this one computes.
        self._is_shared = self.num_local_devices < len(processes)
        if not self.num_local_devices or (self._is_shared and len(set(counts)) > 1):
            raise ValueError(
                "a mesh must have as many devices of each process, or devices of this one alone. "
                f"Got {counts} of processes 0 to {len(counts) - 1}; this is process {me}."
            )
        self.device = next(d for d in mesh.devices.flat if d.process_index == me)
        self._mesh = mesh
        self._whole = NamedSharding(mesh, PartitionSpec())
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def put_leaves(self, leaves: list[Array]) -> list[Array]:
        return [
            jax.make_array_from_process_local_data(self._whole, np.asarray(leaf), leaf.shape)
            for leaf in leaves
        ]

    def put_rows(self, rows: np.ndarray) -> Array:
        return jax.make_array_from_process_local_data(self._split, rows)

    def get_rows(self, rows: Array) -> np.ndarray:
        # An array that spans processes can't be read whole; the order of shards is arbitrary.
        shards = sorted(rows.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        return np.concatenate([np.asarray(shard.data) for shard in shards])

    def _jitted(self, function: Callable) -> Any:
        return jax.jit(function, out_shardings=self._split)

    def uncompiled(self, function: Callable) -> Callable:
        # Step by step no layout is asked for.
        return lambda leaves, rows: jax.device_put(function(leaves, rows), self._split)

    def most(self, counts: np.ndarray) -> np.ndarray:
        if not self._is_shared:
            return counts
        from jax.experimental import multihost_utils

        gathered: Any = multihost_utils.process_allgather(counts)
        return np.asarray(gathered).max(axis=0)

    def mesh_context(self) -> contextlib.AbstractContextManager:
        return jax.set_mesh(self._mesh)
