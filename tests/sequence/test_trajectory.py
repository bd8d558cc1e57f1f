"""Records, sampled folders and the sequence grammar."""

import contextlib
import dataclasses
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

from pdgen.sequence import modes
from pdgen.sequence import trajectory as tr
from pdgen.sequence.trajectory_folder import load_trajectory, save_trajectory

LETTERS = {"g": "given", "p": "prompt", "l": "plan", "i": "image", "n": "inspect", "r": "inspect+refine"}
ANSWER = {"a": "answer"}  # in records of mode "understand"
# The sequence grammar, restated: every step after the first image ends in an image.
COMPLETE = re.compile(r"g*pli(?:n?li|rl?i)*n?")
# Words that resemble the tags but contain none.
near_words = st.lists(st.sampled_from(["a", " ", "\n", "<", ">", "</", "<in", "ins>", "é", "\\", "<b>"])).map("".join)
words = near_words.filter(lambda text: not tr.TAG.search(text))


def png(width=4, height=4, color=(255, 0, 0)):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, height), color).save(buffer, "PNG")
    return buffer.getvalue()


def record(letters, complete=False, targets=None, **changes):
    """Make a record with a segment per letter; by default no drawn image or plan is a target."""
    segments, kinds = [], []
    texts = {
        "p": "a cat",
        "l": tr.format_plan("Add a cat.", "A cat."),
        "n": "Fine.",
        "r": tr.format_inspection("Wrong.", "Turn it."),
        "a": "Two.",
    }
    for number, letter in enumerate(letters):
        target = number in (targets or ())
        if letter in "gi":
            stage = "given" if letter == "g" else modes.image_stage(kinds)
            segments.append(tr.Image(stage, png(), target))
        else:
            stage = {"p": "prompt", "l": "plan", "n": "inspect", "r": "inspect", "a": "answer"}[letter]
            segments.append(tr.Text(stage, texts[letter], target))
        kinds.append((LETTERS | ANSWER)[letter])
    values = {"id": "r1", "source": "test", "complete": complete, "segments": segments} | changes
    return tr.Record(**values)


def accepts(letters, complete):
    try:
        modes.check_kinds([LETTERS[letter] for letter in letters], complete)
    except modes.TrajectoryError:
        return False
    return True


def test_the_sequence_grammar_on_every_short_sequence():
    for length in range(7):
        for letters in map("".join, itertools.product(LETTERS, repeat=length)):
            assert accepts(letters, complete=True) == bool(COMPLETE.fullmatch(letters)), letters
            # A cut is a sequence that a few more segments would complete.
            cut = letters and any(COMPLETE.fullmatch(letters + rest) for rest in ("", "i", "li", "pli"))
            assert accepts(letters, complete=False) == bool(cut), letters


@given(words, words)
def test_a_plan_is_read_as_written(instruction, description):
    text = tr.format_plan(instruction, description)
    assert tr.parse_plan(text) == (instruction, description)
    typo = text.replace("</ins>", "<\\ins>").replace("</des>", "<\\des>")
    assert tr.parse_plan(typo) == (instruction, description)
    with pytest.raises(modes.TrajectoryError):
        tr.parse_refine(text)


@given(words, words)
def test_an_inspection_is_read_as_written(analysis, correction):
    assert tr.parse_refine(tr.format_inspection(analysis)) is None
    text = tr.format_inspection(analysis, correction)
    assert tr.parse_refine(text) == correction
    assert tr.parse_refine(text.replace("</refine>", "<\\refine>") + "\n") == correction
    with pytest.raises(modes.TrajectoryError):
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
def test_texts_that_are_not_plans(text):
    with pytest.raises(modes.TrajectoryError, match="plan"):
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
def test_texts_that_are_not_inspections(text):
    with pytest.raises(modes.TrajectoryError, match="inspection"):
        tr.parse_refine(text)


def test_tags_inside_words_are_refused():
    for write in (lambda: tr.format_plan("a</ins>", "b"), lambda: tr.format_inspection("a", "<\\refine>")):
        with pytest.raises(modes.TrajectoryError, match="inside the text"):
            write()


def test_a_record_round_trips():
    mean = np.arange(2 * 3 * 4, dtype=np.float16).reshape(2, 3, 4)
    image = tr.Image("sketch", png(), True, mean.tobytes(), mean.tobytes(), mean.shape)
    made = record("gpl", scene={"objects": [{"color": "red", "box": [0, 1.5]}]}, complete=True)
    made = msgspec.structs.replace(made, segments=[*made.segments, image])
    read = tr.decode_record(tr.encode_record(made))
    assert read == made
    restored = np.frombuffer(read.segments[-1].latent_mean, np.float16).reshape(read.segments[-1].latent_shape)
    np.testing.assert_array_equal(restored, mean)


def packed(**changes):
    """Encode a good record with changed top-level keys, as another program might write it."""
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
    with pytest.raises(modes.TrajectoryError, match=message) as fault:
        tr.decode_record(data, "shard 3")
    assert str(fault.value).startswith("shard 3: ") and "\n" not in str(fault.value)


def test_a_picture_that_is_not_a_png_is_named():
    made = record("gp")
    made.segments[0] = tr.Image("given", b"GIF89a", False)
    with pytest.raises(modes.TrajectoryError, match="x: record r1: segment 0: not a PNG"):
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
        (record("pi", complete=True), "segment 1: image after prompt, expected plan"),
        (record("pli", mode="single_pass"), "segment 1: plan after prompt, expected image"),
        (record("gpi", mode="single_pass"), "segment 0: given after start, expected prompt"),
        (record("pi", mode="edit"), "segment 0: prompt after start, expected given"),
        (record("gpi", mode="understand"), "segment 2: image after prompt, expected answer"),
        (record("gpaa", mode="understand"), "segment 3: answer after answer, expected nothing"),
        (record("gpa"), "segment 2: answer after prompt, expected plan"),
        (record("gp", mode="understand", complete=True), "marked complete, but a sequence cannot end with prompt"),
        (record("pir", mode="single_pass", complete=True), "cannot end with inspect"),
        (record("piri", mode="single_pass", targets=[1]), "segment 1: this image is corrected later"),
        (record("pli", segments=[tr.Text("prompt", " ", False)]), "segment 0: the prompt is empty"),
        (record("pli", segments=[tr.Text("plan", "Add a cat.", False)]), "segment 0: not a plan"),
    ],
)
def test_a_record_that_breaks_the_grammar_is_named(made, message):
    with pytest.raises(modes.TrajectoryError, match=f"record r1: .*{message}"):
        tr.encode_record(made)


@pytest.mark.parametrize(
    ("mode", "letters"), [("single_pass", "pi"), ("single_pass", "piri"), ("edit", "ggpi"), ("understand", "gpa")]
)
def test_records_of_the_base_models_modes_round_trip(mode, letters):
    made = record(letters, complete=True, targets=[len(letters) - 1], mode=mode)
    assert tr.decode_record(tr.encode_record(made)) == made
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(made))
    assert plain.pop("mode") == mode
    with pytest.raises(modes.TrajectoryError):  # a record without a mode is one of the process
        tr.decode_record(msgspec.msgpack.encode(plain))
    with pytest.raises(modes.TrajectoryError, match=r"x: .*'draw'"):
        tr.decode_record(msgspec.msgpack.encode(plain | {"mode": "draw"}), "x")


def test_a_record_without_a_mode_is_one_of_the_process():
    made = record("plin", complete=True, targets=[1, 2, 3])
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(made))
    assert plain.pop("mode") == "process"
    assert tr.decode_record(msgspec.msgpack.encode(plain)) == made


def test_uncorrected_segments_may_be_targets():
    # If only the image is wrong, the plan is right; the refinement is always a target.
    tr.check_grammar(record("plirinlin", complete=True, targets=[1, 3, 4, 5, 6, 7, 8]))
    tr.check_grammar(record("plirlin", complete=True, targets=[3, 4, 5, 6]))


def test_the_stage_of_an_image_follows_from_the_segments_before_it():
    made = record("plirirlinli")
    stages = [s.stage for s in made.segments if isinstance(s, tr.Image)]
    assert stages == ["sketch", "refine", "refine", "sketch"]
    made.segments[2] = tr.Image("refine", png(), False)
    with pytest.raises(modes.TrajectoryError, match="segment 2: image stage 'refine', expected 'sketch'"):
        tr.check_grammar(made)


PLAN = tr.format_plan("a", "b")


def shade(width, height, color="blue"):
    return PIL.Image.new("RGB", (width, height), color)


def trajectory(letters, mode="process", **changes):
    """Make a trajectory with a stage per letter: t is a thought, a an answer, the others as in ``LETTERS``."""
    stages, images = [], []
    texts = {"l": ("plan", PLAN), "n": ("inspect", "Fine."), "r": ("inspect", tr.format_inspection("No.", "Turn it."))}
    texts |= {"t": ("thought", "A cat."), "a": ("answer", "Two.")}
    for letter in letters:
        if letter in "gi":
            name = "given" if letter == "g" else modes.image_stage([tr.segment_kind(s) for s in stages])
            size = (6, 5) if letter == "g" else (4, 8)
            images.append(shade(*size, color=("red", "green", "blue", "white")[len(images)]))
            stages.append(tr.ImageStage(name, tr.image_file(len(images), name), *size))
        else:
            stages.append(tr.TextStage(*texts[letter], seconds=0.5, tokens=9, ids=[1, 2]))
    values = {"stop_reason": "finished", "seed": 7, "checkpoint": "run/3", "model_hash": "ab", "mode": mode}
    values |= {"settings": {"text_scale": 4.0, "renorm": "global"}, "costs": {"seconds": 2.0}} | changes
    return tr.Trajectory(prompt="a cat <b>", stages=stages, images=images, **values)


def test_a_sampled_trajectory_round_trips(tmp_path):
    made = trajectory("gli", latents={"02_sketch.png": np.arange(6, dtype=np.float32).reshape(2, 3)})
    folder = tmp_path / "new" / "00003"
    save_trajectory(folder, made)
    files = {"01_given.png", "02_sketch.png", "latents.npz", "trajectory.json"}
    assert {path.name for path in folder.iterdir()} == files
    assert list(folder.parent.iterdir()) == [folder]
    read = load_trajectory(folder)
    assert read == made and read.fingerprint == made.fingerprint
    for picture, image in zip(read.images, made.images, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(image))
    np.testing.assert_array_equal(read.latents["02_sketch.png"], made.latents["02_sketch.png"])
    plain = json.loads((folder / "trajectory.json").read_text())
    assert plain["stages"][2]["kind"] == "image" and plain["stages"][2]["file"] == "02_sketch.png"


@pytest.mark.parametrize(
    ("mode", "letters"),
    [
        ("process", ["li", "gglirli", "lin"]),
        ("single_pass", ["i", "in", "iri"]),
        ("edit", ["gi", "ggi", "giri"]),
        ("think", ["ti", "gti", "tin"]),
        ("understand", ["a", "ggga"]),
    ],
)
def test_every_mode_has_its_grammar(mode, letters):
    for one in letters:
        trajectory(one, mode).check()
    everything = ["", "li", "i", "gi", "ti", "gti", "a", "ga", "lin", "in", "ia", "iai", "gl", "irri", "tit"]
    fitting = {"li", "i", "gi", "ti", "gti", "a", "ga", "lin", "in"}
    for one in everything:
        alone = [m for m in modes.MODES if _fits(one, m)]
        assert len(alone) == (1 if one in fitting - {"in"} else len(alone)) and (one in fitting or not alone), one


def _fits(letters, mode):
    try:
        trajectory(letters, mode).check()
    except modes.TrajectoryError:
        return False
    return True


def test_saving_leaves_nothing_half_written(tmp_path, monkeypatch):
    made = trajectory("gli")
    with pytest.raises(modes.TrajectoryError, match="2 image stages need as many images"):
        save_trajectory(tmp_path / "a", dataclasses.replace(made, images=made.images[:1]))
    with pytest.raises(modes.TrajectoryError, match=r"a: 01_given.png: is 4x8 pixels, its stage says 6x5"):
        save_trajectory(tmp_path / "a", dataclasses.replace(made, images=made.images[::-1]))
    monkeypatch.setattr(pathlib.Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_trajectory(tmp_path / "a", made)
    assert not list(tmp_path.iterdir())


def test_saving_never_overwrites(tmp_path):
    with pytest.raises(modes.TrajectoryError, match="exists already"):
        save_trajectory(tmp_path, trajectory("li"))
    assert not list(tmp_path.iterdir())


def test_an_image_file_stays_in_its_folder():
    for name in ("../x.png", "/x.png", "a/b.png", "x.jpg", "", "\0.png"):
        with pytest.raises(ValueError, match="plain name"):
            tr.ImageStage("sketch", name, 1, 1)


def test_a_damaged_folder_is_named(tmp_path):
    with pytest.raises(modes.TrajectoryError, match=r"none/trajectory.json: No such file"):
        load_trajectory(tmp_path / "none")
    folder = tmp_path / "t"
    save_trajectory(folder, trajectory("gli", latents={}))
    text = (folder / "trajectory.json").read_text()
    nonsense = {
        PLAN: ("a cat", "not a plan"),
        '"process"': ('"edit"', "segment 2: plan after prompt, expected image"),
        '"finished"': ('"gave up"', "Invalid enum value 'gave up'"),
        '"a cat <b>"': ('" "', "the prompt is empty"),
    }
    for old, (new, message) in nonsense.items():
        (folder / "trajectory.json").write_text(text.replace(old, new))
        with pytest.raises(modes.TrajectoryError, match=rf"t(/trajectory.json)?: .*{message}"):
            load_trajectory(folder)
    (folder / "trajectory.json").write_text(text)
    load_trajectory(folder)
    (folder / "latents.npz").write_bytes(b"no zip")
    with pytest.raises(modes.TrajectoryError, match=r"t/latents.npz: "):
        load_trajectory(folder)
    (folder / "02_sketch.png").write_bytes(b"no picture")
    with pytest.raises(modes.TrajectoryError, match=r"t/02_sketch.png: "):
        load_trajectory(folder)
    (folder / "02_sketch.png").unlink()
    with pytest.raises(modes.TrajectoryError, match=r"t/02_sketch.png: .*No such file"):
        load_trajectory(folder)


def test_a_damaged_picture_raises_no_other_error(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)  # several IDAT chunks
    stage = tr.ImageStage("given", "0.png", 200, 200)
    folder = tmp_path / "t"
    images = [PIL.Image.fromarray(noise)]
    save_trajectory(folder, dataclasses.replace(trajectory(""), stages=[stage], images=images, stop_reason=None))
    path = folder / "0.png"
    whole = path.read_bytes()
    assert whole.count(b"IDAT") > 1
    for position in [*range(60), *(m.start() for m in re.finditer(b"IDAT", whole)), len(whole) // 2]:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        with contextlib.suppress(modes.TrajectoryError):
            load_trajectory(folder)
    path.write_bytes(whole[:position])
    with pytest.raises(modes.TrajectoryError, match=r"t/0.png: "):
        load_trajectory(folder)


def test_a_branch_keeps_the_stages_before_it():
    made = trajectory("glirlin")
    branch = made.branch(4, plan=tr.format_plan("Add a dog.", "A dog."), seed=8)
    assert branch.stages[:4] == made.stages[:4] and branch.images == made.images[:2]
    assert branch.stages[4] == tr.TextStage("plan", "<ins>Add a dog.</ins> <des>A dog.</des>", origin="outside")
    assert (branch.stop_reason, branch.seed, branch.parent) == (None, 8, tr.Parent(made.fingerprint, 4))
    assert (branch.prompt, branch.settings, branch.costs) == (made.prompt, made.settings, {})
    assert made == trajectory("glirlin")  # unchanged
    other = made.branch(5, image=shade(4, 8, "black"))
    assert other.stages[-1] == tr.ImageStage("refine", "03_refine.png", 4, 8, origin="outside")
    assert np.asarray(other.images[-1]).max() == 0 and other.seed == 7
    longer = made.branch(3, critique="Fine.").kinds
    assert longer == ["given", "prompt", "plan", "image", "inspect"]
    assert trajectory("i", "single_pass").branch(1, critique="<refine>Turn it.</refine>").kinds[-1] == "inspect+refine"
    assert trajectory("ti", "think").branch(0, plan="Two cats.").stages[0].stage == "thought"
    assert [len(made.branch(n).stages) for n in range(1, 8)] == list(range(1, 8))


@pytest.mark.parametrize(
    ("step", "changes", "message"),
    [
        (0, {}, "branch at stage 0: choose one from 1 to 4"),
        (5, {}, "branch at stage 5: choose one from 1 to 4"),
        (1, {"plan": "Add a cat."}, "branch at stage 1: not a plan"),
        (2, {"plan": PLAN}, "branch at stage 2: segment 3: plan after plan, expected image"),
        (2, {"critique": "Fine."}, "segment 3: inspect after plan, expected image"),
        (3, {"critique": "<refine>a"}, "not an inspection"),
        (1, {"image": (4, 8)}, "segment 2: image after prompt, expected plan"),
        (2, {"image": (8, 4)}, "branch: the image is 8x4 pixels, this trajectory's are 4x8; resize it"),
        (2, {"image": (4, 8), "plan": PLAN}, "give one of plan, critique and image"),
    ],
)
def test_a_branch_into_nonsense_is_refused(step, changes, message):
    changes = {name: shade(*value) if name == "image" else value for name, value in changes.items()}
    with pytest.raises(modes.TrajectoryError, match=message):
        trajectory("glin").branch(step, **changes)
