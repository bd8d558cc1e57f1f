"""Merging low-rank adapters: a kernel W becomes W + scale * B A before the model sees it.

Axis legend: L layers (where kernels are stacked), o.. output axes, i.. input axes, r rank.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float

from pdgen.sharding import has_mesh


def merge(params: dict[str, Any], adapters: dict[str, Any], scale: float) -> dict[str, Any]:
    """``params`` with W + scale * B A for every adapted kernel, summed in float32, in the kernel's own dtype.

    Args:
      params: nested dict of the model's parameters.
      adapters: nested dict with ``{"a", "b"}`` where an adapted kernel is in ``params``.
      scale: ``LoraConfig.scale``.
    """
    merged, flat = traverse_util.flatten_dict(params, sep="/"), traverse_util.flatten_dict(adapters, sep="/")
    for name in sorted({name.rpartition("/")[0] for name in flat}):
        merged[name] = _merged(merged[name], flat[f"{name}/a"], flat[f"{name}/b"], scale)
    return traverse_util.unflatten_dict(merged, sep="/")


def _merged(
    kernel: Float[Array, "..."], a: Float[Array, "..."], b: Float[Array, "..."], scale: float
) -> Float[Array, "..."]:
    stacked = a.ndim + b.ndim - 2 - kernel.ndim  # 1 if both factors have the layer axis, else 0
    layer, outputs, inputs = "L"[:stacked], "opq"[: b.ndim - stacked - 1], "ijk"[: a.ndim - stacked - 1]
    product = jnp.einsum(
        f"{layer}{outputs}r,{layer}r{inputs}->{layer}{outputs}{inputs}",
        b,
        a,
        precision="highest",
        out_sharding=jax.typeof(kernel).sharding if has_mesh() else None,
    )
    return (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)
