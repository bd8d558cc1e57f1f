"""Where an image differs from the one before it: a mask of pixels, and its outline to lay over the image.

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

# Cells of the outline's grid along the longer side; a cell is inside where at least a quarter of it has changed.
_CELLS = 64
_SHARE = 0.25
# Spots of fewer cells, inside or outside, are noise.
_SPOT = 4


class Change(NamedTuple):
    """What changed between two images.

    Attributes:
      share: of the pixels, within [0, 1].
      extent: (width, height) of the image in cells, the unit of the outline's coordinates.
      path: the outline of the changed cells as the data of an SVG path, "" where there are none.
    """

    share: float
    extent: tuple[float, float]
    path: str


def find_changes(images: Sequence[PIL.Image.Image]) -> list[Change | None]:
    """The change of every image against the one before it, None for the first."""
    return [None, *itertools.starmap(find_change, itertools.pairwise(images))][: len(images)]


def find_change(before: PIL.Image.Image, after: PIL.Image.Image) -> Change | None:
    """What changed from one image to the next; None where their sizes differ."""
    if before.size != after.size:
        return None
    pixels = changed_pixels(*(np.asarray(image.convert("RGB")) for image in (before, after)))
    side = compute_cell_side(after.size)
    extent = (after.width / side, after.height / side)
    return Change(float(pixels.mean()), extent, trace_outline(remove_spots(coarsen(pixels, side))))


def compute_cell_side(size: tuple[int, int]) -> int:
    """Pixels of a cell's side: no more than 64 cells lie along the longer side of an image of this size."""
    return -(-max(size) // _CELLS)


def coarsen(pixels: Bool[np.ndarray, "H W"], side: int) -> Bool[np.ndarray, "R C"]:
    """The mask in cells of ``side`` x ``side`` pixels, those that the image's edge cuts included."""
    height, width = pixels.shape
    padding = (-height % side, -width % side)

    def sums(values: np.ndarray) -> np.ndarray:
        padded = np.pad(values.astype(np.int64), ((0, padding[0]), (0, padding[1])))
        return padded.reshape(padded.shape[0] // side, side, padded.shape[1] // side, side).sum(axis=(1, 3))

    return sums(pixels) >= _SHARE * sums(np.ones_like(pixels))


def remove_spots(cells: Bool[np.ndarray, "R C"]) -> Bool[np.ndarray, "R C"]:
    """The mask without spots of fewer than 4 connected cells, first those inside, then those outside."""
    for inside in (True, False):
        spots, _ = scipy.ndimage.label(cells == inside)
        small = np.bincount(spots.ravel()) < _SPOT
        small[0] = False  # all that is no spot
        cells = np.where(small[spots], not inside, cells)
    return cells


def trace_outline(cells: Bool[np.ndarray, "R C"]) -> str:
    """The borders between cells inside and cells outside, as the data of an SVG path in units of cells.

    >>> outline(np.array([[True, True]]))
    'M0 0h2M0 1h2M0 0v1M2 0v1'
    """
    padded = np.pad(cells, 1)
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]  # [R + 1, C] the border above each cell
    down = padded[1:-1, 1:] != padded[1:-1, :-1]  # [R, C + 1] the border left of each cell
    horizontal = [f"M{start} {y}h{length}" for y, start, length in _find_runs(across)]
    vertical = [f"M{x} {start}v{length}" for x, start, length in _find_runs(down.T)]
    return "".join(horizontal + vertical)


def _find_runs(lines: Bool[np.ndarray, "N L"]) -> list[tuple[int, int, int]]:
    """(line, start, length) of every run of True."""
    steps = np.diff(np.pad(lines, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, ends = np.argwhere(steps == 1), np.argwhere(steps == -1)
    return [(int(n), int(start), int(end - start)) for (n, start), end in zip(starts, ends[:, 1])]
