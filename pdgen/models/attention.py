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
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from pdgen.config import ComputeConfig

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


class KeysValues(NamedTuple):
    """Keys (normalised and rotated) and values."""

    k: Float[Array, "*L B S K h"]
    v: Float[Array, "*L B S K h"]


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


def run_attention(compute: ComputeConfig, q: Float[Array, "B Q H h"], parts: list[Part]) -> Float[Array, "B Q H h"]:
    """Attention as ``compute.attention`` asks for it: "dense", or else by tiles of the sizes in ``compute``."""
    if compute.attention == "dense":
        return attend_dense(q, parts)
    return attend(q, parts, Tile(compute.block_q, compute.block_k))


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
    # Masked twice: a row that sees nothing would otherwise share its weight among all keys.
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

    parts = tuple(parts)
    if q.shape[1] <= tile.q or q.shape[0] == 1:
        return _attend(tile, q, parts)
    # A loop's bounds cover all rows that share it, so each long row gets a loop of its own.
    return lax.map(functools.partial(_attend_row, tile), (q, parts))


def _attend_row(tile: Tile, row: tuple[jax.Array, tuple[Part, ...]]) -> jax.Array:
    """One row of the batch, without the batch axis."""
    q, parts = jax.tree.map(lambda x: x[None], row)
    return _attend(tile, q, parts)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(tile: Tile, q: jax.Array, parts: tuple[Part, ...]) -> jax.Array:
    return _forward(tile, q, parts)[0]


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
    # A query that sees nothing (padding, say) must not widen what the whole block visits.
    empty = end <= start
    low = jnp.min(jnp.where(empty, jnp.iinfo(jnp.int32).max, start))
    high = jnp.max(jnp.where(empty, 0, end))
    return jnp.minimum(low, high) // size, -(-high // size)


def _key_block(j: jax.Array, size: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Where block j starts (the last one is moved left to fit) and the key numbers it answers for."""
    start = jnp.minimum(j * size, length - size)
    index = start + jnp.arange(size)
    # The last block then overlaps the one before: its first keys are masked, or they would count twice.
    return start, jnp.where(index >= j * size, index, -1)


def _key_tile(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """[B, K, size, h] of keys or values [B, S, K, h]; tiles are turned, never the whole, which may be a cache."""
    return jnp.moveaxis(lax.dynamic_slice_in_dim(x, start, size, axis=1), 1, 2)


def _tile_mask(intervals: Intervals, q_index: jax.Array, start: jax.Array, k_index: jax.Array) -> jax.Array:
    """[B, q, k] of one tile; ``intervals.k_*`` are the block's, ``q_*`` all keys'."""
    mask = (intervals.k_start[..., None] <= k_index) & (k_index < intervals.k_end[..., None]) & (k_index >= 0)
    if intervals.q_start is not None:
        first, last = (
            lax.dynamic_slice_in_dim(x, start, k_index.shape[0], axis=1)[:, None]
            for x in (intervals.q_start, intervals.q_end)
        )
        mask &= (first <= q_index[:, None]) & (q_index[:, None] < last)
    return mask


def _product(spec: str, *operands: jax.Array) -> jax.Array:
    """An einsum accumulated in float32; rows of a matrix ``q`` are all queries of one key head, s keys."""
    return jnp.einsum(spec, *operands, preferred_element_type=jnp.float32)


def _rows(x: jax.Array) -> jax.Array:
    """[B, K, G, q, ...] to [B, K, G * q, ...]: the queries of a key head as rows of one matrix."""
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])


class _KeyRange(NamedTuple):
    """The keys that each query of a block may see: first and last+1, [B, q]."""

    start: jax.Array
    end: jax.Array


class _QueryBlock(NamedTuple):
    """What a loop over query blocks visits.

    Attributes:
      number: of the block.
      queries: what belongs to its queries, arrays [B, K, G, q, ...].
      seen: of each part.
    """

    number: jax.Array
    queries: Any
    seen: tuple[_KeyRange, ...]

    def index(self, size: int) -> jax.Array:
        """[q], the numbers of its queries in the sequence; ``size`` is that of every block."""
        return self.number * size + jnp.arange(size)

    def restrict(self, parts: tuple[Part, ...]) -> Iterator[Part]:
        """The parts with the intervals of this block's queries."""
        for part, seen in zip(parts, self.seen):
            yield part._replace(intervals=part.intervals._replace(k_start=seen.start, k_end=seen.end))


def _query_blocks(size: int, queries: Any, parts: tuple[Part, ...]) -> _QueryBlock:
    """All blocks, stacked along a new first axis; ``queries`` are arrays [B, K, G, Q, ...]."""
    length = parts[0].intervals.k_start.shape[1]
    numbers = jnp.arange(-(-length // size))
    seen = tuple(
        _KeyRange(_blocks(part.intervals.k_start, size, 1), _blocks(part.intervals.k_end, size, 1)) for part in parts
    )
    return _QueryBlock(numbers, jax.tree.map(lambda x: _blocks(x, size, 3), queries), seen)


class _Softmax(NamedTuple):
    """The online softmax of a query block over the keys visited so far; rows R = G * q.

    Attributes:
      out: sum of exp(logit - top) times the value.
      top: the largest logit.
      total: sum of exp(logit - top).
    """

    out: Float[Array, "B K R h"]
    top: Float[Array, "B K R"]
    total: Float[Array, "B K R"]


def _forward(tile: Tile, q: jax.Array, parts: tuple[Part, ...]) -> tuple[jax.Array, jax.Array]:
    """Output [B, Q, H, h] and log-sum-exp [B, K, G, Q] (0 where nothing is seen), by online softmax."""
    length = q.shape[1]
    tile = Tile(min(tile.q, length), tile.k)
    blocks = _query_blocks(tile.q, _by_head(q, parts[0].k.shape[2]), parts)
    out, lse = lax.map(functools.partial(_forward_block, tile, parts), blocks)
    return _from_heads(_unblocks(out, length, 3)), _unblocks(lse, length, 3)


def _forward_block(tile: Tile, parts: tuple[Part, ...], block: _QueryBlock) -> tuple[jax.Array, jax.Array]:
    """Output [B, K, G, q, h] and log-sum-exp [B, K, G, q] of one query block."""
    index, rows = block.index(tile.q), _rows(block.queries)
    shape = rows.shape[:-1]
    state = _Softmax(jnp.zeros(rows.shape, jnp.float32), jnp.full(shape, MASKED), jnp.zeros(shape))
    for part in block.restrict(parts):
        state = _visit_keys(tile.k, index, rows, part, state)
    # Padding and rows that see nothing have a total of 0: they get zeros, and no division by 0.
    seen = state.total > 0
    out = state.out / jnp.where(seen, state.total, 1)[..., None]
    lse = jnp.where(seen, state.top + jnp.log(jnp.where(seen, state.total, 1)), 0)
    return out.reshape(block.queries.shape).astype(rows.dtype), lse.reshape(block.queries.shape[:-1])


def _grouped_mask(mask: jax.Array, rows: int) -> jax.Array:
    """A tile's mask [B, q, k] for the rows of ``_rows``: [B, 1, rows, k]."""
    batch, q, k = mask.shape
    return jnp.broadcast_to(mask[:, None, None], (batch, 1, rows // q, q, k)).reshape(batch, 1, rows, k)


def _visit_keys(size: int, index: jax.Array, rows: jax.Array, part: Part, state: _Softmax) -> _Softmax:
    """Adds the key blocks of one part that a query block may see; ``index`` [q], ``rows`` [B, K, R, h]."""
    size = min(size, part.k.shape[1])

    def visit(j: jax.Array, state: _Softmax) -> _Softmax:
        start, k_index = _key_block(j, size, part.k.shape[1])
        mask = _tile_mask(part.intervals, index, start, k_index)
        add = functools.partial(_add_tile, rows, part, mask, start)
        # The bounds are the block's outermost; a tile between them may still be empty.
        return lax.cond(mask.any(), add, lambda state: state, state)

    return lax.fori_loop(*_bounds(part.intervals, size), visit, state)


def _add_tile(rows: jax.Array, part: Part, mask: jax.Array, start: jax.Array, state: _Softmax) -> _Softmax:
    """One step of the online softmax; ``mask`` [B, q, k] is of the keys from ``start`` on."""
    size = mask.shape[2]
    allowed = _grouped_mask(mask, rows.shape[2])
    k_tile, v_tile = _key_tile(part.k, start, size), _key_tile(part.v, start, size)
    logits = _product("bkqh,bksh->bkqs", rows, k_tile) * rows.shape[-1] ** -0.5
    logits = jnp.where(allowed, logits, MASKED)
    top = jnp.maximum(state.top, logits.max(-1))
    # exp(MASKED - top) is 1 in a row that has seen nothing yet, so masked weights are set to 0 once more.
    weights = jnp.where(allowed, jnp.exp(logits - top[..., None]), 0)
    shrink = jnp.exp(state.top - top)
    added = _product("bkqs,bksh->bkqh", weights.astype(part.v.dtype), v_tile)
    return _Softmax(state.out * shrink[..., None] + added, top, state.total * shrink + weights.sum(-1))


class _Saved(NamedTuple):
    """What the backward pass needs of the forward pass."""

    q: jax.Array
    parts: tuple[Part, ...]
    out: jax.Array
    lse: jax.Array


def _attend_fwd(tile: Tile, q: jax.Array, parts: tuple[Part, ...]) -> tuple[jax.Array, _Saved]:
    # Named for remat policies: rebuilding these two costs the whole forward pass.
    out, lse = (checkpoint_name(x, ATTENTION) for x in _forward(tile, q, parts))
    return out, _Saved(q, parts, out, lse)


class _Rows(NamedTuple):
    """What the backward pass knows of each query; rows R = G * q.

    Attributes:
      q, d_out: the query and its output's gradient.
      lse: log-sum-exp of its logits.
      delta: its output times the output's gradient, summed over h.
    """

    q: Float[Array, "B K R h"]
    d_out: Float[Array, "B K R h"]
    lse: Float[Array, "B K R"]
    delta: Float[Array, "B K R"]


class _Gradients(NamedTuple):
    """Sums over the tiles visited so far: of a block's query rows, and of one part's keys and values, tokens last."""

    q: Float[Array, "B K R h"]
    k: Float[Array, "B K h S"]
    v: Float[Array, "B K h S"]


def _attend_bwd(tile: Tile, saved: _Saved, d_out: jax.Array) -> tuple:
    """One pass over the tiles: weights are rebuilt from the merged log-sum-exp of all parts."""
    q, parts, out, lse = saved
    length = q.shape[1]
    tile = Tile(min(tile.q, length), tile.k)
    kv_heads = parts[0].k.shape[2]
    # d logit = weight * (d weight - delta): the softmax's own gradient, without its matrix of weights.
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
    rows = _Rows(_by_head(q, kv_heads), _by_head(d_out, kv_heads), lse, _by_head(delta, kv_heads))
    zeros = tuple(KeysValues(_zeros_tokens_last(part.k), _zeros_tokens_last(part.v)) for part in parts)
    blocks = _query_blocks(tile.q, rows, parts)
    d_parts, d_q = lax.scan(functools.partial(_backward_block, tile, parts), zeros, blocks)
    d_q = _from_heads(_unblocks(d_q, length, 3)).astype(q.dtype)
    # Intervals are integers, which have no gradient.
    return d_q, tuple(
        Part(_tokens_first(d.k).astype(part.k.dtype), _tokens_first(d.v).astype(part.v.dtype), None)
        for d, part in zip(d_parts, parts)
    )


def _zeros_tokens_last(x: jax.Array) -> jax.Array:
    """Float32 zeros [B, K, h, S] for keys or values [B, S, K, h]."""
    return jnp.zeros(jnp.moveaxis(x, 1, 3).shape, jnp.float32)


def _tokens_first(x: jax.Array) -> jax.Array:
    """[B, K, h, S] to [B, S, K, h]."""
    return jnp.moveaxis(x, 3, 1)


def _backward_block(
    tile: Tile, parts: tuple[Part, ...], d_parts: tuple[KeysValues, ...], block: _QueryBlock
) -> tuple[tuple[KeysValues, ...], jax.Array]:
    """The parts' gradients with one query block's share, and the gradient [B, K, G, q, h] of its queries."""
    index, rows = block.index(tile.q), _Rows(*(_rows(x) for x in block.queries))
    d_q = jnp.zeros(rows.q.shape, jnp.float32)
    done = []
    for part, d_part in zip(block.restrict(parts), d_parts):
        d_q, d_k, d_v = _revisit_keys(tile.k, index, rows, part, _Gradients(d_q, *d_part))
        done.append(KeysValues(d_k, d_v))
    return tuple(done), d_q.reshape(block.queries.q.shape)


def _revisit_keys(size: int, index: jax.Array, rows: _Rows, part: Part, gradients: _Gradients) -> _Gradients:
    """Adds the gradients of the tiles that ``_visit_keys`` visited."""
    size = min(size, part.k.shape[1])

    def visit(j: jax.Array, gradients: _Gradients) -> _Gradients:
        start, k_index = _key_block(j, size, part.k.shape[1])
        mask = _tile_mask(part.intervals, index, start, k_index)
        add = functools.partial(_add_tile_gradients, rows, part, mask, start)
        return lax.cond(mask.any(), add, lambda gradients: gradients, gradients)

    return lax.fori_loop(*_bounds(part.intervals, size), visit, gradients)


def _add_tile_gradients(
    rows: _Rows, part: Part, mask: jax.Array, start: jax.Array, gradients: _Gradients
) -> _Gradients:
    size, scale = mask.shape[2], rows.q.shape[-1] ** -0.5
    k_tile, v_tile = _key_tile(part.k, start, size), _key_tile(part.v, start, size)
    logits = _product("bkqh,bksh->bkqs", rows.q, k_tile) * scale
    weights = jnp.where(_grouped_mask(mask, rows.q.shape[2]), jnp.exp(logits - rows.lse[..., None]), 0)
    d_weights = _product("bkqh,bksh->bkqs", rows.d_out, v_tile)
    d_logits = (weights * (d_weights - rows.delta[..., None]) * scale).astype(rows.q.dtype)
    return _Gradients(
        gradients.q + _product("bkqs,bksh->bkqh", d_logits, k_tile),
        # Tokens last, so that a tile's product is added to a slice of the sum as it comes.
        _add_slice(gradients.k, _product("bkqh,bkqs->bkhs", rows.q, d_logits), start),
        _add_slice(gradients.v, _product("bkqh,bkqs->bkhs", rows.d_out, weights.astype(rows.q.dtype)), start),
    )


def _add_slice(total: jax.Array, piece: jax.Array, start: jax.Array) -> jax.Array:
    old = lax.dynamic_slice_in_dim(total, start, piece.shape[3], axis=3)
    return lax.dynamic_update_slice_in_dim(total, old + piece, start, axis=3)


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
