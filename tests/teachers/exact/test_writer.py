"""The writer by rules."""

import pytest

from pdgen.teachers.exact.writer import RulesWriter
from pdgen.teachers.protocols import TeacherError, Writer

WRITER: Writer = RulesWriter()


def test_prompts_are_parsed_or_refused_with_the_reason():
    assert WRITER.parse("a photo of a dog").entities[0].noun == "dog"
    with pytest.raises(TeacherError, match=r"writer 'rules': .*'unicorn' is not understood where a noun"):
        WRITER.parse("a photo of a unicorn")
