"""The writer by rules: other words, the same content, tags in their places."""

import numpy as np
import pytest

from pdgen.sequence.trajectory import parse_plan
from pdgen.shapes import language
from pdgen.shapes.parse import canonicalize, parse, parse_instruction
from pdgen.teachers.exact.writer import RulesWriter
from pdgen.teachers.protocols import TeacherError, Writer
from tests.support.stories import story

WRITER: Writer = RulesWriter()


def test_prompts_are_parsed_or_refused_with_the_reason():
    assert WRITER.parse("a photo of a dog").entities[0].noun == "dog"
    with pytest.raises(TeacherError, match=r"writer 'rules': .*'unicorn' is not understood where a noun"):
        WRITER.parse("a photo of a unicorn")


def test_prompts_and_descriptions_are_reworded():
    same = total = 0
    for seed in range(200):
        rng, told = story(seed)
        for text in (language.write_prompt(rng, told.asked, told.task), language.write_description(rng, told.asked)):
            other = WRITER.rewrite(text, seed)
            assert canonicalize(parse(other)) == canonicalize(told.asked), text
            assert other == WRITER.rewrite(text, seed)
            total += 1
            same += other == text
    assert same < 0.02 * total


def test_plans_are_reworded_between_their_tags():
    for seed in range(200):
        rng, told = story(seed)
        for before, step in told.pairs():
            text = language.write_plan(rng, before, step)
            other = WRITER.rewrite(text, seed)
            ins, des = parse_plan(text)
            new_ins, new_des = parse_plan(other)
            assert other != text
            assert canonicalize(parse(new_des)) == canonicalize(parse(des))
            old, new = parse_instruction(ins), parse_instruction(new_ins)
            assert (old.operation, old.changes) == (new.operation, new.changes)
            assert canonicalize(old.graph) == canonicalize(new.graph)


@pytest.mark.parametrize(
    "text",
    ["<ins>Add a star.</ins>", "<ins>Add a star.</ins> <des>Nice.</des>", "A star. <refine>Add it.</refine>", "Hello."],
)
def test_what_it_cannot_read_it_refuses(text):
    with pytest.raises(TeacherError, match=r"writer 'rules'"):
        WRITER.rewrite(text, 0)


def test_the_kind_of_text_is_kept():
    graph = parse("a red star and a ring")
    for seed in range(20):
        rng = np.random.default_rng(seed)
        starts = ("The picture shows", "Now the picture shows", "There ")
        assert WRITER.rewrite(language.write_description(rng, graph), seed).startswith(starts)
        assert not WRITER.rewrite("a red star and a ring", seed).startswith(starts)
