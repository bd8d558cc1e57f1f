"""Records, sampled folders and the sequence grammar."""

import contextlib
import io
import itertools
import json
import pathlib
import re

import msgspec
import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdgen.interleave import trajectory as tr

LETTERS = {"g": "given", "p": "prompt", "l": "plan", "i": "image", "n": "inspect", "r": "inspect+refine"}
# The sequence grammar, written once more: every step after the first image ends in an image.
COMPLETE = re.compile(r"g*pli(?:n?li|rl?i)*n?")
# Words that come near the tags but hold none.
near_words = st.lists(st.sampled_from(["a", " ", "\n", "<", ">", "</", "<in", "ins>", "é", "\\", "<b>"])).map(
    "".join
)
words = near_words.filter(lambda text: not tr.TAG.search(text))


def png(width=4, height=4, color=(255, 0, 0)):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, height), color).save(buffer, "PNG")
    return buffer.getvalue()


def record(letters, complete=False, targets=None, **changes):
    """A record with one segment per letter; by default no drawn image or plan is a target."""
    segments, kinds = [], []
    texts = {
        "p": "a cat",
        "l": tr.format_plan("Add a cat.", "A cat."),
        "n": "Fine.",
        "r": tr.format_inspection("Wrong.", "Turn it."),
    }
    for number, letter in enumerate(letters):
        target = number in (targets or ())
        if letter in "gi":
            stage = "given" if letter == "g" else tr.image_stage(kinds)
            segments.append(tr.Image(stage, png(), target))
        else:
            stage = {"p": "prompt", "l": "plan", "n": "inspect", "r": "inspect"}[letter]
            segments.append(tr.Text(stage, texts[letter], target))
        kinds.append(LETTERS[letter])
    values = {"id": "r1", "source": "test", "complete": complete, "segments": segments} | changes
    return tr.Record(**values)


def accepts(letters, complete):
    try:
        tr.check_kinds([LETTERS[letter] for letter in letters], complete)
    except tr.TrajectoryError:
        return False
    return True


def test_the_sequence_grammar_on_every_short_sequence():
    for length in range(7):
        for letters in map("".join, itertools.product(LETTERS, repeat=length)):
            assert accepts(letters, complete=True) == bool(COMPLETE.fullmatch(letters)), letters
            # A cut is what some few segments would complete.
            cut = letters and any(COMPLETE.fullmatch(letters + rest) for rest in ("", "i", "li", "pli"))
            assert accepts(letters, complete=False) == bool(cut), letters


@given(words, words)
def test_a_plan_is_read_as_written(instruction, description):
    text = tr.format_plan(instruction, description)
    assert tr.parse_plan(text) == (instruction, description)
    typo = text.replace("</ins>", "<\\ins>").replace("</des>", "<\\des>")
    assert tr.parse_plan(typo) == (instruction, description)
    with pytest.raises(tr.TrajectoryError):
        tr.parse_refine(text)


@given(words, words)
def test_an_inspection_is_read_as_written(analysis, correction):
    assert tr.parse_refine(tr.format_inspection(analysis)) is None
    text = tr.format_inspection(analysis, correction)
    assert tr.parse_refine(text) == correction
    assert tr.parse_refine(text.replace("</refine>", "<\\refine>") + "\n") == correction
    with pytest.raises(tr.TrajectoryError):
        tr.parse_plan(text)


@pytest.mark.parametrize(
    "text",
    [
        "a cat",
        " <ins>a</ins> <des>b</des>",
        "<ins>a</ins>",
        "<ins>a</ins> and <des>b</des>",
        "<ins>a<ins>b</ins> <des>c</des>",
        "<ins>a</ins> <des>b</des><refine>c</refine>",
        "<ins>a</ins> <des>b</ins> <des>c</des>",
    ],
)
def test_what_is_no_plan(text):
    with pytest.raises(tr.TrajectoryError, match="plan"):
        tr.parse_plan(text)


@pytest.mark.parametrize(
    "text",
    [
        "a <refine>b",
        "a </refine>",
        "a <refine>b</refine> c",
        "<refine>a</refine><refine>b</refine>",
        "<des>a</des>",
    ],
)
def test_what_is_no_inspection(text):
    with pytest.raises(tr.TrajectoryError, match="inspection"):
        tr.parse_refine(text)


def test_tags_inside_words_are_refused():
    for write in (lambda: tr.format_plan("a</ins>", "b"), lambda: tr.format_inspection("a", "<\\refine>")):
        with pytest.raises(tr.TrajectoryError, match="inside the words"):
            write()


def test_a_record_comes_back_as_it_was():
    mean = np.arange(2 * 3 * 4, dtype=np.float16).reshape(2, 3, 4)
    image = tr.Image("sketch", png(), True, mean.tobytes(), mean.tobytes(), mean.shape)
    made = record("gpl", scene={"objects": [{"color": "red", "box": [0, 1.5]}]}, complete=True)
    made = msgspec.structs.replace(made, segments=[*made.segments, image])
    read = tr.decode_record(tr.encode_record(made))
    assert read == made
    restored = np.frombuffer(read.segments[-1].latent_mean, np.float16).reshape(
        read.segments[-1].latent_shape
    )
    np.testing.assert_array_equal(restored, mean)


def packed(**changes):
    """The encoding of a good record with top-level keys changed, as another program might write it."""
    return msgspec.msgpack.encode(msgspec.to_builtins(record("pli"), builtin_types=(bytes,)) | changes)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "shard 3: .*"),
        (packed()[:-5], "shard 3: .*"),
        (packed(version=2), "version 2 is not 1"),
        (packed(colour="red"), "unknown field `colour`"),
        (packed(complete=1), r"Expected `bool`, got `int` - at `\$.complete`"),
        (
            packed(segments=[{"type": "text", "stage": "prompt", "text": "a", "target": True}]),
            "a prompt is given",
        ),
        (packed(segments=[{"type": "image", "stage": "given", "png": b"", "target": True}]), "given image"),
        (packed(segments=[{"type": "video"}]), "Invalid value 'video'"),
        (packed(segments=[]), "begins with nothing"),
    ],
)
def test_a_bad_record_is_named(data, message):
    with pytest.raises(tr.TrajectoryError, match=message) as fault:
        tr.decode_record(data, "shard 3")
    assert str(fault.value).startswith("shard 3: ") and "\n" not in str(fault.value)


def test_a_picture_that_is_no_png_is_named():
    made = record("gp")
    made.segments[0] = tr.Image("given", b"GIF89a", False)
    with pytest.raises(tr.TrajectoryError, match="x: record r1: segment 0: not a PNG"):
        tr.decode_record(tr.encode_record(made), "x")


@pytest.mark.parametrize(
    "latents",
    [(b"", None, (1, 1, 1)), (b"ab", b"abc", (1, 1, 1)), (b"ab", b"ab", None), (None, None, (1, 1, 1))],
)
def test_latents_must_fit_their_shape(latents):
    with pytest.raises(ValueError, match="latent"):
        tr.Image("sketch", png(), False, *latents)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (record("pll"), "segment 2: plan after plan, expected image"),
        (record("pl", complete=True), "marked complete, but a sequence cannot end with plan"),
        (record("plir", complete=True), "cannot end with inspect"),
        (record("plir", targets=[2]), "segment 2: this image is corrected later"),
        (record("plirli", targets=[1]), "segment 1: this plan is corrected later"),
        (record("plirirli", targets=[1]), "segment 1: this plan is corrected later"),
        (record("pli", segments=[tr.Text("prompt", " ", False)]), "segment 0: the prompt is empty"),
        (record("pli", segments=[tr.Text("plan", "Add a cat.", False)]), "segment 0: not a plan"),
    ],
)
def test_a_record_that_breaks_the_grammar_is_named(made, message):
    with pytest.raises(tr.TrajectoryError, match=f"record r1: .*{message}"):
        tr.encode_record(made)


def test_what_is_not_corrected_may_be_a_target():
    # The plan stands when only the drawing is at fault; the refinement is a target in any case.
    tr.check_grammar(record("plirinlin", complete=True, targets=[1, 3, 4, 5, 6, 7, 8]))
    tr.check_grammar(record("plirlin", complete=True, targets=[3, 4, 5, 6]))


def test_the_stage_of_an_image_follows_from_what_stands_before():
    made = record("plirirlinli")
    stages = [s.stage for s in made.segments if isinstance(s, tr.Image)]
    assert stages == ["sketch", "refine", "refine", "sketch"]
    made.segments[2] = tr.Image("refine", png(), False)
    with pytest.raises(tr.TrajectoryError, match="segment 2: image stage 'refine', expected 'sketch'"):
        tr.check_grammar(made)


@pytest.fixture
def sampled():
    stages = [
        tr.ImageStage("given", "0.png", 6, 5),
        tr.TextStage("plan", tr.format_plan("a", "b"), seconds=0.5, tokens=9),
        tr.ImageStage("sketch", "1.png", 4, 8, seconds=1.5, tokens=34, steps=49),
    ]
    trajectory = tr.Trajectory(
        prompt="a cat <b>", stages=stages, stop_reason="finished", seed=7, checkpoint="run/3",
        settings={"text_scale": 4.0, "renorm": "global"}, costs={"seconds": 2.0},
    )  # fmt: skip
    return trajectory, [PIL.Image.new("RGB", (6, 5), "red"), PIL.Image.new("RGB", (4, 8), "blue")]


def test_a_sampled_trajectory_comes_back(sampled, tmp_path):
    trajectory, images = sampled
    folder = tmp_path / "new" / "00003"
    tr.save_trajectory(folder, trajectory, images)
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.png", "trajectory.json"]
    assert list(folder.parent.iterdir()) == [folder]
    read, pictures = tr.load_trajectory(folder)
    assert read == trajectory
    for picture, image in zip(pictures, images, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(image))
    plain = json.loads((folder / "trajectory.json").read_text())
    assert plain["stages"][2]["kind"] == "image" and plain["stages"][2]["file"] == "1.png"


def test_saving_leaves_nothing_half_written(sampled, tmp_path, monkeypatch):
    trajectory, images = sampled
    with pytest.raises(tr.TrajectoryError, match="2 image stages need as many images"):
        tr.save_trajectory(tmp_path / "a", trajectory, images[:1])
    with pytest.raises(tr.TrajectoryError, match=r"a/0.png: is 4x8 pixels, its stage says 6x5"):
        tr.save_trajectory(tmp_path / "a", trajectory, images[::-1])
    monkeypatch.setattr(pathlib.Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        tr.save_trajectory(tmp_path / "a", trajectory, images)
    assert not list(tmp_path.iterdir())


def test_saving_never_overwrites(sampled, tmp_path):
    with pytest.raises(tr.TrajectoryError, match="exists already"):
        tr.save_trajectory(tmp_path, *sampled)
    assert not list(tmp_path.iterdir())


def test_an_image_file_stays_in_its_folder():
    for name in ("../x.png", "/x.png", "a/b.png", "x.jpg", ""):
        with pytest.raises(ValueError, match="plain name"):
            tr.ImageStage("sketch", name, 1, 1)


def test_a_damaged_folder_is_named(sampled, tmp_path):
    with pytest.raises(tr.TrajectoryError, match=r"none/trajectory.json: No such file"):
        tr.load_trajectory(tmp_path / "none")
    folder = tmp_path / "t"
    tr.save_trajectory(folder, *sampled)
    (folder / "1.png").write_bytes(b"no picture")
    with pytest.raises(tr.TrajectoryError, match=r"t/1.png: "):
        tr.load_trajectory(folder)
    PIL.Image.new("RGB", (4, 4)).save(folder / "1.png")
    with pytest.raises(tr.TrajectoryError, match=r"t/1.png: is 4x4 pixels, its stage says 4x8"):
        tr.load_trajectory(folder)
    (folder / "1.png").unlink()
    with pytest.raises(tr.TrajectoryError, match=r"t/1.png: .*No such file"):
        tr.load_trajectory(folder)
    text = (folder / "trajectory.json").read_text()
    (folder / "trajectory.json").write_text(text.replace("finished", "gave up"))
    with pytest.raises(tr.TrajectoryError, match=r"t/trajectory.json: Invalid enum value 'gave up'"):
        tr.load_trajectory(folder)


def test_a_damaged_picture_is_never_another_fault(sampled, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)  # several IDAT chunks
    stage = tr.ImageStage("given", "0.png", 200, 200)
    folder = tmp_path / "t"
    made = msgspec.structs.replace(sampled[0], stages=[stage])
    tr.save_trajectory(folder, made, [PIL.Image.fromarray(noise)])
    path = folder / "0.png"
    whole = path.read_bytes()
    assert whole.count(b"IDAT") > 1
    for position in [*range(60), *(m.start() for m in re.finditer(b"IDAT", whole)), len(whole) // 2]:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        with contextlib.suppress(tr.TrajectoryError):
            tr.load_trajectory(folder)
    path.write_bytes(whole[:position])
    with pytest.raises(tr.TrajectoryError, match=r"t/0.png: "):
        tr.load_trajectory(folder)
