"""Mesh and logical axes: the only place that names them.

A mesh always has the axes ``data, fsdp, tensor``, of size 1 if unused, and explicit axis types; it is
entered with ``jax.set_mesh``. Without a mesh everything runs on one device and no sharding is asked for.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")


class ShardingError(ValueError):
    """A mesh does not fit the devices or the model; the message names the numbers."""


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Mesh axes of each logical axis.

    ``batch`` is the packs of a global batch, ``embed`` the model width of *parameters* (gathered on use),
    ``heads``, ``kv_heads``, ``mlp`` and ``vocab`` are split by tensor parallelism. Activations keep their
    width whole.
    """

    batch: tuple[str, ...] = ("data", "fsdp")
    embed: str = "fsdp"
    heads: str = "tensor"
    kv_heads: str = "tensor"
    mlp: str = "tensor"
    vocab: str = "tensor"

    def spec(self, *names: str | None) -> PartitionSpec:
        """PartitionSpec of an array whose axes have these logical names (None: not split).

        Raises:
          ShardingError: an unknown name, or one mesh axis used twice.
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
    """An explicit mesh of ``shape`` (data, fsdp, tensor).

    Args:
      shape: three sizes whose product is the number of devices.
      devices: the devices to use; all of them by default.

    Raises:
      ShardingError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if len(shape) != len(MESH_AXES) or math.prod(shape) != len(devices):
        raise ShardingError(
            f"mesh {tuple(shape)} (data, fsdp, tensor) needs {math.prod(shape)} devices, there are {len(devices)}"
        )
    return jax.make_mesh(tuple(shape), MESH_AXES, axis_types=(AxisType.Explicit,) * 3, devices=devices)


def without_mesh() -> contextlib.AbstractContextManager:
    """Leaves the mesh that is entered, for work on one device in between."""
    return jax.set_mesh(Mesh(np.empty((), object), ()))


def has_mesh() -> bool:
    """Whether a mesh is entered (``jax.set_mesh``) where the caller is traced."""
    return not jax.sharding.get_abstract_mesh().empty


def out_spec(*names: str | None) -> PartitionSpec | None:
    """``RULES.spec(*names)`` for an operation's ``out_sharding``; None (nothing asked) without a mesh."""
    return RULES.spec(*names) if has_mesh() else None


def place(x: jax.Array, *names: str | None) -> jax.Array:
    """``x`` with the sharding of these logical axes; unchanged without a mesh."""
    return jax.sharding.reshard(x, RULES.spec(*names)) if has_mesh() else x


def map_shards(function: Any, in_names: Sequence[Any], out_names: Any) -> Any:
    """``function`` run on each device's own shard (``jax.shard_map``); unchanged without a mesh.

    Arguments that are split otherwise, or not at all, are brought into that form first.

    Args:
      function: from local arrays to local arrays.
      in_names: for each argument a tuple of logical names, or a pytree of such tuples.
      out_names: the same for the result.
    """
    if not has_mesh():
        return function
    specs = lambda names: jax.tree.map(lambda n: RULES.spec(*n), names, is_leaf=_is_names)  # noqa: E731
    # Loop states start as constants, which vma checking would want marked axis by axis. Off is safe for
    # gradients: every float argument is split over all mesh axes, so none has a cotangent to sum.
    in_specs = tuple(specs(names) for names in in_names)
    mapped = jax.shard_map(function, in_specs=in_specs, out_specs=specs(out_names), check_vma=False)
    return lambda *args: mapped(*(jax.sharding.reshard(arg, spec) for arg, spec in zip(args, in_specs, strict=True)))


def _is_names(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(v, str | None) for v in value)


def parameter_specs(abstract: Any) -> Any:
    """PartitionSpecs of a tree of parameters as ``init`` declares it (Flax's logical metadata)."""

    def spec(leaf: Any) -> PartitionSpec:
        return RULES.spec(*leaf.names) if isinstance(leaf, nn.LogicallyPartitioned) else PartitionSpec()

    return jax.tree.map(spec, abstract, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))


def parameter_shardings(abstract: Any, mesh: Mesh) -> Any:
    """NamedShardings of a tree of parameters on ``mesh``; see ``parameter_specs``."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        parameter_specs(abstract),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
