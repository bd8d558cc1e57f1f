"""The detector of shapes world: which shapes a picture shows, from its pixels alone.

Every shape, in every width and fill, is a template of coverage T. The better a picture p with background b equals
b + T (c - b) at some place, the better it fits an object of colour c there. In a margin of one unit around the template
T is zero, because objects do not touch. With d = p - b, and all sums over that window,

    score = 1 - sum |d - T (c - b)|^2 / sum |T (c - b)|^2 = (2 sum T d.(c - b) - sum |d|^2) / (|c - b|^2 sum T^2)

is 1 for a perfect fit and at most 0 for an empty background. The sums for all templates and places are a few matrix
products. Pictures are first averaged down to ``GRID`` pixels, where the painter's boxes are whole pixels.

Legend: y x places, t templates of one width, c colours.
"""

import functools
from typing import NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float
from PIL import Image

from pdgen.sequence.images import Picture
from pdgen.shapes.graph import COLORS
from pdgen.shapes.painter import BACKGROUND_RGB, COLOR_RGB, LINE_WIDTH, compute_coverage
from pdgen.shapes.placement import SIZES
from pdgen.shapes.world import FILLS, GRID, SHAPES, can_be_outlined, name_size

WIDTHS = tuple(width for widths in SIZES.values() for width in widths)
THRESHOLD = 0.5
OVERLAP = 1  # allowed overlap of two boxes in units, since each box may be one unit too large
_COLORS = np.array([COLOR_RGB[name] for name in COLORS], np.float32)
_BACKGROUNDS = np.array(list(BACKGROUND_RGB.values()), np.float32)


class Detection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One detected shape.

    Attributes:
      shape, color, fill: words of ``SHAPES``, ``COLORS``, ``FILLS``.
      size: "small", "medium" or "large".
      box: (left, top, right, bottom) in units of 1/32 of the picture's side; right and bottom are exclusive.
      score: fit of the pixels, from ``THRESHOLD`` to 1 (perfect).
    """

    shape: str
    color: str
    size: str
    fill: str
    box: tuple[int, int, int, int]
    score: float


class _Templates(NamedTuple):
    looks: list[tuple[str, str]]  # (shape, fill)
    pixels: Float[np.ndarray, "area t"]
    squares: Float[np.ndarray, " t"]  # sum of T^2


@functools.cache
def _make_templates(width: int) -> _Templates:
    looks = [(s, f) for s in SHAPES for f in FILLS if f == "solid" or can_be_outlined(s, name_size(width))]
    box = (0.0, 0.0, float(width), float(width))
    pixels = np.stack([compute_coverage(shape, fill, box, LINE_WIDTH).ravel() for shape, fill in looks], axis=1)
    return _Templates(looks, pixels, np.square(pixels).sum(0))


def _resize_to_grid(picture: Picture) -> Float[np.ndarray, "32 32 3"]:
    height, width, _ = picture.shape
    if height != width or width < GRID:
        raise ValueError(f"a picture of {width} x {height} pixels: detection takes squares of {GRID} pixels or more")
    small = Image.fromarray(picture).resize((GRID, GRID), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def _find_background(pixels: Float[np.ndarray, "32 32 3"]) -> tuple[int, Float[np.ndarray, "3"]]:
    # Each pixel votes for its nearest colour. The background with the most votes wins; its value is their median.
    references = np.concatenate([_BACKGROUNDS, _COLORS])
    flat = pixels.reshape(-1, 3)
    nearest = np.square(flat[:, None] - references).sum(-1).argmin(1)
    winner = int(np.bincount(nearest, minlength=len(references))[: len(_BACKGROUNDS)].argmax())
    votes = flat[nearest == winner]
    return winner, np.median(votes, axis=0) if len(votes) else _BACKGROUNDS[winner]


def detect_background(picture: Picture) -> str:
    """Return the word of ``BACKGROUNDS`` for most pixels. Raises ValueError as ``detect``."""
    return tuple(BACKGROUND_RGB)[_find_background(_resize_to_grid(picture))[0]]


def _sum_windows(squares: Float[np.ndarray, "34 34"], width: int) -> Float[np.ndarray, "y x"]:
    # The sum over every window of this width, as differences of running sums.
    total = np.zeros((GRID + 3, GRID + 3))
    total[1:, 1:] = squares.cumsum(0).cumsum(1)
    return total[width:, width:] - total[:-width, width:] - total[width:, :-width] + total[:-width, :-width]


def _find_candidates(
    deviation: Float[np.ndarray, "32 32 3"], colors: Float[np.ndarray, "c 3"], width: int
) -> list[tuple[float, int, int, int, int, int]]:
    """List (score, y, x, width, look, color) of the best template and colour at each place above ``THRESHOLD``."""
    templates = _make_templates(width)
    squares = np.zeros((GRID + 2, GRID + 2))
    squares[1:-1, 1:-1] = np.square(deviation).sum(-1)
    energy, inside = _sum_windows(squares, width + 2), _sum_windows(squares, width)[1:-1, 1:-1]
    # By Cauchy-Schwarz no template's score exceeds inside / energy or, with z^2 = inside / norm, 2 z.
    norms = np.square(colors).sum(-1)[:, None] * templates.squares
    rows, columns = np.nonzero((inside >= THRESHOLD * energy) & (inside >= THRESHOLD**2 / 4 * norms.min()))
    windows = np.lib.stride_tricks.sliding_window_view(deviation, (width, width), axis=(0, 1))[rows, columns]
    # One small product per place: BLAS would spread a large one over threads, which costs more than it saves.
    products = colors @ (windows.reshape(len(rows), 3, width * width) @ templates.pixels)
    scores = (2 * products - energy[rows, columns, None, None]) / norms
    best = scores.reshape(len(rows), norms.size)
    winners = best.argmax(1)
    values = best[np.arange(len(rows)), winners]
    return [
        (float(values[i]), int(rows[i]), int(columns[i]), width, *reversed(divmod(int(winners[i]), scores.shape[2])))
        for i in np.nonzero(values >= THRESHOLD)[0]
    ]


def detect(picture: Picture) -> list[Detection]:
    """Detect the shapes of a picture, sorted by score, then in reading order.

    Detection is exact for pictures of ``painter`` at ``GRID`` pixels and at 40 or more; in between, averaging blurs
    small shapes. No two boxes overlap by more than ``OVERLAP`` units, and no score is below ``THRESHOLD``.

    Args:
      picture: RGB uint8, a square of ``GRID`` pixels or more.

    Raises:
      ValueError: the picture is not square, or too small.
    """
    pixels = _resize_to_grid(picture)
    _, ground = _find_background(pixels)
    candidates = [c for width in WIDTHS for c in _find_candidates(pixels - ground, _COLORS - ground, width)]
    found: list[Detection] = []
    for score, y, x, width, look, color in sorted(candidates, reverse=True):
        box = (x, y, x + width, y + width)
        if not any(_overlaps(box, other.box) for other in found):
            shape, fill = _make_templates(width).looks[look]
            found.append(Detection(shape, COLORS[color], name_size(width), fill, box, round(min(score, 1.0), 3)))
    return sorted(found, key=lambda f: (-f.score, f.box[1], f.box[0]))


def _overlaps(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > OVERLAP and min(a[3], b[3]) - max(a[1], b[1]) > OVERLAP
