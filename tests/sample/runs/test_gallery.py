"""Strips, animations and the page of a run's trajectories; existing files are kept."""

import dataclasses
import re

import msgspec
import PIL.Image
import pytest

from pdgen.sample.runs.folder import RunFolderError
from pdgen.sample.runs.gallery import RunGallery, make_captions
from pdgen.sequence.trajectory import ImageStage, TextStage, Trajectory
from pdgen.sequence.trajectory_folder import save_trajectory


def made(prompt="a cat"):
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
    return Trajectory(prompt=prompt, stages=stages, stop_reason="finished", seed=1, checkpoint="x", images=images)


def sources(folder):
    return re.findall(r'<img src="([^"]*)"', (folder / "index.html").read_text())


def test_captions_show_what_each_image_was_drawn_from():
    sketch, refine, last = make_captions(made())
    assert (sketch, refine) == ("sketch\nAdd a cat.", "refine\nMake it red.")
    assert last.startswith("sketch\nAdd a dog. Add") and last.endswith(" ...") and len(last) <= 150


def test_every_trajectory_gets_a_strip_and_its_place_on_the_page(tmp_path):
    save_trajectory(tmp_path / "000", made("first"))
    gallery = RunGallery(tmp_path)
    assert gallery.update() == tmp_path / "index.html" and len(sources(tmp_path)) == 3
    (tmp_path / "000" / "strip.png").write_text("kept")
    save_trajectory(tmp_path / "001", made("second"))
    (tmp_path / "notes").mkdir()  # no trajectory
    gallery.update()
    shown = sources(tmp_path)
    assert len(shown) == 6 and all((tmp_path / source).is_file() for source in shown)
    assert (tmp_path / "000" / "strip.png").read_text() == "kept"
    with PIL.Image.open(tmp_path / "001" / "strip.png") as strip:
        assert strip.width == 3 * 192 + 4 * 12
    assert f"<h1>{tmp_path.name}</h1>" in (tmp_path / "index.html").read_text()
    assert not list(tmp_path.glob("*/strokes.webp"))


def test_animations_are_made_on_request_for_earlier_trajectories_too(tmp_path):
    save_trajectory(tmp_path / "000", made())
    RunGallery(tmp_path).update()
    RunGallery(tmp_path, animate=True).update()
    with PIL.Image.open(tmp_path / "000" / "strokes.webp") as strokes:
        assert strokes.n_frames == 3 + 2 * 6
    assert 'href="000/strokes.webp"' in (tmp_path / "index.html").read_text()


def test_a_trajectory_without_images_is_shown_without_a_strip(tmp_path):
    plan_only = dataclasses.replace(made(), stages=made().stages[:1], images=[], stop_reason="step limit")
    save_trajectory(tmp_path / "000", plan_only)
    RunGallery(tmp_path, animate=True).update()
    assert [path.name for path in (tmp_path / "000").iterdir()] == ["trajectory.json"]
    assert "Add a cat." in (tmp_path / "index.html").read_text()


def test_a_trajectory_that_was_edited_into_nonsense_is_named(tmp_path):
    save_trajectory(tmp_path / "000", made())
    path = tmp_path / "000" / "trajectory.json"
    edited = msgspec.json.decode(path.read_bytes())
    edited["stages"][0]["text"] = "no plan"
    path.write_bytes(msgspec.json.encode(edited))
    for look in (RunGallery(tmp_path).read, RunGallery(tmp_path).update):
        with pytest.raises(RunFolderError, match=r"not a plan.*; remove the folder .*000 and run again"):
            look()
    assert not (tmp_path / "index.html").exists()


def test_a_trajectory_is_read_once(tmp_path):
    """A changed trajectory therefore does not end a run in progress."""
    save_trajectory(tmp_path / "000", made())
    gallery = RunGallery(tmp_path)
    assert gallery.read() == ["000"]
    (tmp_path / "000" / "trajectory.json").write_text("nonsense")
    gallery.update()
    assert len(sources(tmp_path)) == 3
