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
from pdgen.models.attention import Intervals, KeysValues, Part, permute, run_attention
from pdgen.models.embeddings import rms_norm, rotary_angles, rotate
from pdgen.models.vision import compute_remat
from pdgen.sharding import map_shards, out_spec


class Streams(NamedTuple):
    """The hidden states of each expert's tokens, in the compute dtype. Either stream may be empty."""

    und: Float[Array, "B U D"]
    gen: Float[Array, "B G D"]


EXPERTS = Streams._fields


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Order:
    """Positions of the tokens. Stream order is und then gen; sequence order is the documents' own.

    Attributes:
      rotary: [B, S] rotary positions, stream order.
      to_sequence: [B, S], the stream index at each place of the sequence.
      to_stream: [B, S], its inverse.
      intervals: of the tokens among themselves, sequence order.
      isolated_spans: number of spans of equal length, one after the other in the sequence, whose intervals let them
        see nothing of each other. Attention runs on each alone and builds no tile of two.
    """

    rotary: Int[Array, "B S"]
    to_sequence: Int[Array, "B S"]
    to_stream: Int[Array, "B S"]
    intervals: Intervals
    isolated_spans: int = dataclasses.field(default=1, metadata={"static": True})


class Past(NamedTuple):
    """Keys and values of earlier tokens [L, B, C, K, h] and what each new token, in sequence order, sees of them."""

    k: Float[Array, "L B C K h"]
    v: Float[Array, "L B C K h"]
    intervals: Intervals


class _Heads(NamedTuple):
    """Queries, keys and values of the new tokens."""

    q: Float[Array, "B S H h"]
    k: Float[Array, "B S K h"]
    v: Float[Array, "B S K h"]


class _Shared(NamedTuple):
    """What all layers have in common: the order of the tokens, their rotary angles, what they see of each past."""

    order: Order
    cos: Float[Array, "B S h/2"]
    sin: Float[Array, "B S h/2"]
    past: tuple[Intervals, ...]


class _Layer(NamedTuple):
    """What one layer has of its own: its parameters and its slice [B, C, K, h] of each past."""

    params: dict[str, Any]
    caches: tuple[KeysValues, ...]


def layer_spec(config: LanguageConfig) -> parameters.Spec:
    """Declares one layer: the same parameters for both experts.

    What is added to the residual stream starts smaller by sqrt(2 L), so that its sum over all layers does not grow.
    """
    # One attention and one mlp in each layer make 2 L summands.
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
            "q": queries,
            "k": keys,
            "v": keys,
            "o": out,
            "q_norm": parameters.norm(size),
            "k_norm": parameters.norm(size),
        },
        "post_norm": parameters.norm(D),
        "mlp": {
            "gate": wide,
            "up": wide,
            "down": parameters.linear((D,), (F,), ("embed",), ("mlp",), bias=False, scale=into_stream),
        },
    }
    return dict.fromkeys(EXPERTS, expert)


def run_layers(
    config: LanguageConfig,
    compute: ComputeConfig,
    params: dict[str, Any],
    streams: Streams,
    order: Order,
    past: tuple[Past, ...] = (),
) -> tuple[Streams, KeysValues | None]:
    """Runs every layer. An empty stream's expert is not evaluated.

    Args:
      params: the stacked layers, ``{"und": ..., "gen": ...}``.
      past: caches, read in place.

    Returns:
      Both streams after the last layer, before the final norm; and the new keys (normalised and rotated)
      and values [L, B, S, K, h] in sequence order if there is a ``past`` (else None).
    """
    cos, sin = rotary_angles(order.rotary, config.head_dim, config.rope_theta)
    shared = _Shared(order, cos, sin, tuple(p.intervals for p in past))
    layers = _Layer(params, tuple(KeysValues(p.k, p.v) for p in past))
    run = functools.partial(_run_layer, config, compute, shared)
    return jax.lax.scan(compute_remat(compute, run), streams, layers)


def final_norm(config: LanguageConfig, params: dict[str, Any], expert: str, x: Array) -> Array:
    """The final RMS norm of one expert."""
    return rms_norm(x, params[expert]["scale"], config.rms_norm_eps)


def _run_layer(
    config: LanguageConfig, compute: ComputeConfig, shared: _Shared, streams: Streams, layer: _Layer
) -> tuple[Streams, KeysValues | None]:
    # An expert without tokens is left out while tracing, so that it costs neither weights nor products.
    present = {name: x for name, x in streams._asdict().items() if x.shape[1]}
    dtype = next(iter(present.values())).dtype
    # Parameters may be kept in float32: each layer's are cast as it runs, never all of them at once.
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), {name: layer.params[name] for name in present})

    # Each expert projects its own tokens; from here to the split they are one sequence.
    projected = [_project(config, params[name], x) for name, x in present.items()]
    heads = _Heads(*(jnp.concatenate(tensors, axis=1) for tensors in zip(*projected)))
    heads = heads._replace(q=rotate(heads.q, shared.cos, shared.sin), k=rotate(heads.k, shared.cos, shared.sin))
    mixed, new = _attend_mesh(compute, shared, heads, layer.caches)

    lengths = [x.shape[1] for x in present.values()]
    pieces = jnp.split(mixed, lengths[:1], axis=1) if len(present) == 2 else [mixed]
    done = {name: _finish(config, params[name], x, piece) for (name, x), piece in zip(present.items(), pieces)}
    # Without a past nothing will be cached: training must not stack every layer's keys and values.
    return streams._replace(**done), new if layer.caches else None


def _project(config: LanguageConfig, p: dict, x: Array) -> _Heads:
    """One expert's projections; queries and keys are normalised per head, not yet rotated."""
    y = rms_norm(x, p["input_norm"]["scale"], config.rms_norm_eps)
    attention = p["attention"]
    # The norm comes before the rotation, which keeps lengths, so the logits stay bounded at every position.
    q = rms_norm(_linear_heads(attention["q"], y, "heads"), attention["q_norm"]["scale"], config.rms_norm_eps)
    k = rms_norm(_linear_heads(attention["k"], y, "kv_heads"), attention["k_norm"]["scale"], config.rms_norm_eps)
    return _Heads(q, k, _linear_heads(attention["v"], y, "kv_heads"))


def _linear_heads(p: dict, y: Array, axis: str) -> Array:
    """[B, S, D] to [B, S, heads, h]; ``axis`` is the logical name of the heads."""
    spec = out_spec("batch", None, axis, None)
    return jnp.einsum("bsd,nhd->bsnh", y, p["kernel"], out_sharding=spec) + p["bias"]


def _attend_mesh(
    compute: ComputeConfig, shared: _Shared, heads: _Heads, caches: tuple[KeysValues, ...]
) -> tuple[Float[Array, "B S H h"], KeysValues]:
    """Attention on every device's own rows and heads; queries and result in stream order, the rest in sequence order.

    Rows and heads never meet in attention, so no device needs anything of another.
    """
    row, queries, keys = ("batch", None), ("batch", None, "heads", None), ("batch", None, "kv_heads", None)
    order, past = jax.tree.map(lambda _: row, (shared.order, shared.past))
    in_names = (order, past, _Heads(queries, keys, keys), jax.tree.map(lambda _: keys, caches))
    attend = map_shards(functools.partial(_attend_shard, compute), in_names, (queries, KeysValues(keys, keys)))
    return attend(shared.order, shared.past, heads, caches)


def _attend_shard(
    compute: ComputeConfig,
    order: Order,
    past: tuple[Intervals, ...],
    heads: _Heads,
    caches: tuple[KeysValues, ...],
) -> tuple[Array, KeysValues]:
    # Intervals speak of places in the sequence, so the tokens are brought into its order and back.
    q, k, v = (permute(x, order.to_sequence, order.to_stream) for x in heads)
    span = q.shape[1] // order.isolated_spans
    mixed = []
    for number in range(order.isolated_spans):
        first = number * span
        own = functools.partial(_slice_tokens, first=first, length=span)
        # Among themselves the span's tokens are numbered from 0; slots of a past keep their numbers.
        among = Intervals(*(None if x is None else own(x) - first for x in order.intervals))
        earlier = [Part(cache.k, cache.v, jax.tree.map(own, seen)) for cache, seen in zip(caches, past)]
        mixed.append(run_attention(compute, own(q), [Part(own(k), own(v), among), *earlier]))
    return permute(jnp.concatenate(mixed, axis=1), order.to_stream, order.to_sequence), KeysValues(k, v)


def _slice_tokens(x: Array, first: int, length: int) -> Array:
    return x[:, first : first + length]


def _finish(config: LanguageConfig, p: dict, x: Array, mixed: Array) -> Array:
    """Output projection and gated mlp of one expert, each added to the residual stream."""
    rows, wide = out_spec("batch", None, None), out_spec("batch", None, "mlp")
    x += jnp.einsum("bsnh,dnh->bsd", mixed, p["attention"]["o"]["kernel"], out_sharding=rows)
    y = rms_norm(x, p["post_norm"]["scale"], config.rms_norm_eps)
    gate = jnp.einsum("bsd,fd->bsf", y, p["mlp"]["gate"]["kernel"], out_sharding=wide)
    up = jnp.einsum("bsd,fd->bsf", y, p["mlp"]["up"]["kernel"], out_sharding=wide)
    return x + jnp.einsum("bsf,df->bsd", jax.nn.silu(gate) * up, p["mlp"]["down"]["kernel"], out_sharding=rows)
