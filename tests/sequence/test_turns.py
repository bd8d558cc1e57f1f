"""Turns: a record's single-turn documents teach every target once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdgen.config import SHAPES_NANO
from pdgen.sequence.layout import lay_out
from pdgen.sequence.segments import (
    NOISED,
    ChangedError,
    list_turns,
    loss_targets,
    outline,
    record_segments,
    stream_lengths,
    switch_targets,
)
from tests.sequence.corrected import (
    CORRECTED,
    END,
    FAULT,
    OPEN,
    PLAN,
    SEE,
    TOKENIZER,
    describe,
    image,
    record,
    text,
)


def test_turns_end_with_their_images():
    """Given image, prompt, plan and draft; inspection and refined image with the last inspection."""
    assert list_turns(CORRECTED) == [(0, 4), (4, 7)]
    step = text("plan", PLAN), image("sketch")
    two = record(text("prompt"), *step, text("inspect", "Right."), *step)
    assert list_turns(two) == [(0, 3), (3, 6)]
    assert list_turns(record(text("prompt"), text("plan", PLAN), complete=False)) == [(0, 2)]


def test_single_turns_of_a_corrected_draft():
    """The draft is context: the first turn needs none of it, the second all but the noised copy."""
    one, two = (record_segments(CORRECTED, TOKENIZER, SHAPES_NANO, only=(n, n + 1)) for n in (0, 1))
    given_part = [("clean", None), ("vit", None), ("text", False, None)]
    assert describe(one) == [*given_part, ("text", True, SEE)]
    assert describe(two) == [
        *given_part,
        ("text", False, None),
        ("clean", None),
        ("vit", OPEN),  # predicts the inspection, which this turn teaches
        ("text", True, SEE),
        ("noised", None),
        ("clean", None),
        ("vit", OPEN),
        ("text", True, END),
    ]


def test_single_turns_and_a_cut_of_drawn_steps():
    """The next turn predicts its own beginning, and an image taught earlier is context without noise."""
    parts = [text("prompt"), text("plan", PLAN), image("sketch"), text("inspect", "Right."), text("plan", PLAN)]
    made = record(*parts, image("sketch"))
    whole = describe(record_segments(made, TOKENIZER, SHAPES_NANO))
    first, last = (describe(record_segments(made, TOKENIZER, SHAPES_NANO, only=(n, n + 1))) for n in (0, 1))
    assert first == [("text", False, None), ("text", True, SEE), ("noised", None), ("clean", None), ("vit", None)]
    context = [("text", False, None), ("text", False, None), ("clean", None)]
    assert last == [*context, ("vit", OPEN), *whole[5:]] and whole[-1] == ("vit", END)
    three = record(*made.segments, text("plan", PLAN), image("sketch"))
    assert describe(record_segments(three, TOKENIZER, SHAPES_NANO, only=(0, 2))) == [*whole[:-1], ("vit", None)]


segment_kinds = st.sampled_from(["step", "faulty", "inspected"])


@settings(max_examples=40)
@given(st.lists(segment_kinds, min_size=1, max_size=4), st.booleans(), st.data())
def test_single_turns_teach_every_target_and_switch_once(kinds, complete, data):
    parts = [text("prompt")]
    for kind in kinds:
        parts.append(text("plan", PLAN, target=data.draw(st.booleans())))
        if kind == "faulty":
            parts += [image("sketch", target=False), text("inspect", FAULT), image("refine")]
        else:
            parts.append(image("sketch", target=data.draw(st.booleans())))
        if kind == "inspected":
            parts.append(text("inspect", "Right.", target=data.draw(st.booleans())))
    made = record(*parts, complete=complete)
    count, length = len(list_turns(made)), len(made.segments)
    seen = np.zeros((2, length), int)
    for number in range(count):
        targets, labels = loss_targets(made, TOKENIZER, number, number + 1)
        assert len(targets) == len(labels) <= list_turns(made)[number].end
        for segment, (target, label) in enumerate(zip(targets, labels)):
            seen[:, segment] += target, label is not None
    whole = loss_targets(made, TOKENIZER, 0, count)
    np.testing.assert_array_equal(seen[0], whole[0])
    np.testing.assert_array_equal(seen[1], [label is not None for label in whole[1]])
    assert whole == ([s.target for s in made.segments], switch_targets(made, TOKENIZER))


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("only", [(0, 1), (1, 2), (0, 2)])
def test_the_outline_predicts_the_units_of_turns(only, draws):
    """The index cuts units exactly as segments are made."""
    assert outline(CORRECTED, TOKENIZER, SHAPES_NANO).turns == [(0, 4), (6, 11)]
    found = outline(CORRECTED, TOKENIZER, SHAPES_NANO, draws)
    assert found.turns == [(0, 4), (6, 10 + draws)]
    first, end = found.turns[only[0]][0], found.turns[only[1] - 1][1]
    units = [u for n, u in enumerate(found.units[:end]) if u.kind != NOISED or n >= first]
    segments = record_segments(CORRECTED, TOKENIZER, SHAPES_NANO, only=only, draws=draws)
    np.testing.assert_array_equal(
        stream_lengths(*zip(*units)).sum(axis=0), lay_out(segments, TOKENIZER, SHAPES_NANO).lengths
    )


def test_turns_or_units_of_another_record_are_refused():
    with pytest.raises(ChangedError, match="record r1: has 2 turns, turn 3 is asked for"):
        record_segments(CORRECTED, TOKENIZER, SHAPES_NANO, only=(2, 3))
    with pytest.raises(ChangedError, match="record r1: has 11 units, but 12 are to be kept or dropped"):
        record_segments(CORRECTED, TOKENIZER, SHAPES_NANO, keep=[True] * 12)
