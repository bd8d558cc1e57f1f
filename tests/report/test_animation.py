"""The animation of a trajectory's strokes: every image stands, and between two there are blends of both."""

import numpy as np
import PIL.Image
import pytest

from pdgen.report.animation import frames, save_animation


def test_images_stand_and_blend():
    images = [PIL.Image.new("RGB", (8, 8), shade) for shade in ((0, 0, 0), (210, 210, 210))]
    made = list(frames(images, ["a", "a"], height=16))
    assert [milliseconds for _, milliseconds in made] == [1400, *[70] * 6, 3000]
    shades = [np.asarray(frame)[:16, :16].mean() for frame, _ in made]
    np.testing.assert_allclose(shades, [0, 30, 60, 90, 120, 150, 180, 210], atol=1)


def test_frames_have_one_size_and_images_their_middle():
    wide, high = PIL.Image.new("RGB", (32, 16), "red"), PIL.Image.new("RGB", (8, 16), "blue")
    (first, _), *_, (last, _) = frames([wide, high], ["", ""], height=16)
    assert first.size == last.size and first.width == 32
    row = np.asarray(last)[8]
    np.testing.assert_array_equal(np.flatnonzero((row == (0, 0, 255)).all(-1)), np.arange(12, 20))


def test_the_file_holds_all_frames(tmp_path):
    images = [PIL.Image.new("RGB", (8, 8), shade) for shade in ("black", "gray", "white")]
    save_animation(tmp_path / "strokes", images, ["", "", ""])
    with PIL.Image.open(tmp_path / "strokes") as stored:
        assert (stored.format, stored.n_frames, stored.info["loop"]) == ("WEBP", 3 + 2 * 6, 0)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="needs images"):
        list(frames([], []))
