"""Drawing one image and reading images into the contexts, compiled.

Axis legend: B batch, H and W pixels, M VAE tokens, C values of a VAE token, P values of a ViT patch,
N vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Array, Bool, Float, Float32

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.flow.denoise import Contexts, Denoiser, generate_latents
from pdgen.interleave.images import image_sizes, patchify, position_ids, resize, resize_size, to_pixels, unpatchify
from pdgen.models import autoencoder, bagel
from pdgen.models.context import Cache, add_latents, add_vit


@dataclasses.dataclass(frozen=True)
class ImageGrid:
    """Sizes of one image on its way through the model, all (height, width).

    Attributes:
      pixels: the picture.
      latents: VAE tokens.
      patches: ViT tokens.
    """

    pixels: tuple[int, int]
    latents: tuple[int, int]
    patches: tuple[int, int]

    @property
    def cache_tokens(self) -> int:
        """Slots that the image takes in a context, VAE copy and ViT copy with their switch tokens."""
        return self.latents[0] * self.latents[1] + self.patches[0] * self.patches[1] + 4


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
    return ImageGrid((height, width), (height // stride, width // stride), (vit_height // patch, vit_width // patch))


def draw(
    denoiser: Denoiser, grid: ImageGrid, params: dict[str, Any], contexts: Contexts, keys: Array
) -> Float[Array, "B H W 3"]:
    """Denoises one image in every row and decodes it to pixels in [-1, 1]; noise comes from each row's key."""
    config, (h, w) = denoiser.config, grid.latents
    noise = jax.vmap(lambda key: jax.random.normal(key, (h * w, config.latent_dim), jnp.float32))(keys)
    positions = _positions(config, grid.latents, config.max_latent_size, keys.shape[0])
    latents = generate_latents(denoiser, params["model"], contexts, noise, positions)
    image = autoencoder.decode(
        config.autoencoder, params["autoencoder"], unpatchify(latents, grid.latents, config.latent_patch_size)
    )
    return jnp.clip(image, -1, 1)


class Pictures(NamedTuple):
    """One picture per row as the model reads it: pixels for the autoencoder, patches for the ViT, in [-1, 1]."""

    pixels: Float32[np.ndarray, "B H W 3"]
    patches: Float32[np.ndarray, "B V P"]


def prepare(config: ModelConfig, pictures: Sequence[PIL.Image.Image]) -> Pictures:
    """Pictures of one size, resized for the ViT and cut into patches as training data are."""
    rule, patch = image_sizes(config).vit, config.vision.patch_size
    patches = [patchify(to_pixels(resize(picture, rule)), patch) for picture in pictures]
    return Pictures(np.stack([to_pixels(picture) for picture in pictures]), np.stack(patches))


def clean_latents(
    config: ModelConfig, params: dict[str, Any], pixels: Float[Array, "B H W 3"], keys: Array
) -> Float[Array, "B M C"]:
    """VAE tokens of pictures: a sample of the posterior from each row's key, scaled and patchified."""
    mean, logvar = autoencoder.encode(config.autoencoder, params["autoencoder"], pixels)
    moments = jax.vmap(autoencoder.sample_posterior)(mean, logvar, keys)
    return patchify(autoencoder.latent_from_moments(config.autoencoder, moments), config.latent_patch_size)


def read(
    model: tuple[ModelConfig, ComputeConfig],
    grid: ImageGrid,
    switches: tuple[int, int],
    params: dict[str, Any],
    cache: Cache,
    rows: tuple[Pictures, Bool[Array, " B"], Array],
) -> tuple[Cache, Float[Array, "B N"]]:
    """Adds an image to the context of every active row: clean VAE tokens, then ViT tokens.

    Args:
      switches: ids of <|vision_start|> and <|vision_end|>.
      rows: the pictures, whether the row takes part, and a key for the posterior's sample.

    Returns:
      The longer context and the logits after the image, which decide what follows.
    """
    (config, compute), (pictures, active, keys) = model, rows
    batch, tree = active.shape[0], params["model"]
    latents = clean_latents(config, params, pictures.pixels, keys)
    positions = _positions(config, grid.latents, config.max_latent_size, batch)
    cache, _ = add_latents(config, compute, tree, cache, (latents, positions), switches, active)
    positions = _positions(config, grid.patches, config.vision.max_side, batch)
    cache, hidden = add_vit(config, compute, tree, cache, (pictures.patches, positions), switches, active)
    return cache, bagel.logits(tree, hidden[:, -1:])[:, 0]


def _positions(config: ModelConfig, grid: tuple[int, int], side: int, batch: int) -> Array:
    ids = jnp.asarray(position_ids(grid, side, config.interpolate_positions))
    return jnp.broadcast_to(ids, (batch, ids.shape[0]))
