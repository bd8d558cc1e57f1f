"""The texts of shapes world: prompts, plans and inspections, written from scene graphs.

Sentences are short, because a small model spends most of its training on the tokens of plans. ``parse`` reads prompts,
descriptions and instructions back.
"""

import msgspec
import numpy as np

from pdgen.sequence.trajectory import format_plan
from pdgen.shapes.graph import Relation, SceneGraph, Step, drop_implied
from pdgen.shapes.instruction import make_instruction, write_instruction
from pdgen.shapes.lexicon import RELATIONS, make_sentence, pick
from pdgen.shapes.matching import find_differences
from pdgen.shapes.phrases import USUAL, Wording, phrase_background, phrase_scene, write_statements

GENEVAL_FORM = "a photo of {}"
SHORT_FORMS = ("a picture of {}", "an image of {}", "a drawing of {}", "draw {}", "paint {}", "show {}", "{}")
LONG_FORMS = ("A picture of {}", "An image of {}", "A photo of {}", "Draw {}", "Paint {}", "Show {}", "{}")
DESCRIPTIONS = ("The picture shows {}.", "Now the picture shows {}.", "There {is} {}.")
GENEVAL_RATE = 0.4  # share of the prompts of GenEval's tasks that use GenEval's own form
APART_RATE = 0.1  # share of the compositions whose relations have their own sentences
OTHER_RELATIONS_RATE = 0.25  # share of the prompts that may use "under" for "below" and the like


def write_prompt(rng: np.random.Generator, graph: SceneGraph, task: str) -> str:
    """Write a prompt that asks for exactly what the graph states.

    Prompts of GenEval's tasks use GenEval's own form with probability ``GENEVAL_RATE``, otherwise another short one.
    Prompts of the task "composition" are whole sentences.
    """
    if task == "composition":
        return _composition(rng, graph)
    geneval = rng.random() < GENEVAL_RATE
    words = USUAL if geneval else _wording(rng)
    content, left = _content(graph, words)
    text = (GENEVAL_FORM if geneval else pick(rng, SHORT_FORMS)).format(content)
    return text if not left else " ".join([f"{text}.", *write_statements(graph, left, words)])


def _wording(rng: np.random.Generator) -> Wording:
    relations = {kind: pick(rng, wordings) for kind, wordings in RELATIONS.items()}
    return Wording(relations if rng.random() < OTHER_RELATIONS_RATE else USUAL.relations, bare=bool(rng.integers(2)))


def _content(graph: SceneGraph, words: Wording) -> tuple[str, list[Relation]]:
    return phrase_scene(graph, [e.id for e in graph.entities], words)


def _composition(rng: np.random.Generator, graph: SceneGraph) -> str:
    words = _wording(rng)._replace(bare=True)
    apart = rng.random() < APART_RATE
    background = graph.background
    where = "" if background is None else pick(rng, ("first", "within", "last") if graph.entities else ("within",))
    named = SceneGraph(graph.entities, () if apart else graph.relations, background if where == "within" else None)
    content, left = _content(named, words)
    if background is not None and where == "first":
        content = f"{phrase_background(background)} with {content}"
    said = write_statements(graph, graph.relations if apart else left, words)
    end = [f"The background is {background}."] if where == "last" else []
    return " ".join([make_sentence(pick(rng, LONG_FORMS).format(content)), *said, *end])


def write_description(rng: np.random.Generator, graph: SceneGraph) -> str:
    """Describe the whole scene in one or two sentences, as a plan does. Relations that places imply are left out."""
    words, graph = Wording(bare=True), drop_implied(graph)
    content, left = _content(graph, words)
    verb = "are" if graph.entities and graph.entities[0].count > 1 else "is"
    text = pick(rng, DESCRIPTIONS).format(content, **{"is": verb})
    return " ".join([text, *write_statements(graph, left, words)])


def write_step_instruction(
    rng: np.random.Generator, before: SceneGraph | None, step: Step, prompt_graph: SceneGraph | None = None
) -> str:
    """Write the instruction of a step: what to draw or change, and where.

    Args:
      before: the graph before the step; None for the first step.
      prompt_graph: the graph of the prompt. If the step draws something that contradicts it and that a later step
        corrects, the instruction ends in "for now", which distinguishes it from a mistake. None: never.

    Raises:
      SceneError: see ``make_instruction``.
    """
    order = make_instruction(before, step)
    if prompt_graph is not None:
        wrong = {i for d in find_differences(prompt_graph, step.graph) if d.said is not None for i in d.entities}
        order = msgspec.structs.replace(order, for_now=bool(wrong & set(step.entities)))
    return write_instruction(rng, order, first=before is None)


def write_plan(
    rng: np.random.Generator, before: SceneGraph | None, step: Step, prompt_graph: SceneGraph | None = None
) -> str:
    """Write the plan of a step: ``write_step_instruction`` and ``write_description`` of the graph after it, in tags."""
    return format_plan(write_step_instruction(rng, before, step, prompt_graph), write_description(rng, step.graph))
