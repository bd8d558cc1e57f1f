"""Attention for NVIDIA GPUs: three Pallas kernels in Triton, for the result, for dq, and for dk and dv.

A program has one block of queries and one head, or one block of keys and its group of heads, and visits the tiles of
its list. It first visits those that need no mask. On a CPU the kernels run in Pallas's interpreter, for tests.

Axis legend: that of the package; P parts, n and m blocks (``tiles``); q and k the queries and keys of a tile.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from pdgen.models.attention import joined
from pdgen.models.attention.intervals import MASKED, Intervals, KeysValues, Part, Tile
from pdgen.models.attention.joined import Schedule
from pdgen.models.attention.tiles import JoinedIntervals, TileList
from pdgen.sharding import get_platform

# On an H100 these hold all operands in registers. 128 x 128, and 128 x 64 backward, spill.
FORWARD = Tile(128, 64)
BACKWARD = Tile(64, 64)
PADDED = Tile(128, 128)  # multiples of both
_State = TypeVar("_State")  # of a loop over tiles
_LOG2_E = math.log2(math.e)
_PARAMS = plgpu.CompilerParams(num_warps=8, num_stages=2)


def make_schedule(tile: Tile, intervals: tuple[Intervals, ...], num_keys: tuple[int, ...]) -> Schedule:
    """Return the schedule of the kernels, whose tiles are their own."""
    del tile
    return joined.make_schedule(FORWARD, BACKWARD, PADDED, intervals, num_keys)


def forward(
    tile: Tile, q: jax.Array, parts: tuple[Part, ...], schedule: Schedule
) -> tuple[Float[Array, "B Q H h"], Float[Array, "B H _"]]:
    """Return the output and the log-sum-exp to base 2, which is 0 for queries that see nothing."""
    del tile
    queries, keys = _pad_inputs(q, parts, schedule)
    batch, tokens, heads, _ = queries.shape
    specs = _query_specs(FORWARD, queries, keys, schedule.intervals, schedule.forward)
    out, lse = pl.pallas_call(
        functools.partial(_forward_kernel, q.shape[-1] ** -0.5),
        grid=(tokens // FORWARD.q, batch, heads),
        in_specs=[specs.tiles, specs.intervals, specs.keys, specs.queries],
        out_specs=[specs.queries, specs.values],
        out_shape=[_like(queries), jax.ShapeDtypeStruct((batch, heads, tokens), jnp.float32)],
        compiler_params=_PARAMS,
        interpret=get_platform() == "cpu",
        name="interval_attention",
    )(schedule.forward, schedule.intervals, keys, queries)
    return out[:, : q.shape[1], :, : q.shape[3]], lse


def backward(
    tile: Tile,
    q: jax.Array,
    parts: tuple[Part, ...],
    schedule: Schedule,
    out: jax.Array,
    lse: jax.Array,
    d_out: jax.Array,
) -> tuple[Float[Array, "B Q H h"], tuple[KeysValues, ...]]:
    """Return the gradients of the queries, and of each part's keys and values, in their dtypes."""
    del tile
    queries, keys = _pad_inputs(q, parts, schedule)
    batch, tokens, heads, size = queries.shape
    kv_heads = keys.k.shape[2]
    rows = _Rows(queries, joined.pad(d_out, tokens, size), lse, joined.sum_products(out, d_out, tokens))
    call = functools.partial(pl.pallas_call, compiler_params=_PARAMS, interpret=get_platform() == "cpu")

    specs = _query_specs(BACKWARD, queries, keys, schedule.intervals, schedule.d_q)
    d_q = call(
        functools.partial(_d_q_kernel, q.shape[-1] ** -0.5),
        grid=(tokens // BACKWARD.q, batch, heads),
        in_specs=[specs.tiles, specs.intervals, specs.keys, specs.rows],
        out_specs=specs.queries,
        out_shape=_like(queries),
        name="interval_attention_dq",
    )(schedule.d_q, schedule.intervals, keys, rows)

    specs = _key_specs(BACKWARD, queries, keys, schedule.intervals, schedule.d_kv)
    d_k, d_v = call(
        functools.partial(_d_kv_kernel, q.shape[-1] ** -0.5),
        grid=(keys.k.shape[1] // BACKWARD.k, batch, kv_heads),
        in_specs=[specs.tiles, specs.intervals, specs.keys, specs.rows],
        out_specs=[specs.keys.k, specs.keys.v],
        out_shape=[_like(keys.k), _like(keys.v)],
        name="interval_attention_dkv",
    )(schedule.d_kv, schedule.intervals, keys, rows)
    return d_q[:, : q.shape[1], :, : q.shape[3]], joined.split_parts(KeysValues(d_k, d_v), parts)


class _Rows(NamedTuple):
    """Values of each query in the backward pass, or how they are divided into blocks.

    Attributes:
      q, d_out: the query and the gradient of its output.
      lse: log-sum-exp of its logits, to base 2.
      delta: output times gradient of the output, summed over h.
    """

    q: Any
    d_out: Any
    lse: Any
    delta: Any


class _Specs(NamedTuple):
    """The blocks of a kernel's arguments that one program has.

    Attributes:
      tiles, intervals, keys: those of the arguments of these types.
      queries: of arrays [B, Q, H, h].
      values: of arrays [B, H, Q].
    """

    tiles: TileList
    intervals: JoinedIntervals
    keys: KeysValues
    queries: pl.BlockSpec
    values: pl.BlockSpec

    @property
    def rows(self) -> _Rows:
        """The blocks of ``_Rows``."""
        return _Rows(self.queries, self.queries, self.values, self.values)


def _pad_inputs(q: jax.Array, parts: tuple[Part, ...], schedule: Schedule) -> tuple[jax.Array, KeysValues]:
    """Pad the queries and join the parts."""
    # Triton's tensors have powers of two as sizes, and its products at least 16.
    size = max(16, 1 << (q.shape[-1] - 1).bit_length())
    tokens, num_keys = schedule.intervals.k_start.shape[-1], schedule.intervals.q_start.shape[-1]
    return joined.pad(q, tokens, size), joined.join_parts(parts, num_keys, size)


def _like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _list_spec(tiles: TileList) -> TileList:
    """Return the blocks of a list in a grid (block, row, head): the list of one block."""
    one = pl.BlockSpec((None, None), lambda i, b, n: (b, i))
    return TileList._make((pl.BlockSpec((None, None, tiles.index.shape[-1]), lambda i, b, n: (b, i, 0)), one, one))


def _query_specs(
    tile: Tile, queries: jax.Array, keys: KeysValues, intervals: JoinedIntervals, tiles: TileList
) -> _Specs:
    """Return the blocks in a grid (block of queries, row, query head): all keys of the head."""
    _, num_keys, kv_heads, size = keys.k.shape
    group = queries.shape[2] // kv_heads
    by_query = pl.BlockSpec((None, intervals.k_start.shape[1], tile.q), lambda i, b, n: (b, 0, i))
    by_key = pl.BlockSpec((None, num_keys), lambda i, b, n: (b, 0))
    key = pl.BlockSpec((None, num_keys, None, size), lambda i, b, n: (b, 0, n // group, 0))
    return _Specs(
        _list_spec(tiles),
        JoinedIntervals._make((by_query, by_query, by_key, by_key)),
        KeysValues._make((key, key)),
        pl.BlockSpec((None, tile.q, None, size), lambda i, b, n: (b, i, n, 0)),
        pl.BlockSpec((None, None, tile.q), lambda i, b, n: (b, n, i)),
    )


def _key_specs(tile: Tile, queries: jax.Array, keys: KeysValues, intervals: JoinedIntervals, tiles: TileList) -> _Specs:
    """Return the blocks in a grid (block of keys, row, key head): all queries of the head's group."""
    _, tokens, heads, size = queries.shape
    group = heads // keys.k.shape[2]
    by_query = pl.BlockSpec((None, intervals.k_start.shape[1], tokens), lambda j, b, n: (b, 0, 0))
    by_key = pl.BlockSpec((None, tile.k), lambda j, b, n: (b, j))
    key = pl.BlockSpec((None, tile.k, None, size), lambda j, b, n: (b, j, n, 0))
    return _Specs(
        _list_spec(tiles),
        JoinedIntervals._make((by_query, by_query, by_key, by_key)),
        KeysValues._make((key, key)),
        pl.BlockSpec((None, tokens, group, size), lambda j, b, n: (b, 0, n, 0)),
        pl.BlockSpec((None, group, tokens), lambda j, b, n: (b, n, 0)),
    )


def _visit_tiles(tiles: TileList, add: Callable[[bool, jax.Array, _State], _State], state: _State) -> _State:
    """Add the blocks of a list; ``add`` takes whether to mask the tile, the number of its block, and the state."""
    whole, count = tiles.whole[()], tiles.count[()]
    for masked, first, end in ((False, 0, whole), (True, whole, count)):
        state = lax.fori_loop(first, end, lambda t, s, masked=masked: add(masked, tiles.index[t], s), state)
    return state


def _queries_by_keys(tile: Tile, intervals: JoinedIntervals, first_query: jax.Array, first_key: jax.Array) -> jax.Array:
    """Return the mask [q, k] of a tile; the program has the intervals of its own queries and of all keys."""
    q, k = first_query + jnp.arange(tile.q)[:, None], first_key + jnp.arange(tile.k)[None]
    keys = pl.ds(first_key, tile.k)
    allowed = (intervals.q_start[keys][None] <= q) & (q < intervals.q_end[keys][None])
    seen = [
        (intervals.k_start[part, :][:, None] <= k) & (k < intervals.k_end[part, :][:, None])
        for part in range(intervals.k_start.shape[0])
    ]
    return allowed & functools.reduce(jnp.logical_or, seen)


def _keys_by_queries(tile: Tile, intervals: JoinedIntervals, first_query: jax.Array, first_key: jax.Array) -> jax.Array:
    """Return the mask [k, q] of a tile; the program has the intervals of its own keys and of all queries."""
    q, k = first_query + jnp.arange(tile.q)[None], first_key + jnp.arange(tile.k)[:, None]
    queries = pl.ds(first_query, tile.q)
    allowed = (intervals.q_start[...][:, None] <= q) & (q < intervals.q_end[...][:, None])
    seen = [
        (intervals.k_start[part, queries][None] <= k) & (k < intervals.k_end[part, queries][None])
        for part in range(intervals.k_start.shape[0])
    ]
    return allowed & functools.reduce(jnp.logical_or, seen)


def _forward_kernel(
    scale: float,
    tiles: TileList,
    intervals: JoinedIntervals,
    keys: KeysValues,
    q_ref: Any,
    out_ref: Any,
    lse_ref: Any,
) -> None:
    """Compute the result of one block of queries and one head by an online softmax."""
    q, first_query = q_ref[...], pl.program_id(0) * FORWARD.q

    def add(masked: bool, block: jax.Array, state: tuple) -> tuple:
        out, top, total = state
        first_key = block * FORWARD.k
        tile = pl.ds(first_key, FORWARD.k)
        logits = plgpu.dot(q, keys.k[tile, :].T) * (scale * _LOG2_E)
        if masked:
            allowed = _queries_by_keys(FORWARD, intervals, first_query, first_key)
            logits = jnp.where(allowed, logits, MASKED)
        new_top = jnp.maximum(top, logits.max(-1))
        weights = jnp.exp2(logits - new_top[:, None])
        shrink = jnp.exp2(top - new_top)
        out = out * shrink[:, None] + plgpu.dot(weights.astype(keys.v.dtype), keys.v[tile, :])
        return out, new_top, total * shrink + weights.sum(-1)

    # Half of MASKED: in a row that has seen nothing yet, the weight exp2(MASKED - top) is 0.
    top = jnp.full(q.shape[:1], MASKED / 2, jnp.float32)
    start = jnp.zeros(q.shape, jnp.float32), top, jnp.zeros(q.shape[:1])
    out, top, total = _visit_tiles(tiles, add, start)
    seen = total > 0
    total = jnp.where(seen, total, 1.0)
    out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
    lse_ref[...] = jnp.where(seen, top + jnp.log2(total), 0.0)


def _d_q_kernel(
    scale: float, tiles: TileList, intervals: JoinedIntervals, keys: KeysValues, rows: _Rows, d_q_ref: Any
) -> None:
    """Compute dq of one block of queries and one head."""
    q, d_out, lse, delta = (x[...] for x in rows)
    first_query = pl.program_id(0) * BACKWARD.q

    def add(masked: bool, block: jax.Array, d_q: jax.Array) -> jax.Array:
        first_key = block * BACKWARD.k
        tile = pl.ds(first_key, BACKWARD.k)
        k = keys.k[tile, :]
        weights = jnp.exp2(plgpu.dot(q, k.T) * (scale * _LOG2_E) - lse[:, None])
        if masked:
            weights = jnp.where(_queries_by_keys(BACKWARD, intervals, first_query, first_key), weights, 0.0)
        d_weights = plgpu.dot(d_out, keys.v[tile, :].T)
        d_logits = weights * (d_weights - delta[:, None]) * scale
        return d_q + plgpu.dot(d_logits.astype(k.dtype), k)

    d_q_ref[...] = _visit_tiles(tiles, add, jnp.zeros(q.shape, jnp.float32)).astype(d_q_ref.dtype)


def _d_kv_kernel(
    scale: float,
    tiles: TileList,
    intervals: JoinedIntervals,
    keys: KeysValues,
    rows: _Rows,
    d_k_ref: Any,
    d_v_ref: Any,
) -> None:
    """Compute dk and dv of one block of keys, summed over the query heads of its group."""
    k, v = keys.k[...], keys.v[...]
    first_key = pl.program_id(0) * BACKWARD.k

    def add(head: jax.Array, masked: bool, block: jax.Array, state: tuple) -> tuple:
        d_k, d_v = state
        first_query = block * BACKWARD.q
        tile = pl.ds(first_query, BACKWARD.q)
        q, d_out = rows.q[tile, head, :], rows.d_out[tile, head, :]
        # Tiles are [k, q] here, so that no accumulated product has a transposed operand.
        weights = jnp.exp2(plgpu.dot(k, q.T) * (scale * _LOG2_E) - rows.lse[head, tile][None])
        if masked:
            weights = jnp.where(_keys_by_queries(BACKWARD, intervals, first_query, first_key), weights, 0.0)
        d_v = d_v + plgpu.dot(weights.astype(d_out.dtype), d_out)
        d_weights = plgpu.dot(v, d_out.T)
        d_logits = weights * (d_weights - rows.delta[head, tile][None]) * scale
        return d_k + plgpu.dot(d_logits.astype(q.dtype), q), d_v

    def add_head(head: jax.Array, state: tuple) -> tuple:
        return _visit_tiles(tiles, functools.partial(add, head), state)

    zeros = jnp.zeros(k.shape, jnp.float32)
    d_k, d_v = lax.fori_loop(0, rows.lse.shape[0], add_head, (zeros, zeros))
    d_k_ref[...], d_v_ref[...] = d_k.astype(d_k_ref.dtype), d_v.astype(d_v_ref.dtype)
