"""A folder of images with JSON lines."""

import json
import re

import pytest

from pdgen.synthesis.importers import folder

from .made import picture, seen, split

EXAMPLE = re.search(r"\n    (\{.*?\]\})\n", folder.__doc__, re.DOTALL).group(1)


@pytest.fixture
def images(tmp_path):
    for name, color in (("0.png", "red"), ("1.png", "lime")):
        (tmp_path / name).write_bytes(picture(color))
    (tmp_path / "2.jpg").write_bytes(picture("blue", "JPEG"))
    return tmp_path


def read(images, *lines):
    path = images / "data.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return split(folder.read_folder(path))


BREAKS = "breaks the sequence grammar"
STEP = {"instruction": "Draw it.", "description": "It.", "image": "0.png"}


def test_the_documented_example(images):
    (record,), skipped = read(images, json.dumps(json.loads(EXAMPLE)))
    assert skipped == []
    assert (record.id, record.source, record.complete) == ("folder/data.jsonl/1", "folder", True)
    assert seen(record) == [
        ("prompt", "a red circle left of a blue square", False),
        ("plan", "<ins>Draw a red circle.</ins> <des>A red circle.</des>", True),
        ("sketch", "red", False),
        ("inspect", "The circle is green. <refine>Make the circle red.</refine>", True),
        ("refine", "lime", True),
        ("inspect", "The circle is red, as asked.", True),
        ("plan", "<ins>Add a blue square.</ins> <des>A red circle and a blue square.</des>", True),
        ("sketch", "blue", True),
    ]


@pytest.mark.parametrize("closing", ["/", "\\"])
def test_tags_are_read_closed_either_way_and_a_rewritten_plan_is_context(images, closing):
    steps = [
        {
            "plan": f"<ins>Draw two.<{closing}ins><des>Two.<{closing}des>",
            "image": "0.png",
            "inspect": f"The prompt says one. <refine>Draw one.<{closing}refine>",
        },
        {"plan": f"<ins>Draw one.<{closing}ins>\n<des>One.<{closing}des>", "image": "1.png", "target": False},
    ]
    line = {"id": "mine", "given": ["2.jpg"], "prompt": "one", "steps": steps, "complete": False}
    (record,), skipped = read(images, line)
    assert skipped == []
    assert (record.id, record.complete) == ("mine", False)
    assert seen(record) == [
        ("given", "blue", False),
        ("prompt", "one", False),
        ("plan", "<ins>Draw two.</ins> <des>Two.</des>", False),
        ("sketch", "red", False),
        ("inspect", "The prompt says one. <refine>Draw one.</refine>", True),
        ("plan", "<ins>Draw one.</ins> <des>One.</des>", True),
        ("refine", "lime", False),
    ]


@pytest.mark.parametrize(
    ("line", "reason", "words"),
    [
        ("{", "malformed line", "truncated"),
        ({"prompt": "x"}, "malformed line", "missing required field `steps`"),
        ({"prompt": "x", "steps": [{"imgae": "0.png"}]}, "malformed line", "imgae"),
        ({"prompt": "x", "steps": [{"instruction": "a", "image": "0.png"}]}, "malformed line", "go together"),
        ({"prompt": "x", "steps": [{**STEP, "plan": "b"}]}, "malformed line", "either plan or instruction"),
        ({"prompt": "x", "steps": [{**STEP, "correction": "b"}]}, "malformed line", "needs inspect"),
        ({"prompt": " ", "steps": [STEP]}, "missing text", "prompt"),
        ({"prompt": "x", "steps": []}, BREAKS, "cannot end with prompt"),
        ({"prompt": "x", "steps": [{"image": "0.png"}]}, BREAKS, "image after prompt"),
        ({"prompt": "x", "steps": [STEP, {"image": "1.png"}]}, BREAKS, "image after image"),
        ({"prompt": "x", "steps": [{**STEP, "inspect": "no", "correction": "b"}]}, BREAKS, "cannot end"),
        ({"prompt": "x", "steps": [{**STEP, "instruction": "<des>"}]}, BREAKS, "<des>"),
        ({"prompt": "x", "steps": [{"plan": "draw", "image": "0.png"}]}, BREAKS, "not a plan"),
        ({"prompt": "x", "steps": [{"plan": "<ins>a</ins>", "image": "0.png"}]}, BREAKS, "plan"),
        ({"prompt": "x", "steps": [{**STEP, "image": "9.png"}]}, "missing picture", "9.png: No such file"),
        ({"prompt": "x", "steps": [{**STEP, "image": "data.jsonl"}]}, "unreadable picture", "data.jsonl"),
    ],
)
def test_a_malformed_line_is_named_and_the_others_kept(images, line, reason, words):
    good = {"prompt": "x", "steps": [STEP]}
    records, skipped = read(images, good, "", line, good)
    assert [r.id for r in records] == ["folder/data.jsonl/1", "folder/data.jsonl/4"]
    (skipped,) = skipped
    assert (skipped.where, skipped.reason) == (f"{images / 'data.jsonl'}: line 3", reason)
    assert words in skipped.details
