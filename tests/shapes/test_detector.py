"""The detector: exact on painted pictures of any size, and right on their autoencoder reconstructions."""

import jax
import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdgen.assets import shapes_folder
from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.config import SHAPES_AUTOENCODER
from pdgen.models import autoencoder
from pdgen.shapes.detector import THRESHOLD, detect, detect_background
from pdgen.shapes.painter import BACKGROUND_RGB, COLOR_RGB, paint
from pdgen.shapes.placement import FREE, LATTICE, PLACEMENTS
from pdgen.shapes.world import BACKGROUNDS, MAX_OBJECTS, SHAPES, Scene, SceneObject, find_relations, sample_scene

SEEDS = st.integers(0, 2**32 - 1)


def shown(scene):
    return {(o.shape, o.color, o.size_word, o.fill, o.box) for o in scene.objects}


def seen(picture):
    return {(f.shape, f.color, f.size, f.fill, f.box) for f in detect(picture)}


def scenes(seed, count, placement):
    return [sample_scene(np.random.default_rng((seed, i)), 1 + i % MAX_OBJECTS, placement) for i in range(count)]


def share_right(found, expected):
    """Return the share of expected objects found with all their looks and a box at most one unit off."""
    right = 0
    for shape, color, size, fill, box in expected:
        looks = [b for *words, b in found if words == [shape, color, size, fill]]
        right += any(np.abs(np.subtract(b, box)).max() <= 1 for b in looks)
    return right / len(expected)


@pytest.mark.parametrize(("name", "count"), [("lattice", 150), ("free", 400)])
def test_painted_pictures_are_read_exactly(name, count):
    for scene in scenes(0, count, PLACEMENTS[name]):
        picture = paint(scene)
        assert seen(picture) == shown(scene)
        assert detect_background(picture) == scene.background


@given(SEEDS, st.integers(1, MAX_OBJECTS), st.sampled_from([32, 48, 64, 96, 100, 256]), st.sampled_from([*PLACEMENTS]))
@settings(max_examples=100)
def test_larger_pictures_are_read_exactly(seed, count, size, name):
    scene = sample_scene(np.random.default_rng(seed), count, PLACEMENTS[name])
    picture = paint(scene, size)
    assert seen(picture) == shown(scene)
    assert detect_background(picture) == scene.background


def test_four_equal_shapes_that_almost_touch_are_four():
    corners = [(0, 0), (15, 0), (0, 15), (15, 15)]
    scene = Scene(tuple(SceneObject(i, 0, "square", "red", 14, x, y) for i, (x, y) in enumerate(corners)))
    assert seen(paint(scene)) == shown(scene)
    small = Scene(
        tuple(
            SceneObject(i, 0, "square", "white", 7, 4 + x // 15 * 8, 4 + y // 15 * 8)
            for i, (x, y) in enumerate(corners)
        )
    )
    assert seen(paint(small)) == shown(small)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_empty_pictures_hold_nothing(name):
    picture = paint(Scene((), name))
    assert detect(picture) == [] and detect_background(picture) == name
    noise = np.random.default_rng(0).normal(0, 8, picture.shape)
    noisy = np.clip(picture + noise, 0, 255).astype(np.uint8)
    assert detect(noisy) == [] and detect_background(noisy) == name


def test_a_square_of_numbers_is_a_square():
    """A hand-made picture; its score after a known error follows the closed form."""
    picture = np.empty((32, 32, 3), np.uint8)
    picture[:] = BACKGROUND_RGB["beige"]
    picture[5:15, 20:30] = COLOR_RGB["blue"]
    (found,) = detect(picture)
    assert (found.shape, found.color, found.size, found.fill) == ("square", "blue", "medium", "solid")
    assert (found.box, found.score) == ((20, 5, 30, 15), 1.0)
    picture[9:11, 24:26] = BACKGROUND_RGB["beige"]  # 4 of its 100 pixels are missing.
    (found,) = detect(picture)
    assert (found.shape, found.box, found.score) == ("square", (20, 5, 30, 15), 0.96)


def test_scores_fall_with_blur_and_noise_and_sort_the_results():
    scene = sample_scene(np.random.default_rng(5), 5, FREE)
    blurred = PIL.Image.fromarray(paint(scene, 64)).filter(PIL.ImageFilter.GaussianBlur(1.0))
    found = detect(np.asarray(blurred))
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)
    assert all(THRESHOLD <= f.score < 1 for f in found)
    assert all(f.score == 1 for f in detect(paint(scene)))


@pytest.mark.parametrize("name", PLACEMENTS)
def test_most_is_right_on_blurred_and_noisy_pictures(name):
    rng = np.random.default_rng(0)
    found, expected = [], []
    for scene in scenes(2, 60, PLACEMENTS[name]):
        blurred = PIL.Image.fromarray(paint(scene, 64)).filter(PIL.ImageFilter.GaussianBlur(1.0))
        picture = np.clip(np.asarray(blurred) + rng.normal(0, 6, (64, 64, 3)), 0, 255).astype(np.uint8)
        found.append(share_right(seen(picture), shown(scene)) * len(scene.objects))
        expected.append(len(scene.objects))
    assert sum(found) / sum(expected) > 0.97


def test_nearly_all_is_right_after_the_shipped_autoencoder():
    params = read_autoencoder(shapes_folder(), SHAPES_AUTOENCODER)
    pictured = scenes(3, 90, LATTICE)
    pictures = np.stack([paint(scene, 64) for scene in pictured])

    @jax.jit
    def round_trip(images):
        mean, _ = autoencoder.encode(SHAPES_AUTOENCODER, params, images)
        return autoencoder.decode(SHAPES_AUTOENCODER, params, autoencoder.latent_from_moments(SHAPES_AUTOENCODER, mean))

    decoded = np.asarray(round_trip(pictures / np.float32(127.5) - 1)).clip(-1, 1)
    back = np.rint((decoded + 1) * 127.5).astype(np.uint8)
    objects = sum(len(s.objects) for s in pictured)
    right = sum(share_right(seen(p), shown(s)) * len(s.objects) for p, s in zip(back, pictured))
    extra = sum(max(len(detect(p)) - len(s.objects), 0) for p, s in zip(back, pictured))
    assert right / objects > 0.97
    assert extra / objects < 0.01
    assert all(detect_background(p) == s.background for p, s in zip(back, pictured))


def test_relations_hold_of_found_boxes():
    scene = Scene((SceneObject(0, 0, "ring", "red", 10, 0, 11), SceneObject(1, 1, "star", "blue", 10, 20, 11)))
    ring, star = (next(f for f in detect(paint(scene)) if f.shape == shape) for shape in ("ring", "star"))
    assert find_relations(ring, star) == ("left of",)
    assert set(SHAPES) >= {ring.shape, star.shape}


@pytest.mark.parametrize("shape", [(31, 31, 3), (64, 32, 3)])
def test_pictures_that_are_not_square_or_too_small_are_refused(shape):
    words = f"a picture of {shape[1]} x {shape[0]} pixels: detection takes squares of 32 pixels or more"
    for function in (detect, detect_background):
        with pytest.raises(ValueError, match=words):
            function(np.zeros(shape, np.uint8))
