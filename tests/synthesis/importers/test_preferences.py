"""Pairs from folders of sampled trajectories."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest

from pdgen.sequence.trajectory import ImageStage, TextStage, Trajectory, format_inspection, format_plan
from pdgen.sequence.trajectory_folder import save_trajectory
from pdgen.synthesis.importers import preferences
from pdgen.synthesis.importers.outcome import ImporterError
from tests.evaluate.painted import generate
from tests.synthesis.importers.made import split

PLAN = format_plan("Draw it.", "A red circle.")


def picture(color):
    return PIL.Image.fromarray(np.full((64, 64, 3), color, np.uint8))


def trajectory(*stages, prompt="a red circle", stop="finished", seed=0, **kind):
    """A trajectory of plans and inspections (texts) and pictures (grey values)."""
    made, images = [], []
    for stage in stages:
        if isinstance(stage, str):
            made.append(TextStage("plan" if stage.startswith("<ins>") else "inspect", stage))
        else:
            name = "refine" if isinstance(made[-1], TextStage) and "<refine>" in made[-1].text else "sketch"
            images.append(picture(stage))
            made.append(ImageStage(name, f"{len(images):02d}_{name}.png", 64, 64))
    return Trajectory(prompt=prompt, stages=made, stop_reason=stop, seed=seed, checkpoint="c", images=images, **kind)


def write(folder, trajectories, scores):
    for name, one in trajectories.items():
        save_trajectory(folder / name, one)
    lines = [json.dumps({"trajectory": name, "score": score}) for name, score in scores.items()]
    (folder / "scores.jsonl").write_text("\n".join(lines) + "\n")
    return split(preferences.read_preferences(folder))


def targets(record):
    return [segment.target for segment in record.segments]


def test_best_with_worst_and_only_what_follows_the_parting_is_learnt(tmp_path):
    made = {
        "a/0": trajectory(PLAN, 10, "It is right."),
        "a/1": trajectory(PLAN, 10, "It is green."),
        "a/2": trajectory(PLAN, 99, "It is right."),
        "a/3": trajectory(format_plan("Begin.", "Nothing."), 10),
        "b/0": trajectory(PLAN, 10, prompt="a star"),
        "b/1": trajectory(PLAN, 11, prompt="a star"),
    }
    records, skipped = write(tmp_path, made, {"a/0": 0.9, "a/1": 0.2, "a/2": 0.5, "a/3": 0.4, "b/0": 1, "b/1": 1})
    ids = [record.id.removeprefix("preferences/") for record in records]
    assert ids == ["a/0+a/1/better", "a/0+a/1/worse", "a/2+a/3/better", "a/2+a/3/worse"]
    assert [record.scene["score"] for record in records] == [0.9, 0.2, 0.5, 0.4]
    # Prompt, plan and picture are common; then only the prompt is.
    assert [targets(record) for record in records] == [
        [False, False, False, True],
        [False, False, False, True],
        [False, True, True, True],
        [False, True, True],
    ]
    assert [(one.reason, one.where) for one in skipped] == [("no difference", str(tmp_path / "b/0"))]


def test_a_corrected_draft_is_no_target_and_a_longer_trajectory_is_judged_by_what_it_adds(tmp_path):
    draft = trajectory(PLAN, 10)
    redrawn = trajectory(PLAN, 10, format_inspection("Wrong.", "Make it red."), 20)
    (better, worse), _ = write(tmp_path, {"0": redrawn, "1": draft}, {"0": 1, "1": 0})
    assert targets(better) == [False, False, False, True, True]
    # Its end alone bears a loss: the switch after the picture.
    assert targets(worse) == [False, False, False] and worse.complete


def test_a_correction_of_a_person_is_better_than_what_it_corrects_whatever_the_scores(tmp_path):
    first = trajectory(format_plan("Draw it.", "A blue circle."), 10)
    corrected = first.branch(0, plan=PLAN)
    corrected = trajectory(PLAN, 30, parent=corrected.parent)
    corrected.stages[0] = TextStage("plan", PLAN, origin="outside")
    records, _ = write(tmp_path, {"0": first, "0-1": corrected}, {"0": 0.9, "0-1": 0.1})
    assert [record.id for record in records] == ["preferences/0-1+0/better", "preferences/0-1+0/worse"]
    assert records[0].scene == {"score": 0.1, "corrected": True}


def test_without_scores_the_exact_verifier_judges(tmp_path):
    """Colour and noun are right in the one, the colour alone is wrong in the other."""
    prompt = "a red circle"
    for name, shown in (("0", "a blue circle"), ("1", prompt)):
        (drawn,) = generate([shown], [0])
        save_trajectory(tmp_path / name, dataclasses.replace(drawn, prompt=prompt))
    unknown = dataclasses.replace(generate([prompt], [0])[0], prompt="something nice")
    save_trajectory(tmp_path / "2", unknown)
    records, skipped = split(preferences.read_preferences(tmp_path))
    assert [record.id for record in records] == ["preferences/1+0/better", "preferences/1+0/worse"]
    assert records[0].scene["score"] == 1 and 0 < records[1].scene["score"] < 1
    assert [(one.reason, one.where) for one in skipped] == [("not judged", str(tmp_path / "2"))]


def test_a_pair_that_ends_early_teaches_nothing_and_is_skipped(tmp_path):
    cut = trajectory(PLAN, 10, stop="step limit")
    records, skipped = write(tmp_path, {"0": trajectory(PLAN, 10, "Right."), "1": cut}, {"0": 1, "1": 0})
    assert records == [] and [one.reason for one in skipped] == ["nothing to learn"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "scores.jsonl: line 1: Input data was truncated"),
        ('{"trajectory": "0", "score": NaN}', "scores.jsonl: line 1"),
        ('{"trajectory": "other", "score": 1}', "has no score for 0; add it"),
    ],
)
def test_malformed_scores_are_refused_in_one_line(tmp_path, line, words):
    save_trajectory(tmp_path / "0", trajectory(PLAN, 10))
    (tmp_path / "scores.jsonl").write_text(line)
    with pytest.raises(ImporterError, match=words) as fault:
        list(preferences.read_preferences(tmp_path))
    assert "\n" not in str(fault.value)


def test_a_folder_without_trajectories_is_refused(tmp_path):
    with pytest.raises(ImporterError, match=r"holds no trajectory\.json"):
        list(preferences.read_preferences(tmp_path))
