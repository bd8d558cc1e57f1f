"""From image files to patches: decoding, resizing, pixels, patches, position ids.

Pixels are float32 in [-1, 1], channels last. ``patchify`` and ``unpatchify`` work on numpy and JAX arrays.

Axis legend: H, W pixels or latent values of a side, h, w patches of a side, p patch side, C channels.
"""

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Container, Generator
from typing import TypeVar, cast

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
from absl import logging
from jaxtyping import Array, Bool, Float32, Int32, Shaped, UInt8

from pdgen.config import ModelConfig
from pdgen.files import shorten_fault

Values = TypeVar("Values", np.ndarray, Array)

MAX_PIXELS = 14 * 14 * 9 * 1024  # BAGEL's limit, for both the ViT and the autoencoder
# Of an image file. Larger ones are scans, mistakes or attacks.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_FILE_BYTES = 2**28
MAX_FILE_PIXELS = 2**26  # 8,192 x 8,192
MAX_FILE_SIDE = 2**16 - 1  # the longest that a JPEG has

# A pixel has changed if a channel differs by more than this, of 255. The noise of the decoder is smaller.
CHANGE = 40

Picture = UInt8[np.ndarray, "height width 3"]  # RGB, 0 to 255


class ImageError(ValueError):
    """Bytes are not a readable image, or an image does not fit the model; the message is one line with the remedy."""


class ImageTooLargeError(ImageError):
    """An image file exceeds a limit of bytes, pixels or sides; it was not decoded."""


# Pillow's own limit would print a warning, without the file's name, before ``_open_image`` compares the size in the
# header with this module's limits.
PIL.Image.MAX_IMAGE_PIXELS = None


def ignore_warnings() -> None:
    """Ignore Pillow's warnings from now on. They name no file, and are about damaged EXIF, of which nothing is used."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


ignore_warnings()  # not around each call: filters belong to the process, and pictures are read in threads


@dataclasses.dataclass(frozen=True)
class SizeRule:
    """Limits for resizing an image, in pixels; ``stride`` divides the resized sides."""

    max_size: int
    min_size: int
    stride: int
    max_pixels: int = MAX_PIXELS


@dataclasses.dataclass(frozen=True)
class ImageSizes:
    """The size rules of a model's two image inputs."""

    vae: SizeRule
    vit: SizeRule


def image_sizes(config: ModelConfig) -> ImageSizes:
    """Return the size rules of a model.

    The position tables limit the long side. BAGEL enlarges short sides to 512 and 224 pixels. Other models do not
    enlarge images beyond one token.
    """
    vae, vit = config.latent_stride, config.vision.patch_size
    short_sides = (512, 224) if config.is_bagel else (vae, vit)
    return ImageSizes(
        vae=SizeRule(vae * config.max_latent_size, short_sides[0], vae),
        vit=SizeRule(vit * config.vision.max_side, short_sides[1], vit),
    )


def resize_size(width: int, height: int, rule: SizeRule) -> tuple[int, int]:
    """Return the (width, height) in pixels to which BAGEL resizes an image.

    The scale is max(min(max_size / long side, 1), min_size / short side). A result of more than ``max_pixels`` is
    scaled again by the ratio of the two. A long side that still exceeds ``max_size`` is scaled down to it.
    """

    def scaled(side: int, scale: float) -> int:
        return max(rule.stride, round(round(side * scale) / rule.stride) * rule.stride)

    scale = max(min(rule.max_size / max(width, height), 1.0), rule.min_size / min(width, height))
    width, height = scaled(width, scale), scaled(height, scale)
    if width * height > rule.max_pixels:
        scale = rule.max_pixels / (width * height)  # BAGEL takes no square root here
        width, height = scaled(width, scale), scaled(height, scale)
    if max(width, height) > rule.max_size:
        scale = rule.max_size / max(width, height)
        width, height = scaled(width, scale), scaled(height, scale)
    return width, height


def resize(image: PIL.Image.Image, rule: SizeRule) -> PIL.Image.Image:
    """Resize an image to ``resize_size`` of its size, bicubic; return the same image if its size does not change."""
    size = resize_size(*image.size, rule)
    return image if size == image.size else image.resize(size, PIL.Image.Resampling.BICUBIC)


@contextlib.contextmanager
def _open_image(data: bytes, name: str) -> Generator[PIL.Image.Image]:
    """Open the bytes of an image file of one of ``FORMATS``, within the limits.

    Raises:
      ImageTooLargeError: the file exceeds a limit; it is not decoded.
      ImageError: the body or Pillow raised anything else.
    """
    if len(data) > MAX_FILE_BYTES:
        raise ImageTooLargeError(f"{name}: {len(data):,} bytes are too many, at most {MAX_FILE_BYTES:,} are read")
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_FILE_PIXELS or max(width, height) > MAX_FILE_SIDE:
                raise ImageTooLargeError(
                    f"{name}: {width} x {height} pixels are too many, at most {MAX_FILE_PIXELS:,} are read, and "
                    f"{MAX_FILE_SIDE:,} on a side; scale it down"
                )
            if image.format == "PNG":
                _scale_transparency(image, depth=data[24])
            yield image
    except ImageError:
        raise
    except Exception as fault:  # on damaged files Pillow's formats raise nearly every class
        unknown = isinstance(fault, PIL.UnidentifiedImageError)  # its words have the address of a buffer
        reason = "its bytes are of no such format" if unknown else shorten_fault(fault)
        raise ImageError(f"{name}: not a readable PNG, JPEG, WebP, BMP or GIF ({reason})") from None


def _scale_transparency(image: PIL.Image.Image, depth: int) -> None:
    """Scale the transparent value (tRNS) of a PNG of ``depth`` bits as Pillow scales the pixels, which it forgets."""
    value = image.info.get("transparency")
    if image.mode == "L" and depth < 8 and isinstance(value, int):
        image.info["transparency"] = value * 255 // (2**depth - 1)
    elif image.mode == "RGB" and depth == 16 and isinstance(value, tuple):
        image.info["transparency"] = tuple(channel >> 8 for channel in value)


def decode_image(data: bytes, name: str = "image") -> PIL.Image.Image:
    """Decode the bytes of a PNG, JPEG, WebP, BMP or GIF to an RGB image.

    It is turned upright as its EXIF orientation says, and transparent parts are white. Of an animation the first frame
    is read, which is logged.

    Raises:
      ImageTooLargeError: it has more than ``MAX_FILE_BYTES`` bytes or ``MAX_FILE_PIXELS`` pixels, or a side of more
        than ``MAX_FILE_SIDE``. Then it is not decoded.
      ImageError: the bytes are not a complete image of these formats; the message begins with ``name``.
    """
    with _open_image(data, name) as image:
        picture = to_rgb(image)
        if _is_animated(image):
            logging.warning("%s: an animation; only its first frame is read", name)
        return picture


def _is_animated(image: PIL.Image.Image) -> bool:
    # The further images of a JPEG are previews, which phones write.
    return image.format in ("GIF", "WEBP", "PNG") and getattr(image, "is_animated", False)


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert an image to three channels of 8 bits, upright, on white where it is transparent.

    The EXIF orientation is applied and removed; EXIF that cannot be read turns nothing. 16-bit grey is scaled down.
    """
    image.load()
    with contextlib.suppress(SyntaxError):  # no EXIF at all behind its tag
        image = PIL.ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255 and forgets what is transparent
        values = np.asarray(image)
        grey = (values.clip(0, 65535) / 257).round().astype(np.uint8)
        grey[values == image.info.get("transparency", -1)] = 255
        return PIL.Image.fromarray(grey).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = PIL.Image.new("RGBA", image.size, "white")
    return PIL.Image.alpha_composite(white, image).convert("RGB")


def convert_to_png(data: bytes, name: str = "image") -> bytes:
    """Convert the bytes of an image file to a PNG that is upright, RGB and opaque.

    A PNG that is so already is returned unchanged. Pixels are never resampled. Raises ImageError as ``decode_image``.
    """
    picture = decode_image(data, name)
    with _open_image(data, name) as image:
        plain = image.format == "PNG" and image.mode == "RGB" and not image.has_transparency_data
        if plain and not _is_animated(image) and not _is_turned(image, data, range(2, 9)):
            return data
    return encode_png(picture)


def _is_turned(image: PIL.Image.Image, data: bytes, orientations: Container[int]) -> bool:
    # Pillow decodes a whole PNG to look for EXIF, which may follow the pixels; most have no such chunk.
    if image.format == "PNG" and not any(chunk in data for chunk in (b"eXIf", b"iTXt", b"zTXt", b"tEXt")):
        return False
    with contextlib.suppress(SyntaxError):
        return image.getexif().get(PIL.ExifTags.Base.Orientation, 1) in orientations
    return False


def image_size(data: bytes, name: str = "image") -> tuple[int, int]:
    """Read the (width, height) in pixels of the upright image from the header only. Raises as ``decode_image`` does."""
    with _open_image(data, name) as image:
        width, height = image.size
        return (height, width) if _is_turned(image, data, range(5, 9)) else (width, height)


def encode_png(image: PIL.Image.Image | Picture) -> bytes:
    """Encode an image as PNG."""
    buffer = io.BytesIO()
    (PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format="PNG")
    return buffer.getvalue()


def to_pixels(image: PIL.Image.Image) -> Float32[np.ndarray, "H W 3"]:
    """Convert an RGB image to pixels in [-1, 1]."""
    return np.asarray(image.convert("RGB"), np.float32) / np.float32(127.5) - np.float32(1)


def from_pixels(pixels: Float32[np.ndarray, "H W 3"]) -> PIL.Image.Image:
    """Convert pixels in [-1, 1] to an RGB image; values outside are clipped."""
    values = np.clip((pixels + 1) * 127.5, 0, 255)
    return PIL.Image.fromarray(np.round(values).astype(np.uint8))


def patchify(values: Shaped[Values, "... H W C"], patch: int) -> Shaped[Values, "... hw ppC"]:
    """Cut [.., H, W, C] into patches [.., h * w, p * p * C], row-major, each ordered (row, column, channel).

    Raises:
      ValueError: ``patch`` does not divide H and W.
    """
    *batch, height, width, channels = values.shape
    if height % patch or width % patch:
        raise ValueError(f"patches of side {patch} do not tile {height} x {width}")
    grid = values.reshape(*batch, height // patch, patch, width // patch, patch, channels)
    # The cast only helps the type checker, which takes the result for either of the two types.
    return cast(Values, grid.swapaxes(-4, -3).reshape(*batch, -1, patch * patch * channels))


def unpatchify(tokens: Shaped[Values, "... hw ppC"], grid: tuple[int, int], patch: int) -> Shaped[Values, "... H W C"]:
    """Invert ``patchify``; ``grid`` is (h, w)."""
    *batch, _, width = tokens.shape
    h, w = grid
    blocks = tokens.reshape(*batch, h, w, patch, patch, width // patch**2)
    return cast(Values, blocks.swapaxes(-4, -3).reshape(*batch, h * patch, w * patch, width // patch**2))


def position_ids(grid: tuple[int, int], max_side: int, interpolate: bool = False) -> Int32[np.ndarray, " hw"]:
    """Return the rows of a position table for a grid of (h, w) patches, row-major.

    They are row * max_side + column. With ``interpolate`` the grid is stretched over the whole table:
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


def changed_pixels(before: UInt8[np.ndarray, "H W 3"], after: UInt8[np.ndarray, "_ _ 3"]) -> Bool[np.ndarray, "H W"]:
    """Find pixels that differ by more than ``CHANGE`` in a channel. Raises ValueError if the sizes differ."""
    if before.shape != after.shape:
        raise ValueError(f"images of {before.shape} and {after.shape} values have no common pixels to compare")
    return np.any(np.abs(np.subtract(after, before, dtype=np.int16)) > CHANGE, axis=-1)
