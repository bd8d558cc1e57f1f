"""The kernels in Pallas's interpreter against the dense oracle, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.models.attention import Intervals, Part, Tile, allowed_matrix, attend, attend_dense, choose_backend, tpu
from pdgen.models.attention.triton import FORWARD
from pdgen.sharding import make_mesh, map_shards
from tests.models.attention.cases import assert_close, long_pack, normal

BATCH, QUERIES, CACHE = 2, 600, 90  # not whole tiles
KERNELS = ("triton", "tpu")
GROUPS = ((2, 2), (4, 1), (7, 1))  # query heads and key heads


@pytest.fixture(scope="module", autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module", autouse=True)
def small_tiles():
    """Several tiles of the TPU's kernels in a short pack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tpu, "LARGEST", Tile(128, 128))
        yield


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(backend, q, weight, keys_values, intervals):
    """Result (the oracle's where ``backend`` is "dense") and gradients of a weighted sum of it."""
    run = attend_dense if backend == "dense" else functools.partial(attend, backend=backend)

    def loss(q, keys_values):
        out = run(q, [Part(k, v, i) for (k, v), i in zip(keys_values, intervals)])
        return jnp.sum((out * weight).astype(jnp.float32)), out

    (_, out), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(q, keys_values)
    return out, gradients


def pack_and_cache(seed):
    """Intervals of two different packs that end in padding, and of two caches, one of which is empty."""
    rng = np.random.default_rng(seed)
    pack = Intervals(*np.stack([long_pack(rng, QUERIES, used) for used in (580, 390)], axis=1))
    lengths = np.broadcast_to(np.array([[70], [0]], np.int32), (BATCH, QUERIES))
    seen = pack.k_end > 0  # padding does not see the cache
    return pack, Intervals(np.zeros_like(lengths), np.where(seen, lengths, 0))


def inputs(seed, heads, kv_heads, size=24, dtype=jnp.float32):
    q, weight = normal(seed, 2, BATCH, QUERIES, heads, size).astype(dtype)
    keys_values = [tuple(normal(seed + n, 2, BATCH, n, kv_heads, size).astype(dtype)) for n in (QUERIES, CACHE)]
    return q, weight, keys_values, pack_and_cache(seed)


def test_the_pack_has_what_a_kernel_must_cope_with():
    """Rows that see nothing, tiles seen whole, tiles seen in part, and tiles not seen between such."""
    pack, cache = pack_and_cache(0)
    mask = np.concatenate([allowed_matrix(pack, QUERIES), allowed_matrix(cache, CACHE)], axis=-1)
    assert not mask.any(-1).all() and len(set(pack.k_start[0, :580])) > 1
    tiles = mask[:, : 4 * FORWARD.q, : 8 * FORWARD.k].reshape(-1, FORWARD.q, 8, FORWARD.k)
    seen, whole = tiles.any((1, 3)), tiles.all((1, 3))
    assert whole.any() and (seen & ~whole).any()
    assert any(b"\0" in row.tobytes().strip(b"\0") for row in seen)


@pytest.mark.slow
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(("heads", "kv_heads"), GROUPS)
def test_packs_with_caches(backend, heads, kv_heads):
    """Values and all gradients, float32, within 1e-5."""
    for seed in range(2):
        case = inputs(seed, heads, kv_heads)
        out, gradients = value_and_gradients(backend, *case)
        assert_close((out, gradients), value_and_gradients("dense", *case), 1e-5)
        nothing = ~np.concatenate([allowed_matrix(i, n) for i, n in zip(case[-1], (QUERIES, CACHE))], -1).any(-1)
        assert nothing.any() and not np.asarray(out)[nothing].any()


@pytest.mark.slow
@pytest.mark.parametrize("backend", KERNELS)
def test_bfloat16(backend):
    """Within 1% of the float32 oracle on the same rounded inputs, as the XLA backend."""
    q, weight, keys_values, intervals = inputs(0, 4, 2, dtype=jnp.bfloat16)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (q, weight, keys_values))
    actual = value_and_gradients(backend, q, weight, keys_values, intervals)
    assert {leaf.dtype for leaf in jax.tree.leaves(actual)} == {jnp.dtype(jnp.bfloat16)}
    assert_close(actual, value_and_gradients("dense", *wide, intervals), 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("backend", KERNELS)
def test_a_mesh_that_splits_rows_and_heads(backend):
    """Inside ``shard_map`` on explicit axes every device has its own lists."""
    q, _, [(k, v), _], (pack, _) = inputs(0, 4, 2)
    names = ("batch", None, "heads", None)

    def run(q, k, v, pack):
        one = lambda q, k, v, pack: attend(q, [Part(k, v, pack)], backend=backend)  # noqa: E731
        in_names = (names, ("batch", None, "kv_heads", None), ("batch", None, "kv_heads", None), ("batch", None))
        return map_shards(one, in_names, names)(q, k, v, pack)

    with jax.set_mesh(make_mesh((1, 2, 2), jax.devices()[:4])):
        out = jax.jit(run)(q, k, v, pack)
    assert_close(np.asarray(out), attend_dense(q, [Part(k, v, pack)]), 1e-5)


@pytest.mark.parametrize("backend", KERNELS)
def test_keys_of_tiles_that_are_not_seen_are_not_read(backend):
    q, _, [(k, v), _], _ = inputs(0, 1, 1)
    k, v = (x.at[:, 128:].set(jnp.nan) for x in (k, v))
    end = np.full((BATCH, QUERIES), 128, np.int32)
    assert np.isfinite(attend(q, [Part(k, v, Intervals(0 * end, end))], backend=backend)).all()


def test_the_backend_of_a_cpu_and_unknown_ones():
    assert choose_backend("auto") is choose_backend("xla")
    with pytest.raises(ValueError, match=r"compute.backend 'cuda' is unknown; choose auto, xla, "):
        attend(normal(0, 1, 4, 1, 8), [], Tile(), "cuda")
