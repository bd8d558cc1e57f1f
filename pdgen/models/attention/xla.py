"""Attention in plain XLA, for the CPU and any other device: loops over tiles whose bounds are the tile lists.

Parts are read in place, tile by tile. The equations are those of the package.

Axis legend: that of the package; lower case q and k are the queries and keys of a tile, and R = G * q.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pdgen.models.attention.intervals import MASKED, Intervals, KeysValues, Part, Tile
from pdgen.models.attention.tiles import TileList, join_intervals, list_tiles, seen_tiles

_State = TypeVar("_State")  # of a loop over tiles


def make_schedule(tile: Tile, intervals: tuple[Intervals, ...], num_keys: tuple[int, ...]) -> tuple[TileList, ...]:
    """List the blocks of keys of each part that each block of queries sees; rows that share a loop share a list."""
    batch, queries = intervals[0].k_start.shape
    shared = _share_loop(tile, batch, queries)
    lists = []
    for part, count in zip(intervals, num_keys, strict=True):
        size = Tile(min(tile.q, queries), min(tile.k, count))
        seen, _ = seen_tiles(join_intervals([part], [count]), size)
        seen = seen.any(0, keepdims=True) if shared else seen
        # No tile counts as whole: whether it is may depend on the other rows, and with it the order of a row's sums.
        lists.append(list_tiles(seen, jnp.zeros_like(seen)))
    return tuple(lists)


def forward(
    tile: Tile, q: jax.Array, parts: tuple[Part, ...], lists: tuple[TileList, ...]
) -> tuple[Float[Array, "B Q H h"], Float[Array, "B K G Q"]]:
    """Return the output and the log-sum-exp, which is 0 for queries that see nothing."""
    return _map_rows(functools.partial(_forward, tile), tile, (q, parts, lists))


def backward(
    tile: Tile,
    q: jax.Array,
    parts: tuple[Part, ...],
    lists: tuple[TileList, ...],
    out: jax.Array,
    lse: jax.Array,
    d_out: jax.Array,
) -> tuple[Float[Array, "B Q H h"], tuple[KeysValues, ...]]:
    """Return the gradients of the queries, and of each part's keys and values, in float32."""
    return _map_rows(functools.partial(_backward, tile), tile, (q, parts, lists, out, lse, d_out))


def _share_loop(tile: Tile, batch: int, queries: int) -> bool:
    """Tell whether all rows run in one loop.

    Rows that share a loop share its bounds. So each row longer than a tile has a loop of its own, while short rows, as
    in decoding, run together.
    """
    return queries <= tile.q or batch == 1


def _map_rows(function: Callable, tile: Tile, arguments: tuple) -> Any:
    """Call ``function(*arguments)``, with all rows together or row by row."""
    batch, queries = arguments[0].shape[:2]
    if _share_loop(tile, batch, queries):
        return function(*arguments)

    def run_row(row: tuple) -> Any:
        return jax.tree.map(lambda x: x[0], function(*jax.tree.map(lambda x: x[None], row)))

    return lax.map(run_row, arguments)


def _by_head(x: jax.Array, kv_heads: int) -> jax.Array:
    """Reshape [B, Q, H, ...] to [B, K, G, Q, ...]."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], kv_heads, -1, *x.shape[3:]), 1, 3)


def _from_heads(x: jax.Array) -> jax.Array:
    """Reshape [B, K, G, Q, h] to [B, Q, H, h]."""
    x = jnp.moveaxis(x, 3, 1)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _blocks(x: jax.Array, size: int, axis: int) -> jax.Array:
    """Split ``axis`` into zero-padded blocks of ``size``; the block number becomes the first axis."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, -x.shape[axis] % size)
    x = jnp.pad(x, pad)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :]), axis, 0)


def _join_blocks(blocks: jax.Array, length: int, axis: int) -> jax.Array:
    """Undo ``_blocks`` for an axis of ``length``."""
    x = jnp.moveaxis(blocks, 0, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return lax.slice_in_dim(x, 0, length, axis=axis)


def _key_block(j: jax.Array, size: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Return where block j starts (the last one is moved left to fit) and the numbers of its keys, -1 if masked."""
    start = jnp.minimum(j * size, length - size)
    index = start + jnp.arange(size)
    # The last block may overlap the one before it. The keys in common are masked, or they would count twice.
    return start, jnp.where(index >= j * size, index, -1)


def _key_tile(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """Slice a tile [B, K, size, h] out of keys or values [B, S, K, h]."""
    # Only the tile is transposed: the whole may be a large cache.
    return jnp.moveaxis(lax.dynamic_slice_in_dim(x, start, size, axis=1), 1, 2)


def _tile_mask(intervals: Intervals, q_index: jax.Array, start: jax.Array, k_index: jax.Array) -> jax.Array:
    """Return the mask [B, q, k] of a tile; ``intervals`` are those of the block's queries and of all keys."""
    mask = (intervals.k_start[..., None] <= k_index) & (k_index < intervals.k_end[..., None]) & (k_index >= 0)
    if intervals.q_start is not None and intervals.q_end is not None:
        first, end = (
            lax.dynamic_slice_in_dim(x, start, k_index.shape[0], axis=1)[:, None]
            for x in (intervals.q_start, intervals.q_end)
        )
        mask &= (first <= q_index[:, None]) & (q_index[:, None] < end)
    return mask


def _product(spec: str, *operands: jax.Array) -> jax.Array:
    """Compute an einsum with float32 sums; in ``spec`` q are the R rows of a key head and s the keys of a tile."""
    return jnp.einsum(spec, *operands, preferred_element_type=jnp.float32)


def _rows(x: jax.Array) -> jax.Array:
    """Reshape [B, K, G, q, ...] to [B, K, R, ...]: the queries of a key head become the rows of one matrix."""
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])


class _QueryBlock(NamedTuple):
    """An element of a loop over query blocks.

    Attributes:
      number: its number.
      queries: a pytree of arrays [B, K, G, q, ...] with the queries' values.
      seen: the first key in each part that the queries may see, and the last + 1.
      tiles: of each part the blocks of keys to visit, and how many they are.
    """

    number: jax.Array
    queries: Any
    seen: tuple[tuple[Int[Array, "B q"], Int[Array, "B q"]], ...]
    tiles: tuple[tuple[Int[Array, " m"], Int[Array, ""]], ...]

    def query_numbers(self, size: int) -> jax.Array:
        """Return the numbers [q] of its queries in the sequence; ``size`` is that of every block."""
        return self.number * size + jnp.arange(size)

    def restrict(self, parts: tuple[Part, ...]) -> Iterator[Part]:
        """Yield the parts with the intervals of this block's queries."""
        for part, (start, end) in zip(parts, self.seen):
            yield part._replace(intervals=part.intervals._replace(k_start=start, k_end=end))


def _query_blocks(size: int, queries: Any, parts: tuple[Part, ...], lists: tuple[TileList, ...]) -> _QueryBlock:
    """Return all blocks, stacked along a new first axis; ``queries`` are arrays [B, K, G, Q, ...]."""
    length = parts[0].intervals.k_start.shape[1]
    numbers = jnp.arange(-(-length // size))
    seen = tuple((_blocks(p.intervals.k_start, size, 1), _blocks(p.intervals.k_end, size, 1)) for p in parts)
    tiles = tuple((one.index[0], one.count[0]) for one in lists)  # of the rows, which share them
    return _QueryBlock(numbers, jax.tree.map(lambda x: _blocks(x, size, 3), queries), seen, tiles)


class _Softmax(NamedTuple):
    """State of the online softmax of a query block over the keys visited so far.

    Attributes:
      out: sum of exp(logit - top) * value.
      top: the largest logit.
      total: sum of exp(logit - top).
    """

    out: Float[Array, "B K R h"]
    top: Float[Array, "B K R"]
    total: Float[Array, "B K R"]


def _forward(
    tile: Tile, q: jax.Array, parts: tuple[Part, ...], lists: tuple[TileList, ...]
) -> tuple[jax.Array, jax.Array]:
    """Return ``forward`` of rows that share a loop."""
    length = q.shape[1]
    tile = Tile(min(tile.q, length), tile.k)
    blocks = _query_blocks(tile.q, _by_head(q, parts[0].k.shape[2]), parts, lists)
    out, lse = lax.map(functools.partial(_forward_block, tile, parts), blocks)
    return _from_heads(_join_blocks(out, length, 3)), _join_blocks(lse, length, 3)


def _forward_block(tile: Tile, parts: tuple[Part, ...], block: _QueryBlock) -> tuple[jax.Array, jax.Array]:
    """Return the output [B, K, G, q, h] and the log-sum-exp [B, K, G, q] of one query block."""
    index, rows = block.query_numbers(tile.q), _rows(block.queries)
    shape = rows.shape[:-1]
    state = _Softmax(jnp.zeros(rows.shape, jnp.float32), jnp.full(shape, MASKED), jnp.zeros(shape))
    for part, tiles in zip(block.restrict(parts), block.tiles):
        state = _visit_tiles(tile.k, index, part, tiles, functools.partial(_add_tile, rows, part), state)
    # Padding and queries that see nothing have a total of 0. Their output is 0, not 0 / 0.
    seen = state.total > 0
    out = state.out / jnp.where(seen, state.total, 1)[..., None]
    lse = jnp.where(seen, state.top + jnp.log(jnp.where(seen, state.total, 1)), 0)
    return out.reshape(block.queries.shape).astype(rows.dtype), lse.reshape(block.queries.shape[:-1])


def _grouped_mask(mask: jax.Array, rows: int) -> jax.Array:
    """Repeat a tile's mask [B, q, k] for the rows of ``_rows``: [B, 1, rows, k]."""
    batch, q, k = mask.shape
    return jnp.broadcast_to(mask[:, None, None], (batch, 1, rows // q, q, k)).reshape(batch, 1, rows, k)


def _visit_tiles(
    size: int,
    index: jax.Array,
    part: Part,
    tiles: tuple[jax.Array, jax.Array],
    add: Callable[[jax.Array, jax.Array, _State], _State],
    state: _State,
) -> _State:
    """Add the ``tiles`` of one part to the state of a block of queries with the numbers ``index`` [q].

    ``add`` takes the mask of a tile, its first key and the state.
    """
    size = min(size, part.k.shape[1])
    numbers, count = tiles

    def visit(t: jax.Array, state: _State) -> _State:
        start, k_index = _key_block(numbers[t], size, part.k.shape[1])
        # A tile without an allowed pair adds zeros. To skip it by a condition would copy whole gradients.
        return add(_tile_mask(part.intervals, index, start, k_index), start, state)

    return lax.fori_loop(0, count, visit, state)


def _add_tile(rows: jax.Array, part: Part, mask: jax.Array, start: jax.Array, state: _Softmax) -> _Softmax:
    """Add one tile to the online softmax; ``mask`` [B, q, k] is that of the keys from ``start`` on."""
    size = mask.shape[2]
    allowed = _grouped_mask(mask, rows.shape[2])
    k_tile, v_tile = _key_tile(part.k, start, size), _key_tile(part.v, start, size)
    logits = _product("bkqh,bksh->bkqs", rows, k_tile) * rows.shape[-1] ** -0.5
    logits = jnp.where(allowed, logits, MASKED)
    top = jnp.maximum(state.top, logits.max(-1))
    # In a row that has seen nothing yet, exp(MASKED - top) is 1. So masked weights are set to 0 explicitly.
    weights = jnp.where(allowed, jnp.exp(logits - top[..., None]), 0)
    shrink = jnp.exp(state.top - top)
    added = _product("bkqs,bksh->bkqh", weights.astype(part.v.dtype), v_tile)
    return _Softmax(state.out * shrink[..., None] + added, top, state.total * shrink + weights.sum(-1))


class _Rows(NamedTuple):
    """Values of each query in the backward pass.

    Attributes:
      q, d_out: the query and the gradient of its output.
      lse: log-sum-exp of its logits.
      delta: output times gradient of the output, summed over h.
    """

    q: Float[Array, "B K R h"]
    d_out: Float[Array, "B K R h"]
    lse: Float[Array, "B K R"]
    delta: Float[Array, "B K R"]


class _Gradients(NamedTuple):
    """Gradients, summed over the tiles visited so far: of a block's queries, and of one part's keys and values."""

    q: Float[Array, "B K R h"]
    k: Float[Array, "B K h S"]
    v: Float[Array, "B K h S"]


def _backward(
    tile: Tile,
    q: jax.Array,
    parts: tuple[Part, ...],
    lists: tuple[TileList, ...],
    out: jax.Array,
    lse: jax.Array,
    d_out: jax.Array,
) -> tuple[jax.Array, tuple[KeysValues, ...]]:
    """Return ``backward`` of rows that share a loop, in one pass over the tiles."""
    length = q.shape[1]
    tile = Tile(min(tile.q, length), tile.k)
    kv_heads = parts[0].k.shape[2]
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
    rows = _Rows(_by_head(q, kv_heads), _by_head(d_out, kv_heads), lse, _by_head(delta, kv_heads))
    zeros = tuple(KeysValues(_zeros_tokens_last(part.k), _zeros_tokens_last(part.v)) for part in parts)
    blocks = _query_blocks(tile.q, rows, parts, lists)
    d_parts, d_q = lax.scan(functools.partial(_backward_block, tile, parts), zeros, blocks)
    d_q = _from_heads(_join_blocks(d_q, length, 3))
    return d_q, tuple(KeysValues(_tokens_first(d.k), _tokens_first(d.v)) for d in d_parts)


def _zeros_tokens_last(x: jax.Array) -> jax.Array:
    """Return float32 zeros [B, K, h, S] for keys or values [B, S, K, h]."""
    return jnp.zeros(jnp.moveaxis(x, 1, 3).shape, jnp.float32)


def _tokens_first(x: jax.Array) -> jax.Array:
    """Transpose [B, K, h, S] to [B, S, K, h]."""
    return jnp.moveaxis(x, 3, 1)


def _backward_block(
    tile: Tile, parts: tuple[Part, ...], d_parts: tuple[KeysValues, ...], block: _QueryBlock
) -> tuple[tuple[KeysValues, ...], jax.Array]:
    """Add one query block to the parts' gradients, and return the gradient [B, K, G, q, h] of its queries."""
    index, rows = block.query_numbers(tile.q), _Rows(*(_rows(x) for x in block.queries))
    d_q = jnp.zeros(rows.q.shape, jnp.float32)
    updated = []
    for part, tiles, d_part in zip(block.restrict(parts), block.tiles, d_parts):
        add = functools.partial(_add_tile_gradients, rows, part)
        d_q, d_k, d_v = _visit_tiles(tile.k, index, part, tiles, add, _Gradients(d_q, *d_part))
        updated.append(KeysValues(d_k, d_v))
    return tuple(updated), d_q.reshape(block.queries.q.shape)


def _add_tile_gradients(
    rows: _Rows, part: Part, mask: jax.Array, start: jax.Array, gradients: _Gradients
) -> _Gradients:
    """Add the gradients of one tile; the equations are in the package's docstring."""
    size, scale = mask.shape[2], rows.q.shape[-1] ** -0.5
    k_tile, v_tile = _key_tile(part.k, start, size), _key_tile(part.v, start, size)
    logits = _product("bkqh,bksh->bkqs", rows.q, k_tile) * scale
    weights = jnp.where(_grouped_mask(mask, rows.q.shape[2]), jnp.exp(logits - rows.lse[..., None]), 0)
    d_weights = _product("bkqh,bksh->bkqs", rows.d_out, v_tile)
    d_logits = (weights * (d_weights - rows.delta[..., None]) * scale).astype(rows.q.dtype)
    return _Gradients(
        gradients.q + _product("bkqs,bksh->bkqh", d_logits, k_tile),
        # Tokens are the last axis, so the product needs no transposition before it is added.
        _add_slice(gradients.k, _product("bkqh,bkqs->bkhs", rows.q, d_logits), start),
        _add_slice(gradients.v, _product("bkqh,bkqs->bkhs", rows.d_out, weights.astype(rows.q.dtype)), start),
    )


def _add_slice(total: jax.Array, piece: jax.Array, start: jax.Array) -> jax.Array:
    old = lax.dynamic_slice_in_dim(total, start, piece.shape[3], axis=3)
    return lax.dynamic_update_slice_in_dim(total, old + piece, start, axis=3)
