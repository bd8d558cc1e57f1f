"""The alignment subset from GenRef archives: bad pictures with corrections, and good pictures with explanations."""

import collections
from collections.abc import Iterator

import msgspec
import numpy as np

from pdgen.sequence.images import decode_image
from pdgen.sequence.trajectory import Image, Record, Text, format_inspection, parse_refine
from pdgen.synthesis.importers.outcome import Outcome, SkippedSample
from pdgen.synthesis.prompts import refuse_leak
from pdgen.synthesis.settings import DatasetSettings, SettingsError
from pdgen.synthesis.story import WRONG_PICTURE, Rejected, Teachers, consult, verdict_to_dict
from pdgen.synthesis.subsets import Samples, is_positive
from pdgen.teachers.protocols import Verdict


def _judge_picture(teachers: Teachers, plan: str, image: Image) -> Verdict:
    with consult(teachers):
        return teachers.judge.judge_picture(plan, np.asarray(decode_image(image.png)))


def _make_segments(
    settings: DatasetSettings, teachers: Teachers, imported: Record, positive: bool
) -> tuple[list[Text | Image], Verdict | None]:
    """Make the segments of a sample from GenRef's prompt, plan, bad picture, reflection and good picture.

    Returns:
      The segments, and the judge's verdict on the first picture; None if no judge is needed.

    Raises:
      Rejected: the prompt is a benchmark prompt, or the judge declines or disagrees.
    """
    prompt, plan, bad, reflection, good = imported.segments
    assert isinstance(prompt, Text) and isinstance(plan, Text) and isinstance(reflection, Text)
    assert isinstance(bad, Image) and isinstance(good, Image)
    refuse_leak(settings, prompt.text)
    if positive:
        verdict = _judge_picture(teachers, plan.text, good)
        if not verdict.accept:
            raise Rejected(WRONG_PICTURE)
        sketch = msgspec.structs.replace(good, stage="sketch")
        explanation = Text(stage="inspect", text=format_inspection(verdict.analysis), target=True)
        return [prompt, plan, sketch, explanation], verdict
    verdict = None
    if teachers.judge_explains:
        verdict = _judge_picture(teachers, plan.text, bad)
        if verdict.accept and not teachers.assumed:
            raise Rejected("fault not seen by the judge")
        text = format_inspection(verdict.analysis, parse_refine(reflection.text))
        reflection = msgspec.structs.replace(reflection, text=text)
    return [prompt, plan, bad, reflection, good], verdict


def make_archive_samples(
    settings: DatasetSettings, teachers: Teachers, outcomes: Iterator[Outcome], numbers: range
) -> Samples:
    """Make samples of the alignment subset, each from the next suitable one of ``reflection.read_genref``'s outcomes.

    Every outcome is used or counted as rejected, so the number of records and rejections is the number of outcomes
    read.

    Raises:
      SettingsError: there are too few outcomes.
    """
    records: list[Record] = []
    rejected: collections.Counter[str] = collections.Counter()
    for number in numbers:
        record = None
        while record is None:
            outcome = next(outcomes, None)
            if outcome is None:
                raise SettingsError(
                    f"alignment.archive: {settings.alignment.archive} ends at sample {number} of "
                    f"{settings.count_samples('alignment')[0]}; lower alignment.positive and alignment.negative"
                )
            record = _make_record(settings, teachers, outcome, number, rejected)
        records.append(record)
    return Samples(records, rejected)


def _make_record(
    settings: DatasetSettings, teachers: Teachers, outcome: Outcome, number: int, rejected: collections.Counter[str]
) -> Record | None:
    if isinstance(outcome, SkippedSample):
        rejected[outcome.reason] += 1
        return None
    positive = is_positive(settings, "alignment", number)
    try:
        segments, verdict = _make_segments(settings, teachers, outcome, positive)
    except Rejected as fault:
        rejected[fault.reason] += 1
        return None
    scene = {"task": "genref", "positive": positive, **(outcome.scene or {}), "note": outcome.id}
    if verdict is not None:
        scene |= {"judge": teachers.judge.name, "verdicts": [verdict_to_dict(2, verdict)]}
    name = f"alignment-{settings.seed}-{number:06d}"
    return Record(id=name, source="alignment", complete=False, segments=segments, scene=scene)
