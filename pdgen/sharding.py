"""The mesh and the logical axes of arrays; no other module names mesh axes.

A mesh always has the axes ``data, fsdp, tensor``, of size 1 if unused, and explicit axis types. ``jax.set_mesh``
enters it. Without a mesh everything runs on one device and arrays have no sharding.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

MESH_AXES = ("data", "fsdp", "tensor")
_HOST_MEMORY = "pinned_host"  # memory of the host that the device itself reads


class ShardingError(ValueError):
    """A mesh does not fit the devices or the model; the message has the numbers."""


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """The mesh axes that split each logical axis.

    ``batch`` is the axis of packs or rows. ``embed`` is the width of *parameters*, which are gathered before use; the
    width of activations is not split. Tensor parallelism splits ``heads``, ``kv_heads``, ``mlp`` and ``vocab``.
    """

    batch: tuple[str, ...] = ("data", "fsdp")
    embed: str = "fsdp"
    heads: str = "tensor"
    kv_heads: str = "tensor"
    mlp: str = "tensor"
    vocab: str = "tensor"

    def spec(self, *names: str | None) -> PartitionSpec:
        """Return the PartitionSpec of an array whose axes have these logical names (None: not split).

        Raises:
          ShardingError: a name is unknown, or a mesh axis is used twice.
        """
        axes: list[Any] = []
        for name in names:
            if name is not None and name not in self.__dataclass_fields__:
                raise ShardingError(f"logical axis {name!r} is unknown; known: {', '.join(self.__dataclass_fields__)}")
            axes.append(None if name is None else getattr(self, name))
        used = [axis for entry in axes if entry for axis in ((entry,) if isinstance(entry, str) else entry)]
        if len(used) != len(set(used)):
            raise ShardingError(f"logical axes {names} use a mesh axis twice: {used}")
        return PartitionSpec(*axes)


RULES = ShardingRules()


def make_mesh(shape: Sequence[int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make a mesh of ``shape`` (data, fsdp, tensor) with explicit axis types.

    Args:
      shape: three sizes whose product is the number of devices.
      devices: the devices to use; None: all.

    Raises:
      ShardingError: the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if len(shape) != len(MESH_AXES) or math.prod(shape) != len(devices):
        raise ShardingError(
            f"mesh {tuple(shape)} (data, fsdp, tensor) needs {math.prod(shape)} devices, there are {len(devices)}"
        )
    return jax.make_mesh(tuple(shape), MESH_AXES, axis_types=(AxisType.Explicit,) * 3, devices=devices)


def without_mesh() -> contextlib.AbstractContextManager:
    """Return a context manager that leaves the current mesh, for work on one device."""
    return jax.set_mesh(Mesh(np.empty((), object), ()))


def has_mesh() -> bool:
    """Return whether the code runs or is traced inside a mesh (``jax.set_mesh``)."""
    return not jax.sharding.get_abstract_mesh().empty


def get_platform() -> str:
    """Return the platform that the code is traced for: that of the mesh's devices, or without a mesh JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def out_spec(*names: str | None) -> PartitionSpec | None:
    """Return ``RULES.spec(*names)`` for the ``out_sharding`` of an operation; None without a mesh."""
    return RULES.spec(*names) if has_mesh() else None


def place(x: jax.Array, *names: str | None) -> jax.Array:
    """Reshard ``x`` by the logical names of its axes; without a mesh return it unchanged."""
    return jax.sharding.reshard(x, RULES.spec(*names)) if has_mesh() else x


def to_host_memory(sharding: Sharding) -> Sharding:
    """Return the sharding whose parts are in pinned memory of the devices' hosts.

    Raises:
      ShardingError: the devices cannot read such memory.
    """
    device = min(sharding.device_set, key=lambda device: device.id)
    kinds = [memory.kind for memory in device.addressable_memories()]
    if _HOST_MEMORY not in kinds:
        raise ShardingError(f"{device} has no {_HOST_MEMORY} memory, only {', '.join(kinds)}; leave out offload")
    return sharding.with_memory_kind(_HOST_MEMORY)


def in_host_memory(sharding: Sharding) -> bool:
    """Return whether arrays with this sharding are in host memory (``to_host_memory``)."""
    return sharding.memory_kind == _HOST_MEMORY


def to_device_memory(x: jax.Array) -> jax.Array:
    """Copy an array that may be in host memory to its devices, with the same sharding."""
    return jax.device_put(x, jax.memory.Space.Device)


def read_available_bytes(meminfo: pathlib.Path = pathlib.Path("/proc/meminfo")) -> int:
    """Read the bytes of memory that are available to processes; all of the memory where the system does not say."""
    if found := re.search(r"MemAvailable: *(\d+) kB", meminfo.read_text() if meminfo.exists() else ""):
        return 1024 * int(found[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def count_host_bytes(shapes: Any, shardings: Any) -> int:
    """Count the bytes that arrays take in the memory of this process's host, which is also that of its CPU devices.

    Args:
      shapes, shardings: trees of the same structure; the leaves of ``shapes`` have a shape and a dtype.
    """
    total = 0
    for x, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True):
        copies = sum(in_host_memory(sharding) or d.platform == "cpu" for d in sharding.addressable_devices)
        total += copies * math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return total


def map_shards(function: Any, in_names: Sequence[Any], out_names: Any) -> Any:
    """Wrap ``function`` to run on each device's own shard (``jax.shard_map``); without a mesh return it unchanged.

    The wrapper reshards its arguments first.

    Args:
      function: maps local arrays to local arrays.
      in_names: for each argument a tuple of logical names, or a prefix of its pytree with such tuples.
      out_names: the same for the result.
    """
    if not has_mesh():
        return function
    specs = lambda names: jax.tree.map(lambda n: RULES.spec(*n), names, is_leaf=_is_names)  # noqa: E731
    # ``check_vma`` would require a mark on every constant that starts a loop. Without it gradients are still right:
    # every float argument is split over all mesh axes, so no cotangent needs a sum over devices.
    in_specs = tuple(specs(names) for names in in_names)
    mapped = jax.shard_map(function, in_specs=in_specs, out_specs=specs(out_names), check_vma=False)
    return lambda *args: mapped(*(jax.sharding.reshard(arg, spec) for arg, spec in zip(args, in_specs, strict=True)))


def _is_names(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(v, str | None) for v in value)


def parameter_specs(abstract: Any) -> Any:
    """Return the PartitionSpecs of a tree of parameters with Flax's logical metadata, see ``abstract_params``."""

    def spec(leaf: Any) -> PartitionSpec:
        return RULES.spec(*leaf.names) if isinstance(leaf, nn.LogicallyPartitioned) else PartitionSpec()

    return jax.tree.map(spec, abstract, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))


def parameter_shardings(abstract: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Return the NamedShardings of a tree of parameters on ``mesh``; see ``parameter_specs``."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        parameter_specs(abstract),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
