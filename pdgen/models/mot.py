"""Mixture-of-transformers: two experts with their own weights that meet in one attention.

The understanding expert reads text, switch tokens and ViT tokens, the generation expert VAE tokens. Each
runs on its own dense array; only attention needs the tokens in one order. The layers are stacked and
scanned. Qwen2.5's layer, with an RMS norm of every query and key head before the rotary embedding.

Axis legend: B batch, U understanding tokens, G generation tokens, S = U + G, D width, F mlp width,
H query heads, K key/value heads, h head size, L layers.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pdgen.config import ComputeConfig, LanguageConfig
from pdgen.models import parameters
from pdgen.models.attention import Intervals, Part, Tile, attend, attend_dense, permute
from pdgen.models.embeddings import rms_norm, rotary_angles, rotate
from pdgen.models.vision import compute_remat
from pdgen.sharding import map_shards, out_spec

EXPERTS = ("und", "gen")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Order:
    """Where the tokens stand. Stream order is und then gen; sequence order is the documents' own.

    Attributes:
      rotary: [B, S] rotary positions, stream order.
      to_sequence: [B, S], the stream index at each place of the sequence.
      to_stream: [B, S], its inverse.
      intervals: of the tokens among themselves, sequence order.
      stretches: of one length each, one after the other in the sequence, that by their intervals see nothing of each
        other: attention visits each for itself and builds no tile of two.
    """

    rotary: Int[Array, "B S"]
    to_sequence: Int[Array, "B S"]
    to_stream: Int[Array, "B S"]
    intervals: Intervals
    stretches: int = dataclasses.field(default=1, metadata={"static": True})


class Past(NamedTuple):
    """Keys and values of earlier tokens [L, B, C, K, h] and what each new token, in sequence order, sees of them."""

    k: Float[Array, "L B C K h"]
    v: Float[Array, "L B C K h"]
    intervals: Intervals


def layer_spec(config: LanguageConfig) -> parameters.Spec:
    """Declares one layer: the same parameters for both experts.

    What is added to the residual stream starts smaller by sqrt(2 L), so that its sum over all layers does not grow.
    """
    into_stream = (2 * config.num_layers) ** -0.5
    D, F, size = config.hidden_size, config.intermediate_size, config.head_dim
    queries = parameters.linear((config.num_heads, size), (D,), ("heads", None), ("embed",), bias=True)
    keys = parameters.linear((config.num_kv_heads, size), (D,), ("kv_heads", None), ("embed",), bias=True)
    heads = (config.num_heads, size)
    out = parameters.linear((D,), heads, ("embed",), ("heads", None), bias=False, scale=into_stream)
    wide = parameters.linear((F,), (D,), ("mlp",), ("embed",), bias=False)
    expert = {
        "input_norm": parameters.norm(D),
        "attention": {
            "q": queries, "k": keys, "v": keys, "o": out,
            "q_norm": parameters.norm(size), "k_norm": parameters.norm(size),
        },
        "post_norm": parameters.norm(D),
        "mlp": {
            "gate": wide, "up": wide,
            "down": parameters.linear((D,), (F,), ("embed",), ("mlp",), bias=False, scale=into_stream),
        },
    }  # fmt: skip
    return dict.fromkeys(EXPERTS, expert)


def run_layers(
    config: LanguageConfig,
    compute: ComputeConfig,
    params: dict[str, Any],
    streams: tuple[Float[Array, "B U D"], Float[Array, "B G D"]],
    order: Order,
    past: tuple[Past, ...] = (),
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Runs every layer. Either stream may be empty (its expert is then not evaluated).

    Args:
      params: the stacked layers, ``{"und": ..., "gen": ...}``.
      streams: und and gen hidden states in the compute dtype.
      past: caches, read in place.

    Returns:
      Both streams after the last layer, before the final norm; and the new keys (normalised and rotated)
      and values [L, B, S, K, h] in sequence order if there is a ``past`` (else None).
    """
    angles = rotary_angles(order.rotary, config.head_dim, config.rope_theta)
    body = functools.partial(_layer, config, compute, order, angles, tuple(p.intervals for p in past))
    caches = tuple((p.k, p.v) for p in past)
    return jax.lax.scan(compute_remat(compute, body), streams, (params, caches))


def final_norm(config: LanguageConfig, params: dict[str, Any], expert: str, x: Array) -> Array:
    """The final RMS norm of one expert."""
    return rms_norm(x, params[expert]["scale"], config.rms_norm_eps)


def _layer(
    config: LanguageConfig, compute: ComputeConfig, order: Order, angles: tuple, past: tuple, streams: tuple, xs: tuple
) -> tuple:
    params, caches = xs
    used = [(name, x) for name, x in zip(EXPERTS, streams) if x.shape[1]]
    params = jax.tree.map(lambda leaf: leaf.astype(used[0][1].dtype), {name: params[name] for name, _ in used})
    heads = [_project(config, params[name], x) for name, x in used]
    q, k, v = (jnp.concatenate(tensors, axis=1) for tensors in zip(*heads))
    q, k = rotate(q, *angles), rotate(k, *angles)
    mixed, kv = _mix(compute, order, past, (q, k, v), caches)
    lengths = [x.shape[1] for _, x in used]
    pieces = jnp.split(mixed, lengths[:1], axis=1) if len(used) == 2 else [mixed]
    done = {name: _finish(config, params[name], x, piece) for (name, x), piece in zip(used, pieces)}
    return tuple(done.get(name, x) for name, x in zip(EXPERTS, streams)), kv if caches else None


def _project(config: LanguageConfig, p: dict, x: Array) -> tuple[Array, Array, Array]:
    """Queries, keys and values of one expert; queries and keys normalised per head, not yet rotated."""
    y = rms_norm(x, p["input_norm"]["scale"], config.rms_norm_eps)
    attention = p["attention"]

    def project(name: str, axis: str) -> Array:
        spec = out_spec("batch", None, axis, None)
        return jnp.einsum("bsd,nhd->bsnh", y, attention[name]["kernel"], out_sharding=spec) + attention[name]["bias"]

    q = rms_norm(project("q", "heads"), attention["q_norm"]["scale"], config.rms_norm_eps)
    k = rms_norm(project("k", "kv_heads"), attention["k_norm"]["scale"], config.rms_norm_eps)
    return q, k, project("v", "kv_heads")


def _mix(compute: ComputeConfig, order: Order, past: tuple, qkv: tuple, caches: tuple) -> tuple[Array, tuple]:
    """Attention in sequence order; takes and returns queries in stream order, keys and values in sequence order."""
    tile = Tile(compute.block_q, compute.block_k)
    run = attend_dense if compute.attention == "dense" else functools.partial(attend, tile=tile)

    def local(order: Order, past: tuple, qkv: tuple, caches: tuple) -> tuple[Array, tuple]:
        q, k, v = (permute(x, order.to_sequence, order.to_stream) for x in qkv)
        span = q.shape[1] // order.stretches

        def stretch(first: int) -> Array:
            own = lambda x: x[:, first : first + span]  # noqa: E731
            among = jax.tree.map(lambda x: own(x) - first, order.intervals)
            earlier = [Part(*kv, jax.tree.map(own, intervals)) for kv, intervals in zip(caches, past)]
            return run(own(q), [Part(own(k), own(v), among), *earlier])

        mixed = jnp.concatenate([stretch(n * span) for n in range(order.stretches)], axis=1)
        return permute(mixed, order.to_stream, order.to_sequence), (k, v)

    row, queries, keys = ("batch", None), ("batch", None, "heads", None), ("batch", None, "kv_heads", None)
    names = lambda tree: jax.tree.map(lambda _: row, tree)  # noqa: E731
    mapped = map_shards(
        local,
        (names(order), names(past), (queries, keys, keys), jax.tree.map(lambda _: keys, caches)),
        (queries, (keys, keys)),
    )
    return mapped(order, past, qkv, caches)


def _finish(config: LanguageConfig, p: dict, x: Array, mixed: Array) -> Array:
    """Output projection and gated mlp of one expert, each added to the residual stream."""
    rows, wide = out_spec("batch", None, None), out_spec("batch", None, "mlp")
    x += jnp.einsum("bsnh,dnh->bsd", mixed, p["attention"]["o"]["kernel"], out_sharding=rows)
    y = rms_norm(x, p["post_norm"]["scale"], config.rms_norm_eps)
    gate = jnp.einsum("bsd,fd->bsf", y, p["mlp"]["gate"]["kernel"], out_sharding=wide)
    up = jnp.einsum("bsd,fd->bsf", y, p["mlp"]["up"]["kernel"], out_sharding=wide)
    return x + jnp.einsum("bsf,df->bsd", jax.nn.silu(gate) * up, p["mlp"]["down"]["kernel"], out_sharding=rows)
