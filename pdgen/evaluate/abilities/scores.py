"""Scores of drawn, edited and read pictures of shapes world, and their tables.

Pictures are judged from pixels, with the exact detector and GenEval's rule for relations. Answers are compared with
what the given picture shows. Every score is 0 or 1.
"""

import collections
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from pdgen.evaluate.abilities.prompts import GROUPS, AbilityCase
from pdgen.evaluate.statistics import estimate
from pdgen.evaluate.tables import Cell, Table, to_cells
from pdgen.sequence.images import Picture
from pdgen.shapes.detector import Detection, detect, detect_background
from pdgen.shapes.graph import Entity, SceneError, SceneGraph
from pdgen.shapes.instruction import Instruction
from pdgen.shapes.lexicon import make_sentence
from pdgen.shapes.matching import align, find_differences, get_words, matches_words
from pdgen.shapes.parse import canonicalize, parse
from pdgen.shapes.phrases import is_or_are, phrase_known, was_or_were
from pdgen.teachers.exact.picture_check import (
    SHIFT,
    check_picture,
    check_unchanged,
    describe_detection,
    match_detections,
)

IMAGES = "images"  # folder of all pictures
COLUMNS = {
    "drawing": ("right", "number", "colours", "nouns"),
    "editing": ("right", "done", "untouched"),
    "reading": ("right", "yes or no"),
    "thinking": ("right", "thought", "as thought"),
}
_FIRST = dict(zip(GROUPS, ("prompt for", "operation", "question", "prompt for")))  # column
_NAMES = {"places": "caption with places", "color": "colour"}  # of rows, for a reader
NOTES = {
    "drawing": "Right: all as asked and nothing else, relations by GenEval's rule. Number: as many things as asked. "
    'Colours, nouns: all that are asked for are there, possibly with others. Pairs of "unseen pair" are in no training '
    "sample; all other prompts are of kinds that occur in training, from another stream of seeds.",
    "editing": "Done: the picture shows all that it must after the instruction, and nothing else; moved things are "
    "elsewhere, swapped things are where the other was. Untouched: what the instruction does not concern is "
    "unchanged. Right: both. Overall is the plain mean of the operations.",
    "reading": "Right: a caption says exactly what the picture shows, in any order; any other answer is correct "
    "verbatim. Yes or no: the first word of a check is correct, whatever fault it names.",
    "thinking": "Right: as in drawing. Thought: the thought agrees with the prompt. As thought: the picture shows what "
    "the thought describes.",
}


class AbilityOutcome(msgspec.Struct, frozen=True):
    """The outcome of a draw, a line of ``results.jsonl``.

    Attributes:
      name: The job's name.
      scores: The case's scores by names of ``COLUMNS``.
      fault: Why it is wrong; "" if it is correct.
      answer: The answer to a question, or the thought.
      expected: The correct answer.
    """

    name: str
    group: str
    row: str
    prompt: str
    seed: int
    scores: dict[str, float]
    fault: str = ""
    answer: str = ""
    expected: str = ""

    @property
    def right(self) -> bool:
        """Whether everything is correct."""
        return self.scores["right"] == 1.0


def locate_image(output: pathlib.Path, name: str) -> pathlib.Path:
    """Return the path of a draw's picture."""
    return output / IMAGES / f"{name}.png"


def judge_drawing(asked: SceneGraph, picture: Picture) -> tuple[dict[str, float], str]:
    """Judge a picture, of at least 32 pixels a side, that was drawn from a prompt; return the scores, and the fault.

    "colours" is scored if the prompt gives every entity a color. The fault is "" if there is none.
    """
    found = detect(picture)
    fault = _find_broken_promise(found, picture, asked)
    colors = [(e.attributes.get("color"), e.count) for e in asked.entities]
    scores = {"right": fault is None, "number": len(found) == sum(e.count for e in asked.entities)}
    if all(color for color, _ in colors):
        scores["colours"] = _contains_all(colors, (one.color for one in found))
    scores["nouns"] = _contains_all(((e.noun, e.count) for e in asked.entities), (one.shape for one in found))
    return _to_floats(scores), fault or ""


def judge_edit(
    after: SceneGraph, instruction: Instruction, before: Picture, now: Picture
) -> tuple[dict[str, float], str]:
    """Judge an edited picture; return the scores, and the fault or "".

    Args:
      after: What the edited picture must show.
      instruction: It determines what may change.
      before: The given picture, at least 32 pixels a side.
      now: The edited picture, of the same shape.
    """
    old, new = detect(before), detect(now)
    wrong = _find_broken_promise(new, now, after) or _find_unmoved(instruction, old, new)
    touched = _strip_correction(check_unchanged(np.random.default_rng(0), instruction, (before, old), (now, new)))
    scores = {"right": wrong is None and touched is None, "done": wrong is None, "untouched": touched is None}
    return _to_floats(scores), wrong or touched or ""


def _find_unmoved(instruction: Instruction, old: Sequence[Detection], new: Sequence[Detection]) -> str | None:
    # A graph need not determine places and may be true of the given picture too. So moves and swaps are also checked by
    # boxes: no moved thing is where it was, and each of two swapped things overlaps the other's old place.
    pair = [instruction.graph.find(i) for i in instruction.entities]
    if instruction.operation == "move":
        old_boxes, new_boxes = _find_boxes(pair[0], old), _find_boxes(pair[0], new, anywhere=True)
        if any(abs(np.subtract(a, b)).max() <= SHIFT for a in old_boxes for b in new_boxes):
            return make_sentence(f"{phrase_known(pair[0])} {'has' if pair[0].count == 1 else 'have'} not moved")
    if instruction.operation == "swap" and not instruction.changes:
        for one, other in (pair, pair[::-1]):
            old_boxes, new_boxes = _find_boxes(other, old), _find_boxes(one, new, anywhere=True)
            if sum(any(_overlap(a, b) for b in old_boxes) for a in new_boxes) < min(len(old_boxes), len(new_boxes)):
                return make_sentence(
                    f"{phrase_known(one)} {is_or_are(one)} not where {phrase_known(other)} {was_or_were(other)}"
                )
    return None


def _find_boxes(entity: Entity, found: Sequence[Detection], anywhere: bool = False) -> list[tuple[int, int, int, int]]:
    words = {key: word for key, word in get_words(entity).items() if not (anywhere and key == "place")}
    return [one.box for one in found if matches_words(words, describe_detection(one))]


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def judge_thought(asked: SceneGraph, picture: Picture, thought: str) -> dict[str, float]:
    """Judge the thought before a picture: whether it agrees with the prompt, and whether the picture shows it.

    A text that is not the description of a scene scores 0 in both.
    """
    try:
        described = parse(thought)
        agrees = not find_differences(asked, align(asked, described))
        shown = _find_broken_promise(detect(picture), picture, described) is None
    except SceneError:  # also for two places of one thing
        return {"thought": 0.0, "as thought": 0.0}
    return _to_floats({"thought": agrees, "as thought": shown})


def judge_answer(kind: str, answer: str, expected: str) -> tuple[dict[str, float], str]:
    """Judge an answer to a question of a kind in ``questions.KINDS``; return the scores, and the fault or ""."""
    answer = answer.strip()
    if kind in ("caption", "places"):
        right, fault = _compare_scenes(answer, expected)
    else:
        right, fault = answer == expected, f"expected {expected!r}"
    scores = {"right": right}
    if kind == "check":
        first, wanted = (text.replace(",", " ").replace(".", " ").partition(" ")[0] for text in (answer, expected))
        scores["yes or no"] = first == wanted
    return _to_floats(scores), "" if right else fault


def _find_broken_promise(found: Sequence[Detection], picture: Picture, graph: SceneGraph) -> str | None:
    return _strip_correction(
        check_picture(np.random.default_rng(0), match_detections(found, detect_background(picture), graph), graph)
    )


def _strip_correction(inspection: str | None) -> str | None:
    # Keeps the fault and drops the proposed correction.
    return None if inspection is None else inspection.partition("<refine>")[0].strip()


def _contains_all(asked: Iterable[tuple[str | None, int]], seen: Iterable[str]) -> bool:
    wanted: collections.Counter[str | None] = collections.Counter()
    for word, count in asked:
        wanted[word] += count
    return wanted <= collections.Counter(seen)


def _to_floats(scores: Mapping[str, bool]) -> dict[str, float]:
    return {name: float(score) for name, score in scores.items()}


def _compare_scenes(answer: str, expected: str) -> tuple[bool, str]:
    try:
        scene = canonicalize(parse(answer))
    except SceneError as fault:
        return False, f"not understood: {fault}"
    return scene == canonicalize(parse(expected)), f"expected {expected!r}"


def judge_case(
    case: AbilityCase, before: Picture | None, now: Picture | None, answer: str
) -> tuple[dict[str, float], str]:
    """Judge the outcome of a case; return the scores, and the fault or "".

    Args:
      case: The case.
      before: The given picture, if any.
      now: The drawn picture. None for a question.
      answer: The answer to a question, or the thought before the picture.
    """
    if case.group == "reading":
        return judge_answer(case.row, answer, case.answer)
    assert case.asked is not None and now is not None
    if case.group == "editing":
        assert case.instruction is not None and before is not None
        return judge_edit(case.asked, case.instruction, before, now)
    scores, fault = judge_drawing(case.asked, now)
    return scores | (judge_thought(case.asked, now, answer) if case.group == "thinking" else {}), fault


def average_by_prompt(outcomes: Iterable[AbilityOutcome], score: str) -> list[float]:
    """Return the mean score of every prompt that has it, in order. Its draws differ in the last part of their names."""
    prompts: dict[str, list[float]] = {}
    for one in outcomes:
        if score in one.scores:
            prompts.setdefault(one.name.rpartition("-")[0], []).append(one.scores[score])
    return [float(np.mean(values)) for values in prompts.values()]


def make_ability_tables(outcomes: Sequence[AbilityOutcome]) -> list[Table]:
    """Return a table for each group with outcomes: every score with its interval, by row, for edits also overall."""
    tables = []
    for group, columns in COLUMNS.items():
        rows: dict[str, list[AbilityOutcome]] = {}
        for one in outcomes:
            if one.group == group:
                rows.setdefault(one.row, []).append(one)
        if not rows:
            continue
        shown = [_make_cells(_NAMES.get(row, row), [own], columns) for row, own in rows.items()]
        if group == "editing":
            shown.insert(0, _make_cells("overall", list(rows.values()), columns))
        names = [name for column in columns for name in (column, f"{column} low", f"{column} high")]
        tables.append(Table(group, (_FIRST[group], *names, "prompts", "samples"), shown, NOTES[group]))
    return tables


def _make_cells(name: str, strata: Sequence[Sequence[AbilityOutcome]], columns: Sequence[str]) -> tuple[Cell, ...]:
    cells: list[Cell] = [name]
    for column in columns:
        scores = [np.array(average_by_prompt(own, column)) for own in strata]
        cells += to_cells(estimate(scores) if all(map(len, scores)) else None)[:3]
    prompts = sum(len(average_by_prompt(own, "right")) for own in strata)
    return (*cells, prompts, sum(map(len, strata)))
