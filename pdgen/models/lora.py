"""Low-rank adapters (LoRA): the model computes with W + scale * B A in place of a kernel W.

``merge`` makes all of these kernels at once, which needs memory for a second copy of them. For training, ``attach``
lays the factors beside the kernels, and each layer of the language model merges its own while it runs. So only one
layer's kernels, and their gradients, exist at a time.

Axis legend: L layers (where kernels are stacked), o.. output axes, i.. input axes, r rank. W [L, o.., i..],
A [L, r, i..], B [L, o.., r].
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from pdgen.sharding import has_mesh

_LAYERS = "language/layers/"


def merge(params: dict[str, Any], adapters: dict[str, Any], scale: float) -> dict[str, Any]:
    """Return ``params`` with W + scale * B A for every adapted kernel, summed in float32, in the kernel's dtype.

    Args:
      params: nested dict of the model's parameters, arrays of JAX or numpy.
      adapters: nested dict that has ``{"a", "b"}`` in the place of each adapted kernel.
      scale: factor of the product, ``LoraConfig.scale``.
    """
    merged, flat = traverse_util.flatten_dict(params, sep="/"), traverse_util.flatten_dict(adapters, sep="/")
    for name in sorted({name.rpartition("/")[0] for name in flat}):
        merged[name] = _merge_kernel(merged[name], flat[f"{name}/a"], flat[f"{name}/b"], scale)
    return traverse_util.unflatten_dict(merged, sep="/")


def attach(params: dict[str, Any], adapters: dict[str, Any], scale: float) -> dict[str, Any]:
    """Return ``params`` with ``"adapter": {"a", "b"}`` beside every adapted kernel of the language model's layers.

    B is multiplied by ``scale``. Other adapted kernels are merged. Arguments as ``merge``.
    """
    flat = traverse_util.flatten_dict(adapters, sep="/")
    inside = {name: leaf for name, leaf in flat.items() if name.startswith(_LAYERS)}
    outside = {name: leaf for name, leaf in flat.items() if name not in inside}
    merged = traverse_util.flatten_dict(merge(params, traverse_util.unflatten_dict(outside, sep="/"), scale), sep="/")
    for name, leaf in inside.items():
        kernel, _, factor = name.rpartition("/")
        merged[f"{kernel.removesuffix('kernel')}adapter/{factor}"] = scale * leaf if factor == "b" else leaf
    return traverse_util.unflatten_dict(merged, sep="/")


def merge_attached(params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of one layer with the adapters of ``attach`` merged into its kernels."""
    merged = {n: merge_attached(leaf) if isinstance(leaf, dict) else leaf for n, leaf in params.items()}
    if "adapter" not in merged:
        return merged
    a, b = merged["adapter"]["a"], merged["adapter"]["b"]
    # Some remat policies would save the product for the backward pass, which needs only the factors.
    sum_products = jax.checkpoint(_merge_kernel, static_argnums=3, prevent_cse=False)
    rest = {name: leaf for name, leaf in merged.items() if name != "adapter"}
    return rest | {"kernel": sum_products(merged["kernel"], a, b, 1.0)}


def _merge_kernel(
    kernel: Float[Array | np.ndarray, "..."],
    a: Float[Array | np.ndarray, "..."],
    b: Float[Array | np.ndarray, "..."],
    scale: float,
) -> Float[Array, "..."]:
    stacked = a.ndim + b.ndim - 2 - kernel.ndim  # 1 if both factors have the layer axis, else 0
    layer, outputs, inputs = "L"[:stacked], "opq"[: b.ndim - stacked - 1], "ijk"[: a.ndim - stacked - 1]
    product = jnp.einsum(
        f"{layer}{outputs}r,{layer}r{inputs}->{layer}{outputs}{inputs}",
        b,
        a,
        precision="highest",  # a product of bfloat16 passes would lose small updates
        out_sharding=jax.typeof(kernel).sharding if has_mesh() else None,
    )
    return (scale * product + kernel.astype(jnp.float32)).astype(kernel.dtype)
