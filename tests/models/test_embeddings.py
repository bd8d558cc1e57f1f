"""Fixed tables, rotary angles, timestep features and norms against their formulas in double precision."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.models.embeddings import layer_norm, rms_norm, rotary_angles, rotate, sincos_table, timestep_features


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_sincos_table_of_two_by_two():
    """Width 4 has one frequency, 1: [sin column, cos column, sin row, cos row]."""
    sin, cos = math.sin(1), math.cos(1)
    expected = [[0, 1, 0, 1], [sin, cos, 0, 1], [0, 1, sin, cos], [sin, cos, sin, cos]]
    np.testing.assert_allclose(sincos_table(side=2, width=4), expected, rtol=1e-6)


def test_rotary_angles_of_far_positions():
    """position * theta^(-2j/h); positions that bfloat16 would merge stay apart."""
    positions = np.array([[0, 1, 256, 257, 4097]])
    cos, sin = rotary_angles(jnp.asarray(positions), head_dim=8, theta=1e4)
    for j in range(4):
        angle = positions * 1e4 ** (-2 * j / 8)
        np.testing.assert_allclose(cos[..., j], np.cos(angle), atol=1e-3)  # float32 holds 4097 to 2e-4
        np.testing.assert_allclose(sin[..., j], np.sin(angle), atol=1e-3)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-4), (jnp.bfloat16, 4e-2)], ids=["float32", "bfloat16"])
def test_rotation_turns_pairs_of_channels(rng, dtype, tolerance):
    """Channels j and j + h/2 are a complex number times exp(i angle)."""
    x = rng.normal(size=(1, 3, 2, 8))
    positions = np.array([[0, 5, 300]])
    turned = rotate(jnp.asarray(x, dtype), *rotary_angles(jnp.asarray(positions), 8, 1e4))
    angles = positions[..., None, None] * 1e4 ** (-np.arange(4) / 4)
    expected = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)
    assert turned.dtype == dtype
    expected = np.concatenate([expected.real, expected.imag], axis=-1)
    np.testing.assert_allclose(turned.astype(np.float32), expected, atol=tolerance)


def test_products_of_rotated_vectors_depend_on_the_distance(rng):
    """Rotary positions are relative: shifting both by 1,000 changes nothing."""
    q, k = jnp.asarray(rng.normal(size=(2, 1, 1, 1, 16)), jnp.float32)

    def product(at, to):
        spin = lambda x, position: rotate(x, *rotary_angles(jnp.full((1, 1), position), 16, 1e6))  # noqa: E731
        return float(jnp.sum(spin(q, at) * spin(k, to)))

    np.testing.assert_allclose(product(1007, 1003), product(7, 3), atol=1e-3)
    assert abs(product(8, 3) - product(7, 3)) > 1e-2


def test_timestep_features():
    """[cos, sin] of t * 10000^(-j/128), t unscaled, float32 even where t is bfloat16."""
    t = np.array([[0.0, 0.25, 1.0]])
    angles = t[..., None] * 1e4 ** (-np.arange(128) / 128)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    features = timestep_features(jnp.asarray(t, jnp.bfloat16), 256)
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(features, expected, atol=1e-6)


def test_norms(rng):
    """Small rows, so that eps matters, and a large offset, which needs statistics in float32."""
    x, scale, bias = rng.normal(size=(4, 16)) * 0.01, rng.normal(size=16), rng.normal(size=16)
    rms = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(rms_norm(*map(jnp.float32, (x, scale)), 1e-6), rms, rtol=1e-5)
    layer = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias
    np.testing.assert_allclose(layer_norm(*map(jnp.float32, (x, scale, bias)), 1e-6), layer, atol=1e-4)
    coarse = jnp.asarray(100 + x * 100, jnp.bfloat16)
    wide = layer_norm(coarse.astype(jnp.float32), jnp.ones(16), jnp.zeros(16), 1e-6)
    narrow = layer_norm(coarse, jnp.ones(16), jnp.zeros(16), 1e-6)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(np.float32), wide, atol=2e-2)
