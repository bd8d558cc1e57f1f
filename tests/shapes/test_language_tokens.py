"""The words of shapes world as pieces of the shipped tokenizer."""

import pathlib
import re

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

import pdgen
from pdgen.config import NANO
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.shapes import inspections, language
from pdgen.shapes.graph import COLORS, PLACES
from pdgen.shapes.lexicon import pluralize, spell_number
from pdgen.shapes.world import BACKGROUNDS, SHAPES, place_scenes
from pdgen.synthesis.base.questions import KINDS, make_asker
from tests.support.stories import story

FOLDER = pathlib.Path(pdgen.__file__).parent / "assets" / "shapes"


@pytest.fixture(scope="module")
def pieces():
    return sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "tokenizer.model"))


@pytest.fixture(scope="module")
def texts():
    """Prompts, plans and inspections of random stories, and questions about their last pictures."""
    found = {"prompt": [], "plan": [], "agreement": [], "question": [], "answer": []}
    for seed in range(700):
        rng, told = story(seed)
        found["prompt"].append(language.write_prompt(rng, told.asked, told.task))
        for before, step in told.pairs():
            found["plan"].append(language.write_plan(rng, before, step))
            # An inspection of a sample follows a caption.
            agreement = inspections.write_agreement(rng, step.graph, told.asked)
            found["agreement"].append(f"The picture shows a circle. {agreement}")
        for scene in (place_scenes(rng, told.steps) or ())[-1:]:
            asked = [make_asker(rng, kind)(scene) for kind in KINDS]
            found["question"] += [q.text for q in asked if q is not None]
            found["answer"] += [q.answer for q in asked if q is not None]
    return found


@pytest.mark.parametrize(
    ("kind", "mean", "most"),
    [
        ("prompt", 13, 80),
        ("plan", 31, 110),
        ("agreement", 20, 70),
        ("question", 10, 30),
        ("answer", 15, 80),
    ],
)
def test_texts_are_short(pieces, texts, kind, mean, most):
    lengths = [len(pieces.encode(text)) for text in texts[kind]]
    assert np.mean(lengths) < mean
    assert max(lengths) < most


def test_every_word_is_one_piece(pieces, texts):
    plain = re.sub(r"</?\w+>", "\n", "\n".join(text for kind in texts.values() for text in kind))
    words = set(re.findall(r" ?[A-Za-z]+", plain))
    words |= {f" {word}" for noun in SHAPES for word in (noun, pluralize(noun))}
    words |= {f" {word}" for phrase in (*COLORS, *PLACES, *BACKGROUNDS) for word in phrase.split()}
    words |= {answer.split()[0].capitalize() for answer in (*COLORS, *BACKGROUNDS, "yes", "no", "none")}
    words |= {f" {spell_number(count)}" for count in range(1, 7)} | {" <des>", "<ins>", "</ins>", "</des>", "</refine>"}
    newer = {" As"}  # than the shipped tokenizer
    assert {w for w in words if len(pieces.encode(w)) != 1} == newer


def test_the_tokenizer_fits_the_model_and_its_controls_are_never_text(pieces):
    assert pieces.get_piece_size() <= NANO.language.vocab_size
    for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"):
        assert pieces.is_control(pieces.piece_to_id(name))
        assert pieces.piece_to_id(name) not in pieces.encode(f"a {name} b")
    assert (FOLDER / "tokenizer.model").stat().st_size < 300_000


# U+2581 is sentencepiece's own mark for a space, the one character it cannot tell from one.
@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\u2581")))
@settings(max_examples=300)
def test_any_text_survives(text):
    tokenizer = load_tokenizer(FOLDER)
    for wrapped in (text, f"  <ins>{text}</ins>\n {text} "):
        assert tokenizer.decode(tokenizer.encode(wrapped)) == wrapped
