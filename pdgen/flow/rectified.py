"""Rectified flow: the straight path from an image (t = 0) to noise (t = 1) and its schedule."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def shift_timesteps(t: Float[Array, "..."], shift: float) -> Float[Array, "..."]:
    """t <- s t / (1 + (s - 1) t): s > 1 spends more steps near noise. Maps [0, 1] onto itself."""
    return shift * t / (1 + (shift - 1) * t)


def interpolate(
    image: Float[Array, "*n C"], noise: Float[Array, "*n C"], t: Float[Array, "*n"]
) -> Float[Array, "*n C"]:
    """z_t = (1 - t) image + t noise."""
    t = t[..., None]
    return (1 - t) * image + t * noise


def velocity_target(image: Float[Array, "*n C"], noise: Float[Array, "*n C"]) -> Float[Array, "*n C"]:
    """d z_t / d t = noise - image."""
    return noise - image


def schedule(num_timesteps: int, shift: float) -> Float[np.ndarray, " num_timesteps"]:
    """Falling timesteps linspace(1, 0, n) after the shift, float32; n - 1 Euler steps lie between them."""
    t, s = np.linspace(1, 0, num_timesteps, dtype=np.float32), np.float32(shift)
    return s * t / (1 + (s - 1) * t)


def draw_timesteps(key: Array, count: int, shift: float) -> Float[Array, " count"]:
    """Training timesteps: sigmoid of a standard normal, then the shift."""
    return shift_timesteps(jax.nn.sigmoid(jax.random.normal(key, (count,), jnp.float32)), shift)
