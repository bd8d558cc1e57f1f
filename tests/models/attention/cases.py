"""Tensors, intervals and packs for the tests of attention.

Hypothesis draws intervals, never shapes, so that every function is compiled once.
"""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pdgen.models.attention import Intervals
from pdgen.sequence.layout import intervals as document_intervals

BATCH, QUERIES, HEADS, KV_HEADS, SIZE = 2, 37, 4, 2, 8
KEYS = (29, 50)  # of two parts


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def tensors(seed, queries=QUERIES, keys=KEYS):
    """Queries, weights of the result in a scalar loss, and (k, v) of each part."""
    q, weight = normal(seed, 2, BATCH, queries, HEADS, SIZE)
    return q, weight, [tuple(normal(seed + 1 + n, 2, BATCH, n, KV_HEADS, SIZE)) for n in keys]


def assert_close(actual, expected, tolerance):
    """max|a-b| <= tolerance * max(1, max|b|), leaf by leaf."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all()
        assert np.abs(a - b).max() <= tolerance * max(1, np.abs(b).max())


def ranges(rows, outer):
    """[BATCH, rows] starts and ends anywhere from 0 to a little beyond ``outer``: empty ones, too."""
    ends = arrays(np.int32, (2, BATCH, rows), elements=st.integers(0, outer + 3))
    return st.one_of(ends, ends.map(lambda x: np.sort(x, axis=0))).map(tuple)


def any_intervals(keys):
    return st.builds(lambda k, q: Intervals(*k, *q), ranges(QUERIES, keys), ranges(keys, QUERIES))


def queries_see(keys):
    """Intervals without a condition on the key's side, as of a cache."""
    return ranges(QUERIES, keys).map(lambda k: Intervals(*k))


SLOTS = 58  # no tile divides it


@st.composite
def packs(draw):
    """[SLOTS] intervals of a few documents, padding last, and each slot's (document, split, mode)."""
    rows, slots, used = [], [], 0
    for document in range(draw(st.integers(1, 4))):
        modes = draw(st.lists(st.sampled_from(("causal", "full", "noise")), min_size=1, max_size=4))
        lengths = [draw(st.integers(1, 9)) for _ in modes]
        if used + sum(lengths) > SLOTS:
            break
        rows.append(np.stack(document_intervals(modes, lengths)) + used)
        slots += [(document, split, mode) for split, mode in enumerate(modes) for _ in range(lengths[split])]
        used += sum(lengths)
    padding = np.zeros((4, SLOTS - used), np.int32)
    return np.concatenate([*rows, padding], axis=1).astype(np.int32), slots


def long_pack(rng, slots, used):
    """[4, slots] intervals of documents of 400 tokens with images of 40 to 150, and padding after ``used``."""
    rows, left = [], used
    while left:
        lengths, room = [], min(left, 400)
        while room:
            lengths.append(min(int(rng.integers(40, 150)), room))
            room -= lengths[-1]
        modes = ["causal", *rng.choice(("causal", "full", "noise", "noise"), len(lengths) - 1)]
        rows.append(np.stack(document_intervals(modes, lengths)) + used - left)
        left -= sum(lengths)
    return np.concatenate([*rows, np.zeros((4, slots - used), np.int32)], axis=1).astype(np.int32)
