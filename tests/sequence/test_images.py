import io
import struct
import warnings
import zlib

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from absl import logging
from hypothesis import given
from hypothesis import strategies as st

from pdgen.config import BAGEL_7B, NANO
from pdgen.sequence import images
from pdgen.sequence.images import ImageError, ImageTooLargeError, SizeRule

sides = st.integers(1, 6)


def encoded(image: PIL.Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def colors(data: bytes) -> list[list[int]]:
    """Return the RGB values of the first row."""
    return np.asarray(images.decode_image(data))[0].tolist()


def make_png(width: int, depth: int, color: int, row: bytes, transparent: bytes) -> bytes:
    """Write a PNG of one row chunk by chunk, with a tRNS chunk: Pillow writes few of these kinds."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, 1, depth, color, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", transparent) + pixels + chunk(b"IEND", b"")


WHITE = [255] * 3


def test_patches_are_row_column_channel():
    values = np.arange(4 * 6 * 3).reshape(4, 6, 3)
    tokens = images.patchify(values, 2)
    assert tokens.shape == (6, 12)
    # The second patch of the first row of patches starts at column 2.
    np.testing.assert_array_equal(tokens[1].reshape(2, 2, 3), values[0:2, 2:4])
    np.testing.assert_array_equal(tokens[3].reshape(2, 2, 3), values[2:4, 0:2])


def test_patchify_equals_unfold():
    """torch's unfold orders a patch (channel, row, column)."""
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(size=(2, 6, 9, 4)).astype(np.float32)
    unfolded = torch.nn.functional.unfold(torch.from_numpy(values).permute(0, 3, 1, 2), 3, stride=3)
    expected = unfolded.reshape(2, 4, 3, 3, 6).permute(0, 4, 2, 3, 1).reshape(2, 6, 36)
    np.testing.assert_array_equal(images.patchify(values, 3), expected.numpy())


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


def test_resize_is_bicubic_and_keeps_a_fitting_size():
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    resized = images.resize(image, SizeRule(28, 8, 4))
    assert resized.size == (28, 20)
    assert resized.tobytes() == image.resize((28, 20), PIL.Image.Resampling.BICUBIC).tobytes()
    assert images.resize(resized, SizeRule(28, 4, 4)) is resized


def test_pixels_round_trip():
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
    for data in (b"", b"not an image", whole[: len(whole) // 2], encoded(PIL.Image.new("RGB", (2, 2)), "TIFF")):
        with pytest.raises(ImageError, match=r"^draft 3: not a readable PNG, JPEG, WebP, BMP or GIF"):
            images.decode_image(data, "draft 3")
    with pytest.raises(ImageError, match=r"or GIF \(its bytes are of no such format\)$"):
        images.image_size(b"nothing", "draft 3")
    with pytest.raises(ImageError, match=r"^draft 3: .*truncated"):
        images.decode_image(whole[:-30], "draft 3")


# The stored rows of a picture that shows 1 2 / 3 4 / 5 6, by the definition of each EXIF orientation.
ORIENTATIONS = {
    1: [[1, 2], [3, 4], [5, 6]],
    2: [[2, 1], [4, 3], [6, 5]],
    3: [[6, 5], [4, 3], [2, 1]],
    4: [[5, 6], [3, 4], [1, 2]],
    5: [[1, 3, 5], [2, 4, 6]],
    6: [[2, 4, 6], [1, 3, 5]],
    7: [[6, 4, 2], [5, 3, 1]],
    8: [[5, 3, 1], [6, 4, 2]],
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pictures_are_upright(kind, orientation):
    stored = PIL.Image.fromarray(np.array(ORIENTATIONS[orientation], np.uint8) * 40).convert("RGB")
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    upright = images.decode_image(data)
    assert (np.asarray(upright)[..., 0] // 40).tolist() == ORIENTATIONS[1]
    assert images.image_size(data) == (2, 3)
    assert images.to_rgb(upright).tobytes() == upright.tobytes()  # not turned again
    png = images.convert_to_png(data)
    assert images.image_size(png) == (2, 3) and (png is data) == (kind == "PNG" and orientation == 1)
    assert np.array_equal(images.decode_image(png), upright)


def test_a_phone_photo_is_upright():
    """A JPEG of a red left and a blue right half, with orientation 6: red is above."""
    image = PIL.Image.new("RGB", (32, 16), "red")
    image.paste("blue", (16, 0, 32, 16))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = encoded(image, "JPEG", exif=exif)
    upright = images.decode_image(data)
    assert upright.size == images.image_size(data) == (16, 32)
    assert upright.getpixel((8, 4))[0] > 200 > 50 > upright.getpixel((8, 28))[0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_turns_nothing(kind):
    data = encoded(PIL.Image.new("RGB", (4, 2), "red"), kind, exif=b"Exif\0\0garbage")
    assert images.decode_image(data).size == images.image_size(data) == (4, 2)


def test_transparent_values_of_every_depth_are_white():
    """Each row holds the transparent value once; the others are scaled as the PNG specification says."""
    grey16 = PIL.Image.fromarray(np.array([[256, 257, 40000]], np.uint16))
    assert colors(encoded(grey16, "PNG", transparency=256)) == [WHITE, [1] * 3, [156] * 3]
    grey8 = PIL.Image.fromarray(np.array([[9, 10, 11]], np.uint8))
    assert colors(encoded(grey8, "PNG", transparency=10)) == [[9] * 3, WHITE, [11] * 3]
    assert colors(make_png(4, 4, 0, bytes([0x05, 0xAE]), b"\0\x0a")) == [[0] * 3, [85] * 3, WHITE, [238] * 3]
    assert colors(make_png(4, 2, 0, bytes([0b00011011]), b"\0\1")) == [[0] * 3, WHITE, [170] * 3, WHITE]
    assert colors(make_png(4, 1, 0, bytes([0x50]), b"\0\0")) == [WHITE] * 4
    rgb16 = struct.pack(">6H", 256, 512, 768, 256, 512, 1024)
    assert colors(make_png(2, 16, 2, rgb16, rgb16[:6])) == [WHITE, [1, 2, 4]]
    palette = PIL.Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert colors(encoded(palette, "PNG", transparency=1)) == [[255, 0, 0], WHITE]
    assert colors(encoded(palette, "PNG", transparency=bytes([127, 255]))) == [[255, 128, 128], [0, 0, 255]]
    grey_alpha = PIL.Image.fromarray(np.array([[[0, 255], [0, 0], [100, 51]]], np.uint8), "LA")
    assert colors(encoded(grey_alpha, "PNG")) == [[0] * 3, WHITE, [224] * 3]  # 100 * 0.2 + 255 * 0.8


def test_every_format_decodes(caplog):
    image = PIL.Image.new("RGB", (16, 8), (250, 10, 10))
    cmyk = PIL.Image.new("CMYK", (16, 8), (0, 255, 255, 0))  # no cyan: red
    for kind in images.FORMATS:
        data = encoded(image, kind)
        decoded = images.decode_image(data)
        assert (decoded.mode, decoded.size, images.image_size(data)) == ("RGB", (16, 8), (16, 8))
        assert np.abs(np.subtract(decoded.getpixel((4, 4)), (250, 10, 10))).max() < 12, kind
    assert np.abs(np.subtract(colors(encoded(cmyk, "JPEG"))[4], (255, 0, 0))).max() < 12
    assert not caplog.records


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_read_with_a_note(kind, caplog):
    frames = [PIL.Image.new("RGB", (4, 4), color) for color in ("red", "blue", "lime")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    logging.use_absl_handler()
    assert images.decode_image(data, "waving").getpixel((0, 0))[0] > 250
    assert "waving: an animation; only its first frame is read" in caplog.text
    assert images.convert_to_png(data) != data


@pytest.mark.parametrize("kind", images.FORMATS)
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.95])
def test_truncated_files_are_refused(kind, kept):
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(ImageError, match=r"^half: not a readable PNG, ") as fault:
        images.decode_image(data[: int(len(data) * kept)], "half")
    assert len(str(fault.value)) < 250 and "\n" not in str(fault.value)


@pytest.mark.parametrize("kind", images.FORMATS)
def test_damaged_files_are_read_or_refused(kind):
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data, rng = encoded(noise, kind, exif=exif), np.random.default_rng(1)
    for _ in range(200):
        bad = bytearray(data)
        for position in rng.integers(0, len(data), rng.integers(1, 9)):
            bad[position] = rng.integers(256)
        try:
            assert images.decode_image(bytes(bad), "bad").mode == "RGB"
        except ImageError as fault:
            assert str(fault).startswith("bad: ") and len(str(fault)) < 250


def test_too_large_files_are_not_decoded(monkeypatch):
    def header(width, height):
        return make_png(width, 8, 2, b"", b"")[:16] + struct.pack(">II", width, height) + b"\x08\2\0\0\0"

    def whole(width, height):
        start = header(width, height)
        return start + struct.pack(">I", zlib.crc32(start[12:])) + rest

    rest = encoded(PIL.Image.new("RGB", (1, 1)), "PNG")[33:]
    monkeypatch.setattr(PIL.Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with warnings.catch_warnings(action="error"):  # whatever filters a program sets, Pillow has nothing to warn of
        for width, height in ((8193, 8193), (9500, 9500), (65_536, 1), (50_000, 50_000), (2**31 - 1, 2**31 - 1)):
            for read in (images.decode_image, images.image_size, images.convert_to_png):
                refusal = f"^it: {width} x {height} .*too many.*67,108,864"
                with pytest.raises(ImageTooLargeError, match=refusal) as fault:
                    read(whole(width, height), "it")
                assert len(str(fault.value)) < 200
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 99)
    with pytest.raises(ImageTooLargeError, match=r"^it: 100 bytes are too many, at most 99 are read"):
        images.decode_image(bytes(100), "it")


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
