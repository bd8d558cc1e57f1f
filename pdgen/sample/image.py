"""Drawing one image and reading images into the contexts, compiled.

Axis legend: B batch, H and W pixels, M VAE tokens, C values of a VAE token, N vocabulary.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.flow.denoise import Contexts, Denoiser, generate_latents
from pdgen.interleave.images import image_sizes, patchify, position_ids, resize_size, unpatchify
from pdgen.models import autoencoder, bagel
from pdgen.models.context import Cache, add_latents, add_vit


@dataclasses.dataclass(frozen=True)
class ImageGrid:
    """Sizes of one image on its way through the model, all (height, width).

    Attributes:
      pixels: the picture.
      latents: VAE tokens.
      vit_pixels: the picture as the ViT sees it.
    """

    pixels: tuple[int, int]
    latents: tuple[int, int]
    vit_pixels: tuple[int, int]

    @property
    def cache_tokens(self) -> int:
        """Slots that the image takes in a context, VAE copy and ViT copy with their switch tokens."""
        return self.latents[0] * self.latents[1] + self.vit_tokens + 4

    vit_tokens: int = 0


def image_grid(config: ModelConfig, height: int, width: int) -> ImageGrid:
    """The grid of an image of this many pixels.

    Raises:
      ValueError: the sides are not multiples of the latent stride, or exceed the position tables.
    """
    stride, most = config.latent_stride, config.latent_stride * config.max_latent_size
    for name, side in (("height", height), ("width", width)):
        if side % stride or not stride <= side <= most:
            raise ValueError(f"{name}={side}: must be a multiple of {stride} between {stride} and {most} pixels")
    vit_width, vit_height = resize_size(width, height, image_sizes(config).vit)
    patch = config.vision.patch_size
    return ImageGrid((height, width), (height // stride, width // stride), (vit_height, vit_width),
                     (vit_height // patch) * (vit_width // patch))  # fmt: skip


def draw(
    denoiser: Denoiser, grid: ImageGrid, params: dict[str, Any], contexts: Contexts, keys: Array
) -> Float[Array, "B H W 3"]:
    """Denoises one image in every row and decodes it to pixels in [-1, 1]; noise comes from each row's key."""
    config, (h, w) = denoiser.config, grid.latents
    noise = jax.vmap(lambda key: jax.random.normal(key, (h * w, config.latent_dim), jnp.float32))(keys)
    ids = jnp.asarray(position_ids(grid.latents, config.max_latent_size, config.interpolate_positions))
    positions = jnp.broadcast_to(ids, (keys.shape[0], h * w))
    latents = generate_latents(denoiser, params["model"], contexts, noise, positions)
    image = autoencoder.decode(
        config.autoencoder, params["autoencoder"], unpatchify(latents, grid.latents, config.latent_patch_size)
    )
    return jnp.clip(image, -1, 1)


def read(
    model: tuple[ModelConfig, ComputeConfig],
    grid: ImageGrid,
    switches: tuple[int, int],
    params: dict[str, Any],
    cache: Cache,
    rows: tuple[Float[Array, "B H W 3"], Bool[Array, " B"], Array],
) -> tuple[Cache, Float[Array, "B N"]]:
    """Adds an image to the context of every active row: clean VAE tokens, then ViT tokens.

    Args:
      switches: ids of <|vision_start|> and <|vision_end|>.
      rows: pixels in [-1, 1], whether the row takes part, and a key for the posterior's sample.

    Returns:
      The longer context and the logits after the image, which decide what follows.
    """
    (config, compute), (pixels, active, keys) = model, rows
    mean, logvar = autoencoder.encode(config.autoencoder, params["autoencoder"], pixels)
    moments = jax.vmap(autoencoder.sample_posterior)(mean, logvar, keys)
    latents = patchify(autoencoder.latent_from_moments(config.autoencoder, moments), config.latent_patch_size)
    cache, _ = add_latents(
        config, compute, params["model"], cache,
        (latents, _positions(config, grid.latents, config.max_latent_size, pixels)), switches, active,
    )  # fmt: skip
    shape = (pixels.shape[0], *grid.vit_pixels, pixels.shape[3])
    seen = pixels if grid.vit_pixels == grid.pixels else jax.image.resize(pixels, shape, "cubic")
    patch = config.vision.patch_size
    cells = (grid.vit_pixels[0] // patch, grid.vit_pixels[1] // patch)
    cache, hidden = add_vit(
        config, compute, params["model"], cache,
        (patchify(seen, patch), _positions(config, cells, config.vision.max_side, pixels)), switches, active,
    )  # fmt: skip
    return cache, bagel.logits(params["model"], hidden[:, -1:])[:, 0]


def _positions(config: ModelConfig, grid: tuple[int, int], side: int, pixels: Array) -> Array:
    ids = jnp.asarray(position_ids(grid, side, config.interpolate_positions))
    return jnp.broadcast_to(ids, (pixels.shape[0], ids.shape[0]))
