"""Changes between two images: mask, cells and outline, against hand-made cases and properties."""

import re

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pdgen.report.changes import coarsen, find_change, remove_spots, trace_outline

masks = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9))


def filled(path, shape):
    """Return the cells inside an outline: crossing a vertical border turns outside into inside."""
    borders = np.zeros((shape[0], shape[1] + 1), int)
    for x, y, length in re.findall(r"M(\d+) (\d+)v(\d+)", path):
        borders[int(y) : int(y) + int(length), int(x)] = 1
    return (np.cumsum(borders, axis=1)[:, :-1] % 2).astype(bool)


def test_images_of_two_sizes_are_not_compared():
    assert find_change(PIL.Image.new("RGB", (4, 4)), PIL.Image.new("RGB", (8, 4))) is None


def test_a_square_that_appears_is_outlined():
    before, after = PIL.Image.new("RGB", (10, 6)), PIL.Image.new("RGB", (10, 6))
    after.paste("white", (2, 1, 5, 4))
    found = find_change(before, after)
    assert found.share == pytest.approx(9 / 60) and found.extent == (10, 6)
    assert found.path == "M2 1h3M2 4h3M2 1v3M5 1v3"


def test_a_large_image_is_outlined_in_64_cells():
    before, after = PIL.Image.new("RGB", (1000, 500)), PIL.Image.new("RGB", (1000, 500))
    after.paste("white", (160, 0, 320, 160))
    found = find_change(before, after)
    assert found.extent == (62.5, 31.25)
    assert found.path == "M10 0h10M10 10h10M10 0v10M20 0v10"


@given(masks)
def test_the_outline_encloses_the_cells_and_no_others(cells):
    path = trace_outline(cells)
    np.testing.assert_array_equal(filled(path, cells.shape), cells)
    transposed = re.sub(r"M(\d+) (\d+)h(\d+)", r"M\2 \1v\3", "".join(re.findall(r"M\d+ \d+h\d+", path)))
    np.testing.assert_array_equal(filled(transposed, cells.shape[::-1]), cells.T)


@given(masks, st.integers(1, 4))
def test_a_cell_is_inside_where_a_quarter_of_its_pixels_are(pixels, side):
    cells = coarsen(pixels, side)
    for (row, column), inside in np.ndenumerate(cells):
        part = pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]
        assert inside == (part.mean() >= 0.25)


def test_small_spots_are_noise_inside_and_outside():
    cells = np.zeros((8, 12), bool)
    cells[1:7, 1:7] = True
    wanted = cells.copy()
    cells[3, 3:6] = False  # three cells: a hole that is filled
    cells[2:4, 9] = True  # two cells: a spot that goes
    np.testing.assert_array_equal(remove_spots(cells), wanted)
    cells[2:4, 9:11] = wanted[2:4, 9:11] = True  # four cells stay
    np.testing.assert_array_equal(remove_spots(cells), wanted)
    assert remove_spots(np.ones((2, 2), bool)).all() and not remove_spots(np.zeros((2, 2), bool)).any()
