"""Pictures of every supported format, with the metadata of cameras and painting programs."""

import io

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from pdgen.sample.runs.jobs import read_picture
from pdgen.sequence.images import convert_to_png, image_size
from tests.robustness.calls import survey
from tests.robustness.mutations import mutate

pytestmark = pytest.mark.slow  # hundreds of damaged copies

NOISE = np.random.default_rng(0).integers(0, 256, (24, 16, 4), np.uint8)


def save(format, image=None, **options):
    image, buffer = image or PIL.Image.fromarray(NOISE[..., :3]), io.BytesIO()
    exif = image.getexif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    image.save(buffer, format, exif=exif, **options)
    return buffer.getvalue()


def make_png():
    notes = PIL.PngImagePlugin.PngInfo()
    notes.add_text("parameters", "steps: 20", zip=True)
    notes.add_itxt("comment", "a note")
    return save("PNG", pnginfo=notes)


def make_moving(format="GIF"):
    first, second = (PIL.Image.fromarray(part).convert("P") for part in (NOISE[..., 0], NOISE[..., 1]))
    return save(format, first, save_all=True, append_images=[second])


CASES = {
    "RGB.png": make_png,
    "palette.png": lambda: save("PNG", PIL.Image.fromarray(NOISE[..., 0]).convert("P"), transparency=5),
    "grey16.png": lambda: save("PNG", PIL.Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257), transparency=257),
    "moving.png": lambda: make_moving("PNG"),
    "RGB.jpg": lambda: save("JPEG"),
    "grey.jpg": lambda: save("JPEG", PIL.Image.fromarray(NOISE[..., 0]), progressive=True),
    "CMYK.jpg": lambda: save("JPEG", PIL.Image.fromarray(NOISE, "CMYK")),
    "RGBA.webp": lambda: save("WEBP", PIL.Image.fromarray(NOISE)),
    "moving.webp": lambda: make_moving("WEBP"),
    "RGB.bmp": lambda: save("BMP"),
    "palette.bmp": lambda: save("BMP", PIL.Image.fromarray(NOISE[..., 0]).convert("P")),
    "moving.gif": make_moving,
}


@pytest.mark.parametrize("name", CASES)
def test_pictures(tmp_path, capfd, name):
    file = tmp_path / name
    file.write_bytes(CASES[name]())

    def read():
        data = file.read_bytes()
        size = image_size(data, str(file))
        assert read_picture(file).size == size
        convert_to_png(data, str(file))

    survey(file, mutate(file.read_bytes(), 6), read, capfd, notes=("only its first frame is read",))
