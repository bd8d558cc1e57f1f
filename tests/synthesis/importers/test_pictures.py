"""Unusual pictures become upright RGB PNGs or are refused with a reason."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from pdgen.sequence import images
from pdgen.sequence.images import decode_image
from pdgen.synthesis.importers.outcome import RefusedSample
from pdgen.synthesis.importers.pictures import to_png

from .made import picture


def stored(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(data):
    image = PIL.Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return np.asarray(image)


def test_a_plain_png_is_kept_byte_for_byte():
    data = picture("red")
    assert to_png(data, "it") is data
    assert to_png({"bytes": data, "path": "red.png"}, "it") is data


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_lossy_files_keep_their_decoded_pixels(format):
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    data = stored(PIL.Image.fromarray(noise), format)
    assert (pixels(to_png(data, "it")) == np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))).all()


def test_transparent_parts_become_white():
    image = PIL.Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 255, 0))
    assert pixels(to_png(stored(image), "it")).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    palette = PIL.Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    data = stored(palette, transparency=1)
    assert pixels(to_png(data, "it")).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_grey_palette_and_16_bits_become_8_bit_rgb():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    expected = [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]]
    assert pixels(to_png(stored(PIL.Image.fromarray(values)), "it")).tolist() == expected
    assert np.asarray(decode_image(stored(PIL.Image.fromarray(values)))).tolist() == expected
    grey = PIL.Image.fromarray(np.array([[0, 1, 128, 255]], np.uint8))
    assert pixels(to_png(stored(grey), "it")).tolist() == expected
    assert pixels(to_png(stored(PIL.Image.new("P", (1, 1), 0)), "it")).shape == (1, 1, 3)


def test_cmyk_becomes_rgb():
    image = PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan: red
    red = pixels(to_png(stored(image, "JPEG", quality=95), "it"))[4, 4].astype(int)
    assert abs(red - [255, 0, 0]).max() < 12


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_rotated_photographs_become_upright(format):
    image = PIL.Image.new("RGB", (16, 8), "red")
    image.paste("blue", (8, 0, 16, 8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: the left side is on top
    upright = pixels(to_png(stored(image, format, exif=exif), "it"))
    assert upright.shape == (16, 8, 3)
    assert upright[2, 4, 0] > 200 > upright[13, 4, 0]


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.01])
def test_truncated_files_are_refused(format, kept):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    data = stored(PIL.Image.fromarray(noise), format)
    with pytest.raises(RefusedSample, match=r"image\[3\]: ") as fault:
        to_png(data[: int(len(data) * kept)], "image[3]")
    assert fault.value.reason == "unreadable picture"


@pytest.mark.parametrize(
    ("value", "reason", "words"),
    [
        (b"GIF89a not really", "unreadable picture", r"^it: not a readable .* \(its bytes are of no such format\)$"),
        (b"", "missing picture", "holds no bytes"),
        (None, "missing picture", "holds no bytes"),
        ({"bytes": None, "path": "a.png"}, "missing picture", "holds no bytes"),
        ("a.png", "missing picture", "is str, expected bytes"),
    ],
)
def test_files_that_are_not_pictures_are_refused(value, reason, words):
    with pytest.raises(RefusedSample, match=words) as fault:
        to_png(value, "it")
    assert fault.value.reason == reason


def test_too_large_pictures_are_refused_before_they_are_decoded(monkeypatch):
    data = picture("red", size=(20, 10))
    monkeypatch.setattr(images, "MAX_FILE_PIXELS", 200)
    assert to_png(data, "it") is data
    monkeypatch.setattr(images, "MAX_FILE_PIXELS", 199)
    with pytest.raises(RefusedSample, match="it: 20 x 10 pixels are too many") as fault:
        to_png(data[:60], "it")  # the header alone
    assert fault.value.reason == "picture too large"
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    with pytest.raises(RefusedSample) as fault:
        to_png(bomb, "it")
    assert fault.value.reason == "picture too large"
