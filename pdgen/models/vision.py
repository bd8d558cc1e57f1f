"""SigLIP NaViT encoder: patches of several images in one row, full attention within each image.

    x = W patch + b + position_table[row, column]
    each layer:  x <- x + O attention(LN(x)),   x <- x + fc2 gelu(fc1 LN(x))
    result = LN(x)

Axis legend: B batch, V patches, P values of a patch, C width, H heads, h head size.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from pdgen.config import ComputeConfig, VisionConfig
from pdgen.models import parameters
from pdgen.models.attention import ATTENTION, Intervals, Part, run_attention, schedule_attention
from pdgen.models.embeddings import layer_norm
from pdgen.models.linear import apply_kernel, cast_layer
from pdgen.sharding import map_shards, out_spec


def spec(config: VisionConfig) -> parameters.Spec:
    """Declare the encoder's parameters, the layers stacked on axis 0."""
    C, F = config.hidden_size, config.intermediate_size
    heads = (config.num_heads, C // config.num_heads)
    projection = parameters.linear(heads, (C,), ("heads", None), ("embed",), bias=True)
    layer = {
        "norm1": parameters.norm(C, bias=True),
        "attention": {
            "q": projection,
            "k": projection,
            "v": projection,
            "o": parameters.linear((C,), heads, ("embed",), ("heads", None), bias=True),
        },
        "norm2": parameters.norm(C, bias=True),
        "mlp": {
            "fc1": parameters.linear((F,), (C,), ("mlp",), ("embed",), bias=True),
            "fc2": parameters.linear((C,), (F,), ("embed",), ("mlp",), bias=True),
        },
    }
    table = parameters.Leaf((config.max_side**2, C), (None, None), nn.initializers.normal(C**-0.5))
    return {
        "patch_embedding": parameters.linear((C,), (config.patch_dim,), ("embed",), (None,), bias=True),
        "position_embedding": {"embedding": table},
        "layers": parameters.stack_layers(layer, config.num_layers),
        "post_norm": parameters.norm(C, bias=True),
    }


def encode(
    config: VisionConfig,
    compute: ComputeConfig,
    params: dict[str, Any],
    patches: Float[Array, "B V P"],
    positions: Int[Array, "B V"],
    image: tuple[Int[Array, "B V"], Int[Array, "B V"]],
) -> Float[Array, "B V C"]:
    """Encode the patches of every image; images do not see each other.

    Args:
      config, compute: sizes, dtype, remat and attention.
      params: see ``spec``.
      patches: pixels in [-1, 1] in (row, column, channel) order.
      positions: index into the learned position table, row * max_side + column.
      image: first index and last index + 1 of the image that each patch belongs to; equal for padding.

    Returns:
      Hidden states after the final layer norm, in the compute dtype.
    """
    dtype = jnp.dtype(compute.dtype)
    embedding, rows = params["patch_embedding"], out_spec("batch", None, None)
    x = apply_kernel(embedding, "bvp,cp->bvc", patches.astype(dtype), rows) + embedding["bias"].astype(dtype)
    x += params["position_embedding"]["embedding"].astype(dtype).at[positions].get(out_sharding=rows)
    # Patches of an image see each other, so the interval of keys alone describes the mask.
    seen = Intervals(*image)
    make_schedule = map_shards(functools.partial(_schedule_images, compute), (("batch", None),), ("batch",))
    body = functools.partial(_run_layer, config, compute, seen, make_schedule(seen))
    x, _ = jax.lax.scan(compute_remat(compute, body), x, params["layers"])
    return layer_norm(x, **params["post_norm"], eps=config.layer_norm_eps)


def compute_remat(compute: ComputeConfig, body: Any) -> Any:
    """Return a scan's ``body`` with the policy ``compute.remat``: "none", "dots" or "full".

    Raises:
      ValueError: the policy is unknown.
    """
    saved = jax.checkpoint_policies
    # "dots" also saves attention's result and log-sum-exp, which are no matrix products but cost as much.
    policies = {
        "dots": saved.save_from_both_policies(
            saved.dots_with_no_batch_dims_saveable, saved.save_only_these_names(ATTENTION)
        ),
        "full": saved.nothing_saveable,
    }
    if compute.remat == "none":
        return body
    if compute.remat not in policies:
        raise ValueError(f"remat policy {compute.remat!r} is unknown; choose none, {', '.join(policies)}")
    # A scan already keeps XLA from merging the two passes, so no barriers against it are needed.
    return jax.checkpoint(body, policy=policies[compute.remat], prevent_cse=False)


def _run_layer(
    config: VisionConfig, compute: ComputeConfig, seen: Intervals, schedule: Any, x: jax.Array, p: dict
) -> tuple:
    """Run one pre-norm layer: attention, then the MLP."""
    p = cast_layer(p, x.dtype)
    rows, heads = out_spec("batch", None, None), out_spec("batch", None, "heads", None)
    y = layer_norm(x, **p["norm1"], eps=config.layer_norm_eps)
    q, k, v = (apply_kernel(p["attention"][n], "bvc,nhc->bvnh", y, heads) + p["attention"][n]["bias"] for n in "qkv")
    names = ("batch", None, "heads", None)
    in_names = (names, names, names, ("batch", None), ("batch",))
    mixed = map_shards(functools.partial(_attend_images, compute), in_names, names)(q, k, v, seen, schedule)
    x += apply_kernel(p["attention"]["o"], "bvnh,cnh->bvc", mixed, rows)
    x += p["attention"]["o"]["bias"]
    y = layer_norm(x, **p["norm2"], eps=config.layer_norm_eps)
    y = apply_kernel(p["mlp"]["fc1"], "bvc,fc->bvf", y, out_spec("batch", None, "mlp"))
    y = jax.nn.gelu(y + p["mlp"]["fc1"]["bias"], approximate=True)
    y = apply_kernel(p["mlp"]["fc2"], "bvf,cf->bvc", y, rows) + p["mlp"]["fc2"]["bias"]
    return x + y, None


def _schedule_images(compute: ComputeConfig, seen: Intervals) -> Any:
    return schedule_attention(compute, [seen], [seen.k_start.shape[1]])


def _attend_images(
    compute: ComputeConfig, q: jax.Array, k: jax.Array, v: jax.Array, seen: Intervals, schedule: Any
) -> jax.Array:
    return run_attention(compute, q, [Part(k, v, seen)], schedule)
