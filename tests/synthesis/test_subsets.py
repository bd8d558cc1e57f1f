"""The three subsets: contents of their samples, verdicts, and rejected samples."""

import collections
import io
import itertools
import re

import msgspec
import numpy as np
import PIL.Image
import pytest

from pdgen.sequence.trajectory import Image, Text, check_grammar, encode_record, parse_plan, segment_kind
from pdgen.shapes.detector import detect, detect_background
from pdgen.shapes.graph import PLACES, SceneGraph, implies
from pdgen.shapes.inspections import COMPLETE
from pdgen.shapes.lexicon import pluralize
from pdgen.shapes.matching import find_differences, find_violations
from pdgen.shapes.parse import parse
from pdgen.synthesis.prompts import PROMPT_TASK, make_story
from pdgen.synthesis.settings import Alignment, Conflict, DatasetSettings, MultiTurn, SettingsError
from pdgen.synthesis.story import Rejected, Teachers
from pdgen.synthesis.subsets import is_positive, make_sample, make_samples
from pdgen.teachers.exact.judge import ExactJudge
from pdgen.teachers.exact.painter import ShapesPainter
from pdgen.teachers.exact.picture_check import match_detections
from pdgen.teachers.exact.writer import RulesWriter
from pdgen.teachers.protocols import Verdict
from tests.support.shapes_records import ASSUMED, EXACT, Trusting

SETTINGS = DatasetSettings(
    multi_turn=MultiTurn(count=40, fault_rate=0.3),
    conflict=Conflict(positive=10, negative=30),
    alignment=Alignment(positive=10, negative=30),
    rewritten=0.7,
)


def pixels(segment):
    return np.asarray(PIL.Image.open(io.BytesIO(segment.png)))


def kinds(record):
    return [segment_kind(s) for s in record.segments]


def plans(record):
    return [s.text for s in record.segments if s.stage == "plan"]


def last_graph(record):
    return record.scene["steps"][-1]["graph"]


@pytest.fixture(scope="module")
def made():
    """All samples of the settings, by subset; the judge accepts everything."""
    subsets = ("multi_turn", "conflict", "alignment")
    return {subset: make_samples(SETTINGS, ASSUMED, subset, range(40)) for subset in subsets}


@pytest.fixture(scope="module")
def conflicts():
    """Many more conflicts, without a judge."""
    settings = DatasetSettings(conflict=Conflict(positive=0, negative=150))
    return make_samples(settings, ASSUMED, "conflict", range(150)).records


@pytest.mark.slow
def test_the_rewritten_plan_has_no_other_conflict(conflicts):
    judge = ExactJudge()
    seen, agreed = (
        [judge.judge_plan(r.segments[0].text, [*plans(r)[:-2], plans(r)[n]]).accept for r in conflicts]
        for n in (-2, -1)
    )
    assert sum(seen) <= 4  # it may concern another requested thing
    assert all(agreed)
    assert not any("for now" in plans(r)[-1] for r in conflicts)  # it corrects everything at once


@pytest.mark.parametrize("subset", ["multi_turn", "conflict", "alignment"])
def test_samples_are_grammatical_and_describe_themselves(made, subset):
    for number, record in enumerate(made[subset].records):
        check_grammar(record)
        assert (record.id, record.source) == (f"{subset}-0-{number:06d}", subset)
        assert 1 <= kinds(record).count("image") <= 5
        assert len(record.scene["steps"]) == kinds(record).count("plan")
        assert parse(record.segments[0].text) is not None
        positive = None if subset == "multi_turn" else is_positive(SETTINGS, subset, number)
        assert record.scene.get("positive") == positive


def test_a_sample_depends_on_settings_subset_and_number_alone(made):
    backwards = [make_sample(SETTINGS, ASSUMED, "conflict", n)[0] for n in (9, 4)]
    assert [encode_record(r) for r in backwards] == [encode_record(made["conflict"].records[n]) for n in (9, 4)]
    threaded = make_samples(SETTINGS, ASSUMED, "conflict", range(4, 10), threads=3)
    assert threaded.records == made["conflict"].records[4:10]
    other = make_samples(DatasetSettings(seed=1, multi_turn=MultiTurn(40)), ASSUMED, "multi_turn", range(3)).records
    assert all(a.segments[0].text != b.segments[0].text for a, b in zip(other, made["multi_turn"].records))


def test_multi_turn_samples_end_when_the_prompt_is_fulfilled(made):
    seen = collections.Counter()
    for record in made["multi_turn"].records:
        order = kinds(record)
        assert record.complete and order[-2:] == ["image", "inspect"]
        seen.update(order, operations=len({s["operation"] for s in record.scene["steps"]}) > 1)
        for number, kind in enumerate(order[2:], 2):
            if kind == "inspect+refine":  # draft, fault, refined picture, agreement: only the draft is no target
                assert order[number - 1 : number + 3] == ["image", "inspect+refine", "image", "inspect"]
                assert [s.target for s in record.segments[number - 1 : number + 3]] == [False, True, True, True]
                assert (pixels(record.segments[number - 1]) != pixels(record.segments[number + 1])).any()
    assert seen["inspect+refine"] >= 10 and seen["operations"] >= 10


def test_nothing_follows_a_picture_that_fulfils_the_prompt():
    """Short prompts leave much open, so most detours concern things that they do not mention."""
    settings = DatasetSettings(
        tasks={"single_object": 1.0, "counting": 1.0}, multi_turn=MultiTurn(60, 0.0), rewritten=1.0
    )
    records = make_samples(settings, ASSUMED, "multi_turn", range(60)).records
    assert sum(len(plans(record)) > 1 for record in records) >= 10
    for record in records:
        *before, last = [s.text for s in record.segments if s.stage == "inspect"]
        assert last.endswith(COMPLETE) and not any(text.endswith(COMPLETE) for text in before)


def test_a_conflict_is_in_the_plan_and_not_in_the_picture(made):
    judge, notes, meant = ExactJudge(), set(), 0
    for record in (r for r in made["conflict"].records if not r.scene["positive"]):
        order = kinds(record)
        assert order[-5:] == ["plan", "image", "inspect+refine", "plan", "image"] and not record.complete
        assert [s.target for s in record.segments[-5:]] == [False, False, True, True, True]
        *earlier, wrong, right = plans(record)
        prompt = record.segments[0].text
        meant += judge.judge_plan(prompt, [*earlier, wrong]).accept
        assert judge.judge_plan(prompt, [*earlier, right]).accept
        before = next((pixels(s) for s in reversed(record.segments[:-5]) if isinstance(s, Image)), None)
        assert judge.judge_picture(wrong, pixels(record.segments[-4]), before).accept
        assert judge.judge_picture(right, pixels(record.segments[-1]), before).accept
        notes.add(record.scene["note"].split()[-1])
    assert meant <= 1  # it may concern another requested thing
    assert {"count", "color", "relation"} <= notes


def test_a_plan_that_is_right_if_incomplete_is_no_conflict(made):
    judge, open_ended = ExactJudge(), 0
    for record in (r for r in made["conflict"].records if r.scene["positive"]):
        texts = plans(record)
        assert all(judge.judge_plan(record.segments[0].text, texts[: n + 1]).accept for n in range(len(texts)))
        assert kinds(record)[-1] == "inspect" and "<refine>" not in record.segments[-1].text
        open_ended += not record.complete
    assert open_ended >= 5


def test_alignment_is_judged_on_pictures(made):
    judge, notes = ExactJudge(), collections.Counter()
    for record in made["alignment"].records:
        order = kinds(record)
        if record.scene["positive"]:
            assert order[-2:] == ["image", "inspect"]
            asked, shown = (msgspec.convert(g, SceneGraph) for g in (record.scene["prompt_graph"], last_graph(record)))
            assert record.complete == (not find_differences(asked, shown))
            continue
        assert order[-4:] == ["plan", "image", "inspect+refine", "image"] and not record.complete
        assert [s.target for s in record.segments[-4:]] == [True, False, True, True]
        before = next((pixels(s) for s in reversed(record.segments[:-4]) if isinstance(s, Image)), None)
        plan, draft, _, refined = record.segments[-4:]
        assert not judge.judge_picture(plan.text, pixels(draft), before).accept
        assert judge.judge_picture(plan.text, pixels(refined), before).accept
        notes[record.scene["note"]] += 1
    assert len(notes) >= 4


def test_the_exact_judge_keeps_what_an_accepting_one_keeps(made):
    """Painter, language and judge agree, so the exact judge rejects next to nothing made for shapes world."""
    for subset, share in (("multi_turn", 1.0), ("alignment", 1.0), ("conflict", 0.8)):
        exact = make_samples(SETTINGS, EXACT, subset, range(10))
        same = sum(a.segments == b.segments for a, b in zip(exact.records, made[subset].records))
        assert same >= share * 10, (subset, exact.rejected)


def test_positive_samples_are_spread_evenly():
    settings = DatasetSettings(conflict=Conflict(positive=6905, negative=8296))
    flags = [is_positive(settings, "conflict", n) for n in range(15201)]
    assert sum(flags) == 6905
    assert all(abs(sum(flags[a : a + 250]) - 113.6) <= 1 for a in range(0, 15000, 250))


def test_tasks_come_in_their_shares():
    tasks = {"counting": 3.0, "position": 1.0}
    settings = DatasetSettings(tasks=tasks, multi_turn=MultiTurn(count=120, fault_rate=0))
    records = make_samples(settings, ASSUMED, "multi_turn", range(120)).records
    counted = collections.Counter(r.scene["task"] for r in records)
    assert counted.keys() == tasks.keys() and 75 <= counted["counting"] <= 105


def test_plans_state_the_places_in_their_scenes():
    settings = msgspec.structs.replace(SETTINGS, places=1.0)
    stated = collections.Counter()
    for seed in range(60):
        try:
            story = make_story(np.random.default_rng(seed), settings, EXACT, rewritten=0.7)
        except Rejected:
            continue  # no layout
        changed = {i for step in story.steps if step.operation != "add" for i in step.entities}
        for step, scene in zip(story.steps, story.scenes):
            for entity in step.graph.entities:
                place = entity.attributes.get("place")
                if entity.id not in changed:
                    assert place is not None
                if place is not None:
                    there = sorted((o.place for o in scene.objects_of(entity.id)), key=PLACES.index)
                    assert place in (", ".join(there), *(there[:1] if len({*there}) == 1 else ()))
                    stated[entity.count > 1] += 1
    assert stated[False] > 200 and stated[True] > 30


def test_without_a_share_of_places_stories_follow_their_prompts():
    rngs = np.random.default_rng(3), np.random.default_rng(3)
    plain = make_story(rngs[0], SETTINGS, EXACT)
    half = make_story(rngs[1], msgspec.structs.replace(SETTINGS, places=0.5), EXACT)
    assert (plain.prompt, plain.scenes) == (half.prompt, half.scenes)
    for old, new in zip(plain.steps, half.steps):
        assert implies(new.graph, old.graph)


def test_without_rewriting_steps_only_add():
    settings = DatasetSettings(rewritten=0.0, multi_turn=MultiTurn(count=20, fault_rate=0))
    records = make_samples(settings, ASSUMED, "multi_turn", range(20)).records
    assert {s["operation"] for r in records for s in r.scene["steps"]} == {"add"}


@pytest.mark.parametrize("subset", ["multi_turn", "conflict", "alignment"])
def test_no_sample_exceeds_the_limit_of_images(monkeypatch, subset):
    monkeypatch.setattr("pdgen.synthesis.subsets._COUNT_RATE", 0.7)
    settings = msgspec.structs.replace(SETTINGS, max_images=3, multi_turn=MultiTurn(count=40, fault_rate=1.0))
    counted = [kinds(r).count("image") for r in make_samples(settings, ASSUMED, subset, range(40)).records]
    assert max(counted) == 3


@pytest.mark.parametrize("subset", ["conflict", "alignment"])
def test_faults_that_the_judge_misses_do_not_count(monkeypatch, subset):
    monkeypatch.setattr("pdgen.synthesis.subsets.ATTEMPTS", 12)
    settings = msgspec.structs.replace(SETTINGS, conflict=Conflict(0, 5), alignment=Alignment(0, 5))
    with pytest.raises(SettingsError, match="not seen by the judge"):
        make_sample(settings, Teachers(ShapesPainter(64), Trusting(), RulesWriter()), subset, 0)


def test_the_judges_verdicts_are_kept_with_the_sample():
    settings = msgspec.structs.replace(SETTINGS, conflict=Conflict(0, 5), alignment=Alignment(0, 5))
    for subset, wrong in (("conflict", "plan"), ("alignment", "sketch")):
        record, _ = make_sample(settings, EXACT, subset, 0)
        assert record.scene["judge"] == "exact"
        verdicts = {v["segment"]: v["accept"] for v in record.scene["verdicts"]}
        stages = [s.stage for s in record.segments]
        assert verdicts.keys() >= {n for n, s in enumerate(record.segments) if isinstance(s, Image)}
        assert [stages[n] for n, accept in verdicts.items() if not accept] == [wrong]


class Doubting(Trusting):
    """A judge that rejects every third picture."""

    def __init__(self):
        self.calls = itertools.count(1)

    def judge_picture(self, plan, picture, previous=None):
        if next(self.calls) % 3 == 0:
            return Verdict(accept=False, analysis="No.", correction="Draw it again.")
        return super().judge_picture(plan, picture, previous)


def test_rejected_samples_are_counted_and_replaced():
    settings = DatasetSettings(multi_turn=MultiTurn(count=12, fault_rate=0), entities=(1.0, 1.0), rewritten=0)
    teachers = Teachers(ShapesPainter(64), Doubting(), RulesWriter())
    samples = make_samples(settings, teachers, "multi_turn", range(12))
    assert [r.id for r in samples.records] == [f"multi_turn-0-{n:06d}" for n in range(12)]
    pictures = sum(kinds(r).count("image") for r in samples.records)
    assert samples.rejected["picture rejected by the judge"] >= pictures // 3
    again = Teachers(ShapesPainter(64), Doubting(), RulesWriter(), redraws=1)
    assert not make_samples(settings, again, "multi_turn", range(12)).rejected


class Refusing(Trusting):
    def judge_picture(self, plan, picture, previous=None):
        return Verdict(accept=False, analysis="No.", correction="Again.")


def test_impossible_samples_end_in_one_line(monkeypatch):
    monkeypatch.setattr("pdgen.synthesis.subsets.ATTEMPTS", 4)
    with pytest.raises(SettingsError, match=r"multi_turn: sample 3: 4 attempts were rejected \(picture rejected"):
        make_sample(SETTINGS, Teachers(ShapesPainter(64), Refusing(), RulesWriter()), "multi_turn", 3)


class Canvas:
    """A painter without scenes: it adds a stripe to the previous picture and records its requests."""

    name = "canvas"

    def __init__(self):
        self.strokes = []

    def paint(self, stroke):
        self.strokes.append(stroke)
        picture = np.zeros((24, 24, 3), np.uint8) if stroke.previous is None else stroke.previous.copy()
        picture[len(self.strokes) % 24] = 255
        return picture


class Explaining(Trusting):
    def judge_picture(self, plan, picture, previous=None):
        return Verdict(accept=True, analysis=f"Seen: {parse_plan(plan)[0]}")


PROMPTS = ("a brown dog left of a white cat, and two cars", "A photo of a bench.", "xyzzy", "three pizzas and a clock")


def test_other_teachers_draw_prompts_of_a_file_by_the_same_code():
    """The painter edits its last picture by the instruction; the judge writes the inspections; leaks are left out."""
    canvas = Canvas()
    settings = DatasetSettings(multi_turn=MultiTurn(count=2, fault_rate=0), rewritten=0)
    teachers = Teachers(canvas, Explaining(), RulesWriter(), placement=None, judge_explains=True)
    samples = make_samples(settings, teachers, "multi_turn", range(2), PROMPTS)
    assert [r.segments[0].text for r in samples.records] == [PROMPTS[0], PROMPTS[3]]
    assert samples.rejected == {"benchmark prompt": 1}
    strokes = iter(canvas.strokes)
    for record in samples.records:
        check_grammar(record)
        previous = None
        for plan, image, inspection in zip(*(record.segments[n::3] for n in (1, 2, 3))):
            stroke = next(strokes)
            assert (stroke.instruction, stroke.scene) == (parse_plan(plan.text)[0], None)
            assert (stroke.previous is None) if previous is None else (stroke.previous == previous).all()
            previous = pixels(image)
            assert inspection.text == f"Seen: {stroke.instruction}"
        assert record.scene["task"] == PROMPT_TASK
    assert next(strokes, None) is None
    nouns = {e["noun"] for e in samples.records[0].scene["prompt_graph"]["entities"]}
    assert nouns == {"dog", "cat", "car"}


def test_prompts_that_leak_or_are_not_understood_are_named():
    teachers = Teachers(Canvas(), Explaining(), RulesWriter(), placement=None, judge_explains=True)
    settings = DatasetSettings(multi_turn=MultiTurn(count=1, fault_rate=0), rewritten=0)
    _, rejected = make_sample(settings, teachers, "multi_turn", 0, PROMPTS[1:])
    assert rejected == {"benchmark prompt": 1, "prompt not understood": 1}
    leaky = DatasetSettings(multi_turn=settings.multi_turn, allow_leaks=True)
    kept, _ = make_sample(leaky, teachers, "multi_turn", 0, PROMPTS[1:])
    assert kept.segments[0].text == PROMPTS[1]


class Strict(Explaining):
    """A judge that takes any plan with a dog that is not brown for a conflict."""

    def judge_plan(self, prompt, plans):
        dogs = [e for e in parse(parse_plan(plans[-1])[1]).entities if e.noun == "dog"]
        if all(dog.attributes.get("color") == "brown" for dog in dogs):
            return Verdict(accept=True, analysis="It agrees.")
        return Verdict(accept=False, analysis="The dog is not brown.", correction="Plan a brown dog.")


def test_conflicts_of_other_nouns_are_drawn_from_the_graph():
    settings = DatasetSettings(conflict=Conflict(positive=1, negative=2), multi_turn=MultiTurn(fault_rate=0))
    teachers = Teachers(Canvas(), Strict(), RulesWriter(), placement=None)
    records = make_samples(settings, teachers, "conflict", range(3), PROMPTS[:1]).records
    for record in records:
        if not record.scene["positive"]:
            wrong, right = (parse_plan(text)[0] for text in plans(record)[-2:])
            assert "brown dog" not in wrong and "brown dog" in right


def test_texts_are_ascii_and_pictures_have_their_size(made):
    records = [r for samples in made.values() for r in samples.records]
    assert {pixels(s).shape for r in records for s in r.segments if isinstance(s, Image)} == {(64, 64, 3)}
    assert all(s.text.isascii() for r in records for s in r.segments if isinstance(s, Text))


@pytest.mark.slow
@pytest.mark.parametrize("subset", ["multi_turn", "conflict", "alignment"])
def test_inspections_first_describe_the_picture(subset):
    """The parsed description matches what the detector finds in the picture, and leaves nothing out."""
    inspected = missing = wrong = 0
    for record in make_samples(SETTINGS, EXACT, subset, range(40)).records:
        for image, text in itertools.pairwise(record.segments):
            if text.stage != "inspect":
                continue
            picture, words = pixels(image), text.text.partition(". ")[0]
            found = detect(picture)
            if gone := re.search(r"\bno (?:\w+ )*?(\w+) (\w+)(?:,| at| in| on)", words):
                color, noun = gone.groups()
                assert not any(s.color == color and noun in (s.shape, pluralize(s.shape)) for s in found), words
                missing += 1
                continue
            wrong += ", which is wrong," in words
            said = parse(words.replace(", which is wrong,", ",") + ".")
            assert not find_violations(match_detections(found, detect_background(picture), said), said), words
            assert sum(entity.count for entity in said.entities) == len(found)
            assert all(entity.places for entity in said.entities) and said.background is not None
            inspected += 1
    assert inspected >= 30 and (min(missing, wrong) > 0 or subset == "conflict")
