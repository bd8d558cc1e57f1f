"""Attention for TPUs: three Pallas kernels in Mosaic, for the result, for dq, and for dk and dv.

The grid of a kernel is its list of tiles, whose length is known only at run time. All rows of the batch are one
sequence here: row b has the queries from b Q on and the keys from b S on. The tiles of a block follow each other, so
its sums stay in the core's memory. Tiles are [k, q]: values of a query lie along the lanes, and only k and v are ever
transposed for a product. On a CPU the kernels run in Pallas's interpreter, for tests.

Axis legend: that of the package; P parts, N = B Q queries and M = B S keys of all rows, T tiles, n and m blocks
(``tiles``); q and k the queries and keys of a tile.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pdgen.models.attention import joined
from pdgen.models.attention.intervals import MASKED, Intervals, KeysValues, Part, Tile
from pdgen.models.attention.tiles import JoinedIntervals, TileList
from pdgen.sharding import get_platform

LARGEST = Tile(512, 512)
_LANES = 128  # of a vector register
_FIRST, _LAST, _MASKED = 1, 2, 4  # what is special about a tile of a list


class TileOrder(NamedTuple):
    """The tiles of a kernel in the order of its visits, block after block of the side whose sums it computes.

    Attributes:
      own, other: block of this side and of the other one. Each block of its own side has at least one tile.
      kind: sum of _FIRST and _LAST, if it is the first or last of its block, and _MASKED, if it needs a mask.
      total: how many tiles there are; the rest of the arrays is unused.
    """

    own: Int[Array, " T"]
    other: Int[Array, " T"]
    kind: Int[Array, " T"]
    total: Int[Array, " 1"]


class Schedule(NamedTuple):
    """The joined and padded intervals of rows, and the tiles of the kernels: of the result and dq; of dk and dv."""

    intervals: JoinedIntervals
    by_query: TileOrder
    by_key: TileOrder


def make_schedule(tile: Tile, intervals: tuple[Intervals, ...], num_keys: tuple[int, ...]) -> Schedule:
    """Return the schedule of the kernels, whose tiles are their own."""
    del tile
    tile = _choose_tile(intervals[0].k_start.shape[1], sum(num_keys))
    lists = joined.make_schedule(tile, tile, tile, intervals, num_keys)
    return Schedule(lists.intervals, _order_tiles(lists.d_q), _order_tiles(lists.d_kv))


def forward(
    tile: Tile, q: jax.Array, parts: tuple[Part, ...], schedule: Schedule
) -> tuple[Float[Array, "B Q H h"], Float[Array, "H 1 N"]]:
    """Return the output and the log-sum-exp, which is 0 for queries that see nothing."""
    del tile
    inputs = _prepare(q, parts, schedule)
    heads, tokens, size = inputs.q.shape
    tile = inputs.tile
    specs = _make_specs(inputs, inner=1, queries_are_own=True)
    out, lse = _call(
        functools.partial(_forward_kernel, tile, q.shape[-1] ** -0.5),
        grid=(heads, schedule.by_query, 1),
        in_specs=[specs.intervals, specs.keys, specs.queries],
        out_specs=[specs.queries, specs.values],
        out_shape=[_like(inputs.q), jax.ShapeDtypeStruct((heads, 1, tokens), jnp.float32)],
        scratch=[(size, tile.q), (1, tile.q), (1, tile.q)],
        name="interval_attention",
    )(inputs.intervals, inputs.keys, inputs.q)
    return _from_heads(out, q.shape), lse


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
    inputs = _prepare(q, parts, schedule)
    (heads, _, size), kv_heads, tile = inputs.q.shape, inputs.keys.k.shape[0], inputs.tile
    length = schedule.intervals.k_start.shape[-1]
    delta = jnp.swapaxes(joined.sum_products(out, d_out, length), 0, 1).reshape(lse.shape)
    rows = _Rows(inputs.q, _by_head(joined.pad(d_out, length, size)), lse, delta)

    specs = _make_specs(inputs, inner=1, queries_are_own=True)
    (d_q,) = _call(
        functools.partial(_d_q_kernel, tile, q.shape[-1] ** -0.5),
        grid=(heads, schedule.by_query, 1),
        in_specs=[specs.intervals, specs.keys, specs.rows],
        out_specs=[specs.queries],
        out_shape=[_like(inputs.q)],
        scratch=[(size, tile.q)],
        name="interval_attention_dq",
    )(inputs.intervals, inputs.keys, rows)

    specs = _make_specs(inputs, inner=heads // kv_heads, queries_are_own=False)
    d_k, d_v = _call(
        functools.partial(_d_kv_kernel, tile, q.shape[-1] ** -0.5),
        grid=(kv_heads, schedule.by_key, heads // kv_heads),
        in_specs=[specs.intervals, specs.keys, specs.rows],
        out_specs=[specs.keys.k, specs.keys.v],
        out_shape=[_like(inputs.keys.k), _like(inputs.keys.v)],
        scratch=[(tile.k, size)] * 2,
        name="interval_attention_dkv",
    )(inputs.intervals, inputs.keys, rows)
    shape = (q.shape[0], sum(p.k.shape[1] for p in parts), kv_heads, q.shape[3])
    d_keys = KeysValues(_from_heads(d_k, shape), _from_heads(d_v, shape))
    return _from_heads(d_q, q.shape), joined.split_parts(d_keys, parts)


class _Inputs(NamedTuple):
    """A kernel's arguments.

    Attributes:
      tile: its size.
      intervals: k_start, k_end [P, N] and q_start, q_end [M, 1], numbered through all rows.
      q: [H, N, h].
      keys: k and v [K, M, h].
    """

    tile: Tile
    intervals: JoinedIntervals
    q: jax.Array
    keys: KeysValues


class _Rows(NamedTuple):
    """Values of each query in the backward pass, or how they are divided into blocks.

    Attributes:
      q, d_out: the query and the gradient of its output, [H, N, h].
      lse: log-sum-exp of its logits, [H, 1, N].
      delta: output times gradient of the output, summed over h, [H, 1, N].
    """

    q: Any
    d_out: Any
    lse: Any
    delta: Any


class _Specs(NamedTuple):
    """The blocks of a kernel's arguments that one step of the grid has; ``values`` is that of arrays [H, 1, N]."""

    intervals: JoinedIntervals
    keys: KeysValues
    queries: pl.BlockSpec
    values: pl.BlockSpec

    @property
    def rows(self) -> _Rows:
        """The blocks of ``_Rows``."""
        return _Rows(self.queries, self.queries, self.values, self.values)


def _choose_tile(queries: int, keys: int) -> Tile:
    """Return the largest tile, or less for what is shorter than it, in whole registers."""
    return Tile(*(min(most, -(-n // _LANES) * _LANES) for most, n in zip(LARGEST, (queries, keys), strict=True)))


def _order_tiles(tiles: TileList) -> TileOrder:
    """Write the lists of all blocks and rows behind each other."""
    batch, blocks, others = tiles.index.shape
    place, count = jnp.arange(others), jnp.maximum(tiles.count, 1)[..., None]
    used = place < count
    kind = _FIRST * (place == 0) + _LAST * (place == count - 1) + _MASKED * (place >= tiles.whole[..., None])
    own = jnp.arange(batch * blocks).reshape(batch, blocks, 1)
    other = tiles.index + others * jnp.arange(batch)[:, None, None]
    order = jnp.argsort(~used.reshape(-1), stable=True)
    lists = (jnp.broadcast_to(x, used.shape).reshape(-1)[order].astype(jnp.int32) for x in (own, other, kind))
    return TileOrder(*lists, used.sum(dtype=jnp.int32)[None])


def _prepare(q: jax.Array, parts: tuple[Part, ...], schedule: Schedule) -> _Inputs:
    """Join and pad the parts, and write the rows of the batch behind each other."""
    k_start, k_end, q_start, q_end = schedule.intervals
    (batch, num_parts, tokens), num_keys = k_start.shape, q_start.shape[1]
    size = -(-q.shape[-1] // _LANES) * _LANES
    keys = joined.join_parts(parts, num_keys, size)
    row = jnp.arange(batch)[:, None]
    by_query = (jnp.swapaxes(x + num_keys * row[..., None], 0, 1).reshape(num_parts, -1) for x in (k_start, k_end))
    by_key = ((x + tokens * row).reshape(-1, 1) for x in (q_start, q_end))
    return _Inputs(
        _choose_tile(q.shape[1], sum(p.k.shape[1] for p in parts)),
        JoinedIntervals._make((*by_query, *by_key)),
        _by_head(joined.pad(q, tokens, size)),
        KeysValues._make((_by_head(keys.k), _by_head(keys.v))),
    )


def _by_head(x: Float[Array, "B Q H h"]) -> Float[Array, "H B*Q h"]:
    return jnp.moveaxis(x, 2, 0).reshape(x.shape[2], -1, x.shape[3])


def _from_heads(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return [B, Q, H, h] of this shape, without padding: the inverse of ``_by_head``."""
    batch, tokens, _, size = shape
    return jnp.moveaxis(x.reshape(x.shape[0], batch, -1, x.shape[2]), 0, 2)[:, :tokens, :, :size]


def _like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _make_specs(inputs: _Inputs, inner: int, queries_are_own: bool) -> _Specs:
    """Return the blocks in a grid (heads, tiles, ``inner`` query heads of each)."""
    tile, size = inputs.tile, inputs.q.shape[-1]
    group = inputs.q.shape[0] // inputs.keys.k.shape[0]

    def spec(shape: tuple[int | None, ...], place: Any) -> pl.BlockSpec:
        def find(n: Any, t: Any, g: Any, own: Any, other: Any, kind: Any) -> tuple:
            del kind
            blocks = (own[t], other[t]) if queries_are_own else (other[t], own[t])
            return place(n * inner + g, *blocks)

        return pl.BlockSpec(shape, find)

    by_query = spec((inputs.intervals.k_start.shape[0], tile.q), lambda head, i, j: (0, i))
    by_key = spec((tile.k, 1), lambda head, i, j: (j, 0))
    keys = spec((None, tile.k, size), lambda head, i, j: (head // group, j, 0))
    return _Specs(
        JoinedIntervals._make((by_query, by_query, by_key, by_key)),
        KeysValues._make((keys, keys)),
        spec((None, tile.q, size), lambda head, i, j: (head, i, 0)),
        spec((None, 1, tile.q), lambda head, i, j: (head, 0, i)),
    )


def _call(
    kernel: Any,
    grid: tuple[int, TileOrder, int],
    in_specs: Sequence[Any],
    out_specs: Sequence[Any],
    out_shape: Sequence[jax.ShapeDtypeStruct],
    scratch: Sequence[tuple[int, int]],
    name: str,
) -> Any:
    """Return a function of a kernel's arguments; the kernel also has the lists, and float32 ``scratch``."""
    outer, tiles, inner = grid
    lists = tiles[:3]
    call = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(lists),
            grid=(outer, tiles.total[0], inner),
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary")),
        interpret=get_platform() == "cpu",
        name=name,
    )
    return lambda *args: call(*lists, *args)


def _masked_logits(
    tile: Tile, scale: float, masked: jax.Array, blocks: tuple[jax.Array, jax.Array], intervals: Any, q: Any, k: Any
) -> jax.Array:
    """Return the logits [k, q] of a tile, MASKED where they are not allowed; ``blocks`` of queries and of keys."""
    logits = _product(k, q, (1, 1)) * scale

    def mask(logits: jax.Array) -> jax.Array:
        query = blocks[0] * tile.q + lax.broadcasted_iota(jnp.int32, (tile.k, tile.q), 1)
        key = blocks[1] * tile.k + lax.broadcasted_iota(jnp.int32, (tile.k, tile.q), 0)
        allowed = (intervals.q_start[...] <= query) & (query < intervals.q_end[...])
        seen = [
            (intervals.k_start[part : part + 1, :] <= key) & (key < intervals.k_end[part : part + 1, :])
            for part in range(intervals.k_start.shape[0])
        ]
        return jnp.where(allowed & functools.reduce(jnp.logical_or, seen), logits, MASKED)

    return lax.cond(masked, mask, lambda logits: logits, logits)


def _product(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Contract one axis of each of two matrices, with float32 sums."""
    numbers = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


def _forward_kernel(
    tile: Tile,
    scale: float,
    own: Any,
    other: Any,
    kind: Any,
    intervals: Any,
    keys: Any,
    q: Any,
    out: Any,
    lse: Any,
    weighted: Any,
    top: Any,
    total: Any,
) -> None:
    """Add one tile to the online softmax of a block of queries; ``weighted`` is [h, q]."""
    t = pl.program_id(1)

    @pl.when(kind[t] & _FIRST > 0)
    def _() -> None:
        weighted[...], total[...] = jnp.zeros_like(weighted), jnp.zeros_like(total)
        # Half of MASKED: in a row that has seen nothing yet, the weight exp(MASKED - top) is 0.
        top[...] = jnp.full_like(top, MASKED / 2)

    masked = kind[t] & _MASKED > 0
    logits = _masked_logits(tile, scale, masked, (own[t], other[t]), intervals, q[...], keys.k[...])
    new_top = jnp.maximum(top[...], logits.max(0, keepdims=True))
    weights, shrink = jnp.exp(logits - new_top), jnp.exp(top[...] - new_top)
    total[...] = total[...] * shrink + weights.sum(0, keepdims=True)
    weighted[...] = weighted[...] * shrink + _product(keys.v[...], weights.astype(keys.v.dtype), (0, 0))
    top[...] = new_top

    @pl.when(kind[t] & _LAST > 0)
    def _() -> None:
        seen = total[...] > 0
        safe = jnp.where(seen, total[...], 1.0)
        out[...] = (weighted[...] / safe).T.astype(out.dtype)
        lse[...] = jnp.where(seen, top[...] + jnp.log(safe), 0.0)


def _weights_and_d_logits(logits: jax.Array, scale: float, v: jax.Array, rows: Any) -> tuple[jax.Array, jax.Array]:
    """Return p and ds [k, q] of a tile; the equations are in the package's docstring."""
    weights = jnp.exp(logits - rows.lse[...])
    return weights, weights * (_product(v, rows.d_out[...], (1, 1)) - rows.delta[...]) * scale


def _d_q_kernel(
    tile: Tile,
    scale: float,
    own: Any,
    other: Any,
    kind: Any,
    intervals: Any,
    keys: Any,
    rows: Any,
    d_q: Any,
    total: Any,
) -> None:
    """Add one tile to dq of a block of queries; ``total`` is [h, q]."""
    t = pl.program_id(1)

    @pl.when(kind[t] & _FIRST > 0)
    def _() -> None:
        total[...] = jnp.zeros_like(total)

    masked, k = kind[t] & _MASKED > 0, keys.k[...]
    logits = _masked_logits(tile, scale, masked, (own[t], other[t]), intervals, rows.q[...], k)
    d_logits = _weights_and_d_logits(logits, scale, keys.v[...], rows)[1]
    total[...] += _product(k, d_logits.astype(k.dtype), (0, 0))

    @pl.when(kind[t] & _LAST > 0)
    def _() -> None:
        d_q[...] = total[...].T.astype(d_q.dtype)


def _d_kv_kernel(
    tile: Tile,
    scale: float,
    own: Any,
    other: Any,
    kind: Any,
    intervals: Any,
    keys: Any,
    rows: Any,
    d_k: Any,
    d_v: Any,
    total_k: Any,
    total_v: Any,
) -> None:
    """Add one tile and one query head to dk and dv of a block of keys."""
    t, head = pl.program_id(1), pl.program_id(2)

    @pl.when((kind[t] & _FIRST > 0) & (head == 0))
    def _() -> None:
        total_k[...], total_v[...] = jnp.zeros_like(total_k), jnp.zeros_like(total_v)

    masked, q, d_out = kind[t] & _MASKED > 0, rows.q[...], rows.d_out[...]
    logits = _masked_logits(tile, scale, masked, (other[t], own[t]), intervals, q, keys.k[...])
    weights, d_logits = _weights_and_d_logits(logits, scale, keys.v[...], rows)
    total_v[...] += _product(weights.astype(d_out.dtype), d_out, (1, 0))
    total_k[...] += _product(d_logits.astype(q.dtype), q, (1, 0))

    @pl.when((kind[t] & _LAST > 0) & (head == pl.num_programs(2) - 1))
    def _() -> None:
        d_k[...], d_v[...] = total_k[...].astype(d_k.dtype), total_v[...].astype(d_v.dtype)
