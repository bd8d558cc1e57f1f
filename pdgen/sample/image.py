"""Images between pixels and tokens: grids, preparation for the encoders, decoding of latents.

Axis legend: B batch, H and W pixels, M VAE tokens, C values of a VAE token, V ViT patches, P values of a ViT patch.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Array, Float, Float32, Int, UInt32

from pdgen.config import ModelConfig
from pdgen.models import autoencoder
from pdgen.sequence.images import image_sizes, patchify, position_ids, resize, resize_size, to_pixels, unpatchify
from pdgen.sharding import map_shards

_PIXELS, _TOKENS = ("batch", None, None, None), ("batch", None, None)


@dataclasses.dataclass(frozen=True)
class ImageGrid:
    """Sizes of one image in the model, all (height, width).

    Attributes:
      pixels: of the autoencoder's input or output.
      latents: VAE tokens.
      patches: ViT tokens.
      vit_only: the context gets the ViT tokens alone (mode "understand").
    """

    pixels: tuple[int, int]
    latents: tuple[int, int]
    patches: tuple[int, int]
    vit_only: bool = False

    @property
    def cache_tokens(self) -> int:
        """Cache slots of the image: VAE and ViT tokens, each with two switch tokens."""
        return sum(h * w + 2 for h, w in ([] if self.vit_only else [self.latents]) + [self.patches])


def check_size(config: ModelConfig, height: int, width: int) -> None:
    """Raise ValueError where the model cannot draw an image of this many pixels."""
    stride, most = config.latent_stride, config.latent_stride * config.max_latent_size
    for name, side in (("height", height), ("width", width)):
        if side % stride or not stride <= side <= most:
            raise ValueError(f"{name}={side}: must be a multiple of {stride} between {stride} and {most} pixels")


def make_grid(config: ModelConfig, height: int, width: int) -> ImageGrid:
    """Return the grid of a drawn image of this many pixels, 0 = as many as the model's tables hold.

    Raises ValueError as ``check_size``.
    """
    stride = config.latent_stride
    height, width = (side or stride * config.max_latent_size for side in (height, width))
    check_size(config, height, width)
    return ImageGrid((height, width), (height // stride, width // stride), _make_patch_grid(config, height, width))


def make_picture_grid(config: ModelConfig, picture: PIL.Image.Image, given: bool, vit_only: bool = False) -> ImageGrid:
    """Return the grid of a picture that ``prepare_images`` takes.

    Args:
      given: it comes from the user and is resized; a drawn picture keeps its size.
      vit_only: the context gets the ViT tokens alone.

    Raises:
      ValueError: a drawn picture has a size that the model cannot draw.
    """
    width, height = resize_size(*picture.size, image_sizes(config).vae) if given else picture.size
    # The ViT resizes the picture itself, not the autoencoder's copy.
    patches = _make_patch_grid(config, picture.height, picture.width)
    return dataclasses.replace(make_grid(config, height, width), patches=patches, vit_only=vit_only)


def _make_patch_grid(config: ModelConfig, height: int, width: int) -> tuple[int, int]:
    width, height = resize_size(width, height, image_sizes(config).vit)
    return height // config.vision.patch_size, width // config.vision.patch_size


class PreparedImages(NamedTuple):
    """Pictures of one grid as the encoders take them, values in [-1, 1].

    Attributes:
      pixels: input of the autoencoder.
      patches: input of the ViT.
      seed: of the posterior's sample: a digest of the pixels, so that a picture has the same latents in any row.
    """

    pixels: Float32[Array | np.ndarray, "B H W 3"]
    patches: Float32[Array | np.ndarray, "B V P"]
    seed: UInt32[Array | np.ndarray, " B"]


def prepare_images(config: ModelConfig, pictures: Sequence[PIL.Image.Image], given: bool = False) -> PreparedImages:
    """Resize pictures of one size for the ViT and cut them into patches, as for training.

    Args:
      given: they come from the user and are resized for the autoencoder too; drawn ones are read as they are.
    """
    sizes, patch = image_sizes(config), config.vision.patch_size
    patches = [patchify(to_pixels(resize(picture, sizes.vit)), patch) for picture in pictures]
    pixels = [to_pixels(resize(picture, sizes.vae) if given else picture) for picture in pictures]
    seeds = [zlib.crc32(values.tobytes()) for values in pixels]
    return PreparedImages(np.stack(pixels), np.stack(patches), np.array(seeds, np.uint32))


def decode(
    config: ModelConfig, grid: ImageGrid, params: dict[str, Any], latents: Float[Array, "B M C"]
) -> Float[Array, "B H W 3"]:
    """Decode clean VAE tokens to pixels in [-1, 1]."""

    def decode_rows(params: dict, latents: Array) -> Array:
        values = unpatchify(latents, grid.latents, config.latent_patch_size)
        return jnp.clip(autoencoder.decode(config.autoencoder, params, values), -1, 1)

    return map_shards(decode_rows, (_replicate(params), _TOKENS), _PIXELS)(params["autoencoder"], latents)


def encode_latents(config: ModelConfig, params: dict[str, Any], images: PreparedImages) -> Float[Array, "B M C"]:
    """Encode images to clean VAE tokens: a sample of the posterior from each image's seed, scaled and patchified."""

    def encode_rows(params: dict, pixels: Array, seed: Array) -> Array:
        mean, logvar = autoencoder.encode(config.autoencoder, params, pixels)
        drawn = jax.vmap(autoencoder.sample_posterior)(mean, logvar, jax.vmap(jax.random.key)(seed))
        return patchify(autoencoder.latent_from_moments(config.autoencoder, drawn), config.latent_patch_size)

    mapped = map_shards(encode_rows, (_replicate(params), _PIXELS, ("batch",)), _TOKENS)
    return mapped(params["autoencoder"], jnp.asarray(images.pixels), jnp.asarray(images.seed))


def make_positions(config: ModelConfig, grid: tuple[int, int], side: int, batch: int) -> Int[Array, "B M"]:
    """Return the position ids of a grid's tokens in a table of ``side`` x ``side``, the same in every row."""
    ids = jnp.asarray(position_ids(grid, side, config.interpolate_positions))
    return jnp.broadcast_to(ids, (batch, ids.shape[0]))


def _replicate(params: dict[str, Any]) -> Any:
    """Keep the autoencoder's parameters whole on every device, which decodes or encodes its own rows."""
    return jax.tree.map(lambda leaf: (None,) * leaf.ndim, params["autoencoder"])
