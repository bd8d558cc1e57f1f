"""The trajectory page: everything is on it, in order, escaped, and nothing is fetched."""

import base64
import html.parser
import io

import jinja2
import msgspec
import numpy as np
import PIL.Image
import pytest

from pdgen.interleave.trajectory import ImageStage, TextStage, Trajectory, format_inspection, format_plan
from pdgen.report.page import Entry, render, split_tags, trajectory_page

VOID = {"meta", "img"}


class Page(html.parser.HTMLParser):
    """The page's words, images and steps (the stages of each), and whether every element was closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.images, self.steps, self.names = [], [], [], [], set()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        if tag == "section":
            self.steps[-1].append(dict(attributes)["class"].removeprefix("stage "))
        if tag == "li":
            self.steps.append([])
        if tag not in VOID:
            self.open.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1][0] != "style":
            self.words.append(data.strip())


def shade(value):
    return PIL.Image.new("RGB", (8, 4), (value, 0, 0))


@pytest.fixture
def entry():
    stages = [
        ImageStage("given", "0.png", 8, 4),
        TextStage("plan", format_plan("Add a <b>cat</b>.", "A cat & a dog."), seconds=0.25, tokens=31),
        ImageStage("sketch", "1.png", 8, 4, seconds=2.5, steps=49),
        TextStage("inspect", format_inspection("It is red.", "Make it blue.")),
        TextStage("plan", format_plan("Add a blue cat.", "A blue cat.")),
        ImageStage("refine", "2.png", 8, 4),
        TextStage("inspect", "Now it is right."),
    ]
    trajectory = Trajectory(
        prompt="a cat <script>alert(1)</script>", stages=stages, stop_reason="step limit", seed=11,
        checkpoint="run/20", settings={"scale": 4.0, "renorm": "global"}, costs={"seconds": 3.14159},
    )  # fmt: skip
    return Entry("00042", trajectory, [shade(10), shade(20), shade(30)])


def test_everything_stands_on_the_page_in_order(entry):
    page = Page(trajectory_page([entry], "Step 5"))
    expected = [
        "Step 5", "trajectories: 1 · images drawn: 2 · step limit: 1", entry.trajectory.prompt, "step limit",
        "00042, seed 11", "Given", "8 x 4 px", "Plan", "31 tokens, 0.2 s", "instruction", "Add a <b>cat</b>.",
        "description", "A cat & a dog.", "Sketch", "8 x 4 px, 49 steps, 2.5 s", "Inspect", "It is red.",
        "refine", "Make it blue.", "Plan", "Add a blue cat.", "Refine", "Inspect", "Now it is right.",
        "seconds", "3.142", "checkpoint", "run/20", "scale", "4.0", "renorm", "global",
    ]  # fmt: skip
    words = iter(page.words)
    for word in expected:
        assert word in words, word  # consumes the iterator: order matters
    assert not page.names & {"script", "b"}


def test_a_step_is_an_image_with_its_texts(entry):
    page = Page(trajectory_page([entry]))
    steps = [["given"], ["plan", "sketch", "inspect"], ["plan", "refine", "inspect"]]
    assert page.steps == steps
    base = [
        TextStage("thought", "A cat sits."),
        ImageStage("sketch", "0.png", 8, 4),
        TextStage("answer", "It sits."),
    ]
    trajectory = msgspec.structs.replace(entry.trajectory, stages=base)
    page = Page(trajectory_page([Entry("x", trajectory, [shade(1)])]))
    assert page.steps == [["thought", "sketch", "answer"]]


def test_embedded_images_are_the_images(entry):
    page = Page(trajectory_page([entry]))
    for attributes, image in zip(page.images, entry.images, strict=True):
        head, data = attributes["src"].split(",")
        assert head == "data:image/png;base64" and attributes["class"] == "pixelated"
        assert (attributes["width"], attributes["height"]) == ("8", "4")
        with PIL.Image.open(io.BytesIO(base64.b64decode(data))) as shown:
            np.testing.assert_array_equal(np.asarray(shown), np.asarray(image))


def test_linked_images_are_quoted(entry):
    page = Page(trajectory_page([Entry("x", entry.trajectory, link='runs/a "b"/00042/')]))
    assert [a["src"] for a in page.images] == [f"runs/a%20%22b%22/00042/{n}.png" for n in range(3)]


def test_nothing_is_fetched(entry):
    text = trajectory_page([entry])
    assert not any(word in text for word in ("http:", "https:", "//", "@import", "url("))


def test_an_entry_without_its_images_is_named(entry):
    with pytest.raises(ValueError, match="00042: 3 image stages, but 1 images"):
        trajectory_page([Entry("00042", entry.trajectory, entry.images[:1])])


def test_a_page_of_none_says_so():
    assert "trajectories: 0 · images drawn: 0" in Page(trajectory_page([])).words


def test_a_template_gets_all_its_values():
    with pytest.raises(jinja2.UndefinedError, match="summary"):
        render("trajectories.html", title="x", articles=[])


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("", []),
        ("plain", [("", "plain")]),
        ("<ins>a</ins> <des>b\nc</des>", [("instruction", "a"), ("description", "b\nc")]),
        ("<ins>a<\\ins> <des></des>", [("instruction", "a"), ("description", "")]),
        ("x <refine>y", [("", "x <refine>y")]),
        ("x <refine>y</ins> z", [("", "x <refine>y</ins> z")]),
        ("x <refine>y</refine> z", [("", "x"), ("refine", "y"), ("", "z")]),
    ],
)
def test_texts_are_cut_at_their_tags(text, spans):
    assert split_tags(text) == spans
