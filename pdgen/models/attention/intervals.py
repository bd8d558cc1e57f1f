"""Which keys a query may see: two intervals of integers per token, and the mask that they describe.

Axis legend: B batch, Q queries, S keys, K key/value heads, h head size, L layers.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30  # finite, so that a row without an allowed key never computes inf - inf


class Intervals(NamedTuple):
    """Which queries may see which keys, int32. ``q_start`` and ``q_end`` are both None if keys restrict nothing.

    Attributes:
      k_start, k_end: the keys [k_start, k_end) that each query may see.
      q_start, q_end: the queries [q_start, q_end) that may see each key.
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
    """Keys and values, such as those of a cache, and which of them each query may see."""

    k: Float[Array, "*L B S K h"]
    v: Float[Array, "*L B S K h"]
    intervals: Intervals


class Tile(NamedTuple):
    """Size of a tile in tokens: queries and keys."""

    q: int = 256
    k: int = 256


def allowed_matrix(intervals: Intervals, num_keys: int) -> Bool[Array, "B Q S"]:
    """Return the dense mask of ``intervals``, by the definition; for the dense method and for tests."""
    k = jnp.arange(num_keys)
    mask = (intervals.k_start[..., None] <= k) & (k < intervals.k_end[..., None])
    if intervals.q_start is not None and intervals.q_end is not None:
        q = jnp.arange(intervals.k_start.shape[1])[:, None]
        mask &= (intervals.q_start[:, None] <= q) & (q < intervals.q_end[:, None])
    return mask
