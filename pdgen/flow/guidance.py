"""Classifier-free guidance on text and image contexts, with the norm of the velocity limited.

Axis legend: B batch, M VAE tokens, C values of a VAE token. Norms are per row of the batch (or per token),
so a trajectory's guidance does not depend on the rows beside it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

RENORMS = ("global", "channel", "text_channel")


def guide(
    v: Float[Array, "B M C"],
    v_text: Float[Array, "B M C"],
    v_image: Float[Array, "B M C"] | None,
    has_image: Bool[Array, " B"],
    scales: tuple[float, float],
    renorm: str,
    renorm_min: float,
) -> Float[Array, "B M C"]:
    """Return the guided velocity.

        g = v_text + s_text (v - v_text);   g = v_image + s_image (g - v_image)
        result = g * clip(|v| / (|g| + 1e-8), renorm_min, 1)

    Args:
      v: velocity given the whole context.
      v_text: velocity without the texts since the last image.
      v_image: velocity without images; None turns image guidance off.
      has_image: rows whose context contains an image. Image guidance does not change the other rows.
      scales: (s_text, s_image).
      renorm: of ``RENORMS``: "global" takes norms over a whole row, "channel" per token; "text_channel" rescales per
        token after the text step and not after the image step.
      renorm_min: lower bound of the rescaling factor, within [0, 1].
    """
    g = v_text + scales[0] * (v - v_text)
    if renorm == "text_channel":
        return _guide_by_image(_rescale(g, v, renorm, renorm_min), v_image, has_image, scales[1])
    return _rescale(_guide_by_image(g, v_image, has_image, scales[1]), v, renorm, renorm_min)


def _guide_by_image(g: Array, v_image: Array | None, has_image: Array, scale: float) -> Array:
    if v_image is None:
        return g
    return jnp.where(has_image[:, None, None], v_image + scale * (g - v_image), g)


def _rescale(g: Array, v: Array, renorm: str, renorm_min: float) -> Array:
    # A guided velocity is longer than ``v``, which oversaturates the image. Scale it down to the length of ``v``.
    axes = (1, 2) if renorm == "global" else (2,)
    size, guided_size = (jnp.sqrt(jnp.sum(x * x, axis=axes, keepdims=True)) for x in (v, g))
    return g * jnp.clip(size / (guided_size + 1e-8), renorm_min, 1.0)
