"""Geometry, scaling and captions of a strip, pixel by pixel."""

import numpy as np
import PIL.Image
import pytest

from pdgen.report.strip import make_strip


def checkerboard(height, width):
    cells = np.indices((height, width)).sum(0) % 2
    return PIL.Image.fromarray(np.stack([cells * 255, cells * 0, 255 - cells * 255], -1).astype(np.uint8))


def test_small_images_keep_their_pixels():
    image = checkerboard(8, 4)
    row = np.asarray(make_strip([image, image], ["a", "b"], height=32))
    assert row.shape == (32 + 36 + 17, 12 + 2 * (16 + 12), 3)
    enlarged = np.kron(np.asarray(image), np.ones((4, 4, 1), np.uint8))
    np.testing.assert_array_equal(row[12:44, 12:28], enlarged)
    np.testing.assert_array_equal(row[12:44, 40:56], enlarged)
    assert (row[:12] == 255).all() and (row[:44, 28:40] == 255).all()


def test_images_of_any_size_are_scaled_to_one_height():
    row = make_strip([checkerboard(100, 50), checkerboard(7, 7), PIL.Image.new("L", (300, 600), 90)], ["", "", ""], 64)
    assert row.mode == "RGB" and row.size == (12 + 32 + 12 + 64 + 12 + 32 + 12, 64 + 36)
    assert (np.asarray(row)[12:76, 132:164] == 90).all()


def test_captions_stay_below_their_image():
    image = PIL.Image.new("RGB", (64, 64), "red")
    words = "long words in this caption and averyverylongwordthatmustbecut\nnext line"
    row = np.asarray(make_strip([image, image], [words, ""], height=64))
    text = (row[64 + 12 :] < 128).all(-1)
    columns = np.flatnonzero(text.any(0))
    assert columns.min() >= 12 and columns.max() < 12 + 64 + 2
    lines = (text.shape[0] - 24) // 17
    assert lines > 4 and all(text[12 + 17 * n : 29 + 17 * n].any() for n in range(lines))


def test_a_broken_word_loses_no_letters():
    def ink(caption):
        row = np.asarray(make_strip([PIL.Image.new("RGB", (64, 64), "red")], [caption], height=64), np.int64)
        return (255 - row[64 + 12 :]).sum()

    np.testing.assert_allclose(ink("W" * 40), 40 * ink("W"), rtol=0.02)


@pytest.mark.parametrize(("images", "captions"), [(0, 0), (1, 0), (1, 2)])
def test_captions_must_fit(images, captions):
    with pytest.raises(ValueError, match=f"got {images} and {captions}"):
        make_strip([PIL.Image.new("RGB", (4, 4))] * images, ["a"] * captions)
