"""Changes between consecutive images: a mask of pixels, and its outline to draw over the image.

Axis legend: H and W pixels, R and C cells of a grid of at most 64 x 64 over the image.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
import scipy.ndimage
from jaxtyping import Bool

from pdgen.sequence.images import changed_pixels

_CELLS = 64  # of the outline's grid along the longer side, at most
_SHARE = 0.25  # of a cell, which must have changed
_SPOT = 4  # cells; smaller spots, changed or unchanged, are noise


class Change(NamedTuple):
    """The change between two images.

    Attributes:
      share: share of changed pixels, within [0, 1].
      extent: (width, height) of the image in cells, the unit of the outline's coordinates.
      path: outline of the changed cells as SVG path data; "" if there are none.
    """

    share: float
    extent: tuple[float, float]
    path: str


def find_changes(images: Sequence[PIL.Image.Image]) -> list[Change | None]:
    """Find the change of each image against the one before; None for the first image."""
    return [None, *itertools.starmap(find_change, itertools.pairwise(images))][: len(images)]


def find_change(before: PIL.Image.Image, after: PIL.Image.Image) -> Change | None:
    """Find the change from one image to the next; None if their sizes differ."""
    if before.size != after.size:
        return None
    pixels = changed_pixels(*(np.asarray(image.convert("RGB")) for image in (before, after)))
    side = -(-max(after.size) // _CELLS)  # of a cell, in pixels
    extent = (after.width / side, after.height / side)
    return Change(float(pixels.mean()), extent, trace_outline(remove_spots(coarsen(pixels, side))))


def coarsen(pixels: Bool[np.ndarray, "H W"], side: int) -> Bool[np.ndarray, "R C"]:
    """Reduce a mask to cells of ``side`` x ``side`` pixels, including partial cells at the right and bottom edge."""
    height, width = pixels.shape
    padding = (-height % side, -width % side)

    def sums(values: np.ndarray) -> np.ndarray:
        padded = np.pad(values.astype(np.int64), ((0, padding[0]), (0, padding[1])))
        return padded.reshape(padded.shape[0] // side, side, padded.shape[1] // side, side).sum(axis=(1, 3))

    return sums(pixels) >= _SHARE * sums(np.ones_like(pixels))


def remove_spots(cells: Bool[np.ndarray, "R C"]) -> Bool[np.ndarray, "R C"]:
    """Remove spots of fewer than 4 connected cells, first those inside the mask, then those outside."""
    for inside in (True, False):
        spots, _ = scipy.ndimage.label(cells == inside)
        small = np.bincount(spots.ravel()) < _SPOT
        small[0] = False  # label 0 is the background of the spots
        cells = np.where(small[spots], not inside, cells)
    return cells


def trace_outline(cells: Bool[np.ndarray, "R C"]) -> str:
    """Trace the borders between cells inside and outside the mask, as SVG path data in units of cells.

    >>> trace_outline(np.array([[True, True]]))
    'M0 0h2M0 1h2M0 0v1M2 0v1'
    """
    padded = np.pad(cells, 1)
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]  # [R + 1, C] the border above each cell
    down = padded[1:-1, 1:] != padded[1:-1, :-1]  # [R, C + 1] the border left of each cell
    horizontal = [f"M{start} {y}h{length}" for y, start, length in _find_runs(across)]
    vertical = [f"M{x} {start}v{length}" for x, start, length in _find_runs(down.T)]
    return "".join(horizontal + vertical)


def _find_runs(lines: Bool[np.ndarray, "N L"]) -> list[tuple[int, int, int]]:
    """Find every run of True as (line, start, length)."""
    steps = np.diff(np.pad(lines, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, ends = np.argwhere(steps == 1), np.argwhere(steps == -1)
    return [(int(n), int(start), int(end - start)) for (n, start), end in zip(starts, ends[:, 1])]
