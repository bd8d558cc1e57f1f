"""Interval attention: softmax attention whose mask is two intervals of integers per token.

    allowed(q, k)  <=>  k_start[q] <= k < k_end[q]  and  q_start[k] <= q < q_end[k]
    out(q) = sum_k w(q, k) v(k),   w(q, k) = softmax over allowed k of q.k / sqrt(h)

``attend(q, parts)`` takes keys and values in several parts, such as a cache and the new tokens. Each part has its own
intervals; one softmax runs over all of them. No matrix of masks or logits is larger than a tile, and tiles without an
allowed pair are not computed. The result of a query that may see nothing is 0.

A backend is a module with three functions: ``make_schedule`` lists tiles once for all layers, ``forward`` and
``backward`` visit them. The mathematics and its gradient are the same in all of them:

    s = q.k / sqrt(h),   p = exp(s - lse),   out = sum_k p v,   lse = log sum_k exp(s)
    dv = sum_q p do,     dp = do.v,   ds = p (dp - delta),   dq = sum_k ds k / sqrt(h),   dk = sum_q ds q / sqrt(h)

where do is the gradient of out and delta = out.do = sum_k p dp, so no row of p is ever needed as a whole.

Axis legend: B batch, Q queries, S keys, H query heads, K key/value heads, G = H / K, h head size, L layers.

Example: two documents, a text of two tokens and then a clean image of three; a text of one token:

    token      0  1 | 2  3  4 | 5         allowed[q, k]
    k_start    0  0 | 0  0  0 | 5         1 0 0 0 0 0
    k_end      1  2 | 5  5  5 | 6         1 1 0 0 0 0
    q_start    0  1 | 2  2  2 | 5         1 1 1 1 1 0   (three rows of the image)
    q_end      5  5 | 5  5  5 | 6         0 0 0 0 0 1
"""

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pdgen.config import ComputeConfig
from pdgen.models.attention.dense import attend_dense
from pdgen.models.attention.intervals import Intervals, KeysValues, Part, Tile, allowed_matrix
from pdgen.sharding import get_platform

__all__ = [
    "ATTENTION",
    "Intervals",
    "KeysValues",
    "Part",
    "Tile",
    "allowed_matrix",
    "attend",
    "attend_dense",
    "make_schedule",
    "run_attention",
    "schedule_attention",
]

ATTENTION = "attention"  # checkpoint name of the result and the log-sum-exp, for remat policies
DEFAULT_TILE = Tile()
BACKENDS = ("xla", "triton", "tpu")  # modules of this package
BACKEND_OF_PLATFORM = {"cuda": "triton", "gpu": "triton", "tpu": "tpu"}  # of the others "xla"


def schedule_attention(compute: ComputeConfig, intervals: Sequence[Intervals], num_keys: Sequence[int]) -> Any:
    """Return the schedule of ``run_attention``; None for the dense method. Arguments as ``make_schedule``."""
    if compute.attention == "dense":
        return None
    return make_schedule(intervals, num_keys, Tile(compute.block_q, compute.block_k), compute.backend)


def run_attention(
    compute: ComputeConfig, q: Float[Array, "B Q H h"], parts: Sequence[Part], schedule: Any
) -> Float[Array, "B Q H h"]:
    """Attend by the method ``compute.attention``: "dense", or "blockwise" with the tile and backend of ``compute``."""
    if compute.attention == "dense":
        return attend_dense(q, parts)
    return attend(q, parts, Tile(compute.block_q, compute.block_k), compute.backend, schedule)


def make_schedule(
    intervals: Sequence[Intervals], num_keys: Sequence[int], tile: Tile = DEFAULT_TILE, backend: str = "auto"
) -> Any:
    """List the tiles that ``attend`` visits, a pytree of integers [B, ...] that all layers can share.

    Args:
      intervals: those of each part.
      num_keys: number of keys of each part.
      tile, backend: as for ``attend``.
    """
    if not intervals[0].k_start.shape[1]:  # a stream without tokens has no tiles
        return None
    return choose_backend(backend).make_schedule(tile, tuple(intervals), tuple(num_keys))


def attend(
    q: Float[Array, "B Q H h"],
    parts: Sequence[Part],
    tile: Tile = DEFAULT_TILE,
    backend: str = "auto",
    schedule: Any = None,
) -> Float[Array, "B Q H h"]:
    """Attend tile by tile; differentiable in q, k and v.

    Logits, maximum, sum and accumulator are float32, whatever the dtype of q, k and v.

    Args:
      q: queries, not yet scaled by h^-1/2.
      parts: at least one; all have the same K and h.
      tile: tile of the backend "xla". The kernels have tiles of their own.
      backend: "auto" for that of the platform, or a name of ``BACKENDS``.
      schedule: from ``make_schedule`` with the intervals of ``parts``; None: it is made here.

    Returns:
      The result, in q's dtype.

    Raises:
      ValueError: the backend is unknown.
    """
    module = choose_backend(backend)
    if not q.shape[1]:  # a stream without tokens
        return q
    parts = tuple(parts)
    if schedule is None:
        schedule = module.make_schedule(tile, tuple(p.intervals for p in parts), tuple(p.k.shape[1] for p in parts))
    return _attend(module, tile, q, parts, schedule)


def choose_backend(name: str) -> ModuleType:
    """Return the backend of this name; "auto" is the platform's. Raises ValueError for an unknown name."""
    if name == "auto":
        name = BACKEND_OF_PLATFORM.get(get_platform(), "xla")
    if name not in BACKENDS:
        raise ValueError(f"compute.backend {name!r} is unknown; choose auto, {', '.join(BACKENDS)}")
    # Here, since Pallas takes a quarter of a second to import.
    return importlib.import_module(f"{__name__}.{name}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(backend: ModuleType, tile: Tile, q: jax.Array, parts: tuple[Part, ...], schedule: Any) -> jax.Array:
    return backend.forward(tile, q, parts, schedule)[0]


def _attend_fwd(
    backend: ModuleType, tile: Tile, q: jax.Array, parts: tuple[Part, ...], schedule: Any
) -> tuple[jax.Array, tuple]:
    # Named for remat policies: recomputing these two would cost a whole forward pass.
    out, lse = (checkpoint_name(x, ATTENTION) for x in backend.forward(tile, q, parts, schedule))
    return out, (q, parts, schedule, out, lse)


def _attend_bwd(backend: ModuleType, tile: Tile, saved: tuple, d_out: jax.Array) -> tuple:
    q, parts, *_ = saved
    d_q, d_parts = backend.backward(tile, *saved, d_out)
    # Intervals and schedules are integers, which have no gradient.
    cast = tuple(Part._make((d.k.astype(p.k.dtype), d.v.astype(p.v.dtype), None)) for d, p in zip(d_parts, parts))
    return d_q.astype(q.dtype), cast, None


_attend.defvjp(_attend_fwd, _attend_bwd)
