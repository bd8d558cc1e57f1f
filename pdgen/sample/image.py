"""Images between pixels, tokens and contexts: grids, pictures as the model reads them, drawing, reading.

Axis legend: B batch, H and W pixels, M VAE tokens, C values of a VAE token, V ViT patches, P values of a ViT patch,
N vocabulary.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Array, Bool, Float, Float32, UInt32

from pdgen.config import ComputeConfig, ModelConfig
from pdgen.flow import denoise
from pdgen.flow.denoise import Contexts, Denoiser
from pdgen.models import autoencoder, bagel
from pdgen.models.context import Cache, add_latents, add_vit
from pdgen.sequence.images import image_sizes, patchify, position_ids, resize, resize_size, to_pixels, unpatchify
from pdgen.sharding import map_shards, place

_PIXELS, _TOKENS = ("batch", None, None, None), ("batch", None, None)


@dataclasses.dataclass(frozen=True)
class ImageGrid:
    """Sizes of one image on its way through the model, all (height, width).

    Attributes:
      pixels: as the autoencoder sees it.
      latents: VAE tokens; None for an image that is only looked at (mode "understand").
      patches: ViT tokens.
    """

    pixels: tuple[int, int]
    latents: tuple[int, int] | None
    patches: tuple[int, int]

    @property
    def cache_tokens(self) -> int:
        """Slots that the image takes in a context: its copies, each with two switch tokens."""
        return sum(h * w + 2 for h, w in filter(None, (self.latents, self.patches)))


def check_size(config: ModelConfig, height: int, width: int) -> None:
    """Raises ValueError where an image of this many pixels is none that the model can draw."""
    stride, most = config.latent_stride, config.latent_stride * config.max_latent_size
    for name, side in (("height", height), ("width", width)):
        if side % stride or not stride <= side <= most:
            raise ValueError(f"{name}={side}: must be a multiple of {stride} between {stride} and {most} pixels")


def image_grid(config: ModelConfig, height: int, width: int) -> ImageGrid:
    """The grid of an image that is drawn with this many pixels. Raises ValueError like ``check_size``."""
    check_size(config, height, width)
    stride = config.latent_stride
    return ImageGrid((height, width), (height // stride, width // stride), _patch_grid(config, height, width))


def _patch_grid(config: ModelConfig, height: int, width: int) -> tuple[int, int]:
    width, height = resize_size(width, height, image_sizes(config).vit)
    return height // config.vision.patch_size, width // config.vision.patch_size


class Pictures(NamedTuple):
    """Pictures of one grid as the model reads them, values in [-1, 1].

    Attributes:
      pixels: for the autoencoder.
      patches: for the ViT.
      seed: of the posterior's sample: a digest of the pixels, so that a picture is read alike wherever it stands.
    """

    pixels: Float32[np.ndarray, "B H W 3"]
    patches: Float32[np.ndarray, "B V P"]
    seed: UInt32[np.ndarray, " B"]


def prepare(config: ModelConfig, pictures: Sequence[PIL.Image.Image], given: bool = False) -> Pictures:
    """Pictures of one size, resized for the ViT and cut into patches as training data are.

    Args:
      given: they come from outside and are resized for the autoencoder too; a drawn one is read as it is.
    """
    sizes, patch = image_sizes(config), config.vision.patch_size
    patches = [patchify(to_pixels(resize(picture, sizes.vit)), patch) for picture in pictures]
    pixels = [to_pixels(resize(picture, sizes.vae) if given else picture) for picture in pictures]
    seeds = [zlib.crc32(values.tobytes()) for values in pixels]
    return Pictures(np.stack(pixels), np.stack(patches), np.array(seeds, np.uint32))


def grid_of(config: ModelConfig, picture: PIL.Image.Image, given: bool, looked_at: bool) -> ImageGrid:
    """The grid of a picture that ``prepare`` makes ready. Raises ValueError where it was drawn in an illegal size."""
    width, height = resize_size(*picture.size, image_sizes(config).vae) if given else picture.size
    grid = image_grid(config, height, width)
    latents = None if looked_at else grid.latents
    return ImageGrid(grid.pixels, latents, _patch_grid(config, picture.height, picture.width))


def draw(
    denoiser: Denoiser,
    grid: ImageGrid,
    steps: tuple[int, int],
    params: dict[str, Any],
    contexts: Contexts,
    start: Array | denoise.Progress,
) -> denoise.Progress:
    """A stretch of one image's denoising in every row.

    Args:
      steps: the first and last+1 Euler step.
      start: each row's key, from which its noise comes, or what the stretch before has led to.
    """
    config, (h, w) = denoiser.config, grid.latents
    positions = _positions(config, grid.latents, config.max_latent_size, contexts.full.length.shape[0])
    if not isinstance(start, denoise.Progress):
        noise = jax.vmap(lambda key: jax.random.normal(key, (h * w, config.latent_dim), jnp.float32))(start)
        start = denoise.begin(denoiser, noise, contexts.image is not None)
    return denoise.advance(denoiser, params["model"], contexts, positions, start, steps)


def decode(
    config: ModelConfig, grid: ImageGrid, params: dict[str, Any], latents: Float[Array, "B M C"]
) -> Float[Array, "B H W 3"]:
    """Pixels in [-1, 1] of clean VAE tokens."""

    def local(params: dict, latents: Array) -> Array:
        values = unpatchify(latents, grid.latents, config.latent_patch_size)
        return jnp.clip(autoencoder.decode(config.autoencoder, params, values), -1, 1)

    return map_shards(local, (_whole(params), _TOKENS), _PIXELS)(params["autoencoder"], latents)


def clean_latents(config: ModelConfig, params: dict[str, Any], pictures: Pictures) -> Float[Array, "B M C"]:
    """VAE tokens of pictures: a sample of the posterior from each picture's seed, scaled and patchified."""

    def local(params: dict, pixels: Array, seed: Array) -> Array:
        mean, logvar = autoencoder.encode(config.autoencoder, params, pixels)
        drawn = jax.vmap(autoencoder.sample_posterior)(mean, logvar, jax.vmap(jax.random.key)(seed))
        return patchify(autoencoder.latent_from_moments(config.autoencoder, drawn), config.latent_patch_size)

    mapped = map_shards(local, (_whole(params), _PIXELS, ("batch",)), _TOKENS)
    return mapped(params["autoencoder"], jnp.asarray(pictures.pixels), jnp.asarray(pictures.seed))


def read(
    model: tuple[ModelConfig, ComputeConfig],
    grid: ImageGrid,
    switches: tuple[int, int],
    params: dict[str, Any],
    cache: Cache,
    pictures: Pictures,
    active: Bool[Array, " B"],
) -> tuple[Cache, Float[Array, "B N"]]:
    """Adds an image to the context of every active row: clean VAE tokens, if any, then ViT tokens.

    Args:
      switches: ids of <|vision_start|> and <|vision_end|>.

    Returns:
      The longer context and the logits after the image, which decide what follows.
    """
    (config, compute), batch, tree = model, active.shape[0], params["model"]
    if grid.latents is not None:
        latents = clean_latents(config, params, pictures)
        positions = _positions(config, grid.latents, config.max_latent_size, batch)
        cache, _ = add_latents(config, compute, tree, cache, (latents, positions), switches, active)
    positions = _positions(config, grid.patches, config.vision.max_side, batch)
    cache, hidden = add_vit(config, compute, tree, cache, (pictures.patches, positions), switches, active)
    return cache, place(bagel.logits(tree, hidden[:, -1:])[:, 0], None, None)


def _whole(params: dict[str, Any]) -> Any:
    """The autoencoder's parameters are on every device, which decodes or encodes its own rows."""
    return jax.tree.map(lambda leaf: (None,) * leaf.ndim, params["autoencoder"])


def _positions(config: ModelConfig, grid: tuple[int, int], side: int, batch: int) -> Array:
    ids = jnp.asarray(position_ids(grid, side, config.interpolate_positions))
    return jnp.broadcast_to(ids, (batch, ids.shape[0]))
