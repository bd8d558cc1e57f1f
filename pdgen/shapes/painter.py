"""The procedural painter of shapes world: a scene as a small anti-aliased picture.

Each object is blended over the picture inside its own box only. A step that adds, recolours or moves an object
therefore changes no bit of any pixel outside the boxes concerned. Nothing is random.
"""

import functools
import math

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from pdgen.sequence.images import Picture
from pdgen.shapes.world import GRID, Scene, SceneObject

SUPERSAMPLING = 16
LINE_WIDTH = 1.5  # of an outlined shape's contour, in grid units
MIN_SIZE = 16
COLOR_RGB = {
    "red": (220, 30, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 225, 30),
    "green": (30, 150, 50),
    "blue": (30, 70, 220),
    "purple": (130, 40, 160),
    "pink": (255, 130, 185),
    "brown": (115, 65, 25),
    "black": (15, 15, 15),
    "white": (255, 255, 255),
}
BACKGROUND_RGB = {
    "light grey": (200, 200, 200),
    "dark grey": (85, 85, 92),
    "pale blue": (168, 200, 226),
    "pale green": (176, 214, 176),
    "beige": (222, 206, 176),
    "lavender": (198, 184, 226),
}

Contour = list[tuple[float, float]]


def _make_arc(radius: float, start: float, stop: float, x: float = 0.0) -> Contour:
    # Around (x, 0); angles in turns, clockwise from the right.
    angles = 2 * math.pi * np.linspace(start, stop, 60, endpoint=stop - start < 1)
    return [(x + radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _make_star(points: int, inner: float) -> Contour:
    turns = [(i / points / 2 - 0.25, (1.0, inner)[i % 2]) for i in range(2 * points)]
    return [(r * math.cos(2 * math.pi * t), r * math.sin(2 * math.pi * t)) for t, r in turns]


def _make_crescent(inner: float, shift: float) -> Contour:
    # A disc of radius 1 minus a disc of radius `inner` shifted to the right; the tips are where both circles meet.
    x = (shift**2 + 1 - inner**2) / (2 * shift)
    y = math.sqrt(1 - x**2)
    tip, bend = math.atan2(y, x) / (2 * math.pi), math.atan2(y, x - shift) / (2 * math.pi)
    return _make_arc(1, tip, 1 - tip) + _make_arc(inner, 1 - bend, bend, shift)


def _make_heart() -> Contour:
    angles = np.linspace(0, 2 * math.pi, 80, endpoint=False)
    down = 13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)
    return list(zip(16 * np.sin(angles) ** 3, -down))


# Contours of (x, y), y downwards, in any units. The first is stretched to fill the box; a second one is a hole.
CONTOURS = {
    "circle": [_make_arc(1, 0, 1)],
    "square": [[(0, 0), (1, 0), (1, 1), (0, 1)]],
    "triangle": [[(1, 0), (2, 1), (0, 1)]],
    "diamond": [[(1, 0), (2, 1), (1, 2), (0, 1)]],
    "cross": [[(1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3), (1, 2), (0, 2), (0, 1), (1, 1)]],
    "star": [_make_star(5, 0.42)],
    "heart": [_make_heart()],
    "ring": [_make_arc(1, 0, 1), _make_arc(0.45, 0, 1)],
    "crescent": [_make_crescent(0.8, 0.5)],
    "arrow": [[(0, 3), (5, 3), (5, 0), (10, 5), (5, 10), (5, 7), (0, 7)]],
}


@functools.lru_cache(maxsize=4096)
def compute_coverage(
    shape: str, fill: str, box: tuple[float, float, float, float], line: float
) -> Float[np.ndarray, "height width"]:
    """Compute the fraction of each pixel that a shape covers. The array is read-only.

    Args:
      shape, fill: words of ``SHAPES`` and ``FILLS``.
      box: left, top, right, bottom in pixels; left and top are below 1. The array ends at right and bottom, rounded up.
      line: width of an outlined shape's contour in pixels.
    """
    left, top, right, bottom = (v * SUPERSAMPLING for v in box)
    fine = [math.ceil(v) * SUPERSAMPLING for v in box[2:]]
    # PIL's coordinates name pixels, both ends inclusive: the far edge is one fine pixel less.
    span = np.array([right - left - 1, bottom - top - 1])
    outer = np.array(CONTOURS[shape][0], float)
    unit = (span, [left, top], outer.min(0), np.ptp(outer, axis=0))
    contours = [
        [tuple(p) for p in unit[0] * (np.array(c, float) - unit[2]) / unit[3] + unit[1]] for c in CONTOURS[shape]
    ]
    inside = Image.new("L", fine, 0)
    for number, contour in enumerate(contours):
        ImageDraw.Draw(inside).polygon(contour, fill=0 if number else 255)
    if fill == "outlined":
        drawn = Image.new("L", fine, 0)
        for contour in contours:
            width = round(2 * line * SUPERSAMPLING)  # the outer half is cut off below
            ImageDraw.Draw(drawn).line([*contour, contour[0]], fill=255, width=width)
        inside = Image.fromarray(np.minimum(np.asarray(inside), np.asarray(drawn)))
    covered = np.asarray(inside.reduce(SUPERSAMPLING), np.float32) / 255
    covered.flags.writeable = False
    return covered


def _blend(picture: np.ndarray, item: SceneObject, scale: float) -> None:
    left, top, right, bottom = (v * scale for v in item.box)
    x, y = math.floor(left), math.floor(top)
    covered = compute_coverage(item.shape, item.fill, (left - x, top - y, right - x, bottom - y), LINE_WIDTH * scale)
    window = picture[y : y + covered.shape[0], x : x + covered.shape[1]]
    covered = covered[: window.shape[0], : window.shape[1], None]
    window += covered * (np.array(COLOR_RGB[item.color], np.float32) - window)


def paint(scene: Scene, size: int = GRID) -> Picture:
    """Paint a scene as RGB uint8 [size, size, 3]. Equal scenes give equal bytes.

    Edges are anti-aliased by area coverage. Objects scale with ``size``, in pixels.

    Raises:
      ValueError: ``size`` is below ``MIN_SIZE``.
    """
    if size < MIN_SIZE:
        raise ValueError(f"a picture of {size} pixels: shapes become unrecognisable below {MIN_SIZE}")
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = BACKGROUND_RGB[scene.background]
    for item in scene.objects:
        _blend(picture, item, size / GRID)
    return np.rint(picture).astype(np.uint8)
