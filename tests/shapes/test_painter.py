"""The painter: areas against closed forms, and pixels that a step leaves identical."""

import itertools
import math

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdgen.shapes import world
from pdgen.shapes.graph import COLORS, grow
from pdgen.shapes.painter import BACKGROUND_RGB, COLOR_RGB, CONTOURS, compute_coverage, paint
from pdgen.shapes.placement import PLACEMENTS
from pdgen.synthesis.rewrite import rewrite
from pdgen.synthesis.sample import sample_graph

SEEDS = st.integers(0, 2**32 - 1)
ALL_SIZES = sorted(itertools.chain(*world.SIZES.values()))


def polygon_area(corners):
    """Return the area of the polygon stretched to the unit box, by the shoelace formula."""
    x, y = ((v - v.min()) / np.ptp(v) for v in np.array(corners, float).T)
    return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2


# Of a regular five-pointed star with radii 1 and r: 5 r sin(36 degrees) over its box, 2 cos(18) x (1 + cos(36)).
STAR = 5 * 0.42 * math.sin(math.pi / 5) / (2 * math.cos(math.pi / 10) * (1 + math.cos(math.pi / 5)))
AREAS = {  # of the unit box
    "circle": math.pi / 4,
    "square": 1.0,
    "triangle": 0.5,
    "diamond": 0.5,
    "cross": 5 / 9,
    "star": STAR,
    "heart": polygon_area(CONTOURS["heart"][0]),
    "ring": math.pi / 4 * (1 - 0.45**2),
    "crescent": polygon_area(CONTOURS["crescent"][0]),
    "arrow": 0.4 * 0.5 + 0.5 * 0.5,
}
INSIDE = {  # area of the unit box that an outline of width w leaves out
    "circle": lambda w: math.pi / 4 * (1 - 2 * w) ** 2,
    "square": lambda w: (1 - 2 * w) ** 2,
    # Insetting by w scales by 1 - w / inradius: of the diamond sqrt(2) / 4, of the triangle 1 / (1 + sqrt(5)).
    "diamond": lambda w: 0.5 * (1 - w / (math.sqrt(2) / 4)) ** 2,
    "triangle": lambda w: 0.5 * (1 - w * (1 + math.sqrt(5))) ** 2,
}


def single(shape="circle", color="red", size=10, x=8, y=8, background="light grey", fill="solid"):
    return world.Scene((world.SceneObject(0, 0, shape, color, size, x, y, fill),), background)


def box_mask(size, *objects):
    mask = np.zeros((size, size), bool)
    for item in objects:
        left, top, right, bottom = (v * size // world.GRID for v in item.box)
        mask[top:bottom, left:right] = True
    return mask


def ink(scene, size=32):
    """Return the area in grid units: the darkness summed over a picture in black on a light ground."""
    picture = paint(scene, size).astype(float)
    ground, black = BACKGROUND_RGB["light grey"][0], COLOR_RGB["black"][0]
    return ((ground - picture[:, :, 0]) / (ground - black)).sum() * (world.GRID / size) ** 2


@pytest.mark.parametrize("shape", world.SHAPES)
@pytest.mark.parametrize("size", ALL_SIZES)
def test_area_of_each_shape(shape, size):
    assert ink(single(shape, "black", size)) == pytest.approx(AREAS[shape] * size**2, rel=0.045)
    assert ink(single(shape, "black", size), 128) == pytest.approx(AREAS[shape] * size**2, rel=0.02)


def test_crescent_and_heart_are_the_areas_of_their_curves():
    # Two discs, of radius 1 and 0.8 and 0.5 apart: 1 minus their lens, over the box that the crescent fills.
    r, d = 0.8, 0.5
    a, b = math.acos((d**2 + 1 - r**2) / (2 * d)), math.acos((d**2 + r**2 - 1) / (2 * d * r))
    lens = a + r**2 * b - 0.5 * math.sqrt((1 + r - d) * (d + 1 - r) * (d - 1 + r) * (d + 1 + r))
    tip = (d**2 + 1 - r**2) / (2 * d)
    assert polygon_area(CONTOURS["crescent"][0]) == pytest.approx((math.pi - lens) / (2 * (1 + tip)), rel=0.01)
    # The curve x = 16 sin^3, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t encloses 180 pi.
    heart = np.array(CONTOURS["heart"][0])
    box = np.ptp(heart, axis=0).prod()
    assert polygon_area(heart) == pytest.approx(180 * math.pi / box, rel=0.01)


@pytest.mark.parametrize("shape", INSIDE)
@pytest.mark.parametrize("size", [10, 15])
def test_an_outline_leaves_out_the_inside(shape, size):
    area = (AREAS[shape] - INSIDE[shape](1.5 / size)) * size**2
    assert ink(single(shape, "black", size, fill="outlined"), 128) == pytest.approx(area, rel=0.05)
    picture = paint(single(shape, "black", 15, fill="outlined"))
    assert (picture[16, 15] == BACKGROUND_RGB["light grey"]).all()


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("background", world.BACKGROUNDS)
def test_colours_inside_and_outside(color, background):
    scene = single("square", color, background=background)
    picture, inside = paint(scene), box_mask(32, *scene.objects)
    assert (picture[inside] == COLOR_RGB[color]).all()
    assert (picture[~inside] == BACKGROUND_RGB[background]).all()


def test_colours_and_grounds_are_distinguishable():
    """Any two differ by more than 20 in some channel; colours differ from one another and from grounds by 50."""
    colors, grounds = list(COLOR_RGB.values()), list(BACKGROUND_RGB.values())
    apart = lambda pairs: min(np.abs(np.subtract(a, b)).max() for a, b in pairs)  # noqa: E731
    assert set(COLOR_RGB) == set(COLORS) and set(BACKGROUND_RGB) == set(world.BACKGROUNDS)
    assert apart([*itertools.combinations(colors, 2), *itertools.product(colors, grounds)]) > 50
    assert apart(itertools.combinations(grounds, 2)) > 20


@given(SEEDS, st.sampled_from([*PLACEMENTS]))
@settings(max_examples=120)
def test_a_step_leaves_every_other_pixel_identical(seed, name):
    rng = np.random.default_rng(seed)
    steps = rewrite(rng, grow(rng, sample_graph(rng, "composition")), 0.7)
    scenes = world.place_scenes(rng, steps, PLACEMENTS[name]) or []
    size = (32, 64)[seed % 2]
    for (a, b), step in zip(itertools.pairwise(scenes), steps[1:]):
        concerned = [o for scene in (a, b) for o in scene.objects if o.entity in step.entities]
        touched = box_mask(size, *concerned)
        before, after = paint(a, size), paint(b, size)
        assert (before[~touched] == after[~touched]).all()
        assert (before != after).any()


def test_painting_is_deterministic_and_returns_a_new_array():
    first = paint(single())
    assert (first.dtype, first.shape) == (np.uint8, (32, 32, 3))
    before = first.copy()
    first[:] = 0
    assert (paint(single()) == before).all()


@pytest.mark.parametrize("size", [16, 48, 64, 100])
def test_other_picture_sizes_show_the_same_scene(size):
    scene = world.sample_scene(np.random.default_rng(3), 6)
    picture = paint(scene, size)
    assert picture.shape == (size, size, 3)
    side = min(size, 32)
    a, b = (
        np.asarray(PIL.Image.fromarray(p).resize((side, side), PIL.Image.Resampling.BOX), float)
        for p in (picture, paint(scene))
    )
    assert np.abs(a - b).mean() < 5


def test_coverage_is_symmetric_where_the_shape_is():
    for shape in ("circle", "square", "triangle", "diamond", "cross", "heart", "ring"):
        picture = compute_coverage(shape, "solid", (0.0, 0.0, 15.0, 15.0), 1.5)
        np.testing.assert_allclose(picture, picture[:, ::-1], atol=0.08)


def test_too_small_pictures_are_refused():
    with pytest.raises(ValueError, match="a picture of 15 pixels: shapes become unrecognisable below 16"):
        paint(single(), 15)
