"""docs/method.md: the functions it names exist, and its worked trajectory is what the code makes."""

import contextlib
import io
import pathlib
import pkgutil
import re

import pytest

from pdgen.interleave.trajectory import Text

METHOD = (pathlib.Path(__file__).parents[1] / "docs" / "method.md").read_text()
NAMES = sorted(set(re.findall(r"\bpdgen(?:\.\w+)+", re.sub(r"```.*?```", "", METHOD, flags=re.DOTALL))))


@pytest.mark.parametrize("name", NAMES)
def test_named_functions_exist(name):
    pkgutil.resolve_name(name)


def test_worked_trajectory():
    program, table = re.findall(r"```(?:python)?\n(.*?)```", METHOD, flags=re.DOTALL)
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(program, names)
    assert printed.getvalue().strip() == table.strip()
    rows = re.findall(r"^\| (\w+) \| (?:`(.*?)`|picture \d) \| (.*?) ?\|$", METHOD, flags=re.MULTILINE)
    assert len(rows) == len(names["record"].segments)
    for segment, (stage, words, target) in zip(names["record"].segments, rows):
        assert segment.stage == stage
        if isinstance(segment, Text):
            assert segment.text == words
        expected = {True: "words and switch" if isinstance(segment, Text) else "velocity", False: ""}
        assert target == expected[segment.target]
