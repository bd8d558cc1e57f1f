"""Graphs against GenEval's metadata, on records in its format."""

import itertools
import json

import pytest

from pdgen.evaluate.geneval.metadata import compare_graph, decode_metadata
from pdgen.shapes.graph import COLORS, SceneError
from pdgen.shapes.lexicon import COCO, add_article, spell_number
from pdgen.shapes.parse import parse


def record(prompt, include, **more):
    return decode_metadata(json.dumps({"tag": "any", "include": include, "prompt": prompt, **more}))


def records():
    """All six tasks over all nouns, colours, counts and relations."""
    one = [{"class": noun, "count": 1} for noun in COCO]
    for a, b, color, other in zip(one, one[7:] + one[:7], itertools.cycle(COLORS), itertools.cycle(COLORS[3:])):
        noun, second = a["class"], b["class"]
        yield record(f"a photo of {add_article(noun)}", [a])
        yield record(f"a photo of {add_article(noun)} and {add_article(second)}", [a, b])
        for n in (2, 3, 4):  # GenEval's plurals: "es" after s and sh alone would be "buses", "glasses"; else "s"
            form = f"{noun}es" if noun.endswith("s") and noun not in ("skis", "scissors") else f"{noun}s"
            excluded = [{"class": noun, "count": n + 1}]
            yield record(f"a photo of {spell_number(n)} {form}", [{"class": noun, "count": n}], exclude=excluded)
        yield record(f"a photo of {add_article(f'{color} {noun}')}", [a | {"color": color}])
        for kind in ("left of", "right of", "above", "below"):
            prompt = f"a photo of {add_article(second)} {kind} {add_article(noun)}"
            yield record(prompt, [a, b | {"position": [kind, 0]}])
        prompt = f"a photo of {add_article(f'{color} {noun}')} and {add_article(f'{other} {second}')}"
        yield record(prompt, [a | {"color": color}, b | {"color": other}])


def test_all_tasks_agree():
    made = list(records())
    assert len(made) == 80 * 11
    assert [(r.prompt, found) for r in made if (found := compare_graph(parse(r.prompt), r))] == []


DOG, CAT = {"class": "dog", "count": 1}, {"class": "cat", "count": 1}


@pytest.mark.parametrize(
    ("prompt", "include", "more", "differences"),
    [
        ("a photo of a dog", [CAT], {}, ["a cat is not in the graph", "a dog is not in the metadata"]),
        ("a photo of two dogs", [DOG], {}, ["a dog is not in the graph", "two dogs are not in the metadata"]),
        ("a photo of a red dog", [DOG], {}, ["a dog is not in the graph", "a red dog is not in the metadata"]),
        ("a photo of a dog and a cat", [DOG], {}, ["a cat is not in the metadata"]),
        (
            "a photo of a dog left of a cat",
            [DOG, CAT | {"position": ["left of", 0]}],
            {},
            ["'cat' is not left of 'dog' in the graph"],
        ),
        ("a photo of a dog left of a cat", [CAT, DOG | {"position": ["left of", 0]}], {}, []),
        ("a photo of a dog right of a cat", [DOG, CAT | {"position": ["left of", 0]}], {}, []),
        ("a photo of a dog left of a cat", [DOG, CAT], {}, ["relations: 1 in the graph, 0 in the metadata"]),
        (
            "a photo of three dogs",
            [DOG | {"count": 3}],
            {"exclude": [{"class": "dog", "count": 3}]},
            ["3 of 'dog', but fewer than 3 are asked for"],
        ),
        ("a photo of a dog on a beige background", [DOG], {}, ["the background 'beige' is not in the metadata"]),
    ],
)
def test_differences_are_named(prompt, include, more, differences):
    assert compare_graph(parse(prompt), record(prompt, include, **more)) == differences


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "metadata: "),
        ('{"tag": "a", "prompt": "b"}', "missing required field `include`"),
        ('{"tag": "a", "prompt": "b", "include": [{"class": "dog"}]}', "missing required field `count`"),
        ('{"tag": "a", "prompt": "b", "include": [{"class": "dog", "count": 1, "position": ["near", 0]}]}', "near"),
        ('{"tag": "a", "prompt": "b", "include": [{"class": "dog", "count": 1, "position": ["above", 4]}]}', "4"),
    ],
)
def test_malformed_records_are_refused(line, words):
    with pytest.raises(SceneError) as caught:
        decode_metadata(line)
    assert words in str(caught.value)
