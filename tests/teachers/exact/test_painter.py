"""The exact painter paints the placed scene of a step, and nothing without one."""

import numpy as np
import pytest

from pdgen.shapes.painter import paint
from pdgen.shapes.world import sample_scene
from pdgen.teachers.exact.painter import ShapesPainter
from pdgen.teachers.protocols import Painter, Stroke, TeacherError


def test_the_painter_paints_the_strokes_scene():
    painter: Painter = ShapesPainter(64)
    scene = sample_scene(np.random.default_rng(3), 2)
    assert (painter.paint(Stroke("Add a red heart.", None, scene, 0)) == paint(scene, 64)).all()
    with pytest.raises(TeacherError, match=r"shapes painter: the stroke 'Add a dog.' comes without a placed scene"):
        painter.paint(Stroke("Add a dog.", None, None, 0))


def test_too_small_pictures_are_refused():
    with pytest.raises(ValueError, match="a picture of 15 pixels: shapes become unrecognisable below 16"):
        ShapesPainter(15)
