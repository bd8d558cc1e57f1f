"""Conversion of pictures of other data sets to the PNG bytes of a record."""

from typing import Any

from pdgen.sequence.images import ImageError, ImageTooLargeError, convert_to_png
from pdgen.synthesis.importers.outcome import RefusedSample

UNREADABLE, TOO_LARGE, MISSING = "unreadable picture", "picture too large", "missing picture"


def to_png(value: Any, name: str) -> bytes:
    """Convert a stored picture to PNG bytes as ``pdgen.sequence.images.convert_to_png`` does.

    Args:
      value: the file's bytes, or ``{"bytes": ..., "path": ...}`` of the ``datasets`` library.
      name: name of the picture in error messages.

    Raises:
      RefusedSample: there is no picture, it is damaged or truncated, or it exceeds the limits of image files.
    """
    data = value.get("bytes") if isinstance(value, dict) else value
    if not data:
        raise RefusedSample(MISSING, f"{name} holds no bytes")
    if not isinstance(data, bytes):
        raise RefusedSample(MISSING, f"{name} is {type(data).__name__}, expected bytes")
    try:
        return convert_to_png(data, name)
    except ImageTooLargeError as fault:
        raise RefusedSample(TOO_LARGE, str(fault)) from None
    except ImageError as fault:
        raise RefusedSample(UNREADABLE, str(fault)) from None
