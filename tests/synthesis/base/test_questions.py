"""Captions, questions and checks agree with the detector."""

import collections
import re

import numpy as np
import pytest
from msgspec.structs import replace

from pdgen.shapes.detector import detect, detect_background
from pdgen.shapes.graph import COLORS, PLACES, Entity, SceneGraph, Step, join_places
from pdgen.shapes.lexicon import NUMBERS, phrase_place, pluralize
from pdgen.shapes.matching import find_violations
from pdgen.shapes.painter import paint
from pdgen.shapes.parse import canonicalize, parse
from pdgen.shapes.world import BACKGROUNDS, SHAPES, Scene, find_place, place_scenes
from pdgen.synthesis.base.captions import make_caption_graph, write_caption, write_report
from pdgen.synthesis.base.checks import KINDS as CHECKS
from pdgen.synthesis.base.checks import YES, draw_aim, make_check
from pdgen.synthesis.base.questions import KINDS, MAX_SCENES, NONE, make_asker
from pdgen.synthesis.sample import sample_graph
from pdgen.synthesis.settings import QUESTION_SHARES
from pdgen.teachers.exact.picture_check import match_detections
from tests.support.kept_out import kept_out, of_graph, scanned
from tests.support.stories import thing

_NOUN = {form: noun for noun in SHAPES for form in (noun, pluralize(noun))}


@pytest.fixture(scope="module")
def scenes():
    """Scenes of one to six things, and the detections in their pictures."""
    made = []
    for seed in range(250):
        rng = np.random.default_rng((5, seed))
        graph = sample_graph(rng, "composition", things=1 + seed % 6)
        found = place_scenes(rng, [Step("add", tuple(e.id for e in graph.entities), graph)])
        if found is not None:
            picture = paint(found[0], 64)
            made.append((found[0], detect(picture), detect_background(picture)))
    return made


def asked(scenes, kind):
    """Return (question, scene, detections, background) of every scene with a question of that kind."""
    every = ((make_asker(np.random.default_rng((6, n)), kind)(one[0]), *one) for n, one in enumerate(scenes))
    return [one for one in every if one[0] is not None]


def looks(found, places):
    """Return noun, attributes as captions state them, and number of all detected things."""
    stand = {}
    for one in found:
        said = {"color": one.color}
        said |= {"size": "large"} if one.size == "large" else {}
        said |= {"fill": "outlined"} if one.fill == "outlined" else {}
        stand.setdefault((one.shape, tuple(said.items())), []).append(find_place(one))
    listed = []
    for (noun, said), where in stand.items():
        place = where[0] if len({*where}) == 1 else ", ".join(sorted(where, key=PLACES.index))
        attributes = dict(said) | ({"place": place} if places else {})
        listed.append((noun, len(where), tuple(sorted(attributes.items()))))
    return tuple(sorted(listed))


@pytest.mark.parametrize("places", [False, True])
def test_a_caption_agrees_with_the_detector(scenes, places):
    numbers = set()
    for scene, found, ground in scenes:
        said = canonicalize(parse(write_caption(scene, places)))
        assert said == (looks(found, places), (), ground)
        numbers.add(len(found))
    assert numbers == {1, 2, 3, 4, 5, 6}


def test_things_are_named_in_reading_order():
    star, ring, other = thing(0, 24, 0, 7, "blue", "star"), thing(1, 0, 8, 15, "red", "ring"), thing(2, 0, 0, 7, "red")
    alike = thing(3, 24, 24, 7, "blue", "star")
    scene = Scene((alike, ring, star, other), "beige")
    shown = "a red circle, two blue stars and a large red ring on a beige background"
    assert write_caption(scene) == f"The picture shows {shown}."
    assert write_caption(scene, places=True) == (
        "The picture shows a red circle at the top left, two blue stars at the top right and at the bottom right, and "
        "a large red ring on the left, on a beige background."
    )
    assert [e.count for e in make_caption_graph(scene).entities] == [1, 2, 1]


def test_a_report_of_a_right_picture_agrees_with_its_plan():
    checked = 0
    for seed in range(100):
        graph = sample_graph(np.random.default_rng((8, seed)), "composition", things=1 + seed % 6)
        found = place_scenes(np.random.default_rng(seed), [Step("add", tuple(e.id for e in graph.entities), graph)])
        if found is None:
            continue
        (scene,) = found
        placed = (
            replace(e, attributes=e.attributes | {"place": join_places(o.place for o in scene.objects_of(e.id))})
            for e in graph.entities
        )
        if all("color" in e.attributes for e in graph.entities):
            said = parse(write_report(scene, graph))
            assert [e.noun for e in said.entities] == [e.noun for e in graph.entities]
            assert canonicalize(said) == canonicalize(SceneGraph(tuple(placed), (), scene.background))
            checked += 1
    assert checked > 50


def test_a_report_follows_the_order_and_the_attributes_of_its_plan_and_names_the_fault():
    ring, star = Entity(0, "ring", 1, {"color": "blue", "size": "small"}), Entity(1, "star", 2, {"color": "red"})
    heart = Entity(2, "heart", 1, {"color": "green", "place": "top right"})
    objects = (thing(0, 16, 16, 15, "blue", "ring"), thing(1, 0, 0, 7, "red", "star"))
    scene, plan = Scene(objects, "beige"), SceneGraph((ring, star, heart))
    said = "The picture shows a large blue ring at the bottom right{}, a red star at the top left{}"
    end = ", and no green heart, on a beige background."
    assert write_report(scene, plan, 0) == said.format(", which is wrong", "") + end
    assert write_report(scene, plan, 1) == said.format("", ", which is wrong") + end
    assert write_report(scene, plan, 2) == said.format("", "") + end
    for shown, words in (
        (objects[:1], "a large blue ring at the bottom right, which is wrong,"),
        ((), "no small blue ring"),
    ):
        said = write_report(Scene(shown, "beige"), SceneGraph((ring,)), 0)
        assert said == f"The picture shows {words} on a beige background."


def test_a_report_names_equal_things_of_which_the_plan_places_one():
    rings = Entity(0, "ring", 1, {"color": "red"}), Entity(1, "ring", 1, {"color": "red", "place": "centre"})
    objects = thing(0, 8, 8, 7, "red", "ring"), thing(1, 16, 16, 7, "red", "ring")
    assert write_report(Scene(objects, "beige"), SceneGraph(rings)) == (
        "The picture shows a red ring in the centre, and a red ring in the centre, on a beige background."
    )


def test_equal_things_at_one_place_are_named_together():
    scene = Scene((thing(0, 8, 8, 7), thing(1, 16, 16, 7)), "beige")
    assert write_caption(scene, places=True) == "The picture shows two red circles in the centre on a beige background."


def test_answers_about_colours_agree_with_the_detector(scenes):
    answers = asked(scenes, "color")
    for question, _, found, ground in answers:
        (noun,) = re.findall(r"the (\w+)", question.text)
        colors = {f.color for f in found if f.shape == _NOUN.get(noun)} if noun != "background" else {ground}
        assert question.answer == f"{colors.pop().capitalize()}." and not colors
    grounds = sum("background" in q.text for q, *_ in answers)
    assert len(answers) > 200 and 0.1 < grounds / len(answers) < 0.35


def test_answers_about_numbers_agree_with_the_detector(scenes):
    answers = collections.Counter()
    for question, _, found, _ in asked(scenes, "count"):
        words = re.search(r"How many (?:(\w+) )??(\w+) (?:are|does)", question.text)
        same = [f for f in found if words[1] in (None, f.color) and words[2] in ("things", pluralize(f.shape))]
        assert question.answer == (f"{NUMBERS[len(same) - 1].capitalize()}." if same else NONE)
        answers[question.answer] += 1
    assert {NONE, *(f"{n.capitalize()}." for n in NUMBERS[:6])} == set(answers)


def test_many_scenes_offer_every_number():
    """One circle is one circle and one thing; neither it nor other scenes of one thing have six of anything."""
    scene, answers = Scene((thing(0, 0, 0, 7),)), collections.Counter()
    for seed in range(100):
        ask = make_asker(np.random.default_rng(seed), "count")
        first = [ask(scene) for _ in range(MAX_SCENES)]
        answers[(first[0].answer if first[0] else None, ask(scene).answer)] += 1
        assert len({q.answer if q else None for q in first}) == 1
    assert answers.keys() == {(NONE, "One."), ("One.", "One."), (None, "One.")}
    assert answers[None, "One."] > 50


def test_answers_about_places_agree_with_the_detector(scenes):
    answers = asked(scenes, "place")
    for question, _, found, _ in answers:
        color, noun = re.search(rf"the (?:({'|'.join(COLORS)}) )?({'|'.join(SHAPES)})\b", question.text).groups()
        (one,) = [f for f in found if f.shape == noun and color in (None, f.color)]
        assert question.answer.lower() == f"{phrase_place(find_place(one))}."
    assert len(answers) > 200 and len({q.answer for q, *_ in answers}) == 9


@pytest.fixture(scope="module")
def checks(scenes):
    """Many checks of all scenes, with the detections."""
    made = []
    for seed in range(900):
        rng = np.random.default_rng((7, seed))
        wanted = draw_aim(rng)
        order = (scenes[i] for i in rng.permutation(len(scenes)))
        found = ((make_check(rng, one[0], wanted), *one) for one in order)
        made.append(next(one for one in found if one[0] is not None))
    return made


def test_answers_to_checks_agree_with_the_detector(checks):
    for made, _, found, ground in checks:
        said = parse(made.words)
        assert canonicalize(said) == canonicalize(made.said)
        assert made.right == (made.answer == YES)
        assert made.right == (not find_violations(match_detections(found, ground, said), said)), made
    rights = sum(made.right for made, *_ in checks)
    assert 0.45 < rights / len(checks) < 0.55


def test_a_denial_states_what_is_there_instead(checks):
    """Words after "not" come from the question, and words before it from the picture."""
    counted = collections.Counter()
    for made, _, found, ground in checks:
        counted[made.kind, made.right] += 1
        if made.right:
            continue
        truth, _, asked_for = made.answer.removeprefix("No, ").rstrip(".").partition(", not ")
        if made.kind in ("color", "size", "fill"):
            color, noun = re.search(rf"the (?:({'|'.join(COLORS)}) )?(\w+)", truth).groups()
            same = [f for f in found if f.shape == _NOUN[noun] and color in (None, f.color)]
            assert same and {getattr(f, made.kind) for f in same} == {truth.split()[-1]}
            assert asked_for in made.words
        elif made.kind in ("shape", "count"):
            (entity,) = parse(truth.replace("one", "a")).entities
            here = [f for f in found if (f.color, f.shape) == (entity.attributes["color"], entity.noun)]
            assert len(here) == entity.count and asked_for.split()[-1] in made.words
        elif made.kind == "background":
            assert truth == f"the background is {ground}" and asked_for in BACKGROUNDS
        elif made.kind == "place":
            color, noun = re.search(r"the (\w+) (\w+) is", truth).groups()
            (one,) = [f for f in found if (f.color, f.shape) == (color, noun)]
            assert truth.endswith(f"is {phrase_place(find_place(one))}") and asked_for in made.words
        elif made.kind == "missing":
            color, noun = truth.split()[-2:]
            assert not any(f.shape == _NOUN[noun] or f.color == color for f in found)
    assert len(counted) == 2 * len(CHECKS) and min(counted.values()) >= 30, counted


def test_the_words_of_a_check_do_not_reveal_its_answer(checks):
    """Sizes, fills and backgrounds are named about equally often for yes and for no."""
    for word in ("small", "large", "outlined", "solid", "background", " of a ", "left of"):
        rates = [np.mean([word in c.words for c, *_ in checks if c.right == right]) for right in (True, False)]
        assert abs(rates[0] - rates[1]) < 0.06, (word, rates)


def test_nothing_held_out_is_asked_or_answered(scenes, checks):
    for kind in KINDS:
        for question, *_ in asked(scenes, kind):
            assert not kept_out(scanned(question.text) | scanned(question.answer)), question
    assert not any(kept_out(of_graph(made.said) | scanned(made.answer)) for made, *_ in checks)


def test_every_kind_of_question_has_a_share():
    assert [*KINDS] == [*QUESTION_SHARES]
