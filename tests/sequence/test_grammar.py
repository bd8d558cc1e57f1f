"""The decoding grammar against regular expressions, on both tokenizers."""

import dataclasses
import itertools
import pathlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pdgen
from pdgen.sequence.grammar import (
    FORBIDDEN,
    KINDS,
    START_AFTER,
    SWITCHES,
    build_automaton,
    byte_machine,
    next_kinds,
    shortest_closings,
)
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.sequence.trajectory import parse_plan, parse_refine
from tests.support.shapes_records import trajectories

FOLDERS = {
    "sentencepiece": pathlib.Path(pdgen.__file__).parent / "assets" / "shapes",
    "bpe": pathlib.Path(__file__).parents[1] / "golden" / "bagel-nano",
}
VOCAB_SIZE = 600  # more than the size of either tokenizer

WORDS = r"(?:(?!<[/\\]?(?:ins|des|refine)>)[\s\S])*"
PLAN = re.compile(rf"<ins>{WORDS}</ins>[ \n]?<des>{WORDS}</des>")
INSPECT = re.compile(rf"{WORDS}(<refine>{WORDS}</refine>)?")
PIECES = [
    *("<ins>", "</ins>", "<des>", "</des>", "<refine>", "</refine>", "<\\ins>", "<\\refine>"),
    *(" ", "\n", "a", "<", ">", "/", "<in", "s>", "ins>", "</de", "é", "漢", "🎨", "\\", "<b>", "\x00"),
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.builds(
    "<ins>{}</ins>{}<des>{}</des>{}".format,
    *(st.lists(st.sampled_from(PIECES), max_size=n).map("".join) for n in (3, 1, 3, 1)),
)


@pytest.fixture(scope="module", params=FOLDERS)
def tokenizer(request):
    return load_tokenizer(FOLDERS[request.param])


@pytest.fixture(scope="module")
def automaton(tokenizer):
    return build_automaton(tokenizer, VOCAB_SIZE)


def kind_by_regex(start, text):
    """Return the kind of a text that starts in a situation, or None if it is not allowed."""
    if PLAN.fullmatch(text):
        return "plan" if start in ("plan", "after_image") else None
    match = INSPECT.fullmatch(text)
    if match is None or start == "plan":
        return None
    if start == "free":
        return None if match.group(1) else "free"
    return "inspect+refine" if match.group(1) else "inspect"


def run(automaton, start, tokens):
    """Return the state after ``tokens``; FORBIDDEN if one is not allowed."""
    state = automaton.starts[start]
    for token in tokens:
        if state != FORBIDDEN:
            state = int(automaton.table[state, token])
    return state


def kind_by_table(automaton, start, tokens):
    state = run(automaton, start, tokens)
    return automaton.kind_of(state) if state != FORBIDDEN and automaton.accepting[state] else None


@given(text=TEXTS)
@settings(max_examples=400)
def test_texts_are_accepted_as_by_the_expressions(automaton, tokenizer, text):
    tokens = tokenizer.encode(text)
    single = {piece: i for i, piece in enumerate(tokenizer.pieces) if len(piece) == 1}
    for start in automaton.starts:
        expected = kind_by_regex(start, text)
        assert kind_by_table(automaton, start, tokens) == expected
        # Tags are recognised however they are tokenised.
        assert kind_by_table(automaton, start, [single[bytes([b])] for b in text.encode()]) == expected


@given(seed=st.integers(0, 2**32 - 1), length=st.integers(0, 40))
@settings(max_examples=150)
def test_any_walk_can_be_closed_and_then_parses(automaton, tokenizer, seed, length):
    rng = np.random.default_rng(seed)
    # Half of the steps prefer the characters of tags; otherwise walks would rarely meet one.
    in_tags = np.array([piece != b"" and not piece.strip(b"</>insderf \xc3\xf0") for piece in tokenizer.pieces])
    in_tags = np.pad(in_tags, (0, VOCAB_SIZE - len(in_tags)))
    start = list(automaton.starts)[seed % len(automaton.starts)]
    state, tokens = automaton.starts[start], []
    for _ in range(length):
        allowed = automaton.table[state] != FORBIDDEN
        allowed[tokenizer.im_end] = False
        if (allowed & in_tags).any() and rng.random() < 0.5:
            allowed &= in_tags
        if not allowed.any():
            assert automaton.accepting[state]
            break
        tokens.append(int(rng.choice(np.flatnonzero(allowed))))
        state = int(automaton.table[state, tokens[-1]])
    tokens += [int(t) for t in automaton.closings[state] if t >= 0]
    state = run(automaton, start, tokens)
    assert automaton.accepting[state]
    text = b"".join(map(tokenizer.token_bytes, tokens)).decode()  # strict: never half a character
    kind = automaton.kind_of(state)
    assert kind == kind_by_regex(start, text)
    if kind == "plan":
        parse_plan(text)
    elif kind in ("inspect", "inspect+refine"):
        assert (parse_refine(text) is not None) == (kind == "inspect+refine")


def decodes(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_bytes_are_allowed_as_python_decodes_them():
    """A pair of bytes is allowed if more bytes can complete it to valid UTF-8, and may close if it is valid."""
    rows = byte_machine()
    rests = (b"", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xa0\x80", b"\x90\x80\x80")
    for first, second in itertools.product(range(256), repeat=2):
        data = bytes([first, second])
        state = rows[rows["free:"][first]].get(second) if first in rows["free:"] else None
        assert (state is not None) == any(decodes(data + rest) for rest in rests), data
        assert (state is not None and "+" not in state) == decodes(data), data


def test_every_text_of_shapes_world_is_accepted(automaton, tokenizer):
    seen = set()
    for record in trajectories(40):
        before = "prompt"
        for segment in record.segments[1:]:
            kind = "image"
            if hasattr(segment, "text"):
                kind = kind_by_table(automaton, START_AFTER[before], tokenizer.encode(segment.text))
                assert kind == kind_by_regex(START_AFTER[before], segment.text), segment.text
                assert "text" in next_kinds(before) or before == "prompt"
            else:
                assert "image" in next_kinds(before)
            before = kind
            seen.add(kind)
        assert "end" in next_kinds(before)
    assert seen == {"plan", "image", "inspect", "inspect+refine"}


def test_every_entry_follows_its_bytes(automaton, tokenizer):
    """Compared with the byte automaton, one token at a time."""
    rows = byte_machine()
    special = (tokenizer.im_start, tokenizer.vision_start, tokenizer.vision_end, tokenizer.pad)
    for number, name in enumerate(automaton.names):
        for token in range(0, VOCAB_SIZE, 7):
            state = name
            for byte in tokenizer.token_bytes(token):
                state = rows[state].get(byte) if state else None
            if token != tokenizer.im_end:
                expected = automaton.names.index(state) if state and tokenizer.token_bytes(token) else FORBIDDEN
                assert automaton.table[number, token] == expected
        assert (automaton.table[number, list(special)] == FORBIDDEN).all()


def test_texts_close_in_accepting_states_only_and_never_get_stuck(automaton, tokenizer):
    closes = automaton.table[:, tokenizer.im_end] != FORBIDDEN
    np.testing.assert_array_equal(closes, automaton.accepting)
    np.testing.assert_array_equal(automaton.table[closes, tokenizer.im_end], np.flatnonzero(closes))
    assert (automaton.table != FORBIDDEN).any(axis=1).all()
    assert (automaton.table[:, tokenizer.vocab_size :] == FORBIDDEN).all()


def test_worked_closings():
    closings = shortest_closings(byte_machine())
    assert closings["plan:"] == b"<ins></ins> <des></des>"
    assert closings["plan:<i"] == b"ns></ins> <des></des>"
    assert closings["ins:"] == b"</ins> <des></des>"
    assert closings["ins:</in"] == b"s> <des></des>"
    assert closings["ins:<in"] == b"</ins> <des></des>"
    assert closings["des:+2"] == b"\x80\x80</des>"
    assert closings["refine:<"] == b"/refine>"
    assert closings["inspect:<refine"] == closings["plan_end:"] == b""


def test_worked_followers(automaton, tokenizer):
    assert next_kinds("plan") == ("image",)
    assert next_kinds("image") == ("text", "end")
    assert next_kinds("inspect") == ("text", "end")
    assert next_kinds("inspect+refine") == ("image", "text")
    assert next_kinds("free") == SWITCHES
    for row, kind in zip(automaton.switches, KINDS, strict=True):
        assert tuple(np.array(SWITCHES)[row]) == next_kinds(kind)
    tokens = [tokenizer.vision_start, tokenizer.im_start, tokenizer.im_end]
    assert automaton.switch_tokens.tolist() == tokens


def test_a_model_with_too_few_ids_is_refused(tokenizer):
    with pytest.raises(ValueError, match=rf"has {tokenizer.vocab_size} ids, the model only 100"):
        build_automaton(tokenizer, 100)


def test_a_long_token_is_read_to_its_end(tokenizer):
    pieces = (*tokenizer.pieces, b"<ins>" + b" " * 300 + b"</ins> <des>\xc3", b"\xa9</des>", b"\xa9</des> ")
    automaton = build_automaton(dataclasses.replace(tokenizer, pieces=pieces), VOCAB_SIZE)
    first = tokenizer.vocab_size
    assert automaton.kind_of(run(automaton, "after_image", [first, first + 1])) == "plan"
    assert run(automaton, "after_image", [first, first + 2]) == FORBIDDEN
