"""Linear maps: the one place where a kernel meets activations, whether it is stored in a float dtype or in int8.

An int8 kernel is symmetric and has a scale for each output channel o; i are its inputs:

    scale[o] = max_i |W[o, i]| / 127,   q[o, i] = round(W[o, i] / scale[o]),   W x = scale * (q x)

The product reads q and is scaled afterwards, so no kernel of floats is made but the operand of one product. Integers up
to 127 are exact in bfloat16. A map's parameters are ``{"kernel": q, "kernel_scale": scale}``, those of token embeddings
``{"embedding": q, "embedding_scale": scale}``; a parameter without a scale beside it is a float.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from pdgen.models import parameters
from pdgen.sharding import out_spec, place

LEVELS = 127  # of each sign: -128 has no opposite
_SCALE = "_scale"
# Nearly all of the model. The small maps around it, such as the connector and the time embedder, keep their floats.
_INT8 = re.compile(r"language/embed/embedding|language/head/kernel|language/layers/.*/kernel|vision/layers/.*/kernel")


def may_be_int8(path: str) -> bool:
    """Return whether an int8 checkpoint holds this parameter in int8; ``path`` is "language/head/kernel", ..."""
    return bool(_INT8.fullmatch(path))


def scale_name(name: str) -> str:
    """Return the name of the scales of an int8 parameter: "kernel_scale" of "kernel"."""
    return name + _SCALE


def is_int8(params: Mapping[str, Any]) -> bool:
    """Return whether a model's parameters are those of an int8 checkpoint."""
    return scale_name("kernel") in params["language"]["head"]


def quantize_spec(spec: parameters.Spec, path: str = "") -> parameters.Spec:
    """Return the declaration of a model with the parameters that ``may_be_int8`` in int8, and their scales.

    ``path`` is that of ``spec`` in the model, such as "language/layers/".
    """
    result = {}
    for name, child in spec.items():
        if not isinstance(child, parameters.Leaf):
            result[name] = quantize_spec(child, f"{path}{name}/")
        elif not may_be_int8(path + name):
            result[name] = child
        else:
            outputs = len(child.shape) - max(child.inputs, 1)  # a row of the embedding is one channel
            # As for a bias: activations, which the scale multiplies, are not split over "embed".
            names = tuple(None if n == "embed" else n for n in child.names[:outputs])
            scale = parameters.Leaf(child.shape[:outputs], names, nn.initializers.ones, dtype=jnp.float32)
            result[name] = dataclasses.replace(child, dtype=jnp.int8)
            result[scale_name(name)] = dataclasses.replace(scale, stacked=child.stacked)
    return result


def cast_layer(params: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """Cast the parameters of a layer to ``dtype``, except int8 kernels and their scales, which stay float32."""

    def cast(path: tuple, leaf: Array) -> Array:
        return leaf if leaf.dtype == jnp.int8 or path[-1].key.endswith(_SCALE) else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def apply_kernel(
    p: Mapping[str, Array], equation: str, x: Array, out: PartitionSpec | None, dtype: Any = None
) -> Array:
    """Return the product of ``x`` and the kernel of ``p``, without its bias.

    Args:
      p: ``kernel`` and, if that is int8, ``kernel_scale``.
      equation: einsum of ``x`` and the kernel; the kernel's output axes come last in the result.
      x: float activations.
      out: sharding of the result, see ``out_spec``.
      dtype: of the result, which is summed in it; None: that of ``x``.
    """
    kernel = p["kernel"].astype(x.dtype)
    if scale_name("kernel") not in p:
        return jnp.einsum(equation, x, kernel, preferred_element_type=dtype, out_sharding=out)
    # Scaled before it is rounded to x's dtype, so that int8 costs no rounding but its own.
    product = jnp.einsum(equation, x, kernel, preferred_element_type=jnp.float32, out_sharding=out)
    return (product * p[scale_name("kernel")]).astype(dtype or x.dtype)


def look_up(p: Mapping[str, Array], ids: Int[Array, "B T"], dtype: Any) -> Float[Array, "B T D"]:
    """Look up rows of ``embedding`` [N, D], int8 ones with ``embedding_scale`` [N]; the result is ``dtype``."""
    rows, scales = out_spec("batch", None, None), out_spec("batch", None)
    # On a mesh the whole table is gathered first: a lookup in a split table makes XLA replicate the activations.
    if scale_name("embedding") not in p:
        return place(p["embedding"].astype(dtype), None, None).at[ids].get(out_sharding=rows)
    values = place(p["embedding"], None, None).at[ids].get(out_sharding=rows)
    scale = place(p[scale_name("embedding")], None).at[ids].get(out_sharding=scales)
    return (values.astype(jnp.float32) * scale[..., None]).astype(dtype)
