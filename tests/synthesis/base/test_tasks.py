"""The base model's data: grammatical records whose texts and pictures agree."""

import collections
import io

import msgspec
import numpy as np
import PIL.Image
import pytest
from msgspec.structs import replace

from pdgen.assets import shapes_folder
from pdgen.config import SHAPES_NANO
from pdgen.data.latents import add_latents
from pdgen.sequence.layout import VitSegment
from pdgen.sequence.segments import record_segments
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.sequence.trajectory import Image, check_grammar, decode_record, encode_record
from pdgen.shapes.detector import detect, detect_background
from pdgen.shapes.graph import OPERATIONS, PLACES, Entity, SceneGraph, Step, drop_implied
from pdgen.shapes.instruction import apply_instruction, make_instruction
from pdgen.shapes.lexicon import phrase_place
from pdgen.shapes.matching import align, find_differences, find_violations
from pdgen.shapes.parse import canonicalize, parse, parse_instruction
from pdgen.shapes.world import Scene, find_place, find_relations, place_scenes
from pdgen.synthesis.edits import changes_picture
from pdgen.synthesis.leaks import find_leak
from pdgen.synthesis.page import render_chunk, render_dataset, summarise_records
from pdgen.synthesis.sample import TASKS
from pdgen.synthesis.settings import DatasetSettings, Edit, TextToImage, Understand
from pdgen.synthesis.story import Teachers
from pdgen.synthesis.subsets import make_sample, make_samples
from pdgen.teachers.exact.judge import ExactJudge
from pdgen.teachers.exact.painter import ShapesPainter
from pdgen.teachers.exact.picture_check import check_picture, check_unchanged, match_detections
from pdgen.teachers.exact.writer import RulesWriter
from tests.support.kept_out import kept_out, of_graph, of_instruction, of_picture, scanned

TEACHERS = Teachers(ShapesPainter(64), ExactJudge(), RulesWriter())
COUNT = 300
SETTINGS = DatasetSettings(
    tasks=dict.fromkeys(TASKS, 0.08) | {"composition": 0.5},
    text_to_image=TextToImage(COUNT, thoughts=0.5),
    understand=Understand(COUNT),
    edit=Edit(COUNT),
    places=0.9,
)
SUBSETS = {
    "text_to_image": {"single_pass", "think"},
    "understand": {"understand"},
    "edit": {"edit"},
}


def pixels(segment):
    return np.asarray(PIL.Image.open(io.BytesIO(segment.png)))


def graph(data):
    return msgspec.convert(data, SceneGraph)


@pytest.fixture(scope="module")
def made():
    """Records of every subset."""
    return {subset: make_samples(SETTINGS, TEACHERS, subset, range(COUNT)).records for subset in SUBSETS}


@pytest.fixture(scope="module")
def edits(made):
    """(record, graph before, step) of every edit."""
    told = [(r, r.scene["before"], r.scene["steps"]) for r in made["edit"]]
    return [(record, graph(before), msgspec.convert(step, Step)) for record, before, (step,) in told]


@pytest.mark.parametrize("subset", [*SUBSETS])
def test_records_are_grammatical_and_round_trip(made, subset):
    for number, record in enumerate(made[subset]):
        check_grammar(record)
        assert (record.id, record.source) == (f"{subset}-0-{number:06d}", subset)
        assert record.complete and record.mode in SUBSETS[subset]
        bear = ("answer", "thought", "sketch")
        assert [s.target for s in record.segments] == [s.stage in bear for s in record.segments]
        assert {pixels(s).shape for s in record.segments if isinstance(s, Image)} == {(64, 64, 3)}
        assert decode_record(encode_record(record)).segments == record.segments


@pytest.mark.parametrize("subset", [*SUBSETS])
def test_a_sample_depends_on_settings_subset_and_number_alone(made, subset):
    again = [make_sample(SETTINGS, TEACHERS, subset, n)[0] for n in (7, 3)]
    assert [encode_record(r) for r in again] == [encode_record(made[subset][n]) for n in (7, 3)]
    other = make_samples(msgspec.structs.replace(SETTINGS, seed=1), TEACHERS, subset, range(3)).records
    assert [r.segments for r in other] != [r.segments for r in made[subset][:3]]


@pytest.mark.slow
@pytest.mark.parametrize("subset", [*SUBSETS])
def test_records_neither_say_nor_show_what_is_held_out(made, subset):
    readers = {"text_to_image": lambda text: of_graph(parse(text)), "edit": of_instruction, "understand": scanned}
    for record in made[subset]:
        for segment in record.segments:
            read_text = scanned if segment.stage == "answer" else readers[subset]
            said = of_picture(segment.png) if isinstance(segment, Image) else read_text(segment.text)
            assert not kept_out(said), (record.id, segment.stage)


def test_a_picture_shows_what_its_prompt_asks_for(made):
    tasks, wordings, things = collections.Counter(), collections.Counter(), collections.Counter()
    stated, modes = collections.Counter(), collections.Counter()
    for record in made["text_to_image"]:
        prompt, *thoughts, image = record.segments
        assert bool(thoughts) == (record.mode == "think") <= (record.scene["wording"] == "prompt")
        modes[record.mode] += record.scene["wording"] == "prompt"
        asked, picture = parse(prompt.text), pixels(image)
        assert canonicalize(asked) == canonicalize(graph(record.scene["prompt_graph"]))
        found = detect(picture)
        assert (
            check_picture(np.random.default_rng(0), match_detections(found, detect_background(picture), asked), asked)
            is None
        )
        for thought in thoughts:
            described = parse(thought.text)
            assert canonicalize(described) == canonicalize(drop_implied(graph(record.scene["steps"][0]["graph"])))
            assert not find_differences(asked, align(asked, described))
            assert (
                check_picture(
                    np.random.default_rng(0), match_detections(found, detect_background(picture), described), described
                )
                is None
            )
            stated.update(("thought", "place" in entity.attributes) for entity in described.entities)
        assert not find_leak(prompt.text)
        tasks[record.scene["task"]] += 1
        wordings[record.scene["wording"]] += 1
        stated.update((record.scene["wording"], "place" in entity.attributes) for entity in asked.entities)
        things[len(found)] += 1
    assert tasks.keys() == {*TASKS} and things.keys() == {1, 2, 3, 4, 5, 6}
    assert wordings["prompt"] > wordings["description"] > wordings["caption"] > COUNT // 15
    assert 0.35 < modes["think"] / modes.total() < 0.65
    assert stated["thought", True] > 4 * stated["thought", False] > 0
    assert stated["description", True] > 4 * stated["description", False] > 0  # a share of 0.9
    assert stated["places", True] > stated["places", False] == 0


def test_numbers_of_things_come_in_their_shares():
    part = TextToImage(60, things=(0, 0, 1, 0, 0, 3), wordings={"description": 1})
    settings = DatasetSettings(tasks={"composition": 1.0}, text_to_image=part)
    records = make_samples(settings, TEACHERS, "text_to_image", range(60)).records
    counted = collections.Counter(len(detect(pixels(r.segments[1]))) for r in records)
    assert counted.keys() == {3, 6} and counted[6] > 35
    assert {r.scene["wording"] for r in records} == {"description"}


def test_questions_come_in_their_shares(made):
    counted = collections.Counter(r.scene["task"] for r in made["understand"])
    for kind, share in SETTINGS.understand.questions.items():
        assert abs(counted[kind] / COUNT - share) < 0.08
    checks = [r for r in made["understand"] if r.scene["task"] == "check"]
    assert 0.3 < np.mean([r.scene["positive"] for r in checks]) < 0.7
    for record in checks:
        picture, said = pixels(record.segments[0]), graph(record.scene["prompt_graph"])
        right = not find_violations(match_detections(detect(picture), detect_background(picture), said), said)
        assert right == record.scene["positive"] == (record.segments[2].text == "Yes.")


@pytest.mark.slow
def test_requested_numbers_are_equally_frequent():
    """Zero to six are a seventh each; 0.05 is more than three standard deviations of 600 draws."""
    settings = DatasetSettings(understand=Understand(600, questions={"count": 1.0}))
    records = make_samples(settings, TEACHERS, "understand", range(600)).records
    shares = collections.Counter(record.segments[2].text for record in records)
    assert len(shares) == 7 and shares["None."] < 600 / 5
    assert all(abs(number / 600 - 1 / 7) < 0.05 for number in shares.values()), shares


@pytest.mark.slow
def test_an_edit_changes_only_what_it_states(edits):
    rng, counted = np.random.default_rng(0), collections.Counter()
    for record, before, step in edits:
        given, prompt, image = record.segments
        old, new = ((p, detect(p)) for p in (pixels(given), pixels(image)))
        for (picture, found), shown in ((old, before), (new, step.graph)):
            assert check_picture(rng, match_detections(found, detect_background(picture), shown), shown) is None
        assert parse_instruction(prompt.text).operation == step.operation
        instruction = make_instruction(before, step)
        after = drop_implied(apply_instruction(before, instruction))
        assert canonicalize(after) == canonicalize(drop_implied(step.graph))
        assert check_unchanged(rng, instruction, old, new) is None
        changed = (old[0] != new[0]).any(-1)
        assert changed.any()
        for one in (*old[1], *new[1]):
            same = next((o for o in (old, new)[one in old[1]][1] if o == one), None)
            left, top, right, bottom = (2 * v for v in one.box)
            if same is None:
                changed[top:bottom, left:right] = False
        assert not changed.any(), record.id
        counted[step.operation] += 1
    assert counted.keys() == {*OPERATIONS}
    for operation, share in SETTINGS.edit.operations.items():
        assert abs(counted[operation] / COUNT - share) < 0.08


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["move", "swap"])
def test_an_edit_is_not_already_done(operation):
    """By the detector: no moved thing is already in place, and every swap is visible."""
    settings = DatasetSettings(edit=Edit(200, operations={operation: 1.0}))
    for record in make_samples(settings, TEACHERS, "edit", range(200)).records:
        given, _, image = record.segments
        (step,) = (msgspec.convert(step, Step) for step in record.scene["steps"])
        if operation == "swap":
            assert (pixels(given) != pixels(image)).any(), record.id
        else:
            moved = {*step.entities}
            stated = [r for r in step.graph.relations if moved & {r.subject, r.reference}]
            (entity,) = (e for e in step.graph.entities if e.id in moved)
            found = detect(pixels(given))
            assert not _holds(found, step.graph, entity, stated), record.id


def _holds(found, whole, entity, stated):
    """Return whether the detected shapes of the entity have the stated place and relations."""

    def like(one):
        return [f for f in found if (f.shape, f.color) == (one.noun, one.attributes["color"])]

    place = entity.attributes.get("place")
    places = all(find_place(f) == place for f in like(entity)) if place else True
    return places and all(
        r.kind in find_relations(a, b)
        for r in stated
        for a in like(whole.find(r.subject))
        for b in like(whole.find(r.reference))
    )


def test_a_swap_of_equal_things_is_invisible():
    looks = {"color": "red"}
    before, after = (
        SceneGraph(tuple(Entity(i, "star", 1, looks | {"place": place}) for i, place in enumerate(places)))
        for places in (("left", "right"), ("right", "left"))
    )
    swap = Step("swap", (0, 1), after)
    scenes = place_scenes(np.random.default_rng(0), [Step("add", (0, 1), before), swap])
    assert not changes_picture(swap, *scenes)
    other = Scene((scenes[0].objects[0], replace(scenes[0].objects[1], color="blue")), scenes[0].background)
    assert changes_picture(swap, other, scenes[1])


def test_pictures_that_are_only_read_have_no_latents(made):
    pictures = []

    def encode(batch):
        pictures.extend(batch)
        return (np.zeros((len(batch), 8, 8, 16), np.float32),) * 2

    looked_at, *drawn = (made[subset][0] for subset in ("understand", "edit", "text_to_image"))
    filled = add_latents([looked_at, *drawn], encode)
    assert filled[0] == looked_at and len(pictures) == 3
    assert all(s.latent_shape == (8, 8, 16) for r in filled[1:] for s in r.segments if isinstance(s, Image))
    segments = record_segments(looked_at, load_tokenizer(shapes_folder()), SHAPES_NANO)
    assert isinstance(segments[0], VitSegment) and [s.loss for s in segments[1:]] == [False, True]


def test_prompts_of_a_file_are_drawn_asked_about_and_edited():
    prompt = "a green square and a blue circle"
    settings = DatasetSettings(text_to_image=TextToImage(2), understand=Understand(2), edit=Edit(2, places=0.0))
    for subset in SUBSETS:
        for record in make_samples(settings, TEACHERS, subset, range(2), [prompt]).records:
            told = record.scene.get("graph") or record.scene["steps"][-1]["graph"]
            assert canonicalize(graph(told)) == canonicalize(parse(prompt))


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_instructions_say_where_to_add_things(rate):
    settings = DatasetSettings(edit=Edit(40, operations={"add": 1.0}, places=rate))
    for record in make_samples(settings, TEACHERS, "edit", range(40)).records:
        (step,) = record.scene["steps"]
        added = [e for e in graph(step["graph"]).entities if e.id in step["entities"] and e.count == 1]
        text = record.segments[1].text
        if rate:
            assert all(phrase_place(e.attributes["place"]) in text for e in added)
        elif not any("place" in e.attributes for e in added):
            assert not any(phrase_place(place) in text for place in PLACES)


def test_the_page_of_a_data_set_shows_them(made):
    """Edits are counted by operation, questions by kind; answers are shown."""
    summaries = {subset: summarise_records(records) for subset, records in made.items()}
    assert summaries["understand"].images == {0: COUNT} and summaries["edit"].images == {1: COUNT}
    assert summaries["understand"].tasks.keys() == {*SETTINGS.understand.questions}
    assert summaries["edit"].operations.keys() == {*OPERATIONS}
    facts = {"rejected": {}, "leaks": {"exact": 0, "normalised": 0, "records": []}, "versions": {}}
    page = render_dataset("base", summaries, facts, {})
    assert all(subset in page for subset in SUBSETS)
    chunk = render_chunk("understand-00000", made["understand"][:1])
    assert made["understand"][0].segments[2].text in chunk and '"stage":"answer"' in chunk
