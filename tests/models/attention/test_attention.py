"""Interval attention against a dense oracle, and the oracle's mask against the definition.

Hypothesis draws intervals, never shapes, so that every function is compiled once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend import core

from pdgen.models.attention import Intervals, Part, Tile, allowed_matrix, attend, attend_dense
from pdgen.models.mot import permute
from pdgen.sequence.layout import intervals as document_intervals
from tests.models.attention.cases import (
    BATCH,
    KEYS,
    QUERIES,
    SLOTS,
    any_intervals,
    assert_close,
    normal,
    packs,
    queries_see,
    tensors,
)

# Smaller than a row without dividing it; larger than a row; different sizes for queries and keys.
TILES = (Tile(16, 12), Tile(64, 64), Tile(5, 37))
quick = settings(max_examples=20)


@pytest.fixture(scope="module", autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(tile, q, weight, keys_values, intervals):
    """Return the result of attention (the oracle's if ``tile`` is None) and the gradients of its weighted sum."""
    run = attend_dense if tile is None else functools.partial(attend, tile=tile)

    def loss(q, keys_values):
        out = run(q, [Part(k, v, i) for (k, v), i in zip(keys_values, intervals)])
        return jnp.sum((out * weight).astype(jnp.float32)), out

    (_, out), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(q, keys_values)
    return out, gradients


@pytest.mark.parametrize("tile", TILES, ids=str)
@quick
@given(first=any_intervals(KEYS[0]), second=queries_see(KEYS[1]), seed=st.integers(0, 2**31))
def test_two_parts_with_any_intervals(tile, first, second, seed):
    """Values and gradients of blockwise attention match the oracle's within 1e-5 in float32."""
    inputs = *tensors(seed), (first, second)
    assert_close(value_and_gradients(tile, *inputs), value_and_gradients(None, *inputs), 1e-5)


def may_see(query, key):
    """Return whether q sees k, by definition; each argument is (place, (document, split, mode))."""
    (q, (q_document, q_split, q_mode)), (k, (k_document, k_split, k_mode)) = query, key
    if q_document != k_document:
        return False
    same_image = q_split == k_split and q_mode != "causal"
    return same_image or (k <= q and not (k_mode == "noise" and k_split != q_split))


@quick
@given(rows=st.tuples(packs(), packs()), seed=st.integers(0, 2**31))
def test_packs(rows, seed):
    """Two different packs in a batch: the mask follows the rule, and both backends agree."""
    intervals = Intervals(*jnp.stack([pack for pack, _ in rows], axis=1))
    mask = np.asarray(allowed_matrix(intervals, SLOTS))
    for row, (_, slots) in enumerate(rows):
        expected = np.zeros((SLOTS, SLOTS), bool)
        for query in enumerate(slots):
            for key in enumerate(slots):
                expected[query[0], key[0]] = may_see(query, key)
        np.testing.assert_array_equal(mask[row], expected)
    inputs = *tensors(seed, SLOTS, (SLOTS,)), (intervals,)
    tile = Tile(16, 12)
    out, gradients = value_and_gradients(tile, *inputs)
    assert_close((out, gradients), value_and_gradients(None, *inputs), 1e-5)
    assert not np.asarray(out)[~mask.any(-1)].any()  # a slot that sees nothing, such as padding, gets zeros


def test_rows_and_parts_of_a_batch_are_the_oracles_in_bfloat16():
    """bfloat16 keys, queries and results: within 1% of the float32 oracle on the same rounded inputs.

    One rounding is 0.4%; the softmax weights and the gradients' products are rounded once more. Measured 0.4%.
    """
    q, weight, keys_values = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tensors(0))
    rng = np.random.default_rng(0)
    intervals = tuple(
        Intervals(np.zeros((BATCH, QUERIES), np.int32), rng.integers(1, n, (BATCH, QUERIES), np.int32)) for n in KEYS
    )
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (q, weight, keys_values))
    expected = value_and_gradients(None, *wide, intervals)
    actual = value_and_gradients(TILES[0], q, weight, keys_values, intervals)
    assert {leaf.dtype for leaf in jax.tree.leaves(actual)} == {jnp.dtype(jnp.bfloat16)}
    assert_close(actual, expected, 1e-2)


def test_one_part_or_several():
    """Cutting the keys into parts changes nothing: one normalisation covers all."""
    q, _, [(k, v)] = tensors(3, keys=(50,))
    see = np.random.default_rng(0).integers(0, 50, (BATCH, QUERIES), np.int32)
    whole = attend(q, [Part(k, v, Intervals(0 * see, see))], TILES[0])
    parts = [
        Part(k[:, :20], v[:, :20], Intervals(0 * see, np.minimum(see, 20))),
        Part(k[:, 20:], v[:, 20:], Intervals(0 * see, np.maximum(see - 20, 0))),
    ]
    assert_close(attend(q, parts, TILES[0]), whole, 1e-5)


def test_worked_example():
    """The matrix of the module's docstring."""
    table = """
        k_start    0  0   0  0  0   5
        k_end      1  2   5  5  5   6
        q_start    0  1   2  2  2   5
        q_end      5  5   5  5  5   6"""
    rows = [line.split() for line in table.strip().splitlines()]
    intervals = Intervals(**{name: jnp.array([numbers], int) for name, *numbers in rows})
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(allowed_matrix(intervals, 6)[0], np.array(expected, bool))
    documents = [document_intervals(("causal", "full"), (2, 3)), document_intervals(("causal",), (1,))]
    laid_out = np.concatenate([documents[0], np.stack(documents[1]) + 5], axis=1)
    np.testing.assert_array_equal(laid_out, np.stack(intervals)[:, 0])


def test_keys_that_no_query_of_a_tile_sees_are_not_read():
    """Skipped tiles: keys beyond every interval may hold anything, even NaN."""
    q, _, [(k, v)] = tensors(4, keys=(50,))
    k, v = (x.at[:, 24:].set(jnp.nan) for x in (k, v))
    intervals = Intervals(np.zeros((BATCH, QUERIES), np.int32), np.full((BATCH, QUERIES), 24, np.int32))
    assert np.isfinite(attend(q, [Part(k, v, intervals)], Tile(16, 12))).all()


def sizes(jaxpr):
    """Yield the number of elements of every array that a jaxpr and its inner jaxprs compute."""
    for equation in jaxpr.eqns:
        yield from (var.aval.size for var in equation.outvars)
        for inner in core.jaxprs_in_params(equation.params):
            yield from sizes(inner)


@pytest.mark.parametrize("tile", [Tile(256, 128), None], ids=["blockwise", "dense"])
def test_largest_array(tile):
    """4,096 queries and keys: no array exceeds the inputs, where the oracle has 2^24 logits a head."""
    length, size = 4096, 16
    x = jax.ShapeDtypeStruct((1, length, 1, size), jnp.float32)
    row = jax.ShapeDtypeStruct((1, length), jnp.int32)
    inputs = x, x, [(x, x)], (Intervals(row, row, row, row),)
    jaxpr = jax.make_jaxpr(functools.partial(value_and_gradients, tile))(*inputs)
    largest = max(sizes(jaxpr.jaxpr))
    assert (largest <= length * size) == (tile is not None)
    assert tile is not None or largest == length * length


def test_permute_and_its_gradient():
    """The inverse gather equals the scatter that autodiff derives as the gradient."""
    x, weight = normal(5, 2, BATCH, QUERIES, 3, 4)
    rng = np.random.default_rng(5)
    order = jnp.stack([rng.permutation(QUERIES) for _ in range(BATCH)]).astype(jnp.int32)
    inverse = jnp.argsort(order, axis=1).astype(jnp.int32)

    def plain(x):
        return jnp.take_along_axis(x, order[..., None, None], axis=1)

    np.testing.assert_array_equal(permute(x, order, inverse), plain(x))
    np.testing.assert_array_equal(permute(permute(x, order, inverse), inverse, order), x)
    ours, theirs = (
        jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x)) * weight))(x)
        for f in (lambda x: permute(x, order, inverse), plain)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
