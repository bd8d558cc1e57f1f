"""Zebra-CoT and ThinkMorph, as published and as prepared for training."""

import pytest

from pdgen.synthesis.importers import reasoning
from pdgen.synthesis.importers.outcome import ImporterError

from .made import hub, picture, seen, split, write_parquet

RED, LIME, BLUE = (hub(picture(c, "JPEG")) for c in ("red", "lime", "blue"))


def shown(name):
    return f"<image_start>[{name}]<image_end>"


def zebra(trace, **columns):
    row = {
        "Question": f"Where is the ball? {shown('problem_image_1')}",
        "Text Reasoning Trace": trace,
        "Final Answer": "At the left.",
        "problem_image_1": RED,
        "reasoning_image_1": LIME,
        "reasoning_image_2": BLUE,
    }
    return row | columns


TRACE = (
    f"THOUGHT 0: Look at {shown('problem_image_1')} first. I will mark the ball.\n{shown('reasoning_image_1')}\n"
    f"THOUGHT 1: The mark is left.\nTHOUGHT 2: Zoom in.\n{shown('reasoning_image_2')}\n"
    "THOUGHT 3: It is a ball."
)


def test_zebra_cot(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [zebra(TRACE)])
    (record,), skipped = split(reasoning.read_zebra_cot(path))
    assert skipped == []
    assert (record.id, record.source, record.complete) == ("zebra_cot/a.parquet/0", "zebra_cot", True)
    assert seen(record) == [
        ("given", "red", False),
        ("prompt", "Where is the ball? image 1", False),
        ("plan", "<ins>Look at image 1 first.</ins> <des>I will mark the ball.</des>", True),
        ("sketch", "lime", True),
        ("inspect", "The mark is left.", True),
        ("plan", "<ins>Zoom in.</ins> <des>Zoom in.</des>", True),
        ("sketch", "blue", True),
        ("inspect", "It is a ball. At the left.", True),
    ]


@pytest.mark.parametrize("closing", ["/", "\\"])
def test_a_thought_that_is_a_plan_stays_one_with_either_closing(tmp_path, closing):
    plan = f"<ins>Mark the ball. Now.<{closing}ins><des>A ball.<{closing}des>"
    path = write_parquet(tmp_path / "a.parquet", [zebra(f"THOUGHT 0: {plan} {shown('reasoning_image_1')}")])
    (record,), _ = split(reasoning.read_zebra_cot(path))
    assert record.segments[2].text == "<ins>Mark the ball. Now.</ins> <des>A ball.</des>"
    assert record.segments[-1].text == "At the left."


def test_problems_without_images_are_questions_alone(tmp_path):
    row = zebra(f"Draw. {shown('reasoning_image_1')}", Question="Where?", problem_image_1=None)
    path = write_parquet(tmp_path / "a.parquet", [row])
    (record,), _ = split(reasoning.read_zebra_cot(path))
    assert [stage for stage, *_ in seen(record)] == ["prompt", "plan", "sketch", "inspect"]


def test_rows_that_do_not_fit_the_grammar_are_named(tmp_path):
    one, two = shown("reasoning_image_1"), shown("reasoning_image_2")
    rows = [
        zebra("THOUGHT 0: Words alone."),
        zebra(f"{one} THOUGHT 0: Words after."),
        zebra(f"THOUGHT 0: Two. {one} {two}"),
        zebra(f"THOUGHT 0: A third. {shown('reasoning_image_3')}"),
        zebra(f"THOUGHT 0: Two. {one}", reasoning_image_1=None),
        zebra(f"THOUGHT 0: Two. <refine>x {one}"),
        zebra(f"THOUGHT 0: Fine. {one}"),
        zebra(None),
        zebra(f"THOUGHT 0: Fine. {one}", Question="  "),
    ]
    path = write_parquet(tmp_path / "a.parquet", rows)
    records, skipped = split(reasoning.read_zebra_cot(path))
    assert [r.id[-1] for r in records] == ["6"]
    assert [(s.where, s.reason) for s in skipped] == [
        (f"{path}: row 0", "nothing is drawn"),
        (f"{path}: row 1", "drawing without a thought before it"),
        (f"{path}: row 2", "drawing without a thought before it"),
        (f"{path}: row 3", "missing picture"),
        (f"{path}: row 4", "missing picture"),
        (f"{path}: row 5", "breaks the sequence grammar"),
        (f"{path}: row 7", "missing text"),
        (f"{path}: row 8", "missing text"),
    ]
    assert "reasoning_image_3 holds no bytes" in str(skipped[3])


def thinkmorph(**columns):
    row = {
        "pid": "j1",
        "question": "Which piece fits?\nA or B?",
        "answer": "B",
        "problem_image_0": RED,
        "resoning_thought_0": "<think>Both might. Let me put them in.</think>",
        "reasoning_image_0": LIME,
        "resoning_thought_1": "Because B fits.",
    }
    return row | columns


EXPECTED = [
    ("given", "red", False),
    ("prompt", "Which piece fits?\nA or B?", False),
    ("plan", "<ins>Both might.</ins> <des>Let me put them in.</des>", True),
    ("sketch", "lime", True),
    ("inspect", "Because B fits. B", True),
]


def test_thinkmorph_as_published(tmp_path):
    rows = [thinkmorph(), thinkmorph(resoning_thought_1="<think>Because B fits.</think><answer>B</answer>")]
    path = write_parquet(tmp_path / "a.parquet", rows)
    records, skipped = split(reasoning.read_thinkmorph(path))
    assert skipped == []
    assert [seen(r) for r in records] == [EXPECTED, EXPECTED]
    assert {(r.source, r.complete) for r in records} == {("thinkmorph", True)}


def test_images_and_thoughts_are_ordered_by_number_not_by_column(tmp_path):
    thoughts = {f"resoning_thought_{n}": f"Thought {n}." for n in (10, 2, 1, 0)}
    row = {"reasoning_image_10": BLUE, "reasoning_image_9": RED, **thoughts, **thinkmorph()}
    row |= {"problem_image_1": BLUE, "resoning_thought_0": "Thought 0.", "resoning_thought_1": "Thought 1."}
    path = write_parquet(tmp_path / "a.parquet", [row])
    (record,), _ = split(reasoning.read_thinkmorph(path))
    assert [words for _, words, _ in seen(record) if len(words) < 8] == ["red", "blue", "lime", "red", "blue"]
    assert record.segments[-1].text == "Thought 10. B"


def test_thinkmorph_as_prepared_for_training(tmp_path):
    row = {
        "image_list": [picture("red"), picture("lime")],
        "instruction_list": ["Which piece fits?\nA or B?"],
        "output_text_list": [
            "<think>Both might. Let me put them in.</think><image_start>",
            "<image_end><think>Because B fits.</think><answer>B</answer>",
        ],
    }
    more = {
        **row,
        "image_list": [*row["image_list"], picture("blue")],
        "output_text_list": ["One.", "Two.", "Three. <answer>B</answer>"],
    }
    path = write_parquet(tmp_path / "a.parquet", [row, more, {**more, "output_text_list": ["One."]}])
    (first, second), (third,) = split(reasoning.read_thinkmorph(path))
    assert seen(first) == EXPECTED
    assert [words for stage, words, _ in seen(second) if stage != "given"][1:] == [
        "<ins>One.</ins> <des>One.</des>",
        "lime",
        "<ins>Two.</ins> <des>Two.</des>",
        "blue",
        "Three. B",
    ]
    assert (third.where, third.reason) == (f"{path}: row 2", "thoughts and drawings differ in number")


def test_malformed_thinkmorph_rows_are_named(tmp_path):
    rows = [
        thinkmorph(),
        thinkmorph(reasoning_image_0=None, resoning_thought_1=None),
        thinkmorph(resoning_thought_0=None),
        thinkmorph(answer=""),
        thinkmorph(resoning_thought_0="<think></think>"),
    ]
    path = write_parquet(tmp_path / "a.parquet", rows)
    records, skipped = split(reasoning.read_thinkmorph(path))
    assert len(records) == 1
    assert [(s.where[-5:], s.reason) for s in skipped] == [
        ("row 1", "nothing is drawn"),
        ("row 2", "thoughts and drawings differ in number"),
        ("row 3", "missing text"),
        ("row 4", "drawing without a thought before it"),
    ]
    with pytest.raises(ImporterError, match=r"expected question, answer, .* or image_list, instruction_list"):
        list(reasoning.read_thinkmorph(write_parquet(tmp_path / "b.parquet", [{"question": "x"}])))
