import io

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdgen.config import BAGEL_7B, NANO
from pdgen.sequence import images
from pdgen.sequence.images import ImageError, SizeRule

sides = st.integers(1, 6)


def encoded(image: PIL.Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def test_patches_are_row_column_channel():
    values = np.arange(4 * 6 * 3).reshape(4, 6, 3)
    tokens = images.patchify(values, 2)
    assert tokens.shape == (6, 12)
    # The second patch of the first row of patches starts at column 2.
    np.testing.assert_array_equal(tokens[1].reshape(2, 2, 3), values[0:2, 2:4])
    np.testing.assert_array_equal(tokens[3].reshape(2, 2, 3), values[2:4, 0:2])


def test_patchify_equals_unfold():
    """torch's unfold orders a patch (channel, row, column)."""
    values = np.random.default_rng(0).normal(size=(2, 6, 9, 4)).astype(np.float32)
    unfolded = torch.nn.functional.unfold(torch.from_numpy(values).permute(0, 3, 1, 2), 3, stride=3)
    expected = unfolded.reshape(2, 4, 3, 3, 6).permute(0, 4, 2, 3, 1).reshape(2, 6, 36)
    np.testing.assert_array_equal(images.patchify(values, 3), expected.numpy())


@settings(deadline=None)
@given(h=sides, w=sides, patch=sides, channels=sides, batch=st.integers(1, 3))
def test_unpatchify_inverts_patchify(h, w, patch, channels, batch):
    values = np.arange(batch * h * w * patch**2 * channels).reshape(batch, h * patch, w * patch, channels)
    tokens = images.patchify(values, patch)
    np.testing.assert_array_equal(images.unpatchify(tokens, (h, w), patch), values)


def test_patches_of_jax_arrays():
    values = np.random.default_rng(0).normal(size=(4, 6, 2)).astype(np.float32)
    tokens = images.patchify(jnp.asarray(values), 2)
    np.testing.assert_array_equal(tokens, images.patchify(values, 2))
    np.testing.assert_array_equal(images.unpatchify(tokens, (2, 3), 2), values)


def test_patchify_refuses_a_remainder():
    with pytest.raises(ValueError, match="side 4 do not tile 8 x 6"):
        images.patchify(np.zeros((8, 6, 3)), 4)


def test_position_ids_refuse_a_large_grid():
    with pytest.raises(ImageError, match="5 x 2 patches exceeds the position table of side 4"):
        images.position_ids((5, 2), 4)


@settings(deadline=None)
@given(st.integers(16, 3000), st.integers(16, 3000))
def test_resized_sides_suit_the_model(width, height):
    """Published limits: VAE sides up to 1024 in steps of 16, ViT sides up to 980 in steps of 14."""
    sizes = images.image_sizes(BAGEL_7B)
    for rule, limit, stride in ((sizes.vae, 1024, 16), (sizes.vit, 980, 14)):
        size = images.resize_size(width, height, rule)
        assert all(side % stride == 0 and stride <= side <= limit for side in size)


def test_pixel_limit_scales_by_the_ratio_itself():
    # 100 x 100 at 50 x 50 pixels allowed: the ratio 1/4, not its root 1/2.
    assert images.resize_size(100, 100, SizeRule(100, 10, 1, max_pixels=2500)) == (25, 25)


def test_small_models_take_small_images_as_they_are():
    sizes = images.image_sizes(NANO)
    for rule in (sizes.vae, sizes.vit):
        assert images.resize_size(32, 32, rule) == (32, 32)
        assert images.resize_size(32, 16, rule) == (32, 16)


def test_resize_is_bicubic_and_leaves_the_right_size_alone():
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    resized = images.resize(image, SizeRule(28, 8, 4))
    assert resized.size == (28, 20)
    assert resized.tobytes() == image.resize((28, 20), PIL.Image.Resampling.BICUBIC).tobytes()
    assert images.resize(resized, SizeRule(28, 4, 4)) is resized


def test_pixels_go_there_and_back():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = PIL.Image.fromarray(np.stack([values, values[::-1], values.T], -1))
    pixels = images.to_pixels(images.decode_image(images.encode_png(image)))
    assert pixels.dtype == np.float32 and pixels.min() == -1 and pixels.max() == 1
    np.testing.assert_array_equal(np.asarray(images.from_pixels(pixels)), np.asarray(image))
    clipped = np.asarray(images.from_pixels(np.array([[[-1.5, 0.0, 2.0]]], np.float32)))
    np.testing.assert_array_equal(clipped, [[[0, 128, 255]]])


def test_transparent_pixels_are_white():
    image = PIL.Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 255, 0))
    decoded = images.decode_image(encoded(image, "PNG"))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


def test_jpeg_and_gray_png_decode_to_rgb():
    for kind, mode in (("JPEG", "RGB"), ("PNG", "L")):
        data = encoded(PIL.Image.new(mode, (5, 3), "white"), kind)
        decoded = images.decode_image(data)
        assert (decoded.mode, decoded.size, images.image_size(data)) == ("RGB", (5, 3), (5, 3))
        assert decoded.getpixel((4, 2)) == (255, 255, 255)


def test_broken_bytes_name_the_image():
    whole = images.encode_png(PIL.Image.new("RGB", (64, 64), "red"))
    for data in (b"", b"not an image", whole[: len(whole) // 2], encoded(PIL.Image.new("RGB", (2, 2)), "BMP")):
        with pytest.raises(ImageError, match=r"^draft 3: not a readable PNG or JPEG"):
            images.decode_image(data, "draft 3")
    with pytest.raises(ImageError, match=r"^draft 3: not a readable PNG or JPEG \(its bytes are of no such format\)$"):
        images.image_size(b"nothing", "draft 3")
    with pytest.raises(ImageError, match=r"^draft 3: .*truncated"):
        images.decode_image(whole[:-30], "draft 3")


def test_a_pixel_has_changed_where_a_channel_differs_by_more_than_40():
    before = np.full((1, 5, 3), 100, np.uint8)
    after = before.copy()
    after[0, 1, 2] = 140
    after[0, 2, 0] = 141
    after[0, 3, 1] = 59
    after[0, 4, 1] = 70  # 30 less: as bytes the difference would be 226
    np.testing.assert_array_equal(images.changed_pixels(before, after), [[False, False, True, True, False]])
    with pytest.raises(ValueError, match=r"\(1, 5, 3\) and \(1, 3, 3\)"):
        images.changed_pixels(before, after[:, :3])


def test_png_gives_the_picture_back():
    picture = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    png = images.encode_png(picture)
    assert png == images.encode_png(PIL.Image.fromarray(picture))
    assert (np.asarray(images.decode_image(png)) == picture).all()
