"""Fixed tables and small embedders: sin-cos positions, timesteps, rotary angles.

Written from the formulas. Axis legend: B batch, S tokens, D width, h head size.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def sincos_table(side: int, width: int) -> Float[np.ndarray, "side*side width"]:
    """Fixed 2-D position table, float32; row ``r * side + c`` embeds row r, column c.

    The first half of the channels encodes the column, the second the row; each half is [sin, cos] of
    position / 10000^(j / (width / 4)), j = 0 .. width/4 - 1. ``width`` must be divisible by 4.
    """
    frequencies = 10000.0 ** (-np.arange(width // 4, dtype=np.float64) / (width / 4))
    angles = np.arange(side, dtype=np.float64)[:, None] * frequencies
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    by_column, by_row = np.tile(axis, (side, 1)), np.repeat(axis, side, axis=0)
    return np.concatenate([by_column, by_row], axis=1).astype(np.float32)


def timestep_features(t: Float[Array, "B S"], width: int) -> Float[Array, "B S width"]:
    """[cos(t f), sin(t f)] with f_j = 10000^(-j / (width/2)), float32; t in [0, 1], unscaled.

    float32 throughout: bfloat16 would merge neighbouring timesteps.
    """
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def rotary_angles(
    positions: Int[Array, "B S"], head_dim: int, theta: float
) -> tuple[Float[Array, "B S h/2"], Float[Array, "B S h/2"]]:
    """cos and sin of position * theta^(-2j/h), float32 (bfloat16 rounds position 257 to 256)."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B S H h"], cos: Float[Array, "B S h/2"], sin: Float[Array, "B S h/2"]
) -> Float[Array, "B S H h"]:
    """Half-split rotary embedding: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), computed in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def rms_norm(x: Float[Array, "... D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "... D"]:
    """x / sqrt(mean(x^2) + eps) * scale; the statistics in float32, the result in x's dtype."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * scale.astype(x.dtype)


def layer_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "... D"]:
    """(x - mean) / sqrt(variance + eps) * scale + bias; statistics in float32, result in x's dtype."""
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale + bias).astype(x.dtype)
