"""An animation of a trajectory: its images in order, each blended into the next."""

import io
import pathlib
from collections.abc import Iterator, Sequence

import PIL.Image

from pdgen.report.strip import add_captions

_HOLD, _BLEND = 1400, 70  # duration of an image and of a frame between two images, in milliseconds
_BETWEEN = 6  # frames between two images
_LAST = 3000  # duration of the last image in milliseconds
_LIMIT = 16_383  # longest side of a WebP in pixels


def make_frames(
    images: Sequence[PIL.Image.Image], captions: Sequence[str], height: int = 256
) -> Iterator[tuple[PIL.Image.Image, int]]:
    """Yield (frame, duration in milliseconds): each image with its caption below, with blends between the images.

    All frames have the size of the largest. Images are scaled to ``height`` pixels as in ``make_strip`` and centred.
    Frames that exceed the size limit of WebP are scaled down to it.

    Raises:
      ValueError: no images, or not one caption per image.
    """
    stills = add_captions(images, captions, height)
    size = (max(still.width for still in stills), max(still.height for still in stills))
    padded = []
    for still in stills:
        frame = PIL.Image.new("RGB", size, "white")
        frame.paste(still, ((size[0] - still.width) // 2, 0))
        if max(size) > _LIMIT:
            width, height = (max(1, side * _LIMIT // max(size)) for side in size)
            frame = frame.resize((width, height), PIL.Image.Resampling.LANCZOS)
        padded.append(frame)
    for before, still in zip([None, *padded], padded):
        if before is not None:
            for n in range(1, _BETWEEN + 1):
                yield PIL.Image.blend(before, still, n / (_BETWEEN + 1)), _BLEND
        yield still, _LAST if still is padded[-1] else _HOLD


def save_animation(
    target: pathlib.Path | io.BytesIO, images: Sequence[PIL.Image.Image], captions: Sequence[str], height: int = 256
) -> None:
    """Write ``make_frames`` as a WebP that loops, to a file or into memory. Raises ValueError as ``make_frames``."""
    stills, durations = zip(*make_frames(images, captions, height))
    stills[0].save(target, "WEBP", save_all=True, append_images=stills[1:], duration=list(durations), loop=0)
