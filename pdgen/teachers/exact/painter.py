"""The exact painter: it draws the placed scene that a step comes with."""

from pdgen.sequence.images import Picture
from pdgen.shapes.painter import MIN_SIZE, paint
from pdgen.shapes.world import GRID
from pdgen.teachers.protocols import Stroke, TeacherError


class ShapesPainter:
    """Paints a stroke's placed scene; a ``teachers.Painter``."""

    name = "shapes"

    def __init__(self, size: int = GRID) -> None:
        """``size``: pixels of a picture's side. Raises ValueError below ``MIN_SIZE``."""
        if size < MIN_SIZE:
            raise ValueError(f"a picture of {size} pixels: shapes become unrecognisable below {MIN_SIZE}")
        self.size = size

    def paint(self, stroke: Stroke) -> Picture:
        """The stroke's scene. Raises TeacherError if it has none."""
        if stroke.scene is None:
            raise TeacherError(f"{self.name} painter: the stroke {stroke.instruction!r} comes without a placed scene")
        return paint(stroke.scene, self.size)
