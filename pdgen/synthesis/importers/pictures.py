"""Conversion of pictures of other data sets to the PNG bytes of a record."""

import io
from typing import Any

import PIL.Image
import PIL.ImageOps

from pdgen.sequence.images import encode_png, to_rgb, why_unreadable
from pdgen.synthesis.importers.outcome import RefusedSample

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 2**26  # 8,192 x 8,192; larger files are scans or attacks and need much memory
UNREADABLE, TOO_LARGE, MISSING = "unreadable picture", "picture too large", "missing picture"
_ORIENTATION = 0x0112  # EXIF tag


def to_png(value: Any, name: str) -> bytes:
    """Convert a stored picture to PNG bytes: upright, RGB, with transparent parts white.

    A PNG that is upright, RGB and opaque already is returned unchanged. Pixels are never resampled.

    Args:
      value: the file's bytes (PNG, JPEG or WebP), or ``{"bytes": ..., "path": ...}`` of the ``datasets`` library.
      name: name of the picture in error messages.

    Raises:
      RefusedSample: there is no picture, it is damaged or truncated, or it has more than ``MAX_PIXELS`` pixels.
    """
    data = value.get("bytes") if isinstance(value, dict) else value
    if not data:
        raise RefusedSample(MISSING, f"{name} holds no bytes")
    if not isinstance(data, bytes):
        raise RefusedSample(MISSING, f"{name} is {type(data).__name__}, expected bytes")
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise RefusedSample(
                    TOO_LARGE, f"{name} has {image.width} x {image.height} pixels, at most {MAX_PIXELS}"
                )
            image.load()
            if _is_plain(image):
                return data
            return encode_png(to_rgb(PIL.ImageOps.exif_transpose(image)))
    except PIL.Image.DecompressionBombError as fault:
        raise RefusedSample(TOO_LARGE, f"{name}: {fault}") from None
    except RefusedSample:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as fault:  # Pillow's errors, by format
        raise RefusedSample(UNREADABLE, f"{name}: {why_unreadable(fault)}") from None


def _is_plain(image: PIL.Image.Image) -> bool:
    turned = image.getexif().get(_ORIENTATION, 1) != 1
    return image.format == "PNG" and image.mode == "RGB" and not image.has_transparency_data and not turned
