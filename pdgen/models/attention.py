"""Interval attention: softmax attention whose mask is two intervals of integers per token.

    allowed(q, k)  <=>  k_start[q] <= k < k_end[q]  and  q_start[k] <= q < q_end[k]

``attend(q, parts)`` takes keys and values in parts (a cache and the new tokens, say), each with its own
intervals, and normalises once over all of them. No mask or logit matrix larger than a tile is ever built;
tiles that no query of the block may see are not computed. A query that may see nothing gets zeros.

Axis legend: B batch, Q queries, S keys, H query heads, K key/value heads, G = H / K, h head size.

Example: two documents, a text of two tokens and then a clean image of three; a text of one token:

    token      0  1 | 2  3  4 | 5         allowed[q, k]
    k_start    0  0 | 0  0  0 | 5         1 0 0 0 0 0
    k_end      1  2 | 5  5  5 | 6         1 1 0 0 0 0
    q_start    0  1 | 2  2  2 | 5         1 1 1 1 1 0   (three rows of the image)
    q_end      5  5 | 5  5  5 | 6         0 0 0 0 0 1
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

ATTENTION = "attention"  # checkpoint name of what the backward pass needs of the forward pass
MASKED = -1e30  # finite, so that a row with nothing to see never computes inf - inf


class Intervals(NamedTuple):
    """Who sees whom. ``q_start`` and ``q_end`` may both be None: every query may see every key.

    Attributes:
      k_start, k_end: [B, Q] int32, the keys each query may see.
      q_start, q_end: [B, S] int32, the queries that may see each key.
    """

    k_start: Int[Array, "B Q"]
    k_end: Int[Array, "B Q"]
    q_start: Int[Array, "B S"] | None = None
    q_end: Int[Array, "B S"] | None = None


class Part(NamedTuple):
    """Keys and values [B, S, K, h] and who may see them."""

    k: Float[Array, "B S K h"]
    v: Float[Array, "B S K h"]
    intervals: Intervals


class Tile(NamedTuple):
    """Tile sizes in tokens: queries times keys."""

    q: int = 256
    k: int = 256


DEFAULT_TILE = Tile()


def allowed_matrix(intervals: Intervals, num_keys: int) -> Bool[Array, "B Q S"]:
    """The dense mask of ``intervals``: the definition itself, for tests and for drawing."""
    k = jnp.arange(num_keys)
    mask = (intervals.k_start[..., None] <= k) & (k < intervals.k_end[..., None])
    if intervals.q_start is not None and intervals.q_end is not None:
        q = jnp.arange(intervals.k_start.shape[1])[:, None]
        mask &= (intervals.q_start[:, None] <= q) & (q < intervals.q_end[:, None])
    return mask


def attend_dense(q: Float[Array, "B Q H h"], parts: list[Part]) -> Float[Array, "B Q H h"]:
    """The oracle: builds the whole mask and logit matrix. Same result as ``attend``; any dtype."""
    batch, queries, heads, size = q.shape
    k = jnp.concatenate([p.k for p in parts], axis=1)
    v = jnp.concatenate([p.v for p in parts], axis=1)
    mask = jnp.concatenate([allowed_matrix(p.intervals, p.k.shape[1]) for p in parts], axis=-1)
    grouped = q.reshape(batch, queries, k.shape[2], heads // k.shape[2], size)
    logits = jnp.einsum("bqkgh,bskh->bkgqs", grouped, k, preferred_element_type=jnp.float32) * size**-0.5
    mask = mask[:, None, None]
    weights = jax.nn.softmax(jnp.where(mask, logits, MASKED), axis=-1)
    weights = jnp.where(mask, weights, 0).astype(v.dtype)
    return jnp.einsum("bkgqs,bskh->bqkgh", weights, v).reshape(q.shape)


def attend(q: Float[Array, "B Q H h"], parts: list[Part], tile: Tile = DEFAULT_TILE) -> Float[Array, "B Q H h"]:
    """Blockwise interval attention, differentiable in q, k and v.

    Logits, maximum, sum and accumulator are float32 whatever the dtype of q, k and v; the result has q's
    dtype. Rows of a batch longer than a tile are visited one by one, so that each keeps its own loop
    bounds; shorter ones (decoding) together.

    Args:
      q: queries, not yet scaled by h^-1/2.
      parts: at least one; all share K and h.
      tile: tile sizes.
    """
    if not q.shape[1]:  # a stream that this run has no tokens of
        return q

    def rows(q: jax.Array, parts: list[Part]) -> jax.Array:
        return _attend(tile, q, tuple((p.k, p.v) for p in parts), tuple(p.intervals for p in parts))

    if q.shape[1] <= tile.q or q.shape[0] == 1:
        return rows(q, parts)
    return lax.map(lambda row: rows(*jax.tree.map(lambda x: x[None], row))[0], (q, parts))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(tile: Tile, q: jax.Array, keys_values: tuple, intervals: tuple) -> jax.Array:
    return _forward(tile, q, keys_values, intervals)[0]


def _by_head(x: jax.Array, kv_heads: int) -> jax.Array:
    """[B, Q, H, ...] to [B, K, G, Q, ...]."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], kv_heads, -1, *x.shape[3:]), 1, 3)


def _from_heads(x: jax.Array) -> jax.Array:
    """[B, K, G, Q, h] to [B, Q, H, h]."""
    x = jnp.moveaxis(x, 3, 1)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _blocks(x: jax.Array, size: int, axis: int) -> jax.Array:
    """Splits ``axis`` into blocks of ``size``, zero-padded; the block number becomes the first axis."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, -x.shape[axis] % size)
    x = jnp.pad(x, pad)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :]), axis, 0)


def _unblocks(blocks: jax.Array, length: int, axis: int) -> jax.Array:
    x = jnp.moveaxis(blocks, 0, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return lax.slice_in_dim(x, 0, length, axis=axis)


def _bounds(intervals: Intervals, size: int) -> tuple[jax.Array, jax.Array]:
    """First and last+1 key block that any query of the block may see."""
    start, end = intervals.k_start, intervals.k_end
    empty = end <= start
    low = jnp.min(jnp.where(empty, jnp.iinfo(jnp.int32).max, start))
    high = jnp.max(jnp.where(empty, 0, end))
    return jnp.minimum(low, high) // size, -(-high // size)


def _key_block(j: jax.Array, size: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Where block j starts (the last one is moved left to fit) and the key numbers it answers for."""
    start = jnp.minimum(j * size, length - size)
    index = start + jnp.arange(size)
    return start, jnp.where(index >= j * size, index, -1)


def _key_tile(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """[B, K, size, h] of keys or values [B, S, K, h]; tiles are turned, never the whole, which may be a cache."""
    return jnp.moveaxis(lax.dynamic_slice_in_dim(x, start, size, axis=1), 1, 2)


def _tile_mask(intervals: Intervals, q_index: jax.Array, start: jax.Array, k_index: jax.Array) -> jax.Array:
    """[B, q, k] of one tile; ``intervals.k_*`` are the block's, ``q_*`` all keys'."""
    mask = (intervals.k_start[..., None] <= k_index) & (k_index < intervals.k_end[..., None]) & (k_index >= 0)
    if intervals.q_start is not None:
        first, last = (lax.dynamic_slice_in_dim(x, start, k_index.shape[0], axis=1)[:, None]
                       for x in (intervals.q_start, intervals.q_end))
        mask &= (first <= q_index[:, None]) & (q_index[:, None] < last)
    return mask


def _product(spec: str, *operands: jax.Array) -> jax.Array:
    """An einsum accumulated in float32; rows of a matrix ``q`` are all queries of one key head, s keys."""
    return jnp.einsum(spec, *operands, preferred_element_type=jnp.float32)


def _rows(x: jax.Array) -> jax.Array:
    """[B, K, G, q, ...] to [B, K, G * q, ...]: the queries of a key head as rows of one matrix."""
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])


def _query_blocks(tile: Tile, q: jax.Array, intervals: tuple) -> tuple:
    """What a loop over query blocks visits: block number and each part's key bounds of its queries."""
    numbers = jnp.arange(-(-q.shape[1] // tile.q))
    return numbers, tuple((_blocks(i.k_start, tile.q, 1), _blocks(i.k_end, tile.q, 1)) for i in intervals)


def _forward(tile: Tile, q: jax.Array, keys_values: tuple, intervals: tuple) -> tuple[jax.Array, jax.Array]:
    """Output [B, Q, H, h] and log-sum-exp [B, K, G, Q] (0 where nothing is seen), by online softmax."""
    length = q.shape[1]
    tile = Tile(min(tile.q, length), tile.k)
    kv_heads = keys_values[0][0].shape[2]

    def query_block(block: tuple) -> tuple[jax.Array, jax.Array]:
        number, q_block, bounds = block
        q_index = number * tile.q + jnp.arange(tile.q)
        batch, _, groups, size, width = q_block.shape
        shape = (batch, kv_heads, groups * size)
        state = (jnp.zeros((*shape, width), jnp.float32), jnp.full(shape, MASKED), jnp.zeros(shape))
        for kv, bound, interval in zip(keys_values, bounds, intervals):
            interval = interval._replace(k_start=bound[0], k_end=bound[1])
            state = _visit_keys(tile.k, (q_index, _rows(q_block)), kv, interval, state)
        out, top, total = state
        seen = total > 0
        out = out / jnp.where(seen, total, 1)[..., None]
        lse = jnp.where(seen, top + jnp.log(jnp.where(seen, total, 1)), 0)
        return out.reshape(q_block.shape).astype(q.dtype), lse.reshape(q_block.shape[:-1])

    numbers, bounds = _query_blocks(tile, q, intervals)
    out, lse = lax.map(query_block, (numbers, _blocks(_by_head(q, kv_heads), tile.q, 3), bounds))
    return _from_heads(_unblocks(out, length, 3)), _unblocks(lse, length, 3)


def _grouped_mask(mask: jax.Array, rows: int) -> jax.Array:
    """A tile's mask [B, q, k] for the rows of ``_rows``: [B, 1, rows, k]."""
    batch, q, k = mask.shape
    return jnp.broadcast_to(mask[:, None, None], (batch, 1, rows // q, q, k)).reshape(batch, 1, rows, k)


def _visit_keys(size: int, queries: tuple, key_value: tuple, interval: Intervals, state: tuple) -> tuple:
    """Online softmax of one query block over the key blocks it may see; state = (sum, max, total)."""
    (q_index, q_rows), (k, v) = queries, key_value
    size = min(size, k.shape[1])

    def visit(j: jax.Array, state: tuple) -> tuple:
        start, k_index = _key_block(j, size, k.shape[1])
        mask = _tile_mask(interval, q_index, start, k_index)

        def update(state: tuple) -> tuple:
            out, top, total = state
            allowed = _grouped_mask(mask, q_rows.shape[2])
            k_tile, v_tile = _key_tile(k, start, size), _key_tile(v, start, size)
            logits = _product("bkqh,bksh->bkqs", q_rows, k_tile) * q_rows.shape[-1] ** -0.5
            logits = jnp.where(allowed, logits, MASKED)
            new_top = jnp.maximum(top, logits.max(-1))
            weights = jnp.where(allowed, jnp.exp(logits - new_top[..., None]), 0)
            shrink = jnp.exp(top - new_top)
            added = _product("bkqs,bksh->bkqh", weights.astype(v.dtype), v_tile)
            return out * shrink[..., None] + added, new_top, total * shrink + weights.sum(-1)

        return lax.cond(mask.any(), update, lambda state: state, state)

    return lax.fori_loop(*_bounds(interval, size), visit, state)


def _attend_fwd(tile: Tile, q: jax.Array, keys_values: tuple, intervals: tuple) -> tuple:
    # Named for remat policies: rebuilding these two costs the whole forward pass.
    out, lse = (checkpoint_name(x, ATTENTION) for x in _forward(tile, q, keys_values, intervals))
    return out, (q, keys_values, intervals, out, lse)


def _attend_bwd(tile: Tile, saved: tuple, d_out: jax.Array) -> tuple:
    """One pass over the tiles: weights are rebuilt from the merged log-sum-exp of all parts."""
    q, keys_values, intervals, out, lse = saved
    length = q.shape[1]
    tile = Tile(min(tile.q, length), tile.k)
    kv_heads = keys_values[0][0].shape[2]
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)

    def query_block(d_kv: tuple, block: tuple) -> tuple:
        number, rows, bounds = block
        q_index = number * tile.q + jnp.arange(tile.q)
        shape = rows[0].shape
        rows = [_rows(x) for x in rows]
        d_q = jnp.zeros(rows[0].shape, jnp.float32)
        d_parts = []
        for kv, bound, interval, d_part in zip(keys_values, bounds, intervals, d_kv):
            interval = interval._replace(k_start=bound[0], k_end=bound[1])
            d_q, d_part = _revisit_keys(tile.k, (q_index, rows), kv, interval, (d_q, d_part))
            d_parts.append(d_part)
        return tuple(d_parts), d_q.reshape(shape)

    numbers, bounds = _query_blocks(tile, q, intervals)
    rows = (_by_head(q, kv_heads), _by_head(d_out, kv_heads), lse, _by_head(delta, kv_heads))
    zeros = jax.tree.map(lambda x: jnp.zeros(jnp.moveaxis(x, 1, 3).shape, jnp.float32), keys_values)
    d_kv, d_q = lax.scan(query_block, zeros, (numbers, tuple(_blocks(r, tile.q, 3) for r in rows), bounds))
    d_q = _from_heads(_unblocks(d_q, length, 3)).astype(q.dtype)
    return d_q, jax.tree.map(lambda d, x: jnp.moveaxis(d, 3, 1).astype(x.dtype), d_kv, keys_values), None


def _revisit_keys(size: int, queries: tuple, key_value: tuple, interval: Intervals, state: tuple) -> tuple:
    """Gradients of one query block's tiles, added into (d_q rows, (d_k, d_v) of the whole part, tokens last)."""
    q_index, (q, d_out, lse, delta) = queries
    k, v = key_value
    size = min(size, k.shape[1])

    def visit(j: jax.Array, state: tuple) -> tuple:
        start, k_index = _key_block(j, size, k.shape[1])
        mask = _tile_mask(interval, q_index, start, k_index)

        def update(state: tuple) -> tuple:
            d_q, (d_k, d_v) = state
            scale = q.shape[-1] ** -0.5
            k_tile, v_tile = _key_tile(k, start, size), _key_tile(v, start, size)
            logits = _product("bkqh,bksh->bkqs", q, k_tile) * scale
            weights = jnp.where(_grouped_mask(mask, q.shape[2]), jnp.exp(logits - lse[..., None]), 0)
            d_weights = _product("bkqh,bksh->bkqs", d_out, v_tile)
            d_logits = (weights * (d_weights - delta[..., None]) * scale).astype(q.dtype)
            d_q += _product("bkqs,bksh->bkqh", d_logits, k_tile)
            d_k = _add_slice(d_k, _product("bkqh,bkqs->bkhs", q, d_logits), start)
            d_v = _add_slice(d_v, _product("bkqh,bkqs->bkhs", d_out, weights.astype(q.dtype)), start)
            return d_q, (d_k, d_v)

        return lax.cond(mask.any(), update, lambda state: state, state)

    return lax.fori_loop(*_bounds(interval, size), visit, state)


def _add_slice(total: jax.Array, piece: jax.Array, start: jax.Array) -> jax.Array:
    here = lax.dynamic_slice_in_dim(total, start, piece.shape[3], axis=3)
    return lax.dynamic_update_slice_in_dim(total, here + piece, start, axis=3)


_attend.defvjp(_attend_fwd, _attend_bwd)


@jax.custom_vjp
def permute(x: Float[Array, "B S ..."], order: Int[Array, "B S"], inverse: Int[Array, "B S"]) -> Array:
    """``x[b, order[b]]`` for each row; the gradient is the inverse gather, not a scatter."""
    del inverse
    return jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)


permute.defvjp(
    lambda x, order, inverse: (permute(x, order, inverse), (order, inverse)),
    lambda saved, d_out: (permute(d_out, saved[1], saved[0]), None, None),
)
