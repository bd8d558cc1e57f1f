"""Images on their way to tokens: decoding, sizes, patches, position ids.

Axes: H, W pixels or latent values of a side, h, w patches of a side, p patch side, C channels.
Pixels are float32 in [-1, 1], channels last. ``patchify`` and ``unpatchify`` work on numpy and JAX arrays.
"""

import dataclasses
import io
from typing import TypeVar

import numpy as np
import PIL.Image
from jaxtyping import Array, Bool, Float32, Int32, Shaped, UInt8

from pdgen.config import ModelConfig

Values = TypeVar("Values", np.ndarray, Array)

MAX_PIXELS = 14 * 14 * 9 * 1024  # the base model's own limit, for ViT and autoencoder alike
# A pixel has changed where a channel differs by more than this, of 255: a decoder's own noise stays below.
CHANGE = 40

Picture = UInt8[np.ndarray, "height width 3"]  # RGB, 0 to 255


class ImageError(ValueError):
    """Bytes are no readable image, or an image does not suit the model; one line names the remedy."""


@dataclasses.dataclass(frozen=True)
class SizeRule:
    """Which size an image is resized to. Sides in pixels; ``stride`` divides the resized sides."""

    max_size: int
    min_size: int
    stride: int
    max_pixels: int = MAX_PIXELS


@dataclasses.dataclass(frozen=True)
class ImageSizes:
    """The size rules of the two image inputs of a model."""

    vae: SizeRule
    vit: SizeRule


def image_sizes(config: ModelConfig) -> ImageSizes:
    """The size rules of a model.

    The longest side is what the position tables hold. BAGEL (16 pixels a VAE token, 14 a ViT token) brings
    short sides up to 512 and 224 pixels; any other model takes small images as they are.
    """
    vae, vit = config.latent_stride, config.vision.patch_size
    short_sides = (512, 224) if (vae, vit) == (16, 14) else (vae, vit)
    return ImageSizes(
        vae=SizeRule(vae * config.max_latent_size, short_sides[0], vae),
        vit=SizeRule(vit * config.vision.max_side, short_sides[1], vit),
    )


def resize_size(width: int, height: int, rule: SizeRule) -> tuple[int, int]:
    """The (width, height) in pixels that the base model resizes an image to.

    The scale is max(min(max_size / long side, 1), min_size / short side). Where the result still has more
    than ``max_pixels``, it is scaled by their ratio itself (no square root, as in the base model), and
    where its long side still exceeds ``max_size``, down to that.
    """

    def scaled(side: int, scale: float) -> int:
        return max(rule.stride, round(round(side * scale) / rule.stride) * rule.stride)

    scale = max(min(rule.max_size / max(width, height), 1.0), rule.min_size / min(width, height))
    width, height = scaled(width, scale), scaled(height, scale)
    if width * height > rule.max_pixels:
        scale = rule.max_pixels / (width * height)
        width, height = scaled(width, scale), scaled(height, scale)
    if max(width, height) > rule.max_size:
        scale = rule.max_size / max(width, height)
        width, height = scaled(width, scale), scaled(height, scale)
    return width, height


def resize(image: PIL.Image.Image, rule: SizeRule) -> PIL.Image.Image:
    """The image at ``resize_size`` of its size, bicubic; the image itself where that changes nothing."""
    size = resize_size(*image.size, rule)
    return image if size == image.size else image.resize(size, PIL.Image.Resampling.BICUBIC)


def decode_image(data: bytes, name: str = "image") -> PIL.Image.Image:
    """PNG or JPEG bytes as an RGB image; what is transparent shows white.

    Raises:
      ImageError: the bytes are not a whole PNG or JPEG; the message begins with ``name``.
    """
    try:
        with PIL.Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            return to_rgb(image)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as fault:
        raise ImageError(f"{name}: not a readable PNG or JPEG ({why_unreadable(fault)})") from None


def why_unreadable(fault: Exception) -> str:
    """What Pillow says of bytes that are no image, without the object in memory that it names."""
    return "its bytes are of no such format" if isinstance(fault, PIL.UnidentifiedImageError) else str(fault)


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image with three channels of 8 bits: what is transparent shows white, 16-bit grey is scaled down."""
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255
        return PIL.Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = PIL.Image.new("RGBA", image.size, "white")
    return PIL.Image.alpha_composite(white, image).convert("RGB")


def image_size(data: bytes, name: str = "image") -> tuple[int, int]:
    """(width, height) from the header alone. Raises ImageError like ``decode_image``."""
    try:
        with PIL.Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as fault:
        raise ImageError(f"{name}: not a readable PNG or JPEG ({why_unreadable(fault)})") from None


def encode_png(image: PIL.Image.Image | Picture) -> bytes:
    """The image as PNG bytes."""
    buffer = io.BytesIO()
    (PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format="PNG")
    return buffer.getvalue()


def to_pixels(image: PIL.Image.Image) -> Float32[np.ndarray, "H W 3"]:
    """An RGB image as pixels in [-1, 1]."""
    return np.asarray(image.convert("RGB"), np.float32) / np.float32(127.5) - np.float32(1)


def from_pixels(pixels: Float32[np.ndarray, "H W 3"]) -> PIL.Image.Image:
    """The RGB image of pixels in [-1, 1]; values beyond are clipped."""
    values = np.clip((np.asarray(pixels, np.float32) + 1) * 127.5, 0, 255)
    return PIL.Image.fromarray(np.round(values).astype(np.uint8))


def patchify(values: Shaped[Values, "... H W C"], patch: int) -> Shaped[Values, "... hw ppC"]:
    """Cuts [.., H, W, C] into patches [.., h * w, p * p * C], row-major, each (row, column, channel).

    Raises:
      ValueError: ``patch`` does not divide H and W.
    """
    *batch, height, width, channels = values.shape
    if height % patch or width % patch:
        raise ValueError(f"patches of side {patch} do not tile {height} x {width}")
    grid = values.reshape(*batch, height // patch, patch, width // patch, patch, channels)
    return grid.swapaxes(-4, -3).reshape(*batch, -1, patch * patch * channels)


def unpatchify(tokens: Shaped[Values, "... hw ppC"], grid: tuple[int, int], patch: int) -> Shaped[Values, "... H W C"]:
    """The inverse of ``patchify``; ``grid`` is (h, w)."""
    *batch, _, width = tokens.shape
    h, w = grid
    blocks = tokens.reshape(*batch, h, w, patch, patch, width // patch**2)
    return blocks.swapaxes(-4, -3).reshape(*batch, h * patch, w * patch, width // patch**2)


def position_ids(grid: tuple[int, int], max_side: int, interpolate: bool = False) -> Int32[np.ndarray, " hw"]:
    """Rows of a position table for a grid of (h, w) patches, row-major.

    row * max_side + column, or with ``interpolate`` the grid stretched over the whole table:
    floor(row * max_side / h) * max_side + floor(column * max_side / w).

    Raises:
      ImageError: the grid exceeds the table.
    """
    h, w = grid
    if max(h, w) > max_side:
        raise ImageError(
            f"an image of {h} x {w} patches exceeds the position table of side {max_side}; resize it first"
        )
    rows, columns = np.arange(h), np.arange(w)
    if interpolate:
        rows, columns = rows * max_side // h, columns * max_side // w
    return (rows[:, None] * max_side + columns).reshape(-1).astype(np.int32)


def changed_pixels(before: UInt8[np.ndarray, "H W 3"], after: UInt8[np.ndarray, "H W 3"]) -> Bool[np.ndarray, "H W"]:
    """Which pixels of two images differ by more than ``CHANGE`` in a channel. Raises ValueError for two sizes."""
    if before.shape != after.shape:
        raise ValueError(f"images of {before.shape} and {after.shape} values have no common pixels to compare")
    return np.any(np.abs(np.subtract(after, before, dtype=np.int16)) > CHANGE, axis=-1)
