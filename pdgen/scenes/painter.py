"""The procedural painter of shapes world: a scene as a small anti-aliased picture.

Each object is blended over the picture inside its own box alone, so a step that adds, recolours or moves an
object leaves every pixel outside the boxes concerned bit for bit as it was.
"""

import functools
import io
import math

import numpy as np
from PIL import Image, ImageDraw

from pdgen.scenes.world import GRID, Object, Scene

SUPERSAMPLING = 8
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


def _ring(radii: tuple[float, ...], turns: int) -> list[tuple[float, float]]:
    # Corners on circles around (0.5, 0.5), the first pointing up, radii taken in rotation.
    angles = [2 * math.pi * i / turns - math.pi / 2 for i in range(turns)]
    return [
        (0.5 + radii[i % len(radii)] * math.cos(a), 0.5 + radii[i % len(radii)] * math.sin(a))
        for i, a in enumerate(angles)
    ]


# Corners in the unit box, (x, y) with y downwards. The circle is drawn as an ellipse.
CORNERS = {
    "square": [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)],
    "triangle": [(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)],
    "diamond": [(0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)],
    "cross": [
        (1 / 3, 0.0), (2 / 3, 0.0), (2 / 3, 1 / 3), (1.0, 1 / 3), (1.0, 2 / 3), (2 / 3, 2 / 3),
        (2 / 3, 1.0), (1 / 3, 1.0), (1 / 3, 2 / 3), (0.0, 2 / 3), (0.0, 1 / 3), (1 / 3, 1 / 3),
    ],
    "star": _ring((0.54, 0.22), 10),
}  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _coverage(shape: str, box: tuple[float, float, float, float]) -> np.ndarray:
    # Fraction of each pixel inside the shape; `box` in pixels, relative to the array's corner.
    left, top, right, bottom = (v * SUPERSAMPLING for v in box)
    width, height = math.ceil(box[2]), math.ceil(box[3])
    fine = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING), 0)
    draw = ImageDraw.Draw(fine)
    # PIL's coordinates name pixels, both ends inclusive: the far edge is one fine pixel less.
    across, down = right - left - 1, bottom - top - 1
    if shape == "circle":
        draw.ellipse((left, top, left + across, top + down), fill=255)
    else:
        draw.polygon([(left + x * across, top + y * down) for x, y in CORNERS[shape]], fill=255)
    coverage = np.asarray(fine.reduce(SUPERSAMPLING), np.float32)[:, :, None] / 255
    coverage.flags.writeable = False
    return coverage


def _blend(picture: np.ndarray, item: Object, scale: float) -> None:
    left, top, right, bottom = (v * scale for v in item.box)
    x, y = math.floor(left), math.floor(top)
    coverage = _coverage(item.shape, (left - x, top - y, right - x, bottom - y))
    height, width = coverage.shape[:2]
    window = picture[y : y + height, x : x + width]
    window += coverage[: window.shape[0], : window.shape[1]] * (np.float32(COLOR_RGB[item.color]) - window)


def paint(scene: Scene, size: int = GRID) -> np.ndarray:
    """The scene as RGB uint8 [size, size, 3], values 0 to 255; the same scene always gives the same bytes.

    ``size`` is in pixels; objects keep their share of the picture. Edges are anti-aliased by area coverage.
    """
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = BACKGROUND_RGB[scene.background]
    for item in scene.objects:
        _blend(picture, item, size / GRID)
    return np.rint(picture).astype(np.uint8)


def png_bytes(image: np.ndarray) -> bytes:
    """RGB uint8 [height, width, 3] as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
