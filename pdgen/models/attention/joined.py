"""What the kernels share: keys of all parts in one array, padding, and the schedule.

The kernels number the keys of all parts in one range, so that only their masks know of parts. Tokens are padded to
whole tiles and heads to the sizes of a machine's registers; padding is in no tile, or masked in it.

Axis legend: that of the package; P parts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pdgen.models.attention.intervals import Intervals, KeysValues, Part, Tile
from pdgen.models.attention.tiles import JoinedIntervals, TileList, join_intervals, pad_intervals, tile_lists


class Schedule(NamedTuple):
    """The joined and padded intervals, and the tiles of each kernel: of the result, of dq, and of dk and dv."""

    intervals: JoinedIntervals
    forward: TileList
    d_q: TileList
    d_kv: TileList


def make_schedule(
    forward: Tile, backward: Tile, padded: Tile, intervals: tuple[Intervals, ...], num_keys: tuple[int, ...]
) -> Schedule:
    """List the tiles of the kernels; tokens are padded to multiples of ``padded``."""
    joined = pad_intervals(join_intervals(intervals, num_keys), padded)
    by_query, _ = tile_lists(joined, forward)
    return Schedule(joined, by_query, *tile_lists(joined, backward))


def pad(x: Float[Array, "B S K h"], tokens: int, size: int) -> Float[Array, "B {tokens} K {size}"]:
    """Pad with zeros to ``tokens`` tokens and heads of ``size``."""
    return jnp.pad(x, ((0, 0), (0, tokens - x.shape[1]), (0, 0), (0, size - x.shape[3])))


def join_parts(parts: tuple[Part, ...], tokens: int, size: int) -> KeysValues:
    """Join keys and values of all parts, and pad them."""
    return KeysValues(*(pad(jnp.concatenate(x, 1), tokens, size) for x in zip(*((p.k, p.v) for p in parts))))


def split_parts(joined: KeysValues, parts: tuple[Part, ...]) -> tuple[KeysValues, ...]:
    """Split the gradients of joined keys and values: the inverse of ``join_parts``."""
    pieces, first = [], 0
    for part in parts:
        own = slice(None), slice(first, first + part.k.shape[1]), slice(None), slice(part.k.shape[3])
        pieces.append(KeysValues(joined.k[own], joined.v[own]))
        first += part.k.shape[1]
    return tuple(pieces)


def sum_products(out: jax.Array, d_out: jax.Array, tokens: int) -> Float[Array, "B H {tokens}"]:
    """Return delta = out.do of each query and head [B, Q, H, h], padded to ``tokens``."""
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
    return jnp.pad(jnp.swapaxes(delta, 1, 2), ((0, 0), (0, 0), (0, tokens - out.shape[1])))
