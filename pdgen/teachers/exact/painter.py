"""The exact painter, which paints the placed scene of a step."""

from pdgen.sequence.images import Picture
from pdgen.shapes.painter import MIN_SIZE, paint
from pdgen.shapes.world import GRID
from pdgen.teachers.protocols import Stroke, TeacherError


class ShapesPainter:
    """A ``Painter`` that paints a stroke's placed scene."""

    name = "shapes"

    def __init__(self, size: int = GRID) -> None:
        """Set the side of a picture in pixels. Raises ValueError below ``MIN_SIZE``."""
        if size < MIN_SIZE:
            raise ValueError(f"a picture of {size} pixels: shapes become unrecognisable below {MIN_SIZE}")
        self.size = size

    def paint(self, stroke: Stroke) -> Picture:
        """Paint the stroke's scene. Raises TeacherError if it has none."""
        if stroke.scene is None:
            raise TeacherError(f"{self.name} painter: the stroke {stroke.instruction!r} comes without a placed scene")
        return paint(stroke.scene, self.size)
