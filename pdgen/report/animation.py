"""The strokes of a trajectory as a moving picture: image after image, each growing out of the one before."""

import pathlib
from collections.abc import Iterator, Sequence

import PIL.Image

from pdgen.report.strip import add_captions

_HOLD, _BLEND = 1400, 70  # milliseconds an image stands, and each frame between two
_BETWEEN = 6  # frames between two images
_LAST = 3000  # milliseconds that the last image stands
_LIMIT = 16_383  # pixels of a side of a WebP


def make_frames(
    images: Sequence[PIL.Image.Image], captions: Sequence[str], height: int = 256
) -> Iterator[tuple[PIL.Image.Image, int]]:
    """(frame, milliseconds): every image with its caption beneath, and between two a blend of both.

    All frames have one size: each image is scaled to ``height`` pixels as in ``strip``, and set in the middle of the
    widest. Where a side would be longer than a WebP may be, the whole frame is scaled down to that.

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
    path: pathlib.Path, images: Sequence[PIL.Image.Image], captions: Sequence[str], height: int = 256
) -> None:
    """Writes ``make_frames`` as an animated WebP that runs in a loop."""
    stills, durations = zip(*make_frames(images, captions, height))
    stills[0].save(path, "WEBP", save_all=True, append_images=stills[1:], duration=list(durations), loop=0)
