"""The painter: areas against closed forms, and untouched pixels that stay identical."""

import io
import itertools
import math

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdgen.scenes import world
from pdgen.scenes.painter import BACKGROUND_RGB, COLOR_RGB, paint, png_bytes

SEEDS = st.integers(0, 2**32 - 1)
AREAS = {  # of the unit box
    "circle": math.pi / 4,
    "square": 1.0,
    "triangle": 0.5,
    "diamond": 0.5,
    "cross": 5 / 9,
    "star": 5 * 0.54 * 0.22 * math.sin(math.pi / 5),
}


def single(shape="circle", color="red", size=12, x=16, y=16, background="light"):
    return world.Scene((world.Object(0, shape, color, size, x, y),), (), background)


def box_mask(size, *objects):
    mask = np.zeros((size, size), bool)
    for item in objects:
        left, top, right, bottom = item.box
        mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("shape", world.SHAPES)
@pytest.mark.parametrize("size", world.SIZES)
def test_area_of_each_shape(shape, size):
    """Black on a light ground: the darkness summed over the picture is the shape's area."""
    picture = paint(single(shape, "black", size)).astype(float)
    ground, ink = BACKGROUND_RGB["light"][0], COLOR_RGB["black"][0]
    area = ((ground - picture[:, :, 0]) / (ground - ink)).sum()
    assert area == pytest.approx(AREAS[shape] * size**2, rel=0.035)


@pytest.mark.parametrize("color", world.COLORS)
@pytest.mark.parametrize("background", world.BACKGROUNDS)
def test_colours_inside_and_outside(color, background):
    picture = paint(single("square", color, background=background))
    inside = box_mask(32, world.Object(0, "square", color, 12, 16, 16))
    assert (picture[inside] == COLOR_RGB[color]).all()
    assert (picture[~inside] == BACKGROUND_RGB[background]).all()


def test_colours_and_grounds_are_told_apart():
    """Any two colours, and any colour and ground, differ by more than 40 in some channel."""
    values = list(COLOR_RGB.values())
    pairs = [(a, b) for i, a in enumerate(values) for b in [*values[:i], *BACKGROUND_RGB.values()]]
    assert min(np.abs(np.subtract(a, b)).max() for a, b in pairs) > 40


@given(SEEDS, st.integers(2, world.MAX_OBJECTS))
@settings(max_examples=100, deadline=None)
def test_a_step_leaves_every_other_pixel_identical(seed, count):
    rng = np.random.default_rng(seed)
    scene = world.random_scene(rng, count)
    steps = world.grow(rng, scene)
    for earlier, later in itertools.pairwise(steps):
        touched = box_mask(32, *later.objects[len(earlier.objects) :])
        a, b = paint(earlier), paint(later)
        assert (a[~touched] == b[~touched]).all()
        assert (a != b).any()
    draft = world.corrupt(rng, scene, 0)
    touched = box_mask(32, scene.find(0), draft.find(0))
    a, b = paint(scene), paint(draft)
    assert (a[~touched] == b[~touched]).all()
    assert (a != b).any()


@given(SEEDS, st.integers(2, world.MAX_OBJECTS))
@settings(max_examples=100, deadline=None)
def test_relations_are_true_of_the_picture(seed, count):
    """Each object is found again as the pixels that its removal changes; their boxes obey the relation."""
    scene = world.random_scene(np.random.default_rng(seed), count)
    picture = paint(scene).astype(int)
    centres = {}
    for item in scene.objects:
        without = world.Scene(tuple(o for o in scene.objects if o != item), (), scene.background)
        rows, columns = np.nonzero(np.abs(picture - paint(without)).max(-1) > 20)
        centres[item.id] = np.array([columns.min() + columns.max(), rows.min() + rows.max()]) / 2
    for relation in scene.relations:
        dx, dy = centres[relation.subject] - centres[relation.reference]
        kind = ("left of", "right of")[int(dx > 0)] if abs(dx) > abs(dy) else ("above", "below")[int(dy > 0)]
        assert kind == relation.kind


def test_painting_is_deterministic_and_its_own():
    scene = single()
    first = paint(scene)
    assert first.dtype == np.uint8
    assert first.shape == (32, 32, 3)
    before = first.copy()
    first[:] = 0
    assert (paint(scene) == before).all()


@pytest.mark.parametrize("size", [16, 48, 64, 100])
def test_other_picture_sizes_show_the_same_scene(size):
    scene = world.random_scene(np.random.default_rng(3), 4)
    picture = paint(scene, size)
    assert picture.shape == (size, size, 3)
    side = min(size, 32)
    a, b = (
        np.asarray(PIL.Image.fromarray(p).resize((side, side), PIL.Image.Resampling.BOX), float)
        for p in (picture, paint(scene))
    )
    assert np.abs(a - b).mean() < 4


def test_png_gives_the_picture_back():
    picture = paint(single())
    with PIL.Image.open(io.BytesIO(png_bytes(picture))) as image:
        assert (np.asarray(image) == picture).all()
