"""Mixture-of-transformers: two experts with their own weights that share one attention.

The understanding expert processes text, switch tokens and ViT tokens, the generation expert VAE tokens. A layer is
Qwen2.5's, with an RMS norm of every query and key head before the rotary embedding:

    y = RMS(x);   q, k = rotate(RMS(W_q y + b_q)), rotate(RMS(W_k y + b_k));   v = W_v y + b_v
    x <- x + W_o attention(q, k, v)
    z = RMS(x);   x <- x + W_down (silu(W_gate z) * W_up z)

All weights, norms included, are those of the token's own expert. Attention runs over the tokens of both. So each
expert runs on its own dense array and only attention needs the tokens in one order. The layers are stacked and
scanned.

Axis legend: B batch, U understanding tokens, G generation tokens, S = U + G, C cache slots, D width, F mlp width,
H query heads, K key/value heads, h head size, L layers.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pdgen.config import ComputeConfig, LanguageConfig
from pdgen.models import lora, parameters
from pdgen.models.attention import Intervals, KeysValues, Part, run_attention, schedule_attention
from pdgen.models.embeddings import rms_norm, rotary_angles, rotate
from pdgen.models.linear import apply_kernel, cast_layer
from pdgen.models.streaming import scan_layers
from pdgen.models.vision import compute_remat
from pdgen.sharding import map_shards, out_spec


class Streams(NamedTuple):
    """Hidden states of each expert's tokens, in the compute dtype. Either stream may be empty."""

    und: Float[Array, "B U D"]
    gen: Float[Array, "B G D"]


EXPERTS = Streams._fields


@jax.tree_util.register_dataclass
@no_type_check  # a tree's leaves may be anything, such as specs or None
@dataclasses.dataclass(frozen=True)
class Order:
    """Positions of the tokens. Stream order is und, then gen; sequence order is that of the documents.

    Attributes:
      rotary: rotary positions, in stream order.
      to_sequence: stream index of each slot of the sequence.
      to_stream: its inverse, the slot of each token in stream order.
      intervals: which of each other's keys the tokens may see, in sequence order.
      isolated_spans: number of consecutive spans of equal length that do not see each other. Attention runs on each
        span separately.
    """

    rotary: Int[Array, "B S"]
    to_sequence: Int[Array, "B S"]
    to_stream: Int[Array, "B S"]
    intervals: Intervals
    isolated_spans: int = dataclasses.field(default=1, metadata={"static": True})


class _Heads(NamedTuple):
    """Queries, keys and values of the new tokens."""

    q: Float[Array, "B S H h"]
    k: Float[Array, "B S K h"]
    v: Float[Array, "B S K h"]


class _Span(NamedTuple):
    """A span of the sequence that attends for itself: what it sees of its own tokens and of each cache, and how.

    Attributes:
      intervals: those of its own tokens, numbered from 0, then those of each cache.
      schedule: see ``schedule_attention``.
    """

    intervals: tuple[Intervals, ...]
    schedule: Any


class _Shared(NamedTuple):
    """What all layers share: the order of the tokens, their rotary angles, what each span of them sees."""

    order: Order
    cos: Float[Array, "B S h/2"]
    sin: Float[Array, "B S h/2"]
    spans: tuple[_Span, ...]


def layer_spec(config: LanguageConfig) -> parameters.Spec:
    """Declare one layer: the same parameters for both experts.

    The outputs of attention and MLP start smaller by sqrt(2 L). There are 2 L of them in the residual stream, so its
    variance does not grow with the depth.
    """
    residual_scale = (2 * config.num_layers) ** -0.5
    D, F, size = config.hidden_size, config.intermediate_size, config.head_dim
    queries = parameters.linear((config.num_heads, size), (D,), ("heads", None), ("embed",), bias=True)
    keys = parameters.linear((config.num_kv_heads, size), (D,), ("kv_heads", None), ("embed",), bias=True)
    heads = (config.num_heads, size)
    out = parameters.linear((D,), heads, ("embed",), ("heads", None), bias=False, scale=residual_scale)
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
            "down": parameters.linear((D,), (F,), ("embed",), ("mlp",), bias=False, scale=residual_scale),
        },
    }
    return dict.fromkeys(EXPERTS, expert)


def run_layers(
    config: LanguageConfig,
    compute: ComputeConfig,
    params: dict[str, Any],
    streams: Streams,
    order: Order,
    past: tuple[Part, ...] = (),
) -> tuple[Streams, KeysValues | None]:
    """Run all layers. The expert of an empty stream is not evaluated.

    Args:
      config, compute: sizes, dtype, remat and attention.
      params: the stacked layers, ``{"und": ..., "gen": ...}``, perhaps with adapters (``lora.attach``). An expert may
        be ``HostLayers``, in host memory.
      streams: input embeddings.
      order: positions of the tokens.
      past: caches [L, B, C, K, h] of earlier tokens, read in place; intervals in sequence order.

    Returns:
      Both streams after the last layer, before the final norm. With a ``past``, also the new keys (normalised and
      rotated) and values [L, B, S, K, h] in sequence order; otherwise None.
    """
    cos, sin = rotary_angles(order.rotary, config.head_dim, config.rope_theta)
    capacities = tuple(p.k.shape[2] for p in past)
    find_spans = map_shards(functools.partial(_find_spans, compute, capacities), (("batch", None),) * 2, ("batch",))
    shared = _Shared(order, cos, sin, find_spans(order, tuple(p.intervals for p in past)))
    # An expert without tokens is left out while tracing: its weights are neither read nor copied.
    present = {name: params[name] for name, x in streams._asdict().items() if x.shape[1]}
    caches = tuple(KeysValues(p.k, p.v) for p in past)
    run = functools.partial(_run_layer, config, compute, shared)
    return scan_layers(compute_remat(compute, run), streams, caches, present)


def final_norm(config: LanguageConfig, params: dict[str, Any], expert: str, x: Array) -> Array:
    """Apply the final RMS norm of one expert."""
    return rms_norm(x, params[expert]["scale"], config.rms_norm_eps)


def _run_layer(
    config: LanguageConfig, compute: ComputeConfig, shared: _Shared, streams: Streams, layer: tuple
) -> tuple[Streams, KeysValues | None]:
    """Run one layer: its slice [B, C, K, h] of each cache, and the parameters of the experts that have tokens.

    The result is that of ``run_layers``.
    """
    caches, params = layer
    present = {name: getattr(streams, name) for name in EXPERTS if name in params}
    dtype = next(iter(present.values())).dtype
    # Parameters may be stored in float32. Merging adapters and casting inside the scan need memory for one layer's copy
    # only.
    params = cast_layer(lora.merge_attached(params), dtype)

    # Each expert projects its own tokens. From here to the split they are one sequence.
    projected = [_project(config, params[name], x) for name, x in present.items()]
    heads = _Heads(*(jnp.concatenate(tensors, axis=1) for tensors in zip(*projected)))
    heads = heads._replace(q=rotate(heads.q, shared.cos, shared.sin), k=rotate(heads.k, shared.cos, shared.sin))
    mixed, new = _attend_on_mesh(compute, shared, heads, caches)

    lengths = [x.shape[1] for x in present.values()]
    pieces = jnp.split(mixed, lengths[:1], axis=1) if len(present) == 2 else [mixed]
    updated = {
        name: _add_to_residual(config, params[name], x, piece) for (name, x), piece in zip(present.items(), pieces)
    }
    # Without a past nothing will be cached: training must not stack every layer's keys and values.
    return streams._replace(**updated), new if caches else None


def _project(config: LanguageConfig, p: dict, x: Array) -> _Heads:
    """Project one expert's tokens; queries and keys are normalised per head, but not yet rotated."""
    y = rms_norm(x, p["input_norm"]["scale"], config.rms_norm_eps)
    attention = p["attention"]
    # A rotation preserves lengths, so this norm bounds the logits at every position.
    q = rms_norm(_linear_heads(attention["q"], y, "heads"), attention["q_norm"]["scale"], config.rms_norm_eps)
    k = rms_norm(_linear_heads(attention["k"], y, "kv_heads"), attention["k_norm"]["scale"], config.rms_norm_eps)
    return _Heads(q, k, _linear_heads(attention["v"], y, "kv_heads"))


def _linear_heads(p: dict, y: Array, axis: str) -> Array:
    """Map [B, S, D] to [B, S, heads, h]; ``axis`` is the logical name of the heads."""
    spec = out_spec("batch", None, axis, None)
    return apply_kernel(p, "bsd,nhd->bsnh", y, spec) + p["bias"]


def _attend_on_mesh(
    compute: ComputeConfig, shared: _Shared, heads: _Heads, caches: tuple[KeysValues, ...]
) -> tuple[Float[Array, "B S H h"], KeysValues]:
    """Attend on every device over its own rows and heads.

    Attention mixes neither rows nor heads, so the devices exchange nothing. ``heads`` and the result are in stream
    order, the new keys and values in sequence order.
    """
    row, queries, keys = ("batch", None), ("batch", None, "heads", None), ("batch", None, "kv_heads", None)
    in_names = (row, ("batch",), queries, keys, keys, keys)  # the names of a pytree are those of all its leaves
    attend = map_shards(functools.partial(_attend_shard, compute), in_names, (queries, keys, keys))
    mixed, k, v = attend(shared.order, shared.spans, *heads, caches)
    return mixed, KeysValues(k, v)


def _find_spans(
    compute: ComputeConfig, capacities: tuple[int, ...], order: Order, past: tuple[Intervals, ...]
) -> tuple[_Span, ...]:
    """Return the spans of one device's rows; ``capacities`` are the slots of each cache."""
    length = order.rotary.shape[1] // order.isolated_spans
    spans = []
    for number in range(order.isolated_spans):
        first = number * length
        own = functools.partial(jax.lax.slice_in_dim, start_index=first, limit_index=first + length, axis=1)
        # The span's own tokens are numbered from 0; slots of a cache keep their numbers.
        among = jax.tree.map(lambda x, own=own, first=first: own(x) - first, order.intervals)
        seen = (among, *(jax.tree.map(own, intervals) for intervals in past))
        spans.append(_Span(seen, schedule_attention(compute, seen, (length, *capacities))))
    return tuple(spans)


def _attend_shard(
    compute: ComputeConfig,
    order: Order,
    spans: tuple[_Span, ...],
    q: Array,
    k: Array,
    v: Array,
    caches: tuple[KeysValues, ...],
) -> tuple[Array, Array, Array]:
    """Attend over one device's rows and heads; the result in stream order, keys and values in sequence order."""
    # Intervals count slots of the sequence, so the tokens are permuted to its order and back.
    q, k, v = (permute(x, order.to_sequence, order.to_stream) for x in (q, k, v))
    pieces = (jnp.split(x, len(spans), axis=1) for x in (q, k, v))
    mixed = [
        run_attention(
            compute,
            q_own,
            [Part(*pair, seen) for pair, seen in zip(((k_own, v_own), *caches), span.intervals, strict=True)],
            span.schedule,
        )
        for span, q_own, k_own, v_own in zip(spans, *pieces)
    ]
    return permute(jnp.concatenate(mixed, axis=1), order.to_stream, order.to_sequence), k, v


def _add_to_residual(config: LanguageConfig, p: dict, x: Array, mixed: Array) -> Array:
    """Add one expert's output projection of attention's result, then its gated MLP, to the residual stream."""
    rows, wide = out_spec("batch", None, None), out_spec("batch", None, "mlp")
    x += apply_kernel(p["attention"]["o"], "bsnh,dnh->bsd", mixed, rows)
    y = rms_norm(x, p["post_norm"]["scale"], config.rms_norm_eps)
    gate = apply_kernel(p["mlp"]["gate"], "bsd,fd->bsf", y, wide)
    up = apply_kernel(p["mlp"]["up"], "bsd,fd->bsf", y, wide)
    return x + apply_kernel(p["mlp"]["down"], "bsf,df->bsd", jax.nn.silu(gate) * up, rows)


@jax.custom_vjp
def permute(x: Float[Array, "B S ..."], order: Int[Array, "B S"], inverse: Int[Array, "B S"]) -> Array:
    """Return ``x[b, order[b]]`` for each row b; ``inverse`` is the inverse permutation."""
    # Only the gradient needs the inverse: it gathers, where autodiff of a gather would scatter.
    del inverse
    return jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)


permute.defvjp(
    lambda x, order, inverse: (permute(x, order, inverse), (order, inverse)),
    lambda saved, d_out: (permute(d_out, saved[1], saved[0]), None, None),
)
