"""Unfinished trajectories continue: resumed, branched, reviewed, streamed, copied."""

import dataclasses

import msgspec
import numpy as np
import PIL.Image
import pytest

from pdgen.sample.batch import Change, Stop
from pdgen.sample.settings import SampleError
from pdgen.sequence.modes import TrajectoryError
from pdgen.sequence.trajectory_folder import load_trajectory, save_trajectory
from tests.sample.conftest import PROMPTS, SEEDS, SETTINGS, outcome, recording

PLAN = "<ins>Add a dog.</ins> <des>A dog.</des>"


def near(trajectory, expected):
    """Return whether texts and stop are equal, and images differ at most by a rounding."""
    assert [(s.stage, getattr(s, "text", None)) for s in trajectory.stages] == [
        (s.stage, getattr(s, "text", None)) for s in expected.stages
    ]
    for image, other in zip(trajectory.images, expected.images, strict=True):
        assert np.abs(np.asarray(image, int) - np.asarray(other, int)).max() <= 1
    assert trajectory.stop_reason == expected.stop_reason


@pytest.fixture(scope="module")
def resumed(sampler, recorded):
    """All three recorded trajectories cut after the first image, and resumed."""
    cut = [one.branch(2) for one in recorded.drawn]
    with recording(sampler) as recorder:
        return cut, sampler.resume_all(cut, SETTINGS), recorder


def test_a_cut_trajectory_continues_as_before(recorded, resumed):
    cut, drawn, _ = resumed
    for one, start, expected in zip(drawn, cut, recorded.drawn):
        near(one, expected)
        assert one.stages[:2] == expected.stages[:2] and one.images[0] is start.images[0]
        assert one.parent.stage == 2 and one.parent.fingerprint == expected.fingerprint


def test_history_is_read_once_and_not_redrawn(sampler, resumed):
    _, drawn, recorder = resumed
    for one in drawn:
        texts = [stage.ids for stage in one.stages if hasattr(stage, "text")]
        tokens = sum(len(ids) + 2 for ids in [sampler.model.tokenizer.encode(one.prompt), *texts])
        assert one.costs["prefilled_tokens"] == tokens + sum(s.tokens for s in one.stages if not hasattr(s, "text"))
        assert one.costs["text_tokens"] == sum(map(len, texts[1:]))
    assert sum(len(call.rows) for call in recorder.named("draw")) == sum(len(one.images) - 1 for one in drawn)


def test_a_changed_plan_is_drawn(sampler, recorded):
    branches = [one.branch(0, plan=PLAN) for one in recorded.drawn]
    drawn = sampler.resume_all(branches, SETTINGS)
    for one, before in zip(drawn, recorded.drawn):
        assert one.stages[0].text == PLAN and one.stages[0].origin == "outside"
        assert [s.stage for s in one.stages[:2]] == ["plan", "sketch"]
        assert np.asarray(one.images[0]).tobytes() != np.asarray(before.images[0]).tobytes()
    # A reviewer's change of the plan gives the same, to the bit: the context keeps nothing of the model's plan.
    seen = []

    def change(row, stage, image):
        seen.append((row, stage.stage, image and image.size))
        return Change(text=PLAN) if stage.stage == "plan" and seen.count((row, "plan", None)) == 1 else None

    reviewed = sampler(PROMPTS, SEEDS, SETTINGS, review=change)
    for one, expected in zip(reviewed, drawn):
        stages, images, stop = outcome(expected)
        assert outcome(one)[1:] == (images, stop)
        assert [s[:2] for s in outcome(one)[0]] == [s[:2] for s in stages]
    shown = [(n, s.stage, None if hasattr(s, "text") else (32, 32)) for n, t in enumerate(reviewed) for s in t.stages]
    assert sorted(seen, key=str) == sorted(shown, key=str)


def test_an_edited_text_overrides_its_recorded_tokens(sampler, recorded):
    """As in an edited trajectory.json."""
    edited = []
    for one in recorded.drawn:
        cut = one.branch(1)
        changed = msgspec.structs.replace(cut.stages[0], text=PLAN)
        assert changed.ids
        edited.append(dataclasses.replace(cut, stages=[changed]))
    drawn = sampler.resume_all(edited, SETTINGS)
    planned = sampler.resume_all([one.branch(0, plan=PLAN) for one in recorded.drawn], SETTINGS)
    assert [outcome(one)[1] for one in drawn] == [outcome(one)[1] for one in planned]


def test_a_text_is_read_in_the_model_s_own_tokens(sampler, recorded):
    """Even where the tokenizer would use longer ones."""
    text = "<ins>o</ins> <des>o</des>"
    spelt = [sampler.model.tokenizer.pieces.index(letter.encode()) for letter in text]
    assert len(sampler.model.tokenizer.encode(text)) < len(spelt)
    cut = recorded.drawn[0].branch(1)
    start = dataclasses.replace(cut, stages=[msgspec.structs.replace(cut.stages[0], text=text, ids=spelt)])
    with recording(sampler) as recorder:
        sampler.make_batch([start], SETTINGS).settle()
    ids, count, _ = [call for call in recorder.named("prefill") if call.static[-1] == "full"][-1].given[-1]
    assert ids[0, 1 : count[0] - 1].tolist() == spelt


def test_a_changed_image_is_read(sampler, recorded):
    white = PIL.Image.new("RGB", (32, 32), "white")
    drawn = sampler.resume_all([one.branch(1, image=white) for one in recorded.drawn], SETTINGS)

    def change(row, stage, image):
        return Change(image=white) if stage.file.startswith("01") else None

    settings = dataclasses.replace(SETTINGS, keep_latents=True)
    reviewed = sampler(PROMPTS, SEEDS, settings, review=lambda *a: change(*a) if a[2] else None)
    for one, expected in zip(reviewed, drawn):
        near(one, expected)
        assert np.asarray(one.images[0]).min() == 255 and one.stages[1].origin == "outside"
        assert set(one.latents) == {s.file for s in one.stages[2:] if not hasattr(s, "text")}


def test_latents_stay_with_their_images(sampler, recorded, tmp_path):
    """Through a branch, its folder and its continuation; a picture that replaces a drawn one has none."""
    settings = dataclasses.replace(SETTINGS, keep_latents=True)
    (whole,) = sampler(PROMPTS[:1], SEEDS[:1], settings)
    files = [stage.file for stage in whole.stages if not hasattr(stage, "text")]
    assert len(files) > 1 and list(whole.latents) == files
    kept, painted = whole.branch(2), whole.branch(1, image=PIL.Image.new("RGB", (32, 32)))
    assert list(kept.latents) == files[:1] and kept.latents[files[0]] is whole.latents[files[0]]
    assert painted.stages[1].file == files[0] and painted.latents == {}
    assert recorded.drawn[0].branch(2).latents is None
    save_trajectory(tmp_path / "kept", kept)
    again = sampler.resume(load_trajectory(tmp_path / "kept"), settings)
    assert list(again.latents) == files
    np.testing.assert_array_equal(again.latents[files[0]], whole.latents[files[0]])
    np.testing.assert_allclose(again.latents[files[1]], whole.latents[files[1]], atol=1e-4)


def test_by_default_a_trajectory_keeps_its_settings(sampler, recorded, resumed, tmp_path):
    cut, drawn, _ = resumed
    for one, other in zip(sampler.resume_all(cut), drawn, strict=True):
        assert outcome(one) == outcome(other) and one.settings == other.settings
    save_trajectory(tmp_path / "cut", cut[0])
    assert outcome(sampler.resume(load_trajectory(tmp_path / "cut"))) == outcome(drawn[0])
    two = [cut[0], dataclasses.replace(cut[1], settings={**cut[1].settings, "image.num_timesteps": 7})]
    with pytest.raises(SampleError, match=r"trajectory 2 of 2 was drawn with image.num_timesteps=7, the first with \d"):
        sampler.resume_all(two)
    with pytest.raises(SampleError, match=r"1 of 1: settings: Expected `int`, got `str` - at `\$.max_images`; pass"):
        sampler.resume(dataclasses.replace(cut[0], settings={"max_images": "many"}))


def test_texts_and_images_brought_in_by_hand_are_read_as_in_a_resumed_trajectory(sampler, recorded):
    """To the bit; as there, text guidance does not see a text before the image."""
    white = PIL.Image.new("RGB", (32, 32), "white")
    planned = sampler.resume_all([one.branch(0, plan=PLAN) for one in recorded.drawn], SETTINGS)
    painted = sampler.resume_all([one.branch(1, image=white) for one in planned], SETTINGS)
    for images, expected in (({}, planned), (dict.fromkeys(range(3), white), painted)):
        batch = sampler.make_batch(sampler.make_starts(PROMPTS, SEEDS, SETTINGS), SETTINGS)
        batch.add_texts(dict.fromkeys(batch.list_due("text"), PLAN))
        batch.add_images(images)
        while batch.list_active():
            batch.step()
        for slot, other in enumerate(expected):
            one = batch.make_trajectory(slot)
            near(one, other)
            assert outcome(one)[1] == outcome(other)[1]


def test_a_reviewer_stops_a_trajectory(sampler, recorded):
    drawn = sampler(PROMPTS, SEEDS, SETTINGS, review=lambda row, stage, image: Stop() if row == 1 else None)
    assert (drawn[1].stop_reason, [s.stage for s in drawn[1].stages]) == ("stopped", ["plan"])
    assert [outcome(drawn[n]) for n in (0, 2)] == [outcome(recorded.drawn[n]) for n in (0, 2)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Change(text="a dog"), "segment 1: inspect after prompt, expected plan"),
        (Change(image=PIL.Image.new("RGB", (32, 32))), "review of a plan: Change needs a text"),
        (Change(text="<ins>" + "dog " * 40 + "</ins> <des></des>"), "a text from outside has .* at most 24"),
    ],
)
def test_a_review_into_nonsense_is_refused(sampler, recorded, change, words):
    with pytest.raises(ValueError, match=words):
        sampler(PROMPTS, SEEDS, SETTINGS, review=lambda *_: change)


def test_trajectories_that_cannot_be_resumed(sampler, recorded):
    with pytest.raises(SampleError, match="there is no trajectory to continue; give at least one"):
        sampler.resume_all([], SETTINGS)
    with pytest.raises(SampleError, match=r"trajectory 1 of 1 has ended \(finished\); branch it"):
        sampler.resume(dataclasses.replace(recorded.drawn[1], stop_reason="finished"), SETTINGS)
    broken = dataclasses.replace(recorded.drawn[0].branch(2), mode="edit")
    with pytest.raises(TrajectoryError, match="trajectory 2 of 2: segment 0: prompt after start, expected given"):
        sampler.resume_all([recorded.drawn[0].branch(1), broken], SETTINGS)


def test_stages_come_as_they_are_done(sampler, recorded):
    stream = sampler.stream(PROMPTS, SEEDS, SETTINGS)
    events = []
    while True:
        try:
            events.append(next(stream))
        except StopIteration as end:
            drawn = end.value
            break
    assert [outcome(one) for one in drawn] == [outcome(one) for one in recorded.drawn]
    for number, one in enumerate(drawn):
        own = [(stage, image) for row, stage, image in events if row == number]
        assert [stage for stage, _ in own] == one.stages
        assert [image for _, image in own if image] == one.images


def test_copies_of_a_row_continue_independently(sampler, recorded):
    """From a shared history, the same seed gives the same continuation and another seed a different one."""
    batch = sampler.make_batch(sampler.make_starts(PROMPTS, SEEDS, SETTINGS), SETTINGS)
    batch.write_texts(batch.list_due("text"))
    batch.copy_rows([2, 0, 0, 0], [SEEDS[2], SEEDS[0], 77, SEEDS[0]])
    assert [row.stages[0].text for row in batch.rows.values()] == [
        recorded.drawn[n].stages[0].text for n in (2, 0, 0, 0)
    ]
    while batch.list_active():
        batch.step()
    drawn = [batch.make_trajectory(slot) for slot in range(4)]
    assert [outcome(drawn[n]) for n in (0, 1, 3)] == [outcome(recorded.drawn[n]) for n in (2, 0, 0)]
    assert drawn[2].images[0].tobytes() != drawn[1].images[0].tobytes() and drawn[2].seed == 77
    with pytest.raises(SampleError, match="copy_rows: 5 rows into a batch of 4"):
        batch.copy_rows([0] * 5, range(5))


def test_ended_rows_accept_nothing(sampler, recorded):
    """Their room ends with the trajectory."""
    batch = sampler.make_batch(
        sampler.make_starts(PROMPTS, SEEDS, SETTINGS), dataclasses.replace(SETTINGS, max_images=0)
    )
    batch.write_texts(batch.list_due("text"))
    batch.settle()
    assert batch.list_active() == [] and batch.size == 4
    white = PIL.Image.new("RGB", (32, 32), "white")
    for more in (
        lambda: batch.write_texts([0, 3]),
        lambda: batch.begin_images([0, 3]),
        lambda: batch.add_texts({0: PLAN, 3: PLAN}),
        lambda: batch.add_images({0: white, 3: white}),
    ):
        with pytest.raises(SampleError, match=r"slots \[0, 3\]: no active trajectory"):
            more()
