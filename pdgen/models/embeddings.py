"""Positions, timesteps and norms, each from its formula.

Axis legend: B batch, S tokens, D width, H heads, h head size.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def sincos_table(side: int, width: int) -> Float[np.ndarray, "{side}*{side} {width}"]:
    """Compute the fixed 2-D position table, float32; its row ``r * side + c`` embeds row r, column c.

    The first half of the channels encodes the column, the second half the row. Each half is [sin, cos] of
    position / 10000^(j / (width / 4)), j = 0 .. width/4 - 1. ``width`` must be divisible by 4.
    """
    # In float64, as in the code that wrote the checkpoints' tables; float32 differs in the last bits.
    frequencies = 10000.0 ** (-np.arange(width // 4, dtype=np.float64) / (width / 4))
    angles = np.arange(side, dtype=np.float64)[:, None] * frequencies
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    by_column, by_row = np.tile(axis, (side, 1)), np.repeat(axis, side, axis=0)
    return np.concatenate([by_column, by_row], axis=1).astype(np.float32)


def timestep_features(t: Float[Array, "B S"], width: int) -> Float[Array, "B S {width}"]:
    """Return [cos(t f), sin(t f)] with f_j = 10000^(-j / (width/2)), float32; t in [0, 1], not scaled by 1000."""
    # In float32 whatever t's dtype: bfloat16 would merge neighbouring timesteps.
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def rotary_angles(
    positions: Int[Array, "B S"], head_dim: int, theta: float
) -> tuple[Float[Array, "B S {head_dim//2}"], Float[Array, "B S {head_dim//2}"]]:
    """Return cos and sin of position * theta^(-2j/h), j = 0 .. h/2 - 1, float32."""
    # In float32: bfloat16 rounds position 257 to 256.
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B S H h"], cos: Float[Array, "B S h/2"], sin: Float[Array, "B S h/2"]
) -> Float[Array, "B S H h"]:
    """Rotate the halves (x1, x2) of each head to (x1 cos - x2 sin, x2 cos + x1 sin), computed in float32."""
    # Qwen's pairs are channels j and j + h/2, not neighbours as in the original rotary embedding.
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def rms_norm(x: Float[Array, "... D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "... D"]:
    """Return x / sqrt(mean(x^2) + eps) * scale; the statistics in float32, the result in x's dtype."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    # Rounded before the scale is applied, as Qwen2's code does.
    return wide.astype(x.dtype) * scale.astype(x.dtype)


def layer_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "... D"]:
    """Return (x - mean) / sqrt(variance + eps) * scale + bias; statistics in float32, the result in x's dtype."""
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale + bias).astype(x.dtype)
