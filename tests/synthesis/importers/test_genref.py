"""The alignment subset from GenRef archives: its pictures, and the judge's contribution."""

import numpy as np
import pytest

from pdgen.sequence.trajectory import check_grammar, parse_refine
from pdgen.synthesis.importers.genref import make_archive_samples
from pdgen.synthesis.importers.reflection import read_genref
from pdgen.synthesis.settings import Alignment, DatasetSettings, SettingsError
from pdgen.synthesis.story import Teachers
from pdgen.teachers.exact.judge import ExactJudge
from pdgen.teachers.exact.painter import ShapesPainter
from pdgen.teachers.exact.writer import RulesWriter
from pdgen.teachers.protocols import Declined, Verdict
from tests.support.shapes_records import Trusting
from tests.synthesis.importers.made import picture, write_tar

GOOD, BAD = (20, 200, 20), (200, 20, 20)
SETTINGS = DatasetSettings(alignment=Alignment(positive=1, negative=2, archive="genref.tar"))


class Seeing(Trusting):
    """A judge that accepts green pictures and declines prompts with "silence"."""

    def judge_picture(self, plan, picture, previous=None):
        if "silence" in plan:
            raise Declined("no answer")
        green = picture[0, 0, 1] > picture[0, 0, 0]
        return Verdict(bool(green), "It is green." if green else "It is red.", None if green else "Make it green.")


SEEING = Teachers(ShapesPainter(32), Seeing(), RulesWriter(), placement=None, judge_explains=True)


def sample(prompt, **changes):
    members = {
        "prompt.txt": prompt.encode(),
        "reflection.txt": b"Make the dog green.",
        "bad_image.jpg": picture(BAD, "JPEG"),
        "good_image.jpg": picture(GOOD, "JPEG"),
        "subset.txt": b"rules",
    }
    return members | changes


@pytest.fixture
def archive(tmp_path):
    samples = [
        sample("a dog"),
        sample("a photo of a bench"),  # a prompt of GenEval
        sample("a cat", **{"bad_image.jpg": picture(GOOD, "JPEG")}),  # no visible fault
        sample("silence"),
        sample("a hen", **{"good_image.jpg": b"damaged"}),
        sample("a cow"),
        sample("a pig"),
        sample("an owl"),
    ]
    return write_tar(tmp_path / "genref.tar", {str(n): s for n, s in enumerate(samples)})


def test_each_sample_takes_the_next_suitable_entry(archive):
    outcomes = read_genref(archive)
    samples = make_archive_samples(SETTINGS, SEEING, outcomes, range(3))
    prompts = [r.segments[0].text for r in samples.records]
    assert prompts == ["a dog", "a cow", "a pig"]
    assert samples.rejected == {
        "benchmark prompt": 1,
        "fault not seen by the judge": 1,
        "judge declined": 1,
        "unreadable picture": 1,
    }
    assert next(outcomes).segments[0].text == "an owl"  # all entries before it were consumed
    first, second, third = samples.records
    for record in samples.records:
        check_grammar(record)
        assert record.source == "alignment" and record.scene["subset"] == "rules"
    assert [r.scene["positive"] for r in samples.records] == [False, False, True]
    inspection = second.segments[3].text
    assert inspection == "It is red. <refine>Make the dog green.</refine>"
    assert [s.target for s in first.segments] == [False, False, False, True, True]
    assert [s.target for s in third.segments] == [False, False, True, True]
    assert third.segments[-1].text == "It is green."


def test_without_an_explaining_judge_reflections_are_kept(archive):
    settings = DatasetSettings(alignment=Alignment(positive=0, negative=2, archive="genref.tar"))
    teachers = Teachers(ShapesPainter(32), ExactJudge(), RulesWriter(), placement=None)
    samples = make_archive_samples(settings, teachers, read_genref(archive), range(2))
    assert [r.segments[0].text for r in samples.records] == ["a dog", "a cat"]
    assert all(parse_refine(r.segments[3].text) == "Make the dog green." for r in samples.records)


def test_an_archive_with_too_few_samples_is_named(archive):
    settings = DatasetSettings(alignment=Alignment(positive=3, negative=6, archive="genref.tar"))
    with pytest.raises(SettingsError, match=r"genref.tar ends at sample 4 of 9; lower alignment.positive"):
        make_archive_samples(settings, SEEING, read_genref(archive), range(9))


def test_pictures_reach_the_judge_as_pixels(archive):
    seen = []

    class Looking(Seeing):
        def judge_picture(self, plan, picture, previous=None):
            seen.append(picture)
            return super().judge_picture(plan, picture, previous)

    teachers = Teachers(ShapesPainter(32), Looking(), RulesWriter(), placement=None, judge_explains=True)
    make_archive_samples(SETTINGS, teachers, read_genref(archive), range(1))
    (only,) = seen
    assert only.shape == (6, 8, 3) and only.dtype == np.uint8
    assert np.abs(only.astype(int) - BAD).max() < 20
