"""Rectified flow: the straight path from an image (t = 0) to noise (t = 1) and its schedule.

    z_t = (1 - t) x + t e,   e ~ N(0, 1),   velocity v = dz_t / dt = e - x

The model learns v(z_t, t, context) by mean squared error. Sampling integrates v from t = 1 down to t = 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def shift_timesteps(t: Float[Array, "..."], shift: float) -> Float[Array, "..."]:
    """Return s t / (1 + (s - 1) t), which maps [0, 1] onto itself; s > 1 moves timesteps towards noise."""
    return shift * t / (1 + (shift - 1) * t)


def interpolate(
    image: Float[Array, "*n C"], noise: Float[Array, "*n C"], t: Float[Array, "*n"]
) -> Float[Array, "*n C"]:
    """Return z_t = (1 - t) image + t noise; t is 0 at the image and 1 at the noise."""
    t = t[..., None]
    return (1 - t) * image + t * noise


def velocity_target(image: Float[Array, "*n C"], noise: Float[Array, "*n C"]) -> Float[Array, "*n C"]:
    """Return dz_t / dt = noise - image, which is the same at every t."""
    return noise - image


def schedule(num_timesteps: int, shift: float) -> Float[np.ndarray, " {num_timesteps}"]:
    """Return linspace(1, 0, n) after the shift, float32, descending; it makes n - 1 Euler steps."""
    # In numpy: which steps are guided or skipped must be known before compiling.
    t, s = np.linspace(1, 0, num_timesteps, dtype=np.float32), np.float32(shift)
    return s * t / (1 + (s - 1) * t)


def draw_timesteps(key: Array, count: int, shift: float) -> Float[Array, " {count}"]:
    """Draw training timesteps in (0, 1), float32: the sigmoid of a standard normal, then the shift."""
    return shift_timesteps(jax.nn.sigmoid(jax.random.normal(key, (count,), jnp.float32)), shift)
