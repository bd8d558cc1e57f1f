"""The page of trajectories: complete, in order, escaped, and without external resources."""

import base64
import dataclasses
import html.parser
import io

import jinja2
import numpy as np
import PIL.Image
import pytest

from pdgen.report.page import Entry, group_families, render, render_trajectories, split_tags
from pdgen.sequence.trajectory import ImageStage, TextStage, Trajectory, format_inspection, format_plan

VOID = {"meta", "img", "input", "path"}


class Page(html.parser.HTMLParser):
    """The words, images, outlines and steps (their stages) of a page; every element must be closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.images, self.paths, self.steps, self.names = [], [], [], [], [], []
        self.families, self.places = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.names.append(tag)
        kind = attributes.get("class", "").split()
        if tag == "img":
            self.images.append(attributes)
        if tag == "path":
            self.paths.append((len(self.images) - 1, attributes["d"]))
        if tag == "article":
            self.families.append(attributes)
        if tag == "section":
            self.steps[-1].append(" ".join(kind[1:]))
        if "step" in kind:
            self.steps.append([])
        if {"step", "head"} & set(kind):
            self.places.append(attributes["style"].removeprefix("grid-column: "))
        if tag not in VOID:
            self.open.append((tag, attributes))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1][0] not in ("style", "script"):
            self.words.append(" ".join(data.split()))


def shade(value, patch=()):
    image = PIL.Image.new("RGB", (8, 4), (value, 0, 0))
    if patch:
        image.paste("white", patch)
    return image


@pytest.fixture
def trajectory():
    stages = [
        ImageStage("given", "0.png", 8, 4),
        TextStage("plan", format_plan("Add a <b>cat</b>.", "A cat & a dog."), seconds=0.25, tokens=31),
        ImageStage("sketch", "1.png", 8, 4, seconds=2.5, steps=49),
        TextStage("inspect", format_inspection("It is red.", "Make it blue.")),
        TextStage("plan", format_plan("Add a blue cat.", "A blue cat.")),
        ImageStage("refine", "2.png", 8, 4),
        TextStage("inspect", "Now it is right."),
    ]
    return Trajectory(
        prompt="a cat <script>alert(1)</script>",
        stages=stages,
        stop_reason="step limit",
        seed=11,
        checkpoint="run/20",
        model_hash="beef",
        settings={"scale": 4.0, "renorm": "global"},
        costs={"text_tokens": 1031.0, "seconds": 3.14159},
        images=[shade(10), shade(20), shade(30, (2, 0, 5, 2))],
    )


@pytest.fixture
def entry(trajectory):
    return Entry("00042", trajectory)


def test_the_page_shows_everything_in_order(entry):
    page = Page(render_trajectories([entry], "Step 5"))
    expected = [
        "Step 5",
        "trajectories: 1 · images drawn: 2 · step limit: 1",
        "any stop reason",
        "step limit",
        "Settings",
        "mode",
        "process",
        "checkpoint",
        "run/20",
        "model hash",
        "beef",
        "scale",
        "4",
        "renorm",
        "global",
        entry.trajectory.prompt,
        "step limit",
        "00042, seed 11",
        "text tokens 1,031 · seconds 3.142",
        "0",
        "Given",
        "8 x 4 px",
        "1",
        "Plan",
        "31 tokens, 0.2 s",
        "instruction",
        "Add a <b>cat</b>.",
        "description",
        "A cat & a dog.",
        "2",
        "Sketch",
        "8 x 4 px, 49 steps, 2.5 s, 0% changed",
        "Inspect",
        "It is red.",
        "refine",
        "Make it blue.",
        "Plan",
        "Add a blue cat.",
        "Refine",
        "8 x 4 px, 19% changed",
        "6",
        "Inspect",
        "Now it is right.",
    ]
    words = iter(page.words)
    for word in expected:
        assert word in words, word  # consumes the iterator: order matters
    assert page.names.count("script") == 1 and "b" not in page.names


def test_a_step_is_an_image_with_its_texts(entry):
    page = Page(render_trajectories([entry]))
    steps = [["given"], ["plan", "sketch", "inspect"], ["plan", "refine", "inspect"]]
    assert page.steps == steps
    assert page.places == ["1 / -1", "1", "2", "3"]
    base = [
        TextStage("thought", "A cat sits."),
        ImageStage("sketch", "0.png", 8, 4),
        TextStage("answer", "It sits."),
    ]
    other = dataclasses.replace(entry.trajectory, mode="think", stages=base, images=[shade(1)])
    assert Page(render_trajectories([Entry("x", other)])).steps == [["thought", "sketch", "answer"]]


def test_changes_are_outlined(entry):
    page = Page(render_trajectories([entry]))
    assert page.paths == [(2, "M2 0h3M2 2h3M2 0v2M5 0v2")]  # none on the first two, worked out by hand on the third
    text = render_trajectories([entry])
    assert 'viewBox="0 0 8.0 4.0"' in text and "body:has(#outlines:not(:checked)) .picture svg { display: none" in text


def test_a_branch_is_beside_its_parent(trajectory):
    branch = trajectory.branch(3, critique="It fits.", seed=12)
    branch = dataclasses.replace(branch, settings={"scale": 2.0, "renorm": "global"})
    twig = dataclasses.replace(branch.branch(3), stop_reason="finished")
    other = dataclasses.replace(trajectory, prompt="another", seed=13)
    entries = [Entry("a", trajectory), Entry("b", other), Entry("a-1", branch), Entry("a-1-1", twig)]
    assert [[e.name for e in family] for family in group_families(entries)] == [["a", "a-1", "a-1-1"], ["b"]]
    page = Page(render_trajectories(entries))
    parent = [["given"], ["plan", "sketch", "inspect"], ["plan", "refine", "inspect"]]
    assert page.steps == [*parent, ["plan kept", "sketch kept", "inspect"], *parent]
    assert page.places[:8] == ["1 / 4", "1", "2", "3", "4 / 5", "4", "5 / -1", "1 / -1"]
    assert "seed 12, branch of a from stage 3" in page.words and "Inspect, from outside" in page.words
    assert page.words.count("scale = 2") == 2 and page.words.count("scale = 4") == 2  # no longer common to all
    assert [family["data-stops"] for family in page.families] == ["finished|step limit|unfinished", "step limit"]
    alone = Page(render_trajectories([Entry("a-1", branch)]))
    assert alone.steps == [["given"], ["plan", "sketch", "inspect"]]
    assert f"a-1, seed 12, branch of {trajectory.fingerprint} from stage 3" in alone.words


def test_the_filter_searches_prompts_and_names(trajectory):
    page = Page(render_trajectories([Entry("N1", dataclasses.replace(trajectory, prompt='A "Red" cat'))]))
    assert page.families[0]["data-words"] == 'a "red" cat n1 process'


def test_embedded_images_are_the_images(entry):
    page = Page(render_trajectories([entry]))
    for attributes, image in zip(page.images, entry.trajectory.images, strict=True):
        head, data = attributes["src"].split(",")
        assert head == "data:image/png;base64" and attributes["class"] == "pixelated"
        assert (attributes["width"], attributes["height"]) == ("8", "4")
        with PIL.Image.open(io.BytesIO(base64.b64decode(data))) as shown:
            np.testing.assert_array_equal(np.asarray(shown), np.asarray(image))


def test_linked_images_are_quoted(entry):
    text = render_trajectories([Entry("x", entry.trajectory, 'runs/a "b"/00042/', ["the strip.png"])])
    assert [a["src"] for a in Page(text).images] == [f"runs/a%20%22b%22/00042/{n}.png" for n in range(3)]
    assert all(f'href="runs/a%20%22b%22/00042/{name}"' in text for name in ("0.png", "2.png", "the%20strip.png"))


def test_nothing_is_fetched(entry):
    text = render_trajectories([entry])
    assert not any(word in text for word in ("http:", "https:", "@import", "url(", "fetch(", 'src="//'))


def test_an_empty_page():
    assert "trajectories: 0 · images drawn: 0" in Page(render_trajectories([])).words


def test_a_template_requires_all_its_values():
    with pytest.raises(jinja2.UndefinedError, match=r"families|summary"):
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
def test_texts_are_split_at_their_tags(text, spans):
    assert split_tags(text) == spans
