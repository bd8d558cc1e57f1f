"""Lists of the tiles that attention visits, made once from the intervals and the same for all layers and heads.

The keys of several parts are one range here, part after part.

Axis legend: B batch, P parts, Q queries, S keys of all parts, n blocks of one side, m blocks of the other.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from pdgen.models.attention.intervals import Intervals, Tile


class JoinedIntervals(NamedTuple):
    """Intervals of all parts, int32. A query may see a key if the interval of one part and that of the key allow it.

    Attributes:
      k_start, k_end: the keys [k_start, k_end) of each part that each query may see, within the part.
      q_start, q_end: the queries [q_start, q_end) that may see each key.
    """

    k_start: Int[Array, "B P Q"]
    k_end: Int[Array, "B P Q"]
    q_start: Int[Array, "B S"]
    q_end: Int[Array, "B S"]


class TileList(NamedTuple):
    """For each block of one side, the blocks of the other side that it shares an allowed pair with.

    Attributes:
      index: numbers of all m blocks: first those of which every pair is allowed, then the others that are seen, then
        the rest; each in ascending order.
      whole: how many are the first kind, whose tiles need no mask.
      count: how many are seen, the first kind included.
    """

    index: Int[Array, "B n m"]
    whole: Int[Array, "B n"]
    count: Int[Array, "B n"]


def join_intervals(intervals: Sequence[Intervals], num_keys: Sequence[int]) -> JoinedIntervals:
    """Join the parts' keys into one range; ``num_keys`` are the keys of each part."""
    batch, queries = intervals[0].k_start.shape
    starts, ends, first, last, offset = [], [], [], [], 0
    for part, count in zip(intervals, num_keys, strict=True):
        starts.append(jnp.clip(part.k_start, 0, count) + offset)
        ends.append(jnp.clip(part.k_end, 0, count) + offset)
        unrestricted = part.q_start is None or part.q_end is None
        first.append(jnp.zeros((batch, count), jnp.int32) if unrestricted else part.q_start)
        last.append(jnp.full((batch, count), queries, jnp.int32) if unrestricted else part.q_end)
        offset += count
    return JoinedIntervals(
        jnp.stack(starts, 1), jnp.stack(ends, 1), jnp.concatenate(first, 1), jnp.concatenate(last, 1)
    )


def pad_intervals(intervals: JoinedIntervals, tile: Tile) -> JoinedIntervals:
    """Pad queries and keys to whole tiles; padding sees nothing and is not seen."""
    return JoinedIntervals(*(_pad_last(x, n) for x, n in zip(intervals, (tile.q, tile.q, tile.k, tile.k))))


def tile_lists(intervals: JoinedIntervals, tile: Tile) -> tuple[TileList, TileList]:
    """List the blocks of keys for each block of queries, and the blocks of queries for each block of keys.

    Exact for packs of documents and for caches. In general a list may also have blocks without an allowed pair, never
    miss one with.
    """
    seen, whole = seen_tiles(intervals, tile)
    return list_tiles(seen, whole), list_tiles(jnp.swapaxes(seen, 1, 2), jnp.swapaxes(whole, 1, 2))


def seen_tiles(intervals: JoinedIntervals, tile: Tile) -> tuple[Bool[Array, "B n m"], Bool[Array, "B n m"]]:
    """Return which tiles may have an allowed pair, and of which tiles every pair is allowed.

    A tile is seen if its keys meet the range that its queries span together and its queries the range that its keys
    span. It is whole if all of its queries and keys allow it.
    """
    intervals = JoinedIntervals(*(_pad_last(x, n) for x, n in zip(intervals, (tile.q, tile.q, tile.k, tile.k))))
    keys, queries = (
        jnp.arange(x.shape[-1] // n) * n for x, n in ((intervals.q_start, tile.k), (intervals.k_start, tile.q))
    )
    by_query = _meet(intervals.k_start, intervals.k_end, tile.q, keys, tile.k)  # [B, P, n, m]
    by_key = _meet(intervals.q_start, intervals.q_end, tile.k, queries, tile.q)  # [B, m, n]
    seen, whole = (a.any(1) & jnp.swapaxes(b, 1, 2) for a, b in zip(by_query, by_key))
    return seen, whole


def list_tiles(seen: Bool[Array, "B n m"], whole: Bool[Array, "B n m"]) -> TileList:
    """List the tiles that are seen; those that are whole must be seen too."""
    kind = jnp.where(whole, 0, jnp.where(seen, 1, 2))
    index = jnp.argsort(kind, axis=-1, stable=True).astype(jnp.int32)
    return TileList(index, whole.sum(-1, dtype=jnp.int32), seen.sum(-1, dtype=jnp.int32))


def _meet(start: jax.Array, end: jax.Array, size: int, firsts: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Return [..., n, m], for blocks of ``size`` intervals and the ranges [first, first + length).

    The first array tells whether the hull of a block's intervals meets a range, the second whether each of its
    intervals contains the range.
    """
    start, end = (x.reshape(*x.shape[:-1], -1, size) for x in (start, end))
    # Empty intervals, such as those of padding, must not widen the hull.
    empty = end <= start
    low = jnp.where(empty, jnp.iinfo(jnp.int32).max, start).min(-1)[..., None]
    high = jnp.where(empty, 0, end).max(-1)[..., None]
    meets = (low < firsts + length) & (high > firsts)
    contains = (start.max(-1)[..., None] <= firsts) & (end.min(-1)[..., None] >= firsts + length)
    return meets, contains


def _pad_last(x: jax.Array, multiple: int) -> jax.Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % multiple)])
