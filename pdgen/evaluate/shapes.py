"""The benchmark of shapes world: GenEval's six tasks and long compositions in GenEval's form, held out from training.

A task holds out pairs of color and noun, or triples noun-relation-noun (``pdgen.shapes.held_out``). Every prompt of
"colors", "position", "color_attr" and "composition" asks for such a pair or triple, which no training prompt, plan or
picture contains. "single_object", "two_object" and "counting" have nothing to hold out. Their prompts occur in
training.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pdgen.evaluate.geneval.metadata import decode_metadata
from pdgen.evaluate.geneval.rule import TASKS, GenEvalPrompt
from pdgen.shapes.graph import COLORS, Entity, Relation, SceneGraph
from pdgen.shapes.held_out import is_held_out
from pdgen.shapes.language import GENEVAL_FORM, write_prompt
from pdgen.shapes.layout import RELATIONS
from pdgen.shapes.phrases import phrase_scene
from pdgen.shapes.world import SHAPES
from pdgen.synthesis.sample import ENTITY_RATES, sample_graph

SEED = 0
# The largest number of prompts of each task. "single_object", "counting" and "colors" have no more.
COUNTS = {
    "single_object": 10,
    "two_object": 40,
    "counting": 30,
    "colors": 40,
    "position": 40,
    "color_attr": 60,
    "composition": 60,
}
HELD_OUT_TASKS = ("colors", "position", "color_attr", "composition")  # every prompt asks for a held-out pair or triple


def make_benchmark(counts: Mapping[str, int] = COUNTS, seed: int = SEED) -> list[GenEvalPrompt]:
    """Return the prompts, task after task, without duplicates. Equal arguments give equal prompts.

    Args:
      counts: The largest number of prompts of each task, by the names of ``COUNTS``.
      seed: Selects prompts where a task has more.
    """
    prompts = []
    for number, task in enumerate((*TASKS, "composition")):
        rng = np.random.default_rng((seed, number))
        count = counts.get(task, 0)
        if task == "composition":
            graphs = [_sample_composition(rng) for _ in range(count)]
            texts = [write_prompt(rng, graph, task) for graph in graphs]
        else:
            every = [graph for graph in generate_scenes(task) if is_held_out(graph) or task not in HELD_OUT_TASKS]
            graphs = [every[i] for i in sorted(rng.permutation(len(every))[:count])]
            texts = [GENEVAL_FORM.format(phrase_scene(graph, [e.id for e in graph.entities])[0]) for graph in graphs]
        prompts += [_make_prompt(graph, task, text) for graph, text in zip(graphs, texts)]
    return prompts


def generate_scenes(task: str) -> Iterator[SceneGraph]:
    """Yield all scenes that a prompt of one of GenEval's tasks can ask for, held out from training or not."""
    pairs = itertools.permutations(SHAPES, 2)
    if task == "single_object":
        yield from (SceneGraph((Entity(0, noun),)) for noun in SHAPES)
    elif task == "two_object":
        yield from (SceneGraph((Entity(0, a), Entity(1, b))) for a, b in pairs)
    elif task == "counting":
        yield from (SceneGraph((Entity(0, noun, count),)) for noun in SHAPES for count in (2, 3, 4))
    elif task == "colors":
        yield from (SceneGraph((_make_colored(0, noun, color),)) for noun in SHAPES for color in COLORS)
    elif task == "position":
        two = ((Entity(0, a), Entity(1, b)) for a, b in pairs)
        yield from (SceneGraph(entities, (Relation(0, kind, 1),)) for entities in two for kind in RELATIONS)
    else:
        colors = list(itertools.permutations(COLORS, 2))
        yield from (SceneGraph((_make_colored(0, a, c), _make_colored(1, b, d))) for a, b in pairs for c, d in colors)


def _make_colored(number: int, noun: str, color: str) -> Entity:
    return Entity(number, noun, attributes={"color": color})


def _sample_composition(rng: np.random.Generator) -> SceneGraph:
    # GenEval's form has only colors, counts and relations, and its rule checks only the best objects of a noun, so
    # no noun may occur twice. The number of entities is drawn first: scenes with many are rejected more often, and
    # their share must not change.
    number = int(rng.choice(list(ENTITY_RATES), p=list(ENTITY_RATES.values())))
    while True:
        graph = sample_graph(rng, "composition", "test", {number: 1.0})
        if len({e.noun for e in graph.entities}) == len(graph.entities):
            break
    entities = tuple(Entity(e.id, e.noun, e.count, {"color": e.attributes["color"]}) for e in graph.entities)
    return SceneGraph(entities, graph.relations)


def _make_prompt(graph: SceneGraph, task: str, text: str) -> GenEvalPrompt:
    raw: dict[str, Any] = {"tag": task, "include": _make_include(graph)}
    if task == "counting":
        raw["exclude"] = [{"class": e.noun, "count": e.count + 1} for e in graph.entities]
    raw["prompt"] = text
    return GenEvalPrompt(decode_metadata(json.dumps(raw)), raw)


def _make_include(graph: SceneGraph) -> list[dict[str, Any]]:
    """Return the ``include`` list, each tree of relations from its root, since positions refer to earlier objects."""
    subjects = {r.subject for r in graph.relations}
    waiting = [(e.id, None) for e in sorted(graph.entities, key=lambda e: e.id in subjects)]
    found: dict[int, dict[str, Any]] = {}
    while waiting:
        number, relation = waiting.pop(0)
        if number in found:
            continue
        entity = graph.find(number)
        item: dict[str, Any] = {"class": entity.noun, "count": entity.count, **entity.attributes}
        if relation is not None:
            item["position"] = [relation.kind, list(found).index(relation.reference)]
        found[number] = item
        ends = [
            (r, r.reference if r.subject == number else r.subject)
            for r in graph.relations
            if number in (r.subject, r.reference)
        ]
        waiting = [(end, r.with_subject(end)) for r, end in ends] + waiting
    return list(found.values())
