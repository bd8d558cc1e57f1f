"""Judges what a model drew, changed or answered in shapes world, and puts the scores into tables.

Pictures are judged from pixels, by the exact detector and with GenEval's rule for relations; answers by what the given
picture shows. Every score is 0 or 1.
"""

import collections
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from pdgen.evaluate.abilities.prompts import GROUPS, Case
from pdgen.evaluate.statistics import estimate
from pdgen.evaluate.tables import Cell, Table, interval
from pdgen.sequence.images import Picture
from pdgen.shapes.detector import Detection, detect, detect_background
from pdgen.shapes.graph import Entity, SceneError, SceneGraph
from pdgen.shapes.instruction import Instruction
from pdgen.shapes.lexicon import make_sentence
from pdgen.shapes.matching import get_words, matches_words
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
OVERALL = "overall"
COLUMNS = {
    "drawing": ("right", "number", "colours", "nouns"),
    "editing": ("right", "done", "untouched"),
    "reading": ("right", "yes or no"),
}
_FIRST = dict(zip(GROUPS, ("prompt for", "operation", "question")))  # column
_NAMES = {"places": "caption with places", "color": "colour"}  # of rows, for a reader
NOTES = {
    "drawing": "Right: all as asked and nothing else there, relations by GenEval's rule. Number: as many things as "
    'asked for. Colours, nouns: all that are asked for are there, whatever else is. Pairs of "unseen pair" are in '
    "no training sample; all other prompts are of kinds that occur in training, from another stream of seeds.",
    "editing": "Done: the picture shows all that it must after the instruction, and nothing else; what moves does not "
    "stay, what swaps stands where the other stood. Untouched: what the instruction does not concern "
    "is as it was. Right: both. Overall is the plain mean of the operations.",
    "reading": "Right: a caption says exactly what the picture shows, in whatever order; any other answer is right to "
    "the word. Yes or no: the first word of a check is right, whatever is said to be wrong.",
}


class Outcome(msgspec.Struct, frozen=True):
    """What became of one draw, a line of ``results.jsonl``.

    Attributes:
      name: the job's.
      group, row, prompt, seed: of the draw.
      scores: by names of ``COLUMNS``, those that the case has.
      fault: why it is not right; "" if it is.
      answer, expected: of a question.
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
        """Whether all is right."""
        return self.scores["right"] == 1.0


def image_path(output: pathlib.Path, name: str) -> pathlib.Path:
    """Where the picture of the draw of that name lies."""
    return output / IMAGES / f"{name}.png"


def judge_drawing(asked: SceneGraph, picture: Picture) -> tuple[dict[str, float], str]:
    """(scores, fault) of a picture of a prompt.

    Args:
      asked: what the prompt asks for. "colours" is scored where every entity has one.
      picture: [side, side, 3], side at least 32.
    """
    found = detect(picture)
    fault = _promises(found, picture, asked)
    colors = [(e.attributes.get("color"), e.count) for e in asked.entities]
    scores = {"right": fault is None, "number": len(found) == sum(e.count for e in asked.entities)}
    if all(color for color, _ in colors):
        scores["colours"] = _among(colors, (one.color for one in found))
    scores["nouns"] = _among(((e.noun, e.count) for e in asked.entities), (one.shape for one in found))
    return _numbers(scores), fault or ""


def judge_edit(
    after: SceneGraph, instruction: Instruction, before: Picture, now: Picture
) -> tuple[dict[str, float], str]:
    """(scores, fault) of an edited picture.

    Args:
      after: what it is to show.
      instruction: as ``instruct`` makes it; tells what may change.
      before, now: the pictures, [side, side, 3], side at least 32.
    """
    old, new = detect(before), detect(now)
    wrong = _promises(new, now, after) or _still_there(instruction, old, new)
    touched = _analysis(check_unchanged(np.random.default_rng(0), instruction, (before, old), (now, new)))
    scores = {"right": wrong is None and touched is None, "done": wrong is None, "untouched": touched is None}
    return _numbers(scores), wrong or touched or ""


def _still_there(instruction: Instruction, old: Sequence[Detection], new: Sequence[Detection]) -> str | None:
    # A graph need not say where things stand, and may be true of the given picture too, so moves and swaps of places
    # are also read off the boxes: nothing that moved is where it was, and of two things that exchange places each is
    # about where the other was.
    pair = [instruction.graph.find(i) for i in instruction.entities]
    if instruction.operation == "move":
        stood, stands = _boxes(pair[0], old), _boxes(pair[0], new, anywhere=True)
        if any(abs(np.subtract(a, b)).max() <= SHIFT for a in stood for b in stands):
            return make_sentence(f"{phrase_known(pair[0])} {'has' if pair[0].count == 1 else 'have'} not moved")
    if instruction.operation == "swap" and not instruction.changes:
        for one, other in (pair, pair[::-1]):
            stood, stands = _boxes(other, old), _boxes(one, new, anywhere=True)
            if sum(any(_meet(a, b) for b in stood) for a in stands) < min(len(stood), len(stands)):
                return make_sentence(
                    f"{phrase_known(one)} {is_or_are(one)} not where {phrase_known(other)} {was_or_were(other)}"
                )
    return None


def _boxes(entity: Entity, found: Sequence[Detection], anywhere: bool = False) -> list[tuple[int, int, int, int]]:
    words = {key: word for key, word in get_words(entity).items() if not (anywhere and key == "place")}
    return [one.box for one in found if matches_words(words, describe_detection(one))]


def _meet(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def judge_answer(kind: str, answer: str, expected: str) -> tuple[dict[str, float], str]:
    """(scores, fault) of an answer; ``kind`` is one of ``questions.KINDS``."""
    answer = answer.strip()
    if kind in ("caption", "places"):
        right, fault = _same_scene(answer, expected)
    else:
        right, fault = answer == expected, f"expected {expected!r}"
    scores = {"right": right}
    if kind == "check":
        scores["yes or no"] = _first_word(answer) == _first_word(expected)
    return _numbers(scores), "" if right else fault


def _promises(found: Sequence[Detection], picture: Picture, graph: SceneGraph) -> str | None:
    return _analysis(
        check_picture(np.random.default_rng(0), match_detections(found, detect_background(picture), graph), graph)
    )


def _analysis(inspection: str | None) -> str | None:
    # What is wrong, without what to do about it.
    return None if inspection is None else inspection.partition("<refine>")[0].strip()


def _among(asked: Iterable[tuple[str | None, int]], seen: Iterable[str]) -> bool:
    wanted: collections.Counter[str | None] = collections.Counter()
    for word, count in asked:
        wanted[word] += count
    return wanted <= collections.Counter(seen)


def _numbers(scores: Mapping[str, bool]) -> dict[str, float]:
    return {name: float(score) for name, score in scores.items()}


def _same_scene(answer: str, expected: str) -> tuple[bool, str]:
    try:
        said = canonicalize(parse(answer))
    except SceneError as fault:
        return False, f"not understood: {fault}"
    return said == canonicalize(parse(expected)), f"expected {expected!r}"


def _first_word(answer: str) -> str:
    return answer.replace(",", " ").replace(".", " ").partition(" ")[0]


def judge(case: Case, before: Picture | None, now: Picture | None, answer: str) -> tuple[dict[str, float], str]:
    """(scores, fault) of what became of a case.

    Args:
      before: the picture that was given.
      now: the drawn one; None where there is an answer.
    """
    if case.group == "reading":
        return judge_answer(case.row, answer, case.answer)
    assert case.asked is not None and now is not None
    if case.group == "editing":
        assert case.instruction is not None and before is not None
        return judge_edit(case.asked, case.instruction, before, now)
    return judge_drawing(case.asked, now)


def by_prompt(outcomes: Iterable[Outcome], score: str) -> list[float]:
    """The mean score of every prompt that has it, in order; its draws have the same name but for the sample."""
    prompts: dict[str, list[float]] = {}
    for one in outcomes:
        if score in one.scores:
            prompts.setdefault(one.name.rpartition("-")[0], []).append(one.scores[score])
    return [float(np.mean(values)) for values in prompts.values()]


def ability_tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """A table of each group that has outcomes: every score with its interval, by row; edits overall too."""
    made = []
    for group, columns in COLUMNS.items():
        rows: dict[str, list[Outcome]] = {}
        for one in outcomes:
            if one.group == group:
                rows.setdefault(one.row, []).append(one)
        if not rows:
            continue
        shown = [_cells(_NAMES.get(row, row), [own], columns) for row, own in rows.items()]
        if group == "editing":
            shown.insert(0, _cells(OVERALL, list(rows.values()), columns))
        names = [name for column in columns for name in (column, f"{column} low", f"{column} high")]
        made.append(Table(group, (_FIRST[group], *names, "prompts", "samples"), shown, NOTES[group]))
    return made


def _cells(name: str, strata: Sequence[Sequence[Outcome]], columns: Sequence[str]) -> tuple[Cell, ...]:
    cells: list[Cell] = [name]
    for column in columns:
        scores = [np.array(by_prompt(own, column)) for own in strata]
        cells += interval(estimate(scores))[:3] if all(map(len, scores)) else (None, None, None)
    prompts = sum(len(by_prompt(own, "right")) for own in strata)
    return (*cells, prompts, sum(map(len, strata)))
