"""The animation of a trajectory's strokes: every image is held, and two are joined by blends."""

import numpy as np
import PIL.Image
import pytest

from pdgen.report.animation import make_frames, save_animation


def test_images_are_held_and_blended():
    images = [PIL.Image.new("RGB", (8, 8), shade) for shade in ((0, 0, 0), (210, 210, 210))]
    made = list(make_frames(images, ["a", "a"], height=16))
    assert [milliseconds for _, milliseconds in made] == [1400, *[70] * 6, 3000]
    shades = [np.asarray(frame)[:16, :16].mean() for frame, _ in made]
    np.testing.assert_allclose(shades, [0, 30, 60, 90, 120, 150, 180, 210], atol=1)


def test_frames_have_one_size_and_images_are_centred():
    wide, high = PIL.Image.new("RGB", (32, 16), "red"), PIL.Image.new("RGB", (8, 16), "blue")
    (first, _), *_, (last, _) = make_frames([wide, high], ["", ""], height=16)
    assert first.size == last.size and first.width == 32
    row = np.asarray(last)[8]
    np.testing.assert_array_equal(np.flatnonzero((row == (0, 0, 255)).all(-1)), np.arange(12, 20))


def test_the_file_holds_all_frames(tmp_path):
    images = [PIL.Image.new("RGB", (8, 8), shade) for shade in ("black", "gray", "white")]
    save_animation(tmp_path / "strokes", images, ["", "", ""])
    with PIL.Image.open(tmp_path / "strokes") as stored:
        assert (stored.format, stored.n_frames, stored.info["loop"]) == ("WEBP", 3 + 2 * 6, 0)


@pytest.mark.parametrize("size", [(3000, 20), (4, 400)])
def test_images_beyond_the_limit_of_the_format_are_scaled_down(tmp_path, size, monkeypatch):
    if size[1] > size[0]:  # a caption runs down beneath a narrow image
        monkeypatch.setattr("pdgen.report.animation._LIMIT", 700)
    images = [PIL.Image.new("RGB", size, "red"), PIL.Image.new("RGB", size, "blue")]
    save_animation(tmp_path / "strokes", images, ["a caption of some words" * 2] * 2)
    with PIL.Image.open(tmp_path / "strokes") as stored:
        assert max(stored.size) == (16383 if size[0] > size[1] else 700) and stored.n_frames == 2 + 6
        red = np.asarray(stored.convert("RGB"))[: stored.height // 8].mean((0, 1))
    assert red[0] > 240 and red[1:].max() < 15


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="needs images"):
        list(make_frames([], []))
