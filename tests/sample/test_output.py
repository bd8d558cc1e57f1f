"""The folders that sampling leaves: files, captions, page."""

import re

import PIL.Image
import pytest

from pdgen.interleave.trajectory import ImageStage, TextStage, Trajectory, load_trajectory
from pdgen.sample.output import captions, is_output, write_output


def drawn(prompt="a cat and a dog"):
    stages = [
        TextStage("plan", "<ins>Add a cat.</ins> <des>A cat.</des>"),
        ImageStage("sketch", "01_sketch.png", 8, 8),
        TextStage("inspect", "Its colour is wrong. <refine>Make it red.</refine>"),
        ImageStage("refine", "02_refine.png", 8, 8),
        TextStage("inspect", "It fits."),
        TextStage("plan", "<ins>" + "Add a dog. " * 40 + "</ins> <des>A cat and a dog.</des>"),
        ImageStage("sketch", "03_sketch.png", 8, 8),
    ]
    images = [PIL.Image.new("RGB", (8, 8), color) for color in ("gray", "red", "blue")]
    return Trajectory(
        prompt=prompt, stages=stages, stop_reason="finished", seed=1, checkpoint="x", images=images
    )


def test_captions_say_what_each_image_was_drawn_from():
    sketch, refine, last = captions(drawn())
    assert (sketch, refine) == ("sketch\nAdd a cat.", "refine\nMake it red.")
    assert last.startswith("sketch\nAdd a dog. Add") and last.endswith(" ...") and len(last) <= 150


def test_one_trajectory_stands_in_the_folder_itself(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    one = drawn()
    write_output(folder, [one])
    images = {"01_sketch.png", "02_refine.png", "03_sketch.png"}
    assert {path.name for path in folder.iterdir()} == images | {"trajectory.json", "strip.png", "index.html"}
    assert load_trajectory(folder) == one
    page = (folder / "index.html").read_text()
    assert set(re.findall(r'<img src="\./([^"]*)"', page)) == images
    with PIL.Image.open(folder / "strip.png") as strip:
        assert strip.width == 3 * 192 + 4 * 12
    assert is_output(folder)


def test_several_have_a_folder_each_under_one_page(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    write_output(folder, [drawn("first"), drawn("second")])
    assert sorted(path.name for path in folder.iterdir()) == ["000", "001", "index.html"]
    assert [load_trajectory(folder / name).prompt for name in ("000", "001")] == ["first", "second"]
    assert all((folder / name / "strip.png").exists() for name in ("000", "001"))
    sources = re.findall(r'<img src="([^"]*)"', (folder / "index.html").read_text())
    assert len(sources) == 6 and all((folder / source).is_file() for source in sources)
    assert is_output(folder)


@pytest.mark.parametrize("files", [[], ["index.html"], ["trajectory.json"]])
def test_other_folders_are_no_output(tmp_path, files):
    for name in files:
        (tmp_path / name).write_text("x")
    assert not is_output(tmp_path)
