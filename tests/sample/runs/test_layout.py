"""Sampling reports the layout that a checkpoint was trained with, and deviations from it, in one line."""

from unittest import mock

import msgspec
import PIL.Image
import pytest

from pdgen.checkpoints.runs.layout import TrainingLayout
from pdgen.config import BAGEL_7B, SHAPES_NANO
from pdgen.sample.model import Model
from pdgen.sample.runs.layout import find_mismatches, report_layout
from pdgen.sample.settings import make_base_settings
from pdgen.sequence.trajectory import ImageStage, Trajectory

BOTH = ("vae", "vit")
LAYOUT = TrainingLayout(BOTH, BOTH, "sample", 64, 64, 20)


def start(mode="process", size=None):
    """Return the beginning of a trajectory, with a given picture of (width, height) if there is one."""
    stages = [ImageStage("given", "00-given.png", *size, origin="outside")] if size else []
    images = [PIL.Image.new("RGB", size)] if size else []
    return Trajectory(prompt="a star", stages=stages, images=images, seed=0, mode=mode, stop_reason=None, checkpoint="")


def ask(layout, config=SHAPES_NANO, mode="process", size=None, **settings):
    return find_mismatches(layout, make_base_settings(mode, **settings), config, [start(mode, size)])


def test_a_trained_layout_is_not_questioned():
    assert ask(LAYOUT) == ask(LAYOUT, height=64, width=64) == ask(LAYOUT, mode="edit", size=(64, 64)) == []
    only_read = TrainingLayout(("vit",), (), "sample", 0, 0, 20)
    assert ask(only_read, mode="understand", size=(64, 64)) == []


@pytest.mark.parametrize(
    ("changes", "asked", "question"),
    [
        (
            {},
            {"height": 32, "width": 64},
            "do you mean to draw 64 x 32 pixels (--width, --height), though it learned 64",
        ),
        (
            {"longest_side": 96},
            {"height": 128, "width": 64},
            "draw 64 x 128 pixels (--width, --height), though it lear",
        ),
        ({"shortest_side": 16, "longest_side": 32}, {}, "draw 64 x 64 pixels"),  # the largest that the model can draw
        ({"given": ()}, {"mode": "edit", "size": (64, 64)}, "do you mean to give an image, though it was trained with"),
        ({"given": ("vit",)}, {"mode": "edit", "size": (64, 64)}, "is a given image to be read as vae tokens, though"),
        ({"given": ("vae",)}, {"mode": "understand", "size": (64, 64)}, "is a given image to be read as vit tokens"),
        ({"drawn": ("vae",)}, {}, "are drawn images to be read as vit tokens, though it saw none of one?"),
        ({"latents": "mean"}, {}, "as a sample of the posterior, though it was trained with its mean?"),
    ],
)
def test_a_deviation_is_questioned_once(changes, asked, question):
    (found,) = ask(msgspec.structs.replace(LAYOUT, **changes), **asked)
    assert question in found


def test_a_given_image_is_drawn_at_its_resized_size():
    """BAGEL enlarges short sides to 512 pixels, so a small picture is edited at 512."""
    at_512 = msgspec.structs.replace(LAYOUT, shortest_side=512, longest_side=512)
    assert ask(at_512, BAGEL_7B, "edit", (100, 100)) == []
    (found,) = ask(at_512, BAGEL_7B, "edit", (512, 1024))
    assert "512 x 1024 pixels" in found


def test_all_questions_are_one_line():
    lines, model = [], mock.Mock(spec=Model, layout=LAYOUT, config=SHAPES_NANO)
    model.name = "out/mine"
    report_layout(model, make_base_settings("process", height=32, width=32), [start()], lines.append)
    assert lines == [
        "out/mine: trained with images of 64 pixels a side, given images as vae and vit tokens, the posterior's "
        "sample; do you mean to draw 32 x 32 pixels (--width, --height), though it learned 64 a side?"
    ]
    model.layout = None
    report_layout(model, make_base_settings("process"), [start()], lines.append)
    assert len(lines) == 1
