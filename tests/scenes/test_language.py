"""Worked examples of prompts, plans and inspections, and their lengths with the shipped tokenizer."""

import pathlib

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

import pdgen
from pdgen.interleave.trajectory import Text, parse_plan, parse_refine, segment_kind
from pdgen.scenes import first_world as world
from pdgen.scenes import language
from pdgen.scenes.subsets import Settings, make_trajectories

TOKENIZER = pathlib.Path(pdgen.__file__).parent / "assets" / "shapes" / "tokenizer.model"
CIRCLE = world.Object(0, "circle", "red", 12, 8, 16)
SQUARE = world.Object(1, "square", "orange", 14, 24, 16)
STAR = world.Object(2, "star", "green", 12, 8, 24)
LEFT_OF = world.Relation(0, "left of", 1)
PAIR = world.Scene((CIRCLE, SQUARE), (LEFT_OF,))


@pytest.fixture(scope="module")
def pieces():
    return sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))


def test_content_names_objects_and_relations():
    low, high = world.Object(0, "circle", "red", 12, 8, 8), STAR
    scene = world.Scene((low, SQUARE, high), (world.Relation(2, "below", 0),))
    assert language.content(world.Scene((CIRCLE,))) == "a red circle"
    assert language.content(world.Scene((CIRCLE, SQUARE))) == "a red circle and an orange square"
    assert language.content(PAIR) == "a red circle left of an orange square"
    assert language.content(scene) == ("a red circle, an orange square, and a green star below the red circle")
    twice = world.Scene(scene.objects, (world.Relation(0, "above", 2), world.Relation(2, "left of", 1)))
    assert language.content(twice) == ("a red circle above a green star, and an orange square right of the green star")
    chain = world.Scene(scene.objects, (LEFT_OF, world.Relation(2, "below", 0), world.Relation(2, "left of", 1)))
    assert language.content(chain) == (
        "a red circle left of an orange square, and a green star below the red circle and left of the orange square"
    )
    three = world.Scene((low, SQUARE, high))
    assert language.content(three) == "a red circle, an orange square and a green star"


def test_plan_says_where_and_describes_the_whole():
    first = language.plan(world.Scene((CIRCLE,)), (CIRCLE,))
    assert first == ("<ins>Add a red circle on the left.</ins> <des>The picture shows a red circle on the left.</des>")
    assert language.plan(PAIR, (SQUARE,)) == (
        "<ins>Add an orange square on the right.</ins> "
        "<des>The picture shows a red circle left of an orange square.</des>"
    )
    both = language.plan(PAIR, PAIR.objects)
    assert parse_plan(both)[0] == "Add a red circle on the left and an orange square on the right."


def test_agreement_gives_a_reason_and_what_is_missing():
    rng = np.random.default_rng(0)
    alone = world.Scene((CIRCLE,))
    said = {language.agreement(rng, alone, (CIRCLE,), (SQUARE,)) for _ in range(30)}
    assert said == {
        "The red circle is on the left. An orange square is still to come.",
        "The red circle is there. An orange square is still to come.",
    }
    last = {language.agreement(rng, PAIR, (SQUARE,), ()) for _ in range(60)}
    assert "The orange square is right of the red circle. Nothing is missing." in last
    assert all(text.endswith(("Nothing is missing.", "The picture is complete.")) for text in last)
    both = language.agreement(rng, PAIR, PAIR.objects, (STAR, CIRCLE))
    assert both == ("The red circle and the orange square are there. A green star and a red circle are still to come.")


@pytest.mark.parametrize(
    ("wrong", "analyses", "correction"),
    [
        (
            world.Object(0, "circle", "blue", 12, 8, 16),
            {"The circle is blue, not red.", "The blue circle should be red."},
            "Make the blue circle red.",
        ),
        (
            world.Object(0, "cross", "red", 12, 8, 16),
            {"There is a red cross, not a circle.", "The red cross should be a circle."},
            "Make the red cross a circle.",
        ),
        (
            world.Object(0, "circle", "red", 12, 24, 24),
            {"The red circle is at the bottom right, not on the left."},
            "Move it to the left.",
        ),
    ],
)
def test_fault_names_the_difference_and_the_correction(wrong, analyses, correction):
    rng = np.random.default_rng(0)
    texts = {language.fault(rng, wrong, CIRCLE) for _ in range(20)}
    assert {parse_refine(text) for text in texts} == {correction}
    assert {text.split(" <refine>")[0] for text in texts} == analyses
    with pytest.raises(ValueError, match="the same red circle"):
        language.fault(rng, CIRCLE, CIRCLE)


def test_texts_are_short_with_the_shipped_tokenizer(pieces):
    longest = {}
    for record in make_trajectories(Settings(seed=1, count=600)):
        for segment in record.segments:
            if isinstance(segment, Text):
                kind, length = segment_kind(segment), len(pieces.encode(segment.text))
                longest[kind] = max(longest.get(kind, 0), length)
    assert longest["plan"] < 45
    assert longest["inspect"] < 30
    assert longest["inspect+refine"] < 30
    assert longest["prompt"] < 30


def test_every_word_is_one_piece(pieces):
    words = [*world.SHAPES, *world.COLORS, "left", "right", "above", "below", "top", "bottom", "centre"]
    assert [w for w in words if len(pieces.encode(f" {w}")) != 1] == []


def test_tokenizer_fits_the_model_and_its_controls_are_never_text(pieces):
    assert pieces.get_piece_size() <= 512
    for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"):
        number = pieces.piece_to_id(name)
        assert pieces.is_control(number)
        assert number not in pieces.encode(f"a {name} b")
    assert TOKENIZER.stat().st_size < 300_000


# U+2581 is sentencepiece's own mark for a space, the one character it cannot tell from one.
@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\u2581")))
@settings(max_examples=300, deadline=None)
def test_any_text_survives_the_tokenizer(text):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
    for wrapped in (text, f"  <ins>{text}</ins>\n {text} "):
        ids = pieces.encode(wrapped)
        assert pieces.decode(ids) == wrapped
        assert pieces.unk_id() not in ids
