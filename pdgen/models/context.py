"""The key/value cache of a batch of contexts, and the functions that append a text or an image to it.

Every token is evaluated once. Each row of a batch has its own length, and an inactive row appends nothing. The
cache is an explicit pytree, which attention reads in place and which is written once per segment.

Axis legend: B batch, C capacity, M tokens of the segment, K key/value heads, h head size, L layers, D width,
G some rows of the batch.
"""

import dataclasses
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.models import bagel, mot
from pdgen.models.attention import Intervals, Part
from pdgen.models.mot import Order, Streams
from pdgen.sharding import map_shards, out_spec, place

# A mesh splits keys and values by row and head. Lengths are replicated: every device needs them for its masks.
_SPLIT = (None, "batch", None, "kv_heads", None)


@jax.tree_util.register_dataclass
@no_type_check  # a tree's leaves may be anything, such as specs or None
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys (normalised and rotated) and values of all tokens so far.

    Attributes:
      k, v: slots [length, C) of a row are unused.
      length: number of tokens per row.
      rotary: next rotary position per row.
    """

    k: Float[Array, "L B C K h"]
    v: Float[Array, "L B C K h"]
    length: Int[Array, " B"]
    rotary: Int[Array, " B"]


class _Segment(NamedTuple):
    """New tokens for a context.

    Attributes:
      streams: their embeddings.
      to_sequence: stream index of each slot of the segment, the same in every row.
      rotary: rotary positions, in the order of the segment.
      among: what they see of each other, in the order of the segment.
      count: number of tokens to store per row, the first ones of the segment.
    """

    streams: Streams
    to_sequence: Int[np.ndarray, " M"]
    rotary: Int[Array, "B M"]
    among: Intervals
    count: Int[Array, " B"]


def empty_cache(config: ModelConfig, batch: int, capacity: int, dtype: Any = jnp.float32) -> Cache:
    """Return a context of no tokens with room for ``capacity``."""
    language = config.language
    shape = (language.num_layers, batch, capacity, language.num_kv_heads, language.head_dim)
    # Zeros: a masked value still enters a product, and 0 * NaN is NaN. No two leaves share a buffer, so that a caller
    # may donate the cache.
    k, v = (place(jnp.zeros(shape, dtype), *_SPLIT) for _ in range(2))
    return Cache(k, v, jnp.zeros(batch, jnp.int32), jnp.zeros(batch, jnp.int32))


def add_text(
    config: ModelConfig,
    compute: ComputeConfig,
    params: dict[str, Any],
    cache: Cache,
    ids: Int[Array, "B M"],
    count: Int[Array, " B"],
) -> tuple[Cache, Float[Array, "B M D"]]:
    """Append the first ``count`` tokens of each row, within [0, M]; positions advance by one per token.

    Returns the extended cache and the tokens' hidden states after the final norm.
    """
    batch, length = ids.shape
    slots = jnp.arange(length)
    real = slots < count[:, None]
    # Causal: each token sees the text up to itself. Tokens beyond ``count`` see nothing and are not stored.
    among = Intervals(jnp.zeros((batch, length), jnp.int32), jnp.where(real, slots + 1, 0))
    und = bagel.embed_text(compute, params, ids)
    segment = _Segment(Streams(und, und[:, :0]), np.arange(length), cache.rotary[:, None] + slots, among, count)
    cache, hidden = _extend(config, compute, params, cache, segment)
    return dataclasses.replace(cache, rotary=cache.rotary + count), hidden


def add_latents(
    config: ModelConfig,
    compute: ComputeConfig,
    params: dict[str, Any],
    cache: Cache,
    latents: tuple[Float[Array, "B M C"], Int[Array, "B M"]],
    switches: tuple[int, int],
    active: Bool[Array, " B"],
) -> tuple[Cache, Float[Array, "B M+2 D"]]:
    """Append a clean image's VAE tokens between switch tokens; the position advances by one.

    Args:
      config, compute, params, cache: the model and the context so far.
      latents: clean, scaled latents in patches, and their position ids.
      switches: ids of <|vision_start|> and <|vision_end|>.
      active: rows that append the image.

    Returns:
      The extended cache and the hidden states after the final norm, in sequence order.
    """
    values, positions = latents
    gen = bagel.embed_latents(config, compute, params, values, positions, jnp.zeros(positions.shape))
    und = _embed_switches(compute, params, switches, gen.shape[0])
    return _add_image(config, compute, params, cache, Streams(und, gen), active)


def add_vit(
    config: ModelConfig,
    compute: ComputeConfig,
    params: dict[str, Any],
    cache: Cache,
    patches: tuple[Float[Array, "B M P"], Int[Array, "B M"]],
    switches: tuple[int, int],
    active: Bool[Array, " B"],
) -> tuple[Cache, Float[Array, "B M+2 D"]]:
    """Append an image's ViT tokens; as ``add_latents``, with patches of pixels in [-1, 1] for latents."""
    values, positions = patches
    image = (jnp.zeros_like(positions), jnp.full_like(positions, positions.shape[1]))  # all patches are of one image
    vit = bagel.embed_vit(config, compute, params, values, positions, image)
    und = jnp.concatenate([_embed_switches(compute, params, switches, vit.shape[0]), vit], 1)
    return _add_image(config, compute, params, cache, Streams(und, vit[:, :0]), active)


def image_order(tokens: int, branches: int = 1) -> Int[np.ndarray, " {branches*(tokens+2)}"]:
    """Return the stream index of each slot of ``<|vision_start|> tokens <|vision_end|>``, branch after branch.

    Stream order is first the two switch tokens of every branch, then the image tokens of every branch.
    """
    first = np.arange(branches)[:, None]
    image = 2 * branches + first * tokens + np.arange(tokens)
    return np.concatenate([2 * first, image, 2 * first + 1], axis=1).reshape(-1)


def _embed_switches(compute: ComputeConfig, params: dict, switches: tuple[int, int], batch: int) -> Array:
    ids = jnp.broadcast_to(jnp.asarray(switches, jnp.int32), (batch, 2))
    return bagel.embed_text(compute, params, ids)


def _add_image(
    config: ModelConfig, compute: ComputeConfig, params: dict, cache: Cache, streams: Streams, active: Array
) -> tuple[Cache, Array]:
    """Append an image; ``streams.und`` begins with its two switch tokens."""
    batch, length = streams.und.shape[0], streams.und.shape[1] + streams.gen.shape[1]
    # An image is one point of the text: its tokens see each other and share one position.
    end = jnp.broadcast_to(jnp.where(active[:, None], length, 0), (batch, length))
    among = Intervals(jnp.zeros((batch, length), jnp.int32), end)
    rotary = jnp.broadcast_to(cache.rotary[:, None], (batch, length))
    segment = _Segment(streams, image_order(length - 2), rotary, among, jnp.where(active, length, 0))
    cache, hidden = _extend(config, compute, params, cache, segment)
    return dataclasses.replace(cache, rotary=cache.rotary + active), hidden


def _extend(
    config: ModelConfig, compute: ComputeConfig, params: dict, cache: Cache, segment: _Segment
) -> tuple[Cache, Float[Array, "B M D"]]:
    """Evaluate a segment given the cache and append it; the hidden states are in the order of the segment."""
    to_sequence, count = segment.to_sequence, segment.count
    batch, length = segment.rotary.shape
    rows = lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.int32), (batch, length))  # noqa: E731
    # ``rotary`` is read in stream order. It needs no permutation: a text has one stream, an image one position.
    order = Order(segment.rotary, rows(to_sequence), rows(np.argsort(to_sequence)), segment.among)
    stored = jnp.arange(length) < count[:, None]
    seen = Intervals(jnp.zeros_like(segment.among.k_start), jnp.where(stored, cache.length[:, None], 0))
    language = params["language"]
    past = (Part(cache.k, cache.v, seen),)
    streams, new = mot.run_layers(config.language, compute, language["layers"], segment.streams, order, past)
    assert new is not None  # run_layers returns keys and values wherever there is a past
    hidden = [mot.final_norm(config.language, language["norm"], e, x) for e, x in zip(mot.EXPERTS, streams)]
    spec = out_spec("batch", None, None)
    hidden = jnp.concatenate(hidden, axis=1).at[:, to_sequence].get(out_sharding=spec)
    # Tokens beyond ``count`` get slot C, which is out of bounds, and the scatter drops them.
    slot = jnp.where(stored, cache.length[:, None] + jnp.arange(length), cache.k.shape[2])
    store = map_shards(_store, (("batch", None), _SPLIT, _SPLIT), _SPLIT)
    k, v = store(slot, cache.k, new.k), store(slot, cache.v, new.v)
    return Cache(k, v, cache.length + count, cache.rotary), hidden


def _store(slot: Int[Array, "B M"], old: Float[Array, "L B C K h"], new: Float[Array, "L B M K h"]) -> Array:
    """Return ``old`` with ``new`` in the slots; each device writes its own rows and heads."""
    rows = jnp.arange(slot.shape[0])[:, None]
    return old.at[:, rows, slot].set(new.astype(old.dtype), mode="drop")


def take_rows(cache: Cache, index: Int[Array | np.ndarray, " G"]) -> Cache:
    """Gather rows of a cache; an index beyond the last row gives the last row."""
    spec = out_spec(*_SPLIT)
    k, v = (values.at[:, index].get(mode="clip", out_sharding=spec) for values in (cache.k, cache.v))
    return Cache(k, v, *(values.at[index].get(mode="clip") for values in (cache.length, cache.rotary)))


def put_rows(cache: Cache, index: Int[Array | np.ndarray, " G"], rows: Cache) -> Cache:
    """Replace rows of a cache, the inverse of ``take_rows``; an index beyond the last row is ignored."""
    large, small = ((cache.k, rows.k), (cache.v, rows.v)), ((cache.length, rows.length), (cache.rotary, rows.rotary))
    spec = out_spec(*_SPLIT)
    k, v = (values.at[:, index].set(new, mode="drop", out_sharding=spec) for values, new in large)
    return Cache(k, v, *(values.at[index].set(new, mode="drop") for values, new in small))
