"""Lists of tiles against the dense mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdgen.models.attention import Intervals, Tile, allowed_matrix
from pdgen.models.attention.tiles import join_intervals, tile_lists
from tests.models.attention.cases import KEYS, QUERIES, SLOTS, any_intervals, packs, queries_see

TILES = (Tile(16, 12), Tile(4, 8), Tile(64, 64))
quick = settings(max_examples=60, deadline=None)


@functools.partial(jax.jit, static_argnums=(0, 2))
def lists(tile, intervals, num_keys):
    return tile_lists(join_intervals(intervals, num_keys), tile)


def tiles_of_mask(mask, tile):
    """Whether a tile has an allowed pair, and whether it has nothing else; ``mask`` is padded to whole tiles."""
    blocks = [-(-n // size) for n, size in zip(mask.shape, tile)]
    padded = np.zeros([n * size for n, size in zip(blocks, tile)], bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    tiles = padded.reshape(blocks[0], tile.q, blocks[1], tile.k)
    return tiles.any((1, 3)), tiles.all((1, 3))


def listed(one, row):
    """The whole tiles and the others of each block, in the list's order."""
    index, whole, count = (np.asarray(x)[row] for x in one)
    return [(list(map(int, i[:w])), list(map(int, i[w:n]))) for i, w, n in zip(index, whole, count)]


def expected(seen, whole):
    return [(list(np.flatnonzero(w)), list(np.flatnonzero(s & ~w))) for s, w in zip(seen, whole)]


@pytest.mark.parametrize("tile", TILES, ids=str)
@quick
@given(rows=st.tuples(packs(), packs()))
def test_the_lists_of_packs_are_exact(tile, rows):
    """Both lists have the tiles with an allowed pair and no other, those without a forbidden pair first."""
    intervals = Intervals(*np.stack([pack for pack, _ in rows], axis=1))
    mask = np.asarray(allowed_matrix(intervals, SLOTS))
    by_query, by_key = lists(tile, (intervals,), (SLOTS,))
    for row in range(len(rows)):
        seen, whole = tiles_of_mask(mask[row], tile)
        assert listed(by_query, row) == expected(seen, whole)
        assert listed(by_key, row) == expected(seen.T, whole.T)


@pytest.mark.parametrize("tile", TILES, ids=str)
@quick
@given(first=any_intervals(KEYS[0]), second=queries_see(KEYS[1]))
def test_no_allowed_pair_of_several_parts_is_missed(tile, first, second):
    """Any intervals at all: every tile with an allowed pair is listed, and the whole tiles are exact."""
    mask = np.concatenate([allowed_matrix(i, n) for i, n in zip((first, second), KEYS)], axis=-1)
    one, _ = lists(tile, (first, second), KEYS)
    for row in range(len(mask)):
        seen, whole = tiles_of_mask(mask[row], tile)
        for block, (first_kind, others) in enumerate(listed(one, row)):
            assert {*np.flatnonzero(seen[block])} <= {*first_kind, *others}
            # A tile may be allowed by two parts together; it is masked then.
            assert {*first_kind} <= {*np.flatnonzero(whole[block])}


def test_a_cache_is_read_to_its_length():
    """Slots beyond a row's length are in no list, and neither is padding of the queries."""
    row = lambda n: jnp.full((1, QUERIES), n, jnp.int32)  # noqa: E731
    one, _ = lists(Tile(16, 12), (Intervals(row(0), row(24)),), (50,))
    assert [listed(one, 0)[block] for block in (0, 2)] == [([0, 1], []), ([], [0, 1])]
